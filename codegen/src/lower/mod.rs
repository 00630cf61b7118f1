//! Lowering: the checked model to IR.
//!
//! One IR function is made per instance of a block and per set of argument types. Axes and
//! precision classes of values are inferred here, by the shape rule of each op; a rule's error
//! gets the place of the expression it came from. All errors are collected: an expression that
//! failed has no value, and what depends on it is passed over in silence.

mod body;
mod builtins;
mod mentions;
mod scope;

use crate::ir::{FuncId, Function, Module, Param, State, Sub, Table, Type, has_penalties};
use crate::ops::TypeError;
use lightc_dsl::ast::{self, DType};
use lightc_dsl::diag::Diag;
use lightc_dsl::model::{Axis, Instance, InstanceId, StageModel, SubKind, Target};
use lightc_dsl::size::Size;
use lightc_dsl::source::Span;
use std::collections::{BTreeMap, BTreeSet};

/// Lowers a stage.
///
/// # Errors
/// Every error of every forward body that the stage reaches.
pub fn lower(model: &StageModel) -> Result<Module, Vec<Diag>> {
    let mut lowerer = Lowerer {
        model,
        module: Module { name: model.name.clone(), ..Module::default() },
        known: BTreeMap::new(),
        diags: Vec::new(),
        failures: 0,
        open_root: false,
        calls: Vec::new(),
    };
    let root = lowerer.root_types();
    let entry = root.and_then(|types| lowerer.function(model.root, types));
    match entry {
        Some(entry) if lowerer.diags.is_empty() => {
            lowerer.module.entry = entry;
            match penalties_lost(&lowerer.module) {
                Some(diag) => Err(vec![diag]),
                None => Ok(lowerer.module),
            }
        }
        _ => Err(lowerer.diags),
    }
}

/// The root has a loss and has not taken the penalties of what it calls.
fn penalties_lost(module: &Module) -> Option<Diag> {
    let root = module.entry_function();
    let has_loss = root.outputs.iter().any(|output| output.name.as_deref() == Some("loss"));
    if !has_loss || !has_penalties(root) {
        return None;
    }
    let message = format!("`{}` does not take the penalties of what it calls", root.name);
    let diag = Diag::error("E0440", message, root.span?, "minimises a loss without them")
        .with_help("add `penalties()` to the loss, after the calls that they come from");
    let first = module.functions.iter().flat_map(|function| {
        let total = function.outputs.last().filter(|_| has_penalties(function));
        total.and_then(|output| function.definition(output.value).span)
    });
    Some(match first.into_iter().next() {
        Some(place) => diag.with_related(place, "a penalty is stated here"),
        None => diag,
    })
}

/// The code, message and help of a rule's error, at a place.
pub(crate) fn at(error: TypeError, span: Span) -> Diag {
    let label = match error.code {
        "E0306" | "E0308" => "this size",
        "E0401" => "not with these axes",
        "E0402" => "sizes that do not fit",
        "E0403" => "each lacks an axis of the other",
        "E0404" => "a value of another kind is wanted",
        "E0405" => "not in this form",
        "E0406" => "one axis twice",
        "E0407" => "not known here",
        "E0450" => "a score that can be narrow",
        _ => "here",
    };
    let diag = Diag::error(error.code, error.message, span, label);
    match error.help {
        Some(help) => diag.with_help(help),
        None => diag,
    }
}

struct Lowerer<'m> {
    model: &'m StageModel,
    module: Module,
    known: BTreeMap<(InstanceId, Vec<Type>), Option<FuncId>>,
    diags: Vec<Diag>,
    /// How often something was found wrong, also where it had been reported before.
    failures: usize,
    /// A block is lowered alone, with an axis `rows` in place of `..`.
    open_root: bool,
    /// Calls being lowered, outermost first: where the instance at hand comes from.
    calls: Vec<Span>,
}

