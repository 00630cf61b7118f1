//! Blocks with their formals bound, children before parents, equal instances once.

use super::eval::{Resolver, kind_words};
use super::scope::{AxisValue, Bound, Closure, Found, Origin, Scope, ScopeId, StageScope};
use super::{FormalValue, FormalValues, MapDef, Program, Sizes, check};
use crate::ast::{
    Active, Arg, AxisDef, BinaryOp, DType, Expr, ExprKind, Formal, FormalKind, Ident, Member,
    Param, Require, Stack, StorageClause, Sub,
};
use crate::diag::{Diag, codes};
use crate::model::{
    self, Axis, Format, InitLaw, Instance, InstanceId, Integrator, MemberRef, ParamDef, StageModel,
    StateDef, Storage, SubDef, SubKind, TableDef, Target, gate_name,
};
use crate::size::Size;
use crate::source::Span;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Deepest nesting of blocks. A block that contains itself is found here, whatever the path of
/// formals and bindings by which it does.
const MAX_NESTING: usize = 64;
/// Bounds the time of a resolution; a stage of 100 layers takes a few thousand.
const MAX_INSTANTIATIONS: usize = 50_000;
/// How often the sizes of a block that stands alone are multiplied to make divisions exact.
const MAX_RETRIES: usize = 8;

/// Equal keys mean equal instances.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    block: String,
    sizes: BTreeMap<String, Size>,
    numbers: Vec<(String, u64)>,
    subs: Vec<Vec<(InstanceId, BTreeMap<String, String>)>>,
    integrators: Vec<String>,
}

/// A stage with everything bound.
pub(super) fn stage(program: &Program, name: &str, sizes: Sizes) -> Result<StageModel, Vec<Diag>> {
    let mut multiples = BTreeMap::new();
    let mut attempts = 0;
    loop {
        attempts += 1;
        let mut resolver = Resolver::new(program);
        resolver.multiples = std::mem::take(&mut multiples);
        match stage_once(resolver, name, sizes) {
            Attempt::Again(more) if attempts <= MAX_RETRIES => multiples = more,
            Attempt::Again(_) => return Err(Vec::new()),
            Attempt::Done(result) => return result,
        }
    }
}

/// A resolution, or what it has to be repeated with.
enum Attempt {
    Again(BTreeMap<String, Size>),
    Done(Result<StageModel, Vec<Diag>>),
}

fn stage_once(mut resolver: Resolver<'_>, name: &str, sizes: Sizes) -> Attempt {
    let program = resolver.program;
    if program.is_damaged(name) {
        return Attempt::Done(Err(program.errors.clone()));
    }
    let mut bindings = match program.bindings(name) {
        Ok(bindings) => bindings,
        Err(diag) => return Attempt::Done(Err(vec![*diag])),
    };
    let Some(def) = program.stage(name) else {
        return Attempt::Done(Err(Vec::new()));
    };
    let probe = if sizes == Sizes::Bound { BTreeMap::new() } else { program.probe(name) };
    bindings.extend(&probe);
    let broken = resolver.report_cycles(&bindings);
    let model = bindings.get("model").copied();
    let mut stage = StageScope { bindings, broken, ..Default::default() };
    if sizes == Sizes::Symbolic {
        for name in probe.keys() {
            let multiple = resolver.multiples.get(*name).cloned().unwrap_or(Size::constant(1));
            stage.sizes.insert(name, Size::symbol(*name).checked_mul(&multiple));
        }
    }
    let scope = resolver.add(Scope::Stage(stage));
    resolver.check_bindings(scope);
    let Some(model) = model else {
        resolver.diags.push(
            Diag::error(
                codes::NO_MODEL,
                format!("stage `{name}` has no `model`, so it cannot be built"),
                def.ast.name.span,
                "neither this stage nor one it extends binds `model`",
            )
            .with_help("bind it to the root block, as in `model = LanguageModel()`"),
        );
        return Attempt::Done(Err(resolver.failed()));
    };
    let root = resolver
        .binding_block(scope, model)
        .and_then(|closure| resolver.instantiate(closure, scope))
        .map(|target| target.instance);
    if resolver.retry && resolver.diags.is_empty() {
        return Attempt::Again(resolver.multiples);
    }
    let sizes = if resolver.diags.is_empty() { resolver.sizes_of(scope) } else { BTreeMap::new() };
    let result = resolver.finish(name, def.ast.doc.clone(), def.ast.name.span, root);
    Attempt::Done(result.map(|model| StageModel { sizes, ..model }))
}

