//! Launches of generated row kernels, beside the libtorch calls that say what they compute.

use super::call::size_expression;
use super::function::{Locals, compute};
use crate::ir::{Module, NodeId, Type, ValueId};
use crate::rows::{Ends, Kernel, Plans, is_literal};
use lightc_dsl::ast::DType;
use lightc_dsl::size::Size;
use proc_macro2::{Ident, Literal, Span, TokenStream};
use quote::{format_ident, quote};
use std::collections::BTreeSet;

/// The name of a kernel's static.
fn static_ident(entry: &str) -> Ident {
    Ident::new(&entry.to_ascii_uppercase(), Span::call_site())
}

/// The file of the kernels of a module.
pub(super) fn kernels_name(module: &Module) -> String {
    format!("{}.cu", module.name)
}

/// `row_kernels`: the kernels of a stage, whose text lies beside the Rust file.
pub(super) fn kernel_table(module: &Module, plans: &Plans) -> TokenStream {
    let name = kernels_name(module);
    let finish = ["act", "f32"].map(|class| {
        let entry = format!("rows_finish_{class}");
        table_entry(&entry, "sums over rows", 1024, 0)
    });
    let kernels = plans.kernels(module).chain(plans.ended(module)).map(|(function, kernel)| {
        let origin = kernel.origin(function);
        table_entry(&kernel.entry, &origin, kernel.block(), kernel.shared_bytes())
    });
    quote! {
        /// Row kernels of the stage.
        pub mod row_kernels {
            use lightc_runtime::cuda::{Kernel, Module};

            /// Their text.
            pub static MODULE: Module = Module { name: #name, source: include_str!(#name) };
            #(#finish)*
            #(#kernels)*
        }
    }
}

fn table_entry(entry: &str, origin: &str, threads: i64, shared: i64) -> TokenStream {
    let ident = static_ident(entry);
    let doc = format!(" {origin}");
    let (threads, shared) = (Literal::i64_unsuffixed(threads), Literal::i64_unsuffixed(shared));
    quote! {
        #[doc = #doc]
        pub static #ident: Kernel = Kernel {
            module: &MODULE,
            entry: #entry,
            origin: #origin,
            threads: #threads,
            shared_bytes: #shared,
        };
    }
}

