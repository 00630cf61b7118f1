//! The IR itself: its text form, its verifier after every pass, and the determinism of all that
//! is made from it.

#[path = "../cases/mod.rs"]
#[allow(dead_code, reason = "the modules alone are read here")]
mod cases;

use lightc_codegen::autodiff::differentiate;
use lightc_codegen::emit::{Origin, emit_stage};
use lightc_codegen::ir::prune::{prune_backward, prune_forward};
use lightc_codegen::ir::verify::verify;
use lightc_codegen::ir::{
    BackwardId, FuncId, Function, Module, Node, NodeId, Output, Type, Value, ValueId, text,
};
use lightc_codegen::lower::lower;
use lightc_codegen::ops::{CallBackward, Input, Mean, Op, ParamRef, Saved, UnaryFn};
use lightc_codegen::pipeline::{LOSS, compile, program};
use lightc_dsl::ast::DType;
use lightc_dsl::model::{Axis, MemberRef, StageModel, Storage};
use lightc_dsl::size::Size;
use lightc_dsl::source::Loader;
use lightc_tests::models;

/// Every stage in `models/`, and every block there that can stand alone.
fn every_model() -> Vec<(String, StageModel)> {
    let loader = models();
    let mut found = Vec::new();
    for name in source_names() {
        let (name, text) = loader.load("", &name).expect("a source");
        let (program, _, diags) = lightc_dsl::resolve::load_program(&name, &text, &loader);
        assert!(diags.is_empty(), "{name}: {diags:?}");
        for stage in program.stage_names().into_iter().filter(|s| program.is_buildable(s)) {
            let model = program.resolve_stage(stage).unwrap_or_else(|d| panic!("{stage}: {d:?}"));
            found.push((format!("{name} {stage}"), model));
        }
        for block in program.block_names().into_iter().filter(|b| program.is_standalone(b)) {
            let model = program.resolve_block(block).unwrap_or_else(|d| panic!("{block}: {d:?}"));
            found.push((format!("{name} {block}"), model));
        }
    }
    found
}

fn source_names() -> Vec<String> {
    let mut names = Vec::new();
    for folder in ["tiny", "lightning", "std"] {
        let path = lightc_tests::root().join("models").join(folder);
        for entry in std::fs::read_dir(path).expect("a folder of models") {
            let path = entry.expect("entry").path();
            // Pinned text lies in folders beside the sources.
            if path.extension().is_some_and(|e| e == "llm") {
                let file = path.file_name().expect("a name").to_string_lossy().into_owned();
                names.push(format!("models/{folder}/{file}"));
            }
        }
    }
    names.sort();
    assert!(names.len() >= 12, "{names:?}");
    names
}

/// The same without places in the source, which are not part of the text.
fn without_places(module: &Module) -> Module {
    let mut module = module.clone();
    let backward = module.backward.iter_mut().map(|backward| &mut backward.body);
    for function in module.functions.iter_mut().chain(backward) {
        function.span = None;
        function.params.iter_mut().for_each(|param| param.span = None);
        function.states.iter_mut().for_each(|state| state.span = None);
        function.tables.iter_mut().for_each(|table| table.span = None);
        function.subs.iter_mut().for_each(|sub| sub.span = None);
        function.nodes.iter_mut().for_each(|node| node.span = None);
    }
    module
}

fn check(what: &str, module: &Module) {
    assert_eq!(verify(module), vec![], "{what}");
    let printed = text::print(module);
    let parsed = text::parse(&printed).unwrap_or_else(|e| panic!("{what}: {e}\n{printed}"));
    assert_eq!(parsed, without_places(module), "{what}");
    assert_eq!(text::print(&parsed), printed, "{what}");
}

/// Prunes once more: what a pass has pruned has nothing left to drop.
fn pruned_again(module: &Module) -> Module {
    let functions = module.functions.iter().cloned().map(prune_forward).collect();
    let backward = module.backward.iter().cloned().map(prune_backward).collect();
    Module { functions, backward, ..module.clone() }
}

