//! Row kernels of the full-size dense stage: which there are, and their text.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use lightc_codegen::emit::{Origin, emit_stage};
use lightc_codegen::ir::{Module, text, verify};
use lightc_codegen::pipeline::{compile_for, compile_share, program_for};
use lightc_codegen::rows::{Plans, describe};
use lightc_codegen::schedule::Target;
use lightc_dsl::resolve::load_program;
use serde_json::Value;
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

/// The Rust of a stage, without white space.
fn rust(stage: &str) -> String {
    let source = "import \"lightning/lightning.llm\"\n";
    let (program, _, _) = load_program("main.llm", source, &common::library());
    let compiled = compile_for(&program.resolve_stage(stage).unwrap(), Target::Sm90a).unwrap();
    let program = program_for(&compiled, Target::Sm90a).unwrap();
    let origin = Origin {
        source: "main.llm".to_owned(),
        source_hash: String::new(),
        compiler: "0".to_owned(),
    };
    emit_stage(&program, &origin).unwrap().split_whitespace().collect()
}

#[test]
fn a_stage_launches_all_its_kernels() {
    for stage in ["lightning_2b", "lightning_2b_midpoint"] {
        let (module, rust) = (module(stage), rust(stage));
        let text = Plans::of(&module).text(&module);
        for kernel in describe(&module).as_array().unwrap() {
            let entry = kernel["entry"].as_str().unwrap();
            let name = entry.to_uppercase();
            let launch = format!("cuda::launch(&super::row_kernels::{name},");
            assert!(rust.contains(&launch), "{entry} is not launched");
            assert!(text.contains(&format!(" {entry}(")), "{entry} has no text");
            if text.contains(&format!(" {entry}_step(")) {
                let ended = format!(
                    "end.kernel(&super::row_kernels::{name}_STEP,&super::row_kernels::{name}_INVERSE"
                );
                assert!(rust.contains(&ended), "the ends of {entry} are not launched");
            }
        }
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
    // result, entrance and post of the delta rule, the gradient of the entrance's values, the last norm, the
    // derivative of that, and the gradients of two losses.
    for entry in [
        "decoder_layer_k0",
        "decoder_layer_k1",
        "decoder_layer_k2",
        "decoder_layer_k5",
        "decoder_layer_k6",
        "decoder_layer_backward_k13",
        "language_model_k6",
        "language_model_backward_loss_k0",
        "language_model_backward_loss_k3",
    ] {
        insta::assert_snapshot!(entry, kernel(&text, entry));
    }
}

/// The gradient of the streams from the 24 coefficients is made by the kernel that adds it to others, and no step of
/// its own: pointwise where it is the layer's, with sums over the lane where the other half of the layer follows.
#[test]
fn gradients_from_coefficients_are_made_where_they_are_read() {
    let module = module("lightning_2b");
    let plans = Plans::of(&module);
    let text = plans.text(&module);
    for (entry, with_sums) in
        [("decoder_layer_backward_k9", true), ("decoder_layer_backward_k20", false)]
    {
        let kernel = kernel(&text, entry);
        assert!(kernel.contains("multiply_factor<24>"), "{entry}");
        assert_eq!(kernel.contains("fragment_sum<"), with_sums, "{entry}");
        insta::assert_snapshot!(entry, kernel);
    }
    // Both halves of each layer's backward.
    assert_eq!(text.matches(" multiply_factor<24>(").count(), 6);
    let (rust, call) = (rust("lightning_2b"), "&super::row_kernels::DECODER_LAYER_BACKWARD_K20,&[");
    let (_, args) = rust.split_once(call).unwrap();
    assert_eq!(args.split_once(']').unwrap().0.split(',').count(), 7, "the product's factors");
}

/// Layers of a reversible stack end with the step of its state and with the inverse of that, in the place of
/// the kernel that writes what they give; both read and compute what that one does.
#[test]
fn layers_of_a_reversible_stack_end_with_the_step() {
    let reversible = module("lightning_2b_midpoint");
    let text = Plans::of(&reversible).text(&reversible);
    assert_eq!(text.matches("#include \"fixed.cuh\"").count(), 1);
    for layer in ["decoder_layer", "decoder_layer_2", "hyper_connection_2", "hyper_connection_3"] {
        for end in ["_step", "_inverse"] {
            let head = format!("// {layer}_k");
            let with = text.lines().filter(|l| l.starts_with(&head) && l.ends_with(end)).count();
            assert_eq!(with, 1, "{layer}{end}");
        }
    }
    for end in ["step", "inverse"] {
        let is_head = |line: &&str| {
            line.starts_with("// decoder_layer_k") && line.ends_with(&format!("_{end}"))
        };
        let head = text.lines().find(is_head).unwrap();
        insta::assert_snapshot!(format!("ended_{end}"), kernel(&text, &head[3..]));
    }
    let plain = module("lightning_2b");
    let text = Plans::of(&plain).text(&plain);
    assert!(
        !text.contains("fixed.cuh") && !text.contains("state_next"),
        "a plain stack makes no step"
    );
}

/// A layer with a gate gives its result, which the gate's cotangent reads: the last twelve of twenty. The
/// others, and both of the multi-token head, end with the step.
#[test]
fn layers_with_a_gate_write_their_result() {
    let rust = rust("lightning_9b_exact");
    let count = |word: &str| rust.matches(word).count();
    assert_eq!((count(".gated_layer("), count(".ended_layer("), count(".layer(")), (12, 10, 0));
    assert_eq!((count("layers_call.advance("), count("layers_call.advance_to(")), (12, 10));
    assert_eq!(count("&mutreversible::End::result()"), 24);
}

/// The ops of a kernel, the sums and products of them in order.
fn ops(kernel: &Value) -> Vec<String> {
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
            let is_matrix = |v: &Value| v["axes"][0][0] == "stacked";
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
            ("language_model_k0", "cast sum"),
            ("language_model_backward_loss_k0", "mul mul add"),
            ("language_model_backward_loss_k10", "add cast"),
        ]
    );
}

