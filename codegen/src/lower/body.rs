//! Forward bodies: statements and expressions.

use super::builtins;
use super::mentions::mentions;
use super::scope::{size_of, unknown_axis_message};
use super::{Lowerer, at, declare, forward_of, pattern_text};
use crate::ir::{FuncId, Function, Output, PENALTIES, Type, ValueId, has_penalties};
use crate::ops::{
    Affine, Binary, BinaryFn, Call, Cast, Const, IndexAffine, IndexBinary, IndexFn, Input, Op,
    ParamRef, Permute, Stack, StateRef, TableRef, TypeError,
};
use lightc_dsl::ast::{self, AxisPattern, BinaryOp, DType, Expr, ExprKind, Stmt};
use lightc_dsl::diag::Diag;
use lightc_dsl::model::{Axis, Instance, Integrator, SubKind, Target, gate_name};
use lightc_dsl::size::Size;
use lightc_dsl::source::Span;
use std::collections::{BTreeMap, BTreeSet};

/// What an expression is: a number that is known, or a value of the graph.
#[derive(Clone, Copy, Debug)]
pub(super) enum Item {
    /// Known when compiling; takes the precision class of what it meets.
    Number(f64),
    /// Computed.
    Value(ValueId),
}

/// One forward body while it is lowered.
pub(super) struct Body<'l, 'm> {
    pub(super) lowerer: &'l mut Lowerer<'m>,
    pub(super) instance: Instance,
    pub(super) function: Function,
    /// Axes in scope with their sizes.
    pub(super) axes: BTreeMap<String, Size>,
    /// Where axes are declared: formals, members, inputs, statements.
    axis_places: BTreeMap<String, Span>,
    /// Axes whose declaration failed.
    failed_axes: BTreeSet<String>,
    /// Members that a misspelt name most likely means.
    meant: BTreeSet<String>,
    /// States that are updated, and where.
    updated: BTreeMap<usize, Span>,
    /// Values and numbers in scope. `None` where the definition failed.
    values: BTreeMap<String, (Option<Item>, Span)>,
    used: BTreeMap<String, bool>,
    /// Penalties so far that `penalties()` has not taken: this body's and those of its calls.
    penalties: Vec<ValueId>,
    /// Where penalties of this body are named.
    penalty_names: BTreeMap<String, Span>,
}

impl Lowerer<'_> {
    /// Lowers the forward of an instance for given input types.
    pub(super) fn lower_body(&mut self, instance: &Instance, types: &[Type]) -> Option<Function> {
        let forward = forward_of(instance)?.clone();
        let function = declare(instance);
        let before = self.failures;
        let mut body = Body {
            lowerer: self,
            instance: instance.clone(),
            function,
            axes: instance.sizes.clone(),
            axis_places: axis_places(instance),
            failed_axes: BTreeSet::new(),
            meant: BTreeSet::new(),
            updated: BTreeMap::new(),
            values: BTreeMap::new(),
            used: BTreeMap::new(),
            penalties: Vec::new(),
            penalty_names: BTreeMap::new(),
        };
        body.inputs(&forward, types);
        for statement in &forward.body {
            body.statement(statement);
        }
        body.result(&forward);
        body.hand_up_penalties(forward.span);
        let failed = body.lowerer.failures > before;
        body.check_used(&forward, failed);
        Some(body.function)
    }
}

impl Body<'_, '_> {
    pub(super) fn report(&mut self, diag: Diag) {
        let follows = |axis: &String| diag.message == unknown_axis_message(axis);
        if diag.code == "E0407" && self.failed_axes.iter().any(follows) {
            // What is wrong with the axis is said where it is declared.
            self.lowerer.failures += 1;
            return;
        }
        self.lowerer.report(diag);
    }

