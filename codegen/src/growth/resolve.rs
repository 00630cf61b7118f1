//! A map as written to one rule per target tensor.

mod head;
mod port;
mod total;

use super::expr::Builder;
use super::numbers::Names;
use super::pattern::{self, Captures, Pattern};
use super::tree::Side;
use super::{GrowthMap, Port, Rule, apply, codes};
use lightc_dsl::ast::{ClauseKind, Expr, ExprKind, Loop, Path, RuleExpr, RuleExprKind};
use lightc_dsl::diag::Diag;
use lightc_dsl::names::closest;
use lightc_dsl::resolve::{FormalValues, MapDef, Program, Sizes};
use lightc_dsl::source::Span;
use std::collections::{BTreeMap, BTreeSet};

/// Deepest nesting of maps that apply maps.
const MAX_NESTING: usize = 16;

/// A map with its sides.
pub(super) struct Resolved {
    pub(super) map: GrowthMap,
    pub(super) source: Side,
    pub(super) target: Side,
}

/// Resolves a map at the stated sizes. A map between blocks is resolved for symbolic sizes, or for
/// those that `formals` gives.
pub(super) fn resolve(
    program: &Program,
    def: &MapDef,
    sizes: Sizes,
    formals: &FormalValues,
) -> Result<Resolved, Vec<Diag>> {
    let is_stage =
        |side: &Expr| matches!(&side.kind, ExprKind::Name(name) if program.stage(name).is_some());
    let name = |side: &Expr| match &side.kind {
        ExprKind::Name(name) => name.clone(),
        ExprKind::Call { callee, .. } => callee.name.clone(),
        _ => String::new(),
    };
    let (from, to) = (&def.from, &def.to);
    let (source, target) = match (is_stage(from), is_stage(to)) {
        (true, true) => both(
            program.resolve_stage_at(&name(from), sizes),
            program.resolve_stage_at(&name(to), sizes),
        )?,
        (false, false) => {
            let unknown: Vec<Diag> = [from, to]
                .into_iter()
                .filter(|side| program.block(&name(side)).is_none())
                .map(|side| unknown_side(program, &name(side), side.span))
                .collect();
            if !unknown.is_empty() {
                return Err(unknown);
            }
            program.resolve_blocks(def, formals)?
        }
        (one, _) => {
            let (stage, block) = if one { (from, to) } else { (to, from) };
            if program.block(&name(block)).is_none() {
                return Err(vec![unknown_side(program, &name(block), block.span)]);
            }
            return Err(vec![
                Diag::error(
                    codes::UNKNOWN_SIDE,
                    format!("`{}` is a block, and `{}` is a stage", name(block), name(stage)),
                    block.span,
                    "a block",
                )
                .with_related(stage.span, "a stage")
                .with_help("a map goes between two stages, or between two blocks"),
            ]);
        }
    };
    let (source, target) = both(Side::new(source), Side::new(target))?;
    let mut names = Names { formals: formals.clone(), ..Names::default() };
    names.sizes.clone_from(&target.model.sizes);
    formals_as_symbols(def, &mut names);
    let mut work = Work::new(program, def, &source, &target, sizes);
    work.run(&names);
    work.finish().map(|map| Resolved { map, source, target })
}

fn both<T>(a: Result<T, Vec<Diag>>, b: Result<T, Vec<Diag>>) -> Result<(T, T), Vec<Diag>> {
    match (a, b) {
        (Ok(a), Ok(b)) => Ok((a, b)),
        (a, b) => {
            let mut diags = a.err().unwrap_or_default();
            diags.extend(b.err().unwrap_or_default());
            Err(diags)
        }
    }
}

/// A formal that has no value is a size of its name.
fn formals_as_symbols(def: &MapDef, names: &mut Names) {
    use lightc_dsl::ast::FormalKind;
    use lightc_dsl::resolve::FormalValue;
    for formal in &def.ast.formals {
        let name = &formal.name.name;
        if names.formals.contains_key(name) {
            continue;
        }
        let value = match (formal.kind, &formal.default) {
            (FormalKind::Number, Some(default)) => match names.number(default) {
                Ok(number) => FormalValue::Number(number),
                Err(_) => continue,
            },
            _ => FormalValue::Size(lightc_dsl::size::Size::symbol(name)),
        };
        names.formals.insert(name.clone(), value);
    }
}

