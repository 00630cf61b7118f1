//! Names in emitted code: Rust identifiers from source names, unique where they must be.

use crate::ir::{FuncId, Function, Module, ValueId};
use proc_macro2::{Ident, Span};
use std::collections::{BTreeMap, BTreeSet};

/// Names that emitted functions use for themselves, and what no pattern can bind.
const TAKEN: &[&str] =
    &["weights", "next", "saved", "grads", "like", "ops", "self", "Ok", "Err", "Some", "None"];

/// A Rust identifier for a source name: keywords and our own names get an underscore, and so do
/// names that end in one, which keeps different names apart.
pub(crate) fn ident(name: &str) -> Ident {
    let plain = !TAKEN.contains(&name) && !name.starts_with("size_") && !name.ends_with('_');
    if plain && syn::parse_str::<Ident>(name).is_ok() {
        return Ident::new(name, Span::call_site());
    }
    Ident::new(&format!("{name}_"), Span::call_site())
}

/// Crates that emitted code names.
const CRATES: [&str; 3] = ["std", "core", "lightc_runtime"];

/// The Rust module of a block: `GatedDeltaNet_2` is `gated_delta_net_2`. Where two blocks differ
/// in nothing but case, the later one gets an underscore.
pub(crate) fn block_ident(module: &Module, block: FuncId) -> Ident {
    let mut taken: BTreeSet<Ident> = CRATES.map(ident).into_iter().collect();
    let mut name = ident("block");
    for function in module.functions.iter().take(block.0 as usize + 1) {
        let mut text = snake_case(&function.name);
        while !taken.insert(ident(&text)) {
            text.push('_');
        }
        name = ident(&text);
    }
    name
}

fn snake_case(name: &str) -> String {
    let mut text = String::new();
    let mut before_lower = false;
    for c in name.chars() {
        if c.is_uppercase() && before_lower {
            text.push('_');
        }
        before_lower = c.is_lowercase() || c.is_ascii_digit();
        text.extend(c.to_lowercase());
    }
    text
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
