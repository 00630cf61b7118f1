//! What can be said about a definition without instantiating it: doubled and reserved names,
//! calls of blocks that do not exist, arguments without a formal, kinds of arguments, axes of
//! parameters, inits. A block that no stage uses is checked all the same.

use super::eval::{kind_words, suggest, wrong_kind};
use super::integrate::{NONE, bootstrap_help, form, unknown_integrator};
use super::{BlockDef, Program};
use crate::ast::{
    Arg, BinaryOp, Block, Expr, ExprKind, Formal, FormalKind, Forward, Ident, Init, Member, Param,
    Require, Stage, StorageClause, Table, Text,
};
use crate::diag::{Diag, codes};
use crate::names::{
    BUILTINS, FORMATS, INITS, INTEGRATORS, NUMBER_FUNCTIONS, TABLE_SOURCES, closest,
};
use crate::source::Span;
use std::collections::{BTreeMap, BTreeSet};

/// Everything wrong with the definitions of a program, in the order of the definitions.
pub(super) fn program(program: &Program) -> Vec<Diag> {
    let mut diags = Vec::new();
    for def in &program.blocks {
        let mut found = Vec::new();
        BlockCheck::new(program, &def.ast).run(&mut found);
        if program.damaged.contains(&def.ast.name.name) {
            // What is missing stands perhaps in a line that did not parse.
            let missing = [codes::NO_FORWARD, codes::UNKNOWN_NAME, codes::UNKNOWN_AXIS];
            found.retain(|d| !missing.contains(&d.code));
        }
        diags.extend(found);
    }
    for def in &program.stages {
        stage(program, &def.ast, &mut diags);
    }
    extends_cycles(program, &mut diags);
    diags
}

// Diagnostics that the resolver makes too -------------------------------------------------------

pub(super) fn unknown_name(name: &str, span: Span, names: Vec<&str>, is_stage: bool) -> Diag {
    let where_ = if is_stage { "this stage" } else { "this block" };
    let diag = Diag::error(
        codes::UNKNOWN_NAME,
        format!("`{name}` is not defined in {where_}"),
        span,
        "unknown name",
    );
    match closest(name, names.iter().copied()) {
        Some(near) => diag.with_help(format!("`{near}` exists")),
        None if is_stage => diag.with_help(format!("bind it in the stage: `{name} = ...`")),
        None => diag.with_help(format!("add `{name}` to the formals of the block, or an `axis`")),
    }
}

pub(super) fn unknown_function(callee: &Ident) -> Diag {
    let diag = Diag::error(
        codes::UNKNOWN_NAME,
        format!("`{}` is not a function of numbers", callee.name),
        callee.span,
        "unknown function",
    );
    match closest(&callee.name, NUMBER_FUNCTIONS) {
        Some(near) => diag.with_help(format!("`{near}` exists")),
        None => diag.with_help("the functions of numbers are sqrt, exp, ln and size"),
    }
}

pub(super) fn size_form(span: Span) -> Diag {
    Diag::error(
        codes::WRONG_KIND,
        "`size` takes the name of one axis",
        span,
        "not of the form `size(d)`",
    )
}

pub(super) fn one_argument_form(callee: &Ident, n: usize) -> Diag {
    Diag::error(
        codes::WRONG_KIND,
        format!("`{}` takes one number, and {n} arguments are given", callee.name),
        callee.span,
        format!("not of the form `{}(x)`", callee.name),
    )
}

pub(super) fn unknown_block(program: &Program, name: &str, span: Span, names: Vec<&str>) -> Diag {
    let diag =
        Diag::error(codes::UNKNOWN_BLOCK, format!("there is no block `{name}`"), span, "unknown");
    if BUILTINS.contains(&name) {
        return diag.with_help(format!("`{name}` is a function of forward bodies, not a block"));
    }
    let blocks = program.blocks.iter().map(|b| b.ast.name.name.as_str());
    match closest(name, blocks.chain(names)) {
        Some(near) => diag.with_help(format!("`{near}` exists")),
        None => diag.with_help("define it, or import the file that defines it"),
    }
}

pub(super) fn arguments_to_a_name(callee: &Ident) -> Diag {
    Diag::error(
        codes::WRONG_KIND,
        format!("`{}` is a value and not a block definition: it takes no arguments", callee.name),
        callee.span,
        "its arguments are fixed where it is written",
    )
    .with_help(format!("write `{}` alone", callee.name))
}

/// Unnamed, doubled and unknown arguments of one instantiation.
pub(super) fn arguments(def: &BlockDef, callee: &Ident, args: &[Arg]) -> Vec<Diag> {
    let mut diags = Vec::new();
    let mut seen: BTreeMap<&str, Span> = BTreeMap::new();
    for arg in args {
        let Arg::Named(name, _) = arg else {
            diags.push(unnamed(def, callee, arg));
            continue;
        };
        if let Some(first) = seen.get(name.name.as_str()) {
            diags.push(
                Diag::error(
                    codes::DOUBLED_ARGUMENT,
                    format!("argument `{}` of `{}` is given twice", name.name, callee.name),
                    name.span,
                    "given again here",
                )
                .with_related(*first, "first given here")
                .with_help("remove one of them"),
            );
            continue;
        }
        seen.insert(&name.name, name.span);
        if !def.ast.formals.iter().any(|f| f.name.name == name.name) {
            diags.push(unknown_argument(def, name));
        }
    }
    diags
}

