//! How a group is spread over threads: threads of a row, elements of a thread, rows of a block.

use super::gather;
use super::group::{Group, Over, SEGMENT, over, sums_blocks};
use super::layout::Layout;
use super::phases::{Phases, has_steps, per_register};
use crate::ir::{Function, ValueId};
use crate::ops::Op;
use lightc_dsl::ast::DType;

/// How a group is spread over threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Threads that share a row: a power of two.
    pub(super) threads: i64,
    /// Neighbouring lanes of a thread.
    pub(super) vector: i64,
    /// Vectors of a thread.
    pub(super) chunks: i64,
    /// Threads of a block.
    pub(super) block: i64,
    /// Blocks beside each other that share a row.
    pub(super) tiles: i64,
    /// Blocks along the rows that are aimed at. It does not depend on the device, so neither do
    /// the bits of a sum over rows.
    pub(super) blocks: i64,
    /// Whether the last threads of a row have no lane.
    pub(super) ragged: bool,
    /// Bytes of shared memory that are given at the launch.
    pub(super) shared: i64,
}

impl Shape {
    /// Rows that a block does side by side.
    pub(super) fn groups(&self) -> i64 {
        self.block / self.threads
    }

    /// Partial sums that a block makes of a sum over rows.
    pub(super) fn parts(&self) -> i64 {
        self.block / self.threads.max(32)
    }
}

fn power(n: i64) -> i64 {
    let mut power = 1;
    while power < n {
        power *= 2;
    }
    power
}

fn up(n: i64, by: i64) -> i64 {
    (n + by - 1) / by.max(1)
}

/// Floats that a thread holds of a value.
pub(super) fn held(layout: &Layout, value: ValueId, vector: i64) -> i64 {
    let lanes = if layout.is_vector(value) { vector } else { 1 };
    lanes * layout.smalls(value).iter().product::<i64>()
}

/// Registers that a thread needs over all of a row: kept values and sums over rows.
fn resident(function: &Function, group: &Group, phases: &Phases, vector: i64, chunks: i64) -> i64 {
    let layout = &group.layout;
    let kept = phases.kept.iter().map(|value| {
        let half = if function.ty(*value).dtype == DType::Act { 1 } else { 2 };
        held(layout, *value, vector) * chunks * half / 2
    });
    let grows = group.nodes.iter().filter_map(|id| {
        let node = function.node(*id);
        let Some(Over::Rows(outer)) = over(layout, node) else { return None };
        let (arg, result) = (*node.args.first()?, *node.results.first()?);
        if let Op::CausalConvWeightGrad(op) = &node.op {
            return Some(vector * chunks * op.taps.size.as_constant()?);
        }
        let all = outer > 0 && outer == layout.lanes(arg).len();
        let lanes = if all || !layout.is_lane(arg) {
            1
        } else if layout.is_vector(arg) {
            vector * chunks
        } else {
            chunks
        };
        Some(lanes * layout.smalls(result).iter().product::<i64>())
    });
    // Rows of a convolution's cotangent that are not complete yet.
    let pending = group.nodes.iter().filter_map(|id| {
        let node = function.node(*id);
        let made = group.nodes.contains(&function.value(*node.args.first()?).node);
        let taps = group.layout.smalls(*node.args.get(1)?).iter().product::<i64>();
        (made && matches!(node.op, Op::CausalConvInputGrad(_))).then_some(taps * vector)
    });
    kept.sum::<i64>() + grows.sum::<i64>() + pending.sum::<i64>()
}

/// What of a thread's registers may be taken beside what one node computes with.
pub(super) const REGISTERS: i64 = 72;

/// What of a thread's 128 registers sums over rows and what is read may take.
const AT_ONCE: i64 = 112;

