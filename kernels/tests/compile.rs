//! Every kernel compiles for sm_90a, within its resources. Needs NVRTC and no GPU.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use lightc_kernels::{Error, HEADERS, Nvrtc, Resources, SOURCES};

/// NVRTC, or `None` where libtorch is not installed or brings no CUDA.
fn nvrtc() -> Option<Nvrtc> {
    match Nvrtc::open() {
        Ok(nvrtc) => Some(nvrtc),
        Err(error) => {
            let found = lightc_libtorch::find(&lightc_libtorch::Settings::from_env());
            let folders = found.unwrap().map(|libtorch| libtorch.library_folders);
            let brings = folders.is_some_and(|folders| folders.len() > 1);
            assert!(!brings, "libtorch has CUDA's packages beside it, and yet: {error}");
            eprintln!("SKIPPED: no kernel was compiled: {error}");
            None
        }
    }
}

/// Kernels that may keep values in memory for want of registers, with the bytes they were accepted at.
const SPILLS: &[(&str, &str, u32)] = &[
    // Two words of a thread, outside its loops: with more registers one block would fit where two do.
    ("gated_delta_rule.cu", "gdn_backward_chunk", 16),
];

fn allowed(source: &str, entry: &str) -> u32 {
    SPILLS.iter().find(|(s, e, _)| *s == source && *e == entry).map_or(0, |(_, _, bytes)| *bytes)
}

#[test]
fn every_kernel_compiles_without_spills() {
    let Some(nvrtc) = nvrtc() else { return };
    let mut table = format!(
        "{:<26} {:<28} {:>9} {:>13} {:>5} {:>7}\n",
        "source", "kernel", "registers", "static shared", "stack", "spilled"
    );
    for (name, source) in SOURCES {
        let compiled = nvrtc.compile(name, source).unwrap_or_else(|error| panic!("{error}"));
        assert!(compiled.cubin.starts_with(b"\x7fELF"), "{name}: not ELF");
        assert!(!compiled.resources.is_empty(), "{name}: no entry point in\n{}", compiled.log);
        for (entry, r) in &compiled.resources {
            let Resources { registers, static_shared, stack, spill_stores, spill_loads } = r;
            writeln!(
                table,
                "{name:<26} {entry:<28} {registers:>9} {static_shared:>13} {stack:>5} {:>7}",
                spill_stores + spill_loads
            )
            .unwrap();
            assert!(spill_stores + spill_loads <= allowed(name, entry), "{entry} spills: {r:?}");
        }
    }
    insta::assert_snapshot!("resources", table);
}

#[test]
fn every_file_is_a_source_or_a_header() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = |folder: &Path, extension: &str| -> BTreeSet<String> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let chosen = entries.filter(|path| path.extension().is_some_and(|e| e == extension));
        chosen.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    };
    let headers: BTreeSet<String> = HEADERS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(files(&root.join("include"), "cuh"), headers);
    let sources: BTreeSet<String> = SOURCES
        .iter()
        .map(|(name, _)| match name.strip_prefix("masked_attention") {
            Some(_) => "masked_attention.cu".to_owned(),
            None => (*name).to_owned(),
        })
        .collect();
    assert_eq!(files(root, "cu"), sources);
}

#[test]
fn a_source_that_is_wrong_is_placed() {
    let Some(nvrtc) = nvrtc() else { return };
    let source = "#include \"base.cuh\"\n// origin: RmsNorm.y, std/norm.llm:12\n\
                  extern \"C\" __global__ void rms_norm(float* x) {\n    x[0] = missing;\n}\n";
    let Err(Error::Compile(failure)) = nvrtc.compile("norm.cu", source) else {
        panic!("it compiles");
    };
    assert_eq!(failure.place, Some(("norm.cu".to_owned(), 4)), "{failure}");
    insta::assert_snapshot!("wrong_source", failure.to_string());
}

#[test]
fn compiling_twice_gives_the_same_code() {
    let Some(nvrtc) = nvrtc() else { return };
    let source = "#include \"base.cuh\"\nextern \"C\" __global__ void twice(float* x) { x[threadIdx.x] *= 2.f; }\n";
    let first = nvrtc.compile("twice.cu", source).unwrap();
    let second = nvrtc.compile("twice.cu", source).unwrap();
    assert!(first.cubin == second.cubin);
}

/// The emulator has a second text of what `asm` says, and of nothing else.
#[test]
fn single_instructions_stand_in_two_headers() {
    let with_asm = |(name, text): &&(&str, &str)| {
        let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
        code.into_iter().any(|line| line.contains("asm(") || line.contains("asm volatile"))
            && !["ptx.cuh", "wgmma.cuh"].contains(name)
    };
    let beside: Vec<&str> =
        HEADERS.iter().chain(SOURCES).filter(with_asm).map(|(name, _)| *name).collect();
    assert_eq!(beside, Vec::<&str>::new());
}