fn unnamed(def: &BlockDef, callee: &Ident, arg: &Arg) -> Diag {
    let span = arg_span(arg);
    let diag = Diag::error(
        codes::UNNAMED_ARGUMENT,
        format!("an argument of block `{}` has no name", callee.name),
        span,
        "expected `name: value`",
    )
    .with_related(def.ast.name.span, formals_text(def));
    match (arg, def.ast.formals.as_slice()) {
        (Arg::Value(_), [only]) => diag.with_help(format!("write `{}: ...`", only.name.name)),
        _ => diag.with_help("arguments of a block are named, as in `d: 64`"),
    }
}

fn unknown_argument(def: &BlockDef, name: &Ident) -> Diag {
    let diag = Diag::error(
        codes::UNKNOWN_ARGUMENT,
        format!("block `{}` has no formal `{}`", def.ast.name.name, name.name),
        name.span,
        "unknown argument",
    )
    .with_related(def.ast.name.span, formals_text(def));
    suggest(diag, &name.name, def.ast.formals.iter().map(|f| f.name.name.as_str()))
}

fn formals_text(def: &BlockDef) -> String {
    let names: Vec<String> = def.ast.formals.iter().map(|f| format!("`{}`", f.name.name)).collect();
    match names.as_slice() {
        [] => "takes nothing".to_owned(),
        names => format!("takes {}", names.join(", ")),
    }
}

pub(super) fn unknown_axis(name: &Ident, known: Vec<&str>) -> Diag {
    let diag = Diag::error(
        codes::UNKNOWN_AXIS,
        format!("the block has no axis `{}`", name.name),
        name.span,
        "unknown axis",
    );
    match closest(&name.name, known.iter().copied()) {
        Some(near) => diag.with_help(format!("`{near}` exists")),
        None => diag.with_help(format!(
            "add `{0}` to the formals of the block, or `axis {0} = ...`",
            name.name
        )),
    }
}

/// The distribution exists and has that many arguments.
pub(super) fn init(init: &Init) -> Option<Diag> {
    let name = &init.name;
    let Some((_, formals)) = INITS.iter().find(|(known, _)| *known == name.name) else {
        let diag = Diag::error(
            codes::UNKNOWN_INIT,
            format!("there is no init `{}`", name.name),
            name.span,
            "unknown init",
        );
        let names = INITS.iter().map(|(known, _)| *known);
        return Some(match closest(&name.name, names.clone()) {
            Some(near) => diag.with_help(format!("`{near}` exists")),
            None => diag.with_help(format!("inits: {}", names.collect::<Vec<_>>().join(", "))),
        });
    };
    (init.args.len() != formals.len()).then(|| {
        let form = format!("{}({})", name.name, formals.join(", "));
        Diag::error(
            codes::INIT_ARGUMENTS,
            format!(
                "init `{}` takes {}, and {} given",
                name.name,
                count(formals.len(), "number"),
                match init.args.len() {
                    1 => "1 is".to_owned(),
                    n => format!("{n} are"),
                }
            ),
            name.span,
            format!("its form is `{form}`"),
        )
    })
}

fn count(n: usize, what: &str) -> String {
    match n {
        0 => format!("no {what}s"),
        1 => format!("1 {what}"),
        n => format!("{n} {what}s"),
    }
}

// Shapes of expressions -------------------------------------------------------------------------

/// What an expression is by its form: a number counts as [`FormalKind::Number`] even where it
/// serves as a size. Nothing where that hangs on a name that does not exist. `binding` gives the value of a name of the stage.
pub(super) fn kind_of<'a>(
    program: &Program,
    expr: &'a Expr,
    binding: &impl Fn(&str) -> Option<&'a Expr>,
) -> Option<FormalKind> {
    kind_within(program, expr, binding, 64)
}

/// Bindings can form a cycle, which is reported elsewhere: `steps` ends it here.
fn kind_within<'a>(
    program: &Program,
    expr: &'a Expr,
    binding: &impl Fn(&str) -> Option<&'a Expr>,
    steps: u32,
) -> Option<FormalKind> {
    let steps = steps.checked_sub(1)?;
    let block = |name: &str| program.block(name).map(|_| FormalKind::Block);
    match &expr.kind {
        ExprKind::Name(name) => match binding(name) {
            Some(next) => kind_within(program, next, binding, steps),
            None => block(name),
        },
        ExprKind::List(items) => match items.first() {
            Some(Expr { kind: ExprKind::Name(name), .. }) if name == NONE => {
                Some(FormalKind::Numbers)
            }
            Some(item) => match kind_within(program, item, binding, steps) {
                Some(FormalKind::Number) => Some(FormalKind::Numbers),
                _ => Some(FormalKind::Blocks),
            },
            None => Some(FormalKind::Blocks),
        },
        ExprKind::Call { callee, .. } => {
            let name = callee.name.as_str();
            let is_integrator = INTEGRATORS.iter().any(|(known, ..)| *known == name);
            match block(name) {
                None if NUMBER_FUNCTIONS.contains(&name) => Some(FormalKind::Number),
                None if is_integrator => Some(FormalKind::Integrator),
                found => found,
            }
        }
        // `list + list`, `list * 2`, `2 * list`
        ExprKind::Binary(BinaryOp::Add | BinaryOp::Mul, left, right) => {
            let number = matches!(left.kind, ExprKind::Number { .. });
            let side = if number { right } else { left };
            match kind_within(program, side, binding, steps) {
                Some(kind @ (FormalKind::Blocks | FormalKind::Numbers)) => Some(kind),
                _ => Some(FormalKind::Number),
            }
        }
        _ => Some(FormalKind::Number),
    }
}

