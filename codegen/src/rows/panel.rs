//! Narrow products: contractions of long rows with a matrix of few columns.
//!
//! A contraction over the lane with a matrix that does not vary from row to row is a sum over the lane with
//! several results. Of up to 64 results it costs less as that than as a product of its own: it is bound by
//! reading its rows once, and sums over the same lane, such as a norm's, come with it.
//!
//! A block takes 16 rows, so that the matrix, which lies in the second-level cache, is read once for 16
//! rows. Its warps share the lane; each multiplies on tensor cores what its threads read 16 bytes at a time,
//! with lanes in whatever order that gives, the same for rows and matrix. What the warps have is added in
//! their order. What follows row by row, of these sums and of numbers of the row, is computed there.

use super::cuda::Kernel;
use super::express::{expression, number};
use super::group::{Group, Readers, is_literal, is_pointwise, rows};
use super::layout::Layout;
use super::shape::Shape;
use super::text::Text;
use crate::ir::{Function, Node, NodeId, ValueId};
use crate::ops::{Contract, Op};
use lightc_dsl::ast::DType;
use lightc_dsl::model::Axis;
use std::collections::{BTreeMap, BTreeSet};

/// Most columns of a matrix.
const COLUMNS: i64 = 64;
/// Warps of a block, and rows.
const WARPS: i64 = 8;
const ROWS: i64 = 16;
/// Lanes that a warp multiplies at once: 8 of each of four threads.
const STEP: i64 = 32;

/// A narrow product and what is computed with it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Panel {
    /// All nodes, in the order of the function.
    pub(super) nodes: Vec<NodeId>,
    product: NodeId,
    x: ValueId,
    matrix: ValueId,
    /// Sums over the lane, each with the nodes of its summand.
    sums: Vec<(NodeId, Vec<NodeId>)>,
    /// What is computed of the sums.
    tail: Vec<NodeId>,
    /// Numbers of a row, or of a row and column, that the tail reads.
    beside: Vec<ValueId>,
    lane: i64,
    columns: i64,
}

impl Panel {
    /// The panel of a product, if it is one; `fits` says whether nodes can be one step.
    pub(super) fn of(
        function: &Function,
        readers: &Readers,
        product: NodeId,
        fits: &dyn Fn(&[NodeId]) -> bool,
    ) -> Option<Panel> {
        let node = function.node(product);
        let Op::Contract(Contract { over }) = &node.op else { return None };
        let ([over], [x, matrix], [result]) =
            (over.as_slice(), node.args.as_slice(), node.results.as_slice())
        else {
            return None;
        };
        let (of_x, of_matrix) = (function.ty(*x), function.ty(*matrix));
        let [columns, lanes] = of_matrix.axes.as_slice() else { return None };
        let (n, lane) = (columns.size.as_constant()?, lanes.size.as_constant()?);
        let (last, rows) = of_x.axes.split_last()?;
        let of_rows: Vec<Axis> = rows.iter().chain([columns]).cloned().collect();
        let types = [of_x.dtype, of_matrix.dtype, function.ty(*result).dtype];
        let is_product = last.name == *over
            && lanes.name == *over
            && types == [DType::Act; 3]
            && function.ty(*result).axes == of_rows
            && !rows.is_empty()
            && rows.iter().all(|axis| axis.size.as_constant().is_none());
        if !is_product || !(1..=COLUMNS).contains(&n) || lane % (STEP * WARPS) != 0 {
            return None;
        }
        let mut panel = Panel {
            nodes: vec![product],
            product,
            x: *x,
            matrix: *matrix,
            sums: Vec::new(),
            tail: Vec::new(),
            beside: Vec::new(),
            lane,
            columns: n,
        };
        panel.find_sums(function, readers, over);
        if !fits(&panel.nodes) {
            panel.sums.clear();
            panel.nodes = vec![product];
        }
        panel.find_tail(function, rows, fits);
        Some(panel)
    }

