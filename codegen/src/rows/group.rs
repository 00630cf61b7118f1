//! What one kernel can compute: the test of a set of nodes, and how its sums run.

use super::gather::{self, Gather};
use super::layout::{Layout, Role};
use crate::ir::{Function, Node, NodeId, ValueId};
use crate::ops::Op;
use lightc_dsl::ast::DType;
use lightc_dsl::size::Size;
use std::collections::{BTreeMap, BTreeSet};

/// A contraction with a tensor of at least this many elements that does not vary from row to row is
/// a matrix product, not a row operation.
const MATRIX: i64 = 4096 * 4;
/// Small elements of a value that every thread of a row may compute again.
const REPEATED: i64 = 16;

/// Elements at a lane of all that a kernel reads, where it sums over whole lanes, and a row is one block's, or where threads
/// hold all choices: they have registers for no more.
const READ: i64 = 16;

/// Most threads that share an index of the outer lane parts, where a sum over the innermost is a block's.
pub(super) const SEGMENT: i64 = 256;

/// Lanes from which on a block does one row after the other.
const LONG: i64 = 2048;

/// Whether a node is the input's cotangent of a convolution, from a cotangent that is made here.
pub(super) fn is_scattered(node: &Node, made: &BTreeSet<ValueId>) -> bool {
    matches!(node.op, Op::CausalConvInputGrad(_))
        && node.args.first().is_some_and(|dy| made.contains(dy))
}

/// Nodes that one kernel computes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group {
    /// In the order of the function.
    pub(crate) nodes: Vec<NodeId>,
    /// Values from outside that it reads, in the order of their first use; constants are not among
    /// them.
    pub(crate) inputs: Vec<ValueId>,
    /// Values that are read outside.
    pub(crate) outputs: Vec<ValueId>,
    /// Tables that its nodes name widened, each with the table that it reads.
    pub(crate) tables: BTreeMap<ValueId, ValueId>,
    pub(super) layout: Layout,
}

/// What a sum runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// What a thread holds of a value.
    Thread,
    /// The innermost lane part: neighbouring threads of a warp, or a block.
    Segment,
    /// The whole lane: all threads of a row.
    Lane,
    /// All rows, and this many of the outer lane parts of the value.
    Rows(usize),
}

/// Whether a value is made of nothing: a number of the program text or a size.
pub(crate) fn is_literal(function: &Function, value: ValueId) -> bool {
    matches!(function.definition(value).op, Op::Const(_) | Op::SizeValue(_))
}

/// The axes that a node sums over, with the values that have them.
pub(super) fn summed(node: &Node) -> Option<&[String]> {
    match &node.op {
        Op::Sum(op) => Some(&op.over),
        Op::Mean(op) => Some(&op.over),
        Op::LogSumExp(op) => Some(&op.over),
        Op::Contract(op) => Some(&op.over),
        _ => None,
    }
}

/// How the sum of a node runs; `None` if a kernel cannot run it.
pub(super) fn over(layout: &Layout, node: &Node) -> Option<Over> {
    if let Op::CausalConvWeightGrad(_) = node.op {
        return Some(Over::Rows(0));
    }
    let names = summed(node)?;
    let arg = *node.args.first()?;
    let leaves = layout.leaves(arg).iter().filter(|leaf| names.contains(&leaf.axis));
    let (mut n_rows, mut lanes) = (0, Vec::new());
    for leaf in leaves {
        match leaf.role {
            Role::Row(_) => n_rows += 1,
            Role::Lane(slot) => lanes.push(slot),
            Role::Small(_) | Role::Apart(_) => {}
        }
    }
    let own = layout.lanes(arg);
    if n_rows > 0 {
        let all = n_rows == layout.rows.len();
        return (all && own.starts_with(&lanes)).then_some(Over::Rows(lanes.len()));
    }
    if lanes.is_empty() {
        return Some(Over::Thread);
    }
    let whole = own.len() == layout.slots.len();
    if whole && lanes.len() == own.len() {
        return Some(Over::Lane);
    }
    (whole && lanes == [layout.slots.len() - 1]).then_some(Over::Segment)
}

/// Whether an op is one that row kernels know, whatever its arguments.
pub(crate) fn is_known(function: &Function, node: &Node) -> bool {
    if let Op::GatherSum(_) = node.op {
        return true;
    }
    if is_number_of_index(function, node) {
        return true;
    }
    let float_or_bool = |value: &ValueId| function.ty(*value).dtype != DType::Index;
    if !node.args.iter().chain(&node.results).all(float_or_bool) {
        return false;
    }
    let is_other = matches!(
        node.op,
        Op::Sum(_)
            | Op::Mean(_)
            | Op::Contract(_)
            | Op::Broadcast(_)
            | Op::CausalConv(_)
            | Op::CausalConvInputGrad(_)
            | Op::CausalConvWeightGrad(_)
            | Op::Rotary(_)
            | Op::Sinkhorn(_)
            | Op::SinkhornGrad(_)
            | Op::LogSumExp(_)
    );
    is_pointwise(&node.op) || is_view(&node.op) || is_other
}

