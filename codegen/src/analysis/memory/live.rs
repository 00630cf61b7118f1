//! What is live within a step, for every batch and sequence at once: sums and maxima of polynomials.

use super::{Classes, width};
use crate::ir::{BackwardId, FuncId, Function, Module, NodeId, Type, ValueId};
use crate::ops::{Op, Stack};
use crate::rows::{Plans, Step};
use crate::schedule::saved_values;
use lightc_dsl::model::{Integrator, Storage};
use lightc_dsl::size::{Monomial, Size};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// The name of the lanes of a micro-batch in a [`Live`].
pub const BATCH: &str = "micro_batch";
/// The name of the tokens of a sequence.
pub const SEQUENCE: &str = "sequence";
/// Their smallest values. Inside, the names stand for what is above these, so that a polynomial
/// whose coefficients are all at least another's is never below it.
const LEAST: [(&str, i64); 2] = [(BATCH, 1), (SEQUENCE, 3)];

type Sizes = BTreeMap<String, Size>;

/// Bytes that are live within a step of a micro-batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    states: Size,
    /// Bits per step of a reversible stack, each of whole bytes.
    kept_bits: Vec<Size>,
    replay: Size,
    workspace: Peaks,
}

/// What a run does with the states of stacks whose steps have inverses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum States {
    /// It has them back in the backward, and computes their layers again.
    HadBack,
    /// It keeps them, and what their layers save.
    Stored,
}

/// What is live within a step of a differentiated module; `None` if a size is open that neither the
/// batch nor the sequence binds, or a number overflows. With `plans`, values that live within one of
/// their kernels take no memory, and the loss's product takes its workspace.
pub(crate) fn live(
    module: &Module,
    backward: BackwardId,
    plans: Option<&Plans>,
    states: States,
) -> Option<Live> {
    let root = module.entry_function();
    let sizes = root_sizes(root)?;
    let mut walk = Walk { module, plans, states, known: BTreeMap::new() };
    let held = walk.stacks(module.entry, &sizes)?;
    let mut workspace = walk.forward(module.entry, &sizes)?;
    workspace.join(&walk.backward(backward, &sizes)?)?;
    let rest = plus(&at_rest(module)?, &carries(root, &sizes)?)?;
    Some(Live {
        states: plus(&held.states, &rest)?,
        kept_bits: held.kept_bits,
        replay: held.replay,
        workspace,
    })
}

impl Live {
    /// The ledger of these classes at rest and a micro-batch.
    pub(super) fn at(&self, rest: &Classes, micro_batch: u64, seq: u64) -> Option<Classes> {
        let above = |value: u64, least: i64| Some(i64::try_from(value).ok()? - least);
        let mut bound = BTreeMap::new();
        for ((name, least), value) in LEAST.iter().zip([micro_batch, seq]) {
            let _ = bound.insert((*name).to_owned(), above(value, *least)?);
        }
        let number = |size: &Size| u64::try_from(size.evaluate(&bound)?).ok();
        let bytes = |bits: &Size| Some(number(bits)?.div_ceil(8));
        let peaks = self.workspace.0.iter().map(number).collect::<Option<Vec<u64>>>()?;
        Some(Classes {
            states: number(&self.states)?,
            kept_bits: self.kept_bits.iter().map(bytes).sum::<Option<u64>>()?,
            replay: number(&self.replay)?,
            workspace: peaks.into_iter().max().unwrap_or(0),
            ..*rest
        })
    }

    /// Class and bytes, over [`BATCH`] and [`SEQUENCE`]. Of several polynomials the largest counts.
    /// Kept bits, which are whole bytes per step, are rounded up by less than a byte each.
    pub fn polynomials(&self) -> Option<Vec<(&'static str, Vec<Size>)>> {
        let plain = |size: &Size| unshifted(size);
        let mut kept = Size::default();
        for bits in &self.kept_bits {
            kept = plus(&kept, &rounded_up(&plain(bits))?)?;
        }
        Some(vec![
            ("states", vec![plain(&self.states)]),
            ("kept bits", vec![kept]),
            ("replay", vec![plain(&self.replay)]),
            ("workspace", self.workspace.0.iter().map(plain).collect()),
        ])
    }
}

