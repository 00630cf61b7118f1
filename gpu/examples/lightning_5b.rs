//! The program of `lightning_5b` for a GPU, as `lightc train --target sm_90a` builds it.

fn main() -> std::process::ExitCode {
    let stage = &lightc_gpu::stages::lightning_5b::Lightning5b;
    lightc_runtime::program::main_on(stage, lightc_runtime::Target::Sm90a)
}
