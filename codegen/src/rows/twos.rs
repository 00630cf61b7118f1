//! Two rows at a time: where a block does one row after the other and rows have sums over neighbouring threads.
//!
//! Such a sum is five exchanges one after the other, and a scheduler has three or four warps: most of a row's time is
//! waiting. So the text has two rows beside each other, cut into parts where sums are exchanged: the first part of both, the
//! exchanges of both together, the next part of both. A row has the same bits beside another as alone. Everything that goes from
//! row to row does so inside of a part, in the order of the rows.
//!
//! The first of an odd number of rows is alone. So the loop is left after two rows only, and what steps it has then is not
//! moved for a last row that might follow.

use super::cuda::Writer;
use super::group::{Over, is_literal, over};
use super::phases::{Item, Phase, seen_through};
use super::text::Text;
use crate::ir::{NodeId, ValueId};
use crate::ops::Op;
use std::collections::{BTreeMap, BTreeSet};

/// What a part of a row leaves for a later one, as it is declared.
struct Field {
    value: ValueId,
    element: &'static str,
    name: String,
    extent: String,
}

/// The steps of an input around a row that a later part needs too: by then the row beside it has moved them on.
struct HeldSteps {
    value: ValueId,
    ahead: bool,
    field: Field,
}

/// The parts of a row.
#[derive(Default)]
pub(super) struct Parts {
    /// The part of each node.
    of: BTreeMap<NodeId, usize>,
    /// The sums of each part, in the order of their exchange.
    sums: Vec<Vec<NodeId>>,
    /// What each part reads of values.
    used: Vec<BTreeSet<ValueId>>,
    /// Values that are made in a part and read in a later one.
    held: BTreeSet<ValueId>,
    fields: Vec<Field>,
    steps: Vec<HeldSteps>,
    texts: Vec<Text>,
    /// Words of a thread for a row that are under way in any case.
    words: i64,
}

impl Parts {
    /// Words of a thread for a row that are under way in any case.
    pub(super) fn words_under_way(&self) -> i64 {
        self.words
    }

    /// Whether the first part is written, in which each row waits for what is read.
    pub(super) fn is_first(&self) -> bool {
        self.texts.is_empty()
    }
}

impl Field {
    fn declaration(&self) -> String {
        format!("{} {}{};", self.element, self.name, self.extent)
    }

    fn reference(&self) -> String {
        let (element, name) = (self.element, &self.name);
        match self.extent.as_str() {
            "" => format!("{element}& {name} = held.{name};"),
            extent => format!("{element} (&{name}){extent} = held.{name};"),
        }
    }
}