/// How to read an expression of which [`kind_of`] knows nothing.
pub(super) fn likely_kind(expr: &Expr) -> FormalKind {
    match expr.kind {
        ExprKind::Call { .. } => FormalKind::Block,
        _ => FormalKind::Number,
    }
}

/// The names that an expression uses as values. Names of arguments are not among them.
pub(super) fn names_of<'a>(expr: &'a Expr, names: &mut Vec<(&'a str, Span)>) {
    match &expr.kind {
        ExprKind::Name(name) => names.push((name, expr.span)),
        ExprKind::Number { .. } => {}
        ExprKind::Negate(inner) => names_of(inner, names),
        ExprKind::Binary(_, left, right) => {
            names_of(left, names);
            names_of(right, names);
        }
        ExprKind::List(items) => items.iter().for_each(|item| names_of(item, names)),
        ExprKind::Call { args, .. } => {
            for arg in args {
                if let Arg::Value(value) | Arg::Named(_, value) = arg {
                    names_of(value, names);
                }
            }
        }
    }
}

/// What the names of a scope stand for. In a stage this is not known before `extends` and late
/// binding, so only calls are checked there.
type Names<'a> = Option<&'a BTreeMap<&'a str, FormalKind>>;

struct ExprCheck<'a, 'd> {
    program: &'a Program,
    names: Names<'a>,
    diags: &'d mut Vec<Diag>,
}

impl ExprCheck<'_, '_> {
    fn kind(&self, name: &str) -> Option<FormalKind> {
        self.names?.get(name).copied()
    }

    /// An expression in the place of a value of some kind.
    fn value(&mut self, expr: &Expr, wanted: FormalKind) {
        match wanted {
            FormalKind::Axis => self.scalar(expr, FormalKind::Axis),
            FormalKind::Number => self.scalar(expr, FormalKind::Number),
            FormalKind::Block => self.block(expr),
            FormalKind::Blocks => self.list(expr),
            FormalKind::Numbers => self.numbers(expr),
            FormalKind::Integrator => self.integrator(expr),
        }
    }

