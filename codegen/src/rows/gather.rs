//! Sums of gathered rows: a row of a kernel reads the rows of a table that its index names.
//!
//! **What is read.** A table lies in memory as it is stored. Where it is widened for the sum alone, the threads
//! widen what they read and nothing else of it exists; such a cast belongs to the sum and to no group. Neither the
//! rows of the table nor the slots of the index are parts of the kernel's rows or lanes: the op walks them itself.
//!
//! **Order.** Slots are added in their order, starting from 0, in 32 bits: that is the definition's. An empty slot is
//! left out, wherever it stands; `gather_sum` of the prelude says how.

use super::cuda::Writer;
use super::layout::Layout;
use crate::ir::{Function, Node, NodeId, ValueId};
use crate::ops::{GatherSum, Op};
use lightc_dsl::ast::DType;
use std::collections::BTreeSet;

/// Threads of a row from which on a warp has one row.
const WARP: i64 = 32;
/// Most threads of a row: what they read of a table is in flight at once.
pub(super) const THREADS: i64 = 512;
/// Blocks of so many threads of one multiprocessor, so that one reads where another waits.
pub(super) const RESIDENT: i64 = 2;

/// A sum of gathered rows, as a kernel reads it.
pub(super) struct Gather<'a> {
    /// The op.
    pub(super) op: &'a GatherSum,
    /// The table that the op names.
    pub(super) named: ValueId,
    /// The table as it is stored.
    pub(super) table: ValueId,
    /// The index.
    pub(super) index: ValueId,
}

impl<'a> Gather<'a> {
    /// What a node reads, if it is such a sum.
    pub(super) fn of(function: &Function, node: &'a Node) -> Option<Gather<'a>> {
        let (Op::GatherSum(op), [named, index]) = (&node.op, node.args.as_slice()) else {
            return None;
        };
        let made = function.definition(*named);
        let narrow = made.args.first().filter(|arg| {
            matches!(made.op, Op::Cast(_))
                && function.ty(**arg).dtype == DType::Act
                && function.ty(*named).dtype == DType::F32
        });
        Some(Gather { op, named: *named, table: *narrow.unwrap_or(named), index: *index })
    }

    /// Rows of the table, slots of the index; `None` where one of them is open.
    fn sizes(&self, function: &Function) -> Option<(i64, i64)> {
        let size = |value, axis: &str| function.ty(value).axis(axis)?.size.as_constant();
        Some((size(self.named, &self.op.rows)?, size(self.index, &self.op.slots)?))
    }
}

/// What a node reads; of a table that is widened for it, the table as it is stored.
pub(super) fn reads(function: &Function, node: &Node) -> Vec<ValueId> {
    match Gather::of(function, node) {
        Some(gather) => vec![gather.table, gather.index],
        None => node.args.clone(),
    }
}

/// Whether a kernel with this layout can make a sum of gathered rows: each row has an index of its own, and a
/// thread holds neighbouring elements of the whole lane.
pub(super) fn fits(
    function: &Function,
    layout: &Layout,
    node: &Node,
    made: &BTreeSet<ValueId>,
) -> bool {
    let (Some(gather), Some(result)) = (Gather::of(function, node), node.results.first()) else {
        return false;
    };
    let all: Vec<usize> = (0..layout.slots.len()).collect();
    let is_whole = |value: ValueId| layout.lanes(value) == all && layout.smalls(value).is_empty();
    let (of_table, of_index) = (function.ty(gather.named), function.ty(gather.index));
    ![gather.named, gather.table, gather.index].iter().any(|value| made.contains(value))
        && gather.sizes(function).is_some_and(|(rows, _)| i32::try_from(rows).is_ok())
        && !of_table.has(&gather.op.slots)
        && !of_index.has(&gather.op.rows)
        && !all.is_empty()
        && is_whole(*result)
        && is_whole(gather.table)
        && !layout.is_lane(gather.index)
        && layout.smalls(gather.index).is_empty()
        && layout.row_parts(gather.index).len() == layout.rows.len()
}

/// Whether a node is a sum of gathered rows.
pub(super) fn is_gather(function: &Function, id: NodeId) -> bool {
    matches!(function.node(id).op, Op::GatherSum(_))
}

/// Values that are rounded from what is made, element by element, of a gathered sum: to keep one takes half of
/// the registers that the sum takes.
pub(super) fn rounded(function: &Function, nodes: &[NodeId]) -> BTreeSet<ValueId> {
    let (mut wide, mut rounded) = (BTreeSet::new(), BTreeSet::new());
    for id in nodes {
        let node = function.node(*id);
        let is_outer = matches!(&node.op, Op::Contract(op) if op.over.is_empty());
        let of_elements = super::is_pointwise(&node.op) || super::is_view(&node.op) || is_outer;
        let follows = of_elements && node.args.iter().any(|arg| wide.contains(arg));
        if !follows && !is_gather(function, *id) {
            continue;
        }
        for result in &node.results {
            let is_act = function.ty(*result).dtype == DType::Act;
            if is_act { &mut rounded } else { &mut wide }.insert(*result);
        }
    }
    rounded
}

impl Writer<'_> {
    /// The sum of the rows that a row's index names.
    pub(super) fn gather(&mut self, node: &Node) {
        let (Some(gather), Some(result)) =
            (Gather::of(self.function, node), node.results.first().copied())
        else {
            return;
        };
        let Some((rows, slots)) = gather.sizes(self.function) else { return };
        for size in self.layout.rows.clone() {
            self.need_sizes(&size);
        }
        let by_warp = self.shape.threads >= WARP;
        let function = if by_warp { "gather_sum" } else { "gather_sum_alone" };
        let (vector, stride) = (self.shape.vector, self.layout.lane());
        let (table, index) =
            (self.access(gather.table).offset(None), self.access(gather.index).offset(None));
        let inside = if self.shape.ragged { "inside" } else { "true" };
        self.text.line(format!(
            "{function}<{vector}>({}, in_{} + {table}, in_{} + {index}, {slots}, {rows}, {stride}, {inside});",
            self.name(result),
            gather.table.0,
            gather.index.0
        ));
    }
}