impl Writer<'_> {
    /// Whether the text has two rows beside each other. Their sums are those of threads of one warp, and all that rows read is
    /// under way: what is read ahead into registers would be two rows of it.
    pub(super) fn goes_in_twos(&self) -> bool {
        let [phase] = self.phases.all.as_slice() else { return false };
        let sums: Vec<NodeId> =
            self.group.nodes.iter().copied().filter(|id| self.is_segment(*id)).collect();
        let is_one = |id: &NodeId| {
            let node = self.function.node(*id);
            let results = node.results.iter().all(|v| self.layout.smalls(*v).is_empty());
            results && !matches!(node.op, Op::LogSumExp(_))
        };
        let kept = self.phases.kept.difference(&self.phases.hoisted).count();
        let in_pass = phase.uniform.is_empty() && phase.sums.is_empty() && kept == 0;
        let grows = phase.grows.iter().all(|id| self.grows_over_lane(*id));
        self.rolls()
            && !sums.is_empty()
            && sums.iter().all(is_one)
            && self.segment_threads() <= 32
            && in_pass
            && grows
            && self.end.is_none()
            && self.words_of_row(phase).is_some_and(|words| self.fits_in_twos(words))
    }

    fn is_segment(&self, id: NodeId) -> bool {
        over(self.layout, self.function.node(id)) == Some(Over::Segment)
    }

    /// The inputs that a kernel reads at several steps, and which way, with the number of steps.
    pub(super) fn stepped(&self, id: NodeId) -> Option<(ValueId, bool, i64)> {
        let node = self.function.node(id);
        let x = *node.args.first()?;
        let taps = || Some(self.layout.smalls(*node.args.get(1)?).iter().product());
        match &node.op {
            Op::CausalConv(_) => Some((x, false, taps()?)),
            Op::CausalConvInputGrad(_) if !self.is_scattered(node) => Some((x, true, taps()?)),
            Op::CausalConvWeightGrad(op) => Some((x, false, op.taps.size.as_constant()?)),
            _ => None,
        }
    }

    /// Words of a thread for all that a row reads, if it can have them under way.
    fn words_of_row(&self, phase: &Phase) -> Option<i64> {
        let time = self.layout.rows.len().saturating_sub(1);
        let stepped: BTreeSet<(ValueId, bool)> = self
            .group
            .nodes
            .iter()
            .filter_map(|id| self.stepped(*id).map(|(x, ahead, _)| (x, ahead)))
            .collect();
        if !stepped.iter().all(|(x, _)| self.layout.is_vector(*x)) {
            return None;
        }
        let read = phase.pass.iter().filter_map(|item| match item {
            Item::Read(x) if self.layout.row_parts(*x).contains(&time) => Some(*x),
            _ => None,
        });
        let inputs = stepped.into_iter().map(|(x, _)| x).chain(read);
        inputs.map(|x| self.words_of_copy(x)).sum()
    }

    /// The value whose elements are read where this one is.
    fn shown(&self, value: ValueId) -> ValueId {
        let id = self.function.value(value).node;
        let node = self.function.node(id);
        let made = self.group.nodes.contains(&id) && !self.group.outputs.contains(&value);
        match seen_through(self.function, self.layout, node) {
            Some(seen) if made && !is_literal(self.function, seen) => self.shown(seen),
            _ => value,
        }
    }

    /// Cuts a row into parts: a node is in the first that has all sums that it needs.
    fn cut(&self, phase: &Phase) -> Parts {
        let words = self.words_of_row(phase).unwrap_or_default();
        let mut parts = Parts { words, ..Parts::default() };
        let mut known: BTreeMap<ValueId, usize> = BTreeMap::new();
        for item in &phase.pass {
            let Item::Compute(id) = item else { continue };
            let node = self.function.node(*id);
            let part = node.args.iter().filter_map(|arg| known.get(arg)).copied().max();
            let part = part.unwrap_or_default();
            let _ = parts.of.insert(*id, part);
            let after = part + usize::from(self.is_segment(*id));
            known.extend(node.results.iter().map(|result| (*result, after)));
        }
        let last = known.values().copied().max().unwrap_or_default();
        parts.of.extend(phase.grows.iter().map(|id| (*id, last)));
        parts.sums = vec![Vec::new(); last + 1];
        parts.used = vec![BTreeSet::new(); last + 1];
        for (id, part) in &parts.of {
            if self.is_segment(*id) {
                parts.sums[*part].push(*id);
            }
            let args = &self.function.node(*id).args;
            parts.used[*part].extend(args.iter().map(|arg| self.shown(*arg)));
        }
        for (part, used) in parts.used.iter().enumerate() {
            let earlier = |value: &&ValueId| {
                let id = self.function.value(**value).node;
                let made = parts.of.get(&id).copied();
                !self.is_segment(id)
                    && !self.phases.hoisted.contains(value)
                    && !is_literal(self.function, **value)
                    && made.unwrap_or_default() < part
            };
            parts.held.extend(used.iter().filter(earlier));
        }
        for (id, part) in &parts.of {
            let Some((value, ahead, taps)) = self.stepped(*id).filter(|_| *part > 0) else {
                continue;
            };
            let _ = parts.held.remove(&value);
            if parts.steps.iter().any(|steps| (steps.value, steps.ahead) == (value, ahead)) {
                continue;
            }
            let field = self.steps_field(value, ahead, taps);
            parts.steps.push(HeldSteps { value, ahead, field });
        }
        parts
    }

    fn steps_field(&self, value: ValueId, ahead: bool, taps: i64) -> Field {
        let (element, extent) = self.steps_held(value);
        let extent = format!("[{taps}][{extent}]");
        Field { value, element, name: super::steps::steps_name(value, ahead), extent }
    }

    /// Declares a value of a row, or names it where parts of a row have it together.
    pub(super) fn declare(
        &mut self,
        value: ValueId,
        element: &'static str,
        name: &str,
        extent: &str,
    ) {
        let field = Field { value, element, name: name.to_owned(), extent: extent.to_owned() };
        let parts = self.parts.as_mut().filter(|parts| parts.held.contains(&value));
        self.text.line(match &parts {
            Some(_) => field.reference(),
            None => field.declaration(),
        });
        if let Some(parts) = parts {
            parts.fields.push(field);
        }
    }

    /// Writes the parts of a row.
    pub(super) fn parts(&mut self, phase: &Phase) {
        self.begin_pass();
        self.parts = Some(self.cut(phase));
        let n = self.parts.as_ref().map_or(0, |parts| parts.used.len());
        for part in 0..n {
            let before = self.text.beside();
            let before = std::mem::replace(&mut self.text, before);
            self.part(phase, part);
            let text = std::mem::replace(&mut self.text, before);
            if let Some(parts) = self.parts.as_mut() {
                parts.texts.push(text);
            }
        }
    }

    fn part(&mut self, phase: &Phase, part: usize) {
        self.turns_read.clear();
        if part > 0 {
            self.take_up(part);
        }
        let Some(parts) = self.parts.as_ref() else { return };
        let (of, used, sums) = (parts.of.clone(), parts.used[part].clone(), parts.sums.clone());
        for (earlier, sums) in sums.iter().enumerate().take(part) {
            for (place, id) in sums.iter().enumerate() {
                self.exchanged(phase, *id, earlier, place, part, &used);
            }
        }
        for item in &phase.pass {
            match item {
                Item::Compute(id) if of.get(id) != Some(&part) => {}
                Item::Compute(id) if self.is_segment(*id) => {
                    let place = sums[part].iter().position(|sum| sum == id).unwrap_or_default();
                    self.part_of_sum(*id, &format!("held.sums_{part}[{place}]"));
                }
                Item::Compute(_) => self.pass_item(phase, *item),
                // What is read before all rows is taken up wherever it is needed.
                Item::Read(value) | Item::Take(value) => {
                    let here = match self.phases.hoisted.contains(value) {
                        true => used.contains(value),
                        false => part == 0,
                    };
                    if here {
                        self.pass_item(phase, *item);
                    }
                }
            }
        }
        if part == 0 {
            self.hold_steps();
        }
        if part + 1 == sums.len() {
            for id in &phase.grows {
                self.grow(*id);
            }
        }
    }

    /// Names what earlier parts have left.
    fn take_up(&mut self, part: usize) {
        let Some(parts) = &self.parts else { return };
        let read = |field: &&Field| parts.used[part].contains(&field.value);
        let mut lines: Vec<String> =
            parts.fields.iter().filter(read).map(Field::reference).collect();
        let needs = |steps: &&HeldSteps| {
            parts.of.iter().any(|(id, of)| {
                let stepped = self.stepped(*id).map(|(x, ahead, _)| (x, ahead));
                *of == part && stepped == Some((steps.value, steps.ahead))
            })
        };
        lines.extend(parts.steps.iter().filter(needs).map(|steps| steps.field.reference()));
        for line in lines {
            self.text.line(line);
        }
    }

    /// A sum that has been exchanged.
    fn exchanged(
        &mut self,
        phase: &Phase,
        id: NodeId,
        earlier: usize,
        place: usize,
        part: usize,
        used: &BTreeSet<ValueId>,
    ) {
        let node = self.function.node(id);
        let Some(result) = node.results.first().copied() else { return };
        let is_written = phase.writes.contains(&result) && earlier + 1 == part;
        if !is_written && !used.contains(&result) {
            return;
        }
        let (name, mean) = (self.name(result), self.mean_factor(node));
        self.text.line(format!("float {name} = held.sums_{earlier}[{place}]{mean};"));
        self.round(result);
        if is_written {
            self.write(result);
        }
    }

    /// Has the steps that later parts need.
    fn hold_steps(&mut self) {
        let Some(parts) = &self.parts else { return };
        let held: Vec<(ValueId, bool, String)> = parts
            .steps
            .iter()
            .map(|steps| (steps.value, steps.ahead, steps.field.name.clone()))
            .collect();
        for (value, ahead, name) in held {
            let found = self.group.nodes.iter().filter_map(|id| self.stepped(*id));
            let taps = found.filter(|(x, way, _)| (*x, *way) == (value, ahead));
            let Some(taps) = taps.map(|(_, _, taps)| taps).max() else { continue };
            let _ = self.steps(value, taps, ahead);
            let n = self.text.loops(&[("place".to_owned(), taps)]);
            self.text.line(format!("copy(held.{name}[place], {name}[place]);"));
            self.text.close_all(n);
        }
    }

    /// What a row leaves from part to part, and how one row and two rows are done, of which the text has so many.
    pub(super) fn two_rows(&mut self, mut copies: super::ring::Copies, n_rows: i64) {
        let Some(mut parts) = self.parts.take() else { return };
        let width = self.segment_threads();
        self.text.open("struct Held");
        for field in parts.fields.iter().chain(parts.steps.iter().map(|steps| &steps.field)) {
            self.text.line(field.declaration());
        }
        for (part, sums) in parts.sums.iter().enumerate().filter(|(_, sums)| !sums.is_empty()) {
            self.text.line(format!("float sums_{part}[{}];", sums.len()));
        }
        self.text.end("};");
        let takes = std::mem::take(&mut copies.takes);
        let mut takes = Some(takes);
        for (part, text) in std::mem::take(&mut parts.texts).into_iter().enumerate() {
            let place = if part == 0 { "const auto place, " } else { "" };
            self.text.open(format!(
                "const auto part_{part} = [&](const int row, {place}Held& held) ROW"
            ));
            self.row_head();
            if let Some(takes) = takes.take() {
                self.text.append(takes);
            }
            self.text.append(text);
            self.text.end("};");
        }
        let after = "Place<place.at + 1>()";
        let (one, two) =
            ([("row", "place", "held")], [("row", "place", "held"), ("row + 1", after, "other")]);
        self.rows_beside("go", &one, &parts, &copies, width);
        self.rows_beside("go_two", &two, &parts, &copies, width);
        self.text.line(format!("if (odd) go(begin, Place<{}>());", copies.depth));
        self.text.open("for (int row = even;;)");
        for n in (0..n_rows).filter(|n| n % 2 == 0) {
            self.text.line("if (row == stop) break;");
            self.text.line(format!("go_two(row, Place<{n}>());"));
            self.text.line("row += 2;");
        }
        if !copies.round.is_empty() {
            self.text.line(&copies.round);
        }
        self.text.close();
    }

    /// Rows beside each other: each with its name, its place and what it holds.
    fn rows_beside(
        &mut self,
        name: &str,
        rows: &[(&str, &str, &str)],
        parts: &Parts,
        copies: &super::ring::Copies,
        width: i64,
    ) {
        self.text.open(format!("const auto {name} = [&](const int row, const auto place) ROW"));
        let held: Vec<&str> = rows.iter().map(|(_, _, held)| *held).collect();
        self.text.line(format!("Held {};", held.join(", ")));
        // Those of later rows are under way, two at a time.
        let later = copies.depth / 2 + 1 - i64::try_from(rows.len()).unwrap_or(1);
        self.text.line(format!("wait_for_copies<{later}>();"));
        for (part, sums) in parts.sums.iter().enumerate() {
            for (row, place, held) in rows {
                let place = if part == 0 { format!("{place}, ") } else { String::new() };
                self.text.line(format!("part_{part}({row}, {place}{held});"));
            }
            if part == 0 && rows.len() == 2 {
                self.text.line(format!("copy_two(row + {}, place);", copies.depth));
            }
            if !sums.is_empty() {
                let all: Vec<String> =
                    held.iter().map(|held| format!("{held}.sums_{part}")).collect();
                self.text.line(format!("segment_sums<{width}>({});", all.join(", ")));
            }
        }
        self.text.end("};");
    }
}
