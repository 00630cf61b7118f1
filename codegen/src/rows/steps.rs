//! Ops along time: convolutions, whose steps go from row to row, and rotations.

use super::access::size_text;
use super::cuda::{Angles, Writer, variable};
use super::layout::Role;
use super::ring::Copies;
use super::text::Text;
use super::twos::Parts;
use crate::ir::{Node, ValueId};
use crate::ops::Op;

/// Steps of an input around a row.
pub(super) struct Steps {
    name: String,
    packed: bool,
    /// The last tap, where the first tap meets the last step.
    turned: Option<i64>,
}

/// The variable of the steps of an input.
pub(super) fn steps_name(x: ValueId, ahead: bool) -> String {
    let side = if ahead { "ahead" } else { "behind" };
    format!("steps_{side}_{}", x.0)
}

impl Writer<'_> {
    /// What a thread holds of a step of an input: of which kind, and how many.
    pub(super) fn steps_held(&self, x: ValueId) -> (&'static str, i64) {
        let vector = self.shape.vector;
        let packed = self.packed(x) && self.access(x).is_vector();
        if packed { ("unsigned", vector / 2) } else { ("float", vector) }
    }

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

    /// Whether a block does one row after the other and hands steps on.
    pub(super) fn rolls(&self) -> bool {
        self.shape.groups() == 1 && self.shape.chunks == 1 && self.longest() > 0
    }

    /// Taps of the longest convolution.
    pub(super) fn longest(&self) -> i64 {
        let taps = self.group.nodes.iter().filter_map(|id| {
            let node = self.function.node(*id);
            match &node.op {
                Op::CausalConv(_) | Op::CausalConvInputGrad(_) => {
                    Some(self.layout.smalls(*node.args.get(1)?).iter().product())
                }
                Op::CausalConvWeightGrad(op) => op.taps.size.as_constant(),
                _ => None,
            }
        });
        taps.max().unwrap_or_default()
    }

    /// Opens the loop over the block's runs where steps go from row to row: a run is what the block has of one sequence.
    /// At its start stands what each row would have to ask otherwise: whether there are rows before it.
    pub(super) fn open_runs(&mut self) -> Text {
        let halo = self.halo();
        let time = self.layout.rows.len().saturating_sub(1);
        let size = self.layout.rows.get(time).cloned().unwrap_or_default();
        self.need_sizes(&size);
        let size = size_text(&size);
        let end = if halo > 0 {
            self.text.line("// Rows after the block's own complete sums that its rows begin.");
            self.text.line(format!("const int room = min({halo}, rows - last);"));
            self.text.line(format!(
                "const int past = last % {size} == 0 ? 0 : min(room, {size} - last % {size});"
            ));
            "last + past"
        } else {
            "last"
        };
        self.text.line(format!("const int end = {end};"));
        self.text.line("// Rows of one sequence after the other.");
        self.text.open("for (int begin = first; begin < end;)");
        self.text.line(format!("const int start = begin - begin % {size};"));
        self.text.line(format!("const int stop = min(end, start + {size});"));
        self.row_indices(time, &format!("begin / {size}"));
        let before = std::mem::take(&mut self.text);
        self.text = before.beside();
        self.before_rows = before.beside();
        self.after_rows = before.beside();
        self.text.depth_in();
        before
    }

    /// Closes it. The text has so many rows in a row that each step is where it was before: nothing is moved. These are a
    /// row for each tap, and one more where a step is read ahead.
    pub(super) fn close_runs(&mut self, before: Text) {
        let row = std::mem::replace(&mut self.text, before);
        self.text.append(std::mem::take(&mut self.before_rows));
        let n_rows = self.rows_of_text();
        let mut copies = self.copies(n_rows);
        self.text.append(std::mem::take(&mut copies.before));
        if self.parts.is_some() {
            self.two_rows(copies, n_rows);
        } else {
            self.one_row(copies, n_rows, row);
        }
        self.text.append(std::mem::take(&mut self.after_rows));
        self.text.line("begin = stop;");
        self.text.close();
    }

    /// Rows that the text has in a row.
    fn rows_of_text(&self) -> i64 {
        match self.parts {
            Some(_) => self.rows_in_twos(),
            None => self.longest() + i64::from(self.step_ahead),
        }
    }

    /// The same where it has two beside each other: these have the steps of one row and one more, and an even number of places
    /// for them.
    pub(super) fn rows_in_twos(&self) -> i64 {
        (self.longest() + 2) / 2 * 2
    }

    /// What a row knows of itself.
    pub(super) fn row_head(&mut self) {
        let time = self.layout.rows.len().saturating_sub(1);
        self.text.line(format!("const int r{time} = row - start;"));
        if self.halo() > 0 {
            self.text.line("const bool live = row < last;");
        }
    }

    /// One row after the other.
    fn one_row(&mut self, copies: Copies, n_rows: i64, row: Text) {
        let place = if copies.any { ", const auto place" } else { "" };
        self.text.open(format!("const auto go = [&](const int row{place}) ROW"));
        self.row_head();
        if copies.any {
            self.text.line(format!("wait_for_copies<{}>();", copies.depth - 1));
            self.text.append(copies.takes);
            self.text.line(format!("copy_row(row + {}, place);", copies.depth));
        }
        self.text.append(row);
        self.text.end("};");
        self.text.open("for (int row = begin;;)");
        for n in 0..n_rows {
            let place = if copies.any { format!(", Place<{n}>()") } else { String::new() };
            self.text.line(format!("go(row{place});"));
            if n + 1 == n_rows && !copies.round.is_empty() {
                self.text.line(&copies.round);
            }
            self.text.line("if (++row == stop) break;");
        }
        self.text.close();
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
        let size = size_text(&self.layout.rows.get(time).cloned().unwrap_or_default());
        for leaf in self.layout.leaves(y).to_vec() {
            if let Role::Row(_) = leaf.role {
                self.need_sizes(&leaf.stride);
            }
        }
        let pending = format!("pending_{name}");
        let all = [(tap.clone(), n_taps), ("i".to_owned(), vector)];
        self.before_rows.line(format!("float {pending}[{n_taps}][{vector}];"));
        let n = self.before_rows.loops(&all);
        self.before_rows.line(format!("{pending}[{tap}][i] = 0.0f;"));
        self.before_rows.close_all(n);
        let n = self.text.loops(&all);
        let (weight, cotangent) = (self.at(w), self.at(dy));
        self.text.line(format!("{pending}[{tap}][i] += {weight} * {cotangent};"));
        self.text.close_all(n);
        self.complete(y, &pending, "0", last);
        self.text.line("UNROLL");
        self.text.open(format!("for (int tap = 0; tap < {n_taps}; ++tap)"));
        let n = self.text.loops(&[("i".to_owned(), vector)]);
        self.text.line(format!("{pending}[tap][i] = tap < {last} ? {pending}[tap + 1][i] : 0.0f;"));
        self.text.close_all(n + 1);
        // At the end of a sequence all that are pending are complete.
        std::mem::swap(&mut self.text, &mut self.after_rows);
        self.text.open(format!("if (stop == start + {size})"));
        self.text.line(format!("const int row = stop, r{time} = row - start;"));
        let n = self.text.loops(&[("done".to_owned(), last)]);
        self.complete(y, &pending, "done", last);
        self.text.close_all(n + 1);
        std::mem::swap(&mut self.text, &mut self.after_rows);
    }

    /// Writes what is complete of a cotangent: its row is so many less one before this one.
    fn complete(&mut self, y: ValueId, pending: &str, done: &str, last: i64) {
        let vector = self.shape.vector;
        let time = self.layout.rows.len().saturating_sub(1);
        let back = if done == "0" { last.to_string() } else { format!("({last} - {done})") };
        let mut ready = format!("row - {back} >= begin");
        if done != "0" || last < self.halo() {
            ready += &format!(" && row - {back} < last");
        }
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
        let place = match steps.turned {
            Some(last) => format!("{last} - {tap}"),
            None => tap.to_owned(),
        };
        if steps.packed {
            self.text.line(format!("float step[{vector}];"));
            self.text.line(format!("unpack<{vector}>(step, {name}[{place}]);"));
        } else {
            self.text.line(format!("const float (&step)[{vector}] = {name}[{place}];"));
        }
    }

    /// The steps of an input that the taps of a convolution meet. Where a block does one row after
    /// the other, all but one are there from the row before, which has also begun to read that one.
    pub(super) fn steps(&mut self, x: ValueId, n_taps: i64, ahead: bool) -> Steps {
        let packed = self.packed(x) && self.access(x).is_vector();
        let last = n_taps - 1;
        let name = steps_name(x, ahead);
        let steps = Steps { name: name.clone(), packed, turned: ahead.then_some(last) };
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
        let size = size_text(&size);
        // How far from this row the step at a place is, oldest first, and whether its sequence has it.
        let far = |place: &str| {
            if ahead { format!("+ {place}") } else { format!("- ({last} - {place})") }
        };
        let there = |place: &str| {
            if ahead {
                format!("r{time} + {place} < {size}")
            } else {
                format!("r{time} >= {last} - {place}")
            }
        };
        let (element, extent) = self.steps_held(x);
        if !self.rolls() {
            self.text.line(format!("{element} {name}[{n_taps}][{extent}];"));
            let n = self.text.loops(&[("place".to_owned(), n_taps)]);
            let there = there("place");
            self.read_step(x, &format!("{name}[place]"), &far("place"), Some(&there), packed);
            self.text.close_all(n);
            return steps;
        }
        let after = if ahead { last } else { 0 };
        let under_way = self.layout.is_vector(x) && self.begin_copies(x, &name, after);
        self.step_ahead |= !under_way;
        std::mem::swap(&mut self.text, &mut self.before_rows);
        self.text.line(format!("{element} {name}[{n_taps}][{extent}];"));
        if !under_way {
            self.text.line(format!("{element} next_{name}[{extent}];"));
        }
        self.text.open("");
        self.text.line(format!("const int row = begin, r{time} = row - start;"));
        let n = self.text.loops(&[("place".to_owned(), last)]);
        let before = there("place");
        self.read_step(x, &format!("{name}[place + 1]"), &far("place"), Some(&before), packed);
        self.text.close_all(n);
        if !under_way {
            let (newest, first) = if ahead {
                (format!("+ {last}"), Some(there(&last.to_string())))
            } else {
                ("+ 0".to_owned(), None)
            };
            self.read_step(x, &format!("next_{name}"), &newest, first.as_deref(), packed);
        }
        self.text.close();
        std::mem::swap(&mut self.text, &mut self.before_rows);
        let n = self.text.loops(&[("place".to_owned(), last), ("i".to_owned(), extent)]);
        self.text.line(format!("{name}[place][i] = {name}[place + 1][i];"));
        self.text.close_all(n);
        let from = if under_way { "copied" } else { "next" };
        let n = self.text.loops(&[("i".to_owned(), extent)]);
        self.text.line(format!("{name}[{last}][i] = {from}_{name}[i];"));
        self.text.close_all(n);
        if under_way {
            return steps;
        }
        // It is begun to be read while this row is computed.
        let (far, there) = if ahead {
            (format!("+ {n_taps}"), there(&n_taps.to_string()))
        } else {
            ("+ 1".to_owned(), "row + 1 < stop".to_owned())
        };
        self.read_step(x, &format!("next_{name}"), &far, Some(&there), packed);
        steps
    }

    /// Reads an input so many rows from this one, if it is there; else it is 0.
    fn read_step(&mut self, x: ValueId, to: &str, far: &str, there: Option<&str>, packed: bool) {
        let vector = self.shape.vector;
        let time = self.layout.rows.len().saturating_sub(1);
        let inside = (self.shape.ragged && self.layout.is_lane(x)).then_some("inside");
        let conditions: Vec<&str> = there.into_iter().chain(inside).collect();
        let condition = conditions.join(" && ");
        let offset = self.access(x).offset(Some((time, far)));
        let pointer = format!("in_{}", x.0);
        if packed || self.access(x).is_vector() {
            let load = if packed { "load_pairs" } else { "load" };
            let load = format!("{load}<{vector}>({to}, {pointer} + {offset});");
            self.load_if(&condition, &load, to);
            return;
        }
        let (at, place) = if self.layout.is_vector(x) {
            (format!("{to}[i]"), format!("{offset} + i * {}", self.access(x).lane_stride()))
        } else {
            (to.to_owned(), offset)
        };
        let n = self.text.loops(&self.lane_loop(x));
        let read = format!("widen({pointer}[{place}])");
        self.text.line(if condition.is_empty() {
            format!("{at} = {read};")
        } else {
            format!("{at} = {condition} ? {read} : 0;")
        });
        self.text.close_all(n);
    }

    /// A reading that is done under a condition; else what it reads is 0.
    pub(super) fn load_if(&mut self, condition: &str, load: &str, to: &str) {
        if condition.is_empty() {
            self.text.line(load);
            return;
        }
        self.text.line(format!("if ({condition}) {load}"));
        self.text.line(format!("else clear({to});"));
    }

    /// Whether an input is read a row ahead, and not yet: it varies from row to row.
    pub(super) fn begin_ahead(&mut self, x: ValueId) -> bool {
        let time = self.layout.rows.len().saturating_sub(1);
        self.rolls()
            && self.layout.row_parts(x).contains(&time)
            && self.layout.smalls(x).is_empty()
            && !self.phases.kept.contains(&x)
            && self.ahead.insert(x)
    }

    /// What a row has of an input that was begun to be read a row ago, and the next is begun; or of one that is under way.
    pub(super) fn read_ahead(&mut self, x: ValueId) {
        let (name, vector) = (self.name(x), self.shape.vector);
        let packed = self.packed(x) && self.access(x).is_vector();
        let time = self.layout.rows.len().saturating_sub(1);
        let under_way = self.begin_copies(x, &name, 0);
        let next = if under_way { format!("copied_{name}") } else { format!("next_{name}") };
        if !under_way {
            let held = if packed { format!("[{}]", vector / 2) } else { self.extent(x) };
            let element = if packed { "unsigned" } else { self.element(x) };
            std::mem::swap(&mut self.text, &mut self.before_rows);
            self.text.line(format!("{element} {next}{held};"));
            self.text.open("");
            self.text.line(format!("const int row = begin, r{time} = row - start;"));
            self.read_step(x, &next, "+ 0", None, packed);
            self.text.close();
            std::mem::swap(&mut self.text, &mut self.before_rows);
        }
        if packed {
            let pairs = self.declare_pairs(x);
            self.text.line(format!("copy({pairs}, {next});"));
            self.text.line(format!("unpack<{vector}>({name}, {pairs});"));
        } else if self.layout.is_vector(x) {
            self.text.line(format!("copy({name}, {next});"));
        } else {
            let first = if under_way { "[0]" } else { "" };
            self.text.line(format!("{name} = {next}{first};"));
        }
        if !under_way {
            self.read_step(x, &next, "+ 1", Some("row + 1 < stop"), packed);
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
        let turn = format!("turn_{index}");
        if self.turns_read.insert(index) {
            self.text.line(format!("float {turn}[{vector}];"));
            let first = self.parts.as_ref().is_some_and(Parts::is_first);
            let place = format!("(long long)r{time} * {width} + {place}");
            if first && self.begin_angles(index, time, width, &place) {
                self.text.line(format!("copy({turn}, copied_{turn});"));
            } else {
                // Not ahead: the second-level cache has it.
                let inside = if self.shape.ragged { "inside" } else { "" };
                let load = format!("load<{vector}>({turn}, angles_{index} + {place});");
                self.load_if(inside, &load, &turn);
            }
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
