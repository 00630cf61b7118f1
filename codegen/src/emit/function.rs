//! One block as a Rust module: its tensors, its forward, its backward.

use super::call::{EmitCall, size_variable};
use super::names::{ident, module_ident, stem, value_names};
use super::replay::tape_takers;
use super::rows::{ended_kernel, row_kernel};
use crate::ir::{Backward, BackwardId, FuncId, Function, Module, Node, NodeId, Sub, Type, ValueId};
use crate::ops::{Affine, Op, OpDef};
use crate::rows::{Ends, Plans, Step};
use crate::schedule::saved_values;
use lightc_dsl::ast::DType;
use lightc_dsl::model::{Format, MemberRef, Storage};
use proc_macro2::{Ident, Literal, TokenStream, TokenTree};
use quote::{format_ident, quote};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// Emits the module of one function.
///
/// With `plans`, the nodes that they put in kernels are emitted as launches of these.
pub(crate) fn emit_function(module: &Module, id: FuncId, plans: Option<&Plans>) -> TokenStream {
    let tape = tape_takers(module);
    Emitter { module, id, function: module.function(id), tape, plans }.module()
}

pub(super) struct Emitter<'m> {
    pub(super) module: &'m Module,
    pub(super) id: FuncId,
    pub(super) function: &'m Function,
    /// Functions whose forward takes a tape of selections.
    tape: BTreeSet<FuncId>,
    /// The steps of all functions, where some are kernels.
    plans: Option<&'m Plans>,
}

/// Fields of the tensors struct of a sub: one per layer of a stack. A layer's field gives way to
/// a member that has its name.
pub(crate) fn sub_fields(function: &Function, sub: &Sub) -> Vec<(Ident, FuncId)> {
    if !sub.is_stack {
        return sub.callees.first().map(|callee| (ident(&sub.name), *callee)).into_iter().collect();
    }
    let members: Vec<Ident> = member_names(function).map(ident).collect();
    let layers = sub.callees.iter().enumerate();
    let field = |layer: usize| {
        let mut field = format_ident!("{}_{}", stem(&sub.name), layer);
        while members.contains(&field) {
            field = format_ident!("{field}_");
        }
        field
    };
    layers.map(|(layer, callee)| (field(layer), *callee)).collect()
}

/// The field of the scales of a quantized parameter.
fn scale_field(function: &Function, param: &str) -> Ident {
    let members: Vec<Ident> = member_names(function).map(ident).collect();
    let mut field = format_ident!("{}_scale", stem(param));
    while members.contains(&field) {
        field = format_ident!("{field}_");
    }
    field
}

fn member_names(function: &Function) -> impl Iterator<Item = &str> {
    let params = function.params.iter().map(|param| param.name.as_str());
    let states = function.states.iter().map(|state| state.name.as_str());
    let tables = function.tables.iter().map(|table| table.name.as_str());
    let subs = function.subs.iter().map(|sub| sub.name.as_str());
    params.chain(states).chain(tables).chain(subs)
}

/// Whether a function or anything below it has a state.
pub(crate) fn has_states(module: &Module, id: FuncId) -> bool {
    let function = module.function(id);
    let below = function.subs.iter().flat_map(|sub| &sub.callees);
    !function.states.is_empty() || below.into_iter().any(|callee| has_states(module, *callee))
}