/// The two sides of a map between blocks.
pub(super) fn blocks(
    program: &Program,
    map: &MapDef,
    values: &FormalValues,
) -> Result<(StageModel, StageModel), Vec<Diag>> {
    let mut multiples = BTreeMap::new();
    let mut attempts = 0;
    loop {
        attempts += 1;
        let (mut sides, mut diags, mut retry) = (Vec::new(), Vec::new(), false);
        for side in [&map.from, &map.to] {
            let mut resolver = Resolver::new(program);
            resolver.multiples = multiples;
            let scope = resolver.formals_of_map(map, values);
            let closure = resolver.block(side, scope);
            let target = closure.and_then(|closure| resolver.instantiate(closure, scope));
            retry |= resolver.retry;
            multiples = resolver.multiples.clone();
            let name = closure.map_or("", |c| c.block.ast.name.name.as_str());
            let root = target.map(|target| target.instance);
            match resolver.finish(name, None, side.span, root) {
                Ok(model) => sides.push(model),
                Err(found) => diags.extend(found),
            }
        }
        if retry && diags.is_empty() && attempts <= MAX_RETRIES {
            continue;
        }
        crate::diag::normalize(&mut diags);
        let mut sides = sides.into_iter();
        return match (sides.next(), sides.next()) {
            (Some(from), Some(to)) => Ok((from, to)),
            _ => Err(diags),
        };
    }
}

/// A block on its own, with symbolic sizes.
pub(super) fn standalone(program: &Program, name: &str) -> Result<StageModel, Vec<Diag>> {
    let Some(def) = program.block(name) else {
        let place = Span { source: program.root, start: 0, end: 0 };
        return Err(vec![check::unknown_block(program, name, place, Vec::new())]);
    };
    let mut multiples = BTreeMap::new();
    let mut attempts = 0;
    loop {
        attempts += 1;
        let mut resolver = Resolver::new(program);
        resolver.multiples = std::mem::take(&mut multiples);
        let scope = resolver.add(Scope::Free);
        let closure = Closure { block: def, args: &[], scope, span: def.ast.name.span };
        let root = resolver.instantiate(closure, scope).map(|target| target.instance);
        if resolver.retry && resolver.diags.is_empty() && attempts <= MAX_RETRIES {
            multiples = resolver.multiples;
            continue;
        }
        return resolver.finish(name, def.ast.doc.clone(), def.ast.name.span, root);
    }
}

impl<'p> Resolver<'p> {
    fn new(program: &'p Program) -> Self {
        Resolver {
            program,
            scopes: Vec::new(),
            instances: Vec::new(),
            known: BTreeMap::new(),
            diags: Vec::new(),
            chain: Vec::new(),
            chain_too_long: false,
            n_instantiated: 0,
            stop: false,
            multiples: BTreeMap::new(),
            retry: false,
            symbolic: false,
            depth: 0,
        }
    }

    fn add(&mut self, scope: Scope<'p>) -> ScopeId {
        self.scopes.push(scope);
        ScopeId(self.scopes.len() - 1)
    }

    /// What to return where there is no model.
    fn failed(mut self) -> Vec<Diag> {
        crate::diag::normalize(&mut self.diags);
        self.diags.retain(|d| !self.program.reported.contains(&(d.code, d.primary.span)));
        if self.diags.is_empty() {
            return self.program.errors.clone();
        }
        self.diags
    }

    fn finish(
        self,
        name: &str,
        doc: Option<String>,
        span: Span,
        root: Option<InstanceId>,
    ) -> Result<StageModel, Vec<Diag>> {
        match root {
            Some(root) if self.diags.is_empty() && self.program.errors.is_empty() => {
                let instances = self.instances;
                let sizes = BTreeMap::new();
                Ok(StageModel { name: name.to_owned(), doc, span, root, sizes, instances })
            }
            _ => Err(self.failed()),
        }
    }

    /// Reads every binding once, so that an error in one that nothing uses is found too.
    fn check_bindings(&mut self, scope: ScopeId) {
        let bindings: Vec<_> = match self.stage_scope(scope) {
            Some(stage) => stage.bindings.values().copied().collect(),
            None => return,
        };
        for binding in bindings {
            let kind = self.kind_of_binding(scope, binding);
            match kind.unwrap_or_else(|| check::likely_kind(&binding.value)) {
                FormalKind::Block => drop(self.binding_block(scope, binding)),
                FormalKind::Blocks => drop(self.binding_list(scope, binding)),
                FormalKind::Numbers => drop(self.binding_numbers(scope, binding)),
                FormalKind::Integrator => drop(self.binding_integrator(scope, binding)),
                _ => drop(self.binding_number(scope, binding)),
            }
        }
    }

    /// The bindings of a stage that are sizes.
    fn sizes_of(&mut self, scope: ScopeId) -> BTreeMap<String, Size> {
        let bindings: Vec<_> = match self.stage_scope(scope) {
            Some(stage) => stage.bindings.values().copied().collect(),
            None => Vec::new(),
        };
        let mut sizes = BTreeMap::new();
        for binding in bindings {
            let kind = self.kind_of_binding(scope, binding);
            if kind == Some(FormalKind::Number)
                && let Some(size) = self.binding_size(scope, binding)
            {
                sizes.insert(binding.name.name.clone(), size);
            }
        }
        // A number that is no size is no error here.
        self.diags.clear();
        sizes
    }