/// Whether a node makes numbers of an index.
fn is_number_of_index(function: &Function, node: &Node) -> bool {
    let is = |value: &ValueId, dtype| function.ty(*value).dtype == dtype;
    matches!(node.op, Op::Cast(_))
        && node.args.iter().all(|arg| is(arg, DType::Index))
        && node.results.iter().all(|result| is(result, DType::F32))
}

/// Whether each element of the result is made of the elements at its place.
pub(crate) fn is_pointwise(op: &Op) -> bool {
    matches!(
        op,
        Op::Affine(_)
            | Op::Unary(_)
            | Op::UnaryGrad(_)
            | Op::Binary(_)
            | Op::Clamp(_)
            | Op::ClampGrad(_)
            | Op::Where(_)
            | Op::Cast(_)
    )
}

/// Whether an op only says under which names or in which order the same elements are read.
pub(crate) fn is_view(op: &Op) -> bool {
    matches!(op, Op::Rename(_) | Op::Split(_) | Op::Merge(_) | Op::StopGradient(_) | Op::Permute(_))
}

/// Whether libtorch shows the result without touching memory, and without gaps.
pub(super) fn is_free_view(op: &Op) -> bool {
    is_view(op) && !matches!(op, Op::Permute(_))
}

impl Group {
    /// The group of these nodes, `None` if one kernel cannot compute them.
    pub(crate) fn of(function: &Function, mut nodes: Vec<NodeId>, read: &Readers) -> Option<Group> {
        nodes.sort_unstable();
        let outside = |value: ValueId| read.outside(value, &nodes);
        Group::with(function, nodes.clone(), &outside)
    }

    /// The group of these nodes, which are sorted, where it is known what is read outside of it.
    pub(crate) fn with(
        function: &Function,
        nodes: Vec<NodeId>,
        outside: &dyn Fn(ValueId) -> bool,
    ) -> Option<Group> {
        let layout = Layout::of(function, &nodes)?;
        let made: BTreeSet<ValueId> =
            nodes.iter().flat_map(|id| function.node(*id).results.iter().copied()).collect();
        let mut inputs = Vec::new();
        let mut tables = BTreeMap::new();
        let mut sums = BTreeSet::new();
        let mut scattered = false;
        for id in &nodes {
            let node = function.node(*id);
            if node.args.iter().any(|arg| sums.contains(arg)) {
                return None;
            }
            if !fits(function, &layout, node, &made) {
                return None;
            }
            if matches!(over(&layout, node), Some(Over::Rows(_))) {
                sums.extend(node.results.iter().copied());
            }
            if is_scattered(node, &made) {
                // Its rows are complete only rows later.
                scattered = true;
                sums.extend(node.results.iter().copied());
            }
            if let Some(gather) = Gather::of(function, node).filter(|g| g.table != g.named) {
                let _ = tables.insert(gather.named, gather.table);
            }
            for arg in gather::reads(function, node) {
                if !made.contains(&arg) && !is_literal(function, arg) && !inputs.contains(&arg) {
                    inputs.push(arg);
                }
            }
        }
        let is_lane_sum = |id: &NodeId| over(&layout, function.node(*id)) == Some(Over::Lane);
        let sums_lanes = nodes.iter().any(is_lane_sum);
        if scattered && (sums_lanes || layout.lane() < LONG) {
            return None;
        }
        if sums_blocks(function, &layout, &nodes)
            && !nodes.iter().all(|id| goes_with_blocks(function, &layout, *id))
        {
            return None;
        }
        let at_lane = |value: &ValueId| layout.smalls(*value).iter().product::<i64>();
        let read =
            inputs.iter().filter(|value| layout.is_vector(**value)).map(at_lane).sum::<i64>();
        if (sums_lanes || layout.has_choices()) && read > READ {
            return None;
        }
        let mut read: BTreeSet<ValueId> = made.iter().copied().filter(|v| outside(*v)).collect();
        // A view that is read outside is made outside, of what it shows.
        for id in nodes.iter().rev() {
            let node = function.node(*id);
            let (Some(arg), Some(result)) = (node.args.first(), node.results.first()) else {
                continue;
            };
            if is_free_view(&node.op) && read.remove(result) && made.contains(arg) {
                let _ = read.insert(*arg);
            }
        }
        let outputs = read.into_iter().collect();
        Some(Group { nodes, inputs, outputs, tables, layout })
    }

    /// Whether no value of it varies over a lane: then each thread has a row to itself.
    pub(crate) fn is_narrow(&self) -> bool {
        self.layout.slots.is_empty()
    }
}

