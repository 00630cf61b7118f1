//! The kernels that are checked and timed.

mod attention;
mod delta;
mod draw;
mod experts;
mod fixed;
mod gather;
mod harness;
mod indexer;
mod loss;
mod mixture;
mod moe_stage;
mod optimizer;
mod routing;
mod stage;

use lightc_runtime::Stage;

use crate::Case;

pub use harness::misuse;

/// Every case. A new family of kernels is a line here.
pub fn all() -> Vec<Box<dyn Case>> {
    vec![
        Box::new(harness::Harness),
        Box::new(delta::Delta),
        Box::new(indexer::Indexer),
        Box::new(attention::Attention),
        Box::new(loss::Loss),
        Box::new(draw::Draw),
        Box::new(gather::Gather),
        Box::new(routing::Routing),
        Box::new(routing::Hadamard),
        Box::new(routing::Quantize),
        Box::new(experts::Adapters),
        Box::new(experts::Experts),
        Box::new(optimizer::Optimizer),
        Box::new(fixed::Fixed),
        Box::new(stage::Dense),
        Box::new(stage::Reversible),
        Box::new(moe_stage::Mixtures),
    ]
}

/// Stages of reduced width, and unless only small sizes are run those of full width.
fn of_size(
    small: bool,
    narrow: &[&'static dyn Stage],
    full: &[&'static dyn Stage],
) -> Vec<&'static dyn Stage> {
    [narrow, if small { &[] } else { full }].concat()
}

/// Those of `sizes` that a memory checker gets through, or all. The length is at `length`.
fn chosen<T: Copy>(small: bool, sizes: &[T], length: fn(&T) -> i64) -> Vec<T> {
    sizes.iter().copied().filter(|size| !small || length(size) <= 700).collect()
}
