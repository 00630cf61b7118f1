//! Sizes, numbers, blocks and lists of blocks: one expression grammar, four readings. The place
//! where an expression stands decides which one applies.

use super::check;
use super::scope::{AxisValue, Bound, Closure, Found, Origin, Scope, ScopeId, StageScope};
use super::{BlockDef, Program};
use crate::ast::{Arg, BinaryOp, Binding, Expr, ExprKind, FormalKind};
use crate::diag::{Diag, codes};
use crate::model::{Instance, InstanceId};
use crate::names::closest;
use crate::size::Size;
use crate::source::Span;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Longest list of blocks. The deepest published lineage has 20 layers.
pub(super) const MAX_LIST: usize = 4096;
/// Longest chain of bindings or nested expressions followed at once.
const MAX_DEPTH: usize = 200;

/// One resolution of one stage or block.
pub(super) struct Resolver<'p> {
    pub(super) program: &'p Program,
    pub(super) scopes: Vec<Scope<'p>>,
    pub(super) instances: Vec<Instance>,
    pub(super) known: BTreeMap<super::instantiate::Key, InstanceId>,
    pub(super) diags: Vec<Diag>,
    /// Blocks that are being instantiated, outermost first, with the place that asks for them.
    pub(super) chain: Vec<(&'p str, Span)>,
    pub(super) n_instantiated: usize,
    /// Set where going on would not end.
    pub(super) stop: bool,
    /// In a block that stands alone, what each symbolic size is a multiple of.
    pub(super) multiples: BTreeMap<String, Size>,
    /// A division asked for a new entry in `multiples`: the resolution starts again.
    pub(super) retry: bool,
    /// A symbolic size was used in a number.
    pub(super) symbolic: bool,
    pub(super) depth: usize,
    /// A chain of bindings is over the limit, which is reported once.
    pub(super) chain_too_long: bool,
}

/// What a kind of formal takes, in words.
pub(super) fn kind_words(kind: FormalKind) -> &'static str {
    match kind {
        FormalKind::Axis => "an axis",
        FormalKind::Number => "a number",
        FormalKind::Block => "a block",
        FormalKind::Blocks => "a list of blocks",
        FormalKind::Numbers => "a list of numbers",
        FormalKind::Integrator => "an integrator",
    }
}

pub(super) fn wrong_kind(span: Span, found: &str, wanted: &str) -> Diag {
    Diag::error(
        codes::WRONG_KIND,
        format!("{wanted} is wanted, and {found} is given"),
        span,
        format!("this is {found}"),
    )
}

/// The elements of a list, unless one has an error.
type Elements<T> = Option<Rc<Vec<T>>>;

