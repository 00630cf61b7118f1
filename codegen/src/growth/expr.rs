//! Rules as written to rules with types: what stands on the right of `=`, for a tensor whose axes
//! are known.

mod axes;
mod call;
mod source;
mod want;

use super::codes;
use super::numbers::Names;
use super::pattern::Captures;
use super::rule::{Factor, Rule, RuleKind};
use super::tree::{Side, Tensor};
use crate::ir::Type;
use lightc_dsl::ast::{BinaryOp, Expr, RuleArg, RuleExpr, RuleExprKind, Text};
use lightc_dsl::diag::Diag;
use lightc_dsl::source::Span;
use lightc_numerics::draw::Law;
use want::Want;

/// Makes the rule of one target tensor.
pub(super) struct Builder<'a> {
    pub(super) source: &'a Side,
    /// Where `src` is.
    pub(super) prefix: &'a str,
    /// Before keys of streams.
    pub(super) key_prefix: &'a str,
    pub(super) names: &'a Names,
    /// What the wildcards of the target's pattern stand for.
    pub(super) captures: &'a Captures,
    pub(super) target: &'a Tensor,
    /// Name of the target stage.
    pub(super) stage: &'a str,
    pub(super) diags: Vec<Diag>,
    /// Source tensors that are read.
    pub(super) used: Vec<String>,
    /// Something is drawn, here first.
    pub(super) draws: Option<Span>,
    n_draws: usize,
}

impl<'a> Builder<'a> {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        source: &'a Side,
        prefix: &'a str,
        key_prefix: &'a str,
        names: &'a Names,
        captures: &'a Captures,
        target: &'a Tensor,
        stage: &'a str,
    ) -> Self {
        Builder {
            source,
            prefix,
            key_prefix,
            names,
            captures,
            target,
            stage,
            diags: Vec::new(),
            used: Vec::new(),
            draws: None,
            n_draws: 0,
        }
    }

    /// The rule; `None` after reporting why there is none.
    pub(super) fn rule(&mut self, expr: &RuleExpr) -> Option<Rule> {
        let axes = &self.target.ty.axes;
        let axes = axes.iter().map(|a| (a.name.clone(), Some(a.size.clone()))).collect();
        self.check(expr, &Want { dtype: self.target.ty.dtype, axes })
    }

    fn report(&mut self, diag: Diag) {
        let text = format!("`{}` of `{}` is {}", self.target.path, self.stage, self.target.ty);
        let diag = match self.target.span {
            Some(span) => diag.with_related(span, text),
            None => diag,
        };
        self.diags.push(diag);
    }

    fn fail<T>(&mut self, diag: Diag) -> Option<T> {
        self.report(diag);
        None
    }

    fn check(&mut self, expr: &RuleExpr, want: &Want) -> Option<Rule> {
        match &expr.kind {
            RuleExprKind::Source(path) => self.source_tensor(path, expr.span, want),
            RuleExprKind::Number { value, .. } => self.fill(*value, expr.span, want),
            RuleExprKind::Name(name) => match name.as_str() {
                "zeros" => self.fill(0.0, expr.span, want),
                "ones" => self.fill(1.0, expr.span, want),
                _ => {
                    let value = self.number(expr)?;
                    self.fill(value, expr.span, want)
                }
            },
            RuleExprKind::Negate(of) => {
                let of = self.check(of, want)?;
                Some(scaled(of, Factor::number(-1.0), expr.span))
            }
            RuleExprKind::Binary(op, left, right) => self.binary(*op, left, right, expr, want),
            RuleExprKind::Call { callee, args } => self.call(callee, args, expr.span, want),
            RuleExprKind::Positions(_) => self.fail(
                Diag::error(codes::ARGUMENTS, "positions are no tensor", expr.span, "a list")
                    .with_help("write `select(src.path, [0, 2, 1], over axis)`"),
            ),
        }
    }

    fn binary(
        &mut self,
        op: BinaryOp,
        left: &RuleExpr,
        right: &RuleExpr,
        expr: &RuleExpr,
        want: &Want,
    ) -> Option<Rule> {
        let span = expr.span;
        match (op, factor_form(left), factor_form(right)) {
            (BinaryOp::Mul, Some(factor), None) => self.scale(right, &factor, false, span, want),
            (BinaryOp::Mul, None, Some(factor)) => self.scale(left, &factor, false, span, want),
            (BinaryOp::Div, None, Some(factor)) => self.scale(left, &factor, true, span, want),
            (_, Some(_), Some(_)) => {
                let value = self.number(expr)?;
                self.fill(value, span, want)
            }
            (BinaryOp::Add | BinaryOp::Sub, _, _) => {
                let (a, b) = (self.check(left, want), self.check(right, want));
                let (a, mut b) = (a?, b?);
                if op == BinaryOp::Sub {
                    b = scaled(b, Factor::number(-1.0), right.span);
                }
                let ty = a.ty.clone();
                let kind = RuleKind::Add { left: Box::new(a), right: Box::new(b) };
                Some(Rule { ty, kind, span: Some(span) })
            }
            _ => self.fail(
                Diag::error(
                    codes::ARGUMENTS,
                    "tensors are added, subtracted, and scaled by numbers",
                    span,
                    "a product of tensors",
                )
                .with_help("one side of `*`, and the right side of `/`, is a number"),
            ),
        }
    }

    fn scale(
        &mut self,
        of: &RuleExpr,
        factor: &Expr,
        divides: bool,
        span: Span,
        want: &Want,
    ) -> Option<Rule> {
        let of = self.check(of, want);
        let factor = match self.names.factor(factor) {
            Ok(factor) => factor,
            Err(diag) => return self.fail(*diag),
        };
        let factor = if divides { factor.inverse() } else { factor };
        Some(scaled(of?, factor, span))
    }

    fn number(&mut self, expr: &RuleExpr) -> Option<f64> {
        let Some(plain) = expr.as_plain() else {
            return self.fail(
                Diag::error(codes::ARGUMENTS, "a number is wanted here", expr.span, "a tensor")
                    .with_help("numbers are made of literals, formals and sizes"),
            );
        };
        match self.names.number(&plain) {
            Ok(number) => Some(number),
            Err(diag) => self.fail(*diag),
        }
    }

    /// The type that a constant takes on.
    fn known(&mut self, span: Span, want: &Want) -> Option<Type> {
        let ty = want.ty();
        if ty.is_none() {
            self.report(
                Diag::error(
                    codes::SIZE,
                    format!("the size of this part of {} is not known", want.text()),
                    span,
                    "takes its size from what is around it",
                )
                .with_help("in a `concat`, one part at most takes what is left"),
            );
        }
        ty
    }

    fn fill(&mut self, value: f64, span: Span, want: &Want) -> Option<Rule> {
        let ty = self.known(span, want)?;
        Some(Rule { ty, kind: RuleKind::Fill { value }, span: Some(span) })
    }

    fn draw(&mut self, law: Law, key: Option<&Text>, span: Span, want: &Want) -> Option<Rule> {
        let ty = self.known(span, want)?;
        let key = self.key(key, span)?;
        Some(Rule { ty, kind: RuleKind::Draw { law, key }, span: Some(span) })
    }

    /// The name of a stream: the written one under the prefix of an applied map, with `{l}`
    /// replaced, or else the target's path.
    fn key(&mut self, key: Option<&Text>, span: Span) -> Option<String> {
        self.draws.get_or_insert(span);
        let Some(text) = key else {
            let n = self.n_draws;
            self.n_draws += 1;
            let path = &self.target.path;
            return Some(if n == 0 { path.clone() } else { format!("{path}#{n}") });
        };
        let mut out = self.key_prefix.to_owned();
        let mut rest = text.value.as_str();
        while let Some((before, after)) = rest.split_once('{') {
            let (name, tail) = after.split_once('}').unwrap_or((after, ""));
            let Some(value) = self.names.variables.get(name) else {
                return self.fail(
                    Diag::error(
                        codes::VARIABLES,
                        format!("`{name}` is no index variable of this rule"),
                        text.span,
                        "in this key",
                    )
                    .with_help("a key holds text and index variables, as in \"neurons.{l}\""),
                );
            };
            out.push_str(before);
            out.push_str(&value.to_string());
            rest = tail;
        }
        out.push_str(rest);
        Some(out)
    }
}