    /// The scope in which the sides of a map between blocks are read.
    fn formals_of_map(&mut self, map: &'p MapDef, values: &FormalValues) -> ScopeId {
        let scope = self.add(Scope::Block(BTreeMap::new()));
        for formal in &map.ast.formals {
            let name = formal.name.name.as_str();
            let fixed = |size: Size| {
                let origin = Origin(scope, name.to_owned());
                Bound::Axis(AxisValue { origin, size, spelled: None })
            };
            let value = match (values.get(name), formal.kind, &formal.default) {
                (Some(FormalValue::Size(size)), FormalKind::Axis, _) => Some(fixed(size.clone())),
                (Some(FormalValue::Number(value)), FormalKind::Number, _) => {
                    Some(Bound::Number(*value))
                }
                (_, FormalKind::Axis, _) => self.symbol(name, scope),
                (_, _, Some(default)) => self.given(formal, default, scope, scope),
                _ => {
                    let kind = kind_words(formal.kind);
                    let message = format!("formal `{name}` takes {kind} and has no default");
                    let diag = Diag::error(codes::NOT_ALONE, message, formal.name.span, "no value");
                    self.report(diag.with_help("give it a default"));
                    None
                }
            };
            self.bind(scope, name, value);
        }
        scope
    }

    /// Bindings that need themselves, by the names in their expressions.
    fn report_cycles(
        &mut self,
        bindings: &BTreeMap<&'p str, &'p crate::ast::Binding>,
    ) -> BTreeSet<&'p str> {
        let mut needs: BTreeMap<&'p str, Vec<&'p str>> = BTreeMap::new();
        for (name, binding) in bindings {
            let mut names = Vec::new();
            check::names_of(&binding.value, &mut names);
            names.retain(|(n, _)| bindings.contains_key(n));
            needs.insert(name, names.into_iter().map(|(n, _)| n).collect());
        }
        // Bindings whose needs are all met fall away; what is left is on a cycle or needs one.
        let mut users: BTreeMap<&'p str, Vec<&'p str>> = BTreeMap::new();
        let mut open: BTreeMap<&'p str, usize> = BTreeMap::new();
        for (&name, names) in &needs {
            open.insert(name, names.len());
            for &used in names {
                users.entry(used).or_default().push(name);
            }
        }
        let is_met = |(name, n): (&&'p str, &usize)| (*n == 0).then_some(*name);
        let mut met: Vec<&'p str> = open.iter().filter_map(is_met).collect();
        while let Some(name) = met.pop() {
            needs.remove(name);
            for &user in users.get(name).map_or(&[][..], Vec::as_slice) {
                if let Some(n) = open.get_mut(user) {
                    *n -= 1;
                    if *n == 0 {
                        met.push(user);
                    }
                }
            }
        }
        let broken: BTreeSet<&'p str> = needs.keys().copied().collect();
        let mut done: BTreeSet<&str> = BTreeSet::new();
        for &start in &broken {
            let mut path: Vec<&'p str> = Vec::new();
            let mut at = start;
            while !done.contains(at) && !path.contains(&at) {
                path.push(at);
                let next =
                    needs.get(at).and_then(|names| names.iter().find(|n| broken.contains(**n)));
                let Some(next) = next else { break };
                at = next;
            }
            if let Some(first) = path.iter().position(|n| *n == at)
                && !done.contains(at)
            {
                self.report_cycle(path.get(first..).unwrap_or_default(), bindings);
            }
            done.extend(path);
        }
        broken
    }

