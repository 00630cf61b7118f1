//! Builtin functions of the language: from call syntax to ops. The meaning of each stands with
//! its op; here is only how it is written.

use super::at;
use super::body::{Body, Item};
use super::scope::size_of;
use crate::ir::ValueId;
use crate::ops::{
    Below, BinaryFn, Broadcast, Causal, CausalConv, Clamp, Concat, Contract, Count, ExpertDot,
    GatedDeltaRule, GatherSum, Hadamard, LinearCrossEntropy, LogSumExp, Lookup, MaskedAttention,
    Mean, Merge, Op, Pick, Place, Position, Rename, Rotary, SelectTop, Sinkhorn, SizeValue, Slice,
    Split, StopGradient, Sum, SumRanks, Take, Top, TypeError, Unary, UnaryFn, Where,
};
use lightc_dsl::ast::{Arg, DType, Expr, ExprKind, Ident};
use lightc_dsl::diag::Diag;
use lightc_dsl::model::Axis;
use lightc_dsl::names::BUILTINS;
use lightc_dsl::size::Size;
use lightc_dsl::source::Span;
use lightc_numerics::attention::MaskBound;
use std::cell::Cell;

/// What is wrong with a call, and where if that is known better than the whole call.
struct Wrong {
    error: TypeError,
    span: Option<Span>,
    related: Option<(Span, String)>,
}

impl From<TypeError> for Wrong {
    fn from(error: TypeError) -> Self {
        Wrong { error, span: None, related: None }
    }
}

impl Wrong {
    fn at(error: TypeError, span: Span) -> Self {
        Wrong { error, span: Some(span), related: None }
    }
}

/// The arguments of one call, sorted by kind; what is not taken is an error.
struct Args<'a> {
    name: &'a str,
    span: Span,
    values: Vec<&'a Expr>,
    named: Vec<(&'a Ident, &'a Expr)>,
    over: Option<(&'a [Ident], Span)>,
    other: Vec<&'a Arg>,
    /// Whether the builtin has looked at `over`, and at `other`.
    taken: (Cell<bool>, Cell<bool>),
}

impl<'a> Args<'a> {
    fn sort(callee: &'a Ident, args: &'a [Arg], span: Span) -> Self {
        let mut sorted = Args {
            name: &callee.name,
            span,
            values: Vec::new(),
            named: Vec::new(),
            over: None,
            other: Vec::new(),
            taken: (Cell::new(false), Cell::new(false)),
        };
        for arg in args {
            match arg {
                Arg::Value(expr) => sorted.values.push(expr),
                Arg::Named(name, expr) => sorted.named.push((name, expr)),
                Arg::Over(axes, span) if sorted.over.is_none() => sorted.over = Some((axes, *span)),
                other => sorted.other.push(other),
            }
        }
        sorted
    }