impl Factor {
    fn inverse(&self) -> Factor {
        let sizes = self.sizes.iter().map(|(size, half)| (size.clone(), -half)).collect();
        Factor { number: 1.0 / self.number, sizes }
    }
}

pub(super) fn scaled(of: Rule, factor: Factor, span: Span) -> Rule {
    let ty = of.ty.clone();
    Rule { ty, kind: RuleKind::Scale { of: Box::new(of), factor }, span: Some(span) }
}

/// The expression as a number, where it can be one and not a tensor.
fn factor_form(expr: &RuleExpr) -> Option<Expr> {
    fn is_number(expr: &RuleExpr) -> bool {
        match &expr.kind {
            RuleExprKind::Number { .. } => true,
            RuleExprKind::Name(name) => name != "zeros" && name != "ones",
            RuleExprKind::Negate(inner) => is_number(inner),
            RuleExprKind::Binary(_, left, right) => is_number(left) && is_number(right),
            RuleExprKind::Call { callee, .. } => matches!(callee.name.as_str(), "sqrt" | "size"),
            RuleExprKind::Source(_) | RuleExprKind::Positions(_) => false,
        }
    }
    if is_number(expr) { expr.as_plain() } else { None }
}

/// A part that takes whatever size is left.
fn is_open(expr: &RuleExpr) -> bool {
    match &expr.kind {
        RuleExprKind::Number { .. } | RuleExprKind::Name(_) => true,
        RuleExprKind::Negate(of) => is_open(of),
        RuleExprKind::Binary(_, left, right) => is_open(left) && is_open(right),
        RuleExprKind::Call { callee, args } => match callee.name.as_str() {
            "constant" | "normal" | "uniform" => true,
            "tile" | "interleave" | "repeat" | "subset" => true,
            "rename" | "noise" => args.iter().all(|arg| match arg {
                RuleArg::Value(value) => is_open(value),
                _ => true,
            }),
            _ => false,
        },
        RuleExprKind::Source(_) | RuleExprKind::Positions(_) => false,
    }
}