    fn wanted(kind: FormalKind) -> &'static str {
        match kind {
            FormalKind::Axis => "a size",
            kind => kind_words(kind),
        }
    }

    fn scalar(&mut self, expr: &Expr, wanted: FormalKind) {
        let words = Self::wanted(wanted);
        match &expr.kind {
            ExprKind::Number { .. } => {}
            ExprKind::Name(name) => self.scalar_name(name, expr.span, wanted),
            ExprKind::Negate(inner) => self.scalar(inner, wanted),
            ExprKind::Binary(op, left, right) => {
                self.scalar(left, wanted);
                self.scalar(right, wanted);
                if is_comparison(*op) {
                    self.diags.push(wrong_kind(expr.span, "a comparison", words));
                }
            }
            ExprKind::Call { callee, args } => self.scalar_call(expr, callee, args, wanted),
            ExprKind::List(_) => {
                self.diags.push(wrong_kind(expr.span, "a list of blocks", words));
            }
        }
    }

    fn scalar_call(&mut self, expr: &Expr, callee: &Ident, args: &[Arg], wanted: FormalKind) {
        match callee.name.as_str() {
            "size" => match args {
                [Arg::Value(value @ Expr { kind: ExprKind::Name(_), .. })] => {
                    self.scalar(value, FormalKind::Axis);
                }
                _ => self.diags.push(size_form(expr.span)),
            },
            "sqrt" | "exp" | "ln" => match args {
                [Arg::Value(value)] => self.scalar(value, FormalKind::Number),
                _ => self.diags.push(one_argument_form(callee, args.len())),
            },
            name if self.program.block(name).is_some() => {
                self.diags.push(wrong_kind(expr.span, "a block", Self::wanted(wanted)));
            }
            _ => self.diags.push(unknown_function(callee)),
        }
    }

    fn scalar_name(&mut self, name: &str, span: Span, wanted: FormalKind) {
        let Some(names) = self.names else { return };
        match (names.get(name), wanted) {
            (Some(FormalKind::Number), _) | (Some(FormalKind::Axis), FormalKind::Axis) => {}
            (Some(FormalKind::Axis), _) => self.diags.push(
                wrong_kind(span, "an axis", "a number")
                    .with_help(format!("its size is `size({name})`")),
            ),
            (Some(kind), _) => {
                self.diags.push(wrong_kind(span, kind_words(*kind), Self::wanted(wanted)));
            }
            (None, _) if self.program.block(name).is_some() => {
                self.diags.push(wrong_kind(span, "a block", Self::wanted(wanted)));
            }
            (None, _) => {
                let names = names.keys().copied().collect();
                self.diags.push(unknown_name(name, span, names, false));
            }
        }
    }

    fn block(&mut self, expr: &Expr) {
        match &expr.kind {
            ExprKind::Name(name) => match self.kind(name) {
                Some(FormalKind::Block) => {}
                Some(kind) => {
                    self.diags.push(wrong_kind(expr.span, kind_words(kind), "a block"));
                }
                None if self.names.is_some() => self.definition(name, expr.span),
                None => {}
            },
            ExprKind::Call { callee, args } => self.instantiation(callee, args),
            ExprKind::List(_) => self.diags.push(
                wrong_kind(expr.span, "a list of blocks", "a block")
                    .with_help("a list goes to a formal of kind `blocks`"),
            ),
            _ => self.diags.push(wrong_kind(expr.span, "a number", "a block")),
        }
    }

    fn definition(&mut self, name: &str, span: Span) {
        if self.program.block(name).is_none() && !self.program.damaged.contains(name) {
            let names = self.names.map_or(Vec::new(), |n| n.keys().copied().collect());
            self.diags.push(unknown_block(self.program, name, span, names));
        }
    }

    fn instantiation(&mut self, callee: &Ident, args: &[Arg]) {
        if self.kind(&callee.name).is_some() {
            self.diags.push(arguments_to_a_name(callee));
            return;
        }
        let Some(def) = self.program.block(&callee.name) else {
            self.definition(&callee.name, callee.span);
            return;
        };
        self.diags.extend(arguments(def, callee, args));
        for arg in args {
            if let Arg::Named(name, value) = arg
                && let Some(formal) = def.ast.formals.iter().find(|f| f.name.name == name.name)
            {
                let n_before = self.diags.len();
                self.value(value, formal.kind);
                self.say_what_formal_takes(n_before, formal, value.span);
            }
        }
    }

    /// Adds the formal to complaints about an argument's kind.
    fn say_what_formal_takes(&mut self, n_before: usize, formal: &Formal, place: Span) {
        for diag in self.diags.iter_mut().skip(n_before) {
            if diag.code == codes::WRONG_KIND && diag.primary.span == place {
                let text = format!("`{}` takes {}", formal.name.name, kind_words(formal.kind));
                diag.related.insert(0, crate::diag::Label { span: formal.name.span, text });
            }
        }
    }

    fn list(&mut self, expr: &Expr) {
        match &expr.kind {
            ExprKind::List(items) => items.iter().for_each(|item| self.block(item)),
            ExprKind::Binary(BinaryOp::Add, left, right) => {
                self.list(left);
                self.list(right);
            }
            ExprKind::Binary(BinaryOp::Mul, left, right) => {
                let count_first = matches!(left.kind, ExprKind::Number { .. });
                let (list, times) = if count_first { (right, left) } else { (left, right) };
                self.list(list);
                self.scalar(times, FormalKind::Axis);
            }
            ExprKind::Name(name) => match self.kind(name) {
                Some(FormalKind::Blocks) => {}
                Some(FormalKind::Block) => self.diags.push(one_block(expr.span, name)),
                Some(kind) => {
                    let diag = wrong_kind(expr.span, kind_words(kind), "a list of blocks");
                    self.diags.push(diag);
                }
                None if self.names.is_none() => {}
                None if self.program.block(name).is_some() => {
                    self.diags.push(one_block(expr.span, name));
                }
                None => {
                    let names = self.names.map_or(Vec::new(), |n| n.keys().copied().collect());
                    self.diags.push(unknown_name(name, expr.span, names, false));
                }
            },
            ExprKind::Call { callee, args } => {
                self.diags.push(one_block(expr.span, &format!("{}(...)", callee.name)));
                self.instantiation(callee, args);
            }
            _ => self.diags.push(wrong_kind(expr.span, "a number", "a list of blocks")),
        }
    }
}

impl ExprCheck<'_, '_> {
    /// A list of numbers. What its names stand for is known when it is read.
    fn numbers(&mut self, expr: &Expr) {
        match &expr.kind {
            ExprKind::List(items) => {
                let is_none = |item: &&Expr| matches!(&item.kind, ExprKind::Name(n) if n == NONE);
                let numbers = items.iter().filter(|item| !is_none(item));
                numbers.for_each(|item| self.scalar(item, FormalKind::Number));
            }
            ExprKind::Binary(BinaryOp::Add, left, right) => {
                self.numbers(left);
                self.numbers(right);
            }
            ExprKind::Binary(BinaryOp::Mul, left, right) => {
                let count_first = matches!(left.kind, ExprKind::Number { .. });
                let (list, times) = if count_first { (right, left) } else { (left, right) };
                self.numbers(list);
                self.scalar(times, FormalKind::Axis);
            }
            ExprKind::Name(name) => self.named(name, expr.span, FormalKind::Numbers),
            _ => self.diags.push(wrong_kind(expr.span, "a single value", "a list of numbers")),
        }
    }

    fn integrator(&mut self, expr: &Expr) {
        match &expr.kind {
            ExprKind::Name(name) => self.named(name, expr.span, FormalKind::Integrator),
            ExprKind::Call { callee, args } => {
                self.diags.extend(integrator_call(callee, args));
                for arg in args {
                    if let Arg::Named(name, value) = arg {
                        match name.name.as_str() {
                            "h" | "fraction_bits" => self.scalar(value, FormalKind::Number),
                            "gates" => self.numbers(value),
                            // A number or a list, by what it is when it is read.
                            _ => {}
                        }
                    }
                }
            }
            ExprKind::List(_) => {
                self.diags.push(wrong_kind(expr.span, "a list", "an integrator"));
            }
            _ => self.diags.push(wrong_kind(expr.span, "a number", "an integrator")),
        }
    }

    fn named(&mut self, name: &str, span: Span, wanted: FormalKind) {
        let Some(names) = self.names else { return };
        match names.get(name) {
            Some(kind) if *kind == wanted => {}
            Some(kind) => {
                self.diags.push(wrong_kind(span, kind_words(*kind), kind_words(wanted)));
            }
            None => {
                let names = names.keys().copied().collect();
                self.diags.push(unknown_name(name, span, names, false));
            }
        }
    }
}