fn shape(ty: &Type) -> TokenStream {
    let sizes = ty.axes.iter().map(|axis| size_expression(&axis.size));
    quote!(&[#(#sizes),*])
}

/// A tensor for a result of a kernel.
fn empty(ty: &Type) -> TokenStream {
    let shape = shape(ty);
    let kind = match ty.dtype {
        DType::Act => quote!(like.kind()),
        DType::Bool => quote!(Kind::Bool),
        DType::Index => quote!(Kind::Int64),
        DType::F32 => quote!(Kind::Float),
    };
    quote!(cuda::empty(#shape, #kind, like)?)
}

/// The statement of a kernel.
pub(super) fn row_kernel(kernel: &Kernel, locals: &Locals<'_>) -> TokenStream {
    let outputs = outputs(kernel);
    let bindings: Vec<TokenStream> = outputs.iter().map(|value| locals.binding(*value)).collect();
    let made = written(kernel, &outputs, locals);
    quote!(let [#(#bindings),*] = #made;)
}

/// What a kernel writes.
fn outputs(kernel: &Kernel) -> Vec<ValueId> {
    kernel.writes.iter().copied().chain(kernel.sums.iter().map(|sum| sum.value)).collect()
}

/// The expression of a kernel's results.
fn written(kernel: &Kernel, outputs: &[ValueId], locals: &Locals<'_>) -> TokenStream {
    let inputs = kernel.group.inputs.iter().map(|value| locals.by_ref(*value));
    let entry = static_ident(&kernel.entry);
    let parts = Parts::of(kernel, locals);
    let (ready, made, args, sizes, finish, results) =
        (&parts.ready, &parts.made, &parts.args, &parts.sizes, &parts.finish, &parts.results);
    let (statements, wanted) = reference(kernel, outputs, locals);
    let tiles = Literal::i64_unsuffixed(kernel.spread().2);
    quote! {
        cuda::rows::results(cuda::either(
            &super::row_kernels::#entry,
            &[#(#inputs),*],
            like,
            &|args, like| {
                #ready
                #(#made)*
                cuda::launch(&super::row_kernels::#entry, spread.grid(#tiles)?, &[
                    #(#args,)*
                    #(#sizes),*
                ])?;
                #(#finish)*
                Ok(vec![#(#results),*])
            },
            &|args, like| {
                let _ = like;
                #statements
                Ok(vec![#(#wanted),*])
            },
        )?)?
    }
}

/// The statement of a kernel that can end in the step of a state: in place of the layer's result then
/// stands the value of the state that was made.
pub(super) fn ended_kernel(plain: &Kernel, ends: &Ends, locals: &Locals<'_>) -> TokenStream {
    let kernel = &ends.step;
    let Some(end) = kernel.end else { return row_kernel(plain, locals) };
    let all = outputs(plain);
    let bindings: Vec<TokenStream> = all.iter().map(|value| locals.binding(*value)).collect();
    let made = written(plain, &all, locals);
    let names = |values: &[ValueId]| -> Vec<Ident> {
        values.iter().map(|value| locals.name(*value)).collect()
    };
    let ended = [&[end.value][..], &outputs(kernel)].concat();
    let (all_names, ended_names) = (names(&all), names(&ended));
    let [step, inverse] = ends.kernels().map(|kernel| static_ident(&kernel.entry));
    let inputs: Vec<TokenStream> =
        kernel.group.inputs.iter().map(|value| locals.by_ref(*value)).collect();
    let n = Literal::usize_unsuffixed(inputs.len());
    let parts = Parts::of(kernel, locals);
    let (ready, made_others, args, sizes, finish, results) =
        (&parts.ready, &parts.made, &parts.args, &parts.sizes, &parts.finish, &parts.results);
    let tiles = Literal::i64_unsuffixed(kernel.spread().2);
    let (statements, wanted) = reference(kernel, &ended, locals);
    quote! {
        let [#(#bindings),*] = if end.is_result() {
            #made
        } else {
            let kernel =
                end.kernel(&super::row_kernels::#step, &super::row_kernels::#inverse);
            let made = cuda::either(
                kernel,
                &end.inputs(&[#(#inputs),*]),
                like,
                &|args, like| {
                    let _ = like;
                    #ready
                    #(#made_others)*
                    let room = end.room(&args[#n..])?;
                    let mut all = vec![#(#args),*];
                    all.extend(end.args(&args[#n..], &room)?);
                    all.extend([#(#sizes),*]);
                    cuda::launch(kernel, spread.grid(#tiles)?, &all)?;
                    #(#finish)*
                    Ok(room.with(vec![#(#results),*]))
                },
                &|args, like| {
                    let _ = like;
                    #statements
                    end.reference(&args[#n..], vec![#(#wanted),*], like)
                },
            )?;
            let [#(#ended_names),*] = cuda::rows::results(end.take(made)?)?;
            [#(#all_names),*]
        };
    }
}

fn count(size: &Size) -> TokenStream {
    let size = size_expression(size);
    quote!(cuda::rows::count(#size)?)
}

/// The pieces of a launch.
struct Parts {
    /// `spread` and dense inputs.
    ready: TokenStream,
    /// Tables and room for results.
    made: Vec<TokenStream>,
    /// Inputs, tables, and what is written.
    args: Vec<TokenStream>,
    /// The number of rows, of rows of a block, and sizes.
    sizes: Vec<TokenStream>,
    /// Sums over rows.
    finish: Vec<TokenStream>,
    results: Vec<TokenStream>,
}

impl Parts {
    fn of(kernel: &Kernel, locals: &Locals<'_>) -> Parts {
        let function = locals.function();
        let number = Literal::i64_unsuffixed;
        let (rows, spread) = (size_expression(&kernel.rows()), kernel.spread());
        let (groups, blocks) = (number(spread.0), number(spread.1));
        let mut made = Vec::new();
        let mut args: Vec<TokenStream> = Vec::new();
        for index in 0..kernel.group.inputs.len() {
            let index = Literal::usize_unsuffixed(index);
            args.push(quote!(cuda::Arg::Tensor(&args[#index])));
        }
        for (index, table) in kernel.angles.iter().enumerate() {
            let name = format_ident!("angles_{index}");
            let (steps, width, base) =
                (size_expression(&table.steps), number(table.width), table.base);
            made.push(quote!(let #name = ops::rotary_angles(#steps, #width, #base, like)?;));
            args.push(quote!(cuda::Arg::Tensor(&#name)));
        }
        let mut results = Vec::new();
        for value in &kernel.writes {
            let name = format_ident!("out_{}", value.0);
            let tensor = empty(function.ty(*value));
            made.push(quote!(let #name = #tensor;));
            args.push(quote!(cuda::Arg::Tensor(&#name)));
            results.push(quote!(#name));
        }
        let mut finish = Vec::new();
        for sum in &kernel.sums {
            let (part, name) =
                (format_ident!("part_{}", sum.value.0), format_ident!("sum_{}", sum.value.0));
            let (lines, columns) = (number(sum.parts * sum.outer), number(sum.columns));
            made.push(quote! {
                let #part = cuda::empty(&[spread.blocks * #lines, #columns], Kind::Float, like)?;
            });
            args.push(quote!(cuda::Arg::Tensor(&#part)));
            let ty = function.ty(sum.value);
            let tensor = empty(ty);
            let class = if ty.dtype == DType::Act { "act" } else { "f32" };
            let add = static_ident(&format!("rows_finish_{class}"));
            let scale = match &sum.mean_of {
                Some(size) => {
                    let size = size_expression(size);
                    quote!(1.0 / (#size) as f64)
                }
                None => quote!(1.0),
            };
            finish.push(quote! {
                let #name = #tensor;
                cuda::rows::finish(&super::row_kernels::#add, &#part, &#name, #scale)?;
            });
            results.push(quote!(#name));
        }
        let mut sizes =
            vec![quote!(cuda::rows::count(spread.rows)?), quote!(cuda::rows::count(spread.span)?)];
        sizes.extend(kernel.symbols.iter().map(|name| count(&Size::symbol(name))));
        let ready = quote! {
            let spread = cuda::rows::Spread::of(#rows, #groups, #blocks);
            let args = cuda::rows::dense(args)?;
        };
        Parts { ready, made, args, sizes, finish, results }
    }
}

/// The nodes of a kernel that its results are made of. Others are there for the kernel's own sake, such as a
/// value in a shape that only another kernel reads.
fn needed(kernel: &Kernel, outputs: &[ValueId], locals: &Locals<'_>) -> Vec<NodeId> {
    let function = locals.function();
    let mut read: BTreeSet<ValueId> = outputs.iter().copied().collect();
    let mut nodes = Vec::new();
    for id in kernel.group.nodes.iter().rev() {
        let node = function.node(*id);
        if node.results.iter().any(|result| read.contains(result)) {
            read.extend(&node.args);
            nodes.push(*id);
        }
    }
    let tables = kernel.group.tables.keys().filter(|table| read.contains(table));
    nodes.extend(tables.map(|table| function.value(*table).node));
    nodes.reverse();
    nodes
}

/// The calls that say what a kernel computes, and what they give.
fn reference(
    kernel: &Kernel,
    outputs: &[ValueId],
    locals: &Locals<'_>,
) -> (TokenStream, Vec<TokenStream>) {
    let function = locals.function();
    let mut inner = locals.inside(&kernel.group.inputs, outputs);
    let mut statements = Vec::new();
    let mut literals: Vec<ValueId> = Vec::new();
    for id in needed(kernel, outputs, locals) {
        let node = function.node(id);
        for arg in node.args.iter().filter(|arg| is_literal(function, **arg)) {
            if !literals.contains(arg) {
                literals.push(*arg);
                let literal = function.definition(*arg);
                statements.push(compute(&literal.op, function, literal, &inner, false));
            }
        }
        statements.push(compute(&node.op, function, node, &inner, false));
    }
    let results: Vec<TokenStream> = outputs.iter().map(|value| inner.owned(*value)).collect();
    (quote!(#(#statements)*), results)
}