/// A doc comment. Equations, which are indented, become `text` fences: rustdoc takes an indented
/// block for Rust and would compile it as a test.
fn doc_lines(text: &str) -> TokenStream {
    let mut lines: Vec<String> = Vec::new();
    let mut in_equation = false;
    for line in text.lines() {
        let equation = line.strip_prefix("    ");
        if in_equation && equation.is_none() && !line.trim().is_empty() {
            lines.push(" ```".to_owned());
            in_equation = false;
        }
        if equation.is_some() && !in_equation {
            lines.push(" ```text".to_owned());
            in_equation = true;
        }
        lines.push(format!(" {}", equation.unwrap_or(line)));
    }
    if in_equation {
        lines.push(" ```".to_owned());
    }
    quote!(#(#[doc = #lines])*)
}

impl Emitter<'_> {
    fn module(&self) -> TokenStream {
        let name = module_ident(&self.function.name);
        let doc =
            doc_lines(self.function.doc.as_deref().unwrap_or("A block without a description."));
        let tensors = self.tensors();
        let backwards: Vec<TokenStream> =
            self.backwards().map(|(id, backward)| self.backward(id, backward)).collect();
        let text: String = backwards.iter().map(ToString::to_string).collect();
        let forward = self.forward(&text);
        let saved = self.saved_struct(&text);
        let callees = self.callee_modules();
        let uses = if callees.is_empty() { quote!() } else { quote!(use super::{#(#callees),*};) };
        let bodies = format!("{text} {forward}");
        let accumulate = contains_word(&text, "accumulate").then(|| quote!(, accumulate));
        let ops = contains_word(&bodies, "ops").then(|| quote!(, ops));
        let empty = contains_word(&bodies, "Empty").then(|| quote!(Empty,));
        let reversible = contains_word(&bodies, "reversible").then(|| quote!(, reversible));
        let cuda = contains_word(&bodies, "cuda").then(|| quote!(, cuda));
        let kind = contains_word(&bodies, "Kind").then(|| quote!(, Kind));
        let integrators = self.integrators();
        quote! {
            #doc
            pub mod #name {
                #uses
                use lightc_runtime::bind::{#empty Sink, Source #accumulate};
                use lightc_runtime::{Result, Tensor #cuda #kind #ops #reversible};
                #(#integrators)*
                #tensors
                #saved
                #forward
                #(#backwards)*
            }
        }
    }

    fn callee_modules(&self) -> Vec<Ident> {
        let mut names: Vec<Ident> = self
            .function
            .subs
            .iter()
            .flat_map(|sub| &sub.callees)
            .map(|callee| module_ident(&self.module.function(*callee).name))
            .collect();
        names.sort();
        names.dedup();
        names
    }

    fn backwards(&self) -> impl Iterator<Item = (BackwardId, &Backward)> {
        let all = (0u32..).map(BackwardId).zip(&self.module.backward);
        all.filter(|(_, backward)| backward.of == self.id)
    }

    /// The struct of the block's tensors, generic in what stands for a tensor.
    fn tensors(&self) -> TokenStream {
        let mut fields = Vec::new();
        let mut build = Vec::new();
        let mut take = Vec::new();
        for state in &self.function.states {
            let field = ident(&state.name);
            let doc = format!(" State {}, starts at {:?}.", state.ty, state.start);
            fields.push(quote!(#[doc = #doc] pub #field: T));
            build.push(quote!(#field: source.state()?));
            take.push(quote!(sink.state(self.#field);));
        }
        for table in &self.function.tables {
            let field = ident(&table.name);
            let doc = format!(" Table {} from {}.", table.ty, table.from);
            fields.push(quote!(#[doc = #doc] pub #field: T));
            build.push(quote!(#field: source.table()?));
            take.push(quote!(sink.table(self.#field);));
        }
        for member in &self.function.order {
            match member {
                MemberRef::Param(index) => {
                    let Some(param) = self.function.params.get(*index) else { continue };
                    let field = ident(&param.name);
                    let init = crate::ir::text::init_text(&param.init);
                    let storage = match &param.storage {
                        Storage::Frozen(reason) => format!("frozen: {reason}"),
                        storage => crate::ir::text::storage_text(storage),
                    };
                    let doc = format!(" Parameter {}, {init}, {storage}.", param.ty);
                    fields.push(quote!(#[doc = #doc] pub #field: T));
                    build.push(quote!(#field: source.param()?));
                    take.push(quote!(sink.param(self.#field);));
                    if let Storage::Quantized(_) = param.storage {
                        let scale = scale_field(self.function, &param.name);
                        let doc = format!(" Scale of each row of `{}`.", param.name);
                        fields.push(quote!(#[doc = #doc] pub #scale: T));
                        build.push(quote!(#scale: source.param()?));
                        take.push(quote!(sink.param(self.#scale);));
                    }
                }
                MemberRef::Sub(index) => {
                    let Some(sub) = self.function.subs.get(*index) else { continue };
                    for (field, callee) in sub_fields(self.function, sub) {
                        let callee = module_ident(&self.module.function(callee).name);
                        let doc = format!(" `{}`", sub.name);
                        fields.push(quote!(#[doc = #doc] pub #field: #callee::Tensors<T>));
                        build.push(quote!(#field: #callee::Tensors::build(source)?));
                        take.push(quote!(self.#field.take(sink);));
                    }
                }
            }
        }
        if fields.is_empty() {
            // A type parameter must be used.
            let mark = quote!(std::marker::PhantomData);
            fields.push(quote!(#[doc = " The block has no tensors."] pub none: #mark<T>));
            build.push(quote!(none: #mark));
        }
        let source = used(&quote!(#(#build)*), "source");
        let sink = used(&quote!(#(#take)*), "sink");
        quote! {
            /// The tensors of the block: itself, gradients or next states, by what `T` is.
            pub struct Tensors<T> { #(#fields),* }

            impl<T> Tensors<T> {
                /// Takes every tensor from a source, in canonical order.
                pub fn build(#source: &mut impl Source<T>) -> Result<Self> {
                    Ok(Tensors { #(#build),* })
                }

                /// Gives every tensor to a sink, in canonical order.
                pub fn take(self, #sink: &mut impl Sink<T>) { #(#take)* }
            }
        }
    }

    pub(super) fn takes_tape(&self, id: FuncId) -> bool {
        self.tape.contains(&id)
    }

    /// The kernels that end a function with the step of a state; its forward then takes an end.
    pub(super) fn ends(&self, id: FuncId) -> Option<&Ends> {
        self.plans?.ends.get(id.0 as usize)?.as_ref()
    }

    /// The argument with which a function that takes an end gives its result.
    pub(super) fn result_end(&self, callee: FuncId) -> Option<TokenStream> {
        self.ends(callee).map(|_| quote!(&mut reversible::End::result(),))
    }

    /// Tells calls of one sub apart: nothing for the first.
    pub(super) fn call_suffix(&self, id: NodeId, node: &Node) -> String {
        let calls = self.function.nodes().filter(|(_, other)| other.op == node.op);
        let number = calls.take_while(|(other, _)| *other != id).count();
        if number == 0 { String::new() } else { format!("_{}", number + 1) }
    }

    /// Fields of `Saved` for calls: one per call node and layer whose saved values are read.
    pub(super) fn call_fields(&self, id: NodeId, node: &Node) -> Vec<(Ident, FuncId)> {
        let sub = match &node.op {
            Op::Call(op) => op.sub,
            Op::Stack(op) => op.sub,
            _ => return Vec::new(),
        };
        let Some(sub) = self.function.subs.get(sub) else { return Vec::new() };
        let fields = sub_fields(self.function, sub);
        let suffix = self.call_suffix(id, node);
        fields.into_iter().map(|(f, callee)| (format_ident!("{f}_call{suffix}"), callee)).collect()
    }

    /// Size names that a backward reads.
    fn saved_sizes(&self, backward_text: &str) -> Vec<String> {
        let bound = self.function.bound_symbols().into_iter();
        let read = |name: &String| {
            let variable = size_variable(name).to_string();
            backward_text.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|w| w == variable)
        };
        bound.map(|(name, _, _)| name).filter(read).collect()
    }

    pub(super) fn is_called_backward(&self, id: NodeId) -> bool {
        self.backwards().any(|(_, backward)| {
            backward.body.nodes.iter().any(|node| match &node.op {
                Op::CallBackward(op) => op.call == id,
                Op::StackBackward(op) => op.call == id,
                _ => false,
            })
        })
    }

    fn saved_struct(&self, backward_text: &str) -> TokenStream {
        let names = value_names(self.function);
        let values = saved_values(self.module, self.id).into_iter().map(|value| {
            let field = &names[&value];
            let doc = format!(" {}", self.function.ty(value));
            quote!(#[doc = #doc] pub #field: Tensor)
        });
        let sizes = self.saved_sizes(backward_text).into_iter().map(|name| {
            let field = size_variable(&name);
            let doc = format!(" Length of axis `{name}`.");
            quote!(#[doc = #doc] pub #field: i64)
        });
        let mut calls = Vec::new();
        for (id, node) in self.function.nodes() {
            if !self.is_called_backward(id) {
                continue;
            }
            let run = self.run_ident(id, node);
            for (field, callee) in self.call_fields(id, node) {
                let callee = module_ident(&self.module.function(callee).name);
                calls.push(match &run {
                    Some(_) => quote! {
                        #[doc = " What the layer keeps where everything is stored."]
                        pub #field: Option<#callee::Saved>
                    },
                    None => quote!(#[doc = " What the call keeps."] pub #field: #callee::Saved),
                });
            }
            calls.extend(run.map(|run| {
                quote!(#[doc = " What the states are had back from."] pub #run: reversible::Kept)
            }));
        }
        quote! {
            /// What the forward keeps for the backward.
            pub struct Saved { #(#values,)* #(#sizes,)* #(#calls,)* }
        }
    }

    fn forward(&self, backward_text: &str) -> TokenStream {
        let names = value_names(self.function);
        let mut locals = Locals::new(self.function, &names);
        let mut statements = Vec::new();
        let kept = saved_values(self.module, self.id);
        let updated = self.function.updates.iter().map(|(_, value)| *value);
        let returned = self.function.outputs.iter().map(|output| output.value);
        locals.handed_over(updated.chain(kept.iter().copied()).chain(returned));
        let plan = self.plans.and_then(|plans| plans.forward.get(self.id.0 as usize));
        let ends = self.ends(self.id);
        let steps = steps(self.function, plan);
        for (position, step) in steps.iter().enumerate() {
            statements.push(match step {
                Step::Node(id) => self.forward_node(*id, self.function.node(*id), &mut locals),
                Step::Kernel(kernel) => match ends.filter(|ends| ends.entry == kernel.entry) {
                    Some(ends) => ended_kernel(kernel, ends, &locals),
                    None => row_kernel(kernel, &locals),
                },
            });
            statements.extend(locals.dropped(&steps, position));
        }
        for (index, value) in &self.function.updates {
            let Some(state) = self.function.states.get(*index) else { continue };
            let (field, value) = (ident(&state.name), locals.owned(*value));
            statements.push(quote!(next.#field = Some(#value);));
        }
        let mut saved = Vec::new();
        for value in kept {
            let (field, value) = (&names[&value], locals.owned(value));
            saved.push(quote!(#field: #value));
        }
        let saved_sizes = self.saved_sizes(backward_text);
        let sizes = saved_sizes.iter().map(|name| size_variable(name));
        let mut calls = Vec::new();
        for (id, node) in self.function.nodes() {
            if self.is_called_backward(id) {
                calls.extend(self.call_fields(id, node).into_iter().map(|(field, _)| field));
                calls.extend(self.run_ident(id, node));
            }
        }
        let mut outputs = Vec::new();
        for output in &self.function.outputs {
            outputs.push(locals.owned(output.value));
        }
        let results = self.function.outputs.iter().map(|_| quote!(Tensor));
        let next =
            has_states(self.module, self.id).then(|| quote!(next: &mut Tensors<Option<Tensor>>,));
        let tape = self.takes_tape(self.id).then(|| quote!(tape: &mut reversible::Tape,));
        let end = ends.map(|_| quote!(end: &mut reversible::End,));
        let sizes_used = self.size_bindings(&names, &quote!(#(#statements)*), &saved_sizes);
        let body = quote! {
            #(#sizes_used)*
            #(#statements)*
            let saved = Saved { #(#saved,)* #(#sizes,)* #(#calls,)* };
            Ok((#(#outputs,)* saved))
        };
        let like = used(&body, "like");
        let weights = used(&body, "weights");
        let inputs = self.function.inputs().map(|(_, value)| {
            let name = used(&body, &names[&value].to_string());
            quote!(#name: &Tensor)
        });
        let doc = self.forward_doc();
        quote! {
            #doc
            pub fn forward(
                #like: &Tensor,
                #weights: &Tensors<&Tensor>,
                #next
                #tape
                #end
                #(#inputs),*
            ) -> Result<(#(#results,)* Saved)> {
                #body
            }
        }
    }

    fn forward_doc(&self) -> TokenStream {
        let inputs: Vec<String> = self
            .function
            .inputs()
            .map(|(name, value)| format!("`{name}` {}", self.function.ty(value)))
            .collect();
        let outputs: Vec<String> = self
            .function
            .outputs
            .iter()
            .map(|o| match &o.name {
                Some(name) => format!("`{name}` {}", self.function.ty(o.value)),
                None => self.function.ty(o.value).to_string(),
            })
            .collect();
        doc_lines(&format!("{} -> {}.", inputs.join(", "), outputs.join(", ")))
    }

    /// The length of every axis whose size name the body uses or the backward needs.
    fn size_bindings(
        &self,
        names: &BTreeMap<ValueId, Ident>,
        body: &TokenStream,
        saved: &[String],
    ) -> Vec<TokenStream> {
        let text = body.to_string();
        let mut statements = Vec::new();
        for (symbol, value, position) in self.function.bound_symbols() {
            let used = contains_word(&text, &size_variable(&symbol).to_string());
            if !used && !saved.contains(&symbol) {
                continue;
            }
            let (variable, input) = (size_variable(&symbol), &names[&value]);
            let position = Literal::i64_unsuffixed(position as i64);
            statements.push(quote!(let #variable = ops::length(#input, #position)?;));
        }
        statements
    }

    fn forward_node(&self, id: NodeId, node: &Node, locals: &mut Locals<'_>) -> TokenStream {
        match &node.op {
            Op::Input(_) => quote!(),
            Op::ParamRef(op) => self.param(op.index, node, locals),
            Op::StateRef(op) => {
                locals.set_member(node, self.function.states.get(op.index).map(|s| &s.name))
            }
            Op::TableRef(op) => {
                locals.set_member(node, self.function.tables.get(op.index).map(|t| &t.name))
            }
            Op::Call(op) => {
                let saved = self.call_fields(id, node);
                let Some(sub) = self.function.subs.get(op.sub) else { return quote!() };
                let fields = sub_fields(self.function, sub);
                let (Some((saved, _)), Some((field, callee))) = (saved.first(), fields.first())
                else {
                    return quote!();
                };
                let results: Vec<TokenStream> =
                    node.results.iter().map(|r| locals.binding(*r)).collect();
                let args: Vec<TokenStream> = node.args.iter().map(|a| locals.by_ref(*a)).collect();
                self.call_statement(id, saved, field, *callee, &results, &args)
            }
            Op::Stack(op) => self.stack_forward(id, node, op, locals),
            op => {
                let replayed = self.takes_tape(self.id) && op.def().is_replayed();
                compute(op, self.function, node, locals, replayed)
            }
        }
    }

    /// A parameter is read where it is used. A quantized one is made of its codes and scales there, and is
    /// gone with the function, unless all that read it take the codes themselves.
    fn param(&self, index: usize, node: &Node, locals: &mut Locals<'_>) -> TokenStream {
        let param = self.function.params.get(index);
        let quantized = param.and_then(|param| match param.storage {
            Storage::Quantized(format) => Some((param, format)),
            _ => None,
        });
        let (Some((param, format)), Some(result)) = (quantized, node.results.first()) else {
            return locals.set_member(node, param.map(|p| &p.name));
        };
        let (codes, scale) = (ident(&param.name), scale_field(self.function, &param.name));
        if format == Format::Int8 && is_read_as_codes(locals.function, *result) {
            let _ = locals.scales.insert(*result, quote!(weights.#scale));
            return locals.set_member(node, Some(&param.name));
        }
        let read = match format {
            Format::Int8 => quote!(dequantize),
            Format::Quantile8 => quote!(dequantize_quantiles),
        };
        let name = locals.binding(*result);
        quote!(let #name = ops::#read(weights.#codes, weights.#scale, like)?;)
    }

    pub(super) fn call_statement(
        &self,
        id: NodeId,
        saved: &Ident,
        field: &Ident,
        callee: FuncId,
        results: &[TokenStream],
        args: &[TokenStream],
    ) -> TokenStream {
        let module = module_ident(&self.module.function(callee).name);
        let next = has_states(self.module, callee).then(|| quote!(&mut next.#field,));
        let tape = self.takes_tape(callee).then(|| match self.takes_tape(self.id) {
            true => quote!(tape,),
            false => quote!(&mut reversible::Tape::off(),),
        });
        let end = self.result_end(callee);
        let saved = if self.is_called_backward(id) { quote!(#saved) } else { quote!(_) };
        quote! {
            let (#(#results,)* #saved) =
                #module::forward(like, &weights.#field, #next #tape #end #(#args),*)?;
        }
    }

    fn backward(&self, id: BackwardId, backward: &Backward) -> TokenStream {
        let body = &backward.body;
        let names = value_names(body);
        let forward_names = value_names(self.function);
        let mut locals = Locals::new(body, &names);
        let mut statements = Vec::new();
        let added = backward.grads.iter().map(|(_, value)| *value);
        locals.handed_over(added.chain(body.outputs.iter().map(|output| output.value)));
        let plan = self.plans.and_then(|plans| plans.backward.get(id.0 as usize));
        let steps = steps(body, plan);
        for (position, step) in steps.iter().enumerate() {
            statements.push(match step {
                Step::Node(id) => self.backward_node(body.node(*id), &forward_names, &mut locals),
                Step::Kernel(kernel) => row_kernel(kernel, &locals),
            });
            statements.extend(locals.dropped(&steps, position));
        }
        for (index, value) in &backward.grads {
            let Some(param) = self.function.params.get(*index) else { continue };
            let (field, value) = (ident(&param.name), locals.owned(*value));
            statements.push(quote!(accumulate(&mut grads.#field, #value)?;));
        }
        let mut outputs = Vec::new();
        for output in &body.outputs {
            outputs.push(locals.owned(output.value));
        }
        let (result_type, result) = match outputs.as_slice() {
            [one] => (quote!(Tensor), quote!(#one)),
            many => {
                let types = many.iter().map(|_| quote!(Tensor));
                (quote!((#(#types),*)), quote!((#(#many),*)))
            }
        };
        let computed = quote!(#(#statements)* Ok(#result));
        let text = computed.to_string();
        let sizes = self.function.bound_symbols().into_iter().filter_map(|(symbol, _, _)| {
            let variable = size_variable(&symbol);
            contains_word(&text, &variable.to_string())
                .then(|| quote!(let #variable = saved.#variable;))
        });
        let sizes: Vec<TokenStream> = sizes.collect();
        let (like, weights) = (used(&computed, "like"), used(&computed, "weights"));
        let grads = used(&computed, "grads");
        let inputs = body.inputs().map(|(_, value)| {
            let name = used(&computed, &names[&value].to_string());
            quote!(#name: &Tensor)
        });
        let saved =
            if sizes.is_empty() { used(&computed, "saved") } else { format_ident!("saved") };
        let name = backward_ident(backward, self.function);
        let doc = doc_lines(&self.backward_doc(backward));
        quote! {
            #doc
            pub fn #name(
                #like: &Tensor,
                #weights: &Tensors<&Tensor>,
                #saved: &Saved,
                #grads: &mut Tensors<Option<Tensor>>,
                #(#inputs),*
            ) -> Result<#result_type> {
                #(#sizes)*
                #computed
            }
        }
    }

    fn backward_doc(&self, backward: &Backward) -> String {
        let names = |function: &Function, values: Vec<(String, ValueId)>| {
            let parts: Vec<String> = values
                .into_iter()
                .map(|(name, value)| format!("`{name}` {}", function.ty(value)))
                .collect();
            if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") }
        };
        let body = &backward.body;
        let takes = body.inputs().map(|(name, value)| (name.to_owned(), value)).collect();
        let gives = body
            .outputs
            .iter()
            .map(|output| (output.name.clone().unwrap_or_default(), output.value))
            .collect();
        format!(
            "Takes {}, gives {}; adds parameter gradients to `grads`.",
            names(body, takes),
            names(body, gives)
        )
    }

    fn backward_node(
        &self,
        node: &Node,
        forward_names: &BTreeMap<ValueId, Ident>,
        locals: &mut Locals<'_>,
    ) -> TokenStream {
        match &node.op {
            Op::Input(_) => quote!(),
            Op::Saved(op) => {
                let field = &forward_names[&op.value];
                locals.set(node, quote!(&saved.#field), quote!(saved.#field.shallow_clone()));
                quote!()
            }
            Op::ParamRef(op) => self.param(op.index, node, locals),
            Op::StateRef(op) => {
                locals.set_member(node, self.function.states.get(op.index).map(|s| &s.name))
            }
            Op::TableRef(op) => {
                locals.set_member(node, self.function.tables.get(op.index).map(|t| &t.name))
            }
            Op::CallBackward(op) => self.call_backward(node, op.call, &[op.backward], locals),
            Op::StackBackward(op) => self.stack_backward(node, op, locals),
            op => compute(op, locals.function, node, locals, false),
        }
    }

    /// The backward of a call or, last layer first, of a stack.
    pub(super) fn call_backward(
        &self,
        node: &Node,
        call: NodeId,
        layers: &[BackwardId],
        locals: &mut Locals<'_>,
    ) -> TokenStream {
        let forward_node = self.function.node(call);
        let (sub, is_stack) = match &forward_node.op {
            Op::Call(op) => (op.sub, false),
            Op::Stack(op) => (op.sub, true),
            _ => return quote!(),
        };
        let Some(sub) = self.function.subs.get(sub) else { return quote!() };
        let results: Vec<Ident> = node.results.iter().map(|r| locals.name(*r)).collect();
        let bindings: Vec<TokenStream> = node.results.iter().map(|r| locals.binding(*r)).collect();
        let mut args: Vec<TokenStream> = node.args.iter().map(|a| locals.by_ref(*a)).collect();
        let fields = sub_fields(self.function, sub);
        let saved = self.call_fields(call, forward_node);
        let mut statements = Vec::new();
        let mut share = None;
        if is_stack && let Some(total) = node.args.get(1) {
            args.truncate(1);
            statements.push(self.penalty_share(layers, &locals.by_ref(*total)));
            share = Some(quote!(&penalty_share));
        }
        if let (true, Some(arg), Some(result)) = (layers.is_empty(), args.first(), bindings.first())
        {
            statements.push(quote!(let #result = Tensor::shallow_clone(#arg);));
        }
        for (position, (layer, ((field, callee), (saved, _)))) in
            layers.iter().zip(fields.iter().zip(&saved)).enumerate().rev()
        {
            let callee_function = self.module.function(*callee);
            let module = module_ident(&callee_function.name);
            let Some(backward) = self.module.backward.get(layer.0 as usize) else { continue };
            let name = backward_ident(backward, callee_function);
            if self.is_penalty_seeded(*layer) {
                args.extend(share.clone());
            }
            let call = quote! {
                #module::#name(like, &weights.#field, &saved.#saved, &mut grads.#field, #(#args),*)?
            };
            // The layer before reads what this one gives, even where nothing reads the last.
            let named: Vec<TokenStream> = results.iter().map(|r| quote!(#r)).collect();
            statements.push(match if position == 0 { &bindings } else { &named }.as_slice() {
                [] => quote!(#call;),
                [one] => quote!(let #one = #call;),
                many => quote!(let (#(#many),*) = #call;),
            });
            args = results.iter().map(|r| quote!(&#r)).collect();
        }
        quote!(#(#statements)*)
    }
}

/// The expression of an op on 32-bit numbers.
pub(super) fn scalar(op: &impl OpDef, args: &[TokenStream]) -> TokenStream {
    let number = Type::scalar(DType::F32);
    let arg_types: Vec<&Type> = args.iter().map(|_| &number).collect();
    op.emit_cpu(&EmitCall { args, arg_types: &arg_types, result_types: &[&number], scales: &[] })
}

pub(super) fn share_of(total: &Ident, n: usize) -> TokenStream {
    scalar(&Affine { mul: 1.0 / n as f64, add: 0.0 }, &[quote!(&#total)])
}

/// `backward`, or `backward_loss` where only some outputs have a cotangent.
pub(super) fn backward_ident(backward: &Backward, forward: &Function) -> Ident {
    let suffix = backward.body.name.strip_prefix(&format!("{}.", forward.name));
    ident(suffix.unwrap_or("backward"))
}

/// The backward function's name as other emitted code calls it.
pub(crate) fn entry_backward(module: &Module, id: BackwardId) -> Option<Ident> {
    let backward = module.backward.get(id.0 as usize)?;
    Some(backward_ident(backward, module.function(backward.of)))
}

fn contains_word(text: &str, word: &str) -> bool {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|w| w == word)
}

/// A parameter name, with an underscore in front where the body does not use it.
fn used(body: &TokenStream, name: &str) -> Ident {
    if contains_word(&body.to_string(), name) {
        format_ident!("{name}")
    } else {
        format_ident!("_{name}")
    }
}

/// An expression less the `?` that it ends in.
fn without_question(expression: TokenStream) -> TokenStream {
    let mut tokens: Vec<TokenTree> = expression.into_iter().collect();
    match tokens.pop() {
        Some(TokenTree::Punct(mark)) if mark.as_char() == '?' => tokens.into_iter().collect(),
        last => {
            tokens.extend(last);
            let value: TokenStream = tokens.into_iter().collect();
            quote!(Ok(#value))
        }
    }
}

/// Whether everything that reads a value can take it as codes.
fn is_read_as_codes(function: &Function, value: ValueId) -> bool {
    let readers = function.nodes.iter().flat_map(|node| {
        let args = node.args.iter().enumerate();
        args.filter(|(_, arg)| **arg == value).map(|(index, _)| node.op.def().takes_codes(index))
    });
    readers.fold(None, |all, takes| Some(all.unwrap_or(true) && takes)).unwrap_or(false)
}

/// The steps of a function: those of its plan, or every node by itself.
fn steps<'p>(function: &Function, plan: Option<&'p Vec<Step>>) -> Cow<'p, [Step]> {
    match plan {
        Some(steps) => Cow::Borrowed(steps),
        None => Cow::Owned(function.nodes().map(|(id, _)| Step::Node(id)).collect()),
    }
}

/// Values of less than so many elements are not worth a statement that drops them.
const SMALL: i64 = 1 << 16;

/// The statement of an op that computes.
pub(super) fn compute(
    op: &Op,
    function: &Function,
    node: &Node,
    locals: &Locals<'_>,
    replayed: bool,
) -> TokenStream {
    let args: Vec<TokenStream> = node.args.iter().map(|arg| locals.by_ref(*arg)).collect();
    let arg_types: Vec<&Type> = node.args.iter().map(|arg| function.ty(*arg)).collect();
    let result_types: Vec<&Type> = node.results.iter().map(|r| function.ty(*r)).collect();
    let scales: Vec<Option<TokenStream>> =
        node.args.iter().map(|arg| locals.scales.get(arg).cloned()).collect();
    let call = EmitCall {
        args: &args,
        arg_types: &arg_types,
        result_types: &result_types,
        scales: &scales,
    };
    let mut expression = op.def().emit_cpu(&call);
    if replayed {
        let fallible = without_question(expression);
        let keep = if node.results.len() == 1 { quote!(keep) } else { quote!(keep_pair) };
        expression = quote!(tape.#keep(|| #fallible)?);
    }
    let results: Vec<TokenStream> = node.results.iter().map(|r| locals.binding(*r)).collect();
    match results.as_slice() {
        [one] => quote!(let #one = #expression;),
        many => quote!(let (#(#many),*) = #expression;),
    }
}

/// How the values of a function are written in Rust.
pub(super) struct Locals<'a> {
    function: &'a Function,
    names: &'a BTreeMap<ValueId, Ident>,
    /// Values that are not locals: by reference, and owned.
    others: BTreeMap<ValueId, (TokenStream, TokenStream)>,
    /// How often each local is still handed over at the end of the function: the last time it
    /// is moved.
    remaining: BTreeMap<ValueId, usize>,
    /// The scales of values that are handed over as 8-bit codes.
    scales: BTreeMap<ValueId, TokenStream>,
}

impl<'a> Locals<'a> {
    fn new(function: &'a Function, names: &'a BTreeMap<ValueId, Ident>) -> Self {
        let mut others = BTreeMap::new();
        for (_, value) in function.inputs() {
            let name = &names[&value];
            others.insert(value, (quote!(#name), quote!(#name.shallow_clone())));
        }
        Locals { function, names, others, remaining: BTreeMap::new(), scales: BTreeMap::new() }
    }

    /// The locals of a closure that takes some values as `args`.
    pub(super) fn inside(&self, inputs: &[ValueId], outputs: &[ValueId]) -> Locals<'a> {
        let mut locals = Locals::new(self.function, self.names);
        for (index, value) in inputs.iter().enumerate() {
            let index = Literal::usize_unsuffixed(index);
            let owned = quote!(args[#index].shallow_clone());
            locals.others.insert(*value, (quote!(args[#index]), owned));
        }
        locals.handed_over(outputs.iter().copied());
        locals
    }

    pub(super) fn function(&self) -> &'a Function {
        self.function
    }

    pub(super) fn name(&self, value: ValueId) -> Ident {
        self.names[&value].clone()
    }

    /// The name on the left of `let`; a result that nothing reads is not bound.
    pub(super) fn binding(&self, value: ValueId) -> TokenStream {
        let read = self.function.nodes.iter().any(|node| node.args.contains(&value));
        if !read && !self.remaining.contains_key(&value) {
            return quote!(_);
        }
        let name = self.name(value);
        quote!(#name)
    }

    fn set(&mut self, node: &Node, by_ref: TokenStream, owned: TokenStream) {
        if let Some(result) = node.results.first() {
            self.others.insert(*result, (by_ref, owned));
        }
    }

    /// A parameter, state or table: read where it is used.
    fn set_member(&mut self, node: &Node, name: Option<&String>) -> TokenStream {
        if let Some(name) = name {
            let field = ident(name);
            self.set(node, quote!(weights.#field), quote!(weights.#field.shallow_clone()));
        }
        quote!()
    }

    pub(super) fn by_ref(&self, value: ValueId) -> TokenStream {
        if let Some((by_ref, _)) = self.others.get(&value) {
            return by_ref.clone();
        }
        let name = &self.names[&value];
        quote!(&#name)
    }

    /// A statement that drops the locals whose last use is a step, so that their memory serves what comes
    /// after. What is small, and what the end of the function gives away, stays.
    fn dropped(&self, steps: &[Step], position: usize) -> Option<TokenStream> {
        let step = steps.get(position).filter(|_| position + 1 < steps.len())?;
        let used = step.reads(self.function).into_iter().chain(step.makes(self.function));
        let later: BTreeSet<ValueId> =
            steps.iter().skip(position + 1).flat_map(|step| step.reads(self.function)).collect();
        let is_local = |value: &ValueId| {
            let is_bound = !self.others.contains_key(value) && !self.binding(*value).is_empty();
            is_bound && self.binding(*value).to_string() != "_"
        };
        let is_large = |value: &ValueId| {
            let count = self.function.ty(*value).count();
            count.is_none_or(|count| count.as_constant().is_none_or(|n| n >= SMALL))
        };
        let done: BTreeSet<ValueId> = used
            .filter(|value| !later.contains(value) && !self.remaining.contains_key(value))
            .filter(|value| is_local(value) && is_large(value))
            .collect();
        let names = done.into_iter().map(|value| self.name(value));
        let drops: Vec<TokenStream> = names.map(|name| quote!(drop(#name);)).collect();
        (!drops.is_empty()).then(|| quote!(#(#drops)*))
    }

    /// Announces the values that the end of the function gives away, each as often as it does.
    fn handed_over(&mut self, values: impl Iterator<Item = ValueId>) {
        for value in values {
            *self.remaining.entry(value).or_default() += 1;
        }
    }

    /// A value as an owned tensor: a move the last time, else another handle on it.
    pub(super) fn owned(&mut self, value: ValueId) -> TokenStream {
        if let Some((_, owned)) = self.others.get(&value) {
            return owned.clone();
        }
        let name = &self.names[&value];
        let remaining = self.remaining.entry(value).or_default();
        *remaining = remaining.saturating_sub(1);
        if *remaining == 0 { quote!(#name) } else { quote!(#name.shallow_clone()) }
    }
}
