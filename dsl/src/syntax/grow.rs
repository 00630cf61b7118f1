//! Lines of growth maps.

use super::{Builder, Line, PRATT, Rule, parts};
use crate::ast::{
    BinaryOp, ClauseKind, Expr, ExprKind, Ident, IndexItem, IndexList, Loop, Path, RuleArg,
    RuleExpr, RuleExprKind, Segment,
};
use crate::source::Span;
use pest::iterators::Pair;

/// Which clause a line is, by its first word. A tensor can have one of these names: then `=`, `.`
/// or `[` follows.
pub(super) fn rule_of(word: &str, text: &str) -> Rule {
    let rest = text.get(word.len()..).unwrap_or("").trim_start();
    if word == "rest" && rest.strip_prefix('=').is_some_and(|r| r.trim() == "src") {
        return Rule::rest_line;
    }
    if word.is_empty() || rest.starts_with(['=', '.', '[']) {
        return Rule::rule_line;
    }
    match word {
        "preserves" => Rule::preserves_line,
        "changes" => Rule::changes_line,
        "seed" => Rule::seed_line,
        "moments" => Rule::moments_line,
        "setting" => Rule::setting_line,
        "drop" => Rule::drop_line,
        "given" => Rule::given_line,
        "gives" => Rule::gives_line,
        _ => Rule::rule_line,
    }
}

/// The rule is that of a clause.
pub(super) fn is_clause(rule: Rule) -> bool {
    matches!(
        rule,
        Rule::preserves_line
            | Rule::changes_line
            | Rule::seed_line
            | Rule::moments_line
            | Rule::setting_line
            | Rule::rest_line
            | Rule::drop_line
            | Rule::given_line
            | Rule::gives_line
            | Rule::rule_line
    )
}

/// An expression and how deep it is.
struct Deep {
    expr: RuleExpr,
    depth: u32,
}