/// An integrator that exists, with named arguments that it has and all that it needs.
pub(super) fn integrator_call(callee: &Ident, args: &[Arg]) -> Vec<Diag> {
    let found = INTEGRATORS.iter().find(|(known, ..)| *known == callee.name);
    let Some((name, needed, optional)) = found else {
        return vec![unknown_integrator(callee)];
    };
    let formals = || needed.iter().chain(*optional).copied();
    let list = formals().map(|f| format!("`{f}`")).collect::<Vec<_>>().join(", ");
    let takes =
        if list.is_empty() { "it takes nothing".to_owned() } else { format!("it takes {list}") };
    let mut diags = Vec::new();
    let mut seen: BTreeMap<&str, Span> = BTreeMap::new();
    for arg in args {
        let Arg::Named(given, _) = arg else {
            let message = format!("an argument of `{name}` has no name");
            diags.push(
                Diag::error(
                    codes::UNNAMED_ARGUMENT,
                    message,
                    arg_span(arg),
                    "expected `name: value`",
                )
                .with_help(takes.clone()),
            );
            continue;
        };
        if let Some(first) = seen.insert(&given.name, given.span) {
            let message = format!("argument `{}` of `{name}` is given twice", given.name);
            diags.push(
                Diag::error(codes::DOUBLED_ARGUMENT, message, given.span, "given again here")
                    .with_related(first, "first given here")
                    .with_help("remove one of them"),
            );
        }
        if !formals().any(|formal| formal == given.name) {
            let message = format!("`{name}` takes no `{}`", given.name);
            let diag =
                Diag::error(codes::UNKNOWN_ARGUMENT, message, given.span, "unknown argument");
            diags.push(match closest(&given.name, formals()) {
                Some(near) => diag.with_help(format!("`{near}` exists")),
                None => diag.with_help(takes.clone()),
            });
        }
    }
    for missing in needed.iter().filter(|formal| !seen.contains_key(**formal)) {
        let message = format!("`{missing}` of `{name}` has no value");
        let diag =
            Diag::error(codes::UNBOUND, message, callee.span, format!("no argument `{missing}`"));
        diags.push(diag.with_help(match form(name) {
            Some(form) => format!("its form is `{form}`"),
            None => takes.clone(),
        }));
    }
    diags
}

fn arg_span(arg: &Arg) -> Span {
    match arg {
        Arg::Value(value) => value.span,
        Arg::Named(name, _) => name.span,
        Arg::Over(_, span) => *span,
        Arg::Map { span, .. } | Arg::Range { span, .. } | Arg::At { span, .. } => *span,
    }
}

/// Adds the nearest integrator as the fix.
pub(super) fn suggest_integrator(diag: Diag, name: &str) -> Diag {
    let names = INTEGRATORS.iter().map(|(known, ..)| *known);
    match closest(name, names.clone()) {
        Some(near) => diag.with_help(format!("`{near}` exists")),
        None => diag.with_help(format!("integrators: {}", names.collect::<Vec<_>>().join(", "))),
    }
}

pub(super) fn unknown_bootstrap(expr: &Expr) -> Diag {
    let (message, help) = match &expr.kind {
        ExprKind::Name(name) => (format!("there is no bootstrap `{name}`"), bootstrap_help(name)),
        _ => ("a bootstrap is one of its names".to_owned(), bootstrap_help("")),
    };
    Diag::error(codes::UNKNOWN_INTEGRATOR, message, expr.span, "unknown bootstrap").with_help(help)
}

fn one_block(span: Span, text: &str) -> Diag {
    wrong_kind(span, "a block", "a list of blocks")
        .with_help(format!("write `[{text}]` for a list of one block"))
}

fn is_comparison(op: BinaryOp) -> bool {
    matches!(op, BinaryOp::Less | BinaryOp::LessEqual | BinaryOp::Greater | BinaryOp::GreaterEqual)
}

// Blocks ----------------------------------------------------------------------------------------

struct BlockCheck<'a> {
    program: &'a Program,
    block: &'a Block,
    /// Formals and block-level axes.
    names: BTreeMap<&'a str, FormalKind>,
}

impl<'a> BlockCheck<'a> {
    fn new(program: &'a Program, block: &'a Block) -> Self {
        let formals = block.formals.iter().map(|f| (f.name.name.as_str(), f.kind));
        let axes = block.members.iter().filter_map(|m| match m {
            Member::Axis(def) => Some((def.name.name.as_str(), FormalKind::Axis)),
            _ => None,
        });
        let mut names = BTreeMap::new();
        for (name, kind) in formals.chain(axes) {
            names.entry(name).or_insert(kind);
        }
        BlockCheck { program, block, names }
    }

    fn run(&self, diags: &mut Vec<Diag>) {
        if BUILTINS.contains(&self.block.name.name.as_str()) {
            diags.push(reserved(&self.block.name));
        }
        self.doubled(diags);
        self.formals(diags);
        let mut axes_so_far: BTreeSet<&str> = BTreeSet::new();
        for member in &self.block.members {
            self.member(member, &mut axes_so_far, diags);
        }
        self.forwards(diags);
    }