impl<'p> Resolver<'p> {
    pub(super) fn lookup(&self, scope: ScopeId, name: &str) -> Option<Found<'p>> {
        match self.scopes.get(scope.0)? {
            Scope::Stage(stage) => {
                stage.bindings.get(name).map(|binding| Found::Binding(scope, binding))
            }
            Scope::Block(names) => names.get(name).cloned().map(Found::Bound),
            Scope::Item { name: item, value, .. } if *item == name => {
                Some(Found::Bound(Bound::Block(*value)))
            }
            Scope::Item { parent, .. } => self.lookup(*parent, name),
            Scope::Free => None,
        }
    }

    /// The block scope that a scope is or stands in.
    pub(super) fn block_scope(&self, scope: ScopeId) -> Option<ScopeId> {
        match self.scopes.get(scope.0)? {
            Scope::Block(_) => Some(scope),
            Scope::Item { parent, .. } => self.block_scope(*parent),
            _ => None,
        }
    }

    fn names_in(&self, scope: ScopeId) -> Vec<&'p str> {
        match self.scopes.get(scope.0) {
            Some(Scope::Stage(stage)) => stage.bindings.keys().copied().collect(),
            Some(Scope::Block(names)) => names.keys().copied().collect(),
            Some(Scope::Item { parent, name, .. }) => {
                let mut names = self.names_in(*parent);
                names.push(name);
                names
            }
            _ => Vec::new(),
        }
    }

    pub(super) fn stage_scope(&mut self, scope: ScopeId) -> Option<&mut StageScope<'p>> {
        match self.scopes.get_mut(scope.0) {
            Some(Scope::Stage(stage)) => Some(stage),
            _ => None,
        }
    }

    /// Reports an error, and says which instantiation it is in.
    pub(super) fn report(&mut self, mut diag: Diag) {
        let is_root = self.chain.len() == 1;
        if let Some((block, span)) = self.chain.last()
            && !(is_root && matches!(self.scopes.first(), Some(Scope::Free)))
            && *span != diag.primary.span
            && diag.related.iter().all(|r| r.span != *span)
        {
            diag.related
                .push(crate::diag::Label { span: *span, text: format!("in this `{block}`") });
        }
        self.diags.push(diag);
    }

    /// What the value of a binding is by its form.
    pub(super) fn kind_of_binding(
        &self,
        stage: ScopeId,
        binding: &'p Binding,
    ) -> Option<FormalKind> {
        check::kind_of(self.program, &binding.value, &|name| match self.lookup(stage, name) {
            Some(Found::Binding(_, binding)) => Some(&binding.value),
            _ => None,
        })
    }

    /// Reports a binding whose form is not of the kind that its use wants.
    pub(super) fn check_kind(
        &mut self,
        stage: ScopeId,
        binding: &'p Binding,
        wanted: FormalKind,
        span: Span,
    ) -> Option<()> {
        let kind = self.kind_of_binding(stage, binding).unwrap_or(wanted);
        if kind == wanted {
            return Some(());
        }
        let words = kind_words(kind);
        let diag = match (wanted, kind) {
            (FormalKind::Blocks, FormalKind::Block) => not_a_list(span, words, &binding.name.name),
            (FormalKind::Axis, _) => wrong_kind(span, words, "a size"),
            _ => wrong_kind(span, words, kind_words(wanted)),
        };
        self.report(diag.with_related(binding.name.span, "bound here"));
        None
    }

    pub(super) fn unknown_name(&mut self, name: &str, span: Span, scope: ScopeId) {
        let names = self.names_in(scope);
        let is_stage = matches!(self.scopes.get(scope.0), Some(Scope::Stage(_)));
        let diag = check::unknown_name(name, span, names, is_stage);
        self.report(diag);
    }

    /// Guards the recursion of the readings below. Nesting of one expression is limited by the
    /// parser; chains of bindings are limited here.
    pub(super) fn deeper<T>(
        &mut self,
        span: Span,
        f: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Option<T> {
        if self.depth >= MAX_DEPTH {
            if !std::mem::replace(&mut self.chain_too_long, true) {
                self.report(Diag::error(
                    codes::OVER_LIMIT,
                    format!("more than {MAX_DEPTH} bindings and operations lead to one value"),
                    span,
                    "the chain is too long here",
                ));
            }
            return None;
        }
        self.depth += 1;
        let value = f(self);
        self.depth -= 1;
        value
    }

    // Sizes --------------------------------------------------------------------------------

    pub(super) fn size(&mut self, expr: &'p Expr, scope: ScopeId) -> Option<Size> {
        self.deeper(expr.span, |this| this.size_inner(expr, scope))
    }

    fn size_inner(&mut self, expr: &'p Expr, scope: ScopeId) -> Option<Size> {
        match &expr.kind {
            ExprKind::Number { value, .. } => self.whole(*value, expr.span),
            ExprKind::Name(name) => self.size_of_name(name, expr.span, scope),
            ExprKind::Negate(inner) => {
                let value = self.size(inner, scope)?;
                self.limited(Size::default().checked_sub(&value), expr.span)
            }
            ExprKind::Binary(op, left, right) => {
                // Both sides are read, so that both report their errors.
                let (a, b) = (self.size(left, scope), self.size(right, scope));
                let (a, b) = (a?, b?);
                let result = match op {
                    BinaryOp::Add => a.checked_add(&b),
                    BinaryOp::Sub => a.checked_sub(&b),
                    BinaryOp::Mul => a.checked_mul(&b),
                    BinaryOp::Div => return self.divide(&a, &b, expr),
                    _ => {
                        self.report(wrong_kind(expr.span, "a comparison", "a size"));
                        return None;
                    }
                };
                self.limited(result, expr.span)
            }
            ExprKind::Call { callee, args } if callee.name == "size" => {
                let name = self.axis_argument(args, expr.span)?;
                self.size(name, scope)
            }
            ExprKind::Call { callee, .. }
                if crate::names::NUMBER_FUNCTIONS.contains(&callee.name.as_str()) =>
            {
                let value = self.number(expr, scope)?;
                self.whole(value, expr.span)
            }
            ExprKind::Call { .. } => {
                self.report(wrong_kind(expr.span, "a block", "a size"));
                None
            }
            ExprKind::List(_) => {
                self.report(wrong_kind(expr.span, "a list of blocks", "a size"));
                None
            }
        }
    }

    fn limited(&mut self, size: Option<Size>, span: Span) -> Option<Size> {
        let small = size.filter(Size::is_small);
        if small.is_none() {
            self.report(
                Diag::error(
                    codes::OVER_LIMIT,
                    "the size is too large to compute with",
                    span,
                    "sizes are 64-bit whole numbers or short products of names",
                )
                .with_help("bind it to a smaller number"),
            );
        }
        small
    }

    fn whole(&mut self, value: f64, span: Span) -> Option<Size> {
        // Every whole number up to 2^53 is one f64 and no other.
        if value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0 {
            return Some(Size::constant(value as i64));
        }
        if value.fract() == 0.0 {
            let message = format!("the size {value} is over the limit of 2^53");
            let help = "a size counts elements; beyond 2^53 not every number can be written";
            self.report(Diag::error(codes::OVER_LIMIT, message, span, "too large").with_help(help));
            return None;
        }
        self.report(
            Diag::error(
                codes::NOT_WHOLE,
                format!("a size is a whole number, and this is {value}"),
                span,
                "not a whole number",
            )
            .with_help("a size counts elements: use a whole number"),
        );
        None
    }

    fn divide(&mut self, a: &Size, b: &Size, expr: &'p Expr) -> Option<Size> {
        if let Some(quotient) = a.exact_div(b) {
            return Some(quotient);
        }
        if let (Some(x), Some(y)) = (a.as_constant(), b.as_constant()) {
            let diag = if y == 0 {
                Diag::error(
                    codes::NOT_WHOLE,
                    format!("{x} is divided by 0"),
                    expr.span,
                    "the divisor is 0",
                )
            } else {
                let below = x - x.rem_euclid(y);
                Diag::error(
                    codes::NOT_WHOLE,
                    format!("{x} is not a multiple of {y}"),
                    expr.span,
                    format!("{x} / {y} is {}", x as f64 / y as f64),
                )
                .with_help(format!(
                    "sizes divide exactly: {below} and {} are multiples of {y}",
                    below.saturating_add(y.saturating_abs())
                ))
            };
            self.report(diag);
            return None;
        }
        // Symbolic: take one name of the dividend as a multiple of the divisor, and start again.
        let symbol = a.symbols().find(|s| !b.symbols().any(|t| t == *s)).map(str::to_owned);
        if let Some(symbol) = symbol {
            let known = self.multiples.get(&symbol).cloned().unwrap_or(Size::constant(1));
            if let Some(multiple) = known.checked_mul(b).filter(Size::is_small) {
                self.multiples.insert(symbol, multiple);
                self.retry = true;
            }
        }
        // Where that is not enough, the quotient is a size of its own.
        Some(Size::symbol(format!("({a})/({b})")))
    }

    fn size_of_name(&mut self, name: &str, span: Span, scope: ScopeId) -> Option<Size> {
        match self.lookup(scope, name) {
            Some(Found::Bound(Bound::Axis(axis))) => Some(axis.size),
            Some(Found::Bound(Bound::Number(value))) => self.whole(value, span),
            Some(Found::Bound(bound)) => {
                if let Some(kind) = bound.kind() {
                    self.report(wrong_kind(span, kind_words(kind), "a size"));
                }
                None
            }
            Some(Found::Binding(stage, binding)) => {
                self.check_kind(stage, binding, FormalKind::Number, span)?;
                self.binding_size(stage, binding)
            }
            None => {
                if self.program.block(name).is_some() {
                    self.report(wrong_kind(span, "a block", "a size"));
                } else {
                    self.unknown_name(name, span, scope);
                }
                None
            }
        }
    }

    pub(super) fn binding_size(&mut self, stage: ScopeId, binding: &'p Binding) -> Option<Size> {
        let name = binding.name.name.as_str();
        if let Some(known) = self.stage_scope(stage)?.sizes.get(name) {
            return known.clone();
        }
        if self.stage_scope(stage)?.broken.contains(name) {
            return None;
        }
        let value = self.size(&binding.value, stage);
        self.stage_scope(stage)?.sizes.insert(name, value.clone());
        value
    }

    /// An axis of an argument: the parent's own axis where it is a bare name of one.
    pub(super) fn axis(
        &mut self,
        expr: &'p Expr,
        scope: ScopeId,
        fresh: Origin,
    ) -> Option<AxisValue> {
        if let ExprKind::Name(name) = &expr.kind
            && let Some(found) = self.lookup(scope, name)
        {
            return self.axis_of(found, name, expr.span, scope, fresh);
        }
        let size = self.size(expr, scope)?;
        Some(AxisValue { origin: fresh, size, spelled: None })
    }

    /// A found name as an axis.
    pub(super) fn axis_of(
        &mut self,
        found: Found<'p>,
        name: &str,
        span: Span,
        scope: ScopeId,
        fresh: Origin,
    ) -> Option<AxisValue> {
        match found {
            Found::Bound(Bound::Axis(mut axis)) => {
                axis.spelled = self.block_scope(scope).map(|s| (s, name.to_owned()));
                Some(axis)
            }
            Found::Binding(stage, binding) => {
                let size = self.binding_size(stage, binding)?;
                Some(AxisValue { origin: Origin(stage, name.to_owned()), size, spelled: None })
            }
            Found::Bound(Bound::Number(value)) => {
                let size = self.whole(value, span)?;
                Some(AxisValue { origin: fresh, size, spelled: None })
            }
            Found::Bound(bound) => {
                if let Some(kind) = bound.kind() {
                    self.report(wrong_kind(span, kind_words(kind), "an axis"));
                }
                None
            }
        }
    }

    // Numbers ------------------------------------------------------------------------------

    /// A number expression. The result is finite.
    pub(super) fn number(&mut self, expr: &'p Expr, scope: ScopeId) -> Option<f64> {
        let value = self.deeper(expr.span, |this| this.number_inner(expr, scope))?;
        if value.is_finite() {
            return Some(value);
        }
        // With symbolic sizes as 1, a difference of sizes can be 0 that never is.
        if self.symbolic {
            return Some(1.0);
        }
        self.report(
            Diag::error(
                codes::NOT_A_NUMBER,
                format!("the number comes to {value}"),
                expr.span,
                "not a finite number",
            )
            .with_help("check for a division by 0, or a root or logarithm below 0"),
        );
        None
    }

    fn number_inner(&mut self, expr: &'p Expr, scope: ScopeId) -> Option<f64> {
        match &expr.kind {
            ExprKind::Number { value, .. } => Some(*value),
            ExprKind::Name(name) => self.number_of_name(name, expr.span, scope),
            ExprKind::Negate(inner) => Some(-self.number(inner, scope)?),
            ExprKind::Binary(op, left, right) => {
                let (a, b) = (self.number(left, scope), self.number(right, scope));
                let (a, b) = (a?, b?);
                Some(match op {
                    BinaryOp::Add => a + b,
                    BinaryOp::Sub => a - b,
                    BinaryOp::Mul => a * b,
                    BinaryOp::Div => a / b,
                    _ => {
                        self.report(wrong_kind(expr.span, "a comparison", "a number"));
                        return None;
                    }
                })
            }
            ExprKind::Call { callee, args } => match callee.name.as_str() {
                "size" => {
                    let name = self.axis_argument(args, expr.span)?;
                    let size = self.size(name, scope)?;
                    Some(self.size_as_number(&size))
                }
                "sqrt" | "exp" | "ln" => {
                    let argument = self.one_argument(callee, args)?;
                    let value = self.number(argument, scope)?;
                    Some(match callee.name.as_str() {
                        "sqrt" => value.sqrt(),
                        "exp" => value.exp(),
                        _ => value.ln(),
                    })
                }
                name if self.program.block(name).is_some() => {
                    self.report(wrong_kind(expr.span, "a block", "a number"));
                    None
                }
                _ => {
                    self.report(check::unknown_function(callee));
                    None
                }
            },
            ExprKind::List(_) => {
                self.report(wrong_kind(expr.span, "a list of blocks", "a number"));
                None
            }
        }
    }

    fn size_as_number(&mut self, size: &Size) -> f64 {
        if let Some(value) = size.as_constant() {
            return value as f64;
        }
        self.symbolic = true;
        let ones = size.symbols().map(|s| (s.to_owned(), 1)).collect();
        size.evaluate(&ones).unwrap_or(1) as f64
    }

    fn axis_argument(&mut self, args: &'p [Arg], span: Span) -> Option<&'p Expr> {
        if let [Arg::Value(value @ Expr { kind: ExprKind::Name(_), .. })] = args {
            return Some(value);
        }
        self.report(check::size_form(span));
        None
    }

    fn one_argument(&mut self, callee: &crate::ast::Ident, args: &'p [Arg]) -> Option<&'p Expr> {
        if let [Arg::Value(value)] = args {
            return Some(value);
        }
        self.report(check::one_argument_form(callee, args.len()));
        None
    }

    fn number_of_name(&mut self, name: &str, span: Span, scope: ScopeId) -> Option<f64> {
        match self.lookup(scope, name) {
            Some(Found::Bound(Bound::Number(value))) => Some(value),
            Some(Found::Bound(bound)) => {
                if let Some(kind) = bound.kind() {
                    let diag = wrong_kind(span, kind_words(kind), "a number");
                    self.report(match kind {
                        FormalKind::Axis => diag.with_help(format!("its size is `size({name})`")),
                        _ => diag,
                    });
                }
                None
            }
            Some(Found::Binding(stage, binding)) => {
                self.check_kind(stage, binding, FormalKind::Number, span)?;
                self.binding_number(stage, binding)
            }
            None => {
                if self.program.block(name).is_some() {
                    self.report(wrong_kind(span, "a block", "a number"));
                } else {
                    self.unknown_name(name, span, scope);
                }
                None
            }
        }
    }

    pub(super) fn binding_number(&mut self, stage: ScopeId, binding: &'p Binding) -> Option<f64> {
        let name = binding.name.name.as_str();
        if let Some(known) = self.stage_scope(stage)?.numbers.get(name) {
            return *known;
        }
        if self.stage_scope(stage)?.broken.contains(name) {
            return None;
        }
        let value = self.number(&binding.value, stage);
        self.stage_scope(stage)?.numbers.insert(name, value);
        value
    }

    // Blocks -------------------------------------------------------------------------------

    pub(super) fn block(&mut self, expr: &'p Expr, scope: ScopeId) -> Option<Closure<'p>> {
        self.deeper(expr.span, |this| this.block_inner(expr, scope))
    }

    fn block_inner(&mut self, expr: &'p Expr, scope: ScopeId) -> Option<Closure<'p>> {
        match &expr.kind {
            ExprKind::Name(name) => match self.lookup(scope, name) {
                Some(Found::Bound(Bound::Block(closure))) => Some(closure),
                Some(Found::Bound(bound)) => {
                    if let Some(kind) = bound.kind() {
                        let diag = wrong_kind(expr.span, kind_words(kind), "a block");
                        self.report(diag);
                    }
                    None
                }
                Some(Found::Binding(stage, binding)) => {
                    self.check_kind(stage, binding, FormalKind::Block, expr.span)?;
                    self.binding_block(stage, binding)
                }
                None => {
                    let block = self.definition(name, expr.span, scope)?;
                    Some(Closure { block, args: &[], scope, span: expr.span })
                }
            },
            ExprKind::Call { callee, args } => {
                if self.lookup(scope, &callee.name).is_some() {
                    self.report(check::arguments_to_a_name(callee));
                    return None;
                }
                let block = self.definition(&callee.name, callee.span, scope)?;
                let diags = check::arguments(block, callee, args);
                let fine = diags.is_empty();
                diags.into_iter().for_each(|d| self.report(d));
                fine.then_some(Closure { block, args, scope, span: expr.span })
            }
            ExprKind::List(_) => {
                let diag = wrong_kind(expr.span, "a list of blocks", "a block");
                self.report(diag.with_help("a list goes to a formal of kind `blocks`"));
                None
            }
            _ => {
                self.report(wrong_kind(expr.span, "a number", "a block"));
                None
            }
        }
    }

    fn definition(&mut self, name: &str, span: Span, scope: ScopeId) -> Option<&'p BlockDef> {
        let program = self.program;
        if let Some(def) = program.block(name) {
            return Some(def);
        }
        if program.damaged.contains(name) {
            return None;
        }
        let names = self.names_in(scope);
        let diag = check::unknown_block(program, name, span, names);
        self.report(diag);
        None
    }

    pub(super) fn binding_block(
        &mut self,
        stage: ScopeId,
        binding: &'p Binding,
    ) -> Option<Closure<'p>> {
        let name = binding.name.name.as_str();
        if let Some(known) = self.stage_scope(stage)?.blocks.get(name) {
            return *known;
        }
        if self.stage_scope(stage)?.broken.contains(name) {
            return None;
        }
        let value = self.block(&binding.value, stage);
        self.stage_scope(stage)?.blocks.insert(name, value);
        value
    }

    // Lists --------------------------------------------------------------------------------

    pub(super) fn list(&mut self, expr: &'p Expr, scope: ScopeId) -> Option<Rc<Vec<Closure<'p>>>> {
        self.deeper(expr.span, |this| this.list_inner(expr, scope))
    }

    fn list_inner(&mut self, expr: &'p Expr, scope: ScopeId) -> Option<Rc<Vec<Closure<'p>>>> {
        if let Some(built) = self.built_list(expr, scope, Self::block, Self::list) {
            return built;
        }
        match &expr.kind {
            ExprKind::Name(name) => match self.lookup(scope, name) {
                Some(Found::Bound(Bound::Blocks(list))) => Some(list),
                Some(Found::Binding(stage, binding)) => {
                    self.check_kind(stage, binding, FormalKind::Blocks, expr.span)?;
                    self.binding_list(stage, binding)
                }
                Some(Found::Bound(bound)) => {
                    if let Some(kind) = bound.kind() {
                        self.report(not_a_list(expr.span, kind_words(kind), name));
                    }
                    None
                }
                None if self.program.block(name).is_some() => {
                    self.report(not_a_list(expr.span, "a block", name));
                    None
                }
                None => {
                    self.unknown_name(name, expr.span, scope);
                    None
                }
            },
            ExprKind::Call { callee, .. } => {
                self.report(not_a_list(expr.span, "a block", &format!("{}(...)", callee.name)));
                None
            }
            _ => {
                self.report(wrong_kind(expr.span, "a number", "a list of blocks"));
                None
            }
        }
    }

    /// A list that is written out, joined or repeated; `None` where `expr` is none of these. `one`
    /// evaluates an element, and `all` a list.
    pub(super) fn built_list<T: Copy>(
        &mut self,
        expr: &'p Expr,
        scope: ScopeId,
        one: fn(&mut Self, &'p Expr, ScopeId) -> Option<T>,
        all: fn(&mut Self, &'p Expr, ScopeId) -> Elements<T>,
    ) -> Option<Elements<T>> {
        match &expr.kind {
            ExprKind::List(items) => {
                let elements: Vec<_> = items.iter().map(|item| one(self, item, scope)).collect();
                Some(elements.into_iter().collect::<Option<Vec<_>>>().map(Rc::new))
            }
            ExprKind::Binary(BinaryOp::Add, left, right) => {
                let (a, b) = (all(self, left, scope), all(self, right, scope));
                Some(self.joined(a, b, expr.span))
            }
            ExprKind::Binary(BinaryOp::Mul, left, right) => {
                let count_first = matches!(left.kind, ExprKind::Number { .. });
                let (list, count) = if count_first { (right, left) } else { (left, right) };
                let (list, count) = (all(self, list, scope), self.count(count, scope));
                Some(self.repeated(list, count, expr.span))
            }
            _ => None,
        }
    }

    fn joined<T: Copy>(&mut self, a: Elements<T>, b: Elements<T>, span: Span) -> Elements<T> {
        let (a, b) = (a?, b?);
        self.check_length(a.len() + b.len(), span)?;
        Some(Rc::new(a.iter().chain(b.iter()).copied().collect()))
    }

    fn repeated<T: Copy>(
        &mut self,
        list: Elements<T>,
        count: Option<usize>,
        span: Span,
    ) -> Elements<T> {
        let (list, count) = (list?, count?);
        self.check_length(list.len().saturating_mul(count), span)?;
        let n = list.len() * count;
        Some(Rc::new(list.iter().copied().cycle().take(n).collect()))
    }

    /// How often a list is repeated.
    fn count(&mut self, expr: &'p Expr, scope: ScopeId) -> Option<usize> {
        let size = self.size(expr, scope)?;
        let count = size.as_constant().and_then(|n| usize::try_from(n).ok());
        if count.is_none() {
            self.report(
                Diag::error(
                    codes::NOT_POSITIVE,
                    format!("a list cannot be repeated {size} times"),
                    expr.span,
                    "not a count",
                )
                .with_help("repeat it by a whole number from 0 up"),
            );
        }
        count
    }

    fn check_length(&mut self, n: usize, span: Span) -> Option<()> {
        if n <= MAX_LIST {
            return Some(());
        }
        self.report(Diag::error(
            codes::OVER_LIMIT,
            format!("the list has {n} entries, and the limit is {MAX_LIST}"),
            span,
            "too long",
        ));
        None
    }

    pub(super) fn binding_list(
        &mut self,
        stage: ScopeId,
        binding: &'p Binding,
    ) -> Option<Rc<Vec<Closure<'p>>>> {
        let name = binding.name.name.as_str();
        if let Some(known) = self.stage_scope(stage)?.lists.get(name) {
            return known.clone();
        }
        if self.stage_scope(stage)?.broken.contains(name) {
            return None;
        }
        let value = self.list(&binding.value, stage);
        self.stage_scope(stage)?.lists.insert(name, value.clone());
        value
    }
}

fn not_a_list(span: Span, found: &str, text: &str) -> Diag {
    let diag = wrong_kind(span, found, "a list of blocks");
    if found == "a block" {
        diag.with_help(format!("write `[{text}]` for a list of one block"))
    } else {
        diag
    }
}

/// Adds the nearest of `names` as the fix.
pub(super) fn suggest<'a>(
    diag: Diag,
    name: &str,
    names: impl IntoIterator<Item = &'a str>,
) -> Diag {
    match closest(name, names) {
        Some(near) => diag.with_help(format!("`{near}` exists")),
        None => diag,
    }
}
