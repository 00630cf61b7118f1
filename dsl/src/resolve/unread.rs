//! Bindings that nothing reads: most often a name written otherwise than it is read, in whose place a default or an
//! inherited value stands without a word.

use super::check::names_of;
use super::eval::suggest;
use super::{Program, StageDef};
use crate::ast::{
    Binding, ClauseKind, Expr, Grow, Loop, Path, RuleArg, RuleExpr, RuleExprKind, Segment,
};
use crate::diag::{Diag, codes};
use crate::names::closest;
use std::collections::BTreeSet;

impl Program {
    /// A warning for each binding of the root file's stages whose name no block has as a formal and no binding uses. Of a
    /// program with errors there are none: what would read a binding may stand in a line that did not parse. Of a stage without
    /// `model`, which stages of other files may extend, only what could be meant as that.
    pub fn unread_bindings(&self) -> Vec<Diag> {
        if !self.errors.is_empty() {
            return Vec::new();
        }
        let read = self.names_read();
        let own = self.stages.iter().filter(|stage| stage.file == self.root);
        let unread = own.flat_map(|stage| {
            let is_base = !self.is_buildable(&stage.ast.name.name);
            let bindings = stage.ast.bindings.iter();
            bindings.filter(move |b| !is_base || closest(&b.name.name, ["model"]).is_some())
        });
        let unread = unread.filter(|binding| !read.contains(binding.name.name.as_str()));
        unread.map(|binding| warning(binding, &read)).collect()
    }

    /// Every name that a binding of a stage can be read by.
    fn names_read(&self) -> BTreeSet<&str> {
        let mut read = BTreeSet::from(["model"]);
        let formals = self.blocks.iter().flat_map(|block| &block.ast.formals);
        read.extend(formals.map(|formal| formal.name.name.as_str()));
        let bindings = self.stages.iter().flat_map(bindings_of).map(|binding| &binding.value);
        let defaults = self.blocks.iter().flat_map(|block| &block.ast.formals);
        let defaults = defaults.filter_map(|formal| formal.default.as_ref());
        let of_maps = self.maps.iter().flat_map(|map| exprs_of_map(&map.ast));
        let mut used = Vec::new();
        bindings.chain(defaults).chain(of_maps).for_each(|expr| names_of(expr, &mut used));
        read.extend(used.into_iter().map(|(name, _)| name));
        read.extend(self.maps.iter().flat_map(|map| names_of_rules(&map.ast)));
        read
    }
}

/// A stage's bindings and those of its probe.
fn bindings_of(stage: &StageDef) -> impl Iterator<Item = &Binding> {
    let probe = stage.ast.probe.iter().flat_map(|probe| &probe.bindings);
    stage.ast.bindings.iter().chain(probe)
}

/// Bounds of a map's loops and indexes of its paths, which can be sizes of its target.
fn exprs_of_map(map: &Grow) -> Vec<&Expr> {
    let mut exprs = Vec::new();
    for clause in &map.clauses {
        let (paths, loops): (Vec<&Path>, &[Loop]) = match &clause.kind {
            ClauseKind::Drop { path, loops, .. } => (vec![path], loops),
            ClauseKind::Rule { target, loops, .. } => (vec![target], loops),
            _ => (Vec::new(), &[]),
        };
        for segment in paths.iter().flat_map(|path| &path.segments) {
            if let Segment::Index(_, index) = segment {
                exprs.push(index);
            }
        }
        for item in loops.iter().flat_map(|l| &l.lists).flat_map(|list| &list.items) {
            exprs.push(&item.start);
            exprs.extend(&item.end);
        }
    }
    exprs
}

/// Names in a map's values.
fn names_of_rules(map: &Grow) -> Vec<&str> {
    let mut names = Vec::new();
    for clause in &map.clauses {
        if let ClauseKind::Given { value, .. }
        | ClauseKind::Gives { value, .. }
        | ClauseKind::Rule { value, .. } = &clause.kind
        {
            names_of_rule(value, &mut names);
        }
    }
    names
}

fn names_of_rule<'a>(rule: &'a RuleExpr, names: &mut Vec<&'a str>) {
    match &rule.kind {
        RuleExprKind::Name(name) => names.push(name),
        RuleExprKind::Negate(inner) => names_of_rule(inner, names),
        RuleExprKind::Binary(_, left, right) => {
            names_of_rule(left, names);
            names_of_rule(right, names);
        }
        RuleExprKind::Call { args, .. } => {
            for arg in args {
                match arg {
                    RuleArg::Value(value) | RuleArg::Named(_, value) => names_of_rule(value, names),
                    RuleArg::Range { start, end, .. } => {
                        let mut used = Vec::new();
                        [start, end].into_iter().for_each(|expr| names_of(expr, &mut used));
                        names.extend(used.into_iter().map(|(name, _)| name));
                    }
                    _ => {}
                }
            }
        }
        RuleExprKind::Source(_) | RuleExprKind::Number { .. } | RuleExprKind::Positions(_) => {}
    }
}

fn warning(binding: &Binding, read: &BTreeSet<&str>) -> Diag {
    let name = &binding.name.name;
    let diag = Diag::error(
        codes::UNREAD_BINDING,
        format!("nothing reads `{name}`"),
        binding.name.span,
        "no block has a formal of this name, and no binding uses it",
    );
    suggest(diag, name, read.iter().copied()).into_warning()
}
