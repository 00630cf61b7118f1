//! Row kernels of the full-size dense stage: which there are, and their text.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use lightc_codegen::emit::{Origin, emit_kernels, emit_stage};
use lightc_codegen::ir::Module;
use lightc_codegen::pipeline::{compile_for, program_for};
use lightc_codegen::rows::{Plans, describe};
use lightc_codegen::schedule::Target;
use lightc_dsl::resolve::load_program;
use std::collections::BTreeSet;

fn module(stage: &str) -> Module {
    let source = "import \"lightning/lightning.llm\"\n";
    let (program, _, diags) = load_program("main.llm", source, &common::library());
    assert!(diags.is_empty(), "{diags:?}");
    let model = program.resolve_stage(stage).unwrap();
    compile_for(&model, Target::Sm90a).unwrap().module
}

/// The kernel of an entry: from its head to the next.
fn kernel(text: &str, entry: &str) -> String {
    let from = text.split_once(&format!("// {entry}\n")).unwrap().1;
    let end = from.find("\n}\n").unwrap() + 3;
    from[..end].to_owned()
}

#[test]
fn text_is_a_function_of_the_module() {
    let module = module("lightning_2b");
    let text = Plans::of(&module).text(&module);
    assert_eq!(text, Plans::of(&module).text(&module));
    assert!(!text.contains("atomic"), "sums have one order");
}

#[test]
fn a_stage_launches_all_its_kernels() {
    let source = "import \"lightning/lightning.llm\"\n";
    let (program, _, _) = load_program("main.llm", source, &common::library());
    let compiled =
        compile_for(&program.resolve_stage("lightning_2b").unwrap(), Target::Sm90a).unwrap();
    let program = program_for(&compiled, Target::Sm90a).unwrap();
    let origin = Origin {
        source: "main.llm".to_owned(),
        source_hash: String::new(),
        compiler: "0".to_owned(),
    };
    let rust = emit_stage(&program, &origin).unwrap();
    let kernels = emit_kernels(&program).unwrap();
    for kernel in describe(&compiled.module).as_array().unwrap() {
        let entry = kernel["entry"].as_str().unwrap();
        let launch = format!("cuda::launch(&super::row_kernels::{},", entry.to_uppercase());
        let launch: String = launch.split_whitespace().collect();
        let plain: String = rust.split_whitespace().collect();
        assert!(plain.contains(&launch), "{entry} is not launched");
        assert!(kernels.text.contains(&format!(" {entry}(")), "{entry} has no text");
    }
}

#[test]
fn each_value_is_written_once() {
    for stage in ["lightning_2b", "lightning_5b"] {
        let module = module(stage);
        let all = describe(&module);
        let mut seen = BTreeSet::new();
        for kernel in all.as_array().unwrap() {
            let entry = kernel["entry"].as_str().unwrap();
            let function = entry.rsplit_once("_k").unwrap().0;
            let writes = kernel["writes"].as_array().unwrap().iter().map(|v| &v["id"]);
            let sums = kernel["sums"].as_array().unwrap().iter().map(|s| &s["value"]["id"]);
            let ids: Vec<_> = writes.chain(sums).collect();
            assert!(!ids.is_empty(), "{entry} writes nothing");
            for id in ids {
                let key = (function.to_owned(), id.as_u64().unwrap());
                assert!(seen.insert(key), "{entry} writes %{id}, which another kernel writes");
            }
        }
    }
}

#[test]
fn kernels_of_a_delta_layer() {
    let module = module("lightning_2b");
    let text = Plans::of(&module).text(&module);
    // The narrow product with its norm, mixes of streams with Sinkhorn, collapse with the norm of its
    // result, entrance and post of the delta rule, the last norm, the derivative of that, and the
    // gradients of two losses.
    for entry in [
        "decoder_layer_k0",
        "decoder_layer_k1",
        "decoder_layer_k2",
        "decoder_layer_k5",
        "decoder_layer_k6",
        "language_model_k7",
        "language_model_backward_loss_k0",
        "language_model_backward_loss_k3",
    ] {
        insta::assert_snapshot!(entry, kernel(&text, entry));
    }
}

/// The ops of a kernel, the sums and products of them in order.
fn ops(kernel: &serde_json::Value) -> Vec<String> {
    let nodes = kernel["nodes"].as_array().unwrap().iter();
    nodes.map(|node| node["op"].as_str().unwrap().to_owned()).filter(|op| op != "const").collect()
}

#[test]
fn coefficients_read_their_rows_once() {
    for stage in ["lightning_2b", "lightning_9b"] {
        let module = module(stage);
        let all = describe(&module);
        let all = all.as_array().unwrap();
        let mut n = 0;
        for kernel in all {
            let ops = ops(kernel);
            let entry = kernel["entry"].as_str().unwrap();
            let inputs = kernel["inputs"].as_array().unwrap();
            let is_matrix = |v: &serde_json::Value| v["axes"][0][0] == "stacked";
            if entry.contains("backward") || !inputs.iter().any(is_matrix) {
                continue;
            }
            let product = ops.iter().filter(|op| *op == "contract").count();
            assert_eq!(product, 1, "{stage} {entry}");
            // 24 columns are those of a hyper-connection, whose norm comes along.
            if inputs.iter().any(|v| v["axes"][0][1] == "24") {
                n += 1;
                let sums = ops.iter().filter(|op| *op == "mean").count();
                assert_eq!((sums, inputs.len()), (1, 2), "{stage} {entry}: {ops:?}");
                assert_eq!(ops.last().unwrap(), "cast", "{stage} {entry}: {ops:?}");
            }
        }
        assert!(n >= 4, "{stage}: {n}");
    }
}

#[test]
fn gradients_of_matrices_fuse_and_nothing_else_of_them_does() {
    let module = module("lightning_2b");
    let mut found = Vec::new();
    for kernel in describe(&module).as_array().unwrap() {
        if kernel["rows"].as_str().unwrap().parse::<i64>().is_ok() {
            found.push((kernel["entry"].as_str().unwrap().to_owned(), ops(kernel).join(" ")));
        }
    }
    let found: Vec<(&str, &str)> = found.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    assert_eq!(
        found,
        [
            ("language_model_k0", "cast"),
            ("language_model_backward_loss_k0", "mul mul add"),
            ("language_model_backward_loss_k10", "add cast"),
        ]
    );
}