/// Blocks of so many threads that a multiprocessor has at once.
pub(super) fn at_once(
    function: &Function,
    group: &Group,
    phases: &Phases,
    block: i64,
    vector: i64,
    chunks: i64,
) -> i64 {
    let gathers = group.nodes.iter().any(|id| gather::is_gather(function, *id));
    let blocks =
        if gathers && block == gather::THREADS { gather::RESIDENT } else { (512 / block).max(1) };
    let held = resident(function, group, phases, vector, chunks);
    let mut needed = held + beside(function, group, phases, vector);
    if has_steps(function, group) {
        // What is held in pairs is widened once where there is room for it, and not in each row.
        needed += hoisted(function, group, phases, vector);
    }
    if has_sums_of_steps(function, group) {
        // Where two rows are beside each other there is more of what a thread has of one.
        needed += read(function, group, vector, chunks);
    }
    // Beyond what shapes are chosen for, a thread gets the registers of a block less.
    // Half of the threads would be too few to have enough on its way.
    let reads_much = blocks > 2
        && has_row_sums(function, group)
        && held + read(function, group, vector, chunks) > AT_ONCE;
    if needed > REGISTERS || reads_much { (blocks - 1).max(1) } else { blocks }
}

/// Registers of all that a thread reads in one pass and before all rows: the compiler begins to read much of it at once.
fn read(function: &Function, group: &Group, vector: i64, chunks: i64) -> i64 {
    let layout = &group.layout;
    let vectors = group.inputs.iter().filter(|value| layout.is_vector(**value));
    let one = |value: &ValueId| {
        let half = if function.ty(*value).dtype == DType::Act { 1 } else { 2 };
        held(layout, *value, vector) * chunks * half / 2
    };
    vectors.map(one).sum()
}

/// Registers of what is read before all rows.
fn hoisted(function: &Function, group: &Group, phases: &Phases, vector: i64) -> i64 {
    let one = |value| held(&group.layout, value, vector) / per_register(function, group, value);
    phases.hoisted.iter().map(|value| one(*value)).sum()
}

/// Registers of what is read before all rows, and of steps that are handed from row to row.
fn beside(function: &Function, group: &Group, phases: &Phases, vector: i64) -> i64 {
    let mut seen = std::collections::BTreeSet::new();
    let steps = group.nodes.iter().filter_map(|id| {
        let node = function.node(*id);
        let x = *node.args.first()?;
        let made = group.nodes.contains(&function.value(x).node);
        let taps = match &node.op {
            // Nothing of it is read from other rows.
            Op::CausalConvInputGrad(_) if made => return None,
            Op::CausalConv(_) | Op::CausalConvInputGrad(_) => {
                group.layout.smalls(*node.args.get(1)?).iter().product()
            }
            Op::CausalConvWeightGrad(op) => op.taps.size.as_constant()?,
            _ => return None,
        };
        seen.insert(x).then_some((taps + 1) * vector / 2)
    });
    hoisted(function, group, phases, vector) + steps.sum::<i64>()
}

/// Whether rows that go on with the steps of others have sums over neighbouring threads: see `twos`.
fn has_sums_of_steps(function: &Function, group: &Group) -> bool {
    let is = |id| over(&group.layout, function.node(id)) == Some(Over::Segment);
    has_steps(function, group) && group.nodes.iter().any(|id| is(*id))
}

fn has_row_sums(function: &Function, group: &Group) -> bool {
    let is = |id| matches!(over(&group.layout, function.node(id)), Some(Over::Rows(_)));
    group.nodes.iter().any(|id| is(*id))
}