#[test]
fn every_stage_and_block_is_valid_after_every_pass_and_round_trips() {
    let all = every_model();
    assert!(all.len() >= 8, "{:?}", all.iter().map(|(what, _)| what).collect::<Vec<_>>());
    for (what, model) in all {
        let mut module = lower(&model).unwrap_or_else(|d| panic!("{what}: {d:?}"));
        check(&format!("{what}, lowered"), &module);
        assert_eq!(pruned_again(&module), module, "{what}");
        // A block's first output is what its derivative is taken of.
        let entry = module.entry.0 as usize;
        let outputs = &mut module.functions[entry].outputs;
        if outputs.iter().all(|output| output.name.as_deref() != Some(LOSS)) {
            outputs[0].name = Some(LOSS.to_owned());
        }
        let _ = differentiate(&mut module, LOSS).unwrap_or_else(|e| panic!("{what}: {e:?}"));
        check(&format!("{what}, differentiated"), &module);
        let again = pruned_again(&module);
        assert_eq!(again, module, "{what}");
        check(&format!("{what}, pruned"), &again);
    }
}

#[test]
fn small_modules_round_trip() {
    for case in cases::all() {
        check(&case.name, &case.module);
    }
}

#[test]
fn what_is_easy_to_lose_in_text_survives() {
    let mut module = broken_base();
    module.functions[0].doc = Some("\"quoted\" \\ back\n\ttab \u{7f} \u{2028} Größe \0 '".into());
    module.functions[1].params[0].storage = Storage::Frozen("a \\\" reason\n".into());
    module.functions[1].params[0].doc = Some(String::new());
    module.functions[0].states[0].start = -0.1;
    let source = "module m entry @F\n\nfunc @F {\n  param p: f32[a=2*b*b*c-3*b+1] \
                  ~ uniform(-inf, 1e-300) trained\n  \
                  %0 = input name=\"x\" () : act[b, c, n=0]\n  \
                  %1 = clamp low=-inf high=inf (%0) : act[b, c, n=0]\n  \
                  %2 = affine mul=1e300 add=-1e-7 (%1) : act[b, c, n=0]\n  \
                  %3 = const value=-0.0 dtype=f32 () : f32[]\n  \
                  return %2\n}\n";
    let parsed = text::parse(source).expect("the text parses");
    assert_eq!(text::print(&parsed), source.replace("a=2*b*b*c-3*b+1", &size_text()));
    check("odd numbers", &parsed);
    let printed = text::print(&module);
    let again = text::parse(&printed).unwrap_or_else(|e| panic!("{e}\n{printed}"));
    assert_eq!(again, without_places(&module));
}

/// How the size `2*b*b*c-3*b+1` prints.
fn size_text() -> String {
    let (b, c) = (Size::symbol("b"), Size::symbol("c"));
    let cubic = Size::constant(2).checked_mul(&b).and_then(|n| n.checked_mul(&b));
    let cubic = cubic.and_then(|n| n.checked_mul(&c)).expect("small");
    let linear = Size::constant(3).checked_mul(&b).expect("small");
    let size = cubic.checked_sub(&linear).and_then(|n| n.checked_add(&Size::constant(1)));
    format!("a={}", size.expect("small"))
}

// The verifier.

/// A differentiated module with something of everything.
fn broken_base() -> Module {
    let case = cases::all().into_iter().find(|case| case.name == "calls").expect("a case");
    assert_eq!(verify(&case.module), vec![]);
    case.module
}

/// Index of the first node of a kind.
fn node_of(function: &Function, mnemonic: &str) -> usize {
    let found = function.nodes.iter().position(|node| node.op.def().mnemonic() == mnemonic);
    found.unwrap_or_else(|| panic!("@{} has no `{mnemonic}`", function.name))
}

fn result_of(function: &Function, mnemonic: &str) -> ValueId {
    function.nodes[node_of(function, mnemonic)].results[0]
}

