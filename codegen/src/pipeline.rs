//! The passes in order, with the verifier after each.

use crate::analysis::{self, Interface};
use crate::autodiff::{self, AutodiffError};
use crate::ir::verify::verify;
use crate::ir::{BackwardId, Function, Module};
use crate::lower;
use crate::ops::TypeError;
use crate::rewrite;
use crate::rewrite::share::Share;
use crate::schedule::Target;
use lightc_dsl::diag::Diag;
use lightc_dsl::model::StageModel;
use lightc_dsl::source::Span;
use std::collections::{BTreeMap, BTreeSet};

/// A stage that has passed every check: nothing after this fails on what a user wrote.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The differentiated module.
    pub module: Module,
    /// The backward function of the entry, seeded with its loss.
    pub backward: BackwardId,
    /// Which rank's share of the stage it is; none for the whole.
    pub share: Option<Shared>,
}

/// A stage of which one rank has its share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    /// One of how many ranks.
    pub share: Share,
    /// Paths of the parameters that ranks divide among them; they have all others whole, and divide the
    /// optimizer's state of these.
    pub divided: BTreeSet<String>,
}

/// A compiled stage that the trainer can feed: what code is emitted from.
#[derive(Clone, Debug)]
pub struct Program<'c> {
    /// The stage.
    pub compiled: &'c Compiled,
    /// How its root block meets the trainer.
    pub interface: Interface,
    /// What code is emitted for.
    pub target: Target,
}

/// [`program_for`] the target `cpu`.
///
/// # Errors
/// As there.
pub fn program(compiled: &Compiled) -> Result<Program<'_>, Vec<Diag>> {
    program_for(compiled, Target::Cpu)
}

/// Checks what the trainer asks of a stage. A stage without this can be checked, inspected and
/// interpreted, but no program is made of it.
///
/// # Errors
/// All diagnostics, in the order of the source.
pub fn program_for(compiled: &Compiled, target: Target) -> Result<Program<'_>, Vec<Diag>> {
    match analysis::interface(&compiled.module) {
        Ok(interface) => Ok(Program { compiled, interface, target }),
        Err(mut diags) => {
            lightc_dsl::diag::normalize(&mut diags);
            Err(diags)
        }
    }
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

/// A stage as a target wants it. For `cpu` that is [`compile`]'s own module; for targets that fuse
/// operations, calls are written out, and the backward has cheap values again (see
/// [`crate::rewrite`]). All checks are those of [`compile`], made before.
///
/// # Errors
/// All diagnostics of the first pass that has any.
pub fn compile_for(model: &StageModel, target: Target) -> Result<Compiled, Vec<Diag>> {
    compile_share(model, target, None)
}

/// [`compile_for`] one rank's share of a stage; see [`crate::rewrite::share`].
///
/// # Errors
/// As there, and a stage without experts that the ranks could divide.
pub fn compile_share(
    model: &StageModel,
    target: Target,
    share: Option<Share>,
) -> Result<Compiled, Vec<Diag>> {
    let lowered = lower(model)?;
    let whole = differentiate(model, lowered.clone())?;
    let Some(share) = share else {
        return match target {
            Target::Cpu => Ok(whole),
            Target::Sm90a => fused(model, &lowered),
        };
    };
    let mut module = lowered.clone();
    let failed = |error: TypeError| vec![fault(error.message, model.span)];
    let n_divided = rewrite::share::share(&mut module, share).map_err(failed)?;
    if n_divided == 0 {
        return Err(vec![nothing_to_share(model, share)]);
    }
    verified(&module, "sharing", model.span)?;
    let sizes = |module: &Module| -> BTreeMap<String, crate::ir::Type> {
        module.placed_params().into_iter().map(|p| (p.path, p.item.ty.clone())).collect()
    };
    let (all, own) = (sizes(&lowered), sizes(&module));
    let divided = own.into_iter().filter(|(path, ty)| all.get(path) != Some(ty));
    let divided = divided.map(|(path, _)| path).collect();
    let compiled = match target {
        Target::Cpu => differentiate(model, module)?,
        Target::Sm90a => fused(model, &module)?,
    };
    Ok(Compiled { share: Some(Shared { share, divided }), ..compiled })
}

fn nothing_to_share(model: &StageModel, share: Share) -> Diag {
    let ranks = share.ranks();
    Diag::error(
        "E0517",
        format!("`{}` has no experts that {ranks} ranks could divide", model.name),
        model.span,
        format!("a share of {share} of this stage was asked for"),
    )
    .with_help(format!(
        "a share divides axes of {} experts or more among the ranks; train the whole stage without \
         `--share`",
        4 * ranks
    ))
}