    /// Records a rule's error at a place; the value is then missing.
    pub(super) fn keep<T>(&mut self, result: Result<T, TypeError>, span: Span) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.report(at(error, span));
                None
            }
        }
    }

    fn inputs(&mut self, forward: &ast::Forward, types: &[Type]) {
        for (port, ty) in forward.inputs.iter().zip(types) {
            let Some(name) = &port.name else { continue };
            for axis in &ty.axes {
                self.axes.entry(axis.name.clone()).or_insert_with(|| axis.size.clone());
            }
            let op = Input { name: name.name.clone() };
            let values =
                self.function.push_typed(op.into(), vec![], vec![ty.clone()], Some(name.span));
            for value in values {
                self.function.name_value(value, &name.name);
                self.bind(&name.name, Some(Item::Value(value)), name.span);
            }
        }
    }

    fn bind(&mut self, name: &str, item: Option<Item>, span: Span) {
        let declared = self.declared_span(name);
        let before = self.values.get(name).map(|(_, span)| *span).or(declared);
        if let Some(before) = before {
            self.report(
                Diag::error(
                    "E0409",
                    format!("value `{name}` is bound twice in one block"),
                    span,
                    "bound again here",
                )
                .with_related(before, "first bound here")
                .with_help("give the second value a name of its own"),
            );
            return;
        }
        self.values.insert(name.to_owned(), (item, span));
    }

    /// Where a parameter, state, table or number formal of that name is declared.
    fn declared_span(&self, name: &str) -> Option<Span> {
        let params = self.instance.params.iter().map(|p| (&p.name, p.span));
        let states = self.instance.states.iter().map(|s| (&s.name, s.span));
        let tables = self.instance.tables.iter().map(|t| (&t.name, t.span));
        let mut all = params.chain(states).chain(tables);
        all.find(|(known, _)| *known == name).map(|(_, span)| span)
    }

    fn statement(&mut self, statement: &Stmt) {
        match statement {
            Stmt::Axis(def) => self.axis(def),
            Stmt::Let { targets, value } => self.bind_targets(targets, value),
            Stmt::Update { name, value } => self.update(name, value),
            Stmt::Penalty { name, value } => self.penalty(name, value),
        }
    }

    fn penalty(&mut self, name: &ast::Ident, value: &Expr) {
        if let Some(before) = self.penalty_names.insert(name.name.clone(), name.span) {
            let message = format!("penalty `{}` is named twice", name.name);
            self.report(
                Diag::error("E0409", message, name.span, "named again here")
                    .with_related(before, "first named here")
                    .with_help("give the second penalty a name of its own, or join the two"),
            );
            return;
        }
        let Some(item) = self.item(value) else { return };
        let Some(number) = self.value_of(item, DType::F32, value.span) else { return };
        let ty = self.function.ty(number).clone();
        if !ty.axes.is_empty() || !ty.is_float() {
            let message = format!("penalty `{}` is {ty}, but a penalty is one number", name.name);
            self.report(
                Diag::error("E0441", message, value.span, "not one number")
                    .with_help("reduce it over its axes, as `mean(x, over (b, t))` does"),
            );
            return;
        }
        let Some(wide) = self.cast(number, DType::F32, value.span) else { return };
        self.function.name_value(wide, &name.name);
        self.penalties.push(wide);
    }

    /// The sum of the penalties that nothing has taken yet; 0 where there are none.
    pub(super) fn take_penalties(&mut self, span: Span) -> Option<Item> {
        let mut parts = std::mem::take(&mut self.penalties).into_iter();
        let Some(mut total) = parts.next() else { return Some(Item::Number(0.0)) };
        for part in parts {
            total = self.push(Binary { function: BinaryFn::Add }, vec![total, part], span)?;
        }
        Some(Item::Value(total))
    }

    /// What is not taken here is a further output, which the caller adds to its own.
    fn hand_up_penalties(&mut self, span: Span) {
        if let Some(Item::Value(value)) = self.take_penalties(span) {
            let name = Some(PENALTIES.to_owned());
            self.function.outputs.push(Output { name, value });
        }
    }

    fn axis(&mut self, def: &ast::AxisDef) {
        let name = &def.name.name;
        if let Some(size) = self.axes.get(name) {
            let message = format!("axis `{name}` is already in scope, with size {size}");
            let diag = Diag::error("E0406", message, def.name.span, "declared again here");
            let diag = match self.axis_places.get(name) {
                Some(place) => diag.with_related(*place, "declared here"),
                None => diag,
            };
            self.report(diag.with_help("give the second axis a name of its own"));
            return;
        }
        let size = size_of(&def.size, &self.axes);
        match self.keep(size, def.size.span) {
            Some(size) => {
                self.axes.insert(name.clone(), size);
                self.axis_places.insert(name.clone(), def.name.span);
            }
            None => {
                self.failed_axes.insert(name.clone());
            }
        }
    }

    fn bind_targets(&mut self, targets: &[ast::Target], value: &Expr) {
        let items = self.several(value, targets.len(), "names are bound");
        for (position, target) in targets.iter().enumerate() {
            let item = items.as_ref().and_then(|items| items.get(position).copied());
            let item = match (&target.axes, item) {
                (Some(pattern), Some(item)) => self.stated_axes(item, pattern, value.span),
                (_, item) => item,
            };
            if let Some(Item::Value(value)) = item {
                self.function.name_value(value, &target.name.name);
            }
            self.bind(&target.name.name, item, target.name.span);
            self.used.insert(target.name.name.clone(), false);
        }
    }

    /// The values of an expression that stands for `count` of them, which `names are bound` to or
    /// `outputs are declared` for.
    fn several(&mut self, expr: &Expr, count: usize, are: &str) -> Option<Vec<Item>> {
        if count == 1 {
            return self.item(expr).map(|item| vec![item]);
        }
        let (what, values) = match &expr.kind {
            ExprKind::Call { callee, args } if self.sub_index(&callee.name).is_some() => {
                (format!("`{}`", callee.name), self.sub_call(callee, args, expr.span)?)
            }
            _ => {
                // What is in it is checked all the same.
                let _ = self.item(expr)?;
                ("the expression".to_owned(), Vec::new())
            }
        };
        if values.len() == count {
            return Some(values.into_iter().map(Item::Value).collect());
        }
        let gives = values.len().max(1);
        let message = format!("{count} {are}, but {what} gives {gives}");
        let help = match are {
            "names are bound" => format!("bind {gives}, or use a sub-block of {count} outputs"),
            _ => "list the values: `(a, b)`".to_owned(),
        };
        let label = if gives == 1 { "one value" } else { "this call" };
        self.report(Diag::error("E0408", message, expr.span, label).with_help(help));
        None
    }

    /// Checks stated axes as a set and brings the value into the stated order.
    fn stated_axes(&mut self, item: Item, pattern: &AxisPattern, from: Span) -> Option<Item> {
        let value = self.value_of(item, DType::Act, from)?;
        self.ordered(value, pattern, "stated", from).map(Item::Value)
    }

    /// The value in the order of a pattern, which is `stated` or `declared`.
    fn ordered(
        &mut self,
        value: ValueId,
        pattern: &AxisPattern,
        how: &str,
        from: Span,
    ) -> Option<ValueId> {
        let ty = self.function.ty(value).clone();
        let stated: Vec<String> = pattern.axes.iter().map(|axis| axis.name.clone()).collect();
        let missing = stated.iter().find(|name| !ty.has(name));
        let rest: Vec<String> =
            ty.names().into_iter().filter(|name| !stated.contains(name)).collect();
        if missing.is_some() || (!pattern.open && !rest.is_empty()) {
            let what = if how == "stated" { "value" } else { "result" };
            let message = format!("the {what} is {ty}, but [{}] is {how}", pattern_text(pattern));
            let help = match missing {
                Some(name) => format!("it lacks `{name}`: correct the axes, or the expression"),
                None => format!(
                    "it has `{}` besides: correct the axes, or reduce the {what} over them",
                    rest.join("`, `")
                ),
            };
            self.report(
                Diag::error("E0401", message, pattern.span, format!("{how} here"))
                    .with_related(from, ty.to_string())
                    .with_help(help),
            );
            return None;
        }
        let order: Vec<String> = rest.into_iter().chain(stated).collect();
        self.permuted(value, &order, pattern.span)
    }

    /// The value with its axes in the given order.
    pub(super) fn permuted(
        &mut self,
        value: ValueId,
        order: &[String],
        span: Span,
    ) -> Option<ValueId> {
        if self.function.ty(value).names() == order {
            return Some(value);
        }
        self.push(Permute { order: order.to_vec() }, vec![value], span)
    }

    fn update(&mut self, name: &ast::Ident, value: &Expr) {
        let Some(index) = self.instance.states.iter().position(|s| s.name == name.name) else {
            let message = format!("`{}` is not a state of this block", name.name);
            self.report(
                Diag::error("E0407", message, name.span, "not a state")
                    .with_help(format!("declare it with `state {}[] = 0`", name.name)),
            );
            return;
        };
        if let Some(before) = self.updated.insert(index, name.span) {
            let message = format!("state `{}` is updated twice", name.name);
            self.report(
                Diag::error("E0409", message, name.span, "updated again here")
                    .with_related(before, "first updated here")
                    .with_help("a state takes one value per step: join the two updates"),
            );
            return;
        }
        let Some(item) = self.item(value) else { return };
        let Some(value_id) = self.value_of(item, DType::F32, value.span) else { return };
        let Some(wide) = self.cast(value_id, DType::F32, value.span) else { return };
        let Some(state) = self.function.states.get(index).cloned() else { return };
        let has = self.function.ty(wide).clone();
        let same = has.axes.len() == state.ty.axes.len()
            && state.ty.axes.iter().all(|axis| has.axes.contains(axis));
        if !same {
            let message =
                format!("state `{}` is {}, but its next value is {has}", name.name, state.ty);
            let diag = Diag::error("E0402", message, value.span, "its next value");
            let diag = match state.span {
                Some(span) => diag.with_related(span, "declared here"),
                None => diag,
            };
            self.report(
                diag.with_help(
                    "bring the value to the axes of the state, as `mean(x, over b)` does",
                ),
            );
            return;
        }
        let Some(wide) = self.permuted(wide, &state.ty.names(), value.span) else { return };
        self.function.updates.push((index, wide));
    }

    fn result(&mut self, forward: &ast::Forward) {
        let items = if forward.result.len() == 1 && forward.outputs.len() > 1 {
            forward
                .result
                .first()
                .and_then(|expr| self.several(expr, forward.outputs.len(), "outputs are declared"))
        } else if forward.result.len() != forward.outputs.len() {
            let message = format!(
                "the forward declares {} outputs, but its result has {}",
                forward.outputs.len(),
                forward.result.len()
            );
            self.report(
                Diag::error("E0408", message, forward.span, "declared here")
                    .with_help("the last line gives one value per output: `(a, b)`"),
            );
            return;
        } else {
            let items: Vec<Option<Item>> = forward.result.iter().map(|e| self.item(e)).collect();
            items.into_iter().collect()
        };
        let Some(items) = items else { return };
        for (position, (port, item)) in forward.outputs.iter().zip(items).enumerate() {
            let span = forward.result.get(position).map_or(forward.span, |expr| expr.span);
            let Some(value) = self.value_of(item, DType::Act, span) else { continue };
            let Some(value) = self.output(port, value, span) else { continue };
            let name = port.name.as_ref().map(|name| name.name.clone());
            self.function.outputs.push(Output { name, value });
        }
    }

    fn output(&mut self, port: &ast::Port, value: ValueId, span: Span) -> Option<ValueId> {
        let value = self.ordered(value, &port.axes, "declared", span)?;
        let ty = self.function.ty(value).clone();
        match port.dtype {
            Some(DType::F32) if ty.dtype == DType::Act => self.cast(value, DType::F32, span),
            Some(wanted) if wanted != ty.dtype => {
                let word = crate::ir::types::dtype_word(wanted);
                let message = format!("the output is declared {word}, but the result is {ty}");
                let help = match wanted {
                    DType::Act => "narrow it with `act(..)`, which says that precision is given up",
                    DType::F32 => "`f32(..)` converts whole numbers, `where(c, 1, 0)` truth values",
                    DType::Index | DType::Bool => {
                        "declare the output's class as that of the result"
                    }
                };
                self.report(
                    Diag::error("E0404", message, span, "the result")
                        .with_related(port.axes.span, "declared here")
                        .with_help(help),
                );
                None
            }
            _ => Some(value),
        }
    }

    /// Every bound name and every declared member must be used. In a body with other errors a
    /// use may have been passed over, so there it counts whether the source mentions the name.
    fn check_used(&mut self, forward: &ast::Forward, failed: bool) {
        let mut mentioned = if failed { mentions(forward) } else { BTreeSet::new() };
        let meant = std::mem::take(&mut self.meant);
        mentioned.extend(meant.iter().map(String::as_str));
        let unused: Vec<(String, Span)> = self
            .used
            .iter()
            .filter(|(name, used)| !**used && !mentioned.contains(name.as_str()))
            .filter_map(|(name, _)| match self.values.get(name)? {
                (Some(_), span) => Some((name.clone(), *span)),
                (None, _) => None,
            })
            .collect();
        for (name, span) in unused {
            let message = format!("value `{name}` is never used");
            self.report(
                Diag::error("E0410", message, span, "computed for nothing")
                    .with_help("use it or remove it"),
            );
        }
        for diag in self.unused_members(&mentioned) {
            self.report(diag);
        }
    }

    /// One diagnostic per declared member that nothing reads.
    fn unused_members(&self, mentioned: &BTreeSet<&str>) -> Vec<Diag> {
        let nodes = &self.function.nodes;
        let has = |found: &dyn Fn(&Op) -> bool| nodes.iter().any(|node| found(&node.op));
        let mut diags = Vec::new();
        let mut report = |what: &str, name: &str, span: Span, label: &str| {
            if !mentioned.contains(name) {
                let (past, verb) = match what {
                    "sub-block" => ("called", "call"),
                    _ => ("used", "use"),
                };
                let message = format!("{what} `{name}` is never {past}");
                diags.push(
                    Diag::error("E0504", message, span, label)
                        .with_help(format!("{verb} it in the forward or remove it")),
                );
            }
        };
        for (index, param) in self.instance.params.iter().enumerate() {
            // The gates of a stack are read where it is called.
            let is_gate = param.name.contains('.');
            if !is_gate && !has(&|op| matches!(op, Op::ParamRef(p) if p.index == index)) {
                report("parameter", &param.name, param.span, "stored, but read by nothing");
            }
        }
        for (index, state) in self.instance.states.iter().enumerate() {
            if !self.updated.contains_key(&index)
                && !has(&|op| matches!(op, Op::StateRef(s) if s.index == index))
            {
                report("state", &state.name, state.span, "neither read nor updated");
            }
        }
        for (index, table) in self.instance.tables.iter().enumerate() {
            if !has(&|op| matches!(op, Op::TableRef(t) if t.index == index)) {
                report("table", &table.name, table.span, "made, but read by nothing");
            }
        }
        for (index, sub) in self.instance.subs.iter().enumerate() {
            let calls = |op: &Op| match op {
                Op::Call(call) => call.sub == index,
                Op::Stack(stack) => stack.sub == index,
                _ => false,
            };
            if !has(&calls) {
                report("sub-block", &sub.name, sub.span, "its parameters are read by nothing");
            }
        }
        diags
    }

    // Expressions.

    /// Lowers an expression; `None` after a reported error.
    pub(super) fn item(&mut self, expr: &Expr) -> Option<Item> {
        match &expr.kind {
            ExprKind::Number { value, .. } => Some(Item::Number(*value)),
            ExprKind::Name(name) => self.name(name, expr.span),
            ExprKind::Negate(inner) => match self.item(inner)? {
                Item::Number(value) => Some(Item::Number(-value)),
                Item::Value(value) => self
                    .push(Affine { mul: -1.0, add: 0.0 }, vec![value], expr.span)
                    .map(Item::Value),
            },
            ExprKind::Binary(op, left, right) => {
                let (left, right) = (self.item(left), self.item(right));
                self.binary(*op, left?, right?, expr.span)
            }
            ExprKind::Call { callee, args } => self.call(callee, args, expr.span),
            ExprKind::List(_) => {
                self.report(
                    Diag::error("E0405", "a list is not a value", expr.span, "a list")
                        .with_help("lists hold blocks, in a stage; `concat` joins values"),
                );
                None
            }
        }
    }

    /// Lowers an expression that must be a value of the graph.
    pub(super) fn value(&mut self, expr: &Expr) -> Option<ValueId> {
        let item = self.item(expr)?;
        self.value_of(item, DType::Act, expr.span)
    }

    /// A number becomes a constant of precision class `dtype`.
    pub(super) fn value_of(&mut self, item: Item, dtype: DType, span: Span) -> Option<ValueId> {
        match item {
            Item::Value(value) => Some(value),
            Item::Number(value) => self.push(Const { value, dtype }, vec![], span),
        }
    }

    fn name(&mut self, name: &str, span: Span) -> Option<Item> {
        if let Some(used) = self.used.get_mut(name) {
            *used = true;
        }
        if let Some((item, _)) = self.values.get(name) {
            return *item;
        }
        if let Some(number) = self.instance.numbers.get(name) {
            return Some(Item::Number(*number));
        }
        if let Some(value) = self.declared(name, span) {
            self.values.insert(name.to_owned(), (Some(Item::Value(value)), span));
            return Some(Item::Value(value));
        }
        let mut diag =
            Diag::error("E0407", format!("value `{name}` is not known"), span, "not known here");
        if self.axes.contains_key(name) {
            diag = diag.with_help(format!("`{name}` is an axis; its length is `size({name})`"));
        } else if let Some(near) = self.near_name(name) {
            diag = diag.with_help(format!("a value `{near}` is in scope"));
            self.meant.insert(near);
        }
        self.report(diag);
        None
    }

    fn near_name(&self, name: &str) -> Option<String> {
        let params = self.instance.params.iter().map(|p| p.name.as_str());
        let known = self.values.keys().map(String::as_str).chain(params);
        lightc_dsl::names::closest(name, known).map(str::to_owned)
    }

    /// A parameter, state or table, read for the first time.
    fn declared(&mut self, name: &str, span: Span) -> Option<ValueId> {
        let param = self.function.params.iter().position(|p| p.name == name);
        let state = self.function.states.iter().position(|s| s.name == name);
        let table = self.function.tables.iter().position(|t| t.name == name);
        let (op, ty): (Op, Type) = if let Some(index) = param {
            (ParamRef { index }.into(), self.function.params.get(index)?.ty.clone())
        } else if let Some(index) = state {
            (StateRef { index }.into(), self.function.states.get(index)?.ty.clone())
        } else {
            let index = table?;
            (TableRef { index }.into(), self.function.tables.get(index)?.ty.clone())
        };
        let value = self.function.push_typed(op, vec![], vec![ty], Some(span)).first().copied()?;
        self.function.name_value(value, name);
        Some(value)
    }

    /// Adds an op with one result, its arguments brought into the storage order it wants.
    pub(super) fn push(
        &mut self,
        op: impl Into<Op>,
        args: Vec<ValueId>,
        span: Span,
    ) -> Option<ValueId> {
        let op = op.into();
        let operands = args.clone();
        let types: Vec<Type> = args.iter().map(|arg| self.function.ty(*arg).clone()).collect();
        let types: Vec<&Type> = types.iter().collect();
        let mut ordered = Vec::new();
        for (index, arg) in args.into_iter().enumerate() {
            let wanted = op.def().arg_order(index, &types);
            let has = self.function.ty(arg).names();
            let permutes = wanted.filter(|order| {
                let mut sorted = (order.clone(), has.clone());
                sorted.0.sort();
                sorted.1.sort();
                sorted.0 == sorted.1
            });
            ordered.push(match permutes {
                Some(order) => self.permuted(arg, &order, span)?,
                None => arg,
            });
        }
        match self.function.push1(op.clone(), ordered, Some(span)) {
            Ok(value) => Some(value),
            Err(error) => {
                let diag = self.with_operands(at(in_words(error, &op), span), &operands);
                self.report(diag);
                None
            }
        }
    }

    /// Adds the type of each operand at the place that it comes from, where there are several.
    fn with_operands(&self, mut diag: Diag, operands: &[ValueId]) -> Diag {
        if !(2..=5).contains(&operands.len()) {
            return diag;
        }
        let mut seen = vec![diag.primary.span];
        for value in operands {
            let Some(span) = self.function.definition(*value).span else { continue };
            if !seen.contains(&span) {
                seen.push(span);
                diag = diag.with_related(span, self.function.ty(*value).to_string());
            }
        }
        diag
    }

    /// The value in another precision class.
    pub(super) fn cast(&mut self, value: ValueId, to: DType, span: Span) -> Option<ValueId> {
        if self.function.ty(value).dtype == to {
            return Some(value);
        }
        self.push(Cast { to }, vec![value], span)
    }

    fn binary(&mut self, op: BinaryOp, left: Item, right: Item, span: Span) -> Option<Item> {
        use Item::{Number, Value};
        if let Some(function) = index_function(op)
            && [left, right].iter().any(|item| self.is_index(*item))
        {
            let (left, right) = (self.whole_size(left, span)?, self.whole_size(right, span)?);
            return self.index_binary(function, left, right, span).map(Value);
        }
        let affine = |mul, add| Affine { mul, add };
        let simple = match (op, left, right) {
            (BinaryOp::Add, Number(a), Number(b)) => return Some(Number(a + b)),
            (BinaryOp::Sub, Number(a), Number(b)) => return Some(Number(a - b)),
            (BinaryOp::Mul, Number(a), Number(b)) => return Some(Number(a * b)),
            (BinaryOp::Div, Number(a), Number(b)) => return Some(Number(a / b)),
            (BinaryOp::Add, Value(x), Number(0.0)) | (BinaryOp::Add, Number(0.0), Value(x)) => {
                return Some(Value(x));
            }
            (BinaryOp::Add, Value(x), Number(c)) | (BinaryOp::Add, Number(c), Value(x)) => {
                Some((x, affine(1.0, c)))
            }
            (BinaryOp::Sub, Value(x), Number(c)) => Some((x, affine(1.0, -c))),
            (BinaryOp::Sub, Number(c), Value(x)) => Some((x, affine(-1.0, c))),
            (BinaryOp::Mul, Value(x), Number(c)) | (BinaryOp::Mul, Number(c), Value(x)) => {
                Some((x, affine(c, 0.0)))
            }
            (BinaryOp::Div, Value(x), Number(c)) => Some((x, affine(1.0 / c, 0.0))),
            _ => None,
        };
        if let Some((x, op)) = simple {
            return self.push(op, vec![x], span).map(Value);
        }
        let function = match op {
            BinaryOp::Add => BinaryFn::Add,
            BinaryOp::Sub => BinaryFn::Sub,
            BinaryOp::Mul => BinaryFn::Mul,
            BinaryOp::Div => BinaryFn::Div,
            BinaryOp::Less => BinaryFn::Less,
            BinaryOp::LessEqual => BinaryFn::LessEqual,
            BinaryOp::Greater => BinaryFn::Greater,
            BinaryOp::GreaterEqual => BinaryFn::GreaterEqual,
        };
        self.two_values(function, left, right, span).map(Value)
    }

    fn is_index(&self, item: Item) -> bool {
        matches!(item, Item::Value(value) if self.function.ty(value).dtype == DType::Index)
    }

    /// A size that is not bound yet counts positions as a number does.
    fn whole_size(&mut self, item: Item, span: Span) -> Option<Item> {
        match item {
            Item::Value(value)
                if matches!(self.function.definition(value).op, Op::SizeValue(_)) =>
            {
                self.cast(value, DType::Index, span).map(Item::Value)
            }
            other => Some(other),
        }
    }

    /// Arithmetic of positions. With a number it is a factor and a sum, which the number must be
    /// whole for.
    fn index_binary(
        &mut self,
        function: IndexFn,
        left: Item,
        right: Item,
        span: Span,
    ) -> Option<ValueId> {
        use Item::{Number, Value};
        let (x, number) = match (left, right) {
            (Value(left), Value(right)) => {
                return self.push(IndexBinary { function }, vec![left, right], span);
            }
            (Value(x), Number(c)) | (Number(c), Value(x)) => (x, c),
            (Number(_), Number(_)) => return None,
        };
        let Some(c) = whole(number) else {
            let message = format!("positions are counted in whole numbers, here is {number}");
            let error = TypeError::new("E0404", message);
            self.report(at(error.with_help("`f32(..)` makes numbers of whole numbers"), span));
            return None;
        };
        let (mul, add) = match (function, left) {
            (IndexFn::Mul, _) => (c, 0),
            (IndexFn::Add, _) => (1, c),
            (IndexFn::Sub, Value(_)) => (1, -c),
            (IndexFn::Sub, Number(_)) => (-1, c),
        };
        self.push(IndexAffine { mul, add }, vec![x], span)
    }

    /// A two-operand op in which a number takes the precision class of the other operand.
    pub(super) fn two_values(
        &mut self,
        function: BinaryFn,
        left: Item,
        right: Item,
        span: Span,
    ) -> Option<ValueId> {
        let dtype = self.common_dtype(&[left, right]);
        let left = self.value_of(left, dtype, span)?;
        let right = self.value_of(right, dtype, span)?;
        self.push(Binary { function }, vec![left, right], span)
    }

    /// The precision class that numbers among `items` take.
    pub(super) fn common_dtype(&self, items: &[Item]) -> DType {
        let found = items.iter().find_map(|item| match item {
            Item::Value(value) => Some(self.function.ty(*value).dtype),
            Item::Number(_) => None,
        });
        found.unwrap_or(DType::Act)
    }

    fn sub_index(&self, name: &str) -> Option<usize> {
        self.instance.subs.iter().position(|sub| sub.name == name)
    }

    fn call(&mut self, callee: &ast::Ident, args: &[ast::Arg], span: Span) -> Option<Item> {
        if self.sub_index(&callee.name).is_some() {
            let values = self.sub_call(callee, args, span)?;
            if values.len() != 1 {
                let message =
                    format!("`{}` gives {} values, one is wanted here", callee.name, values.len());
                self.report(
                    Diag::error("E0408", message, span, "this call")
                        .with_help("bind them with `a, b = ...`"),
                );
                return None;
            }
            return values.first().copied().map(Item::Value);
        }
        builtins::call(self, callee, args, span)
    }

    /// Calls a sub-block or a stack.
    fn sub_call(
        &mut self,
        callee: &ast::Ident,
        args: &[ast::Arg],
        span: Span,
    ) -> Option<Vec<ValueId>> {
        let index = self.sub_index(&callee.name)?;
        let mut values = Vec::new();
        for arg in args {
            let ast::Arg::Value(expr) = arg else {
                let message = format!("`{}` is a sub-block: its arguments are values", callee.name);
                self.report(
                    Diag::error("E0405", message, span, "this call")
                        .with_help(format!("values go by position: `{}(x)`", callee.name)),
                );
                return None;
            };
            values.push((self.value(expr), expr.span));
        }
        let args: Option<Vec<(ValueId, Span)>> =
            values.into_iter().map(|(value, span)| value.map(|v| (v, span))).collect();
        let args = args?;
        let kind = self.instance.subs.get(index)?.kind.clone();
        match kind {
            SubKind::One(target) => self.call_one(index, &target, args, span),
            SubKind::Stack(targets) => {
                let how = self.instance.subs.get(index)?.integrator.clone();
                let [(x, x_span)] = args.as_slice() else {
                    let message =
                        format!("stack `{}` takes one value, here are {}", callee.name, args.len());
                    self.report(
                        Diag::error("E0408", message, span, "this call")
                            .with_help("each layer takes what the one before gives"),
                    );
                    return None;
                };
                let stack = Stack { sub: index, integrator: how };
                self.call_stack(stack, &targets, *x, *x_span, span).map(|value| vec![value])
            }
        }
    }

    fn call_one(
        &mut self,
        index: usize,
        target: &Target,
        args: Vec<(ValueId, Span)>,
        span: Span,
    ) -> Option<Vec<ValueId>> {
        let (id, args, types) = self.prepare(target, args, span)?;
        self.set_callees(index, vec![id], &args, span)?;
        let has_penalties = has_penalties(self.lowerer.module.function(id));
        let mut results =
            self.function.push_typed(Call { sub: index }.into(), args, types, Some(span));
        if has_penalties {
            self.penalties.extend(results.pop());
        }
        Some(results)
    }

    /// Lowers the callee for these arguments: its id, the arguments in its order, and the types
    /// of its results in the caller's names and sizes.
    fn prepare(
        &mut self,
        target: &Target,
        args: Vec<(ValueId, Span)>,
        span: Span,
    ) -> Option<(FuncId, Vec<ValueId>, Vec<Type>)> {
        let typed: Vec<(Type, Span)> =
            args.iter().map(|(v, span)| (self.function.ty(*v).clone(), *span)).collect();
        let signature = self.lowerer.signature(target, &typed, span)?;
        let mut ordered = Vec::new();
        for (((value, span), order), ty) in args.iter().zip(&signature.orders).zip(&signature.types)
        {
            let value = self.permuted(*value, order, *span)?;
            ordered.push(self.cast(value, ty.dtype, *span)?);
        }
        self.lowerer.calls.push(span);
        let id = self.lowerer.function(target.instance, signature.types);
        self.lowerer.calls.pop();
        let id = id?;
        let callee = self.lowerer.module.function(id);
        let mut types = Vec::new();
        for output in &callee.outputs {
            let ty = callee.ty(output.value).substitute(&signature.bindings);
            types.push(outside_names(&ty, target));
        }
        for ty in &types {
            self.check_distinct(ty, span)?;
        }
        Some((id, ordered, types))
    }

    fn check_distinct(&mut self, ty: &Type, span: Span) -> Option<()> {
        let names = ty.names();
        let twice =
            names.iter().enumerate().find(|(i, n)| names.iter().skip(i + 1).any(|m| m == *n));
        let Some((_, name)) = twice else { return Some(()) };
        let message = format!("the result has axis `{name}` twice: {ty}");
        self.report(
            Diag::error("E0406", message, span, "this call")
                .with_help(format!("`rename` axis `{name}` of the argument before the call")),
        );
        None
    }

    /// A sub that is called again must be the same function: its parameters are.
    fn set_callees(
        &mut self,
        index: usize,
        callees: Vec<FuncId>,
        args: &[ValueId],
        span: Span,
    ) -> Option<()> {
        // A size that a callee leaves open is open here too, though no formal here has it.
        for callee in &callees {
            for name in &self.lowerer.module.function(*callee).open_sizes {
                if !self.function.open_sizes.contains(name) {
                    self.function.open_sizes.push(name.clone());
                }
            }
        }
        self.function.open_sizes.sort();
        let sub = self.function.subs.get_mut(index)?;
        if sub.callees.is_empty() {
            sub.callees = callees;
            return Some(());
        }
        if sub.callees == callees {
            return Some(());
        }
        let name = sub.name.clone();
        let types = |args: &[ValueId]| {
            let types: Vec<String> =
                args.iter().map(|arg| self.function.ty(*arg).to_string()).collect();
            types.join(", ")
        };
        let before = self.function.nodes.iter().find(|node| match &node.op {
            Op::Call(call) => call.sub == index,
            Op::Stack(stack) => stack.sub == index,
            _ => false,
        });
        let first = before.map(|node| (node.span, types(&node.args)));
        let (place, before) = first.unwrap_or((None, String::new()));
        let message = format!(
            "sub-block `{name}` is called with ({before}) and with ({}) in one forward",
            types(args)
        );
        let diag = Diag::error("E0408", message, span, "another shape than before");
        let diag = match place {
            Some(place) => diag.with_related(place, "first called here"),
            None => diag,
        };
        self.report(diag.with_help("bring both arguments to the same axes, in the same classes"));
        None
    }

    fn call_stack(
        &mut self,
        stack: Stack,
        targets: &[Target],
        x: ValueId,
        x_span: Span,
        span: Span,
    ) -> Option<ValueId> {
        let mut callees = Vec::new();
        let mut x = x;
        let mut penalty = None;
        for (layer, target) in targets.iter().enumerate() {
            let (id, args, mut types) = self.prepare(target, vec![(x, x_span)], span)?;
            x = args.first().copied()?;
            if has_penalties(self.lowerer.module.function(id)) {
                penalty = types.pop();
            }
            let ty = self.function.ty(x).clone();
            if types != [ty.clone()] {
                let has: Vec<String> = types.iter().map(ToString::to_string).collect();
                let instance = self.lowerer.model.instance(target.instance);
                let place = instance.ast.name.span;
                let message = format!(
                    "layer {layer} of a stack, `{}`, takes {ty} and gives {}",
                    instance.block,
                    has.join(", ")
                );
                self.report(
                    Diag::error("E0402", message, span, "this stack")
                        .with_related(place, "the layer's block")
                        .with_help("the result of a layer has the type of its input"),
                );
                return None;
            }
            callees.push(id);
        }
        self.set_callees(stack.sub, callees, &[x], span)?;
        let ty = self.function.ty(x).clone();
        let types = std::iter::once(ty.clone()).chain(penalty).collect();
        let mut args = vec![x];
        args.extend(self.gates(&stack, &ty, span)?);
        let results = self.function.push_typed(stack.into(), args, types, Some(span));
        self.penalties.extend(results.get(1));
        results.first().copied()
    }

    /// The gates of a stack whose states have this type.
    fn gates(&mut self, stack: &Stack, ty: &Type, span: Span) -> Option<Vec<ValueId>> {
        if stack.integrator != Integrator::Plain && !ty.is_float() {
            let message = format!("states of a stack are floating-point numbers, here is {ty}");
            self.report(
                Diag::error("E0404", message, span, "this stack")
                    .with_help("whole numbers and truth values take `integrate plain()`"),
            );
            return None;
        }
        let name = &self.instance.subs.get(stack.sub)?.name.clone();
        let gates = stack.integrator.gated().into_iter();
        gates.map(|layer| self.declared(&gate_name(name, layer), span)).collect()
    }

    /// Where an axis in scope is declared.
    pub(super) fn axis_place(&self, name: &str) -> Option<Span> {
        self.axis_places.get(name).copied()
    }

    /// An axis in scope, by name.
    pub(super) fn axis_named(&self, name: &str) -> Result<Axis, TypeError> {
        let size = self
            .axes
            .get(name)
            .cloned()
            .ok_or_else(|| super::scope::unknown_axis(name, &self.axes))?;
        Ok(Axis { name: name.to_owned(), size })
    }
}