    fn report_cycle(
        &mut self,
        cycle: &[&'p str],
        bindings: &BTreeMap<&'p str, &'p crate::ast::Binding>,
    ) {
        let Some(first) = cycle.first().and_then(|n| bindings.get(n)) else {
            return;
        };
        let arrows: Vec<&str> = cycle.iter().chain(cycle.first()).copied().collect();
        let mut diag = Diag::error(
            codes::BINDING_CYCLE,
            format!("binding `{}` needs itself", first.name.name),
            first.name.span,
            arrows.join(" -> "),
        );
        for name in cycle.iter().skip(1).take(8) {
            if let Some(binding) = bindings.get(name) {
                diag = diag.with_related(binding.name.span, "through this binding");
            }
        }
        self.diags.push(diag.with_help("give one of them a value of its own"));
    }

    /// Instantiates a block for a parent (or for the stage). `None` where that fails.
    pub(super) fn instantiate(&mut self, closure: Closure<'p>, parent: ScopeId) -> Option<Target> {
        let name = closure.block.ast.name.name.as_str();
        if self.stop || self.program.damaged.contains(name) {
            return None;
        }
        self.n_instantiated += 1;
        if self.chain.len() >= MAX_NESTING || self.n_instantiated > MAX_INSTANTIATIONS {
            self.stop = true;
            self.report_endless(closure);
            return None;
        }
        self.chain.push((name, closure.span));
        let target = self.instantiate_inner(closure, parent);
        self.chain.pop();
        target
    }

    fn report_endless(&mut self, closure: Closure<'p>) {
        let name = closure.block.ast.name.name.as_str();
        if self.chain.len() < MAX_NESTING {
            self.diags.push(Diag::error(
                codes::OVER_LIMIT,
                format!("more than {MAX_INSTANTIATIONS} blocks are instantiated"),
                closure.span,
                "this one is too many",
            ));
            return;
        }
        // The last stretch from a block back to itself is the cycle.
        let last = self.chain.iter().rposition(|(block, _)| *block == name);
        let cycle = self.chain.get(last.unwrap_or(0)..).unwrap_or_default();
        let mut path: Vec<&str> = cycle.iter().map(|(block, _)| *block).take(8).collect();
        path.push(name);
        let diag = if last.is_some() {
            Diag::error(
                codes::RECURSION,
                format!("block `{name}` contains itself"),
                closure.span,
                path.join(" -> "),
            )
            .with_help("a block holds other blocks; repetition is a `stack` over a list")
        } else {
            Diag::error(
                codes::RECURSION,
                format!("blocks are nested more than {MAX_NESTING} deep"),
                closure.span,
                "one level too many",
            )
        };
        let diag = diag.with_related(closure.block.ast.name.span, "the block");
        self.diags.push(diag);
    }

    fn instantiate_inner(&mut self, closure: Closure<'p>, parent: ScopeId) -> Option<Target> {
        let block = &closure.block.ast;
        let scope = self.add(Scope::Block(BTreeMap::new()));
        let n_before = self.diags.len();
        self.bind_formals(closure, parent, scope);
        let axes = self.axes_for(block, scope, parent);
        for member in &block.members {
            if let Member::Axis(def) = member {
                self.axis_member(def, scope);
            }
        }
        let mut instance = Instance {
            block: block.name.name.clone(),
            ast: Arc::clone(block),
            sizes: BTreeMap::new(),
            numbers: BTreeMap::new(),
            params: Vec::new(),
            states: Vec::new(),
            tables: Vec::new(),
            subs: Vec::new(),
            order: Vec::new(),
        };
        for member in &block.members {
            self.member(member, scope, &mut instance);
        }
        self.names_of_instance(scope, &mut instance);
        if self.diags.len() > n_before {
            return None;
        }
        Some(Target { instance: self.share(instance), axes })
    }

    fn share(&mut self, instance: Instance) -> InstanceId {
        let subs = instance.subs.iter().map(|sub| match &sub.kind {
            SubKind::One(target) => vec![(target.instance, target.axes.clone())],
            SubKind::Stack(layers) => layers.iter().map(|t| (t.instance, t.axes.clone())).collect(),
        });
        let numbers = instance.numbers.iter().map(|(n, v)| (n.clone(), v.to_bits()));
        let key = Key {
            block: instance.block.clone(),
            sizes: instance.sizes.clone(),
            numbers: numbers.collect(),
            subs: subs.collect(),
            integrators: instance.subs.iter().map(|sub| sub.integrator.to_string()).collect(),
        };
        if let Some(id) = self.known.get(&key) {
            return *id;
        }
        let id = InstanceId(self.instances.len() as u32);
        self.instances.push(instance);
        self.known.insert(key, id);
        id
    }

    fn bind(&mut self, scope: ScopeId, name: &'p str, value: Option<Bound<'p>>) {
        if let Some(Scope::Block(names)) = self.scopes.get_mut(scope.0) {
            names.entry(name).or_insert(value.unwrap_or(Bound::Broken));
        }
    }

    fn bound(&self, scope: ScopeId, name: &str) -> Option<&Bound<'p>> {
        match self.scopes.get(scope.0) {
            Some(Scope::Block(names)) => names.get(name),
            _ => None,
        }
    }

    // Formals ------------------------------------------------------------------------------

    fn bind_formals(&mut self, closure: Closure<'p>, parent: ScopeId, scope: ScopeId) {
        let block = &closure.block.ast;
        let mut defaults = Vec::new();
        for formal in &block.formals {
            let given = closure.args.iter().find_map(|arg| match arg {
                Arg::Named(name, value) if name.name == formal.name.name => Some(value),
                _ => None,
            });
            let value = match (given, &formal.default) {
                (Some(value), _) => self.given(formal, value, closure.scope, scope),
                (None, Some(default)) => {
                    defaults.push((formal, default));
                    continue;
                }
                (None, None) => self.captured(formal, closure, parent, scope),
            };
            self.bind(scope, &formal.name.name, value);
        }
        // Defaults see every formal that got its value otherwise.
        for (formal, default) in defaults {
            let value = match self.given(formal, default, scope, scope) {
                // `m = k` says that m is as long as k, not that the two are one axis.
                Some(Bound::Axis(axis)) => Some(Bound::Axis(AxisValue {
                    origin: Origin(scope, formal.name.name.clone()),
                    spelled: None,
                    ..axis
                })),
                value => value,
            };
            self.bind(scope, &formal.name.name, value);
        }
    }

