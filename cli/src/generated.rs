//! The text of everything that is generated from a stage. `inspect` prints it, `snapshot` pins it,
//! and tests of other crates compare with it.

use crate::table::{Table, counted, grouped};
use lightc_codegen::analysis::{Classes, Count, ModuleRow, ParamRow, ParamTable};
use lightc_codegen::ir::{Module, text};
use lightc_codegen::schedule::{FunctionSchedule, Schedule};
use lightc_dsl::model::{Axis, Instance, StageModel, Storage, SubDef, SubKind, Target};
use std::collections::BTreeMap;
use std::fmt::Write;

/// The parameter table of a stage: sums per module and what is frozen; with `full`, every tensor.
pub fn params_text(table: &ParamTable, full: bool) -> String {
    let mut out = format!("stage {}\n\n", table.stage);
    out.push_str(&modules_table(table));
    let _ = writeln!(out, "\nstored  {}", count_text(table.stored));
    let _ = writeln!(out, "active  {}", count_text(table.active));
    if table.adapters.with_mtp > 0 {
        let _ = writeln!(out, "adapters  {}", count_text(table.adapters));
    }
    out.push_str(&frozen_text(table));
    if full {
        let _ = write!(out, "\n{}", tensors_table(table));
    }
    out
}

fn modules_table(table: &ParamTable) -> String {
    let classes = &table.classes;
    let quantized = classes.quantized.with_mtp > 0 || classes.adapter.with_mtp > 0;
    let mut heads = vec!["module", "block", ">parameters", ">trained", ">frozen"];
    if quantized {
        heads.extend([">quantized", ">adapters"]);
    }
    heads.push("");
    let mut rows = Table::new(&heads);
    let mut row = |path: &str, block: &str, counts: [i64; 5], training: String| {
        let shown = if quantized { 5 } else { 3 };
        let mut cells = vec![path.to_owned(), block.to_owned()];
        cells.extend(counts.iter().take(shown).map(|count| grouped(*count)));
        cells.push(training);
        rows.row(cells);
    };
    for module in &table.modules {
        let ModuleRow { elements, trained, frozen, quantized, adapters, .. } = *module;
        let counts = [elements, trained, frozen, quantized, adapters];
        row(&module.path, &module.block, counts, training_only(module.training_only));
    }
    let all = |count: Count| count.with_mtp;
    let Classes { trained, frozen, quantized, adapter } = *classes;
    let counts = [all(table.stored), all(trained), all(frozen), all(quantized), all(adapter)];
    row("total", "", counts, String::new());
    rows.text()
}

fn training_only(is: bool) -> String {
    if is { "training only".to_owned() } else { String::new() }
}

fn count_text(count: Count) -> String {
    if count.with_mtp == count.without_mtp {
        return grouped(count.with_mtp);
    }
    format!("{}, at inference {}", grouped(count.with_mtp), grouped(count.without_mtp))
}

/// Frozen parameters by reason.
fn frozen_text(table: &ParamTable) -> String {
    let mut reasons: BTreeMap<&str, Vec<&ParamRow>> = BTreeMap::new();
    for row in &table.params {
        if let Storage::Frozen(reason) = &row.storage {
            reasons.entry(reason).or_default().push(row);
        }
    }
    let mut out = String::new();
    for (reason, rows) in reasons {
        let elements = rows.iter().map(|row| row.elements).sum();
        let tensors = counted(rows.len(), "tensor");
        let _ = writeln!(out, "\nfrozen: {reason}\n  {} in {tensors}:", grouped(elements));
        for row in rows {
            let _ = writeln!(out, "  {}", row.path);
        }
    }
    out
}

fn tensors_table(table: &ParamTable) -> String {
    let mut rows = Table::new(&["tensor", "axes", "dtype", ">parameters", "init", "storage", ""]);
    for row in &table.params {
        let axes: Vec<String> =
            row.axes.iter().map(|(name, size)| format!("{name}={size}")).collect();
        let storage = match &row.storage {
            Storage::Frozen(_) => "frozen".to_owned(),
            storage => text::storage_text(storage),
        };
        rows.row(vec![
            row.path.clone(),
            axes.join(" "),
            row.dtype.to_owned(),
            grouped(row.elements),
            row.init.clone(),
            storage,
            training_only(row.training_only),
        ]);
    }
    rows.text()
}

/// The checked model: every block instance with its sizes and members, children first.
pub fn model_text(model: &StageModel, block: Option<&str>) -> String {
    let mut out = format!("stage {} = {}\n", model.name, instance_name(model, model.root.0));
    out.push_str(&doc_text(model.doc.as_deref(), ""));
    for (index, instance) in model.instances.iter().enumerate() {
        if block.is_none_or(|name| name == instance.block) {
            out.push('\n');
            out.push_str(&instance_text(model, index as u32, instance));
        }
    }
    out
}

/// `RmsNorm#3`: the block and the number of the instance.
fn instance_name(model: &StageModel, index: u32) -> String {
    let block = model.instances.get(index as usize).map_or("?", |instance| instance.block.as_str());
    format!("{block}#{index}")
}

fn doc_text(doc: Option<&str>, indent: &str) -> String {
    let lines = doc.into_iter().flat_map(str::lines);
    lines.map(|line| format!("{indent}/// {line}").trim_end().to_owned() + "\n").collect()
}

