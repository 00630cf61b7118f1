//! Inputs and outputs of blocks that a map changes.

use super::{Frame, Work};
use crate::growth::expr::Builder;
use crate::growth::{Port, apply, codes};
use lightc_dsl::ast::RuleExpr;
use lightc_dsl::diag::Diag;

impl Work<'_> {
    /// How inputs or outputs correspond: a rule whose sources are the other side's ports.
    pub(super) fn port(
        &mut self,
        name: Option<&str>,
        value: &RuleExpr,
        is_input: bool,
        frame: &Frame,
    ) -> Option<Port> {
        let target = apply::ports(self.target, is_input);
        let wanted = name.map_or_else(|| apply::RESULT.to_owned(), str::to_owned);
        let Some(tensor) = target.iter().find(|port| port.path == wanted) else {
            let what = if is_input { "input" } else { "output" };
            let message = format!("`{}` has no {what} `{wanted}`", self.target.model.name);
            let names: Vec<String> = target.iter().map(|p| format!("`{}`", p.path)).collect();
            let diag = Diag::error(codes::UNKNOWN_PATH, message, value.span, "unknown");
            self.report(diag.with_help(format!("there are {}", names.join(", "))), frame);
            return None;
        };
        let mut source = self.source.clone();
        source.replace_tensors(apply::ports(self.source, is_input));
        let none = Vec::new();
        let (names, stage) = (&frame.names, &self.target.model.name);
        let mut builder = Builder::new(&source, "", "", names, &none, tensor, stage);
        let rule = builder.rule(value);
        let diags = builder.diags;
        diags.into_iter().for_each(|diag| self.report(diag, frame));
        Some(Port { name: wanted, rule: rule? })
    }
}