/// The choices of a token are weighed, added up and written to the streams by one kernel, and their cotangents made where
/// that of the sum is: no kernel writes the rows of all choices in 32 bits, and rows that go out are a view.
#[test]
fn choices_of_a_token_are_summed_where_they_are_read() {
    let source = "import \"lightning/lightning.llm\"\n";
    let (program, _, _) = load_program("main.llm", source, &common::library());
    let model = program.resolve_stage("lightning_120b").unwrap();
    let share = Some("1/8".parse().unwrap());
    let module = compile_share(&model, Target::Sm90a, share).unwrap().module;
    let all = describe(&module);
    let (wide, rows) = ("f32[b, t, top_k, d]".to_owned(), "act[b, t, top_k, d]".to_owned());
    let mut combined = BTreeSet::new();
    for kernel in all.as_array().unwrap() {
        let entry = kernel["entry"].as_str().unwrap();
        let (reads, writes) = (types(&kernel["inputs"]), types(&kernel["writes"]));
        assert!(!writes.contains(&wide) && !reads.contains(&wide), "{entry} has all in 32 bits");
        let repeats = ops(kernel) == ["broadcast"] && writes.contains(&rows);
        assert!(!repeats, "{entry} writes what an exchange reads as a view");
        if reads.contains(&rows) && !entry.contains("backward") {
            let _ = combined.insert((entry.to_owned(), ops(kernel).join(" ")));
        }
    }
    let (entry, ops) = combined.first().unwrap();
    assert_eq!(entry, "decoder_layer_2_k17");
    assert_eq!(ops, "cast contract cast add contract");
}

/// The kernels of weighed rows of 12 choices and their product with others, summed over so many channels of a choice, with
/// more nodes: the text, and how many kernels there are.
fn of_choices(channels: &str, more: &str, last: &str) -> (String, usize) {
    let rows = format!("b, k=12, f={channels}");
    let nodes = [
        ("input name=\"z\"", "", format!("act[{rows}]")),
        ("input name=\"x\"", "", format!("act[{rows}]")),
        ("input name=\"weights\"", "", "f32[b, k=12]".to_owned()),
        ("cast to=f32", "%0", format!("f32[{rows}]")),
        ("cast to=f32", "%1", format!("f32[{rows}]")),
        ("mul", "%3, %4", format!("f32[{rows}]")),
        ("sum over=[f]", "%5", "f32[b, k=12]".to_owned()),
        ("mul", "%3, %2", format!("f32[{rows}]")),
        ("cast to=act", "%7", format!("act[{rows}]")),
    ];
    let nodes = (0..).zip(&nodes).map(|(value, (op, args, ty))| line(value, op, args, ty));
    let nodes = nodes.collect::<String>();
    let source = format!(
        "module main entry @Main\n\nfunc @Main {{\n{nodes}{more}  return a: %8, sum: {last}\n}}\n"
    );
    let module = text::parse(&source).unwrap_or_else(|error| panic!("{error:?}\n{source}"));
    assert_eq!(verify::verify(&module), [], "{source}");
    let text = Plans::of(&module).text(&module);
    let (_, kernels) = text.split_once("// main_k0\n").unwrap();
    (kernels.to_owned(), describe(&module).as_array().unwrap().len())
}

