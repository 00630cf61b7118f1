//! Lists of numbers, and integrators: what `integrate` in a stack stands for.
//!
//! A step that has no exact inverse is found here, where the place of the number that is to blame
//! is known.

use super::check::{self, suggest_integrator};
use super::eval::{Resolver, kind_words, wrong_kind};
use super::scope::{Bound, Entry, Found, IntegratorValue, PerLayer, ScopeId};
use crate::ast::{Arg, BinaryOp, Binding, Expr, ExprKind, FormalKind, Ident, Stack};
use crate::diag::{Diag, codes};
use crate::integrator::{
    Bootstrap, FRACTION_BITS, Integrator, MAX_BITS, MAX_FRACTION_BITS, Midpoint, Step,
};
use crate::model::Target;
use crate::names::{BOOTSTRAPS, INTEGRATORS, closest};
use crate::source::Span;
use std::rc::Rc;

/// The word for a layer without a gate.
pub(super) const NONE: &str = "none";

impl<'p> Resolver<'p> {
    // Lists of numbers ---------------------------------------------------------------------

    pub(super) fn numbers(&mut self, expr: &'p Expr, scope: ScopeId) -> Option<Rc<Vec<Entry>>> {
        self.deeper(expr.span, |this| this.numbers_inner(expr, scope))
    }

    fn numbers_inner(&mut self, expr: &'p Expr, scope: ScopeId) -> Option<Rc<Vec<Entry>>> {
        if let Some(built) = self.built_list(expr, scope, Self::entry, Self::numbers) {
            return built;
        }
        match &expr.kind {
            ExprKind::Name(name) => match self.lookup(scope, name) {
                Some(Found::Bound(Bound::Numbers(list))) => Some(list),
                Some(Found::Bound(Bound::Broken)) => None,
                Some(Found::Bound(bound)) => {
                    let kind = bound.kind().map_or("something else", kind_words);
                    self.report(not_numbers(expr.span, kind));
                    None
                }
                Some(Found::Binding(stage, binding)) => {
                    self.check_kind(stage, binding, FormalKind::Numbers, expr.span)?;
                    self.binding_numbers(stage, binding)
                }
                None => {
                    self.unknown_name(name, expr.span, scope);
                    None
                }
            },
            ExprKind::Call { .. } => {
                self.report(not_numbers(expr.span, "a block"));
                None
            }
            _ => {
                self.report(not_numbers(expr.span, "a number"));
                None
            }
        }
    }

    fn entry(&mut self, item: &'p Expr, scope: ScopeId) -> Option<Entry> {
        let none = matches!(&item.kind, ExprKind::Name(name) if name == NONE);
        let value = if none && self.lookup(scope, NONE).is_none() {
            None
        } else {
            Some(self.number(item, scope)?)
        };
        Some(Entry { value, span: item.span })
    }

    pub(super) fn binding_numbers(
        &mut self,
        stage: ScopeId,
        binding: &'p Binding,
    ) -> Option<Rc<Vec<Entry>>> {
        let name = binding.name.name.as_str();
        if let Some(known) = self.stage_scope(stage)?.number_lists.get(name) {
            return known.clone();
        }
        if self.stage_scope(stage)?.broken.contains(name) {
            return None;
        }
        let value = self.numbers(&binding.value, stage);
        self.stage_scope(stage)?.number_lists.insert(name, value.clone());
        value
    }

    /// Whether an expression is a list by its form.
    fn is_list(&self, expr: &'p Expr, scope: ScopeId) -> bool {
        match &expr.kind {
            ExprKind::List(_) => true,
            ExprKind::Binary(BinaryOp::Add | BinaryOp::Mul, left, right) => {
                self.is_list(left, scope) || self.is_list(right, scope)
            }
            ExprKind::Name(name) => match self.lookup(scope, name) {
                Some(Found::Bound(bound)) => {
                    matches!(bound.kind(), Some(FormalKind::Numbers | FormalKind::Blocks))
                }
                Some(Found::Binding(stage, binding)) => {
                    let kind = self.kind_of_binding(stage, binding);
                    matches!(kind, Some(FormalKind::Numbers | FormalKind::Blocks))
                }
                None => false,
            },
            _ => false,
        }
    }