fn unknown_side(program: &Program, name: &str, span: Span) -> Diag {
    let message = format!("there is no stage or block `{name}`");
    let diag = Diag::error(codes::UNKNOWN_SIDE, message, span, "not defined");
    let stages = program.stages().iter().map(|s| s.ast.name.name.as_str());
    let blocks = program.blocks().iter().map(|b| b.ast.name.name.as_str());
    match closest(name, stages.chain(blocks)) {
        Some(near) => diag.with_help(format!("`{near}` exists")),
        None => diag.with_help("define it, or import the file that defines it"),
    }
}

/// The rule of one target tensor, and where it is written.
struct Entry {
    rule: Option<Rule>,
    span: Span,
    /// Its path has no wildcard.
    named: bool,
}

/// A rule whose path has wildcards: it is for what no other rule names.
struct Wild {
    pattern: Pattern,
    value: RuleExpr,
    frame: Frame,
}

/// A `rest = src` and the sub-blocks that it covers.
struct Rest {
    target: String,
    source: String,
    span: Span,
}

/// One map that is being resolved, with the maps that it applies.
pub(super) struct Work<'a> {
    program: &'a Program,
    def: &'a MapDef,
    source: &'a Side,
    target: &'a Side,
    sizes: Sizes,
    entries: BTreeMap<String, Entry>,
    wild: Vec<Wild>,
    rests: Vec<Rest>,
    used: BTreeSet<String>,
    drops: BTreeMap<String, (String, Span)>,
    draws: Option<Span>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    diags: Vec<Diag>,
    /// A clause is in error, so what seems to have no rule has perhaps one there.
    lost: bool,
    /// A rule is in error, so what seems to be unused is perhaps used there.
    partial: bool,
}

/// Where the clauses of a map act.
#[derive(Clone)]
pub(super) struct Frame {
    pub(super) target: String,
    pub(super) source: String,
    pub(super) names: Names,
    /// Maps that are being applied, outermost first, with the place that applies them.
    pub(super) chain: Vec<(String, Span)>,
}

impl<'a> Work<'a> {
    fn new(
        program: &'a Program,
        def: &'a MapDef,
        source: &'a Side,
        target: &'a Side,
        sizes: Sizes,
    ) -> Self {
        Work {
            program,
            def,
            source,
            target,
            sizes,
            entries: BTreeMap::new(),
            wild: Vec::new(),
            rests: Vec::new(),
            used: BTreeSet::new(),
            drops: BTreeMap::new(),
            draws: None,
            inputs: Vec::new(),
            outputs: Vec::new(),
            diags: Vec::new(),
            lost: false,
            partial: false,
        }
    }

    fn run(&mut self, names: &Names) {
        let frame = Frame {
            target: String::new(),
            source: String::new(),
            names: names.clone(),
            chain: vec![(self.def.ast.name.name.clone(), self.def.ast.name.span)],
        };
        self.clauses(self.def, &frame);
        for Wild { pattern, value, frame } in std::mem::take(&mut self.wild) {
            self.matching(&pattern, &value, &frame);
        }
        // Where a rule could not be read, its tensors are not left for `rest`.
        if !self.lost {
            self.rest();
        }
    }

    /// The rules and drops of a map, also of one that is applied.
    fn clauses(&mut self, def: &'a MapDef, frame: &Frame) {
        for clause in &def.ast.clauses {
            match &clause.kind {
                ClauseKind::Rule { target, value, loops } => {
                    self.rule_clause(target, value, loops, frame);
                }
                ClauseKind::Drop { path, reason, loops } => {
                    self.drop_clause(path, reason, loops, frame);
                }
                ClauseKind::Rest => self.rests.push(Rest {
                    target: frame.target.clone(),
                    source: frame.source.clone(),
                    span: clause.span,
                }),
                ClauseKind::Given { name, value } if frame.chain.len() == 1 => {
                    let port = self.port(Some(name.name.as_str()), value, true, frame);
                    self.inputs.extend(port);
                }
                ClauseKind::Gives { name, value } if frame.chain.len() == 1 => {
                    let name = name.as_ref().map(|n| n.name.as_str());
                    let port = self.port(name, value, false, frame);
                    self.outputs.extend(port);
                }
                _ => {}
            }
        }
    }