/// An eighth of every coefficient, rounded up.
fn rounded_up(bits: &Size) -> Option<Size> {
    let mut bytes = Size::default();
    for (monomial, coefficient) in bits.terms() {
        let eighth = coefficient.div_euclid(8) + i64::from(coefficient.rem_euclid(8) > 0);
        bytes = plus(&bytes, &product_of(monomial)?.checked_mul(&Size::constant(eighth))?)?;
    }
    Some(bytes)
}

fn product_of(monomial: &Monomial) -> Option<Size> {
    let mut product = Size::constant(1);
    for (name, power) in monomial {
        for _ in 0..*power {
            product = product.checked_mul(&Size::symbol(name))?;
        }
    }
    Some(product)
}

/// A size over the names themselves, not what is above their smallest values.
pub(in crate::analysis) fn unshifted(size: &Size) -> Size {
    let name = |(name, least): &(&str, i64)| {
        let above = Size::symbol(*name).checked_sub(&Size::constant(*least)).unwrap_or_default();
        ((*name).to_owned(), above)
    };
    size.substitute(&LEAST.iter().map(name).collect())
}

/// Batch and sequence as the axes of `tokens`; of a stage without tokens, as its first input's.
pub(in crate::analysis) fn root_sizes(root: &Function) -> Option<Sizes> {
    let named = root.inputs().find(|(name, _)| *name == "tokens");
    let (_, tokens) = named.or_else(|| root.inputs().next())?;
    let mut sizes = Sizes::new();
    for (axis, (name, least)) in root.ty(tokens).axes.iter().zip(LEAST) {
        let value = plus(&Size::symbol(name), &Size::constant(least))?;
        for symbol in axis.size.symbols() {
            let _ = sizes.insert(symbol.to_owned(), value.clone());
        }
    }
    Some(sizes)
}

fn plus(a: &Size, b: &Size) -> Option<Size> {
    a.checked_add(b)
}

/// What a size is under a binding, if that leaves no other name.
pub(in crate::analysis) fn bound(size: &Size, sizes: &Sizes) -> Option<Size> {
    let size = size.substitute(sizes);
    let is_closed = size.symbols().all(|symbol| LEAST.iter().any(|(name, _)| *name == symbol));
    is_closed.then_some(size)
}

fn bytes_of(ty: &Type, sizes: &Sizes) -> Option<Size> {
    let width = i64::try_from(width(ty.dtype)).ok()?;
    bound(&ty.count()?, sizes)?.checked_mul(&Size::constant(width))
}

/// Bytes of the model's own states.
fn at_rest(module: &Module) -> Option<Size> {
    let none = Sizes::new();
    let states = module.placed_states();
    sum(states.iter().map(|placed| bytes_of(&placed.item.ty, &none)))
}

/// Bytes of what one step hands to the next: inputs that are also outputs.
fn carries(root: &Function, sizes: &Sizes) -> Option<Size> {
    let is_output = |name: &str| root.outputs.iter().any(|o| o.name.as_deref() == Some(name));
    let carried = root.inputs().filter(|(name, _)| is_output(name));
    sum(carried.map(|(_, value)| bytes_of(root.ty(value), sizes)))
}

fn sum(sizes: impl Iterator<Item = Option<Size>>) -> Option<Size> {
    let mut total = Size::default();
    for size in sizes {
        total = plus(&total, &size?)?;
    }
    Some(total)
}

/// The largest of several sizes. None of them is known to be at most another, so their number is
/// that of the moments that can be the fullest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Peaks(Vec<Size>);

impl Peaks {
    fn one(size: Size) -> Self {
        Peaks(vec![size])
    }

    fn add(&self, size: &Size) -> Option<Peaks> {
        self.0.iter().map(|peak| plus(peak, size)).collect::<Option<_>>().map(Peaks)
    }

