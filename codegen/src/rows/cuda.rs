//! The CUDA text of a group.

use super::access::{Access, size_text};
use super::express::expression;
use super::group::{Group, Over, over, rows, summed};
use super::layout::{Layout, Role};
use super::phases::{Item, Phases, seen_through};
use super::shape::{Shape, shape};
use super::text::Text;
use crate::ir::{Function, Node, NodeId, ValueId};
use crate::ops::Op;
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
}

pub(super) struct Writer<'a> {
    pub(super) function: &'a Function,
    pub(super) group: &'a Group,
    pub(super) layout: &'a Layout,
    pub(super) phases: Phases,
    pub(super) shape: Shape,
    pub(super) text: Text,
    angles: Vec<Angles>,
    symbols: BTreeSet<String>,
    alias: BTreeMap<ValueId, ValueId>,
    scratch: usize,
    /// Inputs whose steps the pass has read, and which way.
    steps_read: BTreeSet<(ValueId, bool)>,
    /// Declarations that come before all rows.
    before_rows: Vec<String>,
}

/// Steps of an input around a row.
struct Steps {
    name: String,
    packed: bool,
}

/// Generates the kernel of a group.
pub(crate) fn kernel(function: &Function, group: &Group, entry: &str) -> Kernel {
    let phases = Phases::of(function, group);
    let shape = shape(function, group, &phases);
    let mut writer = Writer {
        function,
        group,
        layout: &group.layout,
        phases,
        shape,
        text: Text::default(),
        angles: Vec::new(),
        symbols: BTreeSet::new(),
        alias: BTreeMap::new(),
        scratch: 0,
        steps_read: BTreeSet::new(),
        before_rows: Vec::new(),
    };
    writer.body();
    writer.assemble(entry)
}

/// A name that C++ takes.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

impl<'a> Writer<'a> {
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

    fn is_act(&self, value: ValueId) -> bool {
        self.dtype(value) == DType::Act
    }

