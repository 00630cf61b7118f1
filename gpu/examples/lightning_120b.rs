//! The program of one rank's share of `lightning_120b`, as `lightc train --target sm_90a --share 1/8` builds it.

fn main() -> std::process::ExitCode {
    let stage = &lightc_gpu::stages::lightning_120b::Lightning120b;
    lightc_runtime::program::main_on(stage, lightc_runtime::Target::Sm90a)
}