    fn subtract(&self, size: &Size) -> Option<Peaks> {
        self.0.iter().map(|peak| peak.checked_sub(size)).collect::<Option<_>>().map(Peaks)
    }

    fn join(&mut self, other: &Peaks) -> Option<()> {
        for size in &other.0 {
            if self.0.iter().any(|peak| is_at_most(size, peak)) {
                continue;
            }
            self.0.retain(|peak| !is_at_most(peak, size));
            self.0.push(size.clone());
        }
        Some(())
    }
}

/// Whether every coefficient of `a` is at most that of `b`. Names stand for numbers of at least 0,
/// so the value of `a` then is never above that of `b`.
fn is_at_most(a: &Size, b: &Size) -> bool {
    b.checked_sub(a).is_some_and(|rest| rest.terms().all(|(_, coefficient)| coefficient >= 0))
}

/// What stacks hold between forward and backward.
#[derive(Clone, Default)]
struct Held {
    states: Size,
    kept_bits: Vec<Size>,
    replay: Size,
}

impl Held {
    fn add(&mut self, other: Held) -> Option<()> {
        self.states = plus(&self.states, &other.states)?;
        self.kept_bits.extend(other.kept_bits);
        self.replay = plus(&self.replay, &other.replay)?;
        Some(())
    }
}

/// Sums and peaks over the functions of a module, by function and sizes.
struct Walk<'m> {
    module: &'m Module,
    plans: Option<&'m Plans>,
    states: States,
    known: BTreeMap<(bool, u32, Sizes), Peaks>,
}

/// The sizes of a callee from the types of the arguments of a call.
pub(in crate::analysis) fn callee_sizes(
    callee: &Function,
    caller: &Function,
    args: &[ValueId],
    sizes: &Sizes,
) -> Option<Sizes> {
    let inputs: Vec<ValueId> = callee.inputs().map(|(_, value)| value).collect();
    let mut of_callee = Sizes::new();
    for (name, input, position) in callee.bound_symbols() {
        let arg = args.get(inputs.iter().position(|value| *value == input)?)?;
        let axis = caller.ty(*arg).axes.get(position)?;
        let _ = of_callee.insert(name, bound(&axis.size, sizes)?);
    }
    Some(of_callee)
}