fn ty(function: &mut Function, value: ValueId) -> &mut Type {
    &mut function.values[value.0 as usize].ty
}

/// Breaks the module and expects a violation at a place that begins so, with a message that
/// contains this.
#[track_caller]
fn breaks(place: &str, says: &str, break_it: impl FnOnce(&mut Module)) {
    let mut module = broken_base();
    break_it(&mut module);
    let violations = verify(&module);
    assert!(
        violations.iter().any(|v| v.place.starts_with(place) && v.message.contains(says)),
        "no violation says `{says}` at {place}: {violations:#?}"
    );
}

/// Functions of [`broken_base`].
const INNER: usize = 0;
const LAYER: usize = 1;
const OTHER: usize = 2;
const ROOT: usize = 3;

fn backward_of(module: &Module, function: usize) -> usize {
    let found = module.backward.iter().position(|backward| backward.of.0 as usize == function);
    found.expect("a backward")
}

#[test]
fn a_broken_order_of_functions_is_found() {
    breaks("module", "entry 99 is not a function", |m| m.entry = FuncId(99));
    breaks("@Layer", "sub `me` calls a function that does not come before", |m| {
        let mut sub = m.functions[OTHER].subs[0].clone();
        sub.name = "me".into();
        sub.callees = vec![FuncId(LAYER as u32)];
        m.functions[LAYER].subs.push(sub);
        m.functions[LAYER].order.push(MemberRef::Sub(0));
    });
    breaks("@OtherLayer", "does not come before", |m| {
        m.functions[OTHER].subs[0].callees = vec![FuncId(77)];
    });
}

#[test]
fn a_name_given_twice_is_found() {
    breaks("module", "function `Layer` is defined twice", |m| {
        m.functions[OTHER].name = "Layer".into();
    });
    breaks("@Inner", "member `peak` is defined twice", |m| {
        m.functions[INNER].params[0].name = "peak".into();
    });
}

#[test]
fn a_wrong_canonical_order_is_found() {
    let says = "`order` does not list every parameter and sub exactly once";
    breaks("@Inner", says, |m| m.functions[INNER].order.truncate(1));
    breaks("@Root", says, |m| m.functions[ROOT].order.push(MemberRef::Sub(0)));
    breaks("@Layer", says, |m| m.functions[LAYER].order[0] = MemberRef::Param(9));
}

#[test]
fn a_value_that_is_not_defined_exactly_once_is_found() {
    breaks("@Layer node 2 `mul`", "%3 is used before it is defined", |m| {
        m.functions[LAYER].nodes[2].args[0] = ValueId(3);
    });
    breaks("@Layer node 2 `mul`", "%700 is used before it is defined", |m| {
        m.functions[LAYER].nodes[2].args[0] = ValueId(700);
    });
    breaks("@Layer node 3 `tanh`", "%2 is defined twice or does not exist", |m| {
        m.functions[LAYER].nodes[3].results[0] = ValueId(2);
    });
    breaks("@Layer node 4 `add`", "%44 is defined twice or does not exist", |m| {
        m.functions[LAYER].nodes[4].results[0] = ValueId(44);
    });
    breaks("@Layer node 0 `input`", "%50 is defined twice or does not exist", |m| {
        m.functions[LAYER].nodes[0].results[0] = ValueId(50);
    });
    breaks("@Layer node 3 `tanh`", "%3 names another node as its definition", |m| {
        m.functions[LAYER].values[3].node = NodeId(1);
    });
    breaks("@Layer", "a value is defined by no node", |m| {
        let ty = Type::scalar(DType::Act);
        m.functions[LAYER].values.push(Value { ty, node: NodeId(0), name: None });
    });
}