    fn exprs<'d>(&'d self, diags: &'d mut Vec<Diag>) -> ExprCheck<'d, 'd> {
        ExprCheck { program: self.program, names: Some(&self.names), diags }
    }

    /// Formals and axes are one namespace; parameters, states, tables, sub-blocks and number
    /// formals are another. A sub-block may have the name of the block formal that it holds.
    fn doubled(&self, diags: &mut Vec<Diag>) {
        let mut scope: BTreeMap<&str, &Ident> = BTreeMap::new();
        let mut values: BTreeMap<&str, &Ident> = BTreeMap::new();
        for formal in &self.block.formals {
            once(&mut scope, &formal.name, "formal", diags);
            match formal.kind {
                FormalKind::Axis => {}
                kind => {
                    if kind == FormalKind::Number {
                        values.entry(&formal.name.name).or_insert(&formal.name);
                    }
                    not_reserved(&formal.name, diags);
                }
            }
        }
        for member in &self.block.members {
            match member {
                Member::Axis(def) => once(&mut scope, &def.name, "axis", diags),
                Member::Forward(_) | Member::Require(_) => {}
                member => {
                    if let Some((name, what)) = member_name(member) {
                        once(&mut values, name, what, diags);
                        not_reserved(name, diags);
                    }
                }
            }
        }
    }

    fn formals(&self, diags: &mut Vec<Diag>) {
        for formal in &self.block.formals {
            if let Some(default) = &formal.default {
                let names: BTreeMap<&str, FormalKind> =
                    self.block.formals.iter().map(|f| (f.name.name.as_str(), f.kind)).collect();
                let mut check = ExprCheck { program: self.program, names: Some(&names), diags };
                let n_before = check.diags.len();
                check.value(default, formal.kind);
                check.say_what_formal_takes(n_before, formal, default.span);
            }
        }
    }

    fn member(
        &self,
        member: &'a Member,
        axes_so_far: &mut BTreeSet<&'a str>,
        diags: &mut Vec<Diag>,
    ) {
        match member {
            Member::Axis(def) => {
                self.exprs(diags).scalar(&def.size, FormalKind::Axis);
                axes_so_far.insert(&def.name.name);
                self.axis_order(&def.name, &def.size, axes_so_far, diags);
            }
            Member::Param(param) => self.param(param, diags),
            Member::State(state) => {
                self.axes(&state.axes, diags);
                self.exprs(diags).scalar(&state.start, FormalKind::Number);
            }
            Member::Table(table) => self.table(table, diags),
            Member::Sub(sub) => self.exprs(diags).block(&sub.block),
            Member::Stack(stack) => {
                self.exprs(diags).list(&stack.list);
                if let Some(integrator) = &stack.integrator {
                    self.exprs(diags).integrator(integrator);
                }
                not_reserved(&stack.item, diags);
                let mut names = self.names.clone();
                names.insert(&stack.item.name, FormalKind::Block);
                let program = self.program;
                ExprCheck { program, names: Some(&names), diags }.block(&stack.block);
            }
            Member::Require(require) => self.require(require, diags),
            Member::Forward(forward) => ports(forward, diags),
        }
    }

    /// A size can use formals and the axes above it.
    fn axis_order(
        &self,
        name: &Ident,
        size: &Expr,
        so_far: &BTreeSet<&str>,
        diags: &mut Vec<Diag>,
    ) {
        let mut used = Vec::new();
        names_of(size, &mut used);
        let axis_members = || {
            self.block.members.iter().filter_map(|m| match m {
                Member::Axis(def) => Some(&def.name.name),
                _ => None,
            })
        };
        let later = used.iter().find(|(n, _)| {
            let is_formal = self.block.formals.iter().any(|f| f.name.name == *n);
            let is_above = so_far.contains(n) && *n != name.name;
            axis_members().any(|axis| axis == n) && !is_formal && !is_above
        });
        let Some((later, span)) = later else { return };
        let itself = *later == name.name;
        let diag = Diag::error(
            codes::UNKNOWN_NAME,
            format!("the size of axis `{}` uses `{later}`, which is not above it", name.name),
            *span,
            "an axis can use formals and the axes above it",
        );
        diags.push(if itself {
            diag
        } else {
            diag.with_help(format!("move `axis {later}` above `axis {}`", name.name))
        });
    }

    fn axes(&self, axes: &[Ident], diags: &mut Vec<Diag>) {
        let mut seen: BTreeMap<&str, Span> = BTreeMap::new();
        for axis in axes {
            if let Some(first) = seen.get(axis.name.as_str()) {
                diags.push(doubled_axis(axis, *first));
                continue;
            }
            seen.insert(&axis.name, axis.span);
            if self.names.get(axis.name.as_str()) != Some(&FormalKind::Axis) {
                let known = self.names.iter().filter(|(_, kind)| **kind == FormalKind::Axis);
                diags.push(unknown_axis(axis, known.map(|(name, _)| *name).collect()));
            }
        }
    }

    fn param(&self, param: &Param, diags: &mut Vec<Diag>) {
        self.axes(&param.axes, diags);
        match init(&param.init) {
            Some(diag) => diags.push(diag),
            None => {
                for arg in &param.init.args {
                    self.exprs(diags).scalar(arg, FormalKind::Number);
                }
            }
        }
        match &param.storage {
            Some(StorageClause::Quantized(format)) => quantized(param, format, diags),
            Some(StorageClause::Adapter(_) | StorageClause::Frozen(_)) | None => {}
        }
        if let Some(active) = &param.active {
            self.exprs(diags).scalar(&active.count, FormalKind::Axis);
            if !param.axes.iter().any(|axis| axis.name == active.of.name) {
                diags.push(not_its_axis(param, &active.of));
            }
        }
        if let Some(StorageClause::Frozen(Text { value, span })) = &param.storage
            && value.trim().is_empty()
        {
            diags.push(
                Diag::error(
                    codes::NO_REASON,
                    format!("parameter `{}` is frozen without a reason", param.name.name),
                    *span,
                    "the reason is empty",
                )
                .with_help("say why it does not learn, as in `frozen \"the indexer is fixed\"`"),
            );
        }
    }

    fn require(&self, require: &Require, diags: &mut Vec<Diag>) {
        for condition in &require.conditions {
            match &condition.kind {
                ExprKind::Binary(op, left, right) if is_comparison(*op) => {
                    self.exprs(diags).scalar(left, FormalKind::Number);
                    self.exprs(diags).scalar(right, FormalKind::Number);
                }
                _ => diags.push(
                    Diag::error(
                        codes::NOT_A_COMPARISON,
                        "a requirement compares numbers",
                        condition.span,
                        "compares nothing",
                    )
                    .with_help("write `require a < b, \"reason\"`; join several with `and`"),
                ),
            }
        }
    }

    fn table(&self, table: &Table, diags: &mut Vec<Diag>) {
        self.axes(&table.axes, diags);
        let from = &table.from;
        if TABLE_SOURCES.contains(&from.value.as_str()) {
            return;
        }
        let diag = Diag::error(
            codes::UNKNOWN_TABLE,
            format!("nothing makes a table `{}`", from.value),
            from.span,
            "unknown source",
        );
        diags.push(match closest(&from.value, TABLE_SOURCES) {
            Some(near) => diag.with_help(format!("`{near}` exists")),
            None => diag.with_help(format!("sources: {}", TABLE_SOURCES.join(", "))),
        });
    }

    fn forwards(&self, diags: &mut Vec<Diag>) {
        let mut forwards = self.block.members.iter().filter_map(|m| match m {
            Member::Forward(forward) => Some(forward),
            _ => None,
        });
        let name = &self.block.name;
        let Some(first) = forwards.next() else {
            diags.push(
                Diag::error(
                    codes::NO_FORWARD,
                    format!("block `{}` has no forward", name.name),
                    name.span,
                    "computes nothing",
                )
                .with_help("add `forward(x[.., d]) -> [.., d] { ... }`"),
            );
            return;
        };
        for second in forwards {
            diags.push(
                Diag::error(
                    codes::DOUBLED_FORWARD,
                    format!("block `{}` has more than one forward", name.name),
                    second.span,
                    "another forward",
                )
                .with_related(first.span, "the first forward")
                .with_help("keep one, or split the block"),
            );
        }
    }
}

