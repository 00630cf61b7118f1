//! What can be told of the kernels of a module: their text and a description for checks.

use super::cuda::Kernel;
use super::ends::{Ends, ends, layers};
use super::plan::{Step, plan};
use crate::ir::{FuncId, Function, Module, ValueId};
use crate::ops::Op;
use crate::schedule::saved_values;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// What all generated kernels share.
pub(crate) const PRELUDE: &str = include_str!("prelude.cu");

/// What kernels with an end need beside it.
const ENDS: &str = "\n#include \"fixed.cuh\"\n";

/// The steps of all functions of a module.
#[derive(Clone, Debug, PartialEq)]
pub struct Plans {
    /// One per function.
    pub(crate) forward: Vec<Vec<Step>>,
    /// One per backward function.
    pub(crate) backward: Vec<Vec<Step>>,
    /// Per function, kernels that end it with the step of a reversible stack.
    pub(crate) ends: Vec<Option<Ends>>,
}

impl Plans {
    /// Plans the functions of a module.
    pub fn of(module: &Module) -> Plans {
        let layers = layers(module);
        let (mut forward, mut all_ends) = (Vec::new(), Vec::new());
        for (index, function) in module.functions.iter().enumerate() {
            let id = FuncId(index as u32);
            let mut read: BTreeSet<ValueId> = saved_values(module, id).into_iter().collect();
            read.extend(function.outputs.iter().skip(1).map(|output| output.value));
            read.extend(function.updates.iter().map(|(_, value)| *value));
            let mut kept = read.clone();
            kept.extend(function.outputs.first().map(|output| output.value));
            let steps = plan(function, kept, &snake(&function.name));
            let is_layer = layers.contains(&id);
            all_ends.push(is_layer.then(|| ends(function, &steps, &read)).flatten());
            forward.push(steps);
        }
        let backward = module.backward.iter().map(|backward| {
            let mut kept: BTreeSet<ValueId> =
                backward.body.outputs.iter().map(|output| output.value).collect();
            kept.extend(backward.grads.iter().map(|(_, value)| *value));
            plan(&backward.body, kept, &snake(&backward.body.name))
        });
        Plans { forward, backward: backward.collect(), ends: all_ends }
    }

    /// All kernels with an end, with their functions.
    pub(crate) fn ended<'m>(
        &'m self,
        module: &'m Module,
    ) -> impl Iterator<Item = (&'m Function, &'m Kernel)> {
        let all = module.functions.iter().zip(&self.ends);
        all.flat_map(|(function, ends)| {
            ends.iter().flat_map(Ends::kernels).map(move |kernel| (function, kernel))
        })
    }

    /// All kernels with their functions, in the order of the module.
    pub(crate) fn kernels<'m>(
        &'m self,
        module: &'m Module,
    ) -> impl Iterator<Item = (&'m Function, &'m Kernel)> {
        let bodies = module.backward.iter().map(|backward| &backward.body);
        let functions = module.functions.iter().chain(bodies);
        let plans = self.forward.iter().chain(&self.backward);
        functions.zip(plans).flat_map(|(function, steps)| {
            steps.iter().filter_map(move |step| match step {
                Step::Kernel(kernel) => Some((function, &**kernel)),
                Step::Node(_) => None,
            })
        })
    }

    /// The CUDA text: one file with all row kernels of the module.
    pub fn text(&self, module: &Module) -> String {
        let mut text = PRELUDE.to_owned();
        for (_, kernel) in self.kernels(module) {
            text += "\n";
            text += &kernel.text;
        }
        // What follows needs a header of the device library.
        if self.ended(module).next().is_some() {
            text += ENDS;
        }
        for (_, kernel) in self.ended(module) {
            text += "\n";
            text += &kernel.text;
        }
        text
    }
}

fn snake(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !text.is_empty() && !text.ends_with('_') {
            text.push('_');
        }
        text.push(if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' });
    }
    text
}

/// The CUDA text of a module: one file with all its row kernels.
pub fn cuda_text(module: &Module) -> String {
    Plans::of(module).text(module)
}

fn value_json(function: &Function, value: ValueId) -> Value {
    let ty = function.ty(value);
    let axes: Vec<Value> =
        ty.axes.iter().map(|axis| json!([axis.name, axis.size.to_string()])).collect();
    json!({"id": value.0, "dtype": crate::ir::types::dtype_word(ty.dtype), "axes": axes})
}

/// A description of each kernel of a module for a check outside of this crate: how it is launched,
/// and the nodes that say what it computes. Those with an end are left out: it is no node.
pub fn describe(module: &Module) -> Value {
    let plans = Plans::of(module);
    let list = plans.kernels(module).map(|(function, kernel)| {
        let group = &kernel.group;
        let mut nodes: Vec<Value> = Vec::new();
        let mut literals: BTreeSet<ValueId> = BTreeSet::new();
        let tables = group.tables.keys().map(|table| function.value(*table).node);
        for id in tables.chain(group.nodes.iter().copied()) {
            let node = function.node(id);
            for arg in &node.args {
                let op = &function.definition(*arg).op;
                let number = match op {
                    Op::Const(op) => json!(op.value),
                    Op::SizeValue(op) => json!(op.size.to_string()),
                    _ => continue,
                };
                if literals.insert(*arg) {
                    nodes.push(json!({"op": "const", "attrs": {"value": number}, "args": [],
                        "results": [value_json(function, *arg)]}));
                }
            }
            let attrs: serde_json::Map<String, Value> = node
                .op
                .def()
                .attrs()
                .0
                .into_iter()
                .map(|(name, attr)| (name, attr_json(&attr)))
                .collect();
            let results: Vec<Value> =
                node.results.iter().map(|value| value_json(function, *value)).collect();
            nodes.push(json!({"op": node.op.def().mnemonic(), "attrs": attrs,
                "args": node.args.iter().map(|arg| arg.0).collect::<Vec<u32>>(), "results": results}));
        }
        let shape = kernel.shape;
        json!({
            "entry": kernel.entry,
            "threads": shape.block,
            "shared": shape.shared,
            "rows": super::group::rows(&group.layout).to_string(),
            "groups": shape.groups(),
            "blocks": shape.blocks,
            "tiles": shape.tiles,
            "inputs": group.inputs.iter().map(|v| value_json(function, *v)).collect::<Vec<_>>(),
            "angles": kernel.angles.iter().map(|a| json!({"steps": a.steps.to_string(),
                "width": a.width, "base": a.base})).collect::<Vec<_>>(),
            "writes": kernel.writes.iter().map(|v| value_json(function, *v)).collect::<Vec<_>>(),
            "sums": kernel.sums.iter().map(|s| json!({"value": value_json(function, s.value),
                "parts": s.parts, "outer": s.outer, "columns": s.columns,
                "mean_of": s.mean_of.as_ref().map(ToString::to_string)})).collect::<Vec<_>>(),
            "symbols": kernel.symbols,
            "nodes": nodes,
        })
    });
    Value::Array(list.collect())
}

fn attr_json(attr: &crate::ops::Attr) -> Value {
    use crate::ops::Attr;
    match attr {
        Attr::Int(value) => json!(value),
        Attr::Float(value) => json!(value),
        Attr::Word(word) | Attr::Text(word) => json!(word),
        Attr::Words(words) => json!(words),
        Attr::Size(size) => json!(size.to_string()),
        Attr::Axes(axes) => {
            json!(axes.iter().map(|a| json!([a.name, a.size.to_string()])).collect::<Vec<_>>())
        }
    }
}