/// What a call site needs to know of its callee.
struct Signature {
    /// Types of the inputs inside the callee.
    types: Vec<Type>,
    /// What the callee's size names are in the caller.
    bindings: BTreeMap<String, Size>,
    /// The order in which each argument must come, in the caller's axis names.
    orders: Vec<Vec<String>>,
}

impl Lowerer<'_> {
    /// Records a diagnostic, once per code and place. Where it is about types, the call that
    /// brought them is a related place.
    fn report(&mut self, diag: Diag) {
        self.failures += 1;
        let known =
            self.diags.iter().any(|d| d.code == diag.code && d.primary.span == diag.primary.span);
        if known {
            return;
        }
        let diag = if self.open_root { with_dots(diag) } else { diag };
        let diag = match self.calls.last() {
            Some(call) if is_about_types(diag.code) && *call != diag.primary.span => {
                diag.with_related(*call, "called here")
            }
            _ => diag,
        };
        self.diags.push(diag);
    }

    /// Types of the root's inputs: every axis without a size is a run-time size.
    fn root_types(&mut self) -> Option<Vec<Type>> {
        let instance = self.model.instance(self.model.root).clone();
        let forward = forward_of(&instance)?;
        let mut types = Vec::new();
        for port in &forward.inputs {
            let mut axes = Vec::new();
            if port.axes.open {
                // A block that is checked alone: any leading axes, so one is taken.
                axes.push(Axis { name: ROWS.into(), size: Size::symbol(ROWS) });
                self.open_root = true;
            }
            axes.extend(port.axes.axes.iter().map(|axis| Axis {
                name: axis.name.clone(),
                size: size_in(&instance, &axis.name),
            }));
            types.push(Type::new(port.dtype.unwrap_or(DType::Act), axes));
        }
        Some(types)
    }

    /// The function of an instance for given input types; `None` if it has errors.
    fn function(&mut self, id: InstanceId, types: Vec<Type>) -> Option<FuncId> {
        if let Some(known) = self.known.get(&(id, types.clone())) {
            self.failures += usize::from(known.is_none());
            return *known;
        }
        let instance = self.model.instance(id).clone();
        let before = self.failures;
        let function = self.lower_body(&instance, &types);
        let result = match function {
            Some(function) if self.failures == before => Some(self.add(function)),
            _ => None,
        };
        self.known.insert((id, types), result);
        result
    }

    /// Adds a finished function under a name of its own.
    fn add(&mut self, mut function: Function) -> FuncId {
        let base = function.name.clone();
        let mut number = 1;
        while self.module.find(&function.name).is_some() {
            number += 1;
            function.name = format!("{base}_{number}");
        }
        self.module.functions.push(crate::ir::prune::prune_forward(function));
        FuncId(self.module.functions.len() as u32 - 1)
    }

    /// Fits arguments to the forward of an instance.
    fn signature(
        &mut self,
        target: &Target,
        args: &[(Type, Span)],
        call: Span,
    ) -> Option<Signature> {
        let instance = self.model.instance(target.instance).clone();
        let forward = forward_of(&instance)?;
        if forward.inputs.len() != args.len() {
            let message = format!(
                "`{}` takes {}, here are {}",
                instance.block,
                counted(forward.inputs.len(), "input"),
                args.len()
            );
            let names = forward.inputs.iter().filter_map(|port| port.name.as_ref());
            let names: Vec<&str> = names.map(|name| name.name.as_str()).collect();
            self.report(
                Diag::error("E0408", message, call, "this call")
                    .with_related(forward.span, "the inputs are declared here")
                    .with_help(format!("its inputs are ({})", names.join(", "))),
            );
            return None;
        }
        let mut signature = Signature { types: vec![], bindings: BTreeMap::new(), orders: vec![] };
        let mut fits = true;
        for (port, (ty, span)) in forward.inputs.iter().zip(args) {
            match fit_port(&instance, target, port, ty, &mut signature) {
                Ok(()) => {}
                Err(error) => {
                    fits = false;
                    self.report(
                        at(error, *span).with_related(port.axes.span, "the input is declared here"),
                    );
                }
            }
        }
        fits.then_some(signature)
    }
}