impl Walk<'_> {
    /// Callees of a node with their sizes; `None` for a node that calls nothing.
    fn callees(
        &self,
        function: &Function,
        node: &crate::ir::Node,
        sizes: &Sizes,
    ) -> Option<Vec<(FuncId, Sizes)>> {
        let sub = match &node.op {
            Op::Call(op) => op.sub,
            Op::Stack(op) => op.sub,
            _ => return Some(Vec::new()),
        };
        let callees = &function.subs.get(sub)?.callees;
        let each = callees.iter().map(|id| {
            let callee = self.module.function(*id);
            Some((*id, callee_sizes(callee, function, &node.args, sizes)?))
        });
        each.collect()
    }

    /// What the stacks in a function hold between forward and backward.
    fn stacks(&self, id: FuncId, sizes: &Sizes) -> Option<Held> {
        let function = self.module.function(id);
        let mut sum = Held::default();
        for node in &function.nodes {
            let callees = self.callees(function, node, sizes)?;
            if let (Op::Stack(op), Some(state)) = (&node.op, node.args.first()) {
                let of_caller = self.kept(id).contains(&self.memory(id).owner(*state));
                sum.add(self.held(op, function.ty(*state), sizes, (&callees, of_caller))?)?;
            }
            for (callee, sizes) in callees {
                sum.add(self.stacks(callee, &sizes)?)?;
            }
        }
        Some(sum)
    }

    /// Whether the backward has a stack's states back, and computes its layers again.
    fn has_back(&self, op: &Stack) -> bool {
        kept_bits(op).is_some() && self.states == States::HadBack
    }

    /// What one stack holds: a plain one keeps what the backward of every layer reads; a reversible
    /// one its last two states in 32 bits, the kept bits of its steps, and selections; where states are
    /// stored the kept bits and selections, what every layer gave and a plain stack keeps, and all states.
    /// Beside the layers it is said whether the caller keeps the stack's input.
    fn held(
        &self,
        op: &Stack,
        state: &Type,
        sizes: &Sizes,
        (layers, of_caller): (&[(FuncId, Sizes)], bool),
    ) -> Option<Held> {
        let (count, value) = (bound(&state.count()?, sizes)?, bytes_of(state, sizes)?);
        let times =
            |bytes: &Size, n: usize| bytes.checked_mul(&Size::constant(i64::try_from(n).ok()?));
        let saved = || sum(layers.iter().map(|(layer, sizes)| self.saved(*layer, sizes)));
        let Some(bits) = kept_bits(op) else {
            let read = times(&value, self.states_read(layers, of_caller))?;
            return Some(Held { states: plus(&saved()?, &read)?, ..Held::default() });
        };
        let replay = layers.iter().map(|(layer, sizes)| self.replay(*layer, sizes));
        let of_step = |bits: &i64| count.checked_mul(&Size::constant(*bits));
        let whole = count.checked_mul(&Size::constant(STATE_BYTES))?;
        let states = match self.states {
            States::HadBack => times(&whole, 2)?,
            States::Stored => {
                // All states; of every layer what it gave and the value that it read.
                let given = layers.iter().filter(|(layer, _)| !self.keeps_result(*layer)).count();
                let read = layers.iter().filter(|(layer, _)| self.keeps_state(*layer)).count();
                let values = times(&value, given + read)?;
                plus(&times(&whole, layers.len() + 1)?, &plus(&saved()?, &values)?)?
            }
        };
        Some(Held {
            states,
            kept_bits: bits.iter().map(of_step).collect::<Option<_>>()?,
            replay: self::sum(replay)?,
        })
    }

    /// How many of a plain stack's states are kept that no layer counts among its own values: those that a layer's
    /// backward reads and that of the layer before it, which gave them, does not.
    fn states_read(&self, layers: &[(FuncId, Sizes)], of_caller: bool) -> usize {
        let given = layers.iter().map(|(layer, _)| self.keeps_result(*layer));
        let counted = std::iter::once(of_caller).chain(given);
        let read = layers.iter().map(|(layer, _)| self.keeps_state(*layer));
        read.zip(counted).filter(|(read, counted)| *read && !counted).count()
    }

    /// Whether a layer's backward reads the state that the layer read.
    fn keeps_state(&self, layer: FuncId) -> bool {
        let state = self.module.function(layer).inputs().next();
        state.is_some_and(|(_, state)| self.kept(layer).contains(&state))
    }

    /// Whether it reads what the layer gave.
    fn keeps_result(&self, layer: FuncId) -> bool {
        let result = self.module.function(layer).outputs.first();
        result.is_some_and(|result| {
            self.kept(layer).contains(&self.memory(layer).owner(result.value))
        })
    }

    /// Which values of a function have memory of their own.
    fn memory(&self, id: FuncId) -> Memory<'_> {
        let plan = self.plans.and_then(|plans| plans.forward.get(id.0 as usize));
        Memory::of(self.module.function(id), plan)
    }

    /// Values whose memory the forward of a function keeps for its backward: those that this reads or reads a view
    /// of, and what it calls keeps of its inputs.
    fn kept(&self, id: FuncId) -> BTreeSet<ValueId> {
        let function = self.module.function(id);
        let mut kept: BTreeSet<ValueId> = saved_values(self.module, id).into_iter().collect();
        for node in &function.nodes {
            let Op::Call(op) = &node.op else { continue };
            for callee in function.subs.get(op.sub).into_iter().flat_map(|sub| &sub.callees) {
                let of_callee = self.kept(*callee);
                let inputs = self.module.function(*callee).inputs().zip(&node.args);
                kept.extend(
                    inputs.filter(|((_, v), _)| of_callee.contains(v)).map(|(_, arg)| *arg),
                );
            }
        }
        let memory = self.memory(id);
        kept.into_iter().map(|value| memory.owner(value)).collect()
    }

    /// Bytes that the forward of a function keeps for its backward, with what its callees keep.
    /// What stacks hold is counted by [`Walk::held`], and inputs where they are made.
    fn saved(&self, id: FuncId, sizes: &Sizes) -> Option<Size> {
        let function = self.module.function(id);
        let memory = self.memory(id);
        let mut total = Size::default();
        for value in self.kept(id) {
            if memory.has(value) {
                total = plus(&total, &bytes_of(function.ty(value), sizes)?)?;
            }
        }
        for node in function.nodes.iter().filter(|node| matches!(node.op, Op::Call(_))) {
            for (callee, sizes) in self.callees(function, node, sizes)? {
                total = plus(&total, &self.saved(callee, &sizes)?)?;
            }
        }
        Some(total)
    }

    /// Bytes of the selections of a function and its callees: results of ops that choose.
    fn replay(&self, id: FuncId, sizes: &Sizes) -> Option<Size> {
        let function = self.module.function(id);
        let mut total = Size::default();
        for node in &function.nodes {
            if node.op.def().is_replayed() {
                for result in &node.results {
                    total = plus(&total, &bytes_of(function.ty(*result), sizes)?)?;
                }
            }
            for (callee, sizes) in self.callees(function, node, sizes)? {
                total = plus(&total, &self.replay(callee, &sizes)?)?;
            }
        }
        Some(total)
    }

    /// The peak of a forward function: its own live values, what finished calls keep, and the peak
    /// of the call that runs.
    fn forward(&mut self, id: FuncId, sizes: &Sizes) -> Option<Peaks> {
        let key = (false, id.0, sizes.clone());
        if let Some(known) = self.known.get(&key) {
            return Some(known.clone());
        }
        let module = self.module;
        let function = module.function(id);
        let kept = self.kept(id);
        let plan = self.plans.and_then(|plans| plans.forward.get(id.0 as usize));
        let moments = moments(function, plan, &kept, &BTreeSet::new());
        let (mut live, mut peak) = (Size::default(), Peaks::default());
        for moment in &moments {
            live = plus(&live, &bytes_of_all(function, &moment.made, sizes)?)?;
            let Some(node) = moment.node else {
                peak.join(&Peaks::one(live.clone()))?;
                live = live.checked_sub(&bytes_of_all(function, &moment.done, sizes)?)?;
                continue;
            };
            let callees = self.callees(function, node, sizes)?;
            let is_stack = matches!(node.op, Op::Stack(_));
            let keeps = matches!(&node.op, Op::Stack(op) if !self.has_back(op));
            let mut inside = Peaks::one(Size::default());
            for (callee, below) in &callees {
                let own = self.forward(*callee, below)?;
                // What the layers of a stack keep is among its states.
                let own = match keeps {
                    true => own.subtract(&self.saved(*callee, below)?)?,
                    false => own,
                };
                inside.join(&own)?;
            }
            peak.join(
                &inside.add(&plus(&live, &self.workspace(function, function, node, sizes)?)?)?,
            )?;
            if !is_stack {
                for (callee, below) in &callees {
                    live = plus(&live, &self.saved(*callee, below)?)?;
                }
            }
            live = live.checked_sub(&bytes_of_all(function, &moment.done, sizes)?)?;
        }
        let _ = self.known.insert(key, peak.clone());
        Some(peak)
    }

    /// The peak of a backward function: what the forward has kept, its own live values, and the
    /// peak of the call that runs, whose kept values are among those of the forward.
    fn backward(&mut self, id: BackwardId, sizes: &Sizes) -> Option<Peaks> {
        let key = (true, id.0, sizes.clone());
        if let Some(known) = self.known.get(&key) {
            return Some(known.clone());
        }
        let module = self.module;
        let backward = module.backward.get(id.0 as usize)?;
        let (body, forward) = (&backward.body, module.function(backward.of));
        let grads: BTreeSet<ValueId> = backward.grads.iter().map(|(_, value)| *value).collect();
        let outputs = body.outputs.iter().map(|output| output.value);
        // Gradients of parameters have a class of their own.
        let kept: BTreeSet<ValueId> = outputs.filter(|value| !grads.contains(value)).collect();
        let plan = self.plans.and_then(|plans| plans.backward.get(id.0 as usize));
        let moments = moments(body, plan, &kept, &grads);
        let base = self.saved(backward.of, sizes)?;
        let (mut live, mut peak) = (Size::default(), Peaks::default());
        for moment in &moments {
            live = plus(&live, &bytes_of_all(body, &moment.made, sizes)?)?;
            let inside = match moment.node {
                Some(node) => {
                    let inside = self.inside_backward(node, forward, sizes)?;
                    inside.add(&self.workspace(body, forward, node, sizes)?)?
                }
                None => Peaks::one(Size::default()),
            };
            peak.join(&inside.add(&live)?)?;
            live = live.checked_sub(&bytes_of_all(body, &moment.done, sizes)?)?;
        }
        let peak = peak.add(&base)?;
        let _ = self.known.insert(key, peak.clone());
        Some(peak)
    }

    /// Bytes that a node's kernels hold beside its results, where targets with kernels are counted:
    /// logits, rows in two planes of bytes for products with codes, or codes as bf16 where these are turned (there it is at
    /// most that: `runtime/src/ops/tile/routed.rs` says what products read), gradients of scores of attention over tiles (8 KB for each pair of tiles of 64 and head, of causal ones half the pairs), and rows on their
    /// way to another rank.
    fn workspace(
        &self,
        body: &Function,
        declared: &Function,
        node: &crate::ir::Node,
        sizes: &Sizes,
    ) -> Option<Size> {
        if self.plans.is_none() {
            return Some(Size::default());
        }
        match &node.op {
            Op::LinearCrossEntropy(_)
            | Op::LinearCrossEntropyGrad(_)
            | Op::LinearCrossEntropyStep(_) => Some(Size::constant(LOGITS_BYTES)),
            Op::RoutedDot(_)
            | Op::RoutedDotPair(_)
            | Op::RoutedSwiglu(_)
            | Op::RoutedCombine(_) => {
                let read = read_by_products(body, declared, node).into_iter();
                sum(read.map(|(x, over)| bytes_of(&in_panels(body.ty(x), &over), sizes)))
            }
            Op::MaskedAttentionGrad(op) => {
                let (q, mask) = (node.args.first()?, node.args.get(3)?);
                let heads = bound(&body.ty(*q).axis(&op.head)?.size, sizes)?;
                let pairs = bound(&body.ty(*mask).count()?, sizes)?;
                let of_pair = if op.bound.causal { 1 } else { 2 };
                pairs.checked_mul(&heads)?.checked_mul(&Size::constant(of_pair))
            }
            Op::Exchange(_) => {
                sum(node.results.iter().map(|result| bytes_of(body.ty(*result), sizes)))
            }
            _ => Some(Size::default()),
        }
    }

    /// Peak of what a node of a backward function calls, beyond what the forward has kept.
    fn inside_backward(
        &mut self,
        node: &crate::ir::Node,
        forward: &Function,
        sizes: &Sizes,
    ) -> Option<Peaks> {
        let (call, layers): (NodeId, &[BackwardId]) = match &node.op {
            Op::CallBackward(op) => (op.call, std::slice::from_ref(&op.backward)),
            Op::StackBackward(op) => (op.call, &op.layers),
            _ => return Some(Peaks::one(Size::default())),
        };
        let node = forward.node(call);
        let callees = self.callees(forward, node, sizes)?;
        let has_back = matches!(&node.op, Op::Stack(op) if self.has_back(op));
        let mut inside = Peaks::one(Size::default());
        let passing = match (&node.op, node.args.first()) {
            (Op::Stack(op), Some(state)) if kept_bits(op).is_some() => {
                passing(forward.ty(*state), sizes, self.states)?
            }
            _ => Size::default(),
        };
        for (layer, (callee, below)) in layers.iter().zip(&callees) {
            let own = self.backward(*layer, below)?;
            // A stack that has its states back runs the layer again first, and holds what that keeps only now.
            if has_back {
                inside.join(&own.add(&passing)?)?;
                inside.join(&self.forward(*callee, below)?.add(&passing)?)?;
            } else {
                inside.join(&own.subtract(&self.saved(*callee, below)?)?.add(&passing)?)?;
            }
        }
        Some(inside)
    }
}

