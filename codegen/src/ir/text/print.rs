//! Module to text.

use crate::ir::graph::{Backward, FuncId, Function, Module, Node, ValueId};
use lightc_dsl::model::{InitLaw, MemberRef, Storage};
use std::fmt::Write;

/// Prints a module.
pub fn print(module: &Module) -> String {
    let mut out = String::new();
    let entry = function_name(module, module.entry);
    let _ = writeln!(out, "module {} entry {entry}", module.name);
    for function in &module.functions {
        out.push('\n');
        out.push_str(&print_function(module, function));
    }
    for backward in &module.backward {
        out.push('\n');
        out.push_str(&print_backward(module, backward));
    }
    out
}

fn function_name(module: &Module, id: FuncId) -> String {
    module.functions.get(id.0 as usize).map_or_else(|| "@?".into(), |f| format!("@{}", f.name))
}

/// Prints one function.
pub fn print_function(module: &Module, function: &Function) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "func @{} {{", function.name);
    if let Some(doc) = &function.doc {
        let _ = writeln!(out, "  doc {doc:?}");
    }
    declarations(&mut out, module, function);
    body(&mut out, function);
    for (index, value) in &function.updates {
        let name = function.states.get(*index).map_or("?", |state| state.name.as_str());
        let _ = writeln!(out, "  update {name} = {value}");
    }
    returns(&mut out, function);
    out.push_str("}\n");
    out
}

fn declarations(out: &mut String, module: &Module, function: &Function) {
    if !function.open_sizes.is_empty() {
        let _ = writeln!(out, "  open [{}]", function.open_sizes.join(", "));
    }
    for member in &function.order {
        match member {
            MemberRef::Param(index) => {
                let Some(param) = function.params.get(*index) else { continue };
                let storage = storage_text(&param.storage);
                let init = init_text(&param.init);
                let _ = write!(out, "  param {}: {} ~ {init} {storage}", param.name, param.ty);
                if let Some(active) = &param.active {
                    let _ = write!(out, " active {} of {}", active.count, active.of);
                }
                if let Some(doc) = &param.doc {
                    let _ = write!(out, " doc {doc:?}");
                }
                out.push('\n');
            }
            MemberRef::Sub(index) => {
                let Some(sub) = function.subs.get(*index) else { continue };
                let callees: Vec<String> =
                    sub.callees.iter().map(|id| function_name(module, *id)).collect();
                let word = if sub.is_stack { "stack" } else { "sub" };
                let _ = write!(out, "  {word} {} = [{}]", sub.name, callees.join(", "));
                out.push_str(if sub.training_only { " training_only\n" } else { "\n" });
            }
        }
    }
    for state in &function.states {
        let _ = writeln!(out, "  state {}: {} = {:?}", state.name, state.ty, state.start);
    }
    for table in &function.tables {
        let _ = writeln!(out, "  table {}: {} from {:?}", table.name, table.ty, table.from);
    }
}

/// A storage class as `frozen "reason"`.
pub fn storage_text(storage: &Storage) -> String {
    match storage {
        Storage::Trained => "trained".to_owned(),
        Storage::Frozen(reason) => format!("frozen {reason:?}"),
        Storage::Quantized(format) => format!("quantized {}", format.word()),
        Storage::Adapter => "adapter".to_owned(),
    }
}

/// An init law as `normal(0.02)`.
pub fn init_text(init: &InitLaw) -> String {
    match init {
        InitLaw::Zeros => "zeros()".into(),
        InitLaw::Ones => "ones()".into(),
        InitLaw::Constant { value } => format!("constant({value:?})"),
        InitLaw::Normal { std } => format!("normal({std:?})"),
        InitLaw::Uniform { low, high } => format!("uniform({low:?}, {high:?})"),
        InitLaw::LogUniform { low, high } => format!("log_uniform({low:?}, {high:?})"),
    }
}

fn definition(function: &Function, id: ValueId) -> String {
    match &function.value(id).name {
        Some(name) => format!("{id}.{name}"),
        None => id.to_string(),
    }
}

fn body(out: &mut String, function: &Function) {
    for node in &function.nodes {
        let _ = writeln!(out, "  {}", node_text(function, node));
    }
}

fn node_text(function: &Function, node: &Node) -> String {
    let results: Vec<String> = node.results.iter().map(|r| definition(function, *r)).collect();
    let types: Vec<String> = node.results.iter().map(|r| function.ty(*r).to_string()).collect();
    let args: Vec<String> = node.args.iter().map(ToString::to_string).collect();
    let def = node.op.def();
    let mut text =
        if results.is_empty() { String::new() } else { format!("{} = ", results.join(", ")) };
    text.push_str(def.mnemonic());
    for (name, value) in &def.attrs().0 {
        let _ = write!(text, " {name}={value}");
    }
    let _ = write!(text, " ({})", args.join(", "));
    if !types.is_empty() {
        let _ = write!(text, " : {}", types.join(", "));
    }
    text
}

fn returns(out: &mut String, function: &Function) {
    let outputs: Vec<String> = function
        .outputs
        .iter()
        .map(|output| match &output.name {
            Some(name) => format!("{name}: {}", output.value),
            None => output.value.to_string(),
        })
        .collect();
    let _ = writeln!(out, "  return {}", outputs.join(", "));
}

/// Prints one backward function.
pub fn print_backward(module: &Module, backward: &Backward) -> String {
    let mut out = String::new();
    let seeds: Vec<String> = backward.seeds.iter().map(ToString::to_string).collect();
    let inputs: Vec<String> = backward
        .inputs
        .iter()
        .map(|index| index.map_or_else(|| "none".into(), |i| i.to_string()))
        .collect();
    let _ = writeln!(
        out,
        "backward @{} of {} seeds [{}] inputs [{}] {{",
        backward.body.name,
        function_name(module, backward.of),
        seeds.join(", "),
        inputs.join(", ")
    );
    if let Some(doc) = &backward.body.doc {
        let _ = writeln!(out, "  doc {doc:?}");
    }
    body(&mut out, &backward.body);
    for (index, value) in &backward.grads {
        let _ = writeln!(out, "  grad {index} = {value}");
    }
    returns(&mut out, &backward.body);
    out.push_str("}\n");
    out
}
