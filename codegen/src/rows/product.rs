//! Wide products: contractions over few numbers of a row, whose results are long rows that one kernel reads.
//!
//! As an op of its own such a product is bound by writing its result, and its reader by reading it again. So a kernel
//! that alone reads the result makes it in registers, and it is never in memory.
//!
//! **How.** A block takes 16 rows, as for narrow products, so that the matrix, which lies in the second-level
//! cache, is read once for 16 rows. Its warps share the lane, 32 neighbouring lanes of each at a time, for every unrolled
//! index. Which columns of the matrix are put beside each other on tensor cores is free: they are chosen so that
//! a thread is given eight neighbouring lanes of two rows. It rounds them as the op would, and does with one row
//! after the other what every kernel does with one: in a loop that is not unrolled, at whose end what it has of both
//! rows changes places, since a thread has no registers to read both at once. Numbers of a row are read again at each step,
//! from the first-level cache, for the same reason.
//!
//! **Rule.** The kernel goes over its lanes once, and has nothing but pointwise ops, views and sums over the lane or over what a
//! thread holds. The result has the rows of the kernel, and is read by it alone.

use super::access::Access;
use super::cuda::{Kernel, Writer};
use super::group::{Group, Over, is_pointwise, is_view, over};
use super::phases::{Item, Phase, Phases};
use super::shape::Shape;
use crate::ir::{Function, NodeId, ValueId};
use crate::ops::{Contract, Op};
use lightc_dsl::ast::DType;
use lightc_dsl::model::Axis;

/// Most numbers of a row that are contracted; half a step of tensor cores divides them. With 64 the kernel took longer on an H200 than the op
/// and its reader: 0.270 ms, of which the reader alone needs 0.193.
const TERMS: i64 = 32;
const HALF: i64 = 8;
/// Warps of a block, and rows.
const WARPS: i64 = 8;
const ROWS: i64 = 16;
/// Neighbouring lanes of a thread, and of the four threads of a warp that have a row.
const VECTOR: i64 = 8;
const STEP: i64 = 4 * VECTOR;

/// A product that a kernel makes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Product {
    pub(super) node: NodeId,
    /// Rows of few numbers.
    x: ValueId,
    /// A row of it for each of these.
    matrix: ValueId,
    pub(super) result: ValueId,
    pub(super) terms: i64,
    columns: i64,
}

impl Product {
    /// A node as a wide product, if it is one.
    pub(super) fn of(function: &Function, id: NodeId) -> Option<Product> {
        let node = function.node(id);
        let Op::Contract(Contract { over }) = &node.op else { return None };
        let ([over], [x, matrix], [result]) =
            (over.as_slice(), node.args.as_slice(), node.results.as_slice())
        else {
            return None;
        };
        let [of_x, of_matrix, of_result] = [x, matrix, result].map(|value| function.ty(*value));
        let [inner, wide] = of_matrix.axes.as_slice() else { return None };
        let (terms, columns) = (inner.size.as_constant()?, wide.size.as_constant()?);
        let (last, rows) = of_x.axes.split_last()?;
        let of_rows: Vec<Axis> = rows.iter().chain([wide]).cloned().collect();
        let is_product = inner.name == *over
            && last.name == *over
            && [of_x, of_matrix, of_result].iter().all(|ty| ty.dtype == DType::Act)
            && of_result.axes == of_rows
            && (HALF..=TERMS).contains(&terms)
            && terms % HALF == 0;
        let (x, matrix, result) = (*x, *matrix, *result);
        is_product.then_some(Product { node: id, x, matrix, result, terms, columns })
    }

    /// Whether the kernel of a group that reads the result can make it.
    pub(super) fn fits(&self, function: &Function, group: &Group) -> bool {
        let layout = &group.layout;
        let [lane] = layout.slots.as_slice() else { return false };
        let shape = shape(*lane);
        let access = Access { layout, shape: &shape, value: self.result };
        let is_plain = |id: &NodeId| {
            let node = function.node(*id);
            let sums = matches!(node.op, Op::Sum(_) | Op::Mean(_) | Op::Contract(_));
            (is_pointwise(&node.op)
                || is_view(&node.op)
                || sums
                || matches!(node.op, Op::Broadcast(_)))
                && matches!(over(layout, node), None | Some(Over::Thread | Over::Lane))
        };
        let flat = |value: &ValueId| !layout.is_lane(*value);
        let phases = Phases::of(function, group);
        let once = phases.all.split_first().is_some_and(|(first, later)| {
            let made = |value: &ValueId| Item::Compute(function.value(*value).node);
            first.writes.iter().filter(|v| flat(v)).all(|v| !first.pass.contains(&made(v)))
                && later.iter().all(|phase| {
                    phase.pass.is_empty() && phase.sums.is_empty() && phase.writes.iter().all(flat)
                })
        });
        lane % (STEP * WARPS) == 0
            && access.is_vector()
            && access.is_whole_row() == Some(self.columns)
            && group.nodes.iter().all(is_plain)
            && phases.kept.is_empty()
            && once
    }

