//! The memory of one GPU in training, by storage class and layout. `docs/memory.md` has the
//! formulae and what is assumed.
//!
//! Tensors at rest are counted exactly from the declarations. What is live within a step is an
//! estimate from the graph: every value of a forward or backward function occupies memory from
//! the node that makes it to its last use, and views occupy nothing. For `cpu` nothing is fused; for a
//! target with kernels, values that live within one of them occupy nothing either.

mod live;

use live::live;
pub(crate) use live::occupies;
pub use live::{BATCH, Live, SEQUENCE, States};
pub(super) use live::{bound, callee_sizes, root_sizes, unshifted};

use crate::ir::paths::Placed;
use crate::ir::{BackwardId, Module};
use crate::pipeline::Compiled;
use crate::rows::Plans;
use crate::schedule::Target;
use lightc_dsl::ast::DType;
use lightc_dsl::model::Storage;
use lightc_numerics::memory::RESERVE_BYTES;
use serde::Serialize;

/// What the ledger is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Setup {
    /// GPUs that train one copy of the stage.
    pub gpus: u64,
    /// Sequences per GPU and step.
    pub micro_batch: u64,
    /// Tokens per sequence.
    pub seq: u64,
    /// Whether states of reversible stacks are stored.
    pub states: States,
}

/// Bytes per GPU by storage class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Classes {
    /// Trained and frozen parameters.
    pub parameters: u64,
    /// Codes and scales.
    pub quantized_base: u64,
    /// Adapters.
    pub adapters: u64,
    /// Of parameters and adapters.
    pub gradients: u64,
    /// fp32 master and two moments.
    pub optimizer: u64,
    /// States of stacks (or what plain ones keep for their backward), of the model, and carries.
    pub states: u64,
    /// Low bits that inverse steps need.
    pub kept_bits: u64,
    /// Selections that a recomputed layer reuses.
    pub replay: u64,
    /// Most that is live within a step besides all of the above.
    pub workspace: u64,
    /// Set aside for what is not counted, where the ledger is that of a run on a GPU.
    pub reserve: u64,
}

impl Classes {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.rows().iter().map(|(_, bytes)| bytes).sum()
    }

    /// Adds what lies at rest.
    fn add(&mut self, other: &Classes) -> Option<()> {
        for (to, from) in [
            (&mut self.parameters, other.parameters),
            (&mut self.quantized_base, other.quantized_base),
            (&mut self.adapters, other.adapters),
            (&mut self.gradients, other.gradients),
            (&mut self.optimizer, other.optimizer),
        ] {
            *to = to.checked_add(from)?;
        }
        Some(())
    }

    /// Name and bytes, in order.
    pub fn rows(&self) -> [(&'static str, u64); 10] {
        [
            ("parameters", self.parameters),
            ("quantized base", self.quantized_base),
            ("adapters", self.adapters),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("states", self.states),
            ("kept bits", self.kept_bits),
            ("replay", self.replay),
            ("workspace", self.workspace),
            ("reserve", self.reserve),
        ]
    }
}

/// One way to spread a stage over GPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Layout {
    /// `plain`, `zero_1` or `expert_parallel`; of one run, `run` or `share`.
    pub name: &'static str,
    /// Bytes of the GPU that has most.
    pub bytes: Classes,
    /// All of them.
    pub total: u64,
}

/// The memory of a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ledger {
    /// The stage.
    pub stage: String,
    /// What it is for.
    pub setup: Setup,
    /// Every layout.
    pub layouts: Vec<Layout>,
}

/// The ledger of a compiled stage whose parameters have bound sizes, as `cpu` computes it: nothing fused.
/// `None` if a size is open that neither the batch nor the sequence binds, or a number overflows.
pub fn memory(module: &Module, backward: BackwardId, setup: Setup) -> Option<Ledger> {
    let live = live(module, backward, None, setup.states)?;
    let mut layouts = Vec::new();
    for name in ["plain", "zero_1", "expert_parallel"] {
        let rest = parameters(module, name, setup.gpus.max(1))?;
        let bytes = live.at(&rest, setup.micro_batch, setup.seq)?;
        layouts.push(Layout { name, bytes, total: bytes.total() });
    }
    Some(Ledger { stage: module.name.clone(), setup, layouts })
}