/// What belongs to one choice is added up by threads of a warp or by a block, in the kernel that reads it; no other reads
/// the products in 32 bits.
#[test]
fn a_warp_or_a_block_sums_the_channels_of_a_choice() {
    let sums = |channels: &str| of_choices(channels, "", "%6");
    for (channels, threads) in [("256", 32), ("512", 64), ("1024", 128), ("2048", 256)] {
        let (text, n) = sums(channels);
        let sum = match threads {
            32 => "sum = segment_sum<32>(sum);".to_owned(),
            _ => format!("block_sum<1, {}>(all, scratch + 0);", threads / 32),
        };
        assert!(n == 1 && text.contains(&sum) && !text.contains("out_5"), "{channels}: {text}");
        let block = format!("__launch_bounds__({threads}, ");
        assert!(threads == 32 || text.contains(&block), "{channels}: {text}");
    }
    // Threads that are no power of two, or more than a block has.
    for channels in ["1536", "4096"] {
        let (text, _) = sums(channels);
        assert!(text.contains("out_5") && !text.contains("sum ="), "{channels}: {text}");
    }
    // Two sums have places of their own, and one can be made of the other.
    let twice = line(9, "mul", "%5, %6", "f32[b, k=12, f=1024]")
        + &line(10, "sum over=[f]", "%9", "f32[b, k=12]");
    let (text, n) = of_choices("1024", &twice, "%10");
    assert_eq!((n, text.matches("block_sum<1, 4>").count()), (1, 2), "{text}");
    assert!(text.contains("scratch + 0)") && text.contains("scratch + 16)"), "{text}");
    // Sums of whole rows, and over rows, are those of other blocks.
    for (over, ty) in [("k, f", "f32[b]"), ("b", "f32[k=12, f=1024]")] {
        let other = line(9, &format!("sum over=[{over}]"), "%5", ty);
        let (text, _) = of_choices("1024", &other, "%6, other: %9");
        let mixed = |kernel: &str| {
            kernel.contains("block_sum<1, 4>")
                && (kernel.contains("out_9") || kernel.contains("part_9"))
        };
        assert!(!text.split("__global__").any(mixed), "{text}");
    }
}

/// The kernels that sum gathered rows.
fn gathers(all: &Value) -> Vec<&Value> {
    let has = |kernel: &&Value| ops(kernel).iter().any(|op| op == "gather_sum");
    all.as_array().unwrap().iter().filter(has).collect()
}

/// Kinds and axes of what a kernel reads or writes, such as `act[j, d]`.
fn types(values: &Value) -> Vec<String> {
    let axes = |value: &Value| -> Vec<String> {
        let axes = value["axes"].as_array().unwrap().iter();
        axes.map(|axis| axis[0].as_str().unwrap().to_owned()).collect()
    };
    let word =
        |value: &Value| format!("{}[{}]", value["dtype"].as_str().unwrap(), axes(value).join(", "));
    values.as_array().unwrap().iter().map(word).collect()
}

/// Sum of codes, rest of the embedding and norm are one kernel, which reads the table as it is stored; so does the
/// kernel of the sum over its rows, and no kernel writes a copy of the table in 32 bits. What the backward needs is
/// kept in bf16.
#[test]
fn an_embedding_is_one_kernel_of_its_table_as_it_is_stored() {
    for stage in ["lightning_2b", "lightning_5b", "lightning_120b"] {
        let module = module(stage);
        let all = describe(&module);
        let found = gathers(&all);
        let [kernel] = found.as_slice() else { panic!("{stage}: {} kernels", found.len()) };
        assert_eq!(
            types(&kernel["inputs"]),
            ["index[b, w]", "act[j, d]", "index[b, w, p]", "f32[d]", "act[d]"],
            "{stage}"
        );
        assert_eq!(types(&kernel["writes"]), ["act[b, w, d]", "f32[b, w]", "act[b, w, d]"]);
        for kernel in all.as_array().unwrap() {
            let copy = types(&kernel["writes"]).contains(&"f32[j, d]".to_owned());
            assert!(!copy, "{stage}: {} writes the table in 32 bits", kernel["entry"]);
        }
    }
    let module = module("lightning_2b");
    let text = Plans::of(&module).text(&module);
    for entry in ["language_model_k0", "language_model_k1"] {
        insta::assert_snapshot!(entry, kernel(&text, entry));
    }
}

