//! Functions of rules that act along an axis, or make other axes.

use super::call::Args;
use super::want::Want;
use super::{Builder, is_open};
use crate::growth::codes;
use crate::growth::pattern;
use crate::growth::rule::{Rule, RuleKind};
use lightc_dsl::ast::{Expr, Ident, RuleExpr, RuleExprKind};
use lightc_dsl::diag::Diag;
use lightc_dsl::size::Size;
use lightc_dsl::source::Span;

impl Builder<'_> {
    pub(super) fn concat(
        &mut self,
        parts: &[&RuleExpr],
        axis: &Ident,
        span: Span,
        want: &Want,
    ) -> Option<Rule> {
        self.wanted(axis, want)?;
        let open = want.with(&axis.name, None);
        let fixed: Vec<Option<Option<Rule>>> =
            parts.iter().map(|part| (!is_open(part)).then(|| self.check(part, &open))).collect();
        let mut total = Size::default();
        for rule in fixed.iter().flatten() {
            let size = rule.as_ref()?.ty.axis(&axis.name)?.size.clone();
            total = total.checked_add(&size)?;
        }
        let n_open = fixed.iter().filter(|part| part.is_none()).count();
        let wanted = want.size(&axis.name).cloned();
        let rest = match (&wanted, n_open) {
            (Some(wanted), 1) => Some(wanted.checked_sub(&total)?),
            (Some(wanted), 0) if *wanted != total => {
                return self.wrong_total(&total, wanted, axis, span);
            }
            _ => None,
        };
        if let Some(rest) = rest.as_ref().and_then(Size::as_constant)
            && rest < 1
        {
            return self.wrong_total(&total, &wanted.unwrap_or_default(), axis, span);
        }
        let whole = wanted.unwrap_or(total);
        let left = want.with(&axis.name, rest);
        let mut rules = Vec::new();
        for (part, fixed) in parts.iter().zip(fixed) {
            rules.push(match fixed {
                Some(rule) => rule,
                None => self.check(part, &left),
            });
        }
        let parts = rules.into_iter().collect::<Option<Vec<_>>>()?;
        let ty = self.typed(want, &parts.first()?.ty.clone(), &axis.name, whole);
        let kind = RuleKind::Concat { parts, axis: axis.name.clone() };
        Some(Rule { ty, kind, span: Some(span) })
    }

    fn wrong_total(
        &mut self,
        total: &Size,
        wanted: &Size,
        axis: &Ident,
        span: Span,
    ) -> Option<Rule> {
        self.fail(
            Diag::error(
                codes::SIZE,
                format!(
                    "the parts have {total} positions along `{}`, and {wanted} are wanted",
                    axis.name
                ),
                span,
                format!("{total} positions"),
            )
            .with_help("add a part such as `zeros`, which takes what is left, or remove one"),
        )
    }

    pub(super) fn select(
        &mut self,
        of: &RuleExpr,
        positions: &RuleExpr,
        axis: &Ident,
        span: Span,
        want: &Want,
    ) -> Option<Rule> {
        self.wanted(axis, want)?;
        let RuleExprKind::Positions(list) = &positions.kind else {
            return self.fail(
                Diag::error(codes::ARGUMENTS, "positions are a list", positions.span, "no list")
                    .with_help("write `[0, 2, 1]` or `[0 .. 4, 0 .. 4]`"),
            );
        };
        let positions = match pattern::indices(list, self.names) {
            Ok(positions) => positions,
            Err(diag) => return self.fail(*diag),
        };
        let of = self.check(of, &want.with(&axis.name, None))?;
        let length = of.ty.axis(&axis.name)?.size.as_constant();
        if let Some(length) = length
            && let Some(position) = positions.iter().find(|p| **p as i64 >= length)
        {
            return self.fail(out_of_axis(*position as i64, &axis.name, length, list.span));
        }
        let size = Size::constant(positions.len() as i64);
        if let Some(wanted) = want.size(&axis.name)
            && *wanted != size
        {
            return self.wrong_total(&size, &wanted.clone(), axis, list.span);
        }
        let ty = self.typed(want, &of.ty, &axis.name, size);
        let kind = RuleKind::Select { of: Box::new(of), axis: axis.name.clone(), positions };
        Some(Rule { ty, kind, span: Some(span) })
    }

    pub(super) fn slice(
        &mut self,
        of: &RuleExpr,
        axis: &Ident,
        start: &Expr,
        end: &Expr,
        span: Span,
        want: &Want,
    ) -> Option<Rule> {
        self.wanted(axis, want)?;
        let of = self.check(of, &want.with(&axis.name, None));
        let (start, end) = match (self.names.size(start), self.names.size(end)) {
            (Ok(start), Ok(end)) => (start, end),
            (Err(diag), _) | (_, Err(diag)) => return self.fail(*diag),
        };
        let of = of?;
        let length = of.ty.axis(&axis.name)?.size.clone();
        let size = end.checked_sub(&start)?;
        let over = length.checked_sub(&end)?.as_constant().is_some_and(|rest| rest < 0);
        if over || size.as_constant().is_some_and(|n| n < 1) {
            return self.fail(
                Diag::error(
                    codes::POSITIONS,
                    format!(
                        "`{}[{start} .. {end}]` is not within its {length} positions",
                        axis.name
                    ),
                    axis.span,
                    format!("{length} positions"),
                )
                .with_help(format!("a slice lies within 0 .. {length}")),
            );
        }
        if let Some(wanted) = want.size(&axis.name)
            && *wanted != size
        {
            return self.wrong_total(&size, &wanted.clone(), axis, span);
        }
        let ty = self.typed(want, &of.ty, &axis.name, size);
        let kind = RuleKind::Slice { of: Box::new(of), axis: axis.name.clone(), start };
        Some(Rule { ty, kind, span: Some(span) })
    }

    /// `tile`, `interleave`, `repeat`, `subset` and `redraw`.
    pub(super) fn along(
        &mut self,
        name: &str,
        of: &RuleExpr,
        axis: &Ident,
        args: &Args<'_>,
        span: Span,
        want: &Want,
    ) -> Option<Rule> {
        self.wanted(axis, want)?;
        if let Some(each) = args.each {
            self.wanted(each, want)?;
        }
        let label = axis.name.clone();
        if name == "rotate" {
            return self.rotate(of, axis, args, span, want);
        }
        if name == "redraw" {
            return self.redraw(of, axis, args, span, want);
        }
        let wanted = match want.size(&label) {
            Some(size) => size.clone(),
            None => {
                self.known(span, want)?;
                return None;
            }
        };
        if name == "repeat" {
            let of = self.check(of, &want.without(&label))?;
            let ty = self.typed(want, &of.ty, &label, wanted);
            let kind = RuleKind::Repeat { of: Box::new(of), axis: label };
            return Some(Rule { ty, kind, span: Some(span) });
        }
        let mut inner = want.with(&label, None);
        let each = args.each.filter(|_| name == "subset").map(|each| each.name.clone());
        if let Some(each) = &each {
            inner = inner.without(each);
        }
        let of = self.check(of, &inner)?;
        let length = of.ty.axis(&label)?.size.clone();
        let ty = self.typed(want, &of.ty, &label, wanted.clone());
        let of = Box::new(of);
        let kind = if name == "subset" {
            self.fewer(&wanted, &length, axis)?;
            RuleKind::Subset { of, axis: label, each, key: self.key(args.key, span)? }
        } else {
            self.divides(&wanted, &length, axis, span)?;
            match name {
                "tile" => RuleKind::Tile { of, axis: label },
                _ => RuleKind::Interleave { of, axis: label },
            }
        };
        Some(Rule { ty, kind, span: Some(span) })
    }

    pub(super) fn redraw(
        &mut self,
        of: &RuleExpr,
        axis: &Ident,
        args: &Args<'_>,
        span: Span,
        want: &Want,
    ) -> Option<Rule> {
        let of = self.check(of, want)?;
        let plain = args.named.first().and_then(|(_, keep)| keep.as_plain())?;
        let keep = match self.names.size(&plain) {
            Ok(keep) => keep,
            Err(diag) => return self.fail(*diag),
        };
        let length = of.ty.axis(&axis.name)?.size.clone();
        self.fewer(&keep, &length, axis)?;
        let key = self.key(args.key, span)?;
        let values = self.key(None, span)?;
        let each = args.each.map(|each| each.name.clone());
        let ty = of.ty.clone();
        let axis = axis.name.clone();
        let kind = RuleKind::Redraw { of: Box::new(of), axis, keep, each, key, values };
        Some(Rule { ty, kind, span: Some(span) })
    }

    pub(super) fn rotate(
        &mut self,
        of: &RuleExpr,
        axis: &Ident,
        args: &Args<'_>,
        span: Span,
        want: &Want,
    ) -> Option<Rule> {
        let of = self.check(of, want)?;
        let plain = args.named.first().and_then(|(_, seed)| seed.as_plain())?;
        let seed = match self.names.index(&plain) {
            Ok(seed) => seed,
            Err(diag) => return self.fail(*diag),
        };
        let length = of.ty.axis(&axis.name)?.size.as_constant();
        if let Some(length) = length.filter(|n| !u64::try_from(*n).is_ok_and(u64::is_power_of_two))
        {
            return self.fail(
                Diag::error(
                    codes::DIVIDES,
                    format!("`{}` has {length} positions, which is no power of two", axis.name),
                    axis.span,
                    format!("{length} positions"),
                )
                .with_help("a rotation goes over a power of two"),
            );
        }
        let ty = of.ty.clone();
        let kind = RuleKind::Rotate { of: Box::new(of), axis: axis.name.clone(), seed };
        Some(Rule { ty, kind, span: Some(span) })
    }

    pub(super) fn fewer(&mut self, taken: &Size, length: &Size, axis: &Ident) -> Option<()> {
        let over = length.checked_sub(taken)?.as_constant().is_some_and(|rest| rest < 0);
        if !over {
            return Some(());
        }
        self.fail(
            Diag::error(
                codes::POSITIONS,
                format!("{taken} of the {length} positions of `{}` are wanted", axis.name),
                axis.span,
                format!("{length} positions"),
            )
            .with_help("a choice without repetition has at most as many positions as its source"),
        )
    }

    pub(super) fn divides(
        &mut self,
        wanted: &Size,
        length: &Size,
        axis: &Ident,
        span: Span,
    ) -> Option<()> {
        if wanted.exact_div(length).is_some() {
            return Some(());
        }
        let below = match (wanted.as_constant(), length.as_constant()) {
            (Some(w), Some(n)) if n > 0 => {
                let below = w - w.rem_euclid(n);
                format!("{below} and {} are multiples of {n}", below + n)
            }
            _ => "the wanted size has to be a multiple of the source's".to_owned(),
        };
        self.fail(
            Diag::error(
                codes::DIVIDES,
                format!(
                    "`{}` has {wanted} positions in the target, no multiple of the {length} of the source",
                    axis.name
                ),
                span,
                format!("{length} positions do not fill {wanted}"),
            )
            .with_help(below),
        )
    }

    /// `rename`, `split` and `merge`.
    pub(super) fn reshape(
        &mut self,
        name: &str,
        of: &RuleExpr,
        from: &[Ident],
        to: &[Ident],
        span: Span,
        want: &Want,
    ) -> Option<Rule> {
        for axis in to {
            self.wanted(axis, want)?;
        }
        let position = |axis: &Ident| want.axes.iter().position(|(n, _)| *n == axis.name);
        let start = position(to.first()?)?;
        let adjacent = to.iter().enumerate().all(|(i, axis)| position(axis) == Some(start + i));
        let right = match name {
            "rename" => from.len() == 1 && to.len() == 1,
            "split" => from.len() == 1 && to.len() > 1,
            _ => from.len() > 1 && to.len() == 1,
        };
        if !right || !adjacent {
            return self.fail(
                Diag::error(
                    codes::ARGUMENTS,
                    format!(
                        "`{name}` does not go from {} to {} axes like this",
                        from.len(),
                        to.len()
                    ),
                    span,
                    "`rename(x, a -> b)`, `split(x, a -> (b, c))`, `merge(x, (a, b) -> c)`",
                )
                .with_help("the parts of an axis stand next to each other, the last the fastest"),
            );
        }
        let size = match name {
            "merge" => None,
            _ => to.iter().try_fold(Size::constant(1), |total, axis| {
                total.checked_mul(want.size(&axis.name)?)
            }),
        };
        let mut axes = want.axes.clone();
        let before = from.iter().map(|axis| (axis.name.clone(), size.clone()));
        axes.splice(start..start + to.len(), before);
        let of = self.check(of, &Want { dtype: want.dtype, axes })?;
        let total = from.iter().try_fold(Size::constant(1), |total, axis| {
            total.checked_mul(&of.ty.axis(&axis.name)?.size)
        })?;
        let ty = match name {
            "split" => self.typed(want, &of.ty, "", Size::default()),
            _ => self.typed(want, &of.ty, &to.first()?.name.clone(), total.clone()),
        };
        if let Some(wanted) = to.first().and_then(|axis| want.size(&axis.name))
            && name == "merge"
            && *wanted != total
        {
            return self.wrong_total(&total, &wanted.clone(), to.first()?, span);
        }
        let of = Box::new(of);
        let first = |list: &[Ident]| list.first().map_or(String::new(), |a| a.name.clone());
        let all = |list: &[Ident]| list.iter().map(|a| a.name.clone()).collect::<Vec<_>>();
        let kind = match name {
            "rename" => RuleKind::Rename { of, from: first(from), to: first(to) },
            "split" => RuleKind::Split { of, from: first(from), to: all(to) },
            _ => RuleKind::Merge { of, from: all(from), to: first(to) },
        };
        Some(Rule { ty, kind, span: Some(span) })
    }
}

fn out_of_axis(position: i64, axis: &str, length: i64, span: Span) -> Diag {
    Diag::error(
        codes::POSITIONS,
        format!("`{axis}` has {length} positions, and {position} is not one of them"),
        span,
        format!("positions go from 0 to {}", length - 1),
    )
    .with_help(format!("use positions below {length}"))
}