/// The axis that stands for `..` in a block that is lowered alone.
const ROWS: &str = "rows";

/// Types as the source writes them: `[.., d]` for `[rows, d]`.
fn with_dots(mut diag: Diag) -> Diag {
    let dots = |text: &str| {
        text.replace(&format!("[{ROWS}, "), "[.., ").replace(&format!("[{ROWS}]"), "[..]")
    };
    diag.message = dots(&diag.message);
    diag.help = diag.help.as_deref().map(dots);
    for label in &mut diag.related {
        label.text = dots(&label.text);
    }
    diag
}

/// `1 input`, `2 inputs`.
fn counted(n: usize, word: &str) -> String {
    if n == 1 { format!("1 {word}") } else { format!("{n} {word}s") }
}

/// Whether errors of this code depend on the axes and precision classes of what a call hands in.
fn is_about_types(code: &str) -> bool {
    ["E0401", "E0402", "E0403", "E0404", "E0406", "E0450"].contains(&code)
}

/// The forward of a block; the resolver has made sure that there is one.
fn forward_of(instance: &Instance) -> Option<&ast::Forward> {
    instance.ast.members.iter().find_map(|member| match member {
        ast::Member::Forward(forward) => Some(forward),
        _ => None,
    })
}

/// The size of an axis name in an instance: bound, or a run-time size of that name.
fn size_in(instance: &Instance, name: &str) -> Size {
    instance.sizes.get(name).cloned().unwrap_or_else(|| Size::symbol(name))
}

/// Fits one argument to one input: finds the declared axes by name, takes the others as `..`.
fn fit_port(
    instance: &Instance,
    target: &Target,
    port: &ast::Port,
    ty: &Type,
    signature: &mut Signature,
) -> Result<(), TypeError> {
    let what = port.name.as_ref().map_or("input", |name| name.name.as_str());
    let wanted = port.dtype.unwrap_or(DType::Act);
    if ty.dtype != wanted && !(wanted == DType::F32 && ty.dtype == DType::Act) {
        let word = crate::ir::types::dtype_word(wanted);
        let error = TypeError::new(
            "E0404",
            format!("input `{what}` of `{}` is {word}, here is {ty}", instance.block),
        );
        let narrowing = wanted == DType::Act && ty.dtype == DType::F32;
        return Err(if narrowing {
            error.with_help("narrow it with `act(...)`, which says that precision is given up")
        } else {
            error
        });
    }
    let mut named: Vec<(String, &Axis)> = Vec::new();
    for formal in &port.axes.axes {
        let outside = target.axes.get(&formal.name).unwrap_or(&formal.name);
        let axis = ty.axis(outside).ok_or_else(|| {
            let message = format!(
                "input `{what}` of `{}` needs axis `{outside}`, here is {ty}",
                instance.block
            );
            TypeError::new("E0401", message).with_help(format!(
                "its declared axes are [{}]; `rename` gives an axis that name",
                pattern_text(&port.axes)
            ))
        })?;
        named.push((formal.name.clone(), axis));
    }
    let rest: Vec<&Axis> =
        ty.axes.iter().filter(|a| !named.iter().any(|(_, known)| known.name == a.name)).collect();
    if !port.axes.open && !rest.is_empty() {
        let extra: Vec<&str> = rest.iter().map(|axis| axis.name.as_str()).collect();
        return Err(TypeError::new(
            "E0401",
            format!(
                "input `{what}` of `{}` has axes [{}], here is {ty} with `{}` besides",
                instance.block,
                pattern_text(&port.axes),
                extra.join("`, `")
            ),
        )
        .with_help(format!(
            "take `{0}` away before the call, or let the input take any leading axes: `[.., {1}]`",
            extra.join("`, `"),
            pattern_text(&port.axes)
        )));
    }
    let mut inside = Vec::new();
    for axis in &rest {
        if instance.sizes.contains_key(&axis.name) || named.iter().any(|(n, _)| *n == axis.name) {
            return Err(TypeError::new(
                "E0406",
                format!(
                    "axis `{}` of the argument stands for `..`, but `{}` has an axis of that name",
                    axis.name, instance.block
                ),
            )
            .with_help(format!(
                "`rename` axis `{}` before the call and back after it",
                axis.name
            )));
        }
        inside.push(open_axis(&axis.name, &axis.size, signature, what)?);
    }
    for (formal, axis) in &named {
        match instance.sizes.get(formal) {
            Some(size) if *size == axis.size => {
                inside.push(Axis { name: formal.clone(), size: size.clone() });
            }
            Some(size) => {
                return Err(TypeError::new(
                    "E0402",
                    format!(
                        "axis `{}` has size {}, but `{}` has `{formal}` = {size}",
                        axis.name, axis.size, instance.block
                    ),
                )
                .with_help(format!(
                    "give `{}` the axis itself, `{formal}: {}`, or the value an axis of size {size}",
                    instance.block, axis.name
                )));
            }
            None => inside.push(open_axis(formal, &axis.size, signature, what)?),
        }
    }
    let order =
        rest.iter().map(|a| a.name.clone()).chain(named.iter().map(|(_, a)| a.name.clone()));
    signature.orders.push(order.collect());
    signature.types.push(Type::new(wanted, inside));
    Ok(())
}

