//! The CUDA text of a group.

use super::access::{Access, size_text};
use super::ends::End;
use super::express::expression;
use super::group::{Group, rows, summed, sums_blocks};
use super::layout::{Layout, Role};
use super::phases::{Item, Phase, Phases, seen_through};
use super::product::Product;
use super::ring::UnderWay;
use super::shape::{Shape, shape};
use super::text::Text;
use super::twos::Parts;
use crate::ir::{Function, Node, NodeId, ValueId};
use crate::ops::{BinaryFn, Op};
use lightc_dsl::ast::DType;
use lightc_dsl::size::Size;
use std::collections::{BTreeMap, BTreeSet};

/// A sum over rows: partial sums that the kernel writes, and how they are added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RowSum {
    /// The result.
    pub(crate) value: ValueId,
    /// Partial sums of a block along the rows.
    pub(crate) parts: i64,
    /// Partial sums of a part beside each other that are added too: outer lane parts.
    pub(crate) outer: i64,
    /// Elements of the result.
    pub(crate) columns: i64,
    /// Whether the result is divided by the number of elements summed.
    pub(crate) mean_of: Option<Size>,
}

/// A table of cosines and sines that a kernel reads.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Angles {
    /// Number of steps.
    pub(crate) steps: Size,
    /// Channels of the pair axis.
    pub(crate) width: i64,
    /// Ratio of wave lengths.
    pub(crate) base: f64,
}

/// A generated kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Kernel {
    /// Its `extern "C"` name.
    pub(crate) entry: String,
    /// Its text.
    pub(crate) text: String,
    /// How it is spread over threads.
    pub(super) shape: Shape,
    /// What it computes.
    pub(crate) group: Group,
    /// Tables that it reads, after its inputs.
    pub(crate) angles: Vec<Angles>,
    /// Values that it writes, after the tables.
    pub(crate) writes: Vec<ValueId>,
    /// Sums over rows, after what it writes.
    pub(crate) sums: Vec<RowSum>,
    /// Size names that it takes, after the numbers of rows and of rows of a block.
    pub(crate) symbols: Vec<String>,
    /// Passes over the elements of a row.
    pub(crate) passes: usize,
    /// What becomes of one of its results in place of being written.
    pub(crate) end: Option<End>,
    /// Whether it makes a wide product.
    pub(super) has_product: bool,
}

pub(super) struct Writer<'a> {
    pub(super) function: &'a Function,
    pub(super) group: &'a Group,
    pub(super) layout: &'a Layout,
    pub(super) phases: Phases,
    pub(super) shape: Shape,
    pub(super) text: Text,
    pub(super) angles: Vec<Angles>,
    pub(super) symbols: BTreeSet<String>,
    pub(super) alias: BTreeMap<ValueId, ValueId>,
    /// Where the pass has values as pairs of bf16 too.
    pub(super) pairs: BTreeMap<ValueId, String>,
    pub(super) scratch: usize,
    /// Inputs whose steps the pass has read, and which way.
    pub(super) steps_read: BTreeSet<(ValueId, bool)>,
    /// Tables of angles that the pass has read.
    pub(super) turns_read: BTreeSet<usize>,
    /// Inputs that are read a row ahead.
    pub(super) ahead: BTreeSet<ValueId>,
    /// Inputs of which several rows are under way.
    pub(super) under_way: Vec<UnderWay>,
    /// Whether a step is read a row ahead into registers.
    pub(super) step_ahead: bool,
    /// The parts of a row, where the text has two rows beside each other.
    pub(super) parts: Option<Parts>,
    /// What comes before the rows, or before the rows of each run.
    pub(super) before_rows: Text,
    /// What comes after the rows of a run.
    pub(super) after_rows: Text,
    /// What becomes of one of the results in place of being written.
    pub(super) end: Option<End>,
    /// A wide product that is made here.
    pub(super) product: Option<&'a Product>,
    /// Whether beside it there are sums, which leave no registers for what is read early.
    pub(super) scarce: bool,
}

/// Generates the kernel of a group.
pub(crate) fn kernel(function: &Function, group: &Group, entry: &str) -> Kernel {
    kernel_with(function, group, entry, None)
}