    /// The axes after `over`.
    fn over(&self) -> Option<&'a [Ident]> {
        self.taken.0.set(true);
        self.over.map(|(axes, _)| axes)
    }

    /// Maps, ranges and positions.
    fn other(&self) -> &[&'a Arg] {
        self.taken.1.set(true);
        &self.other
    }

    /// An argument that the builtin has not looked at, and what it is.
    fn left_over(&self) -> Option<(Span, &'static str)> {
        if let (Some((_, span)), false) = (self.over, self.taken.0.get()) {
            return Some((span, "`over` axes"));
        }
        let other = self.other.first().filter(|_| !self.taken.1.get())?;
        Some(match other {
            Arg::Over(_, span) => (*span, "a second `over`"),
            Arg::Map { span, .. } => (*span, "a map of axes"),
            Arg::Range { span, .. } => (*span, "a range"),
            Arg::At { span, .. } => (*span, "a position"),
            Arg::Value(expr) | Arg::Named(_, expr) => (expr.span, "this argument"),
        })
    }

    fn wrong(&self, usage: &str) -> Wrong {
        let message = format!("arguments of `{}` are missing or of another kind", self.name);
        TypeError::new("E0405", message).with_help(format!("it is written `{usage}`")).into()
    }

    fn expect(&self, values: usize, named: &[&str], usage: &str) -> Result<(), Wrong> {
        let unknown = self.named.iter().find(|(name, _)| !named.contains(&name.name.as_str()));
        if let Some((name, _)) = unknown {
            let error =
                TypeError::new("E0405", format!("`{}` has no argument `{}`", self.name, name.name));
            return Err(Wrong::at(error.with_help(format!("it is written `{usage}`")), name.span));
        }
        for (position, (name, _)) in self.named.iter().enumerate() {
            if self.named.iter().take(position).any(|(earlier, _)| earlier.name == name.name) {
                let message = format!("argument `{}` of `{}` is given twice", name.name, self.name);
                let error = TypeError::new("E0405", message).with_help("remove one of them");
                return Err(Wrong::at(error, name.span));
            }
        }
        if self.values.len() != values {
            let count =
                |n: usize| if n == 1 { "1 value".to_owned() } else { format!("{n} values") };
            let message =
                format!("`{}` takes {}, here are {}", self.name, count(values), self.values.len());
            let error = TypeError::new("E0405", message);
            return Err(error.with_help(format!("it is written `{usage}`")).into());
        }
        Ok(())
    }

    fn get(&self, name: &str) -> Option<&'a Expr> {
        self.named.iter().find(|(known, _)| known.name == name).map(|(_, expr)| *expr)
    }

    fn need(&self, name: &str, usage: &str) -> Result<&'a Expr, Wrong> {
        self.get(name).ok_or_else(|| {
            TypeError::new("E0405", format!("`{}` needs argument `{name}`", self.name))
                .with_help(format!("it is written `{usage}`"))
                .into()
        })
    }

    /// The name of an axis given as `name: axis`.
    fn axis(&self, name: &str, usage: &str) -> Result<String, Wrong> {
        let expr = self.need(name, usage)?;
        match &expr.kind {
            ExprKind::Name(axis) => Ok(axis.clone()),
            _ => {
                let message =
                    format!("argument `{name}` of `{}` is the name of an axis", self.name);
                let error = TypeError::new("E0405", message);
                Err(Wrong::at(error.with_help(format!("it is written `{usage}`")), expr.span))
            }
        }
    }

    fn over_names(&self, usage: &str) -> Result<Vec<String>, Wrong> {
        let over = self.over().ok_or_else(|| self.wrong(usage))?;
        Ok(over.iter().map(|axis| axis.name.clone()).collect())
    }
}

/// Lowers a call of a builtin.
pub(super) fn call(
    body: &mut Body<'_, '_>,
    callee: &Ident,
    args: &[Arg],
    span: Span,
) -> Option<Item> {
    if !BUILTINS.contains(&callee.name.as_str()) {
        let mut diag = Diag::error(
            "E0407",
            format!(
                "`{}` is neither a builtin nor a sub-block of `{}`",
                callee.name, body.instance.block
            ),
            callee.span,
            "not known here",
        );
        let subs = body.instance.subs.iter().map(|sub| sub.name.as_str());
        if let Some(near) =
            lightc_dsl::names::closest(&callee.name, BUILTINS.iter().copied().chain(subs))
        {
            diag = diag.with_help(format!("there is `{near}`"));
        }
        body.report(diag);
        return None;
    }
    let args = Args::sort(callee, args, span);
    match dispatch(body, &args) {
        Ok(item) => match args.left_over() {
            Some((span, what)) => {
                let message = format!("`{}` does not take {what}", args.name);
                body.report(
                    Diag::error("E0405", message, span, "not taken").with_help("remove it"),
                );
                None
            }
            None => item,
        },
        Err(wrong) => {
            let diag = at(wrong.error, wrong.span.unwrap_or(span));
            body.report(match wrong.related {
                Some((place, text)) => diag.with_related(place, text),
                None => diag,
            });
            None
        }
    }
}

/// `Ok(None)` after an error that is already reported.
type Lowered = Result<Option<Item>, Wrong>;