/// The shape of a group.
pub(super) fn shape(function: &Function, group: &Group, phases: &Phases) -> Shape {
    let layout = &group.layout;
    let sums = has_row_sums(function, group);
    let lane = layout.lane();
    let inner = layout.slots.last().copied().unwrap_or(1);
    let vector = [8, 4, 2].into_iter().find(|v| inner % v == 0).unwrap_or(1);
    if layout.slots.is_empty() {
        return narrow(function, group, sums);
    }
    let whole = phases.all.iter().any(|phase| !phase.sums.is_empty());
    if !whole {
        let mut vector = vector;
        let segments =
            group.nodes.iter().any(|id| over(layout, function.node(*id)) == Some(Over::Segment));
        let by_block = sums_blocks(function, layout, &group.nodes);
        let most = if by_block { SEGMENT } else { 32 };
        while vector > 2
            && resident(function, group, phases, vector, 1)
                + beside(function, group, phases, vector)
                > REGISTERS
            && !(segments && inner / vector * 2 > most)
        {
            vector /= 2;
        }
        // Smaller blocks leave fewer registers unused where a thread needs many.
        let long = has_steps(function, group);
        let widest = if sums || long { 128 } else { 256 };
        let threads = match by_block {
            true => inner / vector,
            false => power(up(lane, vector)).min(widest),
        };
        let block = if by_block { threads } else { threads.max(widest) };
        let tiles = up(lane, vector * threads);
        // Sums over rows and steps that go from row to row want blocks with many rows: as many blocks as there can be at
        // once, or twice as many where a block begins with little.
        let at_once = at_once(function, group, phases, block, vector, 1);
        let blocks = match (sums, long) {
            (true, true) => 132 * at_once,
            (true, false) => 132 * 5,
            (false, true) => 132 * at_once * 2,
            (false, false) => 132 * 96,
        };
        let blocks = blocks / tiles;
        let ragged = tiles * threads * vector != lane;
        return Shape { threads, vector, chunks: 1, block, tiles, blocks, ragged, shared: 0 };
    }
    if group.nodes.iter().any(|id| gather::is_gather(function, *id)) {
        return gathered(layout, vector, sums);
    }
    let vectors = layout.values.keys().filter(|value| layout.is_vector(**value));
    let widest = vectors.map(|value| held(layout, *value, 1)).max().unwrap_or(1);
    let mut chunks = (if widest > 1 { 64 } else { 32 } / (widest * vector)).max(1);
    while chunks > 1
        && power(up(lane, vector * chunks)) < 512
        && resident(function, group, phases, vector, chunks) > 64
    {
        chunks /= 2;
    }
    let threads = power(up(lane, vector * chunks)).min(1024);
    let chunks = up(lane, vector * threads);
    let block = if threads <= 32 { 256 } else { threads };
    let blocks = if sums {
        132 * at_once(function, group, phases, block, vector, chunks)
    } else {
        132 * 64 * 256 / block
    };
    let ragged = chunks * threads * vector != lane;
    Shape { threads, vector, chunks, block, tiles: 1, blocks, ragged, shared: 0 }
}

/// Rows that are gathered and summed over their lanes: many threads share one, so that a thread has all that it
/// reads of a table on its way at once.
fn gathered(layout: &Layout, vector: i64, sums: bool) -> Shape {
    let lane = layout.lane();
    let threads = power(up(lane, vector)).min(gather::THREADS);
    let chunks = up(lane, vector * threads);
    let block = if threads <= 32 { 256 } else { threads };
    let blocks = if sums { 132 * gather::RESIDENT } else { 132 * 64 * 256 / block };
    let ragged = chunks * threads * vector != lane;
    Shape { threads, vector, chunks, block, tiles: 1, blocks, ragged, shared: 0 }
}

/// A thread has a row to itself.
fn narrow(function: &Function, group: &Group, sums: bool) -> Shape {
    let kept = group.nodes.iter().filter_map(|id| match &function.node(*id).op {
        Op::SinkhornGrad(op) => {
            let smalls = group.layout.smalls(*function.node(*id).args.first()?);
            Some(op.iterations * smalls.iter().sum::<i64>() * 4)
        }
        _ => None,
    });
    let kept = kept.max().unwrap_or_default();
    let block = if kept > 0 { 32 } else { 64 };
    let blocks = if sums { 132 * 4 } else { 132 * 64 };
    Shape {
        threads: 1,
        vector: 1,
        chunks: 1,
        block,
        tiles: 1,
        blocks,
        ragged: false,
        shared: kept * block,
    }
}