    fn find_sums(&mut self, function: &Function, readers: &Readers, over: &str) {
        for (id, node) in function.nodes() {
            let summed = match &node.op {
                Op::Sum(op) => &op.over,
                Op::Mean(op) => &op.over,
                _ => continue,
            };
            let Some(arg) = node.args.first().filter(|_| *summed == [over]) else { continue };
            if let Some(chain) = self.chain(function, readers, *arg) {
                self.nodes.extend(chain.iter().copied().chain([id]));
                self.sums.push((id, chain));
            }
        }
        self.nodes.sort_unstable();
    }

    /// The nodes from the rows to a value of each of their elements, if nothing else reads them.
    fn chain(&self, function: &Function, readers: &Readers, value: ValueId) -> Option<Vec<NodeId>> {
        let mut chain = Vec::new();
        let mut value = value;
        while value != self.x {
            let id = function.value(value).node;
            let node = function.node(id);
            let [arg] = node.args.as_slice() else { return None };
            if !is_pointwise(&node.op)
                || function.ty(value).dtype == DType::Bool
                || function.ty(*arg).axes != function.ty(value).axes
                || readers.is_kept(value)
                || readers.nodes(value).len() != 1
            {
                return None;
            }
            chain.push(id);
            value = *arg;
        }
        chain.reverse();
        Some(chain)
    }

    fn find_tail(&mut self, function: &Function, rows: &[Axis], fits: &dyn Fn(&[NodeId]) -> bool) {
        let first = |id: &NodeId| function.node(*id).results.first().copied();
        let mut made: BTreeSet<ValueId> =
            self.sums.iter().map(|(id, _)| id).chain([&self.product]).filter_map(first).collect();
        let wide = first(&self.product).map(|value| function.ty(value).axes.clone());
        let of_row = |value: ValueId| {
            let axes = &function.ty(value).axes;
            axes == rows || Some(axes) == wide.as_ref()
        };
        let is_float = |value: ValueId| function.ty(value).is_float();
        for (id, node) in function.nodes() {
            let [result] = node.results.as_slice() else { continue };
            if !is_pointwise(&node.op) || !of_row(*result) || !is_float(*result) {
                continue;
            }
            let outer: Vec<ValueId> = node
                .args
                .iter()
                .copied()
                .filter(|arg| !made.contains(arg) && !is_literal(function, *arg))
                .collect();
            let joins = outer.len() < node.args.len()
                && node.args.iter().any(|arg| made.contains(arg))
                && outer.iter().all(|arg| of_row(*arg) && is_float(*arg));
            let nodes = [&self.nodes[..], &[id]].concat();
            if joins && fits(&nodes) {
                self.nodes = nodes;
                self.tail.push(id);
                self.beside.extend(outer);
                let _ = made.insert(*result);
            }
        }
        self.nodes.sort_unstable();
        self.beside.sort_unstable();
        self.beside.dedup();
    }

    /// What planning knows of it.
    pub(super) fn group(&self, function: &Function, readers: &Readers) -> Group {
        let rows = function.ty(self.x).axes.iter().filter(|axis| axis.size.as_constant().is_none());
        let layout = Layout {
            apart: BTreeSet::new(),
            rows: rows.map(|axis| axis.size.clone()).collect(),
            slots: vec![self.lane],
            values: BTreeMap::new(),
        };
        let made = self.nodes.iter().flat_map(|id| function.node(*id).results.iter().copied());
        let outputs = made.filter(|value| readers.outside(*value, &self.nodes)).collect();
        let inputs = [self.x, self.matrix].into_iter().chain(self.beside.iter().copied());
        let (nodes, inputs) = (self.nodes.clone(), inputs.collect());
        Group { nodes, inputs, outputs, tables: BTreeMap::new(), layout }
    }
}

