//! Where the elements of a group's values are: in which row, in which lane, or in a register.

use super::axes::{Axes, Part};
use super::gather::Gather;
use crate::ir::{Function, NodeId, ValueId};
use lightc_dsl::size::Size;
use std::collections::{BTreeMap, BTreeSet};

/// Parts of up to this size are unrolled: each thread holds all their elements.
const SMALL: i64 = 8;
/// Parts of up to this size are unrolled where values of the kernel that have lanes do not have them: a thread holds the
/// 12 choices of a token where it sums over them, and not the 16 heads of an attention.
const CHOICES: i64 = 12;
/// Elements of a value that a thread can hold.
const UNROLLED: i64 = 32;
/// The longest lane.
const LANE: i64 = 1 << 16;
/// The shortest outermost part that stands for rows where no part is open.
const FIXED_ROWS: i64 = 1024;

/// What a part of an axis is in a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Index in [`Layout::rows`].
    Row(usize),
    /// Unrolled.
    Small(i64),
    /// Index in [`Layout::slots`].
    Lane(usize),
    /// An axis of this size that neither rows nor lanes have: an op walks it by itself.
    Apart(i64),
}

/// One part of a value in storage order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leaf {
    /// What it is.
    pub(super) role: Role,
    /// Elements of memory from one index to the next.
    pub(super) stride: Size,
    /// The axis that it is a part of.
    pub(super) axis: String,
    /// Which of that axis's parts.
    pub(super) nth: usize,
}

/// The layout of all values of a group.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct Layout {
    /// Sizes of the row parts, outermost first. A row is one index of each.
    pub(super) rows: Vec<Size>,
    /// Sizes of the lane parts, outermost first. A lane is one index of each.
    pub(super) slots: Vec<i64>,
    /// Parts of each value in storage order.
    pub(super) values: BTreeMap<ValueId, Vec<Leaf>>,
    /// Values that ops read by themselves: gathered tables, and what names their rows.
    pub(super) apart: BTreeSet<ValueId>,
}

impl Layout {
    /// The layout of a set of nodes, `None` if they do not fit in one kernel.
    pub(super) fn of(function: &Function, nodes: &[NodeId]) -> Option<Layout> {
        let axes = Axes::of(function, nodes)?;
        let mut values: Vec<ValueId> = Vec::new();
        let mut apart = ReadApart::default();
        for id in nodes {
            let node = function.node(*id);
            let gather = Gather::of(function, node);
            if let Some(gather) = &gather {
                apart.add(gather)?;
            }
            let args: &[ValueId] = if gather.is_some() { &[] } else { &node.args };
            for value in args.iter().chain(&node.results) {
                if !values.contains(value) {
                    values.push(*value);
                }
            }
        }
        if values.iter().any(|value| apart.named.contains(value)) {
            return None;
        }
        let rows = Rows::of(&axes, &values)?;
        let slots = Slots::of(&axes, &values, &rows)?;
        let mut layout = Layout {
            rows: rows.sizes.clone(),
            slots: slots.sizes.clone(),
            values: BTreeMap::new(),
            apart: apart.axes.keys().copied().collect(),
        };
        let places = Places { function, axes: &axes, rows: &rows, slots: &slots };
        for value in values {
            let _ = layout.values.insert(value, places.leaves(value, None)?);
        }
        for (value, (named, axis)) in &apart.axes {
            let _ = layout.values.insert(*value, places.leaves(*named, Some(axis))?);
        }
        layout.fits().then_some(layout)
    }

    fn fits(&self) -> bool {
        let held = |value: &ValueId| self.smalls(*value).iter().product::<i64>() <= UNROLLED;
        self.lane() <= LANE && self.values.keys().all(held)
    }

    /// Parts of a value.
    pub(super) fn leaves(&self, value: ValueId) -> &[Leaf] {
        self.values.get(&value).map(Vec::as_slice).unwrap_or_default()
    }

    /// Length of the lane.
    pub(super) fn lane(&self) -> i64 {
        self.slots.iter().product()
    }

    /// Sizes of the unrolled parts of a value in storage order.
    pub(super) fn smalls(&self, value: ValueId) -> Vec<i64> {
        let small = |leaf: &Leaf| match leaf.role {
            Role::Small(size) => Some(size),
            _ => None,
        };
        self.leaves(value).iter().filter_map(small).collect()
    }

