//! Stacks as Rust: layers one after the other, or a reversible run of them.

use super::function::{Emitter, Locals, backward_ident, has_states, scalar, share_of, sub_fields};
use super::names::{module_ident, stem};
use crate::ir::{BackwardId, FuncId, Node, NodeId, Sub};
use crate::ops::{Affine, Binary, BinaryFn, Op, Stack, StackBackward};
use lightc_dsl::model::{Integrator, Midpoint};
use proc_macro2::{Ident, Literal, TokenStream};
use quote::{format_ident, quote};

impl Emitter<'_> {
    /// The integrators of the function's reversible stacks.
    pub(super) fn integrators(&self) -> Vec<TokenStream> {
        let mut seen: Vec<usize> = Vec::new();
        let mut items = Vec::new();
        for node in &self.function.nodes {
            if let Op::Stack(Stack { sub, integrator: Integrator::Midpoint(midpoint) }) = &node.op
                && !seen.contains(sub)
            {
                seen.push(*sub);
                let (name, item) = (self.integrator_ident(*sub), integrator_tokens(midpoint));
                let doc = format!(" `{}`", Integrator::Midpoint(midpoint.clone()));
                items.push(quote!(#[doc = #doc] static #name: reversible::Integrator = #item;));
            }
        }
        items
    }

    /// `LAYERS`, with its number where another sub is called so but for capitals.
    fn integrator_ident(&self, sub: usize) -> Ident {
        let name = |sub: &Sub| stem(&sub.name).to_uppercase();
        let own = self.function.subs.get(sub).map(name).unwrap_or_default();
        let same = self.function.subs.iter().filter(|other| name(other) == own).count();
        if same == 1 { format_ident!("{own}") } else { format_ident!("{own}_{sub}") }
    }

    /// The field of `Saved` for a reversible stack, and the variable of its run.
    pub(super) fn run_ident(&self, id: NodeId, node: &Node) -> Option<Ident> {
        let Op::Stack(op) = &node.op else { return None };
        let sub = self.function.subs.get(op.sub)?;
        let suffix = self.call_suffix(id, node);
        (op.integrator != Integrator::Plain)
            .then(|| format_ident!("{}_call{suffix}", stem(&sub.name)))
    }

    pub(super) fn stack_forward(
        &self,
        id: NodeId,
        node: &Node,
        op: &Stack,
        locals: &mut Locals<'_>,
    ) -> TokenStream {
        match &op.integrator {
            Integrator::Plain => self.plain_forward(id, node, op.sub, locals),
            Integrator::Midpoint(midpoint) => {
                self.midpoint_forward(id, node, (op.sub, midpoint), locals)
            }
        }
    }

    fn plain_forward(
        &self,
        id: NodeId,
        node: &Node,
        sub: usize,
        locals: &mut Locals<'_>,
    ) -> TokenStream {
        let Some(sub) = self.function.subs.get(sub) else { return quote!() };
        let (Some(x), Some(result)) = (node.args.first(), node.results.first()) else {
            return quote!();
        };
        let result = locals.name(*result);
        let mut current = locals.by_ref(*x);
        let mut statements = Vec::new();
        let mut penalties = Penalties::of(node, locals);
        for ((saved, callee), (field, _)) in
            self.call_fields(id, node).iter().zip(sub_fields(self.function, sub))
        {
            let has = self.has_penalty(*callee);
            let mut results = vec![quote!(#result)];
            results.extend(penalties.binding(has));
            statements.push(self.call_statement(id, saved, &field, *callee, &results, &[current]));
            statements.extend(penalties.add(has));
            current = quote!(&#result);
        }
        if statements.is_empty() {
            return quote!(let #result = Tensor::shallow_clone(#current););
        }
        statements.extend(penalties.mean());
        quote!(#(#statements)*)
    }

    fn midpoint_forward(
        &self,
        id: NodeId,
        node: &Node,
        (index, midpoint): (usize, &Midpoint),
        locals: &mut Locals<'_>,
    ) -> TokenStream {
        let Some(sub) = self.function.subs.get(index) else { return quote!() };
        let (Some(x), Some(result)) = (node.args.first(), node.results.first()) else {
            return quote!();
        };
        let Some(run) = self.run_ident(id, node) else { return quote!() };
        let (x, result, integrator) =
            (locals.by_ref(*x), locals.name(*result), self.integrator_ident(index));
        let (outer, outer_mut) = if self.takes_tape(self.id) {
            (quote!(Some(&*tape)), quote!(Some(tape)))
        } else {
            (quote!(None), quote!(None))
        };
        let gates = gate_tokens(midpoint, node, locals);
        let mut statements = Vec::new();
        let mut penalties = Penalties::of(node, locals);
        for (((saved, callee), (field, _)), gate) in
            self.call_fields(id, node).iter().zip(sub_fields(self.function, sub)).zip(gates)
        {
            let module = module_ident(&self.module.function(*callee).name);
            let next = has_states(self.module, *callee).then(|| quote!(&mut next.#field,));
            let tape = self.takes_tape(*callee).then(|| quote!(&mut #run.tape,));
            let is_ended = gate.is_none() && self.ends(*callee).is_some();
            let end = if is_ended { Some(quote!(&mut end,)) } else { self.result_end(*callee) };
            let gate = gate.map_or(quote!(None), |gate| quote!(Some(#gate)));
            let kept = if self.is_called_backward(id) { quote!(#saved) } else { quote!(_) };
            let has = self.has_penalty(*callee);
            let penalty = penalties.binding(has).map(|name| quote!(#name,));
            let (made, advance) = if is_ended {
                (quote!(let mut end = #run.end()?;), quote!(advance_to(#result, end, #saved)))
            } else {
                (quote!(), quote!(advance(#result, #gate, #saved)))
            };
            statements.push(quote! {
                #made
                let (#result, #penalty #saved) =
                    #module::forward(like, &weights.#field, #next #tape #end &#run.input)?;
                let #kept = #run.#advance?;
            });
            statements.extend(penalties.add(has));
        }
        let mean = penalties.mean();
        let kept = if self.is_called_backward(id) { quote!(#run) } else { quote!(_) };
        let mutable = (!statements.is_empty()).then(|| quote!(mut));
        quote! {
            let #mutable #run = reversible::Forward::start(&#integrator, #x, #outer)?;
            #(#statements)*
            #mean
            let (#result, #kept) = #run.finish(#outer_mut)?;
        }
    }

    pub(super) fn stack_backward(
        &self,
        node: &Node,
        op: &StackBackward,
        locals: &mut Locals<'_>,
    ) -> TokenStream {
        let Integrator::Midpoint(midpoint) = &op.integrator else {
            return self.call_backward(node, op.call, &op.layers, locals);
        };
        let forward_node = self.function.node(op.call);
        let Some(run) = self.run_ident(op.call, forward_node) else { return quote!() };
        let (Some(d), Some(dx)) = (node.args.first(), node.results.first()) else {
            return quote!();
        };
        let (d, dx) = (locals.by_ref(*d), locals.binding(*dx));
        let gates = gate_tokens(midpoint, node, locals);
        let mut d_gates = node.results.iter().skip(1).map(|d| locals.binding(*d));
        let d_gates: Vec<Option<TokenStream>> =
            gates.iter().map(|gate| gate.as_ref().and_then(|_| d_gates.next())).collect();
        let Op::Stack(stack) = &forward_node.op else { return quote!() };
        let Some(sub) = self.function.subs.get(stack.sub) else { return quote!() };
        let fields = sub_fields(self.function, sub);
        let saved = self.call_fields(op.call, forward_node);
        let layers = op.layers.iter().zip(fields.iter().zip(&saved)).zip(gates.iter().zip(d_gates));
        let statements = layers.rev().map(|((layer, ((field, callee), (saved, _))), gate)| {
            self.layer_backward(*layer, (field, *callee), (&run, saved), gate)
        });
        let statements: Vec<TokenStream> = statements.collect();
        let mutable = (!statements.is_empty()).then(|| quote!(mut));
        let share = node.args.get(1 + midpoint.gated().count());
        let share = share.map(|total| self.penalty_share(&op.layers, &locals.by_ref(*total)));
        quote! {
            #share
            let #mutable #run = reversible::Backward::start(&saved.#run, #d)?;
            #(#statements)*
            let #dx = #run.finish()?;
        }
    }

    /// Has the state of one layer back, and differentiates the layer.
    fn layer_backward(
        &self,
        layer: BackwardId,
        (field, callee): (&Ident, FuncId),
        (run, saved): (&Ident, &Ident),
        (gate, d_gate): (&Option<TokenStream>, Option<TokenStream>),
    ) -> TokenStream {
        let function = self.module.function(callee);
        let module = module_ident(&function.name);
        let Some(backward) = self.module.backward.get(layer.0 as usize) else { return quote!() };
        let name = backward_ident(backward, function);
        let (tape, pass) = match self.takes_tape(callee) {
            true => (quote!(tape), quote!(tape,)),
            false => (quote!(_), quote!()),
        };
        // The penalty of the second pass is that of the first, which has been counted.
        let results = self.has_penalty(callee).then(|| quote!(.map(|(y, _, saved)| (y, saved))));
        let share = self.is_penalty_seeded(layer).then(|| quote!(, &penalty_share));
        let is_ended = gate.is_none() && self.ends(callee).is_some();
        let (end, pass_end) = match is_ended {
            true => (Some(quote!(, end)), Some(quote!(end,))),
            false => (None, self.result_end(callee)),
        };
        let again = if has_states(self.module, callee) {
            // States take hold once, by the first pass.
            quote!(|input, #tape #end| {
                let mut next = #module::Tensors::build(&mut Empty)?;
                #module::forward(like, &weights.#field, &mut next, #pass #pass_end input)#results
            })
        } else {
            let forward = quote!(#module::forward(like, &weights.#field, #pass #pass_end input));
            quote!(|input, #tape #end| #forward #results)
        };
        let back = quote! {
            |saved, d| #module::#name(like, &weights.#field, saved, &mut grads.#field, d #share)
        };
        let args = quote!(saved.#saved.as_ref(), #again, #back);
        match (gate, d_gate) {
            (Some(gate), Some(d_gate)) => quote!(let #d_gate = #run.gated_layer(#gate, #args)?;),
            _ if is_ended => quote!(#run.ended_layer(#args)?;),
            _ => quote!(#run.layer(#args)?;),
        }
    }
}

impl Emitter<'_> {
    fn has_penalty(&self, layer: FuncId) -> bool {
        self.module.function(layer).outputs.len() > 1
    }

    /// Whether the backward of a layer takes the cotangent of its penalty.
    pub(super) fn is_penalty_seeded(&self, layer: BackwardId) -> bool {
        let backward = self.module.backward.get(layer.0 as usize);
        backward.is_some_and(|backward| backward.seeds.get(1) == Some(&true))
    }

    /// `penalty_share`: what each layer that has a penalty gets of the cotangent of their mean.
    pub(super) fn penalty_share(&self, layers: &[BackwardId], total: &TokenStream) -> TokenStream {
        let n = layers.iter().filter(|layer| self.is_penalty_seeded(**layer)).count();
        let op = Affine { mul: 1.0 / n as f64, add: 0.0 };
        let value = scalar(&op, std::slice::from_ref(total));
        quote!(let penalty_share = #value;)
    }
}

/// The mean of the penalties that the layers of a stack have, as statements.
struct Penalties {
    /// The variable of the sum; `None` where no layer has one.
    total: Option<Ident>,
    n: usize,
}

impl Penalties {
    fn of(node: &Node, locals: &Locals<'_>) -> Self {
        Penalties { total: node.results.get(1).map(|penalty| locals.name(*penalty)), n: 0 }
    }

    /// Where the penalty of the next layer goes, if it has one.
    fn binding(&self, has: bool) -> Option<TokenStream> {
        let total = self.total.as_ref().filter(|_| has)?;
        Some(if self.n == 0 { quote!(#total) } else { quote!(layer_penalty) })
    }

    /// Counts the layer, and adds its penalty to those before.
    fn add(&mut self, has: bool) -> Option<TokenStream> {
        let total = self.total.as_ref().filter(|_| has)?;
        self.n += 1;
        let op = Binary { function: BinaryFn::Add };
        let sum = scalar(&op, &[quote!(&#total), quote!(&layer_penalty)]);
        (self.n > 1).then(|| quote!(let #total = #sum;))
    }

    fn mean(&self) -> Option<TokenStream> {
        let total = self.total.as_ref().filter(|_| self.n > 1)?;
        let mean = share_of(total, self.n);
        Some(quote!(let #total = #mean;))
    }
}

/// Per layer, its gate where it has one: the arguments after the first.
fn gate_tokens(midpoint: &Midpoint, node: &Node, locals: &Locals<'_>) -> Vec<Option<TokenStream>> {
    let mut given = node.args.iter().skip(1).map(|gate| locals.by_ref(*gate));
    midpoint.steps.iter().map(|step| step.gate.and_then(|_| given.next())).collect()
}

fn integrator_tokens(midpoint: &Midpoint) -> TokenStream {
    let bits = Literal::u32_unsuffixed(midpoint.fraction_bits);
    let steps = midpoint.steps.iter().enumerate().map(|(layer, step)| {
        let weight = Literal::f64_unsuffixed(midpoint.weight(layer));
        if layer == 0 {
            return quote!(reversible::Step::first(#weight));
        }
        let numerator = Literal::u32_unsuffixed(step.numerator);
        let bits = Literal::u32_unsuffixed(step.bits);
        quote!(reversible::Step::new(#numerator, #bits, #weight))
    });
    quote!(reversible::Integrator { fraction_bits: #bits, steps: &[#(#steps),*] })
}
