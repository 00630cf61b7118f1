//! Maps between blocks, applied at a path: which formals they get there.

use super::codes;
use super::numbers::{Names, Value};
use super::pattern::{self, Pattern};
use super::resolve::Frame;
use super::tree::{Side, Tensor};
use crate::ir::Type;
use lightc_dsl::ast::{Arg, BinaryOp, Expr, ExprKind, FormalKind, RuleArg, RuleExpr, RuleExprKind};
use lightc_dsl::diag::Diag;
use lightc_dsl::model::Instance;
use lightc_dsl::names::closest;
use lightc_dsl::resolve::{FormalValue, MapDef, Program};
use lightc_dsl::size::Size;
use lightc_dsl::source::Span;

/// The name under which a single unnamed output is known.
pub(super) const RESULT: &str = "result";

/// Inputs or outputs of a block as tensors.
pub(super) fn ports(side: &Side, inputs: bool) -> Vec<Tensor> {
    let entry = side.module.entry_function();
    if inputs {
        return entry
            .inputs()
            .map(|(name, v)| port_tensor(name, entry.ty(v), entry.span))
            .collect();
    }
    let outputs = entry.outputs.iter().map(|output| {
        let name = output.name.as_deref().unwrap_or(RESULT);
        port_tensor(name, entry.ty(output.value), entry.span)
    });
    outputs.collect()
}

/// The map that a rule for the sub-block at `target` applies, and where its clauses act.
pub(super) fn application<'p>(
    program: &'p Program,
    source: &Side,
    target_side: &Side,
    target: &str,
    span: Span,
    value: &RuleExpr,
    frame: &Frame,
) -> Result<(&'p MapDef, Frame), Box<Diag>> {
    let RuleExprKind::Call { callee, args } = &value.kind else {
        return Err(Box::new(whole_block(target_side, target, span)));
    };
    let Some(def) = program.map(&callee.name) else {
        let message = format!("`{target}` is a block, and there is no map `{}`", callee.name);
        let diag = Diag::error(codes::APPLICATION, message, callee.span, "no such map");
        let names = program.maps().iter().map(|m| m.ast.name.name.as_str());
        return Err(Box::new(match closest(&callee.name, names) {
            Some(near) => diag.with_help(format!("`{near}` exists")),
            None => diag.with_help(format!("write `{target}.**` for its tensors")),
        }));
    };
    let (mut path, mut formals) = (None, frame.names.clone());
    formals.formals.clear();
    for arg in args {
        match arg {
            RuleArg::Value(RuleExpr { kind: RuleExprKind::Source(of), .. }) if path.is_none() => {
                path = Some(of);
            }
            RuleArg::Named(name, value) if value.as_plain().is_some() => {
                let Some(plain) = value.as_plain() else { continue };
                let formal = def.ast.formals.iter().find(|f| f.name.name == name.name);
                let Some(formal) = formal else {
                    let message = format!("map `{}` has no formal `{}`", callee.name, name.name);
                    let diag = Diag::error(codes::APPLICATION, message, name.span, "unknown");
                    return Err(Box::new(diag.with_related(def.ast.name.span, "the map")));
                };
                let value = match formal.kind {
                    FormalKind::Number => FormalValue::Number(frame.names.number(&plain)?),
                    _ => FormalValue::Size(frame.names.size(&plain)?),
                };
                formals.formals.insert(name.name.clone(), value);
            }
            _ => return Err(Box::new(form(def, value.span))),
        }
    }
    let path = path.ok_or_else(|| Box::new(form(def, value.span)))?;
    let pattern = Pattern::new(&frame.source, path, &frame.names)?;
    let from = pattern.text();
    let Some(place) = source.nodes.get(&from) else {
        return Err(Box::new(pattern::unknown(source, &from, path.span)));
    };
    let fit = Fit { def, span: value.span };
    fit.side(&def.from, source, &from, source.model.instance(place.instance), &mut formals)?;
    if let Some(place) = target_side.nodes.get(target) {
        let instance = target_side.model.instance(place.instance);
        fit.side(&def.to, target_side, target, instance, &mut formals)?;
    }
    fit.defaults(&mut formals)?;
    let mut chain = frame.chain.clone();
    chain.push((callee.name.clone(), value.span));
    formals.variables.clear();
    Ok((def, Frame { target: target.to_owned(), source: from, names: formals, chain }))
}

fn whole_block(side: &Side, target: &str, span: Span) -> Diag {
    let block = side.instance(target).map_or("", |i| i.block.as_str());
    Diag::error(
        codes::APPLICATION,
        format!("`{target}` of `{}` is a block `{block}`, not a tensor", side.model.name),
        span,
        "a block",
    )
    .with_help(format!(
        "write `{target}.** = src....**` to copy its tensors, or apply a map between blocks"
    ))
}

fn form(def: &MapDef, span: Span) -> Diag {
    let name = &def.ast.name.name;
    Diag::error(
        codes::APPLICATION,
        format!("map `{name}` is applied to one source block, and takes its formals by name"),
        span,
        "not of this form",
    )
    .with_related(def.ast.name.span, "the map")
    .with_help(format!("write `{name}(src.path)`"))
}