    /// The lane parts of a value in storage order.
    pub(super) fn lanes(&self, value: ValueId) -> Vec<usize> {
        let slot = |leaf: &Leaf| match leaf.role {
            Role::Lane(slot) => Some(slot),
            _ => None,
        };
        self.leaves(value).iter().filter_map(slot).collect()
    }

    /// Elements that an op walks by itself for one of the others of a value.
    pub(super) fn walked(&self, value: ValueId) -> i64 {
        let apart = |leaf: &Leaf| match leaf.role {
            Role::Apart(size) => Some(size),
            _ => None,
        };
        self.leaves(value).iter().filter_map(apart).product()
    }

    /// The row parts of a value.
    pub(super) fn row_parts(&self, value: ValueId) -> Vec<usize> {
        let row = |leaf: &Leaf| match leaf.role {
            Role::Row(row) => Some(row),
            _ => None,
        };
        self.leaves(value).iter().filter_map(row).collect()
    }

    /// Whether a value varies over the innermost lane part: a thread has a vector of it.
    pub(super) fn is_vector(&self, value: ValueId) -> bool {
        self.slots.len().checked_sub(1).is_some_and(|last| self.lanes(value).contains(&last))
    }

    /// Whether a thread holds more elements of an axis than of others.
    pub(super) fn has_choices(&self) -> bool {
        let is = |leaf: &Leaf| matches!(leaf.role, Role::Small(size) if size > SMALL);
        self.values.values().flatten().any(is)
    }

    /// Whether the rows are those of a matrix of known size.
    pub(super) fn has_fixed_rows(&self) -> bool {
        self.rows.iter().any(|size| size.as_constant().is_some())
    }

    /// Whether a value varies over any lane part.
    pub(super) fn is_lane(&self, value: ValueId) -> bool {
        !self.lanes(value).is_empty()
    }
}

/// Parts of more than `least` elements that are not rows.
fn lane_parts(axes: &Axes, value: ValueId, rows: &Rows, least: i64) -> Vec<Part> {
    let parts = axes.parts(value).into_iter().flatten().filter(|part| !rows.of.contains_key(part));
    parts.filter(|part| axes.part_size(*part).as_constant().is_some_and(|n| n > least)).collect()
}

/// Parts that are unrolled though they are longer than [`SMALL`].
fn choices(axes: &Axes, values: &[ValueId], rows: &Rows) -> BTreeSet<Part> {
    let has_lanes = |value: &&ValueId| !lane_parts(axes, **value, rows, CHOICES).is_empty();
    let with_lanes: Vec<Vec<Part>> =
        values.iter().filter(has_lanes).map(|v| lane_parts(axes, *v, rows, SMALL)).collect();
    let is_short = |part: &Part| axes.part_size(*part).as_constant().is_some_and(|n| n <= CHOICES);
    let parts = with_lanes.iter().flatten().copied().filter(is_short);
    // Where all have them outermost, they are lanes as others are.
    parts.filter(|part| with_lanes.iter().any(|parts| parts.first() != Some(part))).collect()
}

/// The row parts of a kernel, and of each value which of them its own are.
struct Rows {
    sizes: Vec<Size>,
    of: BTreeMap<Part, usize>,
}

impl Rows {
    /// A row is an index of each row part of the value with the most. Parts of values that no op
    /// relates to it are its parts of their size, in its order: batch with batch, time with time.
    fn of(axes: &Axes, values: &[ValueId]) -> Option<Rows> {
        let mut all: Vec<Vec<Part>> = values.iter().map(|v| row_parts(axes, *v)).collect();
        all.sort_by_key(|parts| std::cmp::Reverse(parts.len()));
        let widest = all.first().cloned().unwrap_or_default();
        let sizes: Vec<Size> = widest.iter().map(|part| axes.part_size(*part).clone()).collect();
        let mut rows = Rows { sizes, of: BTreeMap::new() };
        if widest.is_empty() {
            rows.fix(axes, values);
            return Some(rows);
        }
        for parts in &all {
            let mut free = rows.sizes.len();
            for part in parts.iter().rev() {
                let size = axes.part_size(*part);
                let row = match rows.of.get(part) {
                    Some(row) => Some(*row).filter(|row| *row < free),
                    None => (0..free).rev().find(|row| rows.sizes.get(*row) == Some(size)),
                }?;
                let _ = rows.of.insert(*part, row);
                free = row;
            }
        }
        Some(rows)
    }

