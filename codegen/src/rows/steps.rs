//! Ops along time: convolutions, whose steps go from row to row, and rotations.

use super::access::size_text;
use super::cuda::{Angles, Writer, variable};
use super::layout::Role;
use crate::ir::{Node, ValueId};
use crate::ops::Op;

/// Steps of an input around a row.
pub(super) struct Steps {
    name: String,
    packed: bool,
}

impl Writer<'_> {
    /// Taps of a convolution at the steps around this row.
    pub(super) fn conv(&mut self, node: &Node, taps: &str, ahead: bool) {
        let (Some(x), Some(w), Some(y)) =
            (node.args.first(), node.args.get(1), node.results.first())
        else {
            return;
        };
        let (x, w, y) = (*x, *w, *y);
        let leaf = self.layout.leaves(w).iter().find(|leaf| leaf.axis == taps).cloned();
        let Some(leaf) = leaf else { return };
        let Role::Small(n_taps) = leaf.role else { return };
        let tap = variable(&leaf.axis, leaf.nth);
        let steps = self.steps(x, n_taps, ahead);
        let name = self.name(y);
        self.text.line(format!("clear({name});"));
        self.text.loops(&[(tap.clone(), n_taps)]);
        self.step(&steps, &tap);
        let lanes = self.lane_loop(y);
        let n = self.text.loops(&lanes);
        let (to, weight) = (self.at(y), self.at(w));
        self.text.line(format!("{to} += {weight} * step[i];"));
        self.text.close_all(n);
        self.text.close();
    }

    /// Whether a node hands its result on from row to row.
    pub(super) fn is_scattered(&self, node: &Node) -> bool {
        let made = node.args.first().map(|dy| self.function.value(*dy).node);
        matches!(node.op, Op::CausalConvInputGrad(_))
            && made.is_some_and(|id| self.group.nodes.contains(&id))
    }

    /// Rows after a block's own that it computes too.
    pub(super) fn halo(&self) -> i64 {
        let taps = self.group.nodes.iter().filter_map(|id| {
            let node = self.function.node(*id);
            let w = node.args.get(1).filter(|_| self.is_scattered(node))?;
            Some(self.layout.smalls(*w).iter().product::<i64>() - 1)
        });
        taps.max().unwrap_or_default()
    }

    /// The cotangent of a convolution's input, where that of its output is made here: each row adds
    /// its share to the rows that its taps met, and the oldest of these is complete.
    pub(super) fn scatter(&mut self, node: &Node, taps: &str) {
        let (Some(dy), Some(w), Some(y)) =
            (node.args.first(), node.args.get(1), node.results.first())
        else {
            return;
        };
        let (dy, w, y) = (*dy, *w, *y);
        let leaf = self.layout.leaves(w).iter().find(|leaf| leaf.axis == taps).cloned();
        let Some(leaf) = leaf else { return };
        let Role::Small(n_taps) = leaf.role else { return };
        let tap = variable(&leaf.axis, leaf.nth);
        let (vector, name, last) = (self.shape.vector, self.name(y), n_taps - 1);
        let time = self.layout.rows.len().saturating_sub(1);
        let steps = size_text(&self.layout.rows.get(time).cloned().unwrap_or_default());
        for leaf in self.layout.leaves(y).to_vec() {
            if let Role::Row(_) = leaf.role {
                self.need_sizes(&leaf.stride);
            }
        }
        let pending = format!("pending_{name}");
        self.before_rows.push(format!("float {pending}[{n_taps}][{vector}];"));
        let all = [(tap.clone(), n_taps), ("i".to_owned(), vector)];
        self.text.open(format!("if (base == first || r{time} == 0)"));
        let n = self.text.loops(&all);
        self.text.line(format!("{pending}[{tap}][i] = 0.0f;"));
        self.text.close_all(n + 1);
        let n = self.text.loops(&all);
        let (weight, cotangent) = (self.at(w), self.at(dy));
        self.text.line(format!("{pending}[{tap}][i] += {weight} * {cotangent};"));
        self.text.close_all(n);
        self.complete(y, &pending, time, "0", last);
        // At the end of a sequence all that are pending are complete.
        self.text.open(format!("if (r{time} == {steps} - 1)"));
        self.text.line("UNROLL");
        self.text.open(format!("for (int done = 1; done < {n_taps}; ++done)"));
        self.complete(y, &pending, time, "done", last);
        self.text.close_all(2);
        self.text.line("UNROLL");
        self.text.open(format!("for (int tap = 0; tap < {n_taps}; ++tap)"));
        let n = self.text.loops(&[("i".to_owned(), vector)]);
        self.text.line(format!("{pending}[tap][i] = tap < {last} ? {pending}[tap + 1][i] : 0.0f;"));
        self.text.close_all(n + 1);
    }

    /// Writes what is complete of a cotangent: its row is so many less one before this one.
    fn complete(&mut self, y: ValueId, pending: &str, time: usize, done: &str, last: i64) {
        let vector = self.shape.vector;
        let back = if done == "0" { last.to_string() } else { format!("({last} - {done})") };
        let mut ready =
            format!("r{time} >= {back} && row - {back} >= first && row - {back} < last");
        if self.shape.ragged {
            ready += " && inside";
        }
        let offset = self.access(y).offset(Some((time, &format!("- {back}"))));
        if self.access(y).is_vector() {
            self.text.line(format!(
                "if ({ready}) store<{vector}>(out_{} + {offset}, {pending}[{done}]);",
                y.0
            ));
            return;
        }
        let stride = self.access(y).lane_stride();
        self.text.open(format!("if ({ready})"));
        let n = self.text.loops(&[("i".to_owned(), vector)]);
        self.text
            .line(format!("narrow(out_{}[{offset} + i * {stride}], {pending}[{done}][i]);", y.0));
        self.text.close_all(n + 1);
    }

    /// The vector of a tap as `step`.
    pub(super) fn step(&mut self, steps: &Steps, tap: &str) {
        let (vector, name) = (self.shape.vector, &steps.name);
        if steps.packed {
            self.text.line(format!("float step[{vector}];"));
            self.text.line(format!("unpack<{vector}>(step, {name}[{tap}]);"));
        } else {
            self.text.line(format!("const float (&step)[{vector}] = {name}[{tap}];"));
        }
    }

    /// The steps of an input that the taps of a convolution meet. Where a block does one row after
    /// the other, all but one are there from the row before, which has also begun to read that one.
    pub(super) fn steps(&mut self, x: ValueId, n_taps: i64, ahead: bool) -> Steps {
        let vector = self.shape.vector;
        let packed = self.packed(x) && self.access(x).is_vector();
        let side = if ahead { "ahead" } else { "behind" };
        let name = format!("steps_{side}_{}", x.0);
        let steps = Steps { name: name.clone(), packed };
        if !self.steps_read.insert((x, ahead)) {
            return steps;
        }
        let time = self.layout.row_parts(x).last().copied().unwrap_or_default();
        let size = self.layout.rows.get(time).cloned().unwrap_or_default();
        self.need_sizes(&size);
        for leaf in self.layout.leaves(x).to_vec() {
            if let Role::Row(_) = leaf.role {
                self.need_sizes(&leaf.stride);
            }
        }
        let element = if packed { "unsigned" } else { "float" };
        let extent = if packed { vector / 2 } else { vector };
        let declared = format!("{element} {name}[{n_taps}][{extent}];");
        let rolls = self.shape.groups() == 1 && self.shape.chunks == 1;
        let last = n_taps - 1;
        let read = |writer: &mut Self, tap: &str| {
            let back = format!("({last} - {tap})");
            let mut there = if ahead {
                format!("r{time} + {back} < {}", size_text(&size))
            } else {
                format!("r{time} >= {back}")
            };
            if writer.shape.ragged {
                there += " && inside";
            }
            let sign = if ahead { "+" } else { "-" };
            let offset = writer.access(x).offset(Some((time, &format!("{sign} {back}"))));
            let pointer = format!("in_{}", x.0);
            if packed {
                writer.text.line(format!(
                    "if ({there}) load_pairs<{vector}>({name}[{tap}], {pointer} + {offset});"
                ));
                writer.text.line(format!("else clear({name}[{tap}]);"));
            } else if writer.access(x).is_vector() {
                writer.text.line(format!(
                    "if ({there}) load<{vector}>({name}[{tap}], {pointer} + {offset});"
                ));
                writer.text.line(format!("else clear({name}[{tap}]);"));
            } else {
                let stride = writer.access(x).lane_stride();
                let n = writer.text.loops(&[("i".to_owned(), vector)]);
                writer.text.line(format!(
                    "{name}[{tap}][i] = {there} ? widen({pointer}[{offset} + i * {stride}]) : 0.0f;"
                ));
                writer.text.close_all(n);
            }
        };
        if !rolls {
            self.text.line(declared);
            let n = self.text.loops(&[("tap".to_owned(), n_taps)]);
            read(self, "tap");
            self.text.close_all(n);
            return steps;
        }
        self.before_rows.push(declared);
        self.before_rows.push(format!("{element} next_{name}[{extent}];"));
        self.text.open(format!("if (base == first || r{time} == 0)"));
        let n = self.text.loops(&[("tap".to_owned(), n_taps)]);
        read(self, "tap");
        self.text.close_all(n + 1);
        self.text.open("else");
        self.text.line("UNROLL");
        let (to, from) = if ahead {
            self.text.open(format!("for (int tap = {last}; tap > 0; --tap)"));
            ("tap", "tap - 1")
        } else {
            self.text.open(format!("for (int tap = 0; tap < {last}; ++tap)"));
            ("tap", "tap + 1")
        };
        let n = self.text.loops(&[("i".to_owned(), extent)]);
        self.text.line(format!("{name}[{to}][i] = {name}[{from}][i];"));
        self.text.close_all(n + 1);
        let newest = if ahead { 0 } else { last };
        let n = self.text.loops(&[("i".to_owned(), extent)]);
        self.text.line(format!("{name}[{newest}][i] = next_{name}[i];"));
        self.text.close_all(n + 1);
        self.read_next(x, &name, time, if ahead { last } else { 0 }, packed);
        steps
    }

    /// Begins to read what the next row needs, while this one is computed.
    fn read_next(&mut self, x: ValueId, name: &str, time: usize, beyond: i64, packed: bool) {
        let vector = self.shape.vector;
        let size = size_text(&self.layout.rows.get(time).cloned().unwrap_or_default());
        let mut there = format!("r{time} + {} < {size}", beyond + 1);
        if self.shape.ragged {
            there += " && inside";
        }
        let offset = self.access(x).offset(Some((time, &format!("+ {}", beyond + 1))));
        let pointer = format!("in_{}", x.0);
        if packed || self.access(x).is_vector() {
            let load = if packed { "load_pairs" } else { "load" };
            self.text
                .line(format!("if ({there}) {load}<{vector}>(next_{name}, {pointer} + {offset});"));
            self.text.line(format!("else clear(next_{name});"));
        } else {
            let stride = self.access(x).lane_stride();
            let n = self.text.loops(&[("i".to_owned(), vector)]);
            self.text.line(format!(
                "next_{name}[i] = {there} ? widen({pointer}[{offset} + i * {stride}]) : 0.0f;"
            ));
            self.text.close_all(n);
        }
    }

    pub(super) fn rotary(&mut self, node: &Node, op: &crate::ops::Rotary) {
        let (Some(x), Some(y)) = (node.args.first().copied(), node.results.first().copied()) else {
            return;
        };
        let leaf = self.layout.leaves(x).iter().find(|leaf| leaf.axis == op.time).cloned();
        let Some(Role::Row(time)) = leaf.map(|leaf| leaf.role) else { return };
        let width = self.layout.slots.last().copied().unwrap_or(1);
        let steps = self.layout.rows.get(time).cloned().unwrap_or_default();
        let table = Angles { steps, width, base: op.base };
        let index = self.angles.iter().position(|known| *known == table).unwrap_or_else(|| {
            self.angles.push(table);
            self.angles.len() - 1
        });
        let (vector, last) = (self.shape.vector, self.layout.slots.len().saturating_sub(1));
        let place = if last == 0 { "lane".to_owned() } else { format!("l{last}") };
        let turn = format!("turn_{}", y.0);
        self.text.line(format!("float {turn}[{vector}];"));
        let load = format!(
            "load<{vector}>({turn}, angles_{index} + (long long)r{time} * {width} + {place});"
        );
        if self.shape.ragged {
            self.text.line(format!("if (inside) {load}"));
            self.text.line(format!("else clear({turn});"));
        } else {
            self.text.line(load);
        }
        let loops = self.small_loops(y, &[]);
        let n = self.text.loops(&loops);
        let index: String = loops.iter().map(|(v, _)| format!("[{v}]")).collect();
        let (from, to) = (format!("{}{index}", self.name(x)), format!("{}{index}", self.name(y)));
        self.text.line("UNROLL");
        self.text.open(format!("for (int i = 0; i < {vector}; i += 2)"));
        let sine = if op.inverse { format!("-{turn}[i + 1]") } else { format!("{turn}[i + 1]") };
        self.text.line(format!("const float cosine = {turn}[i], sine = {sine};"));
        self.text.line(format!("{to}[i] = {from}[i] * cosine - {from}[i + 1] * sine;"));
        self.text.line(format!("{to}[i + 1] = {from}[i] * sine + {from}[i + 1] * cosine;"));
        self.text.close();
        self.text.close_all(n);
    }
}