/// Finds formals such that the sides of a map are the blocks at hand.
struct Fit<'p> {
    def: &'p MapDef,
    span: Span,
}

impl Fit<'_> {
    fn error(&self, message: String, side: &Expr) -> Box<Diag> {
        Box::new(
            Diag::error(codes::APPLICATION, message, self.span, "applied here")
                .with_related(side.span, "the map is between these")
                .with_help("apply it to blocks of these kinds and sizes"),
        )
    }

    fn side(
        &self,
        side: &Expr,
        tree: &Side,
        path: &str,
        instance: &Instance,
        names: &mut Names,
    ) -> Result<(), Box<Diag>> {
        let (block, args): (&str, &[Arg]) = match &side.kind {
            ExprKind::Call { callee, args } => (&callee.name, args),
            ExprKind::Name(name) => (name, &[]),
            _ => ("", &[]),
        };
        let (map, stage) = (&self.def.ast.name.name, &tree.model.name);
        if instance.block != block {
            let message = format!(
                "map `{map}` is for `{block}`, and `{path}` of `{stage}` is a `{}`",
                instance.block
            );
            return Err(self.error(message, side));
        }
        for arg in args {
            let Arg::Named(name, value) = arg else { continue };
            if let Some(size) = instance.sizes.get(&name.name) {
                if !self.solve(value, size, names) {
                    let message = format!(
                        "map `{map}` does not fit: `{}` of `{path}` in `{stage}` is {size}",
                        name.name
                    );
                    return Err(self.error(message, value));
                }
            } else if let Some(number) = instance.numbers.get(&name.name)
                && !self.number(value, *number, names)
            {
                let message = format!(
                    "map `{map}` does not fit: `{}` of `{path}` in `{stage}` is {number}",
                    name.name
                );
                return Err(self.error(message, value));
            }
        }
        Ok(())
    }

    fn number(&self, expr: &Expr, wanted: f64, names: &mut Names) -> bool {
        match &expr.kind {
            ExprKind::Name(name) if !names.formals.contains_key(name) && self.is_formal(name) => {
                names.formals.insert(name.clone(), FormalValue::Number(wanted));
                true
            }
            _ => names.number(expr).is_ok_and(|value| value == wanted),
        }
    }

    fn is_formal(&self, name: &str) -> bool {
        self.def.ast.formals.iter().any(|f| f.name.name == name)
    }

    /// Binds a formal such that the expression is `wanted`, or checks that it is.
    fn solve(&self, expr: &Expr, wanted: &Size, names: &mut Names) -> bool {
        // Sizes of the stage around a map are none of its own.
        let own = Names { formals: names.formals.clone(), ..Names::default() };
        if let Ok(Value::Size(size)) = own.value(expr) {
            return size == *wanted;
        }
        match &expr.kind {
            ExprKind::Name(name) if self.is_formal(name) => {
                names.formals.insert(name.clone(), FormalValue::Size(wanted.clone()));
                wanted.as_constant().is_none_or(|n| n >= 1)
            }
            ExprKind::Binary(op, left, right) => {
                let (a, b) = (own.size(left).ok(), own.size(right).ok());
                let rest = match (op, a, b) {
                    (BinaryOp::Add, Some(a), None) => (right, wanted.checked_sub(&a)),
                    (BinaryOp::Add, None, Some(b)) => (left, wanted.checked_sub(&b)),
                    (BinaryOp::Sub, None, Some(b)) => (left, wanted.checked_add(&b)),
                    (BinaryOp::Sub, Some(a), None) => (right, a.checked_sub(wanted)),
                    (BinaryOp::Mul, Some(a), None) => (right, wanted.exact_div(&a)),
                    (BinaryOp::Mul, None, Some(b)) => (left, wanted.exact_div(&b)),
                    (BinaryOp::Div, None, Some(b)) => (left, wanted.checked_mul(&b)),
                    _ => return false,
                };
                match rest {
                    (side, Some(wanted)) => self.solve(side, &wanted, names),
                    (_, None) => false,
                }
            }
            _ => false,
        }
    }

    fn defaults(&self, names: &mut Names) -> Result<(), Box<Diag>> {
        for formal in &self.def.ast.formals {
            let name = &formal.name.name;
            if names.formals.contains_key(name) {
                continue;
            }
            let Some(default) = &formal.default else {
                let map = &self.def.ast.name.name;
                let message = format!("nothing says what `{name}` of map `{map}` is here");
                return Err(Box::new(
                    Diag::error(codes::APPLICATION, message, self.span, "applied here")
                        .with_related(formal.name.span, "the formal")
                        .with_help(format!("give it by name: `{map}(src.path, {name}: ...)`")),
                ));
            };
            let value = match formal.kind {
                FormalKind::Number => FormalValue::Number(names.number(default)?),
                _ => FormalValue::Size(names.size(default)?),
            };
            names.formals.insert(name.clone(), value);
        }
        Ok(())
    }
}

/// The type of a port of a block as a tensor.
fn port_tensor(path: &str, ty: &Type, span: Option<Span>) -> Tensor {
    Tensor { path: path.to_owned(), ty: ty.clone(), storage: None, span }
}
