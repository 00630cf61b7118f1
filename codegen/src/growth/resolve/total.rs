//! That a map is total: what goes nowhere, what is copied, what has no rule.

use super::head::Head;
use super::{Frame, Work, below, listed, named};
use crate::growth::numbers::Names;
use crate::growth::pattern::{self, Pattern};
use crate::growth::{GrowthMap, Rule, TargetRule, codes, settings};
use lightc_dsl::ast::{Loop, Path, RuleExpr, RuleExprKind, Text};
use lightc_dsl::diag::{self, Diag};
use lightc_dsl::source::Span;
use std::collections::BTreeMap;

impl Work<'_> {
    pub(super) fn drop_clause(
        &mut self,
        path: &Path,
        reason: &Text,
        loops: &[Loop],
        frame: &Frame,
    ) {
        if reason.value.trim().is_empty() {
            let diag = Diag::error(
                codes::BAD_DROP,
                "a drop has no reason",
                reason.span,
                "say why it goes nowhere",
            );
            self.report(diag.with_help("write `drop src.path \"the reason\"`"), frame);
        }
        for names in self.rounds(loops, frame) {
            let pattern = match Pattern::new(&frame.source, path, &names) {
                Ok(pattern) => pattern,
                Err(diag) => {
                    self.lose(*diag, frame);
                    continue;
                }
            };
            let paths = self.source.tensors.iter().map(|t| t.path.clone());
            let found: Vec<String> = paths.filter(|p| pattern.matches(p).is_some()).collect();
            if found.is_empty() {
                let diag = pattern::unknown(self.source, &pattern.text(), path.span);
                self.lose(diag, frame);
            }
            for path in found {
                self.drops.insert(path, (reason.value.clone(), pattern.span));
            }
        }
    }

    /// `rest = src`: what has no rule is copied from the same path.
    pub(super) fn rest(&mut self) {
        let rests = std::mem::take(&mut self.rests);
        for tensor in &self.target.tensors {
            if self.entries.contains_key(&tensor.path) {
                continue;
            }
            for rest in &rests {
                let Some(below) = below(&tensor.path, &rest.target) else { continue };
                let path = crate::ir::paths::join(&rest.source, below);
                if self.source.tensor(&path).is_none() {
                    continue;
                }
                let value = RuleExpr {
                    kind: RuleExprKind::Source(Path {
                        segments: named(&path, rest.span),
                        span: rest.span,
                    }),
                    span: rest.span,
                };
                let frame = Frame {
                    target: String::new(),
                    source: String::new(),
                    names: Names::default(),
                    chain: Vec::new(),
                };
                let index = self.target.position(&tensor.path).unwrap_or_default();
                self.tensor_rule(index, &Vec::new(), &value, (rest.span, false), &frame);
                break;
            }
        }
    }

    fn missing(&mut self) {
        let mut groups: BTreeMap<(Option<Span>, String), Vec<String>> = BTreeMap::new();
        for tensor in &self.target.tensors {
            if !self.entries.contains_key(&tensor.path) {
                let kind = tensor.kind().to_owned();
                groups.entry((tensor.span, kind)).or_default().push(tensor.path.clone());
            }
        }
        let (map, stage) = (self.def.ast.name.clone(), &self.target.model.name);
        for ((declared, kind), paths) in groups {
            let mut diag = Diag::error(
                codes::MISSING,
                match paths.len() {
                    1 => format!(
                        "{kind} {} of `{stage}` has no rule in map `{}`",
                        listed(&paths),
                        map.name
                    ),
                    _ => format!(
                        "{kind}s {} of `{stage}` have no rule in map `{}`",
                        listed(&paths),
                        map.name
                    ),
                },
                map.span,
                "not every tensor of the target has a rule",
            );
            if let Some(declared) = declared {
                diag = diag.with_related(declared, format!("declared here in `{stage}`"));
            }
            let source = &self.source.model;
            diag =
                diag.with_related(source.span, format!("`{}` has none at that path", source.name));
            let first = paths.first().map_or("", String::as_str);
            self.diags.push(diag.with_help(format!(
                "add a rule such as `{first} = zeros`, or `rest = src` for what stays the same"
            )));
        }
    }

    fn unused(&mut self) {
        let mut groups: BTreeMap<Option<Span>, Vec<String>> = BTreeMap::new();
        for tensor in &self.source.tensors {
            if !self.used.contains(&tensor.path) && !self.drops.contains_key(&tensor.path) {
                groups.entry(tensor.span).or_default().push(tensor.path.clone());
            }
        }
        let (map, stage) = (self.def.ast.name.clone(), &self.source.model.name);
        for (declared, paths) in groups {
            let mut diag = Diag::error(
                codes::UNUSED,
                match paths.len() {
                    1 => format!(
                        "{} of `{stage}` goes nowhere in map `{}`",
                        listed(&paths),
                        map.name
                    ),
                    _ => {
                        format!("{} of `{stage}` go nowhere in map `{}`", listed(&paths), map.name)
                    }
                },
                map.span,
                "not every tensor of the source is used",
            );
            if let Some(declared) = declared {
                diag = diag.with_related(declared, format!("declared here in `{stage}`"));
            }
            let target = &self.target.model;
            diag = diag.with_related(target.span, "no rule of this stage reads it");
            let first = paths.first().map_or("", String::as_str);
            self.diags.push(diag.with_help(format!(
                "use it in a rule, or say why not: `drop src.{first} \"the reason\"`"
            )));
        }
        for (path, (_, span)) in &self.drops {
            if self.used.contains(path) {
                let message = format!("`{path}` of `{stage}` is dropped and used");
                let diag = Diag::error(codes::BAD_DROP, message, *span, "dropped here");
                self.diags.push(diag.with_help("remove the drop, or the rule that reads it"));
            }
        }
    }

    pub(super) fn finish(mut self) -> Result<GrowthMap, Vec<Diag>> {
        let stage_map = self.program.stage(&self.source.model.name).is_some();
        let head = Head::read(self.def, stage_map, self.draws, &mut self.diags);
        if !self.lost {
            self.missing();
        }
        if !self.lost && !self.partial {
            self.unused();
        }
        let rules: BTreeMap<&str, &Rule> = self
            .entries
            .iter()
            .filter_map(|(path, entry)| Some((path.as_str(), entry.rule.as_ref()?)))
            .collect();
        let settings = settings::check(self.def, self.source, self.target, &rules, &mut self.diags);
        if !self.diags.is_empty() {
            diag::normalize(&mut self.diags);
            return Err(self.diags);
        }
        let (mut params, mut states) = (Vec::new(), Vec::new());
        for tensor in &self.target.tensors {
            let Some(rule) = self.entries.remove(&tensor.path).and_then(|entry| entry.rule) else {
                continue;
            };
            let (path, ty) = (tensor.path.clone(), tensor.ty.clone());
            let rule = TargetRule { path, ty, rule, moments: head.moments.clone() };
            if tensor.storage.is_some() { params.push(rule) } else { states.push(rule) }
        }
        Ok(GrowthMap {
            name: self.def.ast.name.name.clone(),
            doc: self.def.ast.doc.clone(),
            span: self.def.ast.name.span,
            source: self.source.model.clone(),
            target: self.target.model.clone(),
            sizes: self.sizes,
            claim: head.claim,
            seed: head.seed,
            params,
            states,
            drops: self.drops.into_iter().map(|(path, (reason, _))| (path, reason)).collect(),
            settings,
            inputs: self.inputs,
            outputs: self.outputs,
        })
    }
}