/// The rewrites of a target that fuses operations.
fn fused(model: &StageModel, lowered: &Module) -> Result<Compiled, Vec<Diag>> {
    let failed = |error: TypeError| vec![fault(error.message, model.span)];
    let mut module = rewrite::inline::inline(lowered).map_err(failed)?;
    verified(&module, "inlining", model.span)?;
    rewrite::fold::fold(&mut module).map_err(failed)?;
    verified(&module, "folding norms", model.span)?;
    rewrite::experts::group(&mut module).map_err(failed)?;
    verified(&module, "grouping experts", model.span)?;
    let _ = rewrite::indexer::indexers(&mut module).map_err(failed)?;
    verified(&module, "finding indexers", model.span)?;
    let _ = rewrite::bounds::bound_masks(&mut module);
    verified(&module, "bounding masks", model.span)?;
    let backward = autodiff::differentiate(&mut module, LOSS)
        .map_err(|error| vec![no_backward(model, &module, error)])?;
    verified(&module, "differentiation", model.span)?;
    rewrite::loss::share_logits(&mut module).map_err(failed)?;
    verified(&module, "sharing logits", model.span)?;
    rewrite::adapters::join_adapters(&mut module).map_err(failed)?;
    verified(&module, "joining adapters", model.span)?;
    rewrite::experts::join_cotangents(&mut module).map_err(failed)?;
    verified(&module, "joining cotangents of experts", model.span)?;
    rewrite::pairs::pair(&mut module).map_err(failed)?;
    verified(&module, "pairing narrow products", model.span)?;
    rewrite::recompute::recompute(&mut module).map_err(failed)?;
    verified(&module, "recomputation", model.span)?;
    Ok(Compiled { module, backward, share: None })
}

/// The rest of [`compile`], from a stage's lowered module on.
///
/// # Errors
/// All diagnostics of the first pass that has any.
pub fn differentiate(model: &StageModel, mut module: Module) -> Result<Compiled, Vec<Diag>> {
    loss_is_a_number(model, &module)?;
    let backward = autodiff::differentiate(&mut module, LOSS)
        .map_err(|error| vec![no_backward(model, &module, error)])?;
    verified(&module, "differentiation", model.span)?;
    let dead = analysis::dead_parameters(&module, backward);
    if dead.is_empty() { Ok(Compiled { module, backward, share: None }) } else { Err(dead) }
}

/// Training minimises one number.
fn loss_is_a_number(model: &StageModel, module: &Module) -> Result<(), Vec<Diag>> {
    let root = module.entry_function();
    let loss = root.outputs.iter().find(|output| output.name.as_deref() == Some(LOSS));
    match loss.map(|output| root.ty(output.value)) {
        Some(ty) if !ty.axes.is_empty() || !ty.is_float() => Err(vec![wrong_loss(
            model,
            root,
            format!("`{LOSS}` is {ty}, but what training minimises is one number"),
            format!("reduce it over its axes, as `mean({LOSS}, over ..)` does"),
        )]),
        _ => Ok(()),
    }
}

fn wrong_loss(model: &StageModel, root: &Function, message: String, help: String) -> Diag {
    let diag = Diag::error("E0503", message, model.span, "this stage is to be trained");
    let diag = match root.span {
        Some(span) => diag.with_related(span, "its root block"),
        None => diag,
    };
    diag.with_help(help)
}

/// Why there is no backward pass, at the place that is at fault.
fn no_backward(model: &StageModel, module: &Module, error: AutodiffError) -> Diag {
    let root = module.entry_function();
    match error {
        AutodiffError::NoLoss => wrong_loss(
            model,
            root,
            format!("the root block `{}` has no output named `{LOSS}`", root.name),
            format!(
                "name the scalar to be minimised in the forward's outputs: `-> ({LOSS}[])`; it has {}",
                output_names(root)
            ),
        ),
        AutodiffError::CutLayer { layer, call } => analysis::cut_layer(module, layer, call)
            .unwrap_or_else(|| {
                let name = &module.function(layer).name;
                let message = format!("layer `{name}` passes no gradient to its input");
                Diag::error("E0502", message, model.span, "in this stage")
            }),
        AutodiffError::Rule(error) => {
            let message = format!("compiler fault: in the backward pass: {}", error.message);
            fault(message, model.span)
        }
    }
}

fn output_names(function: &Function) -> String {
    let named: Vec<String> = function
        .outputs
        .iter()
        .filter_map(|output| output.name.as_ref().map(|name| format!("`{name}`")))
        .collect();
    match (named.len(), function.outputs.len()) {
        (0, 1) => "one output without a name".to_owned(),
        (0, n) => format!("{n} outputs without a name"),
        _ => named.join(", "),
    }
}

/// A violation is a fault of this compiler, and is reported as one.
fn verified(module: &Module, pass: &str, span: Span) -> Result<(), Vec<Diag>> {
    let violations = verify(module);
    if violations.is_empty() {
        return Ok(());
    }
    let diags = violations.iter().map(|violation| {
        fault(format!("compiler fault: the IR after {pass} is not valid: {violation}"), span)
    });
    Err(diags.collect())
}

fn fault(message: String, span: Span) -> Diag {
    Diag::error("E0701", message, span, "while compiling this stage")
        .with_help("this is a fault of lightc, not of the source; please report it with the source")
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightc_dsl::source::SourceId;

    #[test]
    fn an_invalid_module_is_a_fault_of_the_compiler() {
        let named = |name: &str| Function { name: name.to_owned(), ..Function::default() };
        let module = Module { functions: vec![named("A"), named("A")], ..Module::default() };
        let span = Span { source: SourceId(0), start: 0, end: 1 };
        let found = verified(&module, "lowering", span).expect_err("two functions of one name");
        assert!(!found.is_empty());
        for diag in found {
            assert_eq!(diag.code, "E0701");
            assert!(diag.message.starts_with("compiler fault: the IR after lowering"), "{diag:?}");
            assert!(diag.help.is_some_and(|help| help.contains("report")));
        }
    }
}