    /// Reports what keeps a clause from being read.
    fn lose(&mut self, diag: Diag, frame: &Frame) {
        self.lost = true;
        self.report(diag, frame);
    }

    fn report(&mut self, mut diag: Diag, frame: &Frame) {
        for (map, span) in frame.chain.iter().skip(1).rev().take(2) {
            diag = diag.with_related(*span, format!("where `{map}` is applied"));
        }
        self.diags.push(diag);
    }

    fn rounds(&mut self, loops: &[Loop], frame: &Frame) -> Vec<Names> {
        match pattern::rounds(loops, &frame.names) {
            Ok(rounds) => rounds,
            Err(diags) => {
                diags.into_iter().for_each(|diag| self.lose(diag, frame));
                Vec::new()
            }
        }
    }

    fn rule_clause(&mut self, target: &Path, value: &RuleExpr, loops: &[Loop], frame: &Frame) {
        let n_before = self.diags.len();
        for names in self.rounds(loops, frame) {
            // What is wrong in one round is most often wrong in all.
            if self.diags.len() >= n_before + 4 {
                self.lost = true;
                break;
            }
            let frame = Frame { names, ..frame.clone() };
            match Pattern::new(&frame.target, target, &frame.names) {
                Ok(pattern) => self.rule_round(&pattern, value, &frame),
                Err(diag) => self.lose(*diag, &frame),
            }
        }
    }

    fn rule_round(&mut self, pattern: &Pattern, value: &RuleExpr, frame: &Frame) {
        if pattern.wildcards() == 0 && self.target.nodes.contains_key(&pattern.text()) {
            self.application(&pattern.text(), pattern.span, value, frame);
            return;
        }
        if pattern.wildcards() > 0 {
            let (pattern, value, frame) = (pattern.clone(), value.clone(), frame.clone());
            self.wild.push(Wild { pattern, value, frame });
            return;
        }
        self.matching(pattern, value, frame);
    }

    /// A rule for every tensor that its path matches, where no rule names the tensor.
    fn matching(&mut self, pattern: &Pattern, value: &RuleExpr, frame: &Frame) {
        if let Some(diag) = self.motif(pattern, value, frame) {
            self.lose(diag, frame);
            return;
        }
        let matched: Vec<(usize, Captures)> = self
            .target
            .tensors
            .iter()
            .enumerate()
            .filter_map(|(i, tensor)| Some((i, pattern.matches(&tensor.path)?)))
            .collect();
        if matched.is_empty() {
            let root = pattern.root();
            let known = pattern.wildcards() > 0 && self.target.nodes.contains_key(&root);
            let diag = if known {
                Diag::error(
                    codes::UNKNOWN_PATH,
                    format!(
                        "`{}` matches no tensor of `{}`",
                        pattern.text(),
                        self.target.model.name
                    ),
                    pattern.span,
                    "matches nothing",
                )
                .with_help("remove the rule, or name a sub-block that has parameters")
            } else {
                pattern::unknown(self.target, &root, pattern.span)
            };
            self.lose(diag, frame);
            return;
        }
        let named = pattern.wildcards() == 0;
        for (index, captures) in matched {
            let tensor = self.target.tensors.get(index);
            let known = tensor.and_then(|tensor| self.entries.get(&tensor.path));
            if named || !known.is_some_and(|entry| entry.named) {
                self.tensor_rule(index, &captures, value, (pattern.span, named), frame);
            }
        }
    }

    /// A rule for a whole sub-block is a map between blocks that is applied there.
    fn application(&mut self, target: &str, span: Span, value: &RuleExpr, frame: &Frame) {
        let (program, source, to) = (self.program, self.source, self.target);
        match apply::application(program, source, to, target, span, value, frame) {
            Ok((def, below)) if frame.chain.len() < MAX_NESTING => self.clauses(def, &below),
            Ok((def, _)) => {
                let message = format!("`{}` applies itself", def.ast.name.name);
                let diag = Diag::error(codes::APPLICATION, message, value.span, "applied again");
                self.lose(diag.with_help("maps are applied to smaller blocks"), frame);
            }
            Err(diag) => self.lose(*diag, frame),
        }
    }