/// The same with an end.
pub(super) fn kernel_with(
    function: &Function,
    group: &Group,
    entry: &str,
    end: Option<End>,
) -> Kernel {
    let phases = Phases::of(function, group);
    let shape = shape(function, group, &phases);
    let mut writer = Writer::new(function, group, phases, shape);
    writer.end = end;
    writer.body();
    writer.assemble(entry)
}

/// A name that C++ takes.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        function: &'a Function,
        group: &'a Group,
        phases: Phases,
        shape: Shape,
    ) -> Writer<'a> {
        Writer {
            function,
            group,
            layout: &group.layout,
            phases,
            shape,
            text: Text::default(),
            angles: Vec::new(),
            symbols: BTreeSet::new(),
            alias: BTreeMap::new(),
            pairs: BTreeMap::new(),
            scratch: 0,
            steps_read: BTreeSet::new(),
            turns_read: BTreeSet::new(),
            ahead: BTreeSet::new(),
            under_way: Vec::new(),
            step_ahead: false,
            parts: None,
            before_rows: Text::default(),
            after_rows: Text::default(),
            end: None,
            product: None,
            scarce: false,
        }
    }

    /// The variable of a value.
    pub(super) fn name(&self, value: ValueId) -> String {
        let value = self.alias.get(&value).copied().unwrap_or(value);
        match &self.function.value(value).name {
            Some(name) => format!("{}_{}", plain(name), value.0),
            None => format!("v{}", value.0),
        }
    }

    pub(super) fn access(&self, value: ValueId) -> Access<'_> {
        Access { layout: self.layout, shape: &self.shape, value }
    }

    pub(super) fn dtype(&self, value: ValueId) -> DType {
        self.function.ty(value).dtype
    }

    pub(super) fn is_act(&self, value: ValueId) -> bool {
        self.dtype(value) == DType::Act
    }

    pub(super) fn element(&self, value: ValueId) -> &'static str {
        if self.dtype(value) == DType::Bool { "bool" } else { "float" }
    }

    pub(super) fn stored(&self, value: ValueId) -> &'static str {
        match self.dtype(value) {
            DType::Act => "bf16",
            DType::Bool => "bool",
            DType::Index => "long long",
            DType::F32 => "float",
        }
    }

    /// `[4][8]`: what a thread holds of a value.
    pub(super) fn extent(&self, value: ValueId) -> String {
        let mut text: String = self.layout.smalls(value).iter().map(|n| format!("[{n}]")).collect();
        if self.layout.is_vector(value) {
            text += &format!("[{}]", self.shape.vector);
        }
        text
    }

    /// Loops over the unrolled parts of a value, less those of some axes.
    pub(super) fn small_loops(&self, value: ValueId, less: &[String]) -> Vec<(String, i64)> {
        let leaves = self.layout.leaves(value).iter();
        let kept = leaves.filter(|leaf| !less.contains(&leaf.axis));
        kept.filter_map(|leaf| match leaf.role {
            Role::Small(size) => Some((variable(&leaf.axis, leaf.nth), size)),
            _ => None,
        })
        .collect()
    }

    pub(super) fn lane_loop(&self, value: ValueId) -> Vec<(String, i64)> {
        let vector = self.layout.is_vector(value);
        vector.then(|| ("i".to_owned(), self.shape.vector)).into_iter().collect()
    }

    /// An element of a value, at the loop variables of its axes.
    pub(super) fn at(&self, value: ValueId) -> String {
        if let Op::Const(op) = &self.function.definition(value).op {
            return super::express::number(op.value);
        }
        if let Op::SizeValue(op) = &self.function.definition(value).op {
            return format!("(float)({})", size_text(&op.size));
        }
        let mut text = self.name(value);
        for leaf in self.layout.leaves(value) {
            if let Role::Small(_) = leaf.role {
                text += &format!("[{}]", variable(&leaf.axis, leaf.nth));
            }
        }
        if self.layout.is_vector(value) {
            text += "[i]";
        }
        text
    }

    pub(super) fn need_sizes(&mut self, size: &Size) {
        self.symbols.extend(size.symbols().map(str::to_owned));
    }

    pub(super) fn body(&mut self) {
        self.text.depth_in();
        self.indices();
        self.hoisted();
        self.accumulators();
        let opened = self.open_rows();
        if self.sums_over_warps() {
            let row = if self.rolls() { "row" } else { "base" };
            self.text.line(format!("float* const scratch = sums + ({row} - first) % 2 * SCRATCH;"));
        }
        for value in self.phases.kept.clone() {
            if !self.phases.hoisted.contains(&value) {
                let declared = self.kept_declaration(value);
                self.text.line(declared);
            }
        }
        let in_twos = self.goes_in_twos();
        let phases = std::mem::take(&mut self.phases.all);
        for phase in &phases {
            if in_twos {
                self.parts(phase);
                continue;
            }
            for item in &phase.uniform {
                self.item(*item);
            }
            let flat = |value: &&ValueId| !self.layout.is_lane(**value);
            let early: Vec<ValueId> = phase.writes.iter().filter(flat).copied().collect();
            let late: Vec<ValueId> = phase.writes.iter().filter(|v| !flat(v)).copied().collect();
            for value in early.iter().filter(|value| !made_in_pass(self.function, phase, **value)) {
                self.write(*value);
            }
            self.sum_starts(&phase.sums);
            let lane_grows = phase.grows.iter().filter(|id| self.grows_over_lane(**id));
            let lane_grows: Vec<NodeId> = lane_grows.copied().collect();
            for id in phase.grows.iter().filter(|id| !lane_grows.contains(id)) {
                self.grow(*id);
            }
            if !phase.pass.is_empty() || !lane_grows.is_empty() || !late.is_empty() {
                self.open_pass();
                for item in &phase.pass {
                    self.pass_item(phase, *item);
                }
                // Values of earlier phases that are only written now do not exist: a value is
                // written in the phase that computes it.
                for id in &lane_grows {
                    self.grow(*id);
                }
                for id in &phase.sums {
                    self.add_up(*id);
                }
                self.text.close();
            }
            self.sum_ends(&phase.sums);
        }
        self.phases.all = phases;
        self.close_rows(opened);
        self.partials();
        self.text.depth_out();
    }

    /// Does one thing of a pass, and keeps and writes what comes of it.
    pub(super) fn pass_item(&mut self, phase: &Phase, item: Item) {
        self.item(item);
        if let Item::Read(value) = item
            && self.phases.kept.contains(&value)
            && !self.packed(value)
        {
            self.keep(value);
        }
        let Item::Compute(id) = item else { return };
        let scattered = self.is_scattered(self.function.node(id));
        for result in self.function.node(id).results.clone() {
            if self.phases.kept.contains(&result) {
                self.keep(result);
            }
            if !scattered && phase.writes.contains(&result) {
                self.write(result);
            }
        }
    }

    /// Whether a sum runs over threads of several warps, which meet in shared memory.
    fn sums_over_warps(&self) -> bool {
        let of_rows = self.phases.all.iter().any(|phase| !phase.sums.is_empty());
        let of_blocks = sums_blocks(self.function, self.layout, &self.group.nodes);
        self.shape.threads > 32 && (of_rows || of_blocks)
    }

    pub(super) fn indices(&mut self) {
        let shape = self.shape;
        let vector_row = !self.layout.slots.is_empty();
        if vector_row {
            self.text.line(format!("const int thread = threadIdx.x % {};", shape.threads));
        }
        if shape.groups() > 1 {
            self.text.line(format!("const int group = threadIdx.x / {};", shape.threads));
        }
        self.text.line("const int first = blockIdx.x * span;");
        self.text.line("const int last = min(first + span, rows);");
        if self.sums_over_warps() {
            self.text.line("__shared__ __align__(16) float sums[2 * SCRATCH];");
        }
        if shape.shared > 0 {
            self.text.line("extern __shared__ float kept[];");
        }
        if let Some(end) = &self.end {
            self.text.line(end.way.step());
        }
        if vector_row && shape.chunks == 1 {
            self.lane_indices();
        }
    }

    pub(super) fn lane_indices(&mut self) {
        let shape = self.shape;
        let thread = match (shape.chunks, shape.tiles) {
            (1, 1) => "thread".to_owned(),
            (1, _) => format!("((int)blockIdx.y * {} + thread)", shape.threads),
            _ => format!("(c * {} + thread)", shape.threads),
        };
        self.text.line(format!("const int lane = {thread} * {};", shape.vector));
        if shape.ragged {
            self.text.line(format!("const bool inside = lane < {};", self.layout.lane()));
        }
        let mut inner = self.layout.lane();
        if self.layout.slots.len() > 1 {
            for (slot, size) in self.layout.slots.clone().iter().enumerate() {
                inner /= size;
                let outer = if slot == 0 { String::new() } else { format!(" % {size}") };
                let by = if inner == 1 { String::new() } else { format!(" / {inner}") };
                self.text.line(format!("const int l{slot} = lane{by}{outer};"));
            }
        }
    }

    /// Forgets what another pass has read.
    pub(super) fn begin_pass(&mut self) {
        self.steps_read.clear();
        self.turns_read.clear();
        self.pairs.clear();
    }

    pub(super) fn open_pass(&mut self) {
        self.begin_pass();
        if self.shape.chunks > 1 {
            self.text.line("UNROLL");
            self.text.open(format!("for (int c = 0; c < {}; ++c)", self.shape.chunks));
            self.lane_indices();
        } else {
            self.text.open("");
        }
    }

    /// Opens the loop over the block's rows; gives the text before it.
    fn open_rows(&mut self) -> Text {
        let groups = self.shape.groups();
        if self.rolls() {
            return self.open_runs();
        }
        let before = std::mem::take(&mut self.text);
        self.text = before.beside();
        self.before_rows = before.beside();
        self.text.open(format!("for (int base = first; base < last; base += {groups})"));
        if groups > 1 {
            self.text.line("const bool live = base + group < last;");
            self.text.line("const int row = live ? base + group : last - 1;");
        } else {
            self.text.line("const int row = base;");
        }
        let time = self.layout.rows.len().saturating_sub(1);
        if groups == 1 && time > 0 {
            // One row after the other: a remainder costs more than counting.
            let size = self.layout.rows.get(time).cloned().unwrap_or_default();
            self.need_sizes(&size);
            let size = size_text(&size);
            self.before_rows.line(format!("int next_r{time} = first % {size};"));
            self.text.line(format!("const int r{time} = next_r{time};"));
            self.text.line(format!("next_r{time} = r{time} + 1 == {size} ? 0 : r{time} + 1;"));
            self.row_indices(time, &format!("row / {size}"));
        } else {
            self.row_indices(time + 1, "row");
        }
        before
    }

    fn close_rows(&mut self, before: Text) {
        if self.rolls() {
            return self.close_runs(before);
        }
        self.text.close();
        let rows = std::mem::replace(&mut self.text, before);
        self.text.append(std::mem::take(&mut self.before_rows));
        self.text.append(rows);
    }

    /// The first few indexes of a row, of their index in their order.
    pub(super) fn row_indices(&mut self, n: usize, of: &str) {
        let rows = self.layout.rows.clone();
        let mut rest = of.to_owned();
        for (index, size) in rows.iter().enumerate().take(n).rev() {
            self.need_sizes(size);
            let size = size_text(size);
            if index == 0 {
                self.text.line(format!("const int r0 = {rest};"));
                continue;
            }
            let whole = if rest.contains(' ') { format!("({rest})") } else { rest };
            self.text.line(format!("const int r{index} = {whole} % {size};"));
            rest = format!("{whole} / {size}");
        }
    }

    pub(super) fn describe(&self, id: NodeId) -> String {
        let node = self.function.node(id);
        let args: Vec<String> = node
            .args
            .iter()
            .map(|arg| match &self.function.definition(*arg).op {
                Op::Const(op) => super::express::number(op.value),
                _ => self.name(*arg),
            })
            .collect();
        let attrs: Vec<String> =
            node.op.def().attrs().0.iter().map(|(name, attr)| format!(" {name}={attr}")).collect();
        format!("// {}{}({})", node.op.def().mnemonic(), attrs.concat(), args.join(", "))
    }

    /// Rounds what a thread holds of a value of class `act`.
    pub(super) fn round(&mut self, value: ValueId) {
        if !self.is_act(value) {
            return;
        }
        let name = self.name(value);
        let loops = self.small_loops(value, &[]);
        let index: String = loops.iter().map(|(v, _)| format!("[{v}]")).collect();
        if self.packed(value) {
            let pairs = self.declare_pairs(value);
            let n = self.text.loops(&loops);
            self.text.line(format!("round_pairs({pairs}{index}, {name}{index});"));
            self.text.close_all(n);
            return;
        }
        let n = self.text.loops(&loops);
        if self.layout.is_vector(value) {
            self.text.line(format!("round_all({name}{index});"));
        } else {
            self.text.line(format!("{name}{index} = rounded({name}{index});"));
        }
        self.text.close_all(n);
    }

    pub(super) fn compute(&mut self, id: NodeId) {
        let function = self.function;
        let node = function.node(id);
        let Some(result) = node.results.first().copied() else { return };
        if let Some(seen) = seen_through(function, self.layout, node)
            && !super::group::is_literal(function, seen)
        {
            let base = self.alias.get(&seen).copied().unwrap_or(seen);
            let described = self.describe(id);
            let shown = self.name(base);
            self.text.line(format!("{described} is {shown}"));
            // A view that is kept or written has elements of its own.
            if self.group.outputs.contains(&result) || self.phases.kept.contains(&result) {
                let (own, extent) = (self.own(result), self.extent(result));
                self.declare(result, self.element(result), &own, &extent);
                let mut to = self.small_loops(result, &[]);
                to.extend(self.lane_loop(result));
                let n = self.text.loops(&to);
                let index: String = to.iter().map(|(v, _)| format!("[{v}]")).collect();
                self.text.line(format!("{}{index} = {shown}{index};", self.own(result)));
                self.text.close_all(n);
            } else {
                let _ = self.alias.insert(result, base);
            }
            if let Some(pairs) = self.pairs.get(&base).cloned() {
                let _ = self.pairs.insert(result, pairs);
            }
            return;
        }
        let described = self.describe(id);
        self.text.line(described);
        if let (Op::CausalConvInputGrad(op), true) = (&node.op, self.is_scattered(node)) {
            self.scatter(node, &op.taps);
            return;
        }
        let (name, extent) = (self.name(result), self.extent(result));
        self.declare(result, self.element(result), &name, &extent);
        match &node.op {
            Op::CausalConv(op) => self.conv(node, &op.taps, false),
            Op::GatherSum(_) => self.gather(node),
            Op::CausalConvInputGrad(op) => self.conv(node, &op.taps, true),
            Op::Rotary(op) => self.rotary(node, op),
            Op::Sinkhorn(op) => {
                let (x, eps) = (self.name(node.args[0]), super::express::number(op.eps));
                let y = self.name(result);
                self.text.line(format!("sinkhorn({y}, {x}, {}, {eps});", op.iterations));
            }
            Op::SinkhornGrad(op) => {
                let (x, dy) = (self.name(node.args[0]), self.name(node.args[1]));
                let (y, eps) = (self.name(result), super::express::number(op.eps));
                self.text.line(format!(
                    "sinkhorn_grad({y}, {x}, {dy}, {}, {eps}, kept);",
                    op.iterations
                ));
            }
            _ if summed(node).is_some_and(|over| !over.is_empty()) => self.thread_sum(node, result),
            op if self.in_pairs(op, node, result) => return,
            op => {
                let mut loops = self.small_loops(result, &[]);
                loops.extend(self.lane_loop(result));
                let n = self.text.loops(&loops);
                let args: Vec<String> = node.args.iter().map(|arg| self.at(*arg)).collect();
                let line = format!("{} = {};", self.at(result), expression(op, &args));
                self.text.line(line);
                self.text.close_all(n);
            }
        }
        self.round(result);
    }

    /// A sum, difference or product of pairs: two elements at once, and nothing is widened for it.
    fn in_pairs(&mut self, op: &Op, node: &Node, result: ValueId) -> bool {
        let Op::Binary(op) = op else { return false };
        let function = match op.function {
            BinaryFn::Add => "add_pairs",
            BinaryFn::Sub => "sub_pairs",
            BinaryFn::Mul => "mul_pairs",
            _ => return false,
        };
        let args: Option<Vec<String>> = node.args.iter().map(|arg| self.as_pairs(*arg)).collect();
        let Some(args) = args.filter(|_| self.packed(result)) else { return false };
        let _ = self.declare_pairs(result);
        let Some(pairs) = self.as_pairs(result) else { return false };
        let loops = self.small_loops(result, &[]);
        let index: String = loops.iter().map(|(v, _)| format!("[{v}]")).collect();
        let n = self.text.loops(&loops);
        self.text.line(format!("{function}({pairs}, {});", args.join(", ")));
        let (vector, name) = (self.shape.vector, self.name(result));
        self.text.line(format!("unpack<{vector}>({name}{index}, {pairs});"));
        self.text.close_all(n);
        true
    }

    pub(super) fn own(&self, value: ValueId) -> String {
        match &self.function.value(value).name {
            Some(name) => format!("{}_{}", plain(name), value.0),
            None => format!("v{}", value.0),
        }
    }

    pub(super) fn assemble(self, entry: &str) -> Kernel {
        let sums: Vec<RowSum> = self
            .row_sums()
            .into_iter()
            .map(|(id, value, outer)| {
                let lanes = self.grown(id).map(|arg| self.layout.lanes(arg)).unwrap_or_default();
                let whole = self.sums_lane(id, outer);
                let beside =
                    lanes.iter().take(outer).filter_map(|slot| self.layout.slots.get(*slot));
                let node = self.function.node(id);
                let mean_of = match (&node.op, node.args.first()) {
                    (Op::Mean(op), Some(arg)) => {
                        let ty = self.function.ty(*arg);
                        let mut sizes =
                            op.over.iter().filter_map(|name| ty.axis(name).map(|a| &a.size));
                        sizes.try_fold(Size::constant(1), |n, size| n.checked_mul(size))
                    }
                    _ => None,
                };
                RowSum {
                    value,
                    parts: if whole {
                        self.shape.tiles * self.shape.block / 32
                    } else {
                        self.shape.parts()
                    },
                    outer: if whole { 1 } else { beside.product() },
                    columns: super::group::row_elements(self.layout, value),
                    mean_of,
                }
            })
            .collect();
        let made: BTreeSet<ValueId> = sums.iter().map(|sum| sum.value).collect();
        let ended = |v: &ValueId| self.end.is_some_and(|end| end.value == *v);
        let outputs = self.group.outputs.iter().copied();
        let writes: Vec<ValueId> = outputs.filter(|v| !made.contains(v) && !ended(v)).collect();
        let mut params: Vec<String> = Vec::new();
        for input in &self.group.inputs {
            params.push(format!("const {}* __restrict__ in_{}", self.stored(*input), input.0));
        }
        for index in 0..self.angles.len() {
            params.push(format!("const float* __restrict__ angles_{index}"));
        }
        for value in &writes {
            params.push(format!("{}* __restrict__ out_{}", self.stored(*value), value.0));
        }
        for sum in &sums {
            params.push(format!("float* __restrict__ part_{}", sum.value.0));
        }
        if let Some(end) = &self.end {
            params.extend(end.way.params().iter().map(|param| (*param).to_owned()));
        }
        params.push("const int rows".to_owned());
        params.push("const int span".to_owned());
        for symbol in &self.symbols {
            params.push(format!("const int size_{}", plain(symbol)));
        }
        let shape = self.shape;
        let mut head = Text::default();
        self.header(&mut head, entry);
        let (group, phases) = (self.group, &self.phases);
        let resident = super::shape::at_once(
            self.function,
            group,
            phases,
            shape.block,
            shape.vector,
            shape.chunks,
        );
        if self.scratch > 0 {
            head.line(format!("#define SCRATCH {}", self.scratch));
        }
        head.line(format!(
            "extern \"C\" __global__ void __launch_bounds__({}, {resident}) {entry}(",
            shape.block
        ));
        let last = params.len().saturating_sub(1);
        for (index, param) in params.iter().enumerate() {
            head.line(format!("    {param}{}", if index == last { ") {" } else { "," }));
        }
        let passes = self.phases.all.iter().filter(|phase| !phase.pass.is_empty()).count();
        let scratch = self.scratch;
        let (symbols, group) = (self.symbols.into_iter().collect(), self.group.clone());
        let mut text = head.finish() + &self.text.finish() + "}\n";
        if scratch > 0 {
            text += "#undef SCRATCH\n";
        }
        Kernel {
            entry: entry.to_owned(),
            text,
            shape,
            group,
            angles: self.angles,
            writes,
            sums,
            symbols,
            passes: passes.max(1),
            end: self.end,
            has_product: self.product.is_some(),
        }
    }

    pub(super) fn header(&self, head: &mut Text, entry: &str) {
        head.line(format!("// {entry}"));
        if let Some(end) = &self.end {
            head.line(format!("// {} with {}", end.way.says(), self.name(end.value)));
        }
        let names = |values: &[ValueId]| -> String {
            let list: Vec<String> = values
                .iter()
                .map(|value| format!("//   {} {}", self.name(*value), self.function.ty(*value)))
                .collect();
            list.join("\n")
        };
        head.line(format!(
            "// from\n{}\n// to\n{}",
            names(&self.group.inputs),
            names(&self.group.outputs)
        ));
        let shape = self.shape;
        if let Some(product) = self.product {
            head.line(format!(
                "// rows {}, lane {}: {} rows of a block, a product over {} on tensor cores",
                size_text(&rows(self.layout)),
                self.layout.lane(),
                shape.groups(),
                product.terms
            ));
            return;
        }
        head.line(format!(
            "// rows {}, lane {}: {} threads of a row, each {} x {} lanes; {} threads of a block, {} tiles",
            size_text(&rows(self.layout)), self.layout.lane(), shape.threads, shape.chunks, shape.vector,
            shape.block, shape.tiles
        ));
    }
}