impl Builder {
    pub(super) fn grow_head<'i>(
        &mut self,
        parts: impl Iterator<Item = Pair<'i, Rule>>,
    ) -> Option<Line> {
        let (mut name, mut formals, mut sides) = (None, Vec::new(), Vec::new());
        for part in parts {
            match part.as_rule() {
                Rule::name => name = Some(self.ident(&part)),
                Rule::formals => formals = self.formals(part),
                _ => {
                    let word = super::parts(part).next()?;
                    let span = self.span(&word);
                    sides.push(self.word(word, span)?.expr);
                }
            }
        }
        let mut sides = sides.into_iter();
        Some(Line::GrowHead(name?, formals, sides.next()?, sides.next()?))
    }

    pub(super) fn clause<'i>(
        &mut self,
        rule: Rule,
        mut parts: impl Iterator<Item = Pair<'i, Rule>>,
    ) -> Option<ClauseKind> {
        Some(match rule {
            Rule::preserves_line => match parts.next() {
                Some(bound) => ClauseKind::Within(self.expr(bound)?),
                None => ClauseKind::Exactly,
            },
            Rule::changes_line => ClauseKind::Changes(self.text(&parts.next()?)),
            Rule::seed_line => ClauseKind::Seed(self.expr(parts.next()?)?),
            Rule::moments_line => {
                ClauseKind::Moments { reset: parts.next().map(|reason| self.text(&reason)) }
            }
            Rule::setting_line => {
                let path = self.path(parts.next()?)?;
                ClauseKind::Setting { path, reason: self.text(&parts.next()?) }
            }
            Rule::rest_line => ClauseKind::Rest,
            Rule::drop_line => {
                let path = self.path(parts.next()?)?;
                let reason = self.text(&parts.next()?);
                ClauseKind::Drop { path, reason, loops: self.loops(parts)? }
            }
            Rule::given_line => {
                let name = self.ident(&parts.next()?);
                ClauseKind::Given { name, value: self.rule_expr(parts.next()?)?.expr }
            }
            Rule::gives_line => {
                let first = parts.next()?;
                match parts.next() {
                    Some(value) => {
                        let name = Some(self.ident(&first));
                        ClauseKind::Gives { name, value: self.rule_expr(value)?.expr }
                    }
                    None => ClauseKind::Gives { name: None, value: self.rule_expr(first)?.expr },
                }
            }
            _ => {
                let target = self.path(parts.next()?)?;
                let value = self.rule_expr(parts.next()?)?.expr;
                ClauseKind::Rule { target, value, loops: self.loops(parts)? }
            }
        })
    }

    /// `a.b[l].**`, with or without `src` before it.
    fn path(&mut self, pair: Pair<'_, Rule>) -> Option<Path> {
        let span = self.span(&pair);
        let segments = parts(pair).map(|segment| self.segment(segment)).collect::<Option<_>>()?;
        Some(Path { segments, span })
    }

    fn segment(&mut self, pair: Pair<'_, Rule>) -> Option<Segment> {
        let mut parts = parts(pair);
        let first = parts.next()?;
        Some(match (first.as_rule(), parts.next()) {
            (Rule::deep, _) => Segment::Deep,
            (Rule::any, _) => Segment::Any,
            (_, Some(index)) => Segment::Index(self.ident(&first), self.expr(index)?),
            (_, None) => Segment::Name(self.ident(&first)),
        })
    }

    fn loops<'i>(&mut self, parts: impl Iterator<Item = Pair<'i, Rule>>) -> Option<Vec<Loop>> {
        parts.map(|pair| self.loop_over(pair)).collect()
    }

    fn loop_over(&mut self, pair: Pair<'_, Rule>) -> Option<Loop> {
        let span = self.span(&pair);
        let (mut variables, mut lists) = (Vec::new(), Vec::new());
        for part in parts(pair) {
            match part.as_rule() {
                Rule::name => variables.push(self.ident(&part)),
                Rule::zip => {
                    for list in parts(part) {
                        lists.push(self.index_list(list)?);
                    }
                }
                _ => lists.push(self.index_list(part)?),
            }
        }
        Some(Loop { variables, lists, span })
    }

    fn index_list(&mut self, pair: Pair<'_, Rule>) -> Option<IndexList> {
        let inner = parts(pair).next()?;
        self.indices(inner)
    }

    /// `bracketed` or one `index_item`.
    fn indices(&mut self, pair: Pair<'_, Rule>) -> Option<IndexList> {
        let span = self.span(&pair);
        let bracketed = pair.as_rule() == Rule::bracketed;
        let items = if bracketed {
            parts(pair).map(|item| self.index_item(item)).collect::<Option<_>>()?
        } else {
            vec![self.index_item(pair)?]
        };
        Some(IndexList { items, bracketed, span })
    }

    fn index_item(&mut self, pair: Pair<'_, Rule>) -> Option<IndexItem> {
        let mut parts = parts(pair);
        let start = self.expr(parts.next()?)?;
        let end = match parts.next() {
            Some(end) => Some(self.expr(end)?),
            None => None,
        };
        Some(IndexItem { start, end })
    }

    fn rule_limit(&mut self, kind: RuleExprKind, span: Span, depth: u32) -> Deep {
        if depth <= super::MAX_DEPTH {
            return Deep { expr: RuleExpr { kind, span }, depth };
        }
        self.too_deep.get_or_insert(span);
        let kind = RuleExprKind::Number { value: 0.0, text: "0".to_owned() };
        Deep { expr: RuleExpr { kind, span }, depth: 0 }
    }

    fn rule_expr(&mut self, pair: Pair<'_, Rule>) -> Option<Deep> {
        // The callbacks need the builder one at a time; the Pratt parser calls them in turn.
        let this = std::cell::RefCell::new(self);
        PRATT
            .map_primary(|pair| this.borrow_mut().rule_primary(pair))
            .map_prefix(|op, value| {
                let mut this = this.borrow_mut();
                let value = value?;
                let span = Span { start: this.span(&op).start, ..value.expr.span };
                let kind = RuleExprKind::Negate(Box::new(value.expr));
                Some(this.rule_limit(kind, span, value.depth + 1))
            })
            .map_infix(|left, op, right| {
                let op = match op.as_rule() {
                    Rule::add => BinaryOp::Add,
                    Rule::subtract => BinaryOp::Sub,
                    Rule::multiply => BinaryOp::Mul,
                    _ => BinaryOp::Div,
                };
                let (left, right) = (left?, right?);
                let span = Span { end: right.expr.span.end, ..left.expr.span };
                let depth = left.depth.max(right.depth) + 1;
                let kind = RuleExprKind::Binary(op, Box::new(left.expr), Box::new(right.expr));
                Some(this.borrow_mut().rule_limit(kind, span, depth))
            })
            .parse(parts(pair))
    }

    fn rule_primary(&mut self, pair: Pair<'_, Rule>) -> Option<Deep> {
        let span = self.span(&pair);
        match pair.as_rule() {
            Rule::number => {
                let text = pair.as_str().to_owned();
                let value: f64 = text.parse().ok()?;
                if !value.is_finite() {
                    self.too_large.get_or_insert(span);
                }
                Some(self.rule_limit(RuleExprKind::Number { value, text }, span, 1))
            }
            Rule::source => {
                let path = self.path(pair)?;
                Some(self.rule_limit(RuleExprKind::Source(path), span, 1))
            }
            Rule::rule_group => self.rule_expr(parts(pair).next()?),
            Rule::positions => {
                let list = self.indices(parts(pair).next()?)?;
                Some(self.rule_limit(RuleExprKind::Positions(list), span, 1))
            }
            _ => self.rule_word(pair, span),
        }
    }

    fn rule_word(&mut self, pair: Pair<'_, Rule>, span: Span) -> Option<Deep> {
        let mut parts = parts(pair);
        let callee = self.ident(&parts.next()?);
        let Some(list) = parts.next() else {
            return Some(self.rule_limit(RuleExprKind::Name(callee.name), span, 1));
        };
        let mut depth = 0;
        let mut args = Vec::new();
        for part in super::parts(list) {
            let (arg, below) = self.rule_arg(part)?;
            args.push(arg);
            depth = depth.max(below);
        }
        Some(self.rule_limit(RuleExprKind::Call { callee, args }, span, depth + 1))
    }

    fn rule_arg(&mut self, pair: Pair<'_, Rule>) -> Option<(RuleArg, u32)> {
        let span = self.span(&pair);
        let rule = pair.as_rule();
        if rule == Rule::rule_expr {
            let value = self.rule_expr(pair)?;
            return Some((RuleArg::Value(value.expr), value.depth));
        }
        let mut parts = parts(pair);
        let first = parts.next()?;
        Some(match rule {
            Rule::over_one => (RuleArg::Over(self.ident(&first), span), 0),
            Rule::each => (RuleArg::Each(self.ident(&first), span), 0),
            Rule::map => {
                let from = self.name_list(first);
                (RuleArg::Map { from, to: self.name_list(parts.next()?), span }, 0)
            }
            Rule::cut => {
                let axis = self.ident(&first);
                let start = self.expr(parts.next()?)?;
                let end = self.expr(parts.next()?)?;
                (RuleArg::Range { axis, start, end, span }, 0)
            }
            Rule::key => (RuleArg::Text(self.ident(&first), self.text(&parts.next()?)), 0),
            _ => {
                let name = self.ident(&first);
                let value = self.rule_expr(parts.next()?)?;
                (RuleArg::Named(name, value.expr), value.depth)
            }
        })
    }
}