    // Integrators --------------------------------------------------------------------------

    pub(super) fn integrator(
        &mut self,
        expr: &'p Expr,
        scope: ScopeId,
    ) -> Option<Rc<IntegratorValue>> {
        self.deeper(expr.span, |this| this.integrator_inner(expr, scope))
    }

    fn integrator_inner(&mut self, expr: &'p Expr, scope: ScopeId) -> Option<Rc<IntegratorValue>> {
        match &expr.kind {
            ExprKind::Name(name) => match self.lookup(scope, name) {
                Some(Found::Bound(Bound::Integrator(value))) => Some(value),
                Some(Found::Bound(Bound::Broken)) => None,
                Some(Found::Bound(bound)) => {
                    let kind = bound.kind().map_or("something else", kind_words);
                    self.report(wrong_kind(expr.span, kind, "an integrator"));
                    None
                }
                Some(Found::Binding(stage, binding)) => {
                    self.check_kind(stage, binding, FormalKind::Integrator, expr.span)?;
                    self.binding_integrator(stage, binding)
                }
                None => {
                    self.unknown_name(name, expr.span, scope);
                    None
                }
            },
            ExprKind::Call { callee, args } => {
                let diags = check::integrator_call(callee, args);
                if !diags.is_empty() {
                    diags.into_iter().for_each(|diag| self.report(diag));
                    return None;
                }
                self.integrator_call(callee, args, expr.span, scope).map(Rc::new)
            }
            ExprKind::List(_) => {
                self.report(wrong_kind(expr.span, "a list", "an integrator"));
                None
            }
            _ => {
                self.report(wrong_kind(expr.span, "a number", "an integrator"));
                None
            }
        }
    }

    pub(super) fn binding_integrator(
        &mut self,
        stage: ScopeId,
        binding: &'p Binding,
    ) -> Option<Rc<IntegratorValue>> {
        let name = binding.name.name.as_str();
        if let Some(known) = self.stage_scope(stage)?.integrators.get(name) {
            return known.clone();
        }
        if self.stage_scope(stage)?.broken.contains(name) {
            return None;
        }
        let value = self.integrator(&binding.value, stage);
        self.stage_scope(stage)?.integrators.insert(name, value.clone());
        value
    }

    fn integrator_call(
        &mut self,
        callee: &Ident,
        args: &'p [Arg],
        span: Span,
        scope: ScopeId,
    ) -> Option<IntegratorValue> {
        let arg = |wanted: &str| {
            args.iter().find_map(|arg| match arg {
                Arg::Named(name, value) if name.name == wanted => Some(value),
                _ => None,
            })
        };
        if callee.name == "plain" {
            return Some(IntegratorValue::Plain);
        }
        // All are read, so that all report their errors.
        let h = arg("h").map(|value| self.step_size(value, scope));
        let a = match arg("a") {
            Some(value) => self.factors(value, scope),
            None => Some(PerLayer::All(Entry { value: Some(1.0), span })),
        };
        let gates = match arg("gates") {
            Some(value) => self.numbers(value, scope).map(|list| PerLayer::Each(list, value.span)),
            None => Some(PerLayer::All(Entry { value: None, span })),
        };
        let bootstrap = match arg("bootstrap") {
            Some(value) => self.bootstrap(value),
            None => Some(Bootstrap::HalfEuler),
        };
        let fraction_bits = match arg("fraction_bits") {
            Some(value) => self.fraction_bits(value, scope),
            None => Some(FRACTION_BITS),
        };
        Some(IntegratorValue::Midpoint {
            h: h??,
            a: a?,
            gates: gates?,
            bootstrap: bootstrap?,
            fraction_bits: fraction_bits?,
        })
    }

    fn step_size(&mut self, expr: &'p Expr, scope: ScopeId) -> Option<f64> {
        let h = self.number(expr, scope)?;
        if h > 0.0 {
            return Some(h);
        }
        self.report(
            Diag::error(
                codes::INTEGRATOR_NUMBER,
                format!("the step size `h` of an integrator is {h}"),
                expr.span,
                format!("this is {h}"),
            )
            .with_help(
                "`h` is above 0: with 0 no layer has an effect, and below 0 all run backwards",
            ),
        );
        None
    }