    fn tensor_rule(
        &mut self,
        index: usize,
        captures: &Captures,
        value: &RuleExpr,
        (span, named): (Span, bool),
        frame: &Frame,
    ) {
        let Some(tensor) = self.target.tensors.get(index) else { return };
        let prefix = match frame.target.as_str() {
            "" => String::new(),
            path => format!("{path}."),
        };
        let mut builder = Builder::new(
            self.source,
            &frame.source,
            &prefix,
            &frame.names,
            captures,
            tensor,
            &self.target.model.name,
        );
        let rule = builder.rule(value);
        let (diags, used, draws) = (builder.diags, builder.used, builder.draws);
        self.used.extend(used);
        self.draws = self.draws.or(draws);
        self.partial |= rule.is_none();
        diags.into_iter().for_each(|diag| self.report(diag, frame));
        let path = tensor.path.clone();
        if let Some(first) = self.entries.get(&path) {
            let first = first.span;
            let mut diag = Diag::error(
                codes::DOUBLED,
                format!("`{path}` of `{}` has two rules", self.target.model.name),
                span,
                "second rule",
            )
            .with_related(first, "first rule");
            if let Some(declared) = tensor.span {
                diag = diag.with_related(declared, "declared here");
            }
            self.report(diag.with_help("narrow one of the two paths"), frame);
            return;
        }
        self.entries.insert(path, Entry { rule, span, named });
    }

    /// A rule that copies all of a block goes between blocks of one kind.
    fn motif(&self, pattern: &Pattern, value: &RuleExpr, frame: &Frame) -> Option<Diag> {
        let RuleExprKind::Source(path) = &value.kind else { return None };
        if pattern.wildcards() == 0 {
            return None;
        }
        let source = Pattern::new(&frame.source, path, &frame.names).ok()?;
        let (to, from) = (pattern.root(), source.root());
        if self.target.nodes.contains_key(&to) && !self.source.nodes.contains_key(&from) {
            return Some(pattern::unknown(self.source, &from, path.span));
        }
        self.other_kind(&to, &from, value.span)
    }

    fn other_kind(&self, to: &str, from: &str, span: Span) -> Option<Diag> {
        let (a, b) = (self.target.instance(to)?, self.source.instance(from)?);
        if a.block != b.block {
            let (stage, source) = (&self.target.model.name, &self.source.model.name);
            let mut diag = Diag::error(
                codes::MOTIF,
                format!(
                    "`{to}` of `{stage}` is a `{}`, and `{from}` of `{source}` is a `{}`",
                    a.block, b.block
                ),
                span,
                format!("a `{}` for a `{}`", b.block, a.block),
            );
            for (side, path) in [(self.target, to), (self.source, from)] {
                if let Some(declared) = side.nodes.get(path).and_then(|place| place.span) {
                    diag =
                        diag.with_related(declared, format!("`{path}` of `{}`", side.model.name));
                }
            }
            return Some(diag.with_help(
                "copy between layers of one kind, or name the tensors that the two have in common",
            ));
        }
        for sub in &a.subs {
            if !b.subs.iter().any(|other| other.name == sub.name) {
                continue;
            }
            let join = crate::ir::paths::join;
            let (to, from) = (join(to, &sub.name), join(from, &sub.name));
            if let Some(diag) = self.other_kind(&to, &from, span) {
                return Some(diag);
            }
        }
        None
    }
}

/// What a path is called below another; itself below the root.
fn below<'p>(path: &'p str, prefix: &str) -> Option<&'p str> {
    if prefix.is_empty() {
        return Some(path);
    }
    path.strip_prefix(prefix)?.strip_prefix('.')
}

fn named(path: &str, span: Span) -> Vec<lightc_dsl::ast::Segment> {
    let ident = |name: &str| lightc_dsl::ast::Ident { name: name.to_owned(), span };
    path.split('.').map(|name| lightc_dsl::ast::Segment::Name(ident(name))).collect()
}

/// `` `a`, `b` and 6 more ``
fn listed(paths: &[String]) -> String {
    let shown: Vec<String> = paths.iter().take(3).map(|p| format!("`{p}`")).collect();
    match paths.len() {
        n if n > 3 => format!("{} and {} more", shown.join(", "), n - 3),
        _ => shown.join(", "),
    }
}
