//! Names in emitted code: Rust identifiers from source names, unique where they must be.

use crate::ir::{Function, ValueId};
use proc_macro2::{Ident, Span};
use std::collections::{BTreeMap, BTreeSet};

/// Names that emitted functions use for themselves, and what no pattern can bind.
const TAKEN: &[&str] = &[
    "weights",
    "next",
    "saved",
    "grads",
    "like",
    "ops",
    "layer_penalty",
    "penalty_share",
    "self",
    "tape",
    "reversible",
    "Ok",
    "Err",
    "Some",
    "None",
];

/// A Rust identifier for a source name: keywords and our own names get an underscore, and so do
/// names that end in one, which keeps different names apart.
pub(crate) fn ident(name: &str) -> Ident {
    if name.contains('.') {
        // The path of a stack's gate, or of a member of a block that was written out.
        return Ident::new(&format!("{}_", stem(name)), Span::call_site());
    }
    let plain = !TAKEN.contains(&name) && !name.starts_with("size_") && !name.ends_with('_');
    if plain && syn::parse_str::<Ident>(name).is_ok() {
        return Ident::new(name, Span::call_site());
    }
    Ident::new(&format!("{name}_"), Span::call_site())
}

/// A source name as part of an identifier: a path has underscores for its dots.
pub(crate) fn stem(name: &str) -> String {
    name.replace('.', "_")
}

/// The module of a block: `GatedDeltaNet_2` is `gated_delta_net_2`.
pub(crate) fn module_ident(function: &str) -> Ident {
    let mut text = String::new();
    let mut before_lower = false;
    for c in function.chars() {
        if c.is_uppercase() && before_lower {
            text.push('_');
        }
        before_lower = c.is_lowercase() || c.is_ascii_digit();
        text.extend(c.to_lowercase());
    }
    if CRATES.contains(&text.as_str()) {
        return Ident::new(&format!("{text}_"), Span::call_site());
    }
    ident(&text)
}

/// The name of the module of a block.
pub(crate) fn module_name(function: &str) -> String {
    module_ident(function).to_string()
}

/// Crates that emitted code names by a path; a module of that name would hide them.
const CRATES: &[&str] = &["std", "core", "alloc", "test", "proc_macro", "lightc_runtime"];

/// Types that emitted code names without a path.
const TYPES: &[&str] = &[
    "Any",
    "Batch",
    "Box",
    "CarrySpec",
    "Empty",
    "Err",
    "FlatSource",
    "FlatStates",
    "Init",
    "Inputs",
    "None",
    "Ok",
    "Option",
    "Outputs",
    "ParamGrads",
    "ParamSpec",
    "Precision",
    "Result",
    "Self",
    "Some",
    "Stage",
    "StateSpec",
    "StepReport",
    "Storage",
    "TableSpec",
    "Tensor",
    "TrainState",
    "Vec",
];

/// The type of a stage: `tiny_2b` is `Tiny2b`.
pub(crate) fn stage_ident(name: &str) -> Ident {
    let mut text = String::new();
    for part in name.split('_') {
        let mut chars = part.chars();
        text.extend(chars.next().into_iter().flat_map(char::to_uppercase));
        text.extend(chars);
    }
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic());
    let prefix = if is_plain && !TYPES.contains(&text.as_str()) { "" } else { "Stage_" };
    Ident::new(&format!("{prefix}{text}"), Span::call_site())
}

/// The package of a stage: its name, where that can name a crate.
pub(crate) fn crate_name(stage: &str) -> String {
    let is_plain = stage.starts_with(|c: char| c.is_ascii_alphabetic());
    let is_free = syn::parse_str::<Ident>(stage).is_ok() && !CRATES.contains(&stage);
    if is_plain && is_free { stage.to_owned() } else { format!("stage_{stage}") }
}

/// Local names of a function's values: the source name where one value has it, else with the
/// value's number. No two values share a name, whatever the source calls them.
pub(crate) fn value_names(function: &Function) -> BTreeMap<ValueId, Ident> {
    let mut uses: BTreeMap<&str, usize> = BTreeMap::new();
    for value in &function.values {
        if let Some(name) = &value.name {
            *uses.entry(name).or_default() += 1;
        }
    }
    let alone = |name: &Option<String>| {
        name.clone().filter(|name| uses.get(name.as_str()) == Some(&1) && !is_call_field(name))
    };
    let mut names = Names::default();
    // Source names come first: they stay as they are.
    for (index, value) in (0u32..).zip(&function.values) {
        if let Some(name) = alone(&value.name) {
            names.give(ValueId(index), name);
        }
    }
    for (index, value) in (0u32..).zip(&function.values) {
        if alone(&value.name).is_none() {
            let name = value.name.as_ref();
            let text = name.map_or_else(|| format!("v{index}"), |name| format!("{name}_{index}"));
            names.give(ValueId(index), text);
        }
    }
    names.of
}

/// Whether `Saved` can have a field of that name for what a call keeps.
fn is_call_field(name: &str) -> bool {
    let numbered = |(_, number): (&str, &str)| number.chars().all(|c| c.is_ascii_digit());
    name.ends_with("_call") || name.rsplit_once("_call_").is_some_and(numbered)
}

#[derive(Default)]
struct Names {
    of: BTreeMap<ValueId, Ident>,
    taken: BTreeSet<Ident>,
}

impl Names {
    /// The first free name of `text`, `text_`, `text__`, ...
    fn give(&mut self, value: ValueId, mut text: String) {
        while !self.taken.insert(ident(&text)) {
            text.push('_');
        }
        let _ = self.of.insert(value, ident(&text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Value;

    #[test]
    fn a_stage_of_any_name_has_a_type_and_a_crate() {
        for (stage, type_name, package) in [
            ("tiny_2b", "Tiny2b", "tiny_2b"),
            ("_", "Stage_", "stage__"),
            ("_2b", "Stage_2b", "stage__2b"),
            ("self", "Stage_Self", "stage_self"),
            ("tensor", "Stage_Tensor", "tensor"),
            ("type", "Type", "stage_type"),
            ("std", "Std", "stage_std"),
            ("lightc_runtime", "LightcRuntime", "stage_lightc_runtime"),
        ] {
            assert_eq!(stage_ident(stage).to_string(), type_name);
            assert_eq!(crate_name(stage), package);
        }
    }

    #[test]
    fn modules_of_blocks_hide_no_crate() {
        assert_eq!(module_ident("GatedDeltaNet_2").to_string(), "gated_delta_net_2");
        assert_eq!(module_ident("Std").to_string(), "std_");
        assert_eq!(module_name("Abc"), module_name("ABC"));
    }

    #[test]
    fn no_two_values_have_one_name() {
        let names = ["x", "x", "x_1", "v4", ""].map(|name| (!name.is_empty()).then_some(name));
        let values = names.map(|name| Value {
            ty: crate::ir::Type::new(lightc_dsl::ast::DType::Act, Vec::new()),
            node: crate::ir::NodeId(0),
            name: name.map(str::to_owned),
        });
        let function = Function { values: values.into(), ..Function::default() };
        let found: Vec<String> =
            value_names(&function).into_values().map(|name| name.to_string()).collect();
        assert_eq!(found, ["x_0", "x_1__", "x_1", "v4", "v4__"]);
    }
}