fn dispatch(body: &mut Body<'_, '_>, args: &Args<'_>) -> Lowered {
    if let Some(function) = UnaryFn::from_name(args.name) {
        return unary(body, args, function);
    }
    match args.name {
        "min" => two(body, args, BinaryFn::Min),
        "max" => two(body, args, BinaryFn::Max),
        "clamp" => clamp(body, args),
        "where" => choose(body, args),
        "f32" => cast(body, args, DType::F32),
        "act" => cast(body, args, DType::Act),
        "index" => cast(body, args, DType::Index),
        "stop_gradient" => {
            args.expect(1, &[], "stop_gradient(x)")?;
            with_values(body, args, |_| StopGradient.into())
        }
        "sum" | "mean" | "logsumexp" => reduce(body, args),
        "dot" => dot(body, args),
        "size" => size(body, args),
        "penalties" => {
            args.expect(0, &[], "penalties()")?;
            Ok(body.take_penalties(args.span))
        }
        "rename" | "split" | "merge" => map_axes(body, args),
        "slice" => slice(body, args),
        "concat" => concat(body, args),
        "place" | "pick" => place_pick(body, args),
        "broadcast" => broadcast(body, args),
        "position" => position(body, args),
        "causal" => causal(body, args),
        "top" | "take" | "count" | "below" | "expert_dot" | "hadamard" | "sum_ranks" => {
            selection(body, args)
        }
        _ => special(body, args),
    }
}

/// Lowers all value arguments; `None` if one has failed.
fn values(body: &mut Body<'_, '_>, args: &Args<'_>) -> Option<Vec<ValueId>> {
    let lowered: Vec<Option<ValueId>> = args.values.iter().map(|expr| body.value(expr)).collect();
    lowered.into_iter().collect()
}

fn with_values(
    body: &mut Body<'_, '_>,
    args: &Args<'_>,
    op: impl FnOnce(&Body<'_, '_>) -> Op,
) -> Lowered {
    let Some(values) = values(body, args) else { return Ok(None) };
    let op = op(body);
    Ok(body.push(op, values, args.span).map(Item::Value))
}

fn unary(body: &mut Body<'_, '_>, args: &Args<'_>, function: UnaryFn) -> Lowered {
    args.expect(1, &[], &format!("{}(x)", args.name))?;
    let Some(item) = args.values.first().and_then(|expr| body.item(expr)) else { return Ok(None) };
    Ok(match item {
        Item::Number(number) => Some(Item::Number(function.value(number))),
        Item::Value(value) => {
            body.push(Unary { function }, vec![value], args.span).map(Item::Value)
        }
    })
}

fn items(body: &mut Body<'_, '_>, args: &Args<'_>) -> Option<Vec<Item>> {
    let lowered: Vec<Option<Item>> = args.values.iter().map(|expr| body.item(expr)).collect();
    lowered.into_iter().collect()
}

fn two(body: &mut Body<'_, '_>, args: &Args<'_>, function: BinaryFn) -> Lowered {
    args.expect(2, &[], &format!("{}(a, b)", args.name))?;
    let Some(items) = items(body, args) else { return Ok(None) };
    let [a, b] = items.as_slice() else { return Ok(None) };
    if let (Item::Number(a), Item::Number(b)) = (a, b) {
        let value = if function == BinaryFn::Min { a.min(*b) } else { a.max(*b) };
        return Ok(Some(Item::Number(value)));
    }
    Ok(body.two_values(function, *a, *b, args.span).map(Item::Value))
}

/// A number argument, known when compiling.
fn number(
    body: &mut Body<'_, '_>,
    args: &Args<'_>,
    name: &str,
    usage: &str,
) -> Result<Option<f64>, Wrong> {
    let expr = args.need(name, usage)?;
    match body.item(expr) {
        Some(Item::Number(number)) => Ok(Some(number)),
        Some(Item::Value(_)) => {
            let message = format!(
                "argument `{name}` of `{}` is a number that is known when compiling",
                args.name
            );
            let error = TypeError::new("E0405", message).with_help(
                "write a number, a number formal, or `size(..)` of an axis that is bound",
            );
            Err(Wrong::at(error, expr.span))
        }
        None => Ok(None),
    }
}