    /// The value of an argument or default, written in scope `at`.
    fn given(
        &mut self,
        formal: &'p Formal,
        value: &'p Expr,
        at: ScopeId,
        scope: ScopeId,
    ) -> Option<Bound<'p>> {
        let n_before = self.diags.len();
        let bound = match formal.kind {
            FormalKind::Axis => {
                let fresh = Origin(scope, formal.name.name.clone());
                let axis = self.axis(value, at, fresh);
                axis.and_then(|axis| self.positive(axis, &formal.name, value.span)).map(Bound::Axis)
            }
            FormalKind::Number => self.number(value, at).map(Bound::Number),
            FormalKind::Block => self.block(value, at).map(Bound::Block),
            FormalKind::Blocks => self.list(value, at).map(Bound::Blocks),
            FormalKind::Numbers => self.numbers(value, at).map(Bound::Numbers),
            FormalKind::Integrator => self.integrator(value, at).map(Bound::Integrator),
        };
        for diag in self.diags.iter_mut().skip(n_before) {
            if diag.code == codes::WRONG_KIND && diag.primary.span == value.span {
                let text = format!("`{}` takes {}", formal.name.name, kind_words(formal.kind));
                let span = formal.name.span;
                diag.related.insert(0, crate::diag::Label { span, text });
            }
        }
        bound
    }

    /// The value of a formal without argument and default: the same name where the block is
    /// written, or else where it is instantiated.
    fn captured(
        &mut self,
        formal: &'p Formal,
        closure: Closure<'p>,
        parent: ScopeId,
        scope: ScopeId,
    ) -> Option<Bound<'p>> {
        let name = formal.name.name.as_str();
        for at in [closure.scope, parent] {
            if let Some(found) = self.lookup(at, name) {
                return self.captured_value(formal, found, closure, at, scope);
            }
        }
        let free = matches!(self.scopes.get(closure.scope.0), Some(Scope::Free));
        if free && formal.kind == FormalKind::Axis {
            return self.symbol(name, scope);
        }
        self.report_unbound(formal, closure, free);
        None
    }

    fn symbol(&mut self, name: &str, scope: ScopeId) -> Option<Bound<'p>> {
        let symbol = Size::symbol(name);
        let size = match self.multiples.get(name) {
            Some(multiple) => symbol.checked_mul(multiple)?,
            None => symbol,
        };
        let origin = Origin(scope, name.to_owned());
        Some(Bound::Axis(AxisValue { origin, size, spelled: None }))
    }

    fn captured_value(
        &mut self,
        formal: &'p Formal,
        found: Found<'p>,
        closure: Closure<'p>,
        at: ScopeId,
        scope: ScopeId,
    ) -> Option<Bound<'p>> {
        let name = formal.name.name.as_str();
        let span = closure.span;
        let kind = match &found {
            Found::Bound(Bound::Broken) => return None,
            Found::Bound(bound) => bound.kind()?,
            Found::Binding(stage, binding) => {
                self.kind_of_binding(*stage, binding).unwrap_or(formal.kind)
            }
        };
        let scalar = |kind| matches!(kind, FormalKind::Axis | FormalKind::Number);
        // A number serves as an axis; an axis does not serve as a number.
        let fits = kind == formal.kind || (formal.kind == FormalKind::Axis && scalar(kind));
        if !fits {
            self.report_captured_kind(formal, &found, kind, closure);
            return None;
        }
        match (formal.kind, found) {
            (FormalKind::Axis, found) => {
                let place = match &found {
                    Found::Binding(_, binding) => binding.value.span,
                    Found::Bound(_) => span,
                };
                let fresh = Origin(scope, name.to_owned());
                let axis = self.axis_of(found, name, span, at, fresh)?;
                self.positive(axis, &formal.name, place).map(Bound::Axis)
            }
            (FormalKind::Number, Found::Binding(stage, binding)) => {
                self.binding_number(stage, binding).map(Bound::Number)
            }
            (FormalKind::Block, Found::Binding(stage, binding)) => {
                self.binding_block(stage, binding).map(Bound::Block)
            }
            (FormalKind::Blocks, Found::Binding(stage, binding)) => {
                self.binding_list(stage, binding).map(Bound::Blocks)
            }
            (FormalKind::Numbers, Found::Binding(stage, binding)) => {
                self.binding_numbers(stage, binding).map(Bound::Numbers)
            }
            (FormalKind::Integrator, Found::Binding(stage, binding)) => {
                self.binding_integrator(stage, binding).map(Bound::Integrator)
            }
            (_, Found::Bound(bound)) => Some(bound),
        }
    }

    fn report_captured_kind(
        &mut self,
        formal: &Formal,
        found: &Found<'p>,
        kind: FormalKind,
        closure: Closure<'p>,
    ) {
        let name = &formal.name.name;
        let block = &closure.block.ast.name.name;
        let (found_words, wanted) = (kind_words(kind), kind_words(formal.kind));
        let mut diag = Diag::error(
            codes::WRONG_KIND,
            format!("`{block}` takes {wanted} as `{name}`, and `{name}` is {found_words} here"),
            closure.span,
            format!("takes `{name}` from around it"),
        )
        .with_related(formal.name.span, format!("takes {wanted}"));
        if let Found::Binding(_, binding) = found {
            diag = diag.with_related(binding.name.span, format!("this is {found_words}"));
        }
        self.report(diag.with_help(format!("give it as an argument: `{name}: ...`")));
    }

    fn report_unbound(&mut self, formal: &Formal, closure: Closure<'p>, free: bool) {
        let name = &formal.name.name;
        let block = &closure.block.ast.name.name;
        let diag = if free {
            Diag::error(
                codes::NOT_ALONE,
                format!(
                    "block `{block}` cannot stand alone: its formal `{name}` takes {}",
                    kind_words(formal.kind)
                ),
                formal.name.span,
                "has no default",
            )
            .with_help("use it in a stage, or give the formal a default")
        } else {
            Diag::error(
                codes::UNBOUND,
                format!("`{name}` of block `{block}` has no value"),
                closure.span,
                format!("no argument `{name}`, and no `{name}` around it"),
            )
            .with_related(formal.name.span, format!("takes {}", kind_words(formal.kind)))
            .with_help(format!(
                "give `{name}: ...` here, or bind `{name}` in the stage or block around it"
            ))
        };
        self.report(diag);
    }

    fn positive(&mut self, axis: AxisValue, name: &Ident, span: Span) -> Option<AxisValue> {
        match axis.size.as_constant() {
            Some(size) if size < 1 => {
                self.report(
                    Diag::error(
                        codes::NOT_POSITIVE,
                        format!("axis `{}` has size {size}", name.name),
                        span,
                        format!("this is {size}"),
                    )
                    .with_related(name.span, "the axis")
                    .with_help("a size is at least 1"),
                );
                None
            }
            _ => Some(axis),
        }
    }

    /// Which axis of the parent each axis formal is.
    fn axes_for(
        &self,
        block: &'p crate::ast::Block,
        scope: ScopeId,
        parent: ScopeId,
    ) -> BTreeMap<String, String> {
        let mut axes = BTreeMap::new();
        let Some(parent) = self.block_scope(parent) else {
            return axes;
        };
        for formal in &block.formals {
            let name = formal.name.name.as_str();
            if let Some(Bound::Axis(axis)) = self.bound(scope, name)
                && let Some(outer) = self.name_in_parent(axis, name, parent)
            {
                axes.insert(name.to_owned(), outer);
            }
        }
        axes
    }

    fn name_in_parent(&self, axis: &AxisValue, formal: &str, parent: ScopeId) -> Option<String> {
        if let Some((scope, name)) = &axis.spelled
            && *scope == parent
        {
            return Some(name.clone());
        }
        let same = |bound: &Bound<'p>| matches!(bound, Bound::Axis(a) if a.origin == axis.origin);
        if self.bound(parent, formal).is_some_and(same) {
            return Some(formal.to_owned());
        }
        match self.scopes.get(parent.0) {
            Some(Scope::Block(names)) => {
                names.iter().find(|(_, bound)| same(bound)).map(|(name, _)| (*name).to_owned())
            }
            _ => None,
        }
    }

    // Members ------------------------------------------------------------------------------

    fn axis_member(&mut self, def: &'p AxisDef, scope: ScopeId) {
        let name = def.name.name.as_str();
        let size = self.size(&def.size, scope);
        let axis = size.and_then(|size| {
            let axis = AxisValue { origin: Origin(scope, name.to_owned()), size, spelled: None };
            self.positive(axis, &def.name, def.size.span)
        });
        self.bind(scope, name, axis.map(Bound::Axis));
    }

    fn member(&mut self, member: &'p Member, scope: ScopeId, instance: &mut Instance) {
        match member {
            Member::Param(param) => {
                if let Some(param) = self.param(param, scope) {
                    instance.order.push(MemberRef::Param(instance.params.len()));
                    instance.params.push(param);
                }
            }
            Member::State(state) => {
                let axes = self.axes(&state.axes, scope);
                let start = self.number(&state.start, scope);
                if let (Some(axes), Some(start)) = (axes, start) {
                    let (name, span) = (state.name.name.clone(), state.span);
                    instance.states.push(StateDef { name, axes, start, span });
                }
            }
            Member::Table(table) => {
                if let Some(axes) = self.axes(&table.axes, scope) {
                    let (name, from) = (table.name.name.clone(), table.from.value.clone());
                    instance.tables.push(TableDef { name, axes, from, span: table.span });
                }
            }
            Member::Sub(sub) => {
                let target = self.sub(sub, scope);
                if let Some(target) = target {
                    let kind = SubKind::One(target);
                    push_sub(instance, &sub.name, kind, Integrator::Plain, sub.span);
                    if let Some(def) = instance.subs.last_mut() {
                        def.training_only = sub.training_only;
                    }
                }
            }
            Member::Stack(stack) => {
                // Both are read, so that both report their errors.
                let how = stack.integrator.as_ref().map(|how| self.integrator(how, scope));
                let layers = self.stack(stack, scope);
                let (Some(layers), None | Some(Some(_))) = (layers, &how) else { return };
                let Some(how) = self.stack_integrator(stack, how.flatten(), &layers) else {
                    return;
                };
                let gates = gates(stack, &how);
                push_sub(instance, &stack.name, SubKind::Stack(layers), how, stack.span);
                for gate in gates {
                    instance.order.push(MemberRef::Param(instance.params.len()));
                    instance.params.push(gate);
                }
            }
            Member::Require(require) => self.require(require, scope),
            Member::Axis(_) | Member::Forward(_) => {}
        }
    }

    fn sub(&mut self, sub: &'p Sub, scope: ScopeId) -> Option<Target> {
        let closure = self.block(&sub.block, scope)?;
        self.instantiate(closure, scope)
    }

    fn stack(&mut self, stack: &'p Stack, scope: ScopeId) -> Option<Vec<Target>> {
        let list = self.list(&stack.list, scope)?;
        let mut layers = Vec::with_capacity(list.len());
        for item in list.iter() {
            let name = stack.item.name.as_str();
            let layer_scope = self.add(Scope::Item { parent: scope, name, value: *item });
            let closure = self.block(&stack.block, layer_scope)?;
            layers.push(self.instantiate(closure, layer_scope));
        }
        layers.into_iter().collect()
    }

    fn axes(&mut self, names: &'p [Ident], scope: ScopeId) -> Option<Vec<Axis>> {
        let mut axes = Vec::with_capacity(names.len());
        let mut fine = true;
        for name in names {
            match self.lookup(scope, &name.name) {
                Some(Found::Bound(Bound::Axis(axis))) => {
                    axes.push(Axis { name: name.name.clone(), size: axis.size });
                }
                Some(Found::Bound(Bound::Broken)) => fine = false,
                _ => {
                    let known = self.axis_names(scope);
                    self.report(check::unknown_axis(name, known));
                    fine = false;
                }
            }
        }
        fine.then_some(axes)
    }

    fn axis_names(&self, scope: ScopeId) -> Vec<&'p str> {
        match self.scopes.get(scope.0) {
            Some(Scope::Block(names)) => names
                .iter()
                .filter(|(_, bound)| matches!(bound, Bound::Axis(_)))
                .map(|(name, _)| *name)
                .collect(),
            _ => Vec::new(),
        }
    }

    fn param(&mut self, param: &'p Param, scope: ScopeId) -> Option<ParamDef> {
        let axes = self.axes(&param.axes, scope);
        let init = self.init(param, scope);
        let storage = self.storage(param);
        let active = param.active.as_ref().map(|active| self.active(param, active, scope));
        Some(ParamDef {
            name: param.name.name.clone(),
            doc: param.doc.clone(),
            axes: axes?,
            dtype: param.dtype.unwrap_or(DType::Act),
            init: init?,
            storage: storage?,
            active: active.map_or(Some(None), |active| active.map(Some))?,
            span: param.span,
        })
    }

    fn storage(&mut self, param: &Param) -> Option<Storage> {
        Some(match &param.storage {
            None => Storage::Trained,
            Some(StorageClause::Frozen(reason)) => Storage::Frozen(reason.value.clone()),
            Some(StorageClause::Adapter(_)) => Storage::Adapter,
            // What does not fit was said when the definition was checked.
            Some(StorageClause::Quantized(name)) => {
                Storage::Quantized(Format::from_word(&name.name)?)
            }
        })
    }

    fn active(
        &mut self,
        param: &Param,
        active: &'p Active,
        scope: ScopeId,
    ) -> Option<model::Active> {
        let count = self.size(&active.count, scope)?;
        let Some(Found::Bound(Bound::Axis(axis))) = self.lookup(scope, &active.of.name) else {
            return None;
        };
        if let (Some(n), Some(all)) = (count.as_constant(), axis.size.as_constant())
            && !(1..=all).contains(&n)
        {
            let of = &active.of.name;
            self.report(
                Diag::error(
                    codes::ACTIVE_COUNT,
                    format!(
                        "{n} positions of `{of}` are active in `{}`, and it has {all}",
                        param.name.name
                    ),
                    active.count.span,
                    format!("this is {n}"),
                )
                .with_related(active.of.span, format!("has {all} positions"))
                .with_help(format!("let between 1 and {all} positions work for one token")),
            );
            return None;
        }
        Some(model::Active { count, of: active.of.name.clone() })
    }

    /// Checks a `require` where every size in it is bound.
    fn require(&mut self, require: &'p Require, scope: ScopeId) {
        for condition in &require.conditions {
            let ExprKind::Binary(op, left, right) = &condition.kind else { continue };
            let before = std::mem::replace(&mut self.symbolic, false);
            let (a, b) = (self.number(left, scope), self.number(right, scope));
            let symbolic = self.symbolic;
            self.symbolic = before || symbolic;
            let (Some(a), Some(b), false) = (a, b, symbolic) else { continue };
            let holds = match op {
                BinaryOp::Less => a < b,
                BinaryOp::LessEqual => a <= b,
                BinaryOp::Greater => a > b,
                BinaryOp::GreaterEqual => a >= b,
                _ => true,
            };
            if !holds {
                let word = comparison_word(*op);
                self.report(
                    Diag::error(
                        codes::REQUIREMENT,
                        format!("a requirement does not hold: {}", require.reason.value),
                        condition.span,
                        format!("here this is {} {word} {}", rounded(a), rounded(b)),
                    )
                    .with_help("change the sizes or numbers of the instance so that it holds"),
                );
            }
        }
    }

    fn init(&mut self, param: &'p Param, scope: ScopeId) -> Option<InitLaw> {
        let init = &param.init;
        if let Some(diag) = check::init(init) {
            self.report(diag);
            return None;
        }
        let args: Vec<Option<f64>> = init.args.iter().map(|a| self.number(a, scope)).collect();
        let args = args.into_iter().collect::<Option<Vec<f64>>>()?;
        let law = match (init.name.name.as_str(), args.as_slice()) {
            ("zeros", _) => InitLaw::Zeros,
            ("ones", _) => InitLaw::Ones,
            ("constant", &[value]) => InitLaw::Constant { value },
            ("normal", &[std]) => InitLaw::Normal { std },
            ("uniform", &[low, high]) => InitLaw::Uniform { low, high },
            ("log_uniform", &[low, high]) => InitLaw::LogUniform { low, high },
            _ => return None,
        };
        if let Some(diag) = check_law(&law, init) {
            self.report(diag);
            return None;
        }
        Some(law)
    }

    fn names_of_instance(&self, scope: ScopeId, instance: &mut Instance) {
        let Some(Scope::Block(names)) = self.scopes.get(scope.0) else {
            return;
        };
        for (name, bound) in names {
            match bound {
                Bound::Axis(axis) => {
                    instance.sizes.insert((*name).to_owned(), axis.size.clone());
                }
                Bound::Number(value) => {
                    instance.numbers.insert((*name).to_owned(), *value);
                }
                _ => {}
            }
        }
    }
}