/// Who reads each value of a function.
pub(crate) struct Readers {
    nodes: Vec<Vec<NodeId>>,
    kept: BTreeSet<ValueId>,
    /// Gathered sums that a kernel makes.
    gathers: BTreeSet<NodeId>,
}

impl Readers {
    /// Readers of a function whose values `kept` are also read after it.
    pub(crate) fn of(function: &Function, kept: BTreeSet<ValueId>) -> Readers {
        let by_kernel = |id: &NodeId| {
            gather::is_gather(function, *id)
                && Group::with(function, vec![*id], &|_| true).is_some()
        };
        let gathers = function.nodes().map(|(id, _)| id).filter(by_kernel).collect();
        let nodes = vec![Vec::new(); function.values.len()];
        let mut readers = Readers { nodes, kept, gathers };
        for (id, _) in function.nodes() {
            for arg in readers.args(function, id) {
                if let Some(readers) = readers.nodes.get_mut(arg.0 as usize) {
                    readers.push(id);
                }
            }
        }
        readers
    }

    /// What a node reads. A kernel reads a gathered table as it is stored.
    pub(crate) fn args(&self, function: &Function, id: NodeId) -> Vec<ValueId> {
        let node = function.node(id);
        if self.gathers.contains(&id) { gather::reads(function, node) } else { node.args.clone() }
    }