/// What products with codes have a copy of, as many bytes as it has in bf16, and the axis they sum: their rows, or the codes where the
/// rows' contraction does not lie innermost in these.
fn read_by_products(
    body: &Function,
    declared: &Function,
    node: &crate::ir::Node,
) -> BTreeSet<(ValueId, String)> {
    let pairs = node.args.iter().zip(node.args.iter().skip(1));
    let pairs = pairs.filter(|(_, w)| is_quantized(body, declared, **w));
    let read = pairs.filter_map(|(x, w)| {
        let [x_axis, w_axis] = [x, w].map(|value| body.ty(*value).axes.last());
        let over = x_axis?.name.clone();
        // Two weights of the same rows stand beside each other in a pair.
        let rows =
            !is_quantized(body, declared, *x) && Some(&over) == w_axis.map(|axis| &axis.name);
        Some((if rows { *x } else { *w }, over))
    });
    // Gate and up read the same rows.
    read.collect()
}

/// Columns of a panel of bytes.
const PANEL: i64 = 128;

/// A type with an axis rounded up to whole panels.
fn in_panels(ty: &Type, over: &str) -> Type {
    let mut ty = ty.clone();
    for axis in ty.axes.iter_mut().filter(|axis| axis.name == over) {
        if let Some(size) = axis.size.as_constant() {
            axis.size = Size::constant((size + PANEL - 1) / PANEL * PANEL);
        }
    }
    ty
}