fn comparison_word(op: BinaryOp) -> &'static str {
    match op {
        BinaryOp::Less => "<",
        BinaryOp::LessEqual => "<=",
        BinaryOp::Greater => ">",
        _ => ">=",
    }
}

fn push_sub(
    instance: &mut Instance,
    name: &Ident,
    kind: SubKind,
    integrator: Integrator,
    span: Span,
) {
    instance.order.push(MemberRef::Sub(instance.subs.len()));
    let name = name.name.clone();
    instance.subs.push(SubDef { name, kind, integrator, training_only: false, span });
}

/// The trained scalars on the forces of a stack's layers.
fn gates(stack: &Stack, integrator: &Integrator) -> Vec<ParamDef> {
    let Integrator::Midpoint(midpoint) = integrator else { return Vec::new() };
    let gate = |(layer, step): (usize, &crate::model::Step)| {
        let start = step.gate?;
        let init = if start == 0.0 { InitLaw::Zeros } else { InitLaw::Constant { value: start } };
        Some(ParamDef {
            name: gate_name(&stack.name.name, layer),
            doc: Some(format!("Multiplies the force of layer {layer} of `{}`.", stack.name.name)),
            axes: Vec::new(),
            dtype: DType::F32,
            init,
            storage: Storage::Trained,
            active: None,
            span: stack.span,
        })
    };
    midpoint.steps.iter().enumerate().filter_map(gate).collect()
}

/// A number to twelve digits: `0.02 * 460` is 9.2 to a reader.
fn rounded(value: f64) -> f64 {
    format!("{value:.11e}").parse().unwrap_or(value)
}

/// Numbers that no distribution can have.
fn check_law(law: &InitLaw, init: &crate::ast::Init) -> Option<Diag> {
    let message = match law {
        InitLaw::Normal { std } if *std < 0.0 => {
            format!("the standard deviation of an init is {std}, which is below 0")
        }
        InitLaw::Uniform { low, high } | InitLaw::LogUniform { low, high } if low >= high => {
            format!("the range of an init goes from {low} to {high}, which is empty")
        }
        InitLaw::LogUniform { low, .. } if *low < 0.0 => {
            format!("a log_uniform init starts at {low}, and a logarithm starts at 0")
        }
        _ => return None,
    };
    let first = init.args.first().map_or(init.name.span, |a| a.span);
    let last = init.args.last().map_or(init.name.span, |a| a.span);
    let span = Span { end: last.end, ..first };
    Some(Diag::error(codes::INIT_ARGUMENTS, message, span, "these values"))
}