/// An axis whose size the argument brings along: a number stays one, anything else gets a size
/// name of its own inside the callee.
fn open_axis(
    name: &str,
    size: &Size,
    signature: &mut Signature,
    what: &str,
) -> Result<Axis, TypeError> {
    let symbol = Size::symbol(name);
    match signature.bindings.get(name) {
        Some(known) if known != size => {
            return Err(TypeError::new(
                "E0402",
                format!("axis `{name}` has size {known} in one input and {size} in `{what}`"),
            ));
        }
        Some(_) => {}
        None => {
            signature.bindings.insert(name.to_owned(), size.clone());
        }
    }
    Ok(Axis { name: name.to_owned(), size: symbol })
}

/// Prints a pattern without its brackets: `.., d`.
fn pattern_text(pattern: &ast::AxisPattern) -> String {
    let dots = pattern.open.then(|| "..".to_owned());
    let names = pattern.axes.iter().map(|axis| axis.name.clone());
    dots.into_iter().chain(names).collect::<Vec<_>>().join(", ")
}

/// The declarations of an instance as those of a function.
fn declare(instance: &Instance) -> Function {
    let open: BTreeSet<String> = instance
        .sizes
        .values()
        .flat_map(|size| size.symbols().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let params = instance.params.iter().map(|p| Param {
        name: p.name.clone(),
        ty: Type::new(p.dtype, p.axes.clone()),
        init: p.init.clone(),
        storage: p.storage.clone(),
        active: p.active.clone(),
        doc: p.doc.clone(),
        span: Some(p.span),
    });
    let states = instance.states.iter().map(|s| State {
        name: s.name.clone(),
        ty: Type::new(DType::F32, s.axes.clone()),
        start: s.start,
        span: Some(s.span),
    });
    let tables = instance.tables.iter().map(|t| Table {
        name: t.name.clone(),
        ty: Type::new(DType::Index, t.axes.clone()),
        from: t.from.clone(),
        span: Some(t.span),
    });
    Function {
        name: instance.block.clone(),
        doc: instance.ast.doc.clone(),
        span: Some(instance.ast.name.span),
        open_sizes: open.into_iter().collect(),
        params: params.collect(),
        states: states.collect(),
        tables: tables.collect(),
        order: instance.order.clone(),
        subs: instance
            .subs
            .iter()
            .map(|sub| Sub {
                name: sub.name.clone(),
                callees: Vec::new(),
                is_stack: matches!(sub.kind, SubKind::Stack(_)),
                training_only: sub.training_only,
                span: Some(sub.span),
            })
            .collect(),
        ..Function::default()
    }
}