#[test]
fn a_type_that_no_rule_gives_is_found() {
    breaks("@Layer node 3 `tanh`", "has result f32[t, d=5], its rule says act[t, d=5]", |m| {
        ty(&mut m.functions[LAYER], ValueId(3)).dtype = DType::F32;
    });
    breaks("@Inner node 3 `contract`", "its rule says", |m| {
        ty(&mut m.functions[INNER], ValueId(3)).axes.reverse();
    });
    breaks("@Layer node 1 `param`", "its rule says act[d=5]", |m| {
        ty(&mut m.functions[LAYER], ValueId(1)).axes[0].size = Size::constant(6);
    });
    breaks("@Inner node 9 `state`", "its rule says f32[e=5]", |m| {
        ty(&mut m.functions[INNER], ValueId(9)).dtype = DType::Act;
    });
    breaks("@Inner node 6 `table`", "its rule says index[v=6]", |m| {
        ty(&mut m.functions[INNER], ValueId(6)).axes[0].name = "w".into();
    });
    breaks("@Inner node 12 `mean`", "needs axis `q`", |m| {
        m.functions[INNER].nodes[12].op = Mean { over: vec!["q".into()] }.into();
    });
    breaks("@Layer node 3 `tanh`", "takes 1 tensor arguments, here are 2", |m| {
        m.functions[LAYER].nodes[3].args.push(ValueId(0));
    });
    breaks("@Layer node 3 `tanh_grad`", "takes 2 tensor arguments", |m| {
        m.functions[LAYER].nodes[3].op =
            lightc_codegen::ops::UnaryGrad { function: UnaryFn::Tanh }.into();
    });
}

#[test]
fn a_reference_to_nothing_is_found() {
    let says = "refers to something that is not declared";
    breaks("@Layer node 1 `param`", says, |m| {
        m.functions[LAYER].nodes[1].op = ParamRef { index: 3 }.into();
    });
    breaks("@Layer node 3 `saved`", says, |m| {
        m.functions[LAYER].nodes[3].op = Saved { value: ValueId(0) }.into();
    });
    breaks("@OtherLayer node 2 `call`", says, |m| {
        m.functions[OTHER].nodes[2].op = lightc_codegen::ops::Call { sub: 4 }.into();
    });
    breaks("@OtherLayer node 2 `call_backward`", says, |m| {
        let op = CallBackward { call: NodeId(2), backward: BackwardId(0) };
        m.functions[OTHER].nodes[2].op = op.into();
    });
}

#[test]
fn an_axis_named_twice_is_found() {
    breaks("@Layer node 0 `input`", "has axis `t` twice", |m| {
        ty(&mut m.functions[LAYER], ValueId(0)).axes[1].name = "t".into();
    });
}

#[test]
fn a_call_that_does_not_fit_is_found() {
    breaks("@OtherLayer node 2 `call`", "does not fit input", |m| {
        let call = &mut m.functions[OTHER];
        let dtype = &mut ty(call, ValueId(0)).dtype;
        *dtype = DType::F32;
    });
    breaks("@OtherLayer node 2 `call`", "refers to something", |m| {
        m.functions[OTHER].nodes[2].args.clear();
    });
    breaks("@OtherLayer node 2 `call`", "has result act[t=7, d=5], its rule says", |m| {
        ty(&mut m.functions[OTHER], ValueId(2)).axes[0].size = Size::constant(7);
    });
    breaks("@Root node", "layer 1 does not give what it takes", |m| {
        let other = &mut m.functions[OTHER];
        let wide = result_of(other, "div");
        other.outputs[0].value = wide;
    });
}

#[test]
fn a_size_that_nothing_binds_is_found() {
    breaks("@Layer", "size name `q` is bound by no input", |m| {
        for value in &mut m.functions[LAYER].values {
            for axis in value.ty.axes.iter_mut().filter(|axis| axis.name == "t") {
                axis.size = Size::symbol("q").checked_mul(&Size::constant(2)).expect("small");
            }
        }
    });
}