    fn factors(&mut self, expr: &'p Expr, scope: ScopeId) -> Option<PerLayer> {
        let factors = if self.is_list(expr, scope) {
            PerLayer::Each(self.numbers(expr, scope)?, expr.span)
        } else {
            let value = Some(self.number(expr, scope)?);
            PerLayer::All(Entry { value, span: expr.span })
        };
        let mut fine = true;
        let mut seen = std::collections::BTreeSet::new();
        for entry in factors.entries() {
            if entry.step().is_none() {
                fine = false;
                if seen.insert(entry.span) {
                    self.report(not_invertible(entry));
                }
            }
        }
        fine.then_some(factors)
    }

    fn bootstrap(&mut self, expr: &'p Expr) -> Option<Bootstrap> {
        match &expr.kind {
            ExprKind::Name(name) if name == "half_euler" => return Some(Bootstrap::HalfEuler),
            ExprKind::Name(name) if name == "full" => return Some(Bootstrap::Full),
            _ => {}
        }
        self.report(check::unknown_bootstrap(expr));
        None
    }

    fn fraction_bits(&mut self, expr: &'p Expr, scope: ScopeId) -> Option<u32> {
        let bits = self.number(expr, scope)?;
        if bits.fract() == 0.0 && (1.0..=f64::from(MAX_FRACTION_BITS)).contains(&bits) {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            return Some(bits as u32);
        }
        self.report(
            Diag::error(
                codes::INTEGRATOR_NUMBER,
                format!("`fraction_bits` of an integrator is {bits}"),
                expr.span,
                format!("a whole number from 1 to {MAX_FRACTION_BITS}"),
            )
            .with_help(format!(
                "a state has 32 bits: with {FRACTION_BITS} of them after the point it reaches \
                 2048 in steps of 1e-6"
            )),
        );
        None
    }

    /// The integrator of a stack whose layers are known.
    pub(super) fn stack_integrator(
        &mut self,
        stack: &'p Stack,
        value: Option<Rc<IntegratorValue>>,
        layers: &[Target],
    ) -> Option<Integrator> {
        let value = value.as_deref();
        let Some(IntegratorValue::Midpoint { h, a, gates, bootstrap, fraction_bits }) = value
        else {
            return Some(Integrator::Plain);
        };
        let n = layers.len();
        let (a, gates) =
            (self.per_layer("a", a, n, stack), self.per_layer("gates", gates, n, stack));
        let (a, gates) = (a?, gates?);
        let mut steps = Vec::with_capacity(n);
        for (factor, gate) in a.iter().zip(&gates) {
            steps.push(Step { gate: gate.value, ..factor.step()? });
        }
        let midpoint =
            Midpoint { h: *h, bootstrap: *bootstrap, fraction_bits: *fraction_bits, steps };
        for layer in midpoint.gated() {
            self.gate_is_free(stack, layer, layers.get(layer)?, gates.get(layer)?)?;
        }
        Some(Integrator::Midpoint(midpoint))
    }

    fn per_layer(
        &mut self,
        what: &str,
        values: &PerLayer,
        n: usize,
        stack: &Stack,
    ) -> Option<Vec<Entry>> {
        let (list, span) = match values {
            PerLayer::All(entry) => return Some(vec![*entry; n]),
            PerLayer::Each(list, span) => (list, *span),
        };
        if list.len() == n {
            return Some(list.to_vec());
        }
        self.report(
            Diag::error(
                codes::NOT_PER_LAYER,
                format!(
                    "`{what}` lists {} numbers, and stack `{}` has {n} layers",
                    list.len(),
                    stack.name.name
                ),
                span,
                format!("{} numbers", list.len()),
            )
            .with_related(stack.list.span, format!("{n} layers"))
            .with_help(
                "give one number per layer, the first of them too, as in `[1/2] * 8 + [1] * 12`",
            ),
        );
        None
    }