/// Bytes an element of a state, a whole number.
const STATE_BYTES: i64 = 4;

/// Bytes that the backward of a reversible stack holds beside two states, what its layers read and give: the seed of the
/// layer and the cotangent of the state after; and where it has states back the state before these, and its value.
fn passing(state: &Type, sizes: &Sizes, states: States) -> Option<Size> {
    let (count, value) = (bound(&state.count()?, sizes)?, bytes_of(state, sizes)?);
    let two = value.checked_mul(&Size::constant(2))?;
    match states {
        States::Stored => Some(two),
        States::HadBack => {
            plus(&plus(&two, &value)?, &count.checked_mul(&Size::constant(STATE_BYTES))?)
        }
    }
}

/// Low bits kept per step of a reversible stack; `None` for a plain one.
fn kept_bits(op: &Stack) -> Option<Vec<i64>> {
    let Integrator::Midpoint(midpoint) = &op.integrator else { return None };
    // The first step is a bootstrap, which keeps nothing.
    Some(midpoint.steps.iter().skip(1).map(|step| i64::from(step.bits)).collect())
}

/// Whether a node's results take memory of their own: leaves are counted elsewhere, and views share
/// the memory of what they are made of.
pub(crate) fn occupies(node: &crate::ir::Node) -> bool {
    let is_leaf = matches!(
        node.op,
        Op::Input(_)
            | Op::ParamRef(_)
            | Op::StateRef(_)
            | Op::TableRef(_)
            | Op::Saved(_)
            | Op::Const(_)
            | Op::SizeValue(_)
    );
    !is_leaf && !is_view(node)
}

