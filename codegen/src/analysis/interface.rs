//! How the root block of a stage meets the trainer: which input is fed from where, which output
//! comes back in the next step, and how many token ids there are.
//!
//! A stage that has a loss can be differentiated and interpreted whatever its inputs are. The
//! trainer feeds tokens, so what is emitted for it has the inputs and outputs listed in
//! [`Interface`]; everything else is reported here and not while code is emitted.

use crate::ir::{Function, Module, Type, ValueId};
use lightc_dsl::ast::DType;
use lightc_dsl::diag::Diag;
use lightc_dsl::model::Axis;
use lightc_dsl::size::Size;
use lightc_dsl::source::Span;
use std::collections::BTreeMap;

/// The mean next-token loss among the outputs: what held-out evaluation reports.
pub const NTP: &str = "ntp";

/// The axis of a root parameter whose size is the number of token ids.
pub const VOCAB: &str = "vocab";

/// What the trainer feeds and reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// One per input of the root block, in order.
    pub inputs: Vec<Role>,
    /// Values that one step hands to the next, in the order of the inputs.
    pub carries: Vec<Carry>,
    /// The number of token ids.
    pub vocab: i64,
}

/// Where an input of the root block comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `tokens[b, u]: index`: token ids, one row per sequence.
    Tokens,
    /// `continues[b]`: 1 where a row goes on from the step before, else 0.
    Continues,
    /// The output of the same name of the step before: index in [`Interface::carries`].
    Carry(usize),
}

/// A value that one step hands to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carry {
    /// Name of the input and of the output.
    pub name: String,
    /// Size per axis; `None` is the batch.
    pub shape: Vec<Option<i64>>,
}

/// The interface of a module.
///
/// # Errors
/// Everything that the trainer could not feed, read or store.
pub fn interface(module: &Module) -> Result<Interface, Vec<Diag>> {
    let root = module.entry_function();
    if let Some(diag) = without_tokens(root) {
        return Err(vec![diag]);
    }
    let mut diags = Vec::new();
    let mut interface = Interface { inputs: Vec::new(), carries: Vec::new(), vocab: 0 };
    let batch = batch(root);
    for (name, value) in root.inputs() {
        match role(root, name, value, batch.as_ref(), &mut interface.carries) {
            Ok(role) => interface.inputs.push(role),
            Err(diag) => diags.extend(diag.map(|diag| *diag)),
        }
    }
    outputs(root, &interface.carries, &mut diags);
    match vocab(root) {
        Some(vocab) => interface.vocab = vocab,
        None => diags.extend(no_vocab(root)),
    }
    open_sizes(module, &mut diags);
    diags.extend(doubled_names(module));
    if diags.is_empty() { Ok(interface) } else { Err(diags) }
}

/// A block without `tokens` is not meant for the trainer: all that it lacks is said at once.
fn without_tokens(root: &Function) -> Option<Diag> {
    if root.inputs().any(|(name, _)| name == "tokens") {
        return None;
    }
    let message = format!("the root block `{}` has no input `tokens[b, u]: index`", root.name);
    let mut diag = at_root(root, "E0505", message, "the trainer has nothing to feed it")?;
    for (name, value) in root.inputs().filter(|(name, _)| *name != "continues") {
        if let Some(span) = place(root, value) {
            diag = diag.with_related(span, format!("nothing feeds `{name}`"));
        }
    }
    Some(diag.with_help(
        "to train the stage, take token ids in; it can be checked and inspected as it is",
    ))
}

fn at_root(root: &Function, code: &'static str, message: String, label: &str) -> Option<Diag> {
    Some(Diag::error(code, message, root.span?, label))
}

/// The size name of the batch: that of the first axis of `tokens`.
fn batch(root: &Function) -> Option<Size> {
    let (_, tokens) = root.inputs().find(|(name, _)| *name == "tokens")?;
    root.ty(tokens).axes.first().map(|axis| axis.size.clone())
}

