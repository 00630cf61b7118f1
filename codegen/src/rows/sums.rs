//! Sums: in a thread, over the lane, over rows.

use super::cuda::{Writer, variable};
use super::group::{Over, over, summed};
use super::layout::Role;
use crate::ir::{Node, NodeId, ValueId};
use crate::ops::Op;

impl Writer<'_> {
    /// The loops over what is summed in a thread, and the summand.
    pub(super) fn summand(&self, node: &Node) -> (Vec<(String, i64)>, String) {
        let names = summed(node).unwrap_or_default();
        let Some(arg) = node.args.first().copied() else { return (Vec::new(), String::new()) };
        let mut loops: Vec<(String, i64)> = Vec::new();
        let mut lane = false;
        for leaf in self.layout.leaves(arg).iter().filter(|leaf| names.contains(&leaf.axis)) {
            match leaf.role {
                Role::Small(size) => loops.push((variable(&leaf.axis, leaf.nth), size)),
                Role::Lane(slot) => lane = lane || slot + 1 == self.layout.slots.len(),
                Role::Row(_) | Role::Apart(_) => {}
            }
        }
        if lane {
            loops.push(("i".to_owned(), self.shape.vector));
        }
        let factors: Vec<String> = node.args.iter().map(|arg| self.at(*arg)).collect();
        (loops, factors.join(" * "))
    }

    /// A sum over what a thread holds, and over neighbouring threads.
    pub(super) fn thread_sum(&mut self, node: &Node, result: ValueId) {
        let mut outer = self.small_loops(result, &[]);
        outer.extend(self.lane_loop(result));
        let (inner, summand) = self.summand(node);
        self.text.open("");
        let n = self.text.loops(&outer) + 1;
        let at = self.at(result);
        if let Op::LogSumExp(_) = node.op {
            self.text.line("float top = -INFINITY;");
            let m = self.text.loops(&inner);
            self.text.line(format!("top = fmaxf(top, {summand});"));
            self.text.close_all(m);
            self.text.line("float sum = 0.0f;");
            let m = self.text.loops(&inner);
            self.text.line(format!("sum += expf({summand} - top);"));
            self.text.close_all(m);
            self.text.line(format!("{at} = top + logf(sum);"));
            self.text.close_all(n);
            return;
        }
        self.text.line("float sum = 0.0f;");
        let m = self.text.loops(&inner);
        self.text.line(format!("sum += {summand};"));
        self.text.close_all(m);
        if over(self.layout, node) == Some(Over::Segment) {
            self.segment_end();
        }
        let mean = self.mean_factor(node);
        self.text.line(format!("{at} = sum{mean};"));
        self.text.close_all(n);
    }

    /// Threads that have an index of the outer lane parts.
    pub(super) fn segment_threads(&self) -> i64 {
        self.layout.slots.last().copied().unwrap_or(1) / self.shape.vector
    }

    /// What this thread has of a sum over neighbouring threads.
    pub(super) fn part_of_sum(&mut self, id: NodeId, to: &str) {
        let described = self.describe(id);
        self.text.line(described);
        let (inner, summand) = self.summand(self.function.node(id));
        self.text.line(format!("{to} = 0.0f;"));
        let n = self.text.loops(&inner);
        self.text.line(format!("{to} += {summand};"));
        self.text.close_all(n);
    }

    /// Adds up what the threads of a segment have as `sum`.
    fn segment_end(&mut self) {
        let threads = self.segment_threads();
        if threads <= 32 {
            self.text.line(format!("sum = segment_sum<{threads}>(sum);"));
            return;
        }
        let (warps, offset) = (threads / 32, self.scratch);
        // Numbers of a warp stand at multiples of four.
        self.scratch += (warps * 4) as usize;
        self.text.line("float all[1] = {sum};");
        self.text.line(format!("block_sum<1, {warps}>(all, scratch + {offset});"));
        self.text.line("sum = all[0];");
    }

    pub(super) fn mean_factor(&self, node: &Node) -> String {
        let Op::Mean(op) = &node.op else { return String::new() };
        let ty = node.args.first().map(|arg| self.function.ty(*arg));
        let sizes = op.over.iter().filter_map(|name| ty?.axis(name)?.size.as_constant());
        #[allow(clippy::cast_precision_loss)] // sizes are far below 2^53
        let factor = 1.0 / sizes.product::<i64>() as f64;
        format!(" * {}", super::express::number(factor))
    }

    pub(super) fn sum_starts(&mut self, sums: &[NodeId]) {
        for id in sums {
            let Some(result) = self.function.node(*id).results.first().copied() else { continue };
            let zero = if self.layout.smalls(result).is_empty() { " = 0.0f" } else { "" };
            self.text.line(format!(
                "float sum_{}{}{zero};",
                self.name(result),
                self.extent(result)
            ));
            if zero.is_empty() {
                let loops = self.small_loops(result, &[]);
                let index: String = loops.iter().map(|(v, _)| format!("[{v}]")).collect();
                let n = self.text.loops(&loops);
                self.text.line(format!("sum_{}{index} = 0.0f;", self.name(result)));
                self.text.close_all(n);
            }
        }
    }

    /// Adds this pass's elements to a sum over the lane.
    pub(super) fn add_up(&mut self, id: NodeId) {
        let node = self.function.node(id);
        let Some(result) = node.results.first().copied() else { return };
        let described = self.describe(id);
        self.text.line(described);
        let (inner, summand) = self.summand(node);
        let guard = if self.shape.ragged { "if (inside) " } else { "" };
        let mut loops = self.small_loops(result, &[]);
        loops.extend(inner);
        let n = self.text.loops(&loops);
        let at = self.at(result);
        self.text.line(format!("{guard}sum_{at} += {summand};"));
        self.text.close_all(n);
    }

    pub(super) fn sum_ends(&mut self, sums: &[NodeId]) {
        if sums.is_empty() {
            return;
        }
        let count = |value: ValueId| self.layout.smalls(value).iter().product::<i64>();
        let results: Vec<ValueId> =
            sums.iter().filter_map(|id| self.function.node(*id).results.first().copied()).collect();
        let total: i64 = results.iter().map(|value| count(*value)).sum();
        let all = format!("all_{}", results.first().map_or(0, |value| value.0));
        self.text.line(format!("float {all}[{total}];"));
        let place = |loops: &[(String, i64)], start: i64| {
            let mut place = "0".to_owned();
            for (variable, size) in loops {
                place = if place == "0" {
                    variable.clone()
                } else {
                    format!("({place}) * {size} + {variable}")
                };
            }
            format!("{start} + {place}")
        };
        let mut start = 0;
        for value in &results {
            let loops = self.small_loops(*value, &[]);
            let (n, at) = (self.text.loops(&loops), self.at(*value));
            self.text.line(format!("{all}[{}] = sum_{at};", place(&loops, start)));
            self.text.close_all(n);
            start += count(*value);
        }
        let threads = self.shape.threads;
        if self.product.is_some() {
            self.sum_of_product(&all, total);
        } else if threads <= 32 {
            let n = self.text.loops(&[("n".to_owned(), total)]);
            self.text.line(format!("{all}[n] = segment_sum<{threads}>({all}[n]);"));
            self.text.close_all(n);
        } else {
            let warps = threads / 32;
            let offset = self.scratch;
            self.scratch += (warps * ((total + 3) / 4 * 4)) as usize;
            self.text.line(format!("block_sum<{total}, {warps}>({all}, scratch + {offset});"));
        }
        let mut start = 0;
        for (id, value) in sums.iter().zip(&results) {
            self.text.line(format!("float {}{};", self.name(*value), self.extent(*value)));
            let loops = self.small_loops(*value, &[]);
            let (n, at) = (self.text.loops(&loops), self.at(*value));
            let mean = self.mean_factor(self.function.node(*id));
            self.text.line(format!("{at} = {all}[{}]{mean};", place(&loops, start)));
            self.text.close_all(n);
            start += count(*value);
            self.round(*value);
        }
    }

    pub(super) fn row_sums(&self) -> Vec<(NodeId, ValueId, usize)> {
        let found = self.group.nodes.iter().filter_map(|id| {
            let node = self.function.node(*id);
            match over(self.layout, node) {
                Some(Over::Rows(outer)) => Some((*id, *node.results.first()?, outer)),
                _ => None,
            }
        });
        found.collect()
    }

    /// The argument that varies over a row sum's lanes.
    pub(super) fn grown(&self, id: NodeId) -> Option<ValueId> {
        let node = self.function.node(id);
        let index = usize::from(matches!(node.op, Op::CausalConvWeightGrad(_)));
        node.args.get(index).copied()
    }

    pub(super) fn grows_over_lane(&self, id: NodeId) -> bool {
        self.grown(id).is_some_and(|arg| self.layout.is_lane(arg))
    }

    /// Whether all lanes of a row sum are summed as well.
    pub(super) fn sums_lane(&self, id: NodeId, outer: usize) -> bool {
        self.grown(id).is_some_and(|arg| outer > 0 && self.layout.lanes(arg).len() == outer)
    }

    pub(super) fn grown_extent(&self, id: NodeId, outer: usize) -> Vec<(String, i64)> {
        let node = self.function.node(id);
        let (Some(arg), Some(result)) = (self.grown(id), node.results.first().copied()) else {
            return Vec::new();
        };
        let mut extent = self.small_loops(result, &[]);
        if !self.sums_lane(id, outer) && self.layout.is_lane(arg) {
            if self.shape.chunks > 1 {
                extent.insert(0, ("c".to_owned(), self.shape.chunks));
            }
            extent.extend(self.lane_loop(arg));
        }
        extent
    }

    pub(super) fn accumulators(&mut self) {
        for (id, result, outer) in self.row_sums() {
            let loops = self.grown_extent(id, outer);
            let extent: String = loops.iter().map(|(_, n)| format!("[{n}]")).collect();
            let index: String = loops.iter().map(|(v, _)| format!("[{v}]")).collect();
            let name = self.name(result);
            self.text.line(format!("float total_{name}{extent};"));
            let n = self.text.loops(&loops);
            self.text.line(format!("total_{name}{index} = 0.0f;"));
            self.text.close_all(n);
        }
    }

    pub(super) fn grow(&mut self, id: NodeId) {
        let node = self.function.node(id);
        let Some(result) = node.results.first().copied() else { return };
        let Some((_, _, outer)) = self.row_sums().into_iter().find(|(known, _, _)| *known == id)
        else {
            return;
        };
        let described = self.describe(id);
        self.text.line(described);
        let extent = self.grown_extent(id, outer);
        let index: String = extent.iter().map(|(v, _)| format!("[{v}]")).collect();
        let name = self.name(result);
        // Steps are read by all threads: what is guarded is the sum alone.
        let steps = match (&node.op, node.args.first()) {
            (Op::CausalConvWeightGrad(op), Some(x)) => {
                Some(self.steps(*x, op.taps.size.as_constant().unwrap_or_default(), false))
            }
            _ => None,
        };
        let mut conditions = Vec::new();
        if self.shape.groups() > 1 || self.halo() > 0 {
            conditions.push("live");
        }
        if self.shape.ragged && self.grows_over_lane(id) {
            conditions.push("inside");
        }
        let opened = !conditions.is_empty();
        if opened {
            self.text.open(format!("if ({})", conditions.join(" && ")));
        }
        let within: Vec<(String, i64)> = extent.into_iter().filter(|(v, _)| v != "c").collect();
        if let (Op::CausalConvWeightGrad(op), Some(steps), Some(dy)) =
            (&node.op, steps, node.args.get(1).copied())
        {
            let tap = variable(&op.taps.name, 0);
            let n_taps = op.taps.size.as_constant().unwrap_or_default();
            self.text.loops(&[(tap.clone(), n_taps)]);
            self.step(&steps, &tap);
            let n = self.text.loops(&[("i".to_owned(), self.shape.vector)]);
            let factor = self.at(dy);
            self.text.line(format!("total_{name}{index} += {factor} * step[i];"));
            self.text.close_all(n + 1);
        } else {
            let (inner, summand) = self.summand(node);
            let mut loops = within;
            loops.extend(inner.into_iter().filter(|(v, _)| v != "i"));
            if self.sums_lane(id, outer) {
                let lanes = self.grown(id).map(|arg| self.lane_loop(arg)).unwrap_or_default();
                loops.extend(lanes);
            }
            let n = self.text.loops(&loops);
            self.text.line(format!("total_{name}{index} += {summand};"));
            self.text.close_all(n);
        }
        if opened {
            self.text.close();
        }
    }

    /// Writes the sums over this block's rows.
    pub(super) fn partials(&mut self) {
        for (id, result, outer) in self.row_sums() {
            let name = self.name(result);
            let columns: i64 = super::group::row_elements(self.layout, result);
            let loops = self.grown_extent(id, outer);
            let within: Vec<(String, i64)> =
                loops.iter().filter(|(v, _)| v != "c").cloned().collect();
            let index: String = loops.iter().map(|(v, _)| format!("[{v}]")).collect();
            let place = self.access(result).result_place();
            let (parts, threads) = (self.shape.parts(), self.shape.threads);
            self.text.open("");
            if self.sums_lane(id, outer) {
                let warps = self.shape.block / 32;
                let part = format!(
                    "((long long)blockIdx.y * gridDim.x + blockIdx.x) * {warps} + threadIdx.x / 32"
                );
                let n = self.text.loops(&within);
                self.text
                    .line(format!("const float total = segment_sum<32>(total_{name}{index});"));
                self.text.line(format!(
                    "if (threadIdx.x % 32 == 0) part_{}[({part}) * {columns} + {place}] = total;",
                    result.0
                ));
                self.text.close_all(n + 1);
                continue;
            }
            let arg = self.grown(id);
            let lanes = arg.map(|arg| self.layout.lanes(arg)).unwrap_or_default();
            let mut conditions = Vec::new();
            if threads < 32 {
                conditions.push(format!("threadIdx.x % 32 < {threads}"));
            }
            if lanes.is_empty() {
                if !self.layout.slots.is_empty() {
                    conditions.push("thread == 0".to_owned());
                    if self.shape.tiles > 1 {
                        conditions.push("blockIdx.y == 0".to_owned());
                    }
                }
            } else {
                for slot in 0..self.layout.slots.len() {
                    if !lanes.contains(&slot) {
                        conditions.push(format!("l{slot} == 0"));
                    }
                }
                if self.shape.ragged {
                    conditions.push("inside".to_owned());
                }
            }
            let part = match parts {
                1 => "(long long)blockIdx.x".to_owned(),
                _ => {
                    format!("((long long)blockIdx.x * {parts} + threadIdx.x / {})", threads.max(32))
                }
            };
            let mut beside = 1;
            let mut outer_place = String::new();
            for slot in lanes.iter().take(outer).rev() {
                outer_place += &format!(" + l{slot} * {}", columns * beside);
                beside *= self.layout.slots.get(*slot).copied().unwrap_or(1);
            }
            let width = columns * beside;
            if !lanes.is_empty() && self.shape.chunks > 1 {
                self.open_pass();
            } else {
                self.text.open("");
            }
            let n = self.text.loops(&within);
            let total = if threads < 32 {
                format!("across_sum<{threads}>(total_{name}{index})")
            } else {
                format!("total_{name}{index}")
            };
            self.text.line(format!("const float total = {total};"));
            let guard = if conditions.is_empty() {
                String::new()
            } else {
                format!("if ({}) ", conditions.join(" && "))
            };
            self.text.line(format!(
                "{guard}part_{}[{part} * {width}{outer_place} + {place}] = total;",
                result.0
            ));
            self.text.close_all(n + 2);
        }
    }
}