#[allow(clippy::cast_possible_truncation)]
fn whole(
    body: &mut Body<'_, '_>,
    args: &Args<'_>,
    name: &str,
    usage: &str,
) -> Result<Option<i64>, Wrong> {
    match number(body, args, name, usage)? {
        Some(value) if value.fract() == 0.0 && (0.0..9e15).contains(&value) => {
            Ok(Some(value as i64))
        }
        Some(value) => {
            let message = format!(
                "argument `{name}` of `{}` is a whole number of zero or more, here is {value}",
                args.name
            );
            let error = TypeError::new("E0405", message).with_help("round it");
            Err(Wrong::at(error, args.need(name, usage)?.span))
        }
        None => Ok(None),
    }
}

/// The size of a size expression, or what is wrong at its place.
fn size_at(body: &Body<'_, '_>, expr: &Expr) -> Result<Size, Wrong> {
    size_of(expr, &body.axes).map_err(|error| Wrong::at(error, expr.span))
}

/// An axis in scope, or what is wrong at its place.
fn axis_at(body: &Body<'_, '_>, name: &Ident) -> Result<Axis, Wrong> {
    body.axis_named(&name.name).map_err(|error| Wrong::at(error, name.span))
}

/// Checks that what a builtin gives for an axis has the size that the axis is declared with.
fn declared_size(
    body: &Body<'_, '_>,
    what: &str,
    value: ValueId,
    declared: &Axis,
) -> Result<(), Wrong> {
    let ty = body.function.ty(value);
    let gives = crate::ops::need_axis(what, ty, &declared.name)?;
    if gives.size == declared.size {
        return Ok(());
    }
    let name = &declared.name;
    let message = format!(
        "`{what}` gives axis `{name}` the size {}, but `{name}` has size {}",
        gives.size, declared.size
    );
    let help = format!("give the result an axis of size {}", gives.size);
    let related = body.axis_place(name).map(|place| (place, format!("size {}", declared.size)));
    Err(Wrong { error: TypeError::new("E0402", message).with_help(help), span: None, related })
}

fn clamp(body: &mut Body<'_, '_>, args: &Args<'_>) -> Lowered {
    let usage = "clamp(x, min: a, max: b)";
    args.expect(1, &["min", "max"], usage)?;
    let low = number(body, args, "min", usage)?;
    let high = number(body, args, "max", usage)?;
    let (Some(low), Some(high)) = (low, high) else { return Ok(None) };
    with_values(body, args, |_| Clamp { low, high }.into())
}

fn choose(body: &mut Body<'_, '_>, args: &Args<'_>) -> Lowered {
    args.expect(3, &[], "where(condition, a, b)")?;
    let Some(items) = items(body, args) else { return Ok(None) };
    let [condition, a, b] = items.as_slice() else { return Ok(None) };
    let dtype = body.common_dtype(&[*a, *b]);
    let condition = body.value_of(*condition, DType::Act, args.span);
    let a = body.value_of(*a, dtype, args.span);
    let b = body.value_of(*b, dtype, args.span);
    let (Some(condition), Some(a), Some(b)) = (condition, a, b) else { return Ok(None) };
    Ok(body.push(Where, vec![condition, a, b], args.span).map(Item::Value))
}

fn cast(body: &mut Body<'_, '_>, args: &Args<'_>, to: DType) -> Lowered {
    args.expect(1, &[], &format!("{}(x)", args.name))?;
    let Some(item) = args.values.first().and_then(|expr| body.item(expr)) else { return Ok(None) };
    let Some(value) = body.value_of(item, to, args.span) else { return Ok(None) };
    Ok(body.cast(value, to, args.span).map(Item::Value))
}

fn reduce(body: &mut Body<'_, '_>, args: &Args<'_>) -> Lowered {
    let usage = format!("{}(x, over axis)", args.name);
    args.expect(1, &[], &usage)?;
    let over = args.over_names(&usage)?;
    let name = args.name;
    with_values(body, args, |_| match name {
        "sum" => Sum { over }.into(),
        "mean" => Mean { over }.into(),
        _ => LogSumExp { over }.into(),
    })
}

