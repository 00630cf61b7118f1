//! Functions of rules: their arguments, and which is which.

use super::Builder;
use super::want::Want;
use crate::growth::codes;
use crate::growth::rule::{Rule, RuleKind};
use crate::ir::Type;
use lightc_dsl::ast::{Expr, Ident, RuleArg, RuleExpr, Text};
use lightc_dsl::diag::Diag;
use lightc_dsl::model::Axis;
use lightc_dsl::names::closest;
use lightc_dsl::size::Size;
use lightc_dsl::source::Span;
use lightc_numerics::draw::Law;

/// Functions of rules, with their form.
const FUNCTIONS: [(&str, &str); 18] = [
    ("zeros", "zeros"),
    ("ones", "ones"),
    ("constant", "constant(0.5)"),
    ("normal", "normal(0.02)"),
    ("uniform", "uniform(0, 1)"),
    ("concat", "concat(src.a, src.b, over f)"),
    ("tile", "tile(src.a, over e)"),
    ("interleave", "interleave(src.a, over e)"),
    ("repeat", "repeat(src.a, over e)"),
    ("slice", "slice(src.a, f[0 .. 8])"),
    ("select", "select(src.a, [0, 2, 1], over h)"),
    ("subset", "subset(src.a, over f, each e)"),
    ("redraw", "redraw(src.a, keep: f / 2, over f, each e)"),
    ("noise", "noise(src.a, factor: 0.05)"),
    ("rotate", "rotate(src.a, over d, seed: 42)"),
    ("rename", "rename(src.a, f -> g)"),
    ("split", "split(src.a, e -> (g, m))"),
    ("merge", "merge(src.a, (g, m) -> e)"),
];

/// The arguments of a function of rules, sorted.
#[derive(Default)]
pub(super) struct Args<'e> {
    pub(super) values: Vec<&'e RuleExpr>,
    pub(super) over: Option<&'e Ident>,
    pub(super) each: Option<&'e Ident>,
    pub(super) map: Option<(&'e [Ident], &'e [Ident])>,
    pub(super) range: Option<(&'e Ident, &'e Expr, &'e Expr)>,
    pub(super) key: Option<&'e Text>,
    pub(super) named: Vec<(&'e Ident, &'e RuleExpr)>,
}

impl<'e> Args<'e> {
    /// `None` where one stands twice.
    pub(super) fn new(args: &'e [RuleArg]) -> Option<Self> {
        let mut found = Args::default();
        for arg in args {
            let doubled = match arg {
                RuleArg::Value(value) => {
                    found.values.push(value);
                    false
                }
                RuleArg::Named(name, value) => {
                    found.named.push((name, value));
                    false
                }
                RuleArg::Text(name, text) => {
                    name.name != "key" || found.key.replace(text).is_some()
                }
                RuleArg::Over(axis, _) => found.over.replace(axis).is_some(),
                RuleArg::Each(axis, _) => found.each.replace(axis).is_some(),
                RuleArg::Map { from, to, .. } => found.map.replace((from, to)).is_some(),
                RuleArg::Range { axis, start, end, .. } => {
                    found.range.replace((axis, start, end)).is_some()
                }
            };
            if doubled {
                return None;
            }
        }
        Some(found)
    }

    /// Letters of what is there: `v` per value, `o`ver, `e`ach, `m`ap, `r`ange, `k`ey, names.
    fn shape(&self) -> String {
        let mut shape = "v".repeat(self.values.len());
        shape.extend(self.over.map(|_| 'o'));
        shape.extend(self.each.map(|_| 'e'));
        shape.extend(self.map.map(|_| 'm'));
        shape.extend(self.range.map(|_| 'r'));
        shape.extend(self.key.map(|_| 'k'));
        for (name, _) in &self.named {
            shape.push(' ');
            shape.push_str(&name.name);
        }
        shape
    }
}

/// Whether a call has the arguments that its function takes.
pub(super) fn fits(name: &str, shape: &str) -> bool {
    match name {
        "zeros" | "ones" => shape.is_empty(),
        "constant" => shape == "v",
        "normal" => matches!(shape, "v" | "vk"),
        "uniform" => matches!(shape, "vv" | "vvk"),
        "concat" => shape.len() > 2 && shape.ends_with('o') && shape.starts_with("vv"),
        "tile" | "interleave" | "repeat" => shape == "vo",
        "slice" => shape == "vr",
        "select" => shape == "vvo",
        "subset" => matches!(shape, "vo" | "voe" | "vok" | "voek"),
        "redraw" => matches!(shape, "vo keep" | "voe keep" | "vok keep" | "voek keep"),
        "rotate" => shape == "vo seed",
        "noise" => matches!(shape, "v factor" | "vk factor"),
        "rename" | "split" | "merge" => shape == "vm",
        _ => false,
    }
}

