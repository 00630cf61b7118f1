//! Names in emitted code: Rust identifiers from source names, unique where they must be.

use crate::ir::{Function, ValueId};
use proc_macro2::{Ident, Span};
use std::collections::BTreeMap;

/// Names that emitted functions use for themselves.
const TAKEN: &[&str] = &["weights", "next", "saved", "grads", "like", "ops", "self"];

/// A Rust identifier for a source name: keywords and our own names get an underscore.
pub(crate) fn ident(name: &str) -> Ident {
    let plain = TAKEN.contains(&name) || name.starts_with("size_");
    if !plain && syn::parse_str::<Ident>(name).is_ok() {
        return Ident::new(name, Span::call_site());
    }
    Ident::new(&format!("{name}_"), Span::call_site())
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
    ident(&text)
}

/// Local names of a function's values: the source name where one value has it, else with the
/// value's number.
pub(crate) fn value_names(function: &Function) -> BTreeMap<ValueId, Ident> {
    let mut uses: BTreeMap<&str, usize> = BTreeMap::new();
    for value in &function.values {
        if let Some(name) = &value.name {
            *uses.entry(name).or_default() += 1;
        }
    }
    let mut names = BTreeMap::new();
    for (index, value) in (0u32..).zip(&function.values) {
        let text = match &value.name {
            Some(name) if uses.get(name.as_str()) == Some(&1) => name.clone(),
            Some(name) => format!("{name}_{index}"),
            None => format!("v{index}"),
        };
        names.insert(ValueId(index), ident(&text));
    }
    names
}
