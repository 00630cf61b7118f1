//! Tensors of the source that a rule names.

use super::Builder;
use super::want::Want;
use crate::growth::codes;
use crate::growth::pattern::{self, Pattern};
use crate::growth::rule::{Rule, RuleKind};
use crate::growth::tree::Tensor;
use crate::ir::Type;
use lightc_dsl::diag::Diag;
use lightc_dsl::model::Axis;
use lightc_dsl::size::Size;
use lightc_dsl::source::Span;

impl Builder<'_> {
    pub(super) fn source_tensor(
        &mut self,
        path: &lightc_dsl::ast::Path,
        span: Span,
        want: &Want,
    ) -> Option<Rule> {
        let pattern = match Pattern::new(self.prefix, path, self.names) {
            Ok(pattern) => pattern,
            Err(diag) => return self.fail(*diag),
        };
        let filled = match pattern.wildcards() {
            0 => Some(pattern.text()),
            _ => pattern.fill(self.captures),
        };
        let Some(found) = filled else {
            return self.fail(
                Diag::error(
                    codes::WILDCARDS,
                    format!(
                        "`src.{path}` has {} wildcards, and the target's path has {}",
                        pattern.wildcards(),
                        self.captures.len()
                    ),
                    span,
                    "wildcards correspond in order",
                )
                .with_help("write the same wildcards in the same order on both sides"),
            );
        };
        let Some(tensor) = self.source.tensor(&found) else {
            return self.no_source(&found, span, pattern.wildcards() > 0);
        };
        self.used.push(found);
        let tensor = tensor.clone();
        self.same_kind(&tensor, span)?;
        self.leaf(&tensor, span, want)
    }

    fn no_source(&mut self, found: &str, span: Span, wild: bool) -> Option<Rule> {
        let is_node = self.source.nodes.contains_key(found);
        if is_node {
            return self.fail(
                Diag::error(
                    codes::UNKNOWN_PATH,
                    format!("`{found}` of `{}` is a block, not a tensor", self.source.model.name),
                    span,
                    "a block",
                )
                .with_help(format!("write `src.{found}.**` for all its tensors")),
            );
        }
        let mut diag = pattern::unknown(self.source, found, span);
        if wild {
            diag.code = codes::WILDCARDS;
            diag.message = format!(
                "`{}` has `{}`, and `{}` has no `{found}`",
                self.stage, self.target.path, self.source.model.name
            );
            diag.help =
                Some(format!("give `{}` a rule of its own, and name the others", self.target.path));
        }
        self.fail(diag)
    }

    /// A parameter is grown from parameters, a state from states.
    fn same_kind(&mut self, tensor: &Tensor, span: Span) -> Option<()> {
        if tensor.kind() == self.target.kind() {
            return Some(());
        }
        let mut diag = Diag::error(
            codes::KIND,
            format!(
                "`{}` is a {} of `{}`, and `{}` is a {} of `{}`",
                self.target.path,
                self.target.kind(),
                self.stage,
                tensor.path,
                tensor.kind(),
                self.source.model.name
            ),
            span,
            format!("a {}", tensor.kind()),
        );
        if let Some(declared) = tensor.span {
            diag = diag.with_related(declared, "declared here");
        }
        self.fail(diag.with_help(format!(
            "start it anew, as in `{} = zeros`, and `drop src.{} \"reason\"`",
            self.target.path, tensor.path
        )))
    }

    /// A source tensor where axes are wanted: the same set of axes, in whatever order.
    fn leaf(&mut self, tensor: &Tensor, span: Span, want: &Want) -> Option<Rule> {
        let has: Vec<&str> = tensor.ty.axes.iter().map(|a| a.name.as_str()).collect();
        let fits = has.len() == want.axes.len() && has.iter().all(|axis| want.has(axis));
        let mut diags = Vec::new();
        if !fits {
            diags.push(self.wrong_axes(tensor, span, want));
        } else {
            for axis in &tensor.ty.axes {
                if let Some(size) = want.size(&axis.name)
                    && *size != axis.size
                {
                    diags.push(self.wrong_size(tensor, axis, size, span));
                }
            }
        }
        if !diags.is_empty() {
            diags.into_iter().for_each(|diag| self.report(diag));
            return None;
        }
        let kind = RuleKind::Source { path: tensor.path.clone() };
        let rule = Rule { ty: tensor.ty.clone(), kind, span: Some(span) };
        let same = has.iter().zip(&want.axes).all(|(a, (b, _))| a == b);
        if same {
            return Some(rule);
        }
        let axes = want.axes.iter().filter_map(|(name, _)| tensor.ty.axis(name).cloned());
        let ty = Type::new(tensor.ty.dtype, axes.collect());
        Some(Rule { ty, kind: RuleKind::Permute { of: Box::new(rule) }, span: Some(span) })
    }

    fn wrong_axes(&self, tensor: &Tensor, span: Span, want: &Want) -> Diag {
        let mut diag = Diag::error(
            codes::AXES,
            format!(
                "`{}` of `{}` is {}, and {} is wanted here",
                tensor.path,
                self.source.model.name,
                tensor.ty,
                want.text()
            ),
            span,
            "other axes",
        );
        if let Some(declared) = tensor.span {
            diag = diag.with_related(declared, format!("`{}` of the source", tensor.path));
        }
        let lacks = want.axes.iter().find(|(name, _)| !tensor.ty.has(name));
        let extra = tensor.ty.axes.iter().find(|axis| !want.has(&axis.name));
        match (lacks, extra) {
            (Some((name, _)), Some(axis)) => diag.with_help(format!(
                "where the two are one axis: `rename({}, {} -> {name})`",
                "src....", axis.name
            )),
            (Some((name, _)), None) => {
                diag.with_help(format!("`repeat(..., over {name})` gives every position the same"))
            }
            (None, Some(axis)) => {
                diag.with_help(format!("`{}` has no place in the target", axis.name))
            }
            (None, None) => diag,
        }
    }

    fn wrong_size(&self, tensor: &Tensor, axis: &Axis, wanted: &Size, span: Span) -> Diag {
        let mut diag = Diag::error(
            codes::SIZE,
            format!(
                "axis `{}` of `{}` has size {} in `{}`, and {wanted} is wanted here",
                axis.name, tensor.path, axis.size, self.source.model.name
            ),
            span,
            format!("{} positions", axis.size),
        );
        if let Some(declared) = tensor.span {
            diag = diag.with_related(declared, format!("`{}` of the source", tensor.path));
        }
        let smaller = match (axis.size.as_constant(), wanted.as_constant()) {
            (Some(have), Some(want)) => have < want,
            _ => true,
        };
        let name = &axis.name;
        diag.with_help(match smaller {
            true => {
                format!("`concat(..., zeros, over {name})` adds positions, `tile` repeats them")
            }
            false => format!("`subset(..., over {name})` or `slice` takes fewer positions"),
        })
    }
}