fn dot(body: &mut Body<'_, '_>, args: &Args<'_>) -> Lowered {
    args.expect(2, &[], "dot(a, b, over axis)")?;
    let over = match args.over() {
        Some(over) => over.iter().map(|axis| axis.name.clone()).collect(),
        None => Vec::new(),
    };
    with_values(body, args, |_| Contract { over }.into())
}

#[allow(clippy::cast_precision_loss)]
fn size(body: &mut Body<'_, '_>, args: &Args<'_>) -> Lowered {
    args.expect(1, &[], "size(axis)")?;
    let Some(expr) = args.values.first() else { return Ok(None) };
    let size = size_at(body, expr)?;
    if let Some(number) = size.as_constant() {
        return Ok(Some(Item::Number(number as f64)));
    }
    Ok(body.push(SizeValue { size }, vec![], args.span).map(Item::Value))
}

/// `rename`, `split`, `merge`: one map argument.
fn map_axes(body: &mut Body<'_, '_>, args: &Args<'_>) -> Lowered {
    let usage = match args.name {
        "rename" => "rename(x, t -> s)",
        "split" => "split(x, e -> (h, k))",
        _ => "merge(x, (h, k) -> e)",
    };
    args.expect(1, &[], usage)?;
    let [Arg::Map { from, to, .. }] = args.other() else { return Err(args.wrong(usage)) };
    let Some(x) = args.values.first().and_then(|expr| body.value(expr)) else { return Ok(None) };
    let names = |axes: &[Ident]| axes.iter().map(|axis| axis.name.clone()).collect::<Vec<_>>();
    let (from, to, to_idents) = (names(from), names(to), to);
    let op: Op = match (args.name, from.as_slice(), to.as_slice()) {
        ("rename", [old], [new]) => {
            let ty = body.function.ty(x).clone();
            let axis = crate::ops::need_axis("rename", &ty, old)?;
            let wanted = match to_idents.first() {
                Some(ident) => axis_at(body, ident)?,
                None => body.axis_named(new)?,
            };
            if axis.size != wanted.size {
                let message = format!(
                    "`rename`: axis `{old}` has size {}, but `{new}` has size {}",
                    axis.size, wanted.size
                );
                let help = format!("declare an axis of that size: `axis other = {old}`");
                let related = body.axis_place(new);
                let related = related.map(|place| (place, format!("size {}", wanted.size)));
                let error = TypeError::new("E0402", message).with_help(help);
                return Err(Wrong { error, span: None, related });
            }
            Rename { from: old.clone(), to: new.clone() }.into()
        }
        ("split", [axis], [_, _, ..]) => {
            let into: Result<Vec<Axis>, Wrong> =
                to_idents.iter().map(|a| axis_at(body, a)).collect();
            Split { axis: axis.clone(), into: into? }.into()
        }
        ("merge", [_, _, ..], [axis]) => return merge(body, x, from, axis, args.span),
        _ => return Err(args.wrong(usage)),
    };
    Ok(body.push(op, vec![x], args.span).map(Item::Value))
}

/// Merges axes; brings them side by side first, where the first of them stands.
fn merge(body: &mut Body<'_, '_>, x: ValueId, axes: Vec<String>, to: &str, span: Span) -> Lowered {
    let ty = body.function.ty(x).clone();
    for axis in &axes {
        crate::ops::need_axis("merge", &ty, axis)?;
    }
    let mut order: Vec<String> = Vec::new();
    for name in ty.names() {
        if Some(&name) == axes.first() {
            order.extend(axes.iter().cloned());
        } else if !axes.contains(&name) {
            order.push(name);
        }
    }
    let Some(x) = body.permuted(x, &order, span) else { return Ok(None) };
    let wanted = body.axis_named(to)?;
    let Some(merged) = body.push(Merge { axes, into: to.to_owned() }, vec![x], span) else {
        return Ok(None);
    };
    declared_size(body, "merge", merged, &wanted)?;
    Ok(Some(Item::Value(merged)))
}

