//! Small modules that apply one op each, in its interesting variants.
//!
//! The build script emits them as Rust; the test reads them as IR text and compares both. Every
//! size is a name wherever the op allows it, so that one module serves all shapes.

mod experts;
mod list;
mod structure;

use lightc_codegen::autodiff::differentiate;
use lightc_codegen::ir::{Function, Module, Output, Param, Type, ValueId, text};
use lightc_codegen::ops::{Input, Op, ParamRef, Permute};
use lightc_codegen::rewrite;
use lightc_dsl::ast::DType;
use lightc_dsl::model::{Axis, InitLaw, MemberRef, Storage};
use lightc_dsl::size::Size;
use std::collections::BTreeMap;

/// How the elements of an input or a parameter are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(dead_code, reason = "the build script draws nothing")]
pub(crate) enum Draw {
    /// Standard normal.
    Normal,
    /// Normal with a deviation of 3.
    Wide,
    /// Normal, divided by the square root of the last axis: rows of length about 1.
    Row,
    /// Uniform on 0.5 .. 2.
    Positive,
    /// Uniform on -1 .. 0.
    Negative,
    /// Uniform on 0 .. 1.
    Unit,
    /// Uniform on -2 .. 12.
    Budget,
    /// Whole numbers -3 ..= 3, so that ties and kinks are met.
    Whole,
    /// 0 or 1.
    Truth,
    /// Whole numbers below the length of a size name.
    Below(&'static str),
    /// The same, or -1.
    BelowOrEmpty(&'static str),
    /// The same, or -100.
    BelowOrIgnored(&'static str),
}

/// What lengths a size name can have.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(dead_code, reason = "the build script draws nothing")]
pub(crate) enum Length {
    /// Any.
    Any,
    /// Even.
    Even,
    /// A power of two.
    Power,
    /// This or more.
    AtLeast(i64),
    /// This or less: what is summed over or iterated over stays short.
    AtMost(i64),
}

/// One module, and what it is run on.
#[allow(dead_code, reason = "the build script draws nothing")]
pub(crate) struct Case {
    /// A Rust name.
    pub(crate) name: String,
    /// Differentiated where it has a derivative.
    pub(crate) module: Module,
    /// By name of the input or parameter; others are normal.
    pub(crate) draws: BTreeMap<String, Draw>,
    /// By size name.
    pub(crate) lengths: BTreeMap<String, Length>,
    /// Whether the module is one op, whose errors do not grow.
    pub(crate) is_one_op: bool,
}

/// Every case.
pub(crate) fn all() -> Vec<Case> {
    let mut cases = Cases::default();
    list::pointwise(&mut cases);
    list::reductions(&mut cases);
    list::shapes(&mut cases);
    list::cuts_and_joints(&mut cases);
    list::sequences(&mut cases);
    list::attention(&mut cases);
    list::delta_rule(&mut cases);
    list::normalisation_and_loss(&mut cases);
    list::gathers(&mut cases);
    experts::all(&mut cases);
    structure::all(&mut cases);
    cases.0
}

/// The cases so far.
#[derive(Default)]
pub(crate) struct Cases(Vec<Case>);

impl Cases {
    /// One op as in IR text, such as `sum over=[t]`, on arguments of these types. Floating-point
    /// arguments are parameters that learn, others inputs; one more input binds each size name.
    /// An argument lies as its type says; what the op wants in another order is permuted first.
    ///
    /// An op with several learning arguments gives a second case, in which only one learns: its
    /// backward leaves things out.
    pub(crate) fn op(&mut self, op: &str, args: &[(&str, Draw)], lengths: &[(&str, Length)]) {
        let op = parse_op(op);
        let floats: Vec<usize> =
            (0..args.len()).filter(|i| parse_type(args[*i].0).is_float()).collect();
        self.one(&op, args, lengths, &floats);
        if floats.len() > 1 && has_derivative(&op) {
            let alone = floats[self.0.len() % floats.len()];
            self.one(&op, args, lengths, &[alone]);
        }
    }

    fn one(&mut self, op: &Op, args: &[(&str, Draw)], lengths: &[(&str, Length)], learn: &[usize]) {
        let types: Vec<Type> = args.iter().map(|(ty, _)| parse_type(ty)).collect();
        let mut builder = Builder::default();
        let lengths = builder.bind_sizes(op, &types, lengths);
        let values = types.iter().enumerate();
        let values: Vec<ValueId> =
            values.map(|(i, ty)| builder.argument(i, ty, learn.contains(&i))).collect();
        let module = builder.finish(op, values);
        let draws = args.iter().enumerate().map(|(i, (_, draw))| (format!("x{i}"), *draw));
        let name = format!("{}_{}", op.def().mnemonic(), self.0.len());
        self.0.push(Case { name, module, draws: draws.collect(), lengths, is_one_op: true });
    }

    /// A whole module as IR text; it is differentiated here.
    pub(crate) fn module(&mut self, name: &str, source: &str, draws: &[(&str, Draw)]) {
        self.rewritten(name, source, draws, |_| Ok(()));
    }

    /// The same, with a rewrite of what is differentiated.
    pub(crate) fn rewritten(
        &mut self,
        name: &str,
        source: &str,
        draws: &[(&str, Draw)],
        rewrite: fn(&mut Module) -> rewrite::Result<()>,
    ) {
        let mut module = text::parse(source).unwrap_or_else(|e| panic!("{name}: {e}"));
        let _ = differentiate(&mut module, "loss").unwrap_or_else(|e| panic!("{name}: {e:?}"));
        rewrite(&mut module).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let draws = draws.iter().map(|(name, draw)| ((*name).to_owned(), *draw)).collect();
        let mut lengths = BTreeMap::new();
        for (symbol, _, _) in module.entry_function().bound_symbols() {
            let _ = lengths.insert(symbol, Length::Any);
        }
        let name = name.to_owned();
        self.0.push(Case { name, module, draws, lengths, is_one_op: false });
    }
}

/// Derivatives have none themselves, and what is not a number of any precision neither.
fn has_derivative(op: &Op) -> bool {
    !op.def().mnemonic().ends_with("_grad")
}

#[derive(Default)]
struct Builder {
    function: Function,
}

impl Builder {
    fn input(&mut self, name: &str, ty: Type) -> ValueId {
        let op = Input { name: name.to_owned() };
        self.function.push_typed(op.into(), vec![], vec![ty], None)[0]
    }

    /// One input per size name of the arguments, the results and the rules.
    fn bind_sizes(
        &mut self,
        op: &Op,
        args: &[Type],
        rules: &[(&str, Length)],
    ) -> BTreeMap<String, Length> {
        let mut lengths = BTreeMap::new();
        let results = results_of(op, args);
        let axes = args.iter().chain(&results).flat_map(|ty| &ty.axes);
        for symbol in axes.flat_map(|axis| axis.size.symbols()) {
            let _ = lengths.insert(symbol.to_owned(), Length::Any);
        }
        for (symbol, rule) in rules {
            let _ = lengths.insert((*symbol).to_owned(), *rule);
        }
        for symbol in lengths.keys() {
            let axis = Axis { name: symbol.clone(), size: Size::symbol(symbol) };
            let _ = self.input(&format!("length_{symbol}"), Type::new(DType::F32, vec![axis]));
        }
        lengths
    }

    fn argument(&mut self, index: usize, ty: &Type, learns: bool) -> ValueId {
        let name = format!("x{index}");
        if !ty.is_float() {
            return self.input(&name, ty.clone());
        }
        let index = self.function.params.len();
        let storage = if learns { Storage::Trained } else { Storage::Frozen("as a test".into()) };
        self.function.order.push(MemberRef::Param(index));
        self.function.params.push(Param {
            name,
            ty: ty.clone(),
            init: InitLaw::Zeros,
            storage,
            active: None,
            doc: None,
            span: None,
        });
        self.function.push_typed(ParamRef { index }.into(), vec![], vec![ty.clone()], None)[0]
    }

    fn finish(mut self, op: &Op, mut values: Vec<ValueId>) -> Module {
        let function = &mut self.function;
        let types: Vec<Type> = values.iter().map(|v| function.ty(*v).clone()).collect();
        let types: Vec<&Type> = types.iter().collect();
        for (i, value) in values.iter_mut().enumerate() {
            if let Some(order) = op.def().arg_order(i, &types)
                && order != function.ty(*value).names()
            {
                let permute = Permute { order };
                *value = function.push1(permute.into(), vec![*value], None).expect("an order");
            }
        }
        let results = function.push(op.clone(), values, None);
        let results = results.unwrap_or_else(|e| panic!("{op:?}: {}", e.message));
        let one = results.len() == 1;
        for (i, value) in results.iter().enumerate() {
            let name = if one { "loss".to_owned() } else { format!("y{i}") };
            function.outputs.push(Output { name: Some(name), value: *value });
        }
        let differentiable = one && has_derivative(op) && function.ty(results[0]).is_float();
        function.name = "Subject".into();
        let mut module =
            Module { name: "case".into(), functions: vec![self.function], ..Module::default() };
        if differentiable {
            let _ = differentiate(&mut module, "loss").unwrap_or_else(|e| panic!("{op:?}: {e:?}"));
        }
        module
    }
}

/// Types of the results on arguments in the order that the op wants.
fn results_of(op: &Op, args: &[Type]) -> Vec<Type> {
    let known: Vec<&Type> = args.iter().collect();
    let ordered: Vec<Type> = (0..args.len())
        .map(|i| match op.def().arg_order(i, &known) {
            Some(order) => Type::new(
                args[i].dtype,
                order.iter().filter_map(|name| args[i].axis(name).cloned()).collect(),
            ),
            None => args[i].clone(),
        })
        .collect();
    let ordered: Vec<&Type> = ordered.iter().collect();
    op.def().infer(&ordered).unwrap_or_else(|e| panic!("{op:?}: {}", e.message))
}

/// An op of its IR text: the text of a module with nothing but it.
fn parse_op(op: &str) -> Op {
    let source = format!("module m entry @F\n\nfunc @F {{\n  %0 = {op} () : f32[]\n  return\n}}\n");
    let module = text::parse(&source).unwrap_or_else(|e| panic!("{op}: {e}"));
    module.functions[0].nodes[0].op.clone()
}

/// A type of its IR text.
fn parse_type(ty: &str) -> Type {
    let source = format!(
        "module m entry @F\n\nfunc @F {{\n  param p: {ty} ~ zeros() trained\n  return\n}}\n"
    );
    let module = text::parse(&source).unwrap_or_else(|e| panic!("{ty}: {e}"));
    module.functions[0].params[0].ty.clone()
}