impl RuleExpr {
    /// The same as an expression of numbers and sizes, where it is one.
    pub fn as_plain(&self) -> Option<Expr> {
        let kind = match &self.kind {
            RuleExprKind::Number { value, text } => {
                ExprKind::Number { value: *value, text: text.clone() }
            }
            RuleExprKind::Name(name) => ExprKind::Name(name.clone()),
            RuleExprKind::Negate(inner) => ExprKind::Negate(Box::new(inner.as_plain()?)),
            RuleExprKind::Binary(op, left, right) => {
                ExprKind::Binary(*op, Box::new(left.as_plain()?), Box::new(right.as_plain()?))
            }
            RuleExprKind::Call { callee, args } => {
                let args = args.iter().map(|arg| match arg {
                    RuleArg::Value(value) => value.as_plain().map(crate::ast::Arg::Value),
                    _ => None,
                });
                ExprKind::Call { callee: callee.clone(), args: args.collect::<Option<_>>()? }
            }
            RuleExprKind::Source(_) | RuleExprKind::Positions(_) => return None,
        };
        Some(Expr { kind, span: self.span })
    }
}

/// Names a path as it is written.
impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (position, segment) in self.segments.iter().enumerate() {
            if position > 0 {
                f.write_str(".")?;
            }
            match segment {
                Segment::Name(name) => f.write_str(&name.name)?,
                Segment::Index(Ident { name, .. }, index) => {
                    write!(f, "{name}[{}]", crate::format::expression(index))?;
                }
                Segment::Any => f.write_str("*")?,
                Segment::Deep => f.write_str("**")?,
            }
        }
        Ok(())
    }
}