fn slice(body: &mut Body<'_, '_>, args: &Args<'_>) -> Lowered {
    let usage = "slice(x, u[0 .. t] -> t)";
    args.expect(1, &[], usage)?;
    let [Arg::Range { axis, start, end, to, .. }] = args.other() else {
        return Err(args.wrong(usage));
    };
    let Some(x) = args.values.first().and_then(|expr| body.value(expr)) else { return Ok(None) };
    let (start, end) = (size_at(body, start)?, size_at(body, end)?);
    let wanted = axis_at(body, to)?;
    let op = Slice { axis: axis.name.clone(), start, end, to: to.name.clone() };
    let Some(cut) = body.push(op, vec![x], args.span) else { return Ok(None) };
    declared_size(body, "slice", cut, &wanted)?;
    Ok(Some(Item::Value(cut)))
}

fn concat(body: &mut Body<'_, '_>, args: &Args<'_>) -> Lowered {
    let usage = "concat(x, y, d -> e)";
    if args.values.len() < 2 || !args.named.is_empty() {
        return Err(args.wrong(usage));
    }
    let [Arg::Map { from, to, .. }] = args.other() else { return Err(args.wrong(usage)) };
    let ([from], [to]) = (from.as_slice(), to.as_slice()) else { return Err(args.wrong(usage)) };
    let Some(parts) = values(body, args) else { return Ok(None) };
    let order = parts.first().map(|part| body.function.ty(*part).names()).unwrap_or_default();
    let mut ordered = Vec::new();
    for part in parts {
        let names = body.function.ty(part).names();
        let same = order.iter().all(|name| names.contains(name)) && names.len() == order.len();
        let part = if same { body.permuted(part, &order, args.span) } else { Some(part) };
        let Some(part) = part else { return Ok(None) };
        ordered.push(part);
    }
    let wanted = axis_at(body, to)?;
    let op = Concat { axis: from.name.clone(), to: to.name.clone() };
    let Some(joined) = body.push(op, ordered, args.span) else { return Ok(None) };
    declared_size(body, "concat", joined, &wanted)?;
    Ok(Some(Item::Value(joined)))
}

/// `place(x, s[0])` puts the new axis before the last; `pick(x, t[t - 1])` drops one.
fn place_pick(body: &mut Body<'_, '_>, args: &Args<'_>) -> Lowered {
    let usage = if args.name == "place" { "place(x, s[0])" } else { "pick(x, t[0])" };
    args.expect(1, &[], usage)?;
    let [Arg::At { axis, index, .. }] = args.other() else {
        return Err(args.wrong(usage));
    };
    let Some(x) = args.values.first().and_then(|expr| body.value(expr)) else { return Ok(None) };
    let index = size_at(body, index)?;
    let op: Op = if args.name == "place" {
        let position = body.function.ty(x).axes.len().saturating_sub(1);
        Place { axis: axis_at(body, axis)?, index, position }.into()
    } else {
        Pick { axis: axis.name.clone(), index }.into()
    };
    Ok(body.push(op, vec![x], args.span).map(Item::Value))
}

fn broadcast(body: &mut Body<'_, '_>, args: &Args<'_>) -> Lowered {
    let usage = "broadcast(x, over (b, t))";
    args.expect(1, &[], usage)?;
    let over = args.over_names(usage)?;
    let Some(x) = args.values.first().and_then(|expr| body.value(expr)) else { return Ok(None) };
    let mut axes = Vec::new();
    for name in &over {
        axes.push(body.axis_named(name)?);
    }
    axes.extend(body.function.ty(x).axes.iter().cloned());
    Ok(body.push(Broadcast { axes }, vec![x], args.span).map(Item::Value))
}

fn position(body: &mut Body<'_, '_>, args: &Args<'_>) -> Lowered {
    let usage = "position(over t)";
    args.expect(0, &[], usage)?;
    let names = args.over_names(usage)?;
    let [name] = names.as_slice() else { return Err(args.wrong(usage)) };
    let axis = body.axis_named(name)?;
    Ok(body.push(Position { axis }, vec![], args.span).map(Item::Value))
}