fn is_open(axis: &Axis) -> bool {
    axis.size.as_constant().is_none()
}

/// The role of an input; an error without a place is `None`.
fn role(
    root: &Function,
    name: &str,
    value: ValueId,
    batch: Option<&Size>,
    carries: &mut Vec<Carry>,
) -> Result<Role, Option<Box<Diag>>> {
    let ty = root.ty(value);
    let span = place(root, value);
    let error = |message: String, label: &str, help: &str| {
        Err(span.map(|span| Box::new(Diag::error("E0505", message, span, label).with_help(help))))
    };
    let is_batch = |axis: &Axis| batch.is_none_or(|batch| axis.size == *batch);
    match name {
        "tokens" => {
            let fits =
                ty.dtype == DType::Index && ty.axes.len() == 2 && ty.axes.iter().all(is_open);
            if fits {
                return Ok(Role::Tokens);
            }
            error(
                format!("root input `tokens` is {ty}, but the trainer feeds index[b, u]"),
                "token ids come in here",
                "write `tokens[b, u]: index`, with axes that the stage does not bind",
            )
        }
        "continues" => {
            let fits = ty.dtype == DType::Act && ty.axes.len() == 1 && ty.axes.iter().all(is_batch);
            if fits {
                return Ok(Role::Continues);
            }
            error(
                format!("root input `continues` is {ty}, but the trainer feeds act[b]"),
                "one number per row comes in here",
                "write `continues[b]`, with the first axis of `tokens`",
            )
        }
        _ => carried(root, name, value, batch, carries),
    }
}

/// An input that is none of the fixed ones: it has to come back as an output.
fn carried(
    root: &Function,
    name: &str,
    value: ValueId,
    batch: Option<&Size>,
    carries: &mut Vec<Carry>,
) -> Result<Role, Option<Box<Diag>>> {
    let ty = root.ty(value);
    let Some(span) = place(root, value) else { return Err(None) };
    let error = |message: String, label: &str| Diag::error("E0505", message, span, label);
    let output = root.outputs.iter().find(|output| output.name.as_deref() == Some(name));
    let Some(output) = output else {
        let message = format!("nothing feeds root input `{name}`");
        let diag = error(message, "no output has this name").with_help(format!(
            "the trainer feeds `tokens[b, u]: index` and `continues[b]`; any other input is carried \
             from the step before, so an output `{name}` with its axes has to give the next value"
        ));
        return Err(Some(Box::new(diag)));
    };
    let next = root.ty(output.value);
    if next != ty {
        let message = format!("carried `{name}` comes in as {ty} and goes out as {next}");
        let diag = error(message, "comes in here");
        let diag = match place(root, output.value) {
            Some(out) => diag.with_related(out, "goes out here"),
            None => diag,
        };
        return Err(Some(Box::new(
            diag.with_help("give both the same axes, sizes and precision class"),
        )));
    }
    let is_batch = |axis: &Axis| batch.is_none_or(|batch| axis.size == *batch);
    for (position, axis) in ty.axes.iter().enumerate() {
        if is_open(axis) && !(position == 0 && is_batch(axis)) {
            let message = format!(
                "carried `{name}` is {ty}, but the size of its axis `{}` changes from batch to batch",
                axis.name
            );
            let help = "only the first axis can be the batch's; bind the others in the stage";
            let diag = error(message, "carried to the next step").with_help(help);
            return Err(Some(Box::new(diag)));
        }
    }
    let shape = ty.axes.iter().map(|axis| axis.size.as_constant()).collect();
    carries.push(Carry { name: name.to_owned(), shape });
    Ok(Role::Carry(carries.len() - 1))
}

/// Where a value is written.
fn place(root: &Function, value: ValueId) -> Option<Span> {
    root.definition(value).span.or(root.span)
}

