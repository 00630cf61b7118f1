//! What a step takes as polynomials, which programs for a GPU hold, against the ledger in numbers and
//! against what is known of the stages.

#![allow(clippy::expect_used, reason = "a failed step is a failed test")]

use lightc_codegen::analysis::{
    BATCH, Live, MemorySetup, SEQUENCE, States, at_rest, contraction_flops, live_for, memory,
};
use lightc_codegen::emit::{Origin, emit_crate};
use lightc_codegen::pipeline::{Compiled, compile_for, program, program_for};
use lightc_codegen::schedule::Target;
use lightc_dsl::resolve::load_program;
use lightc_dsl::source::MapLoader;
use std::collections::BTreeMap;
use std::path::Path;

fn stage(file: &str, stage: &str) -> Compiled {
    stage_for(file, stage, Target::Cpu)
}

fn stage_for(file: &str, stage: &str, target: Target) -> Compiled {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut loader = MapLoader::default();
    for folder in ["std", "lightning", "tiny"] {
        for entry in std::fs::read_dir(root.join("models").join(folder)).expect("is there") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "llm") {
                let name = path.file_name().expect("a name").to_string_lossy();
                let text = std::fs::read_to_string(&path).expect("is text");
                loader = loader.with(format!("models/{folder}/{name}"), text);
            }
        }
    }
    let text = std::fs::read_to_string(root.join(file)).expect("is text");
    let (program, _, diags) = load_program(file, &text, &loader);
    assert!(diags.is_empty(), "{diags:?}");
    compile_for(&program.resolve_stage(stage).expect("resolves"), target).expect("compiles")
}

fn bound(micro_batch: i64, sequence: i64) -> BTreeMap<String, i64> {
    BTreeMap::from([(BATCH.to_owned(), micro_batch), (SEQUENCE.to_owned(), sequence)])
}

/// Class and bytes of the polynomials at a batch and a sequence.
fn evaluated(live: &Live, micro_batch: i64, sequence: i64) -> BTreeMap<&'static str, i64> {
    let at = bound(micro_batch, sequence);
    let classes = live.polynomials().expect("counts");
    let largest = |peaks: &[lightc_dsl::size::Size]| {
        peaks.iter().map(|peak| peak.evaluate(&at).expect("is bound")).max().unwrap_or(0)
    };
    classes.iter().map(|(class, peaks)| (*class, largest(peaks))).collect()
}

#[test]
fn polynomials_give_the_numbers_of_the_ledger() {
    // A plain stack, and a reversible one with experts.
    for name in ["tiny_2b", "tiny_9b"] {
        let compiled = stage("models/tiny/tiny.llm", name);
        for states in [States::HadBack, States::Stored] {
            let live = live_for(&compiled, Target::Cpu, states).expect("counts");
            for (micro_batch, seq) in [(1, 3), (1, 130), (7, 66), (2, 4096), (64, 9)] {
                let setup = MemorySetup { gpus: 1, micro_batch, seq, states };
                let ledger = memory(&compiled.module, compiled.backward, setup).expect("counts");
                let (b, t) = (
                    i64::try_from(micro_batch).expect("small"),
                    i64::try_from(seq).expect("small"),
                );
                let found = evaluated(&live, b, t);
                for (class, bytes) in ledger.layouts[0].bytes.rows() {
                    let Some(found) = found.get(class) else { continue };
                    let bytes = i64::try_from(bytes).expect("small");
                    // Bits of a step are whole bytes in the ledger.
                    let slack = if class == "kept bits" { 64 } else { 0 };
                    assert!(
                        (found - bytes).abs() <= slack,
                        "{name} {class} at {b} x {t}: {found} {bytes}"
                    );
                }
            }
        }
    }
}

/// Twice the active parameters that are multiplied, per position, and a term of pairs of positions.
#[test]
fn operations_of_the_dense_stage() {
    let compiled = stage("models/lightning/lightning.llm", "lightning_2b");
    let flops = contraction_flops(&compiled.module).expect("counts");
    let at = |sequence: i64| flops.evaluate(&bound(1, sequence)).expect("is bound") as f64;
    let positions = 4094.0;
    let per_position = at(4096) / positions;
    // The head's product is taken twice, for the next token and for the one after it.
    assert!(per_position > 2.0 * 1.49e9 && per_position < 2.0 * 2.4e9, "{per_position:e}");
    // Beyond what grows with the sequence there is little: the pairs of two sparse layers.
    let quadratic = at(8192) - 2.0 * at(4096);
    assert!(quadratic > 0.0 && quadratic / at(8192) < 0.1, "{quadratic:e}");
    // Lanes are independent.
    let two = flops.evaluate(&bound(2, 4096)).expect("is bound") as f64;
    assert_eq!(two, 2.0 * at(4096));
    // What is rewritten for a GPU is the same model.
    let rewritten = stage_for("models/lightning/lightning.llm", "lightning_2b", Target::Sm90a);
    let of_rewritten = contraction_flops(&rewritten.module).expect("counts");
    let of_rewritten = of_rewritten.evaluate(&bound(1, 4096)).expect("is bound") as f64;
    assert!((of_rewritten / at(4096) - 1.0).abs() < 1e-2, "{of_rewritten:e} {:e}", at(4096));
}

#[test]
fn code_for_a_gpu_holds_the_counts_and_code_for_the_cpu_is_as_before() {
    let compiled = stage("models/tiny/tiny.llm", "tiny_2b");
    let origin = Origin { source: "a".into(), source_hash: "b".into(), compiler: "c".into() };
    let files = |program: &lightc_codegen::pipeline::Program<'_>| {
        let files = emit_crate(program, &origin, "runtime").expect("emits");
        let text = |path: &str| {
            files
                .iter()
                .find(|file| file.path == path)
                .map(|file| file.text.clone())
                .expect("is there")
        };
        (text("src/lib.rs"), text("src/main.rs"))
    };
    let (library, main) = files(&program(&compiled).expect("a program"));
    assert!(!library.contains("FOOTPRINT"));
    assert!(main.contains("lightc_runtime::program::main(&tiny_2b::Tiny2b)"), "{main}");
    let compiled = stage_for("models/tiny/tiny.llm", "tiny_2b", Target::Sm90a);
    let gpu = program_for(&compiled, Target::Sm90a).expect("a program");
    let (library, main) = files(&gpu);
    assert!(library.contains("pub static FOOTPRINT: lightc_runtime::Footprint"));
    assert!(main.contains("main_on(&tiny_2b::Tiny2b, lightc_runtime::Target::Sm90a)"), "{main}");
    let rest = at_rest(&compiled).expect("counts");
    assert!(library.contains(&format!("factor: {}", rest.optimizer)));
    // A stage without reversible stacks has one count, one with them two.
    assert!(library.contains("stored_bytes: &[],"), "{library}");
    let compiled = stage_for("models/tiny/tiny.llm", "tiny_9b", Target::Sm90a);
    let (library, _) = files(&program_for(&compiled, Target::Sm90a).expect("a program"));
    let stored = library.split("stored_bytes: &[").nth(1).expect("is there");
    assert!(stored.trim_start().starts_with('('), "{stored}");
}