/// A quantized parameter has a known format and rows of activations.
fn quantized(param: &Param, format: &Ident, diags: &mut Vec<Diag>) {
    if crate::model::Format::from_word(&format.name).is_none() {
        let diag = Diag::error(
            codes::UNKNOWN_FORMAT,
            format!("there is no format `{}`", format.name),
            format.span,
            "unknown format",
        );
        diags.push(match closest(&format.name, FORMATS) {
            Some(near) => diag.with_help(format!("`{near}` exists")),
            None => diag.with_help(format!("formats: {}", FORMATS.join(", "))),
        });
    }
    let what = match (param.axes.is_empty(), param.dtype) {
        (true, _) => "it has no axes, so it has no rows",
        (_, Some(crate::ast::DType::F32)) => "it is `f32`, which is never below 32 bits",
        _ => return,
    };
    diags.push(
        Diag::error(
            codes::CANNOT_QUANTIZE,
            format!("parameter `{}` cannot be quantized: {what}", param.name.name),
            format.span,
            "kept in 8 bits",
        )
        .with_related(param.name.span, "declared here")
        .with_help("keep it as it is: leave `quantized` away, or say `frozen \"reason\"`"),
    );
}

fn not_its_axis(param: &Param, of: &Ident) -> Diag {
    let names: Vec<&str> = param.axes.iter().map(|axis| axis.name.as_str()).collect();
    let diag = Diag::error(
        codes::ACTIVE_AXIS,
        format!("`{}` is not an axis of parameter `{}`", of.name, param.name.name),
        of.span,
        "not one of its axes",
    )
    .with_related(param.name.span, format!("has [{}]", names.join(", ")));
    match closest(&of.name, names.iter().copied()) {
        Some(near) => diag.with_help(format!("`{near}` is one")),
        None => diag.with_help("name the axis whose positions take turns, such as the experts"),
    }
}

fn ports(forward: &Forward, diags: &mut Vec<Diag>) {
    for (ports, what) in [(&forward.inputs, "input"), (&forward.outputs, "output")] {
        let mut seen: BTreeMap<&str, &Ident> = BTreeMap::new();
        for port in ports {
            if let Some(name) = &port.name {
                once(&mut seen, name, what, diags);
                not_reserved(name, diags);
            }
            let mut axes: BTreeMap<&str, Span> = BTreeMap::new();
            for axis in &port.axes.axes {
                match axes.get(axis.name.as_str()) {
                    Some(first) => diags.push(doubled_axis(axis, *first)),
                    None => drop(axes.insert(&axis.name, axis.span)),
                }
            }
        }
    }
}