fn instance_text(model: &StageModel, index: u32, instance: &Instance) -> String {
    let mut out = doc_text(instance.ast.doc.as_deref(), "");
    let sizes = instance.sizes.iter().map(|(name, size)| format!("{name} = {size}"));
    let numbers = instance.numbers.iter().map(|(name, number)| format!("{name} = {number}"));
    let bound: Vec<String> = sizes.chain(numbers).collect();
    let _ = writeln!(out, "{}({}) {{", instance_name(model, index), bound.join(", "));
    for param in &instance.params {
        let mut storage = text::storage_text(&param.storage);
        if let Some(active) = &param.active {
            let _ = write!(storage, " active {} of {}", active.count, active.of);
        }
        let dtype = lightc_codegen::ir::types::dtype_word(param.dtype);
        let init = text::init_text(&param.init);
        let axes = axes_text(&param.axes);
        let _ = writeln!(out, "    param {}[{axes}]: {dtype} ~ {init} {storage}", param.name);
    }
    for state in &instance.states {
        let _ =
            writeln!(out, "    state {}[{}] = {}", state.name, axes_text(&state.axes), state.start);
    }
    for table in &instance.tables {
        let _ = writeln!(
            out,
            "    table {}[{}] from {:?}",
            table.name,
            axes_text(&table.axes),
            table.from
        );
    }
    for sub in &instance.subs {
        out.push_str(&sub_text(model, sub));
    }
    out.push_str("}\n");
    out
}

fn axes_text(axes: &[Axis]) -> String {
    let axes: Vec<String> = axes
        .iter()
        .map(|axis| match axis.size.to_string() {
            size if size == axis.name => size,
            size => format!("{}={size}", axis.name),
        })
        .collect();
    axes.join(", ")
}

fn sub_text(model: &StageModel, sub: &SubDef) -> String {
    let tail = if sub.training_only { " training_only" } else { "" };
    match &sub.kind {
        SubKind::One(target) => {
            format!("    sub {} = {}{tail}\n", sub.name, target_text(model, target))
        }
        SubKind::Stack(layers) => {
            let mut out = format!("    stack {}{tail}\n", sub.name);
            for (layer, target) in layers.iter().enumerate() {
                let _ = writeln!(out, "        {layer} = {}", target_text(model, target));
            }
            out
        }
    }
}

/// An instance, and which of its axes has another name in the parent.
fn target_text(model: &StageModel, target: &Target) -> String {
    let renamed = target.axes.iter().filter(|(inner, outer)| inner != outer);
    let renamed: Vec<String> = renamed.map(|(inner, outer)| format!("{inner}: {outer}")).collect();
    let name = instance_name(model, target.instance.0);
    if renamed.is_empty() { name } else { format!("{name}({})", renamed.join(", ")) }
}

/// Named pieces of text: the functions of one form of a module.
pub type Functions = Vec<(String, String)>;

/// The forward functions, each in IR text.
pub fn forward_functions(module: &Module) -> Functions {
    let print = |function| text::print_function(module, function);
    module.functions.iter().map(|function| (function.name.clone(), print(function))).collect()
}

/// The backward functions, each in IR text.
pub fn backward_functions(module: &Module) -> Functions {
    let print = |backward| text::print_backward(module, backward);
    module.backward.iter().map(|backward| (backward.body.name.clone(), print(backward))).collect()
}

/// The first line of a module's IR text.
pub fn module_line(module: &Module) -> String {
    format!("module {} entry @{}\n", module.name, module.entry_function().name)
}

/// The schedule, one line per function.
pub fn schedule_text(schedule: &Schedule) -> String {
    let mut rows =
        Table::new(&["function", ">ops", ">saved", "elements saved", "elements touched", "flops"]);
    for function in &schedule.functions {
        let touched =
            function.steps.iter().try_fold(lightc_dsl::size::Size::default(), |sum, step| {
                sum.checked_add(&step.elements)
            });
        rows.row(vec![
            function.function.clone(),
            function.steps.len().to_string(),
            function.saved.len().to_string(),
            function.saved_elements.to_string(),
            touched.map_or_else(|| "over 2^63".to_owned(), |size| size.to_string()),
            function.flops.to_string(),
        ]);
    }
    format!(
        "target {}; callees are not counted in their callers\n\n{}",
        schedule.target,
        rows.text()
    ) + &stacks_text(schedule)
}

/// What reversible stacks keep, one line per stack; nothing where there are none.
fn stacks_text(schedule: &Schedule) -> String {
    if schedule.stacks.is_empty() {
        return String::new();
    }
    let mut rows = Table::new(&[
        "reversible stack",
        ">layers",
        "bytes of states",
        "kept bits",
        "bits of selections",
    ]);
    for stack in &schedule.stacks {
        rows.row(vec![
            format!("{}.{}", stack.function, stack.stack),
            stack.layers.to_string(),
            stack.state_bytes.to_string(),
            stack.kept_bits.to_string(),
            stack.replay_bits.to_string(),
        ]);
    }
    format!("\nof the layers below, one at a time keeps what it saves\n\n{}", rows.text())
}

/// The steps of one function.
pub fn steps_text(function: &FunctionSchedule) -> String {
    let mut rows = Table::new(&["results", "op", "flops", "elements", "dropped after it"]);
    for step in &function.steps {
        rows.row(vec![
            step.results.join(" "),
            step.op.to_owned(),
            step.flops.to_string(),
            step.elements.to_string(),
            step.drops.join(" "),
        ]);
    }
    let saved =
        if function.saved.is_empty() { "nothing".to_owned() } else { function.saved.join(" ") };
    format!(
        "function {}\nkeeps for its backward: {saved} ({} elements)\nflops: {}\n\n{}",
        function.function,
        function.saved_elements,
        function.flops,
        rows.text()
    )
}