    fn element(&self, value: ValueId) -> &'static str {
        if self.dtype(value) == DType::Bool { "bool" } else { "float" }
    }

    fn stored(&self, value: ValueId) -> &'static str {
        match self.dtype(value) {
            DType::Act => "bf16",
            DType::Bool => "bool",
            _ => "float",
        }
    }

    /// `[4][8]`: what a thread holds of a value.
    fn extent(&self, value: ValueId) -> String {
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

    fn lane_loop(&self, value: ValueId) -> Vec<(String, i64)> {
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

    fn need_sizes(&mut self, size: &Size) {
        self.symbols.extend(size.symbols().map(str::to_owned));
    }

    fn body(&mut self) {
        self.text.depth_in();
        self.indices();
        self.hoisted();
        self.accumulators();
        let groups = self.shape.groups();
        let before = self.text.split();
        let halo = self.halo();
        if halo > 0 {
            let time = self.layout.rows.len().saturating_sub(1);
            let steps = self.layout.rows.get(time).cloned().unwrap_or_default();
            self.need_sizes(&steps);
            self.text.line("// Rows after the block's own complete sums that its rows begin.");
            self.text.line(format!("const int room = min({halo}, rows - last);"));
            self.text.line(format!(
                "const int past = last % {0} == 0 ? 0 : min(room, {0} - last % {0});",
                size_text(&steps)
            ));
            self.text.open("for (int base = first; base < last + past; ++base)");
            self.text.line("const bool live = base < last;");
            self.text.line("const int row = base;");
        } else {
            self.text.open(format!("for (int base = first; base < last; base += {groups})"));
        }
        if halo > 0 {
        } else if groups > 1 {
            self.text.line("const bool live = base + group < last;");
            self.text.line("const int row = live ? base + group : last - 1;");
        } else {
            self.text.line("const int row = base;");
        }
        self.row_indices();
        if self.shape.threads > 32 && self.phases.all.iter().any(|phase| !phase.sums.is_empty()) {
            self.text.line("float* const scratch = sums + (base - first) % 2 * SCRATCH;");
        }
        for value in self.phases.kept.clone() {
            if !self.phases.hoisted.contains(&value) {
                let declared = self.kept_declaration(value);
                self.text.line(declared);
            }
        }
        let phases = std::mem::take(&mut self.phases.all);
        for phase in &phases {
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
            let in_pass = early.iter().filter(|value| made_in_pass(self.function, phase, **value));
            let in_pass: Vec<ValueId> = in_pass.copied().collect();
            if !phase.pass.is_empty() || !lane_grows.is_empty() || !late.is_empty() {
                self.open_pass();
                for item in &phase.pass {
                    self.item(*item);
                    if let Item::Read(value) = item
                        && self.phases.kept.contains(value)
                        && !self.packed(*value)
                    {
                        self.keep(*value);
                    }
                    if let Item::Compute(id) = item {
                        let results = self.function.node(*id).results.clone();
                        for result in results {
                            if self.phases.kept.contains(&result) {
                                self.keep(result);
                            }
                            let scattered = self.is_scattered(self.function.node(*id));
                            if !scattered && (late.contains(&result) || in_pass.contains(&result)) {
                                self.write(result);
                            }
                        }
                    }
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
        self.text.close();
        self.text.join(before, &self.before_rows);
        self.partials();
        self.text.depth_out();
    }

    fn indices(&mut self) {
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
        if shape.threads > 32 && self.phases.all.iter().any(|phase| !phase.sums.is_empty()) {
            self.text.line("__shared__ __align__(16) float sums[2 * SCRATCH];");
        }
        if shape.shared > 0 {
            self.text.line("extern __shared__ float kept[];");
        }
        if vector_row && shape.chunks == 1 {
            self.lane_indices();
        }
    }

    fn lane_indices(&mut self) {
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

    fn open_pass(&mut self) {
        self.steps_read.clear();
        if self.shape.chunks > 1 {
            self.text.line("UNROLL");
            self.text.open(format!("for (int c = 0; c < {}; ++c)", self.shape.chunks));
            self.lane_indices();
        } else {
            self.text.open("");
        }
    }

    fn row_indices(&mut self) {
        let rows = self.layout.rows.clone();
        let mut rest = "row".to_owned();
        for (index, size) in rows.iter().enumerate().rev() {
            self.need_sizes(size);
            let size = size_text(size);
            if index == 0 {
                self.text.line(format!("const int r0 = {rest};"));
            } else {
                self.text.line(format!("const int r{index} = {rest} % {size};"));
                rest = if rest == "row" {
                    format!("row / {size}")
                } else {
                    format!("({rest}) / {size}")
                };
            }
        }
    }

    fn hoisted(&mut self) {
        let hoisted: Vec<ValueId> = self.phases.hoisted.iter().copied().collect();
        let split = |value: &ValueId| self.layout.is_lane(*value) && self.shape.chunks > 1;
        let (lanes, plain): (Vec<ValueId>, Vec<ValueId>) = hoisted.into_iter().partition(split);
        for value in plain {
            self.read(value);
        }
        if lanes.is_empty() {
            return;
        }
        for value in &lanes {
            let declared = self.kept_declaration(*value);
            self.text.line(declared);
        }
        self.open_pass();
        for value in lanes {
            self.read(value);
            if !self.packed(value) {
                self.keep(value);
            }
        }
        self.text.close();
    }

    /// Whether a value is kept as pairs of bf16.
    fn packed(&self, value: ValueId) -> bool {
        self.is_act(value) && self.layout.is_vector(value) && self.shape.vector % 2 == 0
    }

    fn kept_declaration(&self, value: ValueId) -> String {
        let smalls: String = self.layout.smalls(value).iter().map(|n| format!("[{n}]")).collect();
        let (chunks, vector) = (self.shape.chunks, self.shape.vector);
        let name = self.name(value);
        if self.packed(value) {
            return format!("unsigned kept_{name}[{chunks}]{smalls}[{}];", vector / 2);
        }
        format!("{} kept_{name}[{chunks}]{};", self.element(value), self.extent(value))
    }

    fn chunk(&self) -> &'static str {
        if self.shape.chunks > 1 { "c" } else { "0" }
    }

    /// Puts a value where the next pass finds it.
    fn keep(&mut self, value: ValueId) {
        let (name, chunk) = (self.name(value), self.chunk());
        let mut loops = self.small_loops(value, &[]);
        let index: String = loops.iter().map(|(v, _)| format!("[{v}]")).collect();
        if self.packed(value) {
            let n = self.text.loops(&loops);
            let vector = self.shape.vector;
            self.text.line(format!("pack<{vector}>(kept_{name}[{chunk}]{index}, {name}{index});"));
            self.text.close_all(n);
            return;
        }
        loops.extend(self.lane_loop(value));
        let index: String = loops.iter().map(|(v, _)| format!("[{v}]")).collect();
        let n = self.text.loops(&loops);
        self.text.line(format!("kept_{name}[{chunk}]{index} = {name}{index};"));
        self.text.close_all(n);
    }

    fn take(&mut self, value: ValueId) {
        let (name, chunk) = (self.name(value), self.chunk());
        self.text.line(format!("{} {name}{};", self.element(value), self.extent(value)));
        let mut loops = self.small_loops(value, &[]);
        if !self.packed(value) {
            loops.extend(self.lane_loop(value));
        }
        let index: String = loops.iter().map(|(v, _)| format!("[{v}]")).collect();
        let n = self.text.loops(&loops);
        if self.packed(value) {
            let vector = self.shape.vector;
            self.text
                .line(format!("unpack<{vector}>({name}{index}, kept_{name}[{chunk}]{index});"));
        } else {
            self.text.line(format!("{name}{index} = kept_{name}[{chunk}]{index};"));
        }
        self.text.close_all(n);
    }

    fn item(&mut self, item: Item) {
        match item {
            Item::Read(value) if self.phases.hoisted.contains(&value) => {
                if self.layout.is_lane(value) && self.shape.chunks > 1 {
                    self.take(value);
                }
            }
            Item::Read(value) => self.read(value),
            Item::Take(value) => self.take(value),
            Item::Compute(id) => self.compute(id),
        }
    }

    /// Reads an input.
    fn read(&mut self, value: ValueId) {
        let (name, pointer) = (self.name(value), format!("in_{}", value.0));
        let is_kept = self.phases.kept.contains(&value)
            || (self.phases.hoisted.contains(&value)
                && self.layout.is_lane(value)
                && self.shape.chunks > 1);
        let packed = is_kept && self.packed(value) && self.access(value).is_vector();
        self.text.line(format!("{} {name}{};", self.element(value), self.extent(value)));
        for leaf in self.layout.leaves(value).to_vec() {
            if let Role::Row(_) = leaf.role {
                self.need_sizes(&leaf.stride);
            }
        }
        let (vector, chunk) = (self.shape.vector, self.chunk());
        let guarded = self.shape.ragged && self.layout.is_lane(value);
        let access = self.access(value);
        let (is_vector, is_woven) = (access.is_vector(), access.is_woven());
        let offset = access.offset(None);
        if is_woven {
            let held = access.held();
            self.text.line(format!("float woven_{name}[{held}];"));
            if guarded {
                self.text.line(format!("clear(woven_{name});"));
            }
            let guard = if guarded { "if (inside) " } else { "" };
            self.text.line(format!("{guard}load<{held}>(woven_{name}, {pointer} + {offset});"));
            let mut loops = self.small_loops(value, &[]);
            let smalls = self.layout.smalls(value);
            let mut place = String::new();
            for ((variable, _), size) in loops.iter().zip(&smalls) {
                place = if place.is_empty() {
                    variable.clone()
                } else {
                    format!("({place}) * {size} + {variable}")
                };
            }
            let count: i64 = smalls.iter().product();
            loops.extend(self.lane_loop(value));
            let n = self.text.loops(&loops);
            let at = self.at(value);
            self.text.line(format!("{at} = woven_{name}[i * {count} + {place}];"));
            self.text.close_all(n);
            return;
        }
        let mut loops = self.small_loops(value, &[]);
        let index: String = loops.iter().map(|(v, _)| format!("[{v}]")).collect();
        if is_vector {
            let n = self.text.loops(&loops);
            if packed {
                let kept = format!("kept_{name}[{chunk}]{index}");
                let load = format!("load_pairs<{vector}>({kept}, {pointer} + {offset});");
                if guarded {
                    self.text.line(format!("if (inside) {load}"));
                    self.text.line(format!("else clear({kept});"));
                } else {
                    self.text.line(load);
                }
                self.text.line(format!("unpack<{vector}>({name}{index}, {kept});"));
            } else {
                let load = format!("load<{vector}>({name}{index}, {pointer} + {offset});");
                if guarded {
                    self.text.line(format!("if (inside) {load}"));
                    self.text.line(format!("else clear({name}{index});"));
                } else {
                    self.text.line(load);
                }
            }
            self.text.close_all(n);
            return;
        }
        let stride = self.access(value).lane_stride();
        loops.extend(self.lane_loop(value));
        let step =
            if self.layout.is_vector(value) { format!(" + i * {stride}") } else { String::new() };
        let n = self.text.loops(&loops);
        let at = self.at(value);
        let read = format!("widen({pointer}[{offset}{step}])");
        let read = if guarded { format!("inside ? {read} : 0") } else { read };
        self.text.line(format!("{at} = {read};"));
        self.text.close_all(n);
        if is_kept && self.packed(value) {
            self.keep(value);
        }
    }

    /// Writes a value.
    fn write(&mut self, value: ValueId) {
        let (name, pointer) = (self.name(value), format!("out_{}", value.0));
        for leaf in self.layout.leaves(value).to_vec() {
            if let Role::Row(_) = leaf.role {
                self.need_sizes(&leaf.stride);
            }
        }
        let mut conditions: Vec<String> = Vec::new();
        if self.shape.groups() > 1 || self.halo() > 0 {
            conditions.push("live".to_owned());
        }
        let lanes = self.layout.lanes(value);
        if lanes.is_empty() && !self.layout.slots.is_empty() {
            conditions.push("thread == 0".to_owned());
            if self.shape.tiles > 1 {
                conditions.push("blockIdx.y == 0".to_owned());
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
        let opened = !conditions.is_empty();
        if opened {
            self.text.open(format!("if ({})", conditions.join(" && ")));
        }
        let (vector, offset) = (self.shape.vector, self.access(value).offset(None));
        let mut loops = self.small_loops(value, &[]);
        if self.access(value).is_vector() {
            let index: String = loops.iter().map(|(v, _)| format!("[{v}]")).collect();
            let n = self.text.loops(&loops);
            self.text.line(format!("store<{vector}>({pointer} + {offset}, {name}{index});"));
            self.text.close_all(n);
        } else {
            let stride = self.access(value).lane_stride();
            let step = if self.layout.is_vector(value) {
                format!(" + i * {stride}")
            } else {
                String::new()
            };
            loops.extend(self.lane_loop(value));
            let n = self.text.loops(&loops);
            let at = self.at(value);
            self.text.line(format!("narrow({pointer}[{offset}{step}], {at});"));
            self.text.close_all(n);
        }
        if opened {
            self.text.close();
        }
    }

    fn describe(&self, id: NodeId) -> String {
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
    fn round(&mut self, value: ValueId) {
        if !self.is_act(value) {
            return;
        }
        let name = self.name(value);
        let loops = self.small_loops(value, &[]);
        let index: String = loops.iter().map(|(v, _)| format!("[{v}]")).collect();
        let n = self.text.loops(&loops);
        if self.layout.is_vector(value) {
            self.text.line(format!("round_all({name}{index});"));
        } else {
            self.text.line(format!("{name}{index} = rounded({name}{index});"));
        }
        self.text.close_all(n);
    }

    fn compute(&mut self, id: NodeId) {
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
                let declared = format!(
                    "{} {}{};",
                    self.element(result),
                    self.own(result),
                    self.extent(result)
                );
                self.text.line(declared);
                let mut to = self.small_loops(result, &[]);
                to.extend(self.lane_loop(result));
                let n = self.text.loops(&to);
                let index: String = to.iter().map(|(v, _)| format!("[{v}]")).collect();
                self.text.line(format!("{}{index} = {shown}{index};", self.own(result)));
                self.text.close_all(n);
            } else {
                let _ = self.alias.insert(result, base);
            }
            return;
        }
        let described = self.describe(id);
        self.text.line(described);
        if let (Op::CausalConvInputGrad(op), true) = (&node.op, self.is_scattered(node)) {
            self.scatter(node, &op.taps);
            return;
        }
        self.text.line(format!(
            "{} {}{};",
            self.element(result),
            self.name(result),
            self.extent(result)
        ));
        match &node.op {
            Op::CausalConv(op) => self.conv(node, &op.taps, false),
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

    fn own(&self, value: ValueId) -> String {
        match &self.function.value(value).name {
            Some(name) => format!("{}_{}", plain(name), value.0),
            None => format!("v{}", value.0),
        }
    }

    /// The loops over what is summed in a thread, and the summand.
    fn summand(&self, node: &Node) -> (Vec<(String, i64)>, String) {
        let names = summed(node).unwrap_or_default();
        let Some(arg) = node.args.first().copied() else { return (Vec::new(), String::new()) };
        let mut loops: Vec<(String, i64)> = Vec::new();
        let mut lane = false;
        for leaf in self.layout.leaves(arg).iter().filter(|leaf| names.contains(&leaf.axis)) {
            match leaf.role {
                Role::Small(size) => loops.push((variable(&leaf.axis, leaf.nth), size)),
                Role::Lane(slot) => lane = lane || slot + 1 == self.layout.slots.len(),
                Role::Row(_) => {}
            }
        }
        if lane {
            loops.push(("i".to_owned(), self.shape.vector));
        }
        let factors: Vec<String> = node.args.iter().map(|arg| self.at(*arg)).collect();
        (loops, factors.join(" * "))
    }

    /// A sum over what a thread holds, and over neighbouring threads.
    fn thread_sum(&mut self, node: &Node, result: ValueId) {
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
            let inner = self.layout.slots.last().copied().unwrap_or(1);
            self.text.line(format!("sum = segment_sum<{}>(sum);", inner / self.shape.vector));
        }
        let mean = self.mean_factor(node);
        self.text.line(format!("{at} = sum{mean};"));
        self.text.close_all(n);
    }

    fn mean_factor(&self, node: &Node) -> String {
        let Op::Mean(op) = &node.op else { return String::new() };
        let ty = node.args.first().map(|arg| self.function.ty(*arg));
        let sizes = op.over.iter().filter_map(|name| ty?.axis(name)?.size.as_constant());
        #[allow(clippy::cast_precision_loss)] // sizes are far below 2^53
        let factor = 1.0 / sizes.product::<i64>() as f64;
        format!(" * {}", super::express::number(factor))
    }

    /// Taps of a convolution at the steps around this row.
    fn conv(&mut self, node: &Node, taps: &str, ahead: bool) {
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
    fn is_scattered(&self, node: &Node) -> bool {
        let made = node.args.first().map(|dy| self.function.value(*dy).node);
        matches!(node.op, Op::CausalConvInputGrad(_))
            && made.is_some_and(|id| self.group.nodes.contains(&id))
    }

    /// Rows after a block's own that it computes too.
    fn halo(&self) -> i64 {
        let taps = self.group.nodes.iter().filter_map(|id| {
            let node = self.function.node(*id);
            let w = node.args.get(1).filter(|_| self.is_scattered(node))?;
            Some(self.layout.smalls(*w).iter().product::<i64>() - 1)
        });
        taps.max().unwrap_or_default()
    }

    /// The cotangent of a convolution's input, where that of its output is made here: each row adds
    /// its share to the rows that its taps met, and the oldest of these is complete.
    fn scatter(&mut self, node: &Node, taps: &str) {
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
        // At the end of a sequence all that are pending are complete.
        self.text.line("UNROLL");
        self.text.open(format!("for (int done = 0; done < {n_taps}; ++done)"));
        let back = format!("({last} - done)");
        let mut ready = format!(
            "(done == 0 || r{time} == {steps} - 1) && r{time} >= {back} && row - {back} >= first && row - {back} < last"
        );
        if self.shape.ragged {
            ready += " && inside";
        }
        let offset = self.access(y).offset(Some((time, &format!("- {back}"))));
        if self.access(y).is_vector() {
            self.text.line(format!(
                "if ({ready}) store<{vector}>(out_{} + {offset}, {pending}[done]);",
                y.0
            ));
        } else {
            let stride = self.access(y).lane_stride();
            self.text.open(format!("if ({ready})"));
            let n = self.text.loops(&[("i".to_owned(), vector)]);
            self.text
                .line(format!("narrow(out_{}[{offset} + i * {stride}], {pending}[done][i]);", y.0));
            self.text.close_all(n + 1);
        }
        self.text.close();
        self.text.line("UNROLL");
        self.text.open(format!("for (int tap = 0; tap < {n_taps}; ++tap)"));
        let n = self.text.loops(&[("i".to_owned(), vector)]);
        self.text.line(format!("{pending}[tap][i] = tap < {last} ? {pending}[tap + 1][i] : 0.0f;"));
        self.text.close_all(n + 1);
    }

    /// The vector of a tap as `step`.
    fn step(&mut self, steps: &Steps, tap: &str) {
        let (vector, name) = (self.shape.vector, &steps.name);
        if steps.packed {
            self.text.line(format!("float step[{vector}];"));
            self.text.line(format!("unpack<{vector}>(step, {name}[{tap}]);"));
        } else {
            self.text.line(format!("const float (&step)[{vector}] = {name}[{tap}];"));
        }
    }

    /// The steps of an input that the taps of a convolution meet. Where a block does one row after
    /// the other, all but one are there from the row before.
    fn steps(&mut self, x: ValueId, n_taps: i64, ahead: bool) -> Steps {
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
        read(self, &newest.to_string());
        self.text.close();
        steps
    }

    fn rotary(&mut self, node: &Node, op: &crate::ops::Rotary) {
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

    fn sum_starts(&mut self, sums: &[NodeId]) {
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
    fn add_up(&mut self, id: NodeId) {
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

    fn sum_ends(&mut self, sums: &[NodeId]) {
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
        if threads <= 32 {
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

    fn row_sums(&self) -> Vec<(NodeId, ValueId, usize)> {
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
    fn grown(&self, id: NodeId) -> Option<ValueId> {
        let node = self.function.node(id);
        let index = usize::from(matches!(node.op, Op::CausalConvWeightGrad(_)));
        node.args.get(index).copied()
    }

    fn grows_over_lane(&self, id: NodeId) -> bool {
        self.grown(id).is_some_and(|arg| self.layout.is_lane(arg))
    }

    /// Whether all lanes of a row sum are summed as well.
    fn sums_lane(&self, id: NodeId, outer: usize) -> bool {
        self.grown(id).is_some_and(|arg| outer > 0 && self.layout.lanes(arg).len() == outer)
    }

    fn grown_extent(&self, id: NodeId, outer: usize) -> Vec<(String, i64)> {
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

    fn accumulators(&mut self) {
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

    fn grow(&mut self, id: NodeId) {
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
    fn partials(&mut self) {
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

    fn assemble(self, entry: &str) -> Kernel {
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
                        let sizes =
                            op.over.iter().filter_map(|name| ty.axis(name).map(|a| &a.size));
                        sizes.fold(Some(Size::constant(1)), |n, size| n?.checked_mul(size))
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
        let writes: Vec<ValueId> =
            self.group.outputs.iter().copied().filter(|v| !made.contains(v)).collect();
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
        params.push("const int rows".to_owned());
        params.push("const int span".to_owned());
        for symbol in &self.symbols {
            params.push(format!("const int size_{}", plain(symbol)));
        }
        let shape = self.shape;
        let mut head = Text::default();
        self.header(&mut head, entry);
        let resident = (512 / shape.block).max(1);
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
        }
    }

    fn header(&self, head: &mut Text, entry: &str) {
        head.line(format!("// {entry}"));
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
    pub(crate) fn threads(&self) -> i64 {
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