fn doubled_axis(axis: &Ident, first: Span) -> Diag {
    Diag::error(
        codes::DOUBLED_AXIS,
        format!("axis `{}` stands twice in one tensor", axis.name),
        axis.span,
        "again here",
    )
    .with_related(first, "first here")
    .with_help("a tensor has an axis once; define a second name with `axis`")
}

fn member_name(member: &Member) -> Option<(&Ident, &'static str)> {
    Some(match member {
        Member::Param(param) => (&param.name, "parameter"),
        Member::State(state) => (&state.name, "state"),
        Member::Table(table) => (&table.name, "table"),
        Member::Sub(sub) => (&sub.name, "sub-block"),
        Member::Stack(stack) => (&stack.name, "stack"),
        Member::Axis(_) | Member::Require(_) | Member::Forward(_) => return None,
    })
}

fn once<'a>(
    seen: &mut BTreeMap<&'a str, &'a Ident>,
    name: &'a Ident,
    what: &str,
    diags: &mut Vec<Diag>,
) {
    if let Some(first) = seen.get(name.name.as_str()) {
        diags.push(
            Diag::error(
                codes::DOUBLED_MEMBER,
                format!("{what} `{}` has a name that is already taken", name.name),
                name.span,
                "taken again here",
            )
            .with_related(first.span, "first taken here")
            .with_help("rename one of them"),
        );
        return;
    }
    seen.insert(&name.name, name);
}

fn not_reserved(name: &Ident, diags: &mut Vec<Diag>) {
    if BUILTINS.contains(&name.name.as_str()) {
        diags.push(reserved(name));
    }
}

fn reserved(name: &Ident) -> Diag {
    Diag::error(
        codes::RESERVED_NAME,
        format!("`{}` is a function of the language and cannot be redefined", name.name),
        name.span,
        "reserved name",
    )
    .with_help("choose another name")
}

// Stages ----------------------------------------------------------------------------------------

fn stage(program: &Program, stage: &Stage, diags: &mut Vec<Diag>) {
    if let Some(parent) = &stage.extends
        && program.stage(&parent.name).is_none()
        && !program.damaged.contains(&parent.name)
    {
        diags.push(program.unknown_parent(parent));
    }
    let mut seen: BTreeMap<&str, Span> = BTreeMap::new();
    for binding in &stage.bindings {
        not_reserved(&binding.name, diags);
        match seen.get(binding.name.name.as_str()) {
            Some(first) => diags.push(
                Diag::error(
                    codes::DOUBLED_BINDING,
                    format!("`{}` is bound twice in this stage", binding.name.name),
                    binding.name.span,
                    "bound again here",
                )
                .with_related(*first, "first bound here")
                .with_help("remove one of them"),
            ),
            None => drop(seen.insert(&binding.name.name, binding.name.span)),
        }
        let kind = kind_of(program, &binding.value, &|_| None)
            .unwrap_or_else(|| likely_kind(&binding.value));
        ExprCheck { program, names: None, diags }.value(&binding.value, kind);
    }
    probe(program, stage, diags);
}

/// A probe overrides what its stage has.
fn probe(program: &Program, stage: &Stage, diags: &mut Vec<Diag>) {
    let (Some(probe), Ok(known)) = (&stage.probe, program.bindings(&stage.name.name)) else {
        return;
    };
    for binding in &probe.bindings {
        let name = &binding.name;
        if !known.contains_key(name.name.as_str()) && !program.is_damaged(&stage.name.name) {
            diags.push(unknown_name(&name.name, name.span, known.keys().copied().collect(), true));
        }
    }
}

/// Each cycle is reported once, at the first of its stages.
fn extends_cycles(program: &Program, diags: &mut Vec<Diag>) {
    let mut done: BTreeSet<&str> = BTreeSet::new();
    for def in &program.stages {
        let mut path: Vec<&Stage> = Vec::new();
        let mut at: &Stage = &def.ast;
        let closed = loop {
            if done.contains(at.name.name.as_str()) {
                break false;
            }
            if path.iter().any(|s| s.name.name == at.name.name) {
                break true;
            }
            path.push(at);
            let parent = at.extends.as_ref().and_then(|p| program.stage(&p.name));
            match parent {
                Some(parent) => at = &parent.ast,
                None => break false,
            }
        };
        if closed {
            let first = path.iter().position(|s| s.name.name == at.name.name).unwrap_or(0);
            diags.push(extends_cycle(path.get(first..).unwrap_or_default()));
        }
        done.extend(path.iter().map(|s| s.name.name.as_str()));
    }
}

fn extends_cycle(cycle: &[&Stage]) -> Diag {
    let names: Vec<&str> =
        cycle.iter().chain(cycle.first()).map(|s| s.name.name.as_str()).collect();
    let Some((first, rest)) = cycle.split_first() else {
        let nowhere = Span { source: crate::source::SourceId(0), start: 0, end: 0 };
        return Diag::error(codes::EXTENDS_CYCLE, "a stage extends itself", nowhere, "");
    };
    let place = |stage: &Stage| stage.extends.as_ref().map_or(stage.name.span, |e| e.span);
    let mut diag = Diag::error(
        codes::EXTENDS_CYCLE,
        format!("stage `{}` extends itself", first.name.name),
        place(first),
        names.join(" -> "),
    );
    for stage in rest.iter().take(8) {
        diag = diag.with_related(place(stage), "through this stage");
    }
    diag.with_help("a stage starts from another one; let one of them stand alone")
}