    /// A group that makes the product, as all but its kernel see it.
    pub(super) fn joined(&self, group: &Group) -> Group {
        let mut inputs = Vec::new();
        for input in &group.inputs {
            let read = if *input == self.result { vec![self.x, self.matrix] } else { vec![*input] };
            for value in read {
                if !inputs.contains(&value) {
                    inputs.push(value);
                }
            }
        }
        let mut nodes = [&group.nodes[..], &[self.node]].concat();
        nodes.sort_unstable();
        Group { nodes, inputs, ..group.clone() }
    }

    /// The same without the product, as the passes of its kernel are planned.
    fn less(&self, joined: &Group) -> Group {
        let mut group = joined.clone();
        group.nodes.retain(|id| *id != self.node);
        group
    }
}

fn shape(lane: i64) -> Shape {
    Shape {
        threads: WARPS * 32 / ROWS,
        vector: VECTOR,
        chunks: lane / (STEP * WARPS),
        block: WARPS * 32,
        tiles: 1,
        blocks: 1 << 16,
        ragged: false,
        shared: 0,
    }
}

/// The kernel of a group that makes a product.
pub(super) fn kernel(
    function: &Function,
    product: &Product,
    joined: &Group,
    entry: &str,
) -> Kernel {
    let mut phases = Phases::of(function, &product.less(joined));
    // Each step reads what does not vary by row again, as it does the matrix.
    phases.hoisted.clear();
    let scarce = phases.all.iter().any(|phase| !phase.sums.is_empty());
    let shape = shape(joined.layout.lane());
    let mut writer = Writer::new(function, joined, phases, shape);
    writer.product = Some(product);
    writer.scarce = scarce;
    writer.steps_of_product(product);
    writer.assemble(entry)
}