fn causal(body: &mut Body<'_, '_>, args: &Args<'_>) -> Lowered {
    let usage = "causal(query: t, key: s)";
    args.expect(0, &["query", "key"], usage)?;
    let query = body.axis_named(&args.axis("query", usage)?)?;
    let key = body.axis_named(&args.axis("key", usage)?)?;
    Ok(body.push(Causal { query, key }, vec![], args.span).map(Item::Value))
}

/// The one axis after `over`.
fn over_one(args: &Args<'_>, usage: &str) -> Result<String, Wrong> {
    match args.over_names(usage)?.as_slice() {
        [axis] => Ok(axis.clone()),
        _ => Err(args.wrong(usage)),
    }
}

/// Choosing by index, and what is computed with what was chosen.
fn selection(body: &mut Body<'_, '_>, args: &Args<'_>) -> Lowered {
    match args.name {
        "top" => {
            let usage = "top(score, e -> p)";
            args.expect(1, &[], usage)?;
            let [Arg::Map { from, to, .. }] = args.other() else { return Err(args.wrong(usage)) };
            let ([axis], [slots]) = (from.as_slice(), to.as_slice()) else {
                return Err(args.wrong(usage));
            };
            let op = Top { axis: axis.name.clone(), slots: axis_at(body, slots)? };
            with_values(body, args, |_| op.into())
        }
        "take" => {
            let usage = "take(x, ids, over e)";
            args.expect(2, &[], usage)?;
            let axis = over_one(args, usage)?;
            with_values(body, args, |_| Take { axis }.into())
        }
        "count" => {
            let usage = "count(ids, e)";
            args.expect(2, &[], usage)?;
            let [ids, axis] = args.values.as_slice() else { return Err(args.wrong(usage)) };
            let ExprKind::Name(name) = &axis.kind else { return Err(args.wrong(usage)) };
            let axis = body.axis_named(name).map_err(|error| Wrong::at(error, axis.span))?;
            let Some(ids) = body.value(ids) else { return Ok(None) };
            Ok(body.push(Count { axis }, vec![ids], args.span).map(Item::Value))
        }
        "below" => {
            let usage = "below(ids, 20)";
            args.expect(2, &[], usage)?;
            let [ids, limit] = args.values.as_slice() else { return Err(args.wrong(usage)) };
            let limit = size_at(body, limit)?;
            let Some(ids) = body.value(ids) else { return Ok(None) };
            Ok(body.push(Below { limit }, vec![ids], args.span).map(Item::Value))
        }
        "expert_dot" => {
            let usage = "expert_dot(x, w, ids, expert: e, over d)";
            args.expect(3, &["expert"], usage)?;
            let (expert, over) = (args.axis("expert", usage)?, over_one(args, usage)?);
            with_values(body, args, |_| ExpertDot { expert, over }.into())
        }
        "hadamard" => {
            let usage = "hadamard(x, over d, seed: 42)";
            args.expect(1, &["seed"], usage)?;
            let axis = over_one(args, usage)?;
            let Some(seed) = whole(body, args, "seed", usage)? else { return Ok(None) };
            with_values(body, args, |_| Hadamard { axis, seed, inverse: false }.into())
        }
        _ => {
            args.expect(1, &[], "sum_ranks(x)")?;
            with_values(body, args, |_| SumRanks.into())
        }
    }
}