    /// Where no part is open, as with the gradient of a matrix, the rows are the outermost part of
    /// the largest value, if it is long and there are other parts.
    fn fix(&mut self, axes: &Axes, values: &[ValueId]) {
        let parts = |value: &ValueId| axes.parts(*value).into_iter().flatten().collect::<Vec<_>>();
        let size = |part: &Part| axes.part_size(*part).as_constant().unwrap_or_default();
        let count =
            |parts: &Vec<Part>| parts.iter().try_fold(1_i64, |n, part| n.checked_mul(size(part)));
        // Of equal ones the first.
        let largest = values.iter().map(parts).rev().max_by_key(count).unwrap_or_default();
        if let [outer, _, ..] = largest.as_slice()
            && size(outer) >= FIXED_ROWS
        {
            self.sizes.push(axes.part_size(*outer).clone());
            let _ = self.of.insert(*outer, 0);
        }
    }
}

fn row_parts(axes: &Axes, value: ValueId) -> Vec<Part> {
    let parts = axes.parts(value).into_iter().flatten();
    parts.filter(|part| axes.part_size(*part).as_constant().is_none()).collect()
}

struct Slots {
    sizes: Vec<i64>,
    of: BTreeMap<Part, usize>,
}

impl Slots {
    /// The lane is that of the value with the most; parts of other values are put on parts of the
    /// lane that have their size, such as the channels of values on those of keys.
    fn of(axes: &Axes, values: &[ValueId], rows: &Rows) -> Option<Slots> {
        let choices = choices(axes, values, rows);
        let mut all: Vec<Vec<Part>> =
            values.iter().map(|v| lane_parts(axes, *v, rows, SMALL)).collect();
        for parts in &mut all {
            parts.retain(|part| !choices.contains(part));
        }
        all.sort_by_key(|parts| std::cmp::Reverse(parts.len()));
        let size = |part: &Part| axes.part_size(*part).as_constant().unwrap_or_default();
        let widest = all.first().cloned().unwrap_or_default();
        let mut slots = Slots { sizes: widest.iter().map(size).collect(), of: BTreeMap::new() };
        for parts in &all {
            let mut free = slots.sizes.len();
            for part in parts.iter().rev() {
                let slot = match slots.of.get(part) {
                    Some(slot) => Some(*slot).filter(|slot| *slot < free),
                    None => (0..free).rev().find(|s| slots.sizes.get(*s) == Some(&size(part))),
                }?;
                let _ = slots.of.insert(*part, slot);
                free = slot;
            }
        }
        Some(slots)
    }
}

/// Values that ops read by themselves.
#[derive(Default)]
struct ReadApart {
    /// Each as it is stored, with the value that an op names for it and the axis that the op walks.
    axes: BTreeMap<ValueId, (ValueId, String)>,
    /// All of them, stored and named.
    named: BTreeSet<ValueId>,
}

impl ReadApart {
    /// Adds what a gathered sum reads; `None` if another op walks another axis of it.
    fn add(&mut self, gather: &Gather<'_>) -> Option<()> {
        let table = (gather.table, (gather.named, gather.op.rows.clone()));
        let index = (gather.index, (gather.index, gather.op.slots.clone()));
        for (value, read) in [table, index] {
            self.named.extend([value, read.0]);
            let known = self.axes.insert(value, read.clone());
            if known.is_some_and(|known| known != read) {
                return None;
            }
        }
        Some(())
    }
}

/// Where parts of axes are in a kernel.
struct Places<'a> {
    function: &'a Function,
    axes: &'a Axes,
    rows: &'a Rows,
    slots: &'a Slots,
}

impl Places<'_> {
    /// The leaves of a value, one axis of which an op may walk by itself.
    fn leaves(&self, value: ValueId, walked: Option<&str>) -> Option<Vec<Leaf>> {
        let mut stride = Size::constant(1);
        let mut found = Vec::new();
        let named = self.function.ty(value).axes.iter().zip(self.axes.parts(value));
        for (axis, parts) in named.rev() {
            for (nth, part) in parts.iter().enumerate().rev() {
                let size = self.axes.part_size(*part);
                let role = if walked == Some(axis.name.as_str()) {
                    Role::Apart(size.as_constant()?)
                } else if let Some(row) = self.rows.of.get(part) {
                    Role::Row(*row)
                } else if let Some(slot) = self.slots.of.get(part) {
                    Role::Lane(*slot)
                } else {
                    Role::Small(size.as_constant()?)
                };
                found.push(Leaf { role, stride: stride.clone(), axis: axis.name.clone(), nth });
                stride = stride.checked_mul(size)?;
            }
        }
        found.reverse();
        Some(found)
    }
}
