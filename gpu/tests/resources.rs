//! Every row kernel of the full-size dense stage compiles for sm_90a, and keeps its values in registers.
//! Needs NVRTC and no GPU.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use lightc_gpu::stages::{deep_2b, lightning_2b, lightning_5b, lightning_120b};
use lightc_kernels::Nvrtc;
use lightc_runtime::cuda::Module;

#[test]
fn row_kernels_of_the_dense_stage_compile_without_spills() {
    compile(&lightning_2b::row_kernels::MODULE, &[("_k", 100)]);
}

/// Those that end a layer with the step of its state, or with the inverse.
#[test]
fn row_kernels_of_reversible_layers_compile_without_spills() {
    compile(&deep_2b::row_kernels::MODULE, &[("_k", 100), ("_step", 4), ("_inverse", 4)]);
}

/// Those of routed experts: trained ones, and one rank's share of 8-bit ones with adapters.
#[test]
fn row_kernels_of_mixtures_compile_without_spills() {
    compile(&lightning_5b::row_kernels::MODULE, &[("_k", 100), ("_step", 4), ("_inverse", 4)]);
    compile(&lightning_120b::row_kernels::MODULE, &[("_k", 100), ("_step", 4), ("_inverse", 4)]);
}

/// Compiles a module that has at least so many kernels with these words in their names.
fn compile(module: &Module, words: &[(&str, usize)]) {
    let nvrtc = match Nvrtc::open() {
        Ok(nvrtc) => nvrtc,
        Err(error) => {
            let found = lightc_libtorch::find(&lightc_libtorch::Settings::from_env());
            let folders = found.unwrap().map(|libtorch| libtorch.library_folders);
            let brings = folders.is_some_and(|folders| folders.len() > 1);
            assert!(!brings, "libtorch has CUDA's packages beside it, and yet: {error}");
            eprintln!("SKIPPED: no kernel was compiled: {error}");
            return;
        }
    };
    let compiled =
        nvrtc.compile(module.name, module.source).unwrap_or_else(|error| panic!("{error}"));
    println!(
        "{:<40} {:>9} {:>13} {:>5} {:>7}",
        "kernel", "registers", "static shared", "stack", "spilled"
    );
    for (entry, r) in &compiled.resources {
        let spilled = r.spill_stores + r.spill_loads;
        println!(
            "{entry:<40} {:>9} {:>13} {:>5} {spilled:>7}",
            r.registers, r.static_shared, r.stack
        );
    }
    for (word, least) in words {
        let n = compiled.resources.keys().filter(|entry| entry.contains(word)).count();
        assert!(n >= *least, "{n} kernels with {word}");
    }
    for (entry, r) in &compiled.resources {
        assert_eq!((r.spill_stores, r.spill_loads), (0, 0), "{entry} spills: {r:?}");
    }
}