#[test]
fn a_bad_output_or_update_is_found() {
    breaks("@Layer", "output %44 is not defined", |m| {
        m.functions[LAYER].outputs[0].value = ValueId(44);
    });
    breaks("@Inner", "an update names state 5, which does not exist", |m| {
        m.functions[INNER].updates[0].0 = 5;
    });
    breaks("@Inner", "state `peak` is updated twice", |m| {
        let again = m.functions[INNER].updates[0];
        m.functions[INNER].updates.push(again);
    });
    breaks("@Inner", "the update of `peak` is not defined", |m| {
        m.functions[INNER].updates[0].1 = ValueId(99);
    });
    breaks("@Inner", "state `peak` gets a value of another type", |m| {
        m.functions[INNER].updates[0].1 = ValueId(0);
    });
}

#[test]
fn a_backward_that_does_not_fit_its_forward_is_found() {
    let seeds = "its inputs are not the cotangents of the seeded outputs";
    breaks("@Layer.backward", "its forward does not exist", |m| {
        let layer = backward_of(m, LAYER);
        m.backward[layer].of = FuncId(50);
    });
    breaks("@Layer.backward", seeds, |m| {
        let layer = backward_of(m, LAYER);
        m.backward[layer].seeds.push(true);
    });
    breaks("@Layer.backward", seeds, |m| {
        let layer = backward_of(m, LAYER);
        m.backward[layer].seeds[0] = false;
    });
    breaks("@Layer.backward node", "its rule says", |m| {
        let layer = backward_of(m, LAYER);
        let body = &mut m.backward[layer].body;
        let saved = result_of(body, "saved");
        ty(body, saved).dtype = DType::F32;
    });
    breaks("@Layer.backward node", "refers to something", |m| {
        let layer = backward_of(m, LAYER);
        let body = &mut m.backward[layer].body;
        let at = node_of(body, "saved");
        body.nodes[at].op = Saved { value: ValueId(40) }.into();
    });
    breaks("@Layer.backward", "the cotangent of input `x` has another type than it", |m| {
        let layer = backward_of(m, LAYER);
        let (_, value) = m.backward[layer].grads[0];
        m.backward[layer].body.outputs[0].value = value;
    });
    breaks("@Layer.backward", "cotangent of input `x` is result 9, which does not exist", |m| {
        let layer = backward_of(m, LAYER);
        m.backward[layer].inputs[0] = Some(9);
    });
    breaks("@Layer.backward", "speaks of 2 inputs, its forward has 1", |m| {
        let layer = backward_of(m, LAYER);
        m.backward[layer].inputs.push(None);
    });
    breaks("@Layer.backward", "output %99 is not defined", |m| {
        let layer = backward_of(m, LAYER);
        m.backward[layer].body.outputs[0].value = ValueId(99);
    });
}

#[test]
fn a_bad_gradient_is_found() {
    breaks("@Layer.backward", "the gradient of `weight` has another type than it", |m| {
        let layer = backward_of(m, LAYER);
        m.backward[layer].grads[0].1 = ValueId(0);
    });
    breaks("@Layer.backward", "the gradient of `weight` is not defined", |m| {
        let layer = backward_of(m, LAYER);
        m.backward[layer].grads[0].1 = ValueId(98);
    });
    breaks("@Layer.backward", "`weight` has two gradients", |m| {
        let layer = backward_of(m, LAYER);
        let again = m.backward[layer].grads[0];
        m.backward[layer].grads.push(again);
    });
    breaks("@Layer.backward", "a gradient names a parameter that does not exist", |m| {
        let layer = backward_of(m, LAYER);
        m.backward[layer].grads[0].0 = 8;
    });
    breaks("@Layer.backward", "`weight` does not learn, but has a gradient", |m| {
        m.functions[LAYER].params[0].storage = Storage::Frozen("now".into());
    });
}