/// The arithmetic that positions have.
fn index_function(op: BinaryOp) -> Option<IndexFn> {
    match op {
        BinaryOp::Add => Some(IndexFn::Add),
        BinaryOp::Sub => Some(IndexFn::Sub),
        BinaryOp::Mul => Some(IndexFn::Mul),
        _ => None,
    }
}

/// The whole number that a number is; up to 2^53, every one is an f64 and no other.
#[allow(clippy::cast_possible_truncation)]
fn whole(number: f64) -> Option<i64> {
    (number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0).then_some(number as i64)
}

/// The rule's error with the word that stands in the source.
fn in_words(mut error: TypeError, op: &Op) -> TypeError {
    let (mnemonic, word) = (op.def().mnemonic(), op.written());
    if mnemonic != word {
        error.message = error.message.replace(&format!("`{mnemonic}`"), &format!("`{word}`"));
    }
    error
}

/// A callee's result type in the caller's axis names.
fn outside_names(ty: &Type, target: &Target) -> Type {
    let axes = ty.axes.iter().map(|axis| Axis {
        name: target.axes.get(&axis.name).unwrap_or(&axis.name).clone(),
        size: axis.size.clone(),
    });
    Type::new(ty.dtype, axes.collect())
}

/// Where the axes of an instance are named: formals, `axis` members, inputs.
fn axis_places(instance: &Instance) -> BTreeMap<String, Span> {
    let mut places = BTreeMap::new();
    let formals = instance.ast.formals.iter().map(|formal| &formal.name);
    let members = instance.ast.members.iter().filter_map(|member| match member {
        ast::Member::Axis(def) => Some(&def.name),
        _ => None,
    });
    let inputs = forward_of(instance).into_iter().flat_map(|forward| &forward.inputs);
    let inputs = inputs.flat_map(|port| &port.axes.axes);
    for name in formals.chain(members).chain(inputs) {
        let _ = places.entry(name.name.clone()).or_insert(name.span);
    }
    places
}