    /// The nodes that read a value.
    pub(crate) fn nodes(&self, value: ValueId) -> &[NodeId] {
        self.nodes.get(value.0 as usize).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether nothing reads a value, such as a widened table that kernels read as it is stored.
    pub(crate) fn is_unread(&self, value: ValueId) -> bool {
        !self.is_kept(value) && self.nodes(value).is_empty()
    }

    /// Whether a value is read after the function.
    pub(crate) fn is_kept(&self, value: ValueId) -> bool {
        self.kept.contains(&value)
    }

    /// Whether a value is read by anything but these nodes, which are sorted.
    pub(crate) fn outside(&self, value: ValueId, nodes: &[NodeId]) -> bool {
        let foreign = |reader: &NodeId| nodes.binary_search(reader).is_err();
        self.kept.contains(&value) || self.nodes(value).iter().any(foreign)
    }
}

fn fits(function: &Function, layout: &Layout, node: &Node, made: &BTreeSet<ValueId>) -> bool {
    if !is_known(function, node) {
        return false;
    }
    let over = over(layout, node);
    if layout.has_fixed_rows() && !is_pointwise(&node.op) && !is_plain_row_sum(node, over) {
        return false;
    }
    if summed(node).is_some() && over.is_none() {
        return false;
    }
    if over == Some(Over::Segment) && !is_warp_wide(layout) && !is_block_wide(layout, node) {
        return false;
    }
    let all_rows = |value: &ValueId| layout.row_parts(*value).len() == layout.rows.len();
    let rows_fit = match over {
        Some(Over::Rows(_)) => node.args.iter().all(all_rows),
        _ => node.results.iter().all(all_rows),
    };
    if !rows_fit || layout.rows.is_empty() {
        return false;
    }
    let external = |index: usize| node.args.get(index).is_some_and(|arg| !made.contains(arg));
    let invariant = |value: &ValueId| layout.row_parts(*value).is_empty();
    let is_row = |value: Option<&ValueId>, axis: &str| {
        let leaves = value.map(|value| layout.leaves(*value)).unwrap_or_default();
        leaves.iter().any(|leaf| leaf.axis == axis && matches!(leaf.role, Role::Row(_)))
    };
    let repeated = |value: &ValueId| {
        layout.is_lane(*value)
            || layout.slots.is_empty()
            || layout.smalls(*value).iter().product::<i64>() <= REPEATED
    };
    if !node.results.iter().all(repeated) {
        return false;
    }
    match &node.op {
        Op::Contract(_) => {
            let size = |arg: &ValueId| function.ty(*arg).count().and_then(|n| n.as_constant());
            let matrix = |arg: &ValueId| invariant(arg) && size(arg).is_none_or(|n| n >= MATRIX);
            !matches!(over, Some(Over::Rows(_))) && !node.args.iter().any(matrix)
        }
        // An index of many elements is not worth a kernel of its own.
        Op::Cast(_) if is_number_of_index(function, node) => {
            let is_one = |arg: &ValueId| row_elements(layout, *arg) == 1;
            external(0) && node.args.iter().all(is_one)
        }
        Op::GatherSum(_) => gather::fits(function, layout, node, made),
        Op::LogSumExp(_) => over == Some(Over::Thread),
        Op::CausalConv(op) => {
            external(0)
                && external(1)
                && is_row(node.args.first(), &op.time)
                && is_tap(layout, node, &op.taps)
                && is_first_lane_only(layout, node)
        }
        // A cotangent that is made here is handed from row to row: see `Writer::scatter`.
        Op::CausalConvInputGrad(op) => {
            external(1)
                && is_row(node.args.first(), &op.time)
                && is_tap(layout, node, &op.taps)
                && is_first_lane_only(layout, node)
        }
        Op::CausalConvWeightGrad(op) => {
            external(0)
                && is_row(node.args.first(), &op.time)
                && op.taps.size.as_constant().is_some_and(|n| n <= 8)
                && is_first_lane_only(layout, node)
        }
        Op::Rotary(op) => {
            let pairs = node.args.iter().flat_map(|arg| layout.leaves(*arg));
            let mut pairs = pairs.filter(|leaf| leaf.axis == op.pairs);
            let last = layout.slots.len().checked_sub(1);
            let even = layout.slots.last().is_some_and(|n| n % 2 == 0);
            even && is_row(node.args.first(), &op.time)
                && pairs.next().is_some_and(|leaf| Some(leaf.role.clone()) == last.map(Role::Lane))
                && pairs.next().is_none()
        }
        Op::Sinkhorn(_) | Op::SinkhornGrad(_) => {
            layout.slots.is_empty()
                && node.args.iter().all(|arg| layout.smalls(*arg).len() == 2)
                && node
                    .args
                    .first()
                    .is_some_and(|x| function.ty(*x).axes.len() == layout.rows.len() + 2)
        }
        _ => true,
    }
}

/// Whether a node adds up rows as they are, each lane by itself.
fn is_plain_row_sum(node: &Node, over: Option<Over>) -> bool {
    matches!(node.op, Op::Sum(_) | Op::Mean(_)) && over == Some(Over::Rows(0))
}

/// Threads that hold one index of the outer lane parts, where there are as many for each: a power of two.
fn threads_of_segment(layout: &Layout) -> Option<i64> {
    let inner = layout.slots.last().copied().unwrap_or(1);
    let vector = [8, 4, 2].into_iter().find(|v| inner % v == 0).unwrap_or(1);
    let threads = inner / vector;
    (threads & (threads - 1) == 0).then_some(threads)
}

/// Whether neighbouring threads of a warp hold one index of the outer lane parts.
fn is_warp_wide(layout: &Layout) -> bool {
    threads_of_segment(layout).is_some_and(|threads| threads <= 32)
}

/// Whether a block can hold one index of the outer lane parts, and sums one number over it.
fn is_block_wide(layout: &Layout, node: &Node) -> bool {
    let one = node.results.iter().all(|result| layout.smalls(*result).is_empty());
    one && threads_of_segment(layout).is_some_and(|threads| (64..=SEGMENT).contains(&threads))
}

/// Whether sums over the innermost lane part are those of blocks.
pub(super) fn sums_blocks(function: &Function, layout: &Layout, nodes: &[NodeId]) -> bool {
    let is_segment = |id: &NodeId| over(layout, function.node(*id)) == Some(Over::Segment);
    !is_warp_wide(layout) && nodes.iter().any(is_segment)
}

/// Whether a node can be in a kernel whose blocks have an index of the outer lane parts each: nothing in it is of whole
/// rows, or goes from row to row.
fn goes_with_blocks(function: &Function, layout: &Layout, id: NodeId) -> bool {
    let node = function.node(id);
    let over = over(layout, node);
    is_pointwise(&node.op)
        || is_view(&node.op)
        || matches!(node.op, Op::Broadcast(_))
        || matches!(over, Some(Over::Segment | Over::Thread))
}

/// Whether the taps of a convolution are unrolled.
fn is_tap(layout: &Layout, node: &Node, taps: &str) -> bool {
    let leaves = node.args.get(1).map(|w| layout.leaves(*w)).unwrap_or_default();
    let mut found = leaves.iter().filter(|leaf| leaf.axis == taps);
    found.next().is_some_and(|leaf| matches!(leaf.role, Role::Small(_))) && found.next().is_none()
}

/// Whether what is convolved has lane parts alone beside its rows.
fn is_first_lane_only(layout: &Layout, node: &Node) -> bool {
    node.args.first().is_some_and(|x| layout.smalls(*x).is_empty() && layout.is_vector(*x))
}

/// The number of elements of a value, rows left out.
pub(super) fn row_elements(layout: &Layout, value: ValueId) -> i64 {
    let lanes = layout.lanes(value);
    let lane: i64 = lanes.iter().filter_map(|slot| layout.slots.get(*slot)).product();
    lane * layout.smalls(value).iter().product::<i64>()
}

/// The number of rows.
pub(super) fn rows(layout: &Layout) -> Size {
    let one = Size::constant(1);
    layout.rows.iter().try_fold(one, |n, size| n.checked_mul(size)).unwrap_or_default()
}