/// Ops that no equation can express.
fn special(body: &mut Body<'_, '_>, args: &Args<'_>) -> Lowered {
    match args.name {
        "causal_conv" => {
            let usage = "causal_conv(x, w, time: t, channel: e, taps: j)";
            args.expect(2, &["time", "channel", "taps"], usage)?;
            let (time, taps) = (args.axis("time", usage)?, args.axis("taps", usage)?);
            let Some(values) = values(body, args) else { return Ok(None) };
            let channel = conv_channel(body, args, &values, &taps, usage)?;
            let op = CausalConv { time, channel, taps };
            Ok(body.push(op, values, args.span).map(Item::Value))
        }
        "rotary" => {
            let usage = "rotary(x, time: t, pairs: k, base: 10000)";
            args.expect(1, &["time", "pairs", "base"], usage)?;
            let (time, pairs) = (args.axis("time", usage)?, args.axis("pairs", usage)?);
            let Some(base) = number(body, args, "base", usage)? else { return Ok(None) };
            with_values(body, args, |_| Rotary { time, pairs, base, inverse: false }.into())
        }
        "gated_delta_rule" => {
            let usage =
                "gated_delta_rule(q, k, v, log_decay, beta, time: t, head: h, key: k, value: m)";
            args.expect(5, &["time", "head", "key", "value"], usage)?;
            let op = GatedDeltaRule {
                time: args.axis("time", usage)?,
                head: args.axis("head", usage)?,
                key: args.axis("key", usage)?,
                value: args.axis("value", usage)?,
            };
            with_values(body, args, |_| op.into())
        }
        "select_top" => {
            let usage = "select_top(score, budget, query: t, key: s, sinks: 4, limit: 256)";
            args.expect(2, &["query", "key", "sinks", "limit"], usage)?;
            let (query, key) = (args.axis("query", usage)?, args.axis("key", usage)?);
            let sinks = whole(body, args, "sinks", usage)?;
            let limit = whole(body, args, "limit", usage)?;
            let (Some(sinks), Some(limit)) = (sinks, limit) else { return Ok(None) };
            with_values(body, args, |_| SelectTop { query, key, sinks, limit }.into())
        }
        "masked_attention" => {
            let usage = "masked_attention(q, k, v, mask, query: t, key: s, head: h, channel: k)";
            args.expect(4, &["query", "key", "head", "channel"], usage)?;
            let op = MaskedAttention {
                query: args.axis("query", usage)?,
                key: args.axis("key", usage)?,
                head: args.axis("head", usage)?,
                channel: args.axis("channel", usage)?,
                bound: MaskBound::default(),
            };
            with_values(body, args, |_| op.into())
        }
        "sinkhorn" => {
            let usage = "sinkhorn(x, rows: s, columns: j, iterations: 20, eps: 1e-6)";
            args.expect(1, &["rows", "columns", "iterations", "eps"], usage)?;
            let (rows, columns) = (args.axis("rows", usage)?, args.axis("columns", usage)?);
            let iterations = whole(body, args, "iterations", usage)?;
            let eps = number(body, args, "eps", usage)?;
            let (Some(iterations), Some(eps)) = (iterations, eps) else { return Ok(None) };
            with_values(body, args, |_| Sinkhorn { rows, columns, iterations, eps }.into())
        }
        "linear_cross_entropy" => {
            let usage = "linear_cross_entropy(h, w, targets, channel: d, vocab: v, softcap: 0)";
            args.expect(3, &["channel", "vocab", "softcap"], usage)?;
            let (channel, vocab) = (args.axis("channel", usage)?, args.axis("vocab", usage)?);
            let Some(softcap) = number(body, args, "softcap", usage)? else { return Ok(None) };
            with_values(body, args, |_| LinearCrossEntropy { channel, vocab, softcap }.into())
        }
        "gather_sum" => {
            let usage = "gather_sum(w, index, rows: j, slots: p)";
            args.expect(2, &["rows", "slots"], usage)?;
            let (rows, slots) = (args.axis("rows", usage)?, args.axis("slots", usage)?);
            with_values(body, args, |_| GatherSum { rows, slots }.into())
        }
        _ => {
            let usage = "lookup(table, ids, rows: v)";
            args.expect(2, &["rows"], usage)?;
            let rows = args.axis("rows", usage)?;
            with_values(body, args, |_| Lookup { rows }.into())
        }
    }
}

/// The channel axis of a convolution: stated, or the weight's axis that is not `taps`.
fn conv_channel(
    body: &Body<'_, '_>,
    args: &Args<'_>,
    values: &[ValueId],
    taps: &str,
    usage: &str,
) -> Result<String, Wrong> {
    if args.get("channel").is_some() {
        return args.axis("channel", usage);
    }
    let weight = values.get(1).map(|w| body.function.ty(*w).names()).unwrap_or_default();
    let rest: Vec<String> = weight.into_iter().filter(|name| name != taps).collect();
    match rest.as_slice() {
        [channel] => Ok(channel.clone()),
        _ => Err(args.wrong(usage)),
    }
}