/// What is live within a step of a compiled stage, as its target computes it; `None` as for [`memory`].
pub fn live_for(compiled: &Compiled, target: Target, states: States) -> Option<Live> {
    let plans = match target {
        Target::Cpu => None,
        Target::Sm90a => Some(Plans::of(&compiled.module)),
    };
    live(&compiled.module, compiled.backward, plans.as_ref(), states)
}

/// What the one GPU of a run of target `sm_90a` holds: of a whole stage, or of one rank's share. `None` as
/// for [`memory`].
pub fn of_run(compiled: &Compiled, setup: Setup) -> Option<Ledger> {
    let module = &compiled.module;
    let live = live_for(compiled, Target::Sm90a, setup.states)?;
    let bytes = Classes {
        reserve: RESERVE_BYTES,
        ..live.at(&at_rest(compiled)?, setup.micro_batch, setup.seq)?
    };
    let name = if compiled.share.is_some() { "share" } else { "run" };
    let layouts = vec![Layout { name, bytes, total: bytes.total() }];
    Some(Ledger { stage: module.name.clone(), setup, layouts })
}

/// Bytes of tensors at rest on the one GPU of a run, by class. With a share, the optimizer's state of what
/// every rank has is divided among the ranks.
pub fn at_rest(compiled: &Compiled) -> Option<Classes> {
    let module = &compiled.module;
    let mut sum = Classes::default();
    for placed in module.placed_params() {
        let mut own = Classes::default();
        parameter(&placed, placed.item.ty.count()?.as_constant()?, &mut own)?;
        if let Some(share) = &compiled.share
            && !share.divided.contains(&placed.path)
            && placed.item.ty.dtype == DType::Act
        {
            own.optimizer = own.optimizer.div_ceil(u64::from(share.share.ranks()));
        }
        sum.add(&own)?;
    }
    Some(sum)
}

/// Bytes of an element.
fn width(dtype: DType) -> u64 {
    match dtype {
        DType::Act => 2,
        DType::F32 | DType::Index => 4,
        DType::Bool => 1,
    }
}

/// Bytes of the parameters of one GPU under a layout.
fn parameters(module: &Module, layout: &str, gpus: u64) -> Option<Classes> {
    let mut sum = Classes::default();
    for placed in module.placed_params() {
        let count = u64::try_from(placed.item.ty.count()?.as_constant()?).ok()?;
        let experts = (layout == "expert_parallel").then(|| experts(&placed)).flatten();
        // The GPU that has most holds the rounded-up share of the experts.
        let here = match experts {
            Some(experts) => count / experts.max(1) * experts.div_ceil(gpus),
            None => count,
        };
        let mut own = Classes::default();
        parameter(&placed, i64::try_from(here).ok()?, &mut own)?;
        let is_local = layout == "plain" || experts.is_some();
        if !is_local {
            own.optimizer = own.optimizer.div_ceil(gpus);
        }
        sum.add(&own)?;
    }
    Some(sum)
}

/// Adds the bytes of `here` elements of a parameter, and of what belongs to it.
fn parameter(placed: &Placed<'_, crate::ir::Param>, here: i64, to: &mut Classes) -> Option<()> {
    let here = u64::try_from(here).ok()?;
    let row = placed.item.ty.axes.last().and_then(|axis| axis.size.as_constant());
    let value = here.checked_mul(width(placed.item.ty.dtype))?;
    match placed.item.storage {
        Storage::Quantized(_) => {
            to.quantized_base += here + 4 * (here / u64::try_from(row?).ok()?.max(1));
            return Some(());
        }
        Storage::Frozen(_) => {
            to.parameters += value;
            return Some(());
        }
        Storage::Trained => to.parameters += value,
        Storage::Adapter => to.adapters += value,
    }
    to.gradients += value;
    // A parameter that computes in 32 bits is its own master.
    let per_element = if placed.item.ty.dtype == DType::F32 { 8 } else { 12 };
    to.optimizer += here.checked_mul(per_element)?;
    Some(())
}

/// How many experts a parameter has: the axis of which only some positions work per token.
fn experts(placed: &Placed<'_, crate::ir::Param>) -> Option<u64> {
    let active = placed.item.active.as_ref()?;
    u64::try_from(placed.item.ty.axis(&active.of)?.size.as_constant()?).ok()
}