/// The kernel of a panel.
pub(super) fn kernel(function: &Function, panel: &Panel, group: &Group, entry: &str) -> Kernel {
    let writer = Writer { function, panel, group, text: Text::default() };
    let shape = Shape {
        threads: WARPS * 32 / ROWS,
        vector: 8,
        chunks: 1,
        block: WARPS * 32,
        tiles: 1,
        blocks: 1 << 16,
        ragged: false,
        shared: 0,
    };
    Kernel {
        entry: entry.to_owned(),
        text: writer.text(entry),
        shape,
        group: group.clone(),
        angles: Vec::new(),
        writes: group.outputs.clone(),
        sums: Vec::new(),
        symbols: Vec::new(),
        passes: 1,
        end: None,
        has_product: false,
    }
}

struct Writer<'a> {
    function: &'a Function,
    panel: &'a Panel,
    group: &'a Group,
    text: Text,
}

fn name(value: ValueId) -> String {
    format!("v{}", value.0)
}

impl Writer<'_> {
    /// Tiles of eight columns.
    fn tiles(&self) -> i64 {
        (self.panel.columns + 7) / 8
    }

    /// Steps of a warp whose reads are on their way together.
    fn together(&self) -> i64 {
        let room = if self.tiles() <= 4 { 4 } else { 2 };
        let steps = self.panel.lane / (STEP * WARPS);
        [4, 2].into_iter().find(|n| *n <= room && steps % n == 0).unwrap_or(1)
    }

    fn stored(&self, value: ValueId) -> &'static str {
        if self.function.ty(value).dtype == DType::Act { "bf16" } else { "float" }
    }

    fn is_wide(&self, value: ValueId) -> bool {
        let rows = self.group.layout.rows.len();
        self.function.ty(value).axes.len() > rows
    }

    fn text(mut self, entry: &str) -> String {
        self.head(entry);
        let (lane, columns, tiles) = (self.panel.lane, self.panel.columns, self.tiles());
        let together = self.together();
        let step = STEP * together;
        let width = 8 * tiles + self.panel.sums.len() as i64;
        let text = &mut self.text;
        text.depth_in();
        text.line(format!("__shared__ float parts[{WARPS}][{ROWS}][{}];", width | 1));
        text.line(
            "const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;",
        );
        text.line("const int first = blockIdx.x * span;");
        text.line("const int last = min(first + span, rows);");
        text.open(format!("for (int base = first; base < last; base += {ROWS})"));
        let (x, w) = (self.panel.x.0, self.panel.matrix.0);
        for (side, shift) in [("upper", "g"), ("lower", "g + 8")] {
            text.line(format!(
                "const bf16* const {side} = in_{x} + (long long)min(base + {shift}, rows - 1) * {lane} + t * 8;"
            ));
        }
        text.line(format!("float product[{tiles}][4];"));
        let n = text.loops(&[("j".to_owned(), tiles)]);
        text.line("clear(product[j]);");
        text.close_all(n);
        for (id, _) in &self.panel.sums {
            text.line(format!("float sum_{}[2] = {{0.0f, 0.0f}};", id.0));
        }
        text.line("#pragma unroll 1");
        text.open(format!("for (int at = warp * {step}; at < {lane}; at += {})", WARPS * step));
        text.line(format!("unsigned x[{together}][2][4], w[{together}][{tiles}][4];"));
        let of_step = [("u".to_owned(), together)];
        let of_tile = [("u".to_owned(), together), ("j".to_owned(), tiles)];
        let n = text.loops(&of_step);
        text.line(format!("load_pairs<8>(x[u][0], upper + at + u * {STEP});"));
        text.line(format!("load_pairs<8>(x[u][1], lower + at + u * {STEP});"));
        text.close_all(n);
        let n = text.loops(&of_tile);
        let column = if columns % 8 == 0 {
            "j * 8 + g".to_owned()
        } else {
            format!("min(j * 8 + g, {})", columns - 1)
        };
        text.line(format!(
            "load_pairs<8>(w[u][j], in_{w} + ({column}) * {lane} + t * 8 + at + u * {STEP});"
        ));
        text.close_all(n);
        let n = text.loops(&of_tile);
        for half in [0, 2] {
            text.line(format!(
                "multiply(product[j], x[u][0][{half}], x[u][1][{half}], x[u][0][{0}], x[u][1][{0}], w[u][j][{half}], w[u][j][{0}]);",
                half + 1
            ));
        }
        text.close_all(n);
        self.summands(together);
        self.text.close();
        self.share(tiles);
        self.tail();
        self.text.close();
        self.text.depth_out();
        self.text.line("}");
        self.text.finish()
    }

    fn head(&mut self, entry: &str) {
        let of = |values: &[ValueId]| -> Vec<String> {
            values.iter().map(|v| format!("//   {} {}", name(*v), self.function.ty(*v))).collect()
        };
        let lines = [
            vec![format!("// {entry}"), "// from".to_owned()],
            of(&self.group.inputs),
            vec!["// to".to_owned()],
            of(&self.group.outputs),
            vec![format!(
                "// rows {}, lane {}: {ROWS} rows of a block, {} columns on tensor cores",
                super::access::size_text(&rows(&self.group.layout)),
                self.panel.lane,
                self.panel.columns
            )],
        ];
        let mut params: Vec<String> = Vec::new();
        for input in &self.group.inputs {
            params.push(format!("const {}* __restrict__ in_{}", self.stored(*input), input.0));
        }
        for value in &self.group.outputs {
            params.push(format!("{}* __restrict__ out_{}", self.stored(*value), value.0));
        }
        params.extend(["const int rows".to_owned(), "const int span".to_owned()]);
        for line in lines.iter().flatten() {
            self.text.line(line);
        }
        self.text.line(format!(
            "extern \"C\" __global__ void __launch_bounds__({}, 2) {entry}(",
            WARPS * 32
        ));
        let last = params.len().saturating_sub(1);
        for (index, param) in params.iter().enumerate() {
            self.text.line(format!("    {param}{}", if index == last { ") {" } else { "," }));
        }
    }

    fn describe(&self, node: &Node) -> String {
        let args: Vec<String> = node.args.iter().map(|arg| self.element(*arg)).collect();
        let attrs: Vec<String> =
            node.op.def().attrs().0.iter().map(|(name, attr)| format!(" {name}={attr}")).collect();
        format!("// {}{}({})", node.op.def().mnemonic(), attrs.concat(), args.join(", "))
    }

    fn element(&self, value: ValueId) -> String {
        match &self.function.definition(value).op {
            Op::Const(op) => number(op.value),
            Op::SizeValue(op) => {
                format!("(float)({})", super::access::size_text(&op.size))
            }
            _ => name(value),
        }
    }

    /// Computes a pointwise node at one element.
    fn compute(&mut self, id: NodeId) {
        let node = self.function.node(id);
        let Some(result) = node.results.first() else { return };
        let args: Vec<String> = node.args.iter().map(|arg| self.element(*arg)).collect();
        let mut value = expression(&node.op, &args);
        if self.function.ty(*result).dtype == DType::Act {
            value = format!("rounded({value})");
        }
        let described = self.describe(node);
        self.text.line(described);
        self.text.line(format!("const float {} = {value};", name(*result)));
    }

    fn summands(&mut self, together: i64) {
        if self.panel.sums.is_empty() {
            return;
        }
        let loops = [("u", together), ("side", 2), ("i", 8)].map(|(v, n)| (v.to_owned(), n));
        let n = self.text.loops(&loops);
        self.text.line("const unsigned pair = x[u][side][i / 2];");
        self.text.line(format!(
            "const float {} = i % 2 == 0 ? widen_low(pair) : widen_high(pair);",
            name(self.panel.x)
        ));
        let mut done = BTreeSet::new();
        for (id, chain) in &self.panel.sums {
            for link in chain {
                if done.insert(*link) {
                    self.compute(*link);
                }
            }
            if let Some(arg) = self.function.node(*id).args.first() {
                self.text.line(format!("sum_{}[side] += {};", id.0, name(*arg)));
            }
        }
        self.text.close_all(n);
    }

    /// Puts what a warp has where all find it.
    fn share(&mut self, tiles: i64) {
        for (index, (id, _)) in (8 * tiles..).zip(&self.panel.sums) {
            let n = self.text.loops(&[("side".to_owned(), 2)]);
            self.text.line(format!("const float of_warp = segment_sum<4>(sum_{}[side]);", id.0));
            self.text.line(format!("if (t == 0) parts[warp][g + side * 8][{index}] = of_warp;"));
            self.text.close_all(n);
        }
        let n = self.text.loops(&[("j".to_owned(), tiles), ("i".to_owned(), 4)]);
        self.text.line("parts[warp][g + i / 2 * 8][j * 8 + t * 2 + i % 2] = product[j][i];");
        self.text.close_all(n);
        self.text.line("__syncthreads();");
    }

    /// A sum over the warps, in their order.
    fn added(&mut self, value: ValueId, place: &str, factor: &str) {
        let name = name(value);
        self.text.line(format!("float all_{name} = parts[0][of][{place}];"));
        self.text.line("UNROLL");
        self.text.line(format!(
            "for (int w = 1; w < {WARPS}; ++w) all_{name} += parts[w][of][{place}];"
        ));
        let sum = format!("all_{name}{factor}");
        let is_act = self.function.ty(value).dtype == DType::Act;
        let sum = if is_act { format!("rounded({sum})") } else { sum };
        self.text.line(format!("const float {name} = {sum};"));
    }

    fn tail(&mut self) {
        let threads = WARPS * 32 / ROWS;
        let tiles = self.tiles();
        self.text.line(format!("const int of = threadIdx.x / {threads}, row = base + of;"));
        self.text.open("if (row < last)");
        for (index, (id, _)) in (8 * tiles..).zip(self.panel.sums.clone()) {
            let node = self.function.node(id);
            let factor = match &node.op {
                #[allow(clippy::cast_precision_loss)] // a lane is far below 2^53
                Op::Mean(_) => format!(" * {}", number(1.0 / self.panel.lane as f64)),
                _ => String::new(),
            };
            if let Some(result) = node.results.first() {
                let described = self.describe(node);
                self.text.line(described);
                self.added(*result, &index.to_string(), &factor);
            }
        }
        let (flat, wide): (Vec<ValueId>, Vec<ValueId>) =
            self.panel.beside.iter().partition(|value| !self.is_wide(**value));
        for value in flat {
            self.text.line(format!("const float {} = widen(in_{}[row]);", name(value), value.0));
        }
        let result = |id: &NodeId| self.function.node(*id).results.first().copied();
        let is_wide = |id: &NodeId| result(id).is_some_and(|value| self.is_wide(value));
        let (wide_tail, flat_tail): (Vec<NodeId>, Vec<NodeId>) =
            self.panel.tail.iter().partition(|id| is_wide(id));
        for id in flat_tail {
            self.compute(id);
        }
        let (wide_out, flat_out): (Vec<ValueId>, Vec<ValueId>) =
            self.group.outputs.iter().partition(|value| self.is_wide(**value));
        for value in flat_out {
            self.text.line(format!(
                "if (threadIdx.x % {threads} == 0) narrow(out_{}[row], {});",
                value.0,
                name(value)
            ));
        }
        let columns = self.panel.columns;
        self.text
            .open(format!("for (int n = threadIdx.x % {threads}; n < {columns}; n += {threads})"));
        let place = format!("[(long long)row * {columns} + n]");
        for value in wide {
            self.text.line(format!("const float {} = widen(in_{}{place});", name(value), value.0));
        }
        let product = self.function.node(self.panel.product);
        if let Some(result) = product.results.first() {
            let described = self.describe(product);
            self.text.line(described);
            self.added(*result, "n", "");
        }
        for id in wide_tail {
            self.compute(id);
        }
        for value in wide_out {
            self.text.line(format!("narrow(out_{}{place}, {});", value.0, name(value)));
        }
        self.text.close_all(2);
        self.text.line("__syncthreads();");
    }
}
