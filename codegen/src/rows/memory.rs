//! What a kernel reads and writes, and what it keeps between passes.

use super::cuda::Writer;
use super::layout::Role;
use super::phases::Item;
use crate::ir::ValueId;

impl Writer<'_> {
    pub(super) fn hoisted(&mut self) {
        let hoisted: Vec<ValueId> = self.phases.hoisted.iter().copied().collect();
        let split = |value: &ValueId| self.is_put_by(*value);
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

    /// Whether an input that is read before all rows is put by, for each pass to take up: there are
    /// several, or its elements are held in pairs.
    fn is_put_by(&self, value: ValueId) -> bool {
        self.layout.is_lane(value) && (self.shape.chunks > 1 || self.packed(value))
    }

    /// Whether a value is kept as pairs of bf16.
    pub(super) fn packed(&self, value: ValueId) -> bool {
        self.is_act(value) && self.layout.is_vector(value) && self.shape.vector % 2 == 0
    }

    /// Declares the pairs of a value that the pass has.
    pub(super) fn declare_pairs(&mut self, value: ValueId) -> String {
        let smalls: String = self.layout.smalls(value).iter().map(|n| format!("[{n}]")).collect();
        let pairs = format!("pairs_{}", self.name(value));
        let extent = format!("{smalls}[{}]", self.shape.vector / 2);
        self.declare(value, "unsigned", &pairs, &extent);
        let _ = self.pairs.insert(value, pairs.clone());
        pairs
    }

    /// The pairs of a value of class `act` at the loop variables of its axes, where the pass has them.
    pub(super) fn as_pairs(&self, value: ValueId) -> Option<String> {
        let pairs = self.pairs.get(&value).filter(|_| self.packed(value))?;
        let loops = self.small_loops(value, &[]);
        let index: String = loops.iter().map(|(v, _)| format!("[{v}]")).collect();
        Some(format!("{pairs}{index}"))
    }

    pub(super) fn kept_declaration(&self, value: ValueId) -> String {
        let smalls: String = self.layout.smalls(value).iter().map(|n| format!("[{n}]")).collect();
        let (chunks, vector) = (self.shape.chunks, self.shape.vector);
        let name = self.name(value);
        if self.packed(value) {
            return format!("unsigned kept_{name}[{chunks}]{smalls}[{}];", vector / 2);
        }
        format!("{} kept_{name}[{chunks}]{};", self.element(value), self.extent(value))
    }

    pub(super) fn chunk(&self) -> &'static str {
        if self.shape.chunks > 1 { "c" } else { "0" }
    }

    /// Puts a value where the next pass finds it.
    pub(super) fn keep(&mut self, value: ValueId) {
        let (name, chunk) = (self.name(value), self.chunk());
        let mut loops = self.small_loops(value, &[]);
        let index: String = loops.iter().map(|(v, _)| format!("[{v}]")).collect();
        if self.packed(value) {
            let pairs = self.as_pairs(value);
            let n = self.text.loops(&loops);
            let vector = self.shape.vector;
            let kept = format!("kept_{name}[{chunk}]{index}");
            self.text.line(match pairs {
                Some(pairs) => format!("copy({kept}, {pairs});"),
                None => format!("pack<{vector}>({kept}, {name}{index});"),
            });
            self.text.close_all(n);
            return;
        }
        loops.extend(self.lane_loop(value));
        let index: String = loops.iter().map(|(v, _)| format!("[{v}]")).collect();
        let n = self.text.loops(&loops);
        self.text.line(format!("kept_{name}[{chunk}]{index} = {name}{index};"));
        self.text.close_all(n);
    }

    pub(super) fn take(&mut self, value: ValueId) {
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
            let _ = self.pairs.insert(value, format!("kept_{name}[{chunk}]"));
        } else {
            self.text.line(format!("{name}{index} = kept_{name}[{chunk}]{index};"));
        }
        self.text.close_all(n);
    }

    pub(super) fn item(&mut self, item: Item) {
        match (item, self.product) {
            (Item::Read(value), Some(product)) if value == product.result => {
                self.take_product(product);
            }
            (Item::Read(value), _) if self.phases.hoisted.contains(&value) => {
                if self.is_put_by(value) {
                    self.take(value);
                }
            }
            (Item::Read(value), _) => self.read(value),
            (Item::Take(value), _) => self.take(value),
            (Item::Compute(id), _) => self.compute(id),
        }
    }

    /// Reads an input.
    pub(super) fn read(&mut self, value: ValueId) {
        let (name, pointer) = (self.name(value), format!("in_{}", value.0));
        let is_kept = self.phases.kept.contains(&value)
            || (self.phases.hoisted.contains(&value) && self.is_put_by(value));
        let packed = self.packed(value) && self.access(value).is_vector();
        let extent = self.extent(value);
        self.declare(value, self.element(value), &name, &extent);
        for leaf in self.layout.leaves(value).to_vec() {
            if let Role::Row(_) = leaf.role {
                self.need_sizes(&leaf.stride);
            }
        }
        if self.begin_ahead(value) {
            self.read_ahead(value);
            return;
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
            if is_kept && self.packed(value) {
                self.keep(value);
            }
            return;
        }
        if let Some(n) = self.is_read_whole(value) {
            let all = format!("reinterpret_cast<float (&)[{n}]>({name})");
            self.text.line(format!("load<{n}>({all}, {pointer} + (long long)row * {n});"));
            return;
        }
        let mut loops = self.small_loops(value, &[]);
        let index: String = loops.iter().map(|(v, _)| format!("[{v}]")).collect();
        if is_vector {
            let pairs = if !packed {
                String::new()
            } else if is_kept {
                let kept = format!("kept_{name}[{chunk}]");
                let _ = self.pairs.insert(value, kept.clone());
                kept
            } else {
                self.declare_pairs(value)
            };
            let inside = if guarded { "inside" } else { "" };
            let n = self.text.loops(&loops);
            if packed {
                let pairs = format!("{pairs}{index}");
                // The first-level cache is left to the matrix of a product.
                let once = self.product.is_some() && !self.layout.row_parts(value).is_empty();
                let load = if !once {
                    "load_pairs"
                } else if self.scarce {
                    "load_here"
                } else {
                    "load_once"
                };
                let load = format!("{load}<{vector}>({pairs}, {pointer} + {offset});");
                self.load_if(inside, &load, &pairs);
                self.text.line(format!("unpack<{vector}>({name}{index}, {pairs});"));
            } else {
                let load = format!("load<{vector}>({name}{index}, {pointer} + {offset});");
                self.load_if(inside, &load, &format!("{name}{index}"));
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
    pub(super) fn write(&mut self, value: ValueId) {
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
        if let Some(end) = self.end.filter(|end| end.value == value) {
            let index: String = loops.iter().map(|(v, _)| format!("[{v}]")).collect();
            let extent: String = loops.iter().map(|(_, size)| format!("[{size}]")).collect();
            self.text.line(format!("uint4 state_result{extent};"));
            let n = self.text.loops(&loops);
            self.text.line(format!("state_result{index} = fixed_held({name}{index});"));
            self.text.close_all(n);
            let n = self.text.loops(&loops);
            self.text.line(end.way.at(&format!("state_result{index}"), &offset));
            self.text.close_all(n);
        } else if self.access(value).is_vector() {
            let index: String = loops.iter().map(|(v, _)| format!("[{v}]")).collect();
            let pairs = self.as_pairs(value);
            let n = self.text.loops(&loops);
            self.text.line(match pairs {
                Some(pairs) => format!("store_pairs<{vector}>({pointer} + {offset}, {pairs});"),
                None => format!("store<{vector}>({pointer} + {offset}, {name}{index});"),
            });
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
}