/// Whether a node's result shares the memory of its first argument.
fn is_view(node: &crate::ir::Node) -> bool {
    matches!(
        node.op,
        Op::StopGradient(_)
            | Op::Broadcast(_)
            | Op::Permute(_)
            | Op::Rename(_)
            | Op::Split(_)
            | Op::Merge(_)
            | Op::Slice(_)
            | Op::Pick(_)
    )
}

/// Which values of a function have memory of their own, and which share that of others.
struct Memory<'f> {
    function: &'f Function,
    /// What generated kernels write, also where that is a view of another value.
    written: BTreeSet<ValueId>,
}

impl<'f> Memory<'f> {
    fn of(function: &'f Function, plan: Option<&Vec<Step>>) -> Memory<'f> {
        let kernels = plan.into_iter().flatten().filter(|step| matches!(step, Step::Kernel(_)));
        Memory { function, written: kernels.flat_map(|step| step.makes(function)).collect() }
    }

    /// The value whose memory a value shares: itself, or what it is a view of.
    fn owner(&self, value: ValueId) -> ValueId {
        let node = self.function.definition(value);
        match node.args.first() {
            Some(arg) if is_view(node) && !self.written.contains(&value) => self.owner(*arg),
            _ => value,
        }
    }

    /// Whether a value has memory that is counted here.
    fn has(&self, value: ValueId) -> bool {
        self.written.contains(&value) || occupies(self.function.definition(value))
    }
}

/// Whether a value of `body` is a quantized parameter of `declared`.
fn is_quantized(body: &Function, declared: &Function, value: ValueId) -> bool {
    let Op::ParamRef(param) = &body.definition(value).op else { return false };
    let param = declared.params.get(param.index);
    param.is_some_and(|param| matches!(param.storage, Storage::Quantized(_)))
}

/// Logits that the loss holds at a time, as `runtime/src/ops/tile/loss.rs` chooses them.
const LOGITS_BYTES: i64 = 1 << 30;

fn bytes_of_all(function: &Function, values: &[ValueId], sizes: &Sizes) -> Option<Size> {
    sum(values.iter().map(|value| bytes_of(function.ty(*value), sizes)))
}

/// One step of a function, as memory sees it.
struct Moment<'f> {
    /// The node that runs; none for a kernel.
    node: Option<&'f crate::ir::Node>,
    /// Values that get memory of their own.
    made: Vec<ValueId>,
    /// Values whose memory is free after it.
    done: Vec<ValueId>,
}