/// What is not carried is reported as a number per step.
fn outputs(root: &Function, carries: &[Carry], diags: &mut Vec<Diag>) {
    let is_input = |name: &str| root.inputs().any(|(known, _)| known == name);
    for output in &root.outputs {
        let name = output.name.as_deref().unwrap_or("result");
        let ty: &Type = root.ty(output.value);
        let scalar = ty.axes.is_empty() && ty.is_float();
        if scalar || carries.iter().any(|carry| carry.name == name) || is_input(name) {
            continue;
        }
        let message = format!("root output `{name}` is {ty}, but the trainer reports one number");
        diags.extend(place(root, output.value).map(|span| {
            Diag::error("E0505", message, span, "goes out here").with_help(format!(
                "reduce it over its axes, or add an input `{name}` to carry it to the next step"
            ))
        }));
    }
    if !root.outputs.iter().any(|output| output.name.as_deref() == Some(NTP)) {
        let message = format!("the root block `{}` has no output `{NTP}[]`", root.name);
        let label = "held-out evaluation has nothing to report";
        diags.extend(at_root(root, "E0505", message, label).map(|diag| {
            diag.with_help(format!(
                "give the mean next-token loss as an output of that name: `-> (loss[], {NTP}[])`"
            ))
        }));
    }
}

/// The number of token ids: the size of the root's vocabulary axis.
fn vocab(root: &Function) -> Option<i64> {
    let mut axes = root.params.iter().flat_map(|param| &param.ty.axes);
    axes.find(|axis| axis.name == VOCAB).map(|axis| axis.size.as_constant().unwrap_or(0))
}

fn no_vocab(root: &Function) -> Option<Diag> {
    let message = format!("the root block `{}` has no parameter over an axis `{VOCAB}`", root.name);
    let names: Vec<&str> = root.params.iter().map(|param| param.name.as_str()).collect();
    let has = match names.as_slice() {
        [] => "it has no parameter of its own".to_owned(),
        names => format!("its own parameters are `{}`", names.join("`, `")),
    };
    let diag = at_root(root, "E0506", message, "the number of token ids is not known")?;
    Some(diag.with_help(format!("{has}; declare the output head here, as `lm_head[{VOCAB}, d]`")))
}

/// A program stores tensors of known sizes.
fn open_sizes(module: &Module, diags: &mut Vec<Diag>) {
    let mut report = |what: &str, path: &str, ty: &Type, span: Option<Span>| {
        let Some(axis) = ty.axes.iter().find(|axis| is_open(axis)) else { return };
        let message =
            format!("{what} `{path}` is {ty}: the size of axis `{}` is left open", axis.name);
        diags.extend(span.map(|span| {
            let help = format!("bind `{}` to a number in a stage", axis.name);
            Diag::error("E0507", message, span, "stored, so its size has to be known")
                .with_help(help)
        }));
    };
    for placed in module.placed_params() {
        report("parameter", &placed.path, &placed.item.ty, placed.item.span);
    }
    for placed in module.placed_states() {
        report("state", &placed.path, &placed.item.ty, placed.item.span);
    }
    for placed in module.placed_tables() {
        report("table", &placed.path, &placed.item.ty, placed.item.span);
    }
    lightc_dsl::diag::dedup(diags);
}

/// Functions whose modules of emitted code would have one name.
fn doubled_names(module: &Module) -> Vec<Diag> {
    let mut seen: BTreeMap<String, &Function> = BTreeMap::new();
    let mut diags = Vec::new();
    for function in &module.functions {
        let name = crate::emit::module_name(&function.name);
        let Some(first) = seen.get(&name) else {
            let _ = seen.insert(name, function);
            continue;
        };
        let message = format!(
            "blocks `{}` and `{}` would give one Rust module `{name}`",
            first.name, function.name
        );
        let diag = function.span.map(|span| Diag::error("E0508", message, span, "the second"));
        let diag = diag.map(|diag| match first.span {
            Some(span) => diag.with_related(span, "the first"),
            None => diag,
        });
        let help = "names of blocks differ in more than capitals; rename one of them";
        diags.extend(diag.map(|diag| diag.with_help(help)));
    }
    diags
}