    /// A gate's path `stack.layer.gate` must not be that of a member of the layer.
    fn gate_is_free(
        &mut self,
        stack: &Stack,
        layer: usize,
        target: &Target,
        gate: &Entry,
    ) -> Option<()> {
        let instance = self.instances.get(target.instance.0 as usize)?;
        let params = instance.params.iter().map(|p| (p.name.as_str(), p.span));
        let states = instance.states.iter().map(|s| (s.name.as_str(), s.span));
        let tables = instance.tables.iter().map(|t| (t.name.as_str(), t.span));
        let subs = instance.subs.iter().map(|s| (s.name.as_str(), s.span));
        let mut members = params.chain(states).chain(tables).chain(subs);
        let Some((_, place)) = members.find(|(name, _)| *name == "gate") else { return Some(()) };
        let block = instance.block.clone();
        self.report(
            Diag::error(
                codes::GATE_TAKEN,
                format!("the gate of layer {layer} would have the path of a member of `{block}`"),
                gate.span,
                format!("the path `{}.{layer}.gate`", stack.name.name),
            )
            .with_related(place, "has that path already")
            .with_help(format!(
                "put `{block}` into a block of its own, or rename its member `gate`"
            )),
        );
        None
    }
}

fn not_numbers(span: Span, found: &str) -> Diag {
    let diag = wrong_kind(span, found, "a list of numbers");
    match found {
        "a number" => {
            diag.with_help("write `[x]` for a list of one number, `[x] * n` for n of them")
        }
        _ => diag,
    }
}

/// Why there is no exact inverse of a step with this factor.
fn not_invertible(entry: &Entry) -> Diag {
    let Some(a) = entry.value else {
        return wrong_kind(entry.span, "no number", "a factor `a`")
            .with_help("`none` is for gates; a factor is a number such as 1/2");
    };
    let largest = f64::from(1_u32 << MAX_BITS);
    let (label, help) = if a == 0.0 {
        (
            "the state before the last would be lost".to_owned(),
            "`a` is above 0 up to 1, such as 1/2; for a residual without memory take `plain()`"
                .to_owned(),
        )
    } else if !(0.0..=1.0).contains(&a) {
        (
            "the difference of two states would not stay bounded".to_owned(),
            "differences are multiplied by -a in each step: `a` is above 0 and at most 1"
                .to_owned(),
        )
    } else {
        let near = ((a * 4.0).round() / 4.0).clamp(0.25, 1.0);
        let bits = format!("{MAX_BITS} bits");
        (
            format!("not m / 2^k with k at most {MAX_BITS}"),
            format!(
                "a step keeps the k low bits of each element, at most {bits}, so `a` is a fraction \
                 over {largest} or less; {near} is near"
            ),
        )
    };
    Diag::error(
        codes::NOT_INVERTIBLE,
        format!("a step with a = {a} has no exact inverse"),
        entry.span,
        label,
    )
    .with_help(help)
}

impl PerLayer {
    fn entries(&self) -> &[Entry] {
        match self {
            PerLayer::All(entry) => std::slice::from_ref(entry),
            PerLayer::Each(list, _) => list,
        }
    }
}

impl Entry {
    fn step(&self) -> Option<Step> {
        Step::of(self.value?)
    }
}

/// The nearest bootstrap.
pub(super) fn bootstrap_help(name: &str) -> String {
    match closest(name, BOOTSTRAPS) {
        Some(near) => format!("`{near}` exists"),
        None => format!("bootstraps: {}", BOOTSTRAPS.join(", ")),
    }
}

/// The form of an integrator's call: `midpoint(h: .., a: ..)`.
pub(super) fn form(name: &str) -> Option<String> {
    let (_, needed, _) = INTEGRATORS.iter().find(|(known, ..)| *known == name)?;
    let args: Vec<String> = needed.iter().map(|arg| format!("{arg}: ..")).collect();
    Some(format!("{name}({})", args.join(", ")))
}

/// What a name that is no integrator most likely means.
pub(super) fn unknown_integrator(callee: &Ident) -> Diag {
    let diag = Diag::error(
        codes::UNKNOWN_INTEGRATOR,
        format!("there is no integrator `{}`", callee.name),
        callee.span,
        "unknown integrator",
    );
    suggest_integrator(diag, &callee.name)
}