/// The steps of a function. Values in `kept`, outputs and updates stay; values in `uncounted` are counted
/// elsewhere.
fn moments<'f>(
    function: &'f Function,
    plan: Option<&Vec<Step>>,
    kept: &BTreeSet<ValueId>,
    uncounted: &BTreeSet<ValueId>,
) -> Vec<Moment<'f>> {
    let all: Vec<Step> = match plan {
        Some(steps) => steps.clone(),
        None => function.nodes().map(|(id, _)| Step::Node(id)).collect(),
    };
    let memory = Memory::of(function, plan);
    let mut last: BTreeMap<ValueId, usize> = BTreeMap::new();
    let mut moments = Vec::new();
    for (position, step) in all.iter().enumerate() {
        let node = match step {
            Step::Node(id) => Some(function.node(*id)),
            Step::Kernel(_) => None,
        };
        let makes = step.makes(function);
        for value in step.reads(function).into_iter().chain(makes.iter().copied()) {
            let _ = last.insert(memory.owner(value), position);
        }
        let counted =
            makes.into_iter().filter(|value| memory.has(*value) && !uncounted.contains(value));
        moments.push(Moment { node, made: counted.collect(), done: Vec::new() });
    }
    let outputs = function.outputs.iter().map(|output| output.value);
    let updates = function.updates.iter().map(|(_, value)| *value);
    for value in kept.iter().copied().chain(outputs).chain(updates) {
        let _ = last.remove(&memory.owner(value));
    }
    let made: BTreeSet<ValueId> =
        moments.iter().flat_map(|moment| moment.made.iter().copied()).collect();
    for (value, position) in last.into_iter().filter(|(value, _)| made.contains(value)) {
        if let Some(moment) = moments.get_mut(position) {
            moment.done.push(value);
        }
    }
    moments
}