impl Builder<'_> {
    pub(super) fn call(
        &mut self,
        callee: &Ident,
        args: &[RuleArg],
        span: Span,
        want: &Want,
    ) -> Option<Rule> {
        let name = callee.name.as_str();
        let known = FUNCTIONS.iter().find(|(function, _)| *function == name);
        let Some((_, form)) = known else {
            let diag = Diag::error(
                codes::ARGUMENTS,
                format!("there is no transformation `{name}`"),
                callee.span,
                "unknown",
            );
            let names = FUNCTIONS.iter().map(|(function, _)| *function);
            return self.fail(match closest(name, names.clone()) {
                Some(near) => diag.with_help(format!("`{near}` exists")),
                None => diag.with_help(format!(
                    "transformations are {}; a map between blocks is applied to a block",
                    names.collect::<Vec<_>>().join(", ")
                )),
            });
        };
        let sorted = Args::new(args).filter(|args| fits(name, &args.shape()));
        let Some(args) = sorted else {
            return self.fail(
                Diag::error(
                    codes::ARGUMENTS,
                    format!("these are not the arguments of `{name}`"),
                    span,
                    format!("its form is `{form}`"),
                )
                .with_help(format!("write `{form}`")),
            );
        };
        self.function(name, &args, span, want)
    }

    fn function(&mut self, name: &str, args: &Args<'_>, span: Span, want: &Want) -> Option<Rule> {
        match (name, args.values.as_slice()) {
            ("zeros", _) => self.fill(0.0, span, want),
            ("ones", _) => self.fill(1.0, span, want),
            ("constant", [value]) => {
                let value = self.number(value)?;
                self.fill(value, span, want)
            }
            ("normal", [std]) => {
                let std = self.number(std)?;
                self.draw(Law::Normal { std }, args.key, span, want)
            }
            ("uniform", [low, high]) => {
                let (low, high) = (self.number(low)?, self.number(high)?);
                self.draw(Law::Uniform { low, high }, args.key, span, want)
            }
            ("concat", parts) => self.concat(parts, args.over?, span, want),
            ("select", [of, positions]) => self.select(of, positions, args.over?, span, want),
            ("noise", [of]) => {
                let factor = self.number(args.named.first()?.1)?;
                let of = self.check(of, want)?;
                let key = self.key(args.key, span)?;
                let ty = of.ty.clone();
                let kind = RuleKind::Noise { of: Box::new(of), factor, key };
                Some(Rule { ty, kind, span: Some(span) })
            }
            (_, [of]) => match (args.over, args.map, args.range) {
                (Some(axis), _, _) => self.along(name, of, axis, args, span, want),
                (_, Some((from, to)), _) => self.reshape(name, of, from, to, span, want),
                (_, _, Some((axis, start, end))) => self.slice(of, axis, start, end, span, want),
                _ => None,
            },
            _ => None,
        }
    }

    /// The axis is one that is wanted here.
    pub(super) fn wanted(&mut self, axis: &Ident, want: &Want) -> Option<()> {
        if want.has(&axis.name) {
            return Some(());
        }
        let names = want.axes.iter().map(|(name, _)| name.as_str());
        let diag = Diag::error(
            codes::AXES,
            format!("{} has no axis `{}`", want.text(), axis.name),
            axis.span,
            "no such axis here",
        );
        self.fail(match closest(&axis.name, names.clone()) {
            Some(near) => diag.with_help(format!("`{near}` exists")),
            None => diag.with_help(format!(
                "the axes are {}",
                names.map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
            )),
        })
    }

    pub(super) fn typed(&self, want: &Want, inner: &Type, axis: &str, size: Size) -> Type {
        let axes = want.axes.iter().map(|(name, known)| {
            let size = if name == axis {
                size.clone()
            } else {
                known
                    .clone()
                    .or_else(|| inner.axis(name).map(|a| a.size.clone()))
                    .unwrap_or_default()
            };
            Axis { name: name.clone(), size }
        });
        Type::new(self.target.ty.dtype, axes.collect())
    }
}