impl Writer<'_> {
    /// The body of a kernel that makes a product.
    fn steps_of_product(&mut self, product: &Product) {
        let phases = std::mem::take(&mut self.phases.all);
        let Some((pass, later)) = phases.split_first() else { return };
        let flat = |value: &&ValueId| !self.layout.is_lane(**value);
        let ends: Vec<ValueId> =
            phases.iter().flat_map(|phase| &phase.writes).filter(flat).copied().collect();
        self.text.depth_in();
        self.text.line(
            "const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;",
        );
        self.text.line("const int thread = warp * 4 + t;");
        self.text.line("const int first = blockIdx.x * span;");
        self.text.line("const int last = min(first + span, rows);");
        if !pass.sums.is_empty() {
            self.text.line("__shared__ __align__(16) float sums[2 * SCRATCH];");
        }
        self.text.open(format!("for (int base = first; base < last; base += {ROWS})"));
        if !pass.sums.is_empty() {
            self.text.line(format!(
                "float* const scratch = sums + (base - first) / {ROWS} % 2 * SCRATCH;"
            ));
        }
        let Product { x, matrix, result, terms, columns, .. } = product;
        let steps = (terms + 15) / 16;
        self.text.line(format!("unsigned factor[{steps}][4];"));
        self.text.line(format!("load_factor<{terms}>(factor, in_{}, base, last);", x.0));
        self.clear_sums(&pass.sums);
        self.text.line("#pragma unroll 1");
        self.text.open(format!("for (int c = 0; c < {}; ++c)", self.shape.chunks));
        self.text.line(format!("const int start = (c * {WARPS} + warp) * {STEP};"));
        let smalls: String = self.layout.smalls(*result).iter().map(|n| format!("[{n}]")).collect();
        let loops = self.small_loops(*result, &[]);
        let index: String = loops.iter().map(|(v, _)| format!("[{v}]")).collect();
        let described = self.describe(self.function.value(*result).node);
        self.text.line(described);
        self.text.line(format!("unsigned product[2]{smalls}[{}];", VECTOR / 2));
        let n = self.text.loops(&loops);
        self.text.line(format!("const int lane = start + g / 2 * {VECTOR};"));
        let place = self.access(*result).place_in_row();
        self.text.line(format!(
            "multiply_factor<{terms}>(product[0]{index}, product[1]{index}, factor, in_{} + {place}, {columns});",
            matrix.0
        ));
        self.text.close_all(n);
        self.text.line("#pragma unroll 1");
        self.text.open("for (int side = 0; side < 2; ++side)");
        self.row_of_side();
        self.text.line(format!("const int lane = start + t * {VECTOR};"));
        for item in &pass.uniform {
            self.item(*item);
        }
        self.sums_of_side(&pass.sums, "0");
        self.pass_of_product(pass);
        self.text.line("swap_all(product[0], product[1]);");
        for sum in self.results_of(&pass.sums) {
            let name = self.name(sum);
            self.text.line(format!("swap_all(sums_{name}[0], sums_{name}[1]);"));
        }
        self.text.close_all(2);
        if !ends.is_empty() {
            let _ = self.text.loops(&[("side".to_owned(), 2)]);
            self.row_of_side();
            for item in &pass.uniform {
                self.item(*item);
            }
            self.sums_of_side(&pass.sums, "side");
            self.sum_ends(&pass.sums);
            for phase in later {
                for item in &phase.uniform {
                    self.item(*item);
                }
            }
            for value in ends {
                self.write(value);
            }
            self.text.close();
        }
        self.text.close();
        self.text.depth_out();
        self.phases.all = phases;
    }

    fn results_of(&self, sums: &[NodeId]) -> Vec<ValueId> {
        sums.iter().filter_map(|id| self.function.node(*id).results.first().copied()).collect()
    }

    /// Names the sums of one of a thread's two rows.
    fn sums_of_side(&mut self, sums: &[NodeId], side: &str) {
        for sum in self.results_of(sums) {
            let (name, extent) = (self.name(sum), self.extent(sum));
            self.text.line(format!("float (&sum_{name}){extent} = sums_{name}[{side}];"));
        }
    }

    /// Sums over the lane, of each of a thread's two rows.
    fn clear_sums(&mut self, sums: &[NodeId]) {
        for sum in self.results_of(sums) {
            let (name, extent) = (self.name(sum), self.extent(sum));
            self.text.line(format!("float sums_{name}[2]{extent};"));
            let mut loops = vec![("side".to_owned(), 2)];
            loops.extend(self.small_loops(sum, &[]));
            let index: String = loops.iter().map(|(v, _)| format!("[{v}]")).collect();
            let n = self.text.loops(&loops);
            self.text.line(format!("sums_{name}{index} = 0.0f;"));
            self.text.close_all(n);
        }
    }

    /// Which of a thread's two rows it is.
    fn row_of_side(&mut self) {
        self.text.line("const int place = g + side * 8;");
        self.text.line("const bool live = base + place < last;");
        self.text.line("const int row = live ? base + place : last - 1;");
        self.row_indices(self.layout.rows.len(), "row");
    }

    fn pass_of_product(&mut self, pass: &Phase) {
        for item in &pass.pass {
            self.item(*item);
            if let Item::Compute(id) = item {
                for made in self.function.node(*id).results.clone() {
                    if pass.writes.contains(&made) && self.layout.is_lane(made) {
                        self.write(made);
                    }
                }
            }
        }
        for id in &pass.sums {
            self.add_up(*id);
        }
    }

    /// Takes up what a thread has of a product in one of its rows.
    pub(super) fn take_product(&mut self, product: &Product) {
        let (name, extent) = (self.name(product.result), self.extent(product.result));
        self.text.line(format!("float {name}{extent};"));
        let _ = self.pairs.insert(product.result, "product[0]".to_owned());
        let loops = self.small_loops(product.result, &[]);
        let index: String = loops.iter().map(|(v, _)| format!("[{v}]")).collect();
        let n = self.text.loops(&loops);
        self.text.line(format!("unpack<{VECTOR}>({name}{index}, product[0]{index});"));
        self.text.close_all(n);
    }

    /// Sums of `total` numbers over the threads of a row.
    pub(super) fn sum_of_product(&mut self, all: &str, total: i64) {
        let offset = self.scratch;
        self.scratch += (WARPS * ROWS * total) as usize;
        self.text
            .line(format!("fragment_sum<{total}, {WARPS}>({all}, scratch + {offset}, place);"));
    }

    /// The numbers of a row, if they lie beside each other: to be read at once, since each step reads them.
    pub(super) fn is_read_whole(&self, value: ValueId) -> Option<i64> {
        let access = self.access(value);
        let n = access.is_whole_row()?;
        let flat = self.layout.smalls(value).iter().product::<i64>() == n;
        let is_float = self.function.ty(value).is_float();
        (self.product.is_some() && flat && is_float && n % 4 == 0).then_some(n)
    }
}
