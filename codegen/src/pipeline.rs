//! The passes in order, with the verifier after each.

use crate::analysis;
use crate::autodiff;
use crate::ir::verify::verify;
use crate::ir::{BackwardId, Module};
use crate::lower;
use lightc_dsl::diag::Diag;
use lightc_dsl::model::StageModel;
use lightc_dsl::source::Span;

/// A stage that has passed every check: nothing after this fails on what a user wrote.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The differentiated module.
    pub module: Module,
    /// The backward function of the entry, seeded with its loss.
    pub backward: BackwardId,
}

/// The output of the root block that training minimises.
pub const LOSS: &str = "loss";

/// Lowers a stage and verifies the result.
///
/// # Errors
/// All diagnostics of lowering.
pub fn lower(model: &StageModel) -> Result<Module, Vec<Diag>> {
    let module = lower::lower(model)?;
    verified(&module, "lowering", model.span)?;
    Ok(module)
}

/// Whether a module has a scalar to minimise. One that has none can be checked and inspected, and
/// gradient liveness does not apply to it.
pub fn has_loss(module: &Module) -> bool {
    module.entry_function().outputs.iter().any(|output| output.name.as_deref() == Some(LOSS))
}

/// Lowers a stage, derives its backward pass and checks gradient liveness.
///
/// # Errors
/// All diagnostics of the first pass that has any.
pub fn compile(model: &StageModel) -> Result<Compiled, Vec<Diag>> {
    differentiate(model, lower(model)?)
}

/// The rest of [`compile`], from a stage's lowered module on.
///
/// # Errors
/// All diagnostics of the first pass that has any.
pub fn differentiate(model: &StageModel, mut module: Module) -> Result<Compiled, Vec<Diag>> {
    let backward = autodiff::differentiate(&mut module, LOSS)
        .map_err(|error| vec![lower::at(error, model.span)])?;
    verified(&module, "differentiation", model.span)?;
    let dead = analysis::dead_parameters(&module, backward);
    if dead.is_empty() { Ok(Compiled { module, backward }) } else { Err(dead) }
}

/// A violation is a fault of this compiler, and is reported as one.
fn verified(module: &Module, pass: &str, span: Span) -> Result<(), Vec<Diag>> {
    let violations = verify(module);
    if violations.is_empty() {
        return Ok(());
    }
    let diags = violations.iter().map(|violation| {
        Diag::error(
            "E0701",
            format!("compiler fault: the IR after {pass} is not valid: {violation}"),
            span,
            "while compiling this stage",
        )
        .with_help("this is a fault of lightc, not of the source; please report it with the source")
    });
    Err(diags.collect())
}
