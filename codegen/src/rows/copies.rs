//! Values that a group computes again instead of having another write them.

use super::group::{Group, Over, is_literal, over, row_elements};
use super::plan::{Planner, SHARED, TENSORS};
use crate::ir::{NodeId, ValueId};
use crate::ops::Op;
use lightc_dsl::ast::DType;
use std::collections::BTreeSet;

impl Planner<'_> {
    /// Has groups compute again what another group would have to write for them, where less is read
    /// for it than would be written and read.
    pub(super) fn copy(&mut self) {
        for consumer in 0..self.groups.len() {
            for producer in 0..self.groups.len() {
                if consumer != producer && !self.panels.contains_key(&consumer) {
                    self.copy_between(producer, consumer);
                }
            }
        }
    }

    fn copy_between(&mut self, producer: usize, consumer: usize) -> Option<()> {
        let reads =
            |value: &ValueId| self.owner(self.function.value(*value).node) == Some(producer);
        if !self.built(consumer)?.inputs.iter().any(reads) {
            return None;
        }
        let group = self.final_group(consumer)?;
        let from = self.final_group(producer)?;
        let crossing: BTreeSet<ValueId> = group
            .inputs
            .iter()
            .copied()
            .filter(|value| self.owner(self.function.value(*value).node) == Some(producer))
            .collect();
        if !crossing.iter().any(|value| row_elements(&group.layout, *value) >= SHARED) {
            return None;
        }
        let written: BTreeSet<ValueId> = from.outputs.iter().copied().collect();
        let only_here = |planner: &Self, value: ValueId| {
            !planner.readers.is_kept(value)
                && planner.readers.nodes(value).iter().all(|reader| {
                    planner.owner(*reader) == Some(consumer)
                        || planner.owner(*reader) == Some(producer)
                })
        };
        let bytes = |planner: &Self, value: ValueId| {
            let layout = [&from.layout, &group.layout]
                .into_iter()
                .find(|layout| layout.values.contains_key(&value));
            let n = layout.map_or(0, |layout| {
                let rows = !layout.row_parts(value).is_empty();
                if rows { row_elements(layout, value) } else { 0 }
            });
            n * match planner.function.ty(value).dtype {
                DType::Act => 2,
                DType::Bool => 1,
                _ => 4,
            }
        };
        // What is read and written for the consumer if it starts from these values.
        let cost = |planner: &Self, leaves: &BTreeSet<ValueId>| -> i64 {
            let read = leaves
                .iter()
                .filter(|leaf| crossing.contains(leaf) || !group.inputs.contains(leaf));
            let read: i64 = read.map(|leaf| bytes(planner, *leaf)).sum();
            let made = leaves.iter().filter(|leaf| {
                planner.owner(planner.function.value(**leaf).node) == Some(producer)
            });
            let fresh = made.filter(|leaf| {
                !written.contains(leaf) || (crossing.contains(leaf) && only_here(planner, **leaf))
            });
            read + fresh.map(|leaf| bytes(planner, *leaf)).sum::<i64>()
        };
        let mut leaves = crossing.clone();
        let mut copied: BTreeSet<NodeId> = BTreeSet::new();
        let before = cost(self, &leaves);
        let mut best = (before, copied.clone());
        for _ in 0..48 {
            let made = |value: &&ValueId| {
                let id = self.function.value(**value).node;
                self.owner(id) == Some(producer) && self.is_cheap(&from, id)
            };
            let Some(next) = leaves.iter().filter(made).max_by_key(|v| (bytes(self, **v), v.0))
            else {
                break;
            };
            let next = *next;
            let id = self.function.value(next).node;
            let _ = leaves.remove(&next);
            let _ = copied.insert(id);
            let args = self.function.node(id).args.iter();
            let args = args.filter(|arg| !is_literal(self.function, **arg));
            leaves.extend(args.filter(|arg| !copied.contains(&self.function.value(**arg).node)));
            let now = cost(self, &leaves);
            if now < best.0 {
                best = (now, copied.clone());
            }
        }
        if best.0 + before / 16 >= before {
            return None;
        }
        let known = self.copies.get(&consumer).cloned();
        self.copies.entry(consumer).or_default().extend(best.1);
        let fits = self
            .final_group(consumer)
            .is_some_and(|group| group.inputs.len() + group.outputs.len() <= TENSORS);
        if !fits {
            let _ = match known {
                Some(known) => self.copies.insert(consumer, known),
                None => self.copies.remove(&consumer),
            };
        }
        Some(())
    }

    /// Whether a node can be computed again wherever its arguments are read.
    fn is_cheap(&self, group: &Group, id: NodeId) -> bool {
        let node = self.function.node(id);
        let is_dear = matches!(
            node.op,
            Op::CausalConv(_)
                | Op::CausalConvInputGrad(_)
                | Op::CausalConvWeightGrad(_)
                | Op::Sinkhorn(_)
                | Op::SinkhornGrad(_)
                | Op::GatherSum(_)
        );
        !is_dear && matches!(over(&group.layout, node), None | Some(Over::Thread))
    }
}