#[test]
fn a_backward_call_of_another_call_is_found() {
    let says = "refers to something that is not declared, or does not fit it";
    let other = |m: &mut Module| backward_of(m, OTHER);
    breaks("@OtherLayer.backward node", says, |m| {
        let (at, wrong) = (other(m), backward_of(m, INNER));
        let body = &mut m.backward[at].body;
        let node = node_of(body, "call_backward");
        let op = CallBackward { call: NodeId(2), backward: BackwardId(wrong as u32) };
        body.nodes[node].op = op.into();
    });
    breaks("@OtherLayer.backward node", says, |m| {
        let (at, layer) = (other(m), backward_of(m, LAYER));
        let body = &mut m.backward[at].body;
        let node = node_of(body, "call_backward");
        // Node 3 of the forward is no call.
        let op = CallBackward { call: NodeId(3), backward: BackwardId(layer as u32) };
        body.nodes[node].op = op.into();
    });
    breaks("@OtherLayer.backward node", "its arguments are not the cotangents", |m| {
        let at = other(m);
        let body = &mut m.backward[at].body;
        let node = node_of(body, "call_backward");
        body.nodes[node].args.clear();
    });
    breaks("@Root.backward_loss node", says, |m| {
        let at = backward_of(m, ROOT);
        let body = &mut m.backward[at].body;
        let node = node_of(body, "stack_backward");
        if let Op::StackBackward(op) = &mut body.nodes[node].op {
            let _ = op.layers.pop();
        }
    });
}

#[test]
fn the_verifier_finds_faults_and_does_not_fall_over_them() {
    // Whatever one field is set to, it returns.
    let base = broken_base();
    let far = ValueId(1000);
    for function in 0..base.functions.len() {
        for node in 0..base.functions[function].nodes.len() {
            let each: [&dyn Fn(&mut Node); 5] = [
                &|node| node.results.clear(),
                &|node| node.results.push(far),
                &|node| node.args.clear(),
                &|node| node.args.push(far),
                &|node| node.op = Input { name: "x".into() }.into(),
            ];
            for change in each {
                let mut module = base.clone();
                change(&mut module.functions[function].nodes[node]);
                let _ = verify(&module);
                if let Some(backward) = module.backward.get_mut(function) {
                    *module.functions.get_mut(function).expect("it") =
                        base.functions[function].clone();
                    if let Some(node) = backward.body.nodes.get_mut(node) {
                        change(node);
                    }
                    let _ = verify(&module);
                }
            }
        }
        let mut module = base.clone();
        module.functions[function].outputs = vec![Output { name: None, value: far }];
        assert!(!verify(&module).is_empty());
        module.functions[function].values.clear();
        assert!(!verify(&module).is_empty());
        module.functions[function].nodes.clear();
        assert!(!verify(&module).is_empty());
    }
    let mut module = base.clone();
    for value in &mut module.functions[LAYER].values {
        value.ty.axes.push(Axis { name: "d".into(), size: Size::constant(i64::MAX) });
    }
    assert!(!verify(&module).is_empty());
}

// Determinism.

#[test]
fn compiling_twice_gives_the_same_bytes() {
    let compiled = || -> Vec<(String, String)> {
        let stages = [
            ("models/tiny/tiny.llm", "tiny_2b"),
            ("models/lightning/lightning.llm", "lightning_2b"),
        ];
        let each = stages.into_iter().map(|(source, stage)| {
            let loader = models();
            let (name, text) = loader.load("", source).expect("a source");
            let (sources, _, _) = lightc_dsl::resolve::load_program(&name, &text, &loader);
            let model = sources.resolve_stage(stage).expect("the stage resolves");
            let compiled = compile(&model).expect("the stage compiles");
            let origin = Origin {
                source: source.to_owned(),
                source_hash: "0".to_owned(),
                compiler: "0".to_owned(),
            };
            let program = program(&compiled).expect("the trainer can feed the stage");
            let rust = emit_stage(&program, &origin).expect("the stage is emitted");
            (text::print(&compiled.module), rust)
        });
        each.collect()
    };
    let (first, second) = (compiled(), std::thread::spawn(compiled).join().expect("no panic"));
    for ((ir, rust), (other_ir, other_rust)) in first.iter().zip(&second) {
        assert!(ir == other_ir, "the IR text differs");
        assert!(rust == other_rust, "the Rust text differs");
    }
}