/// Whether a value is computed in the pass of its phase and not before it.
fn made_in_pass(function: &Function, phase: &super::phases::Phase, value: ValueId) -> bool {
    phase.pass.contains(&Item::Compute(function.value(value).node))
}

/// The loop variable of a part of an axis.
pub(super) fn variable(axis: &str, nth: usize) -> String {
    let name = plain(axis);
    if nth == 0 { format!("x_{name}") } else { format!("x_{name}{nth}") }
}

impl Kernel {
    /// Threads of a block.
    pub(crate) fn block(&self) -> i64 {
        self.shape.block
    }

    /// Bytes of shared memory that are given at the launch.
    pub(crate) fn shared_bytes(&self) -> i64 {
        self.shape.shared
    }

    /// The number of rows.
    pub(crate) fn rows(&self) -> Size {
        rows(&self.group.layout)
    }

    /// Rows of a block side by side, blocks along the rows that are aimed at, blocks beside.
    pub(crate) fn spread(&self) -> (i64, i64, i64) {
        (self.shape.groups(), self.shape.blocks, self.shape.tiles)
    }

    /// Whether a thread holds so many elements of a value that lie in a row, at a multiple of their number.
    pub(super) fn holds_in_a_row(&self, value: ValueId, elements: i64) -> bool {
        let access = Access { layout: &self.group.layout, shape: &self.shape, value };
        self.shape.vector == elements && access.is_vector()
    }

    /// What it computes, for messages: the names that its results have in the source.
    pub(crate) fn origin(&self, function: &Function) -> String {
        let mut names: Vec<&str> = Vec::new();
        for value in &self.group.outputs {
            if let Some(name) = &function.value(*value).name {
                names.push(name);
            }
        }
        if names.is_empty() {
            function.name.clone()
        } else {
            format!("{}: {}", function.name, names.join(", "))
        }
    }
}