/// The kernels of a function with a table of so many channels, and these nodes after `%0.x`, the table, and `%1.i`,
/// its index.
fn of_nodes(channels: &str, index: &str, nodes: &str) -> (String, Value) {
    let source = format!(
        "module main entry @Main\n\nfunc @Main {{\n  param x: act[j=2048, d={channels}] ~ ones() \
         frozen \"fixed\"\n  %0.x = param index=0 () : act[j=2048, d={channels}]\n  %1.i = input \
         name=\"i\" () : index[b, {index}]\n{nodes}}}\n"
    );
    let module = text::parse(&source).unwrap_or_else(|error| panic!("{error:?}\n{source}"));
    assert_eq!(verify::verify(&module), [], "{source}");
    (Plans::of(&module).text(&module), describe(&module))
}

/// A line of a node.
fn line(value: u32, op: &str, args: &str, ty: &str) -> String {
    format!("  %{value} = {op} ({args}) : {ty}\n")
}

const SUM: &str = "gather_sum rows=j slots=p";

#[test]
fn tables_are_read_as_they_are_stored() {
    let wide = line(2, "cast to=f32", "%0", "f32[j=2048, d=256]");
    let sum = line(3, SUM, "%2, %1", "f32[b, d=256]");
    // Widened for the sum alone: bf16 is read, and the wide table is nowhere.
    let (text, all) = of_nodes("256", "p=40", &format!("{wide}{sum}  return %3\n"));
    assert_eq!(types(&gathers(&all)[0]["inputs"]), ["act[j, d]", "index[b, p]"]);
    assert!(text.contains("const bf16* __restrict__ in_0") && !text.contains("out_2"));
    // Read otherwise too: bf16 is read here, and the wide table is written for the other.
    let both = format!("{wide}{sum}  return %3, rest: %2\n");
    let (text, all) = of_nodes("256", "p=40", &both);
    assert_eq!(types(&gathers(&all)[0]["inputs"]), ["act[j, d]", "index[b, p]"]);
    assert!(text.contains("float* __restrict__ out_2"));
    // Made in 32 bits by another kernel.
    let made =
        line(3, "square", "%2", "f32[j=2048, d=256]") + &line(4, SUM, "%3, %1", "f32[b, d=256]");
    let (text, all) = of_nodes("256", "p=40", &format!("{wide}{made}  return %4\n"));
    assert_eq!(types(&gathers(&all)[0]["inputs"]), ["f32[j, d]", "index[b, p]"]);
    assert!(text.contains(
        "gather_sum<8>(v4, in_3 + lane, in_1 + (long long)row * 40, 40, 2048, 256, true);"
    ));
    // A sum that is rounded.
    let rounded = line(2, SUM, "%0, %1", "act[b, d=256]") + "  return %2\n";
    let (text, _) = of_nodes("256", "p=40", &rounded);
    assert!(text.contains("round_pairs(pairs_v2, v2);"));
}

#[test]
fn gathered_rows_share_a_warp_or_not() {
    let sum = |channels: &str| {
        let nodes = line(2, SUM, "%0, %1", &format!("act[b, d={channels}]")) + "  return %2\n";
        of_nodes(channels, "p=5", &nodes).0
    };
    assert!(sum("256").contains("    gather_sum<8>(v2,"));
    // A row of 24 channels takes three threads, of 300 a part of the last warp.
    let few = format!(
        "{}{}",
        line(2, SUM, "%0, %1", "act[b, d=24]"),
        line(3, "mean over=[d]", "%2", "act[b]")
    );
    let few = of_nodes("24", "p=5", &format!("{few}  return %2, mean: %3\n")).0;
    assert!(few.contains("gather_sum_alone<8>(v2,") && few.contains(", inside);"), "{few}");
    assert!(sum("300").contains("    gather_sum<4>(v2,") && sum("300").contains(", inside);"));
}

/// What a kernel cannot index stays a step by itself.
#[test]
fn gathers_that_stay_steps() {
    // Channels that a thread would hold unrolled.
    let few = line(2, SUM, "%0, %1", "act[b, d=4]") + "  return %2\n";
    assert!(gathers(&of_nodes("4", "p=5", &few).1).is_empty());
    // The rows of the table have the name of an axis of the index.
    let named = line(2, SUM, "%0, %1", "act[b, j, d=64]") + "  return %2\n";
    assert!(gathers(&of_nodes("64", "j, p=5", &named).1).is_empty());
    // An open number of slots.
    let open = line(2, SUM, "%0, %1", "act[b, d=64]") + "  return %2\n";
    assert!(gathers(&of_nodes("64", "p", &open).1).is_empty());
}
