//! The program of stage `tiny_9b`: `prepare`, `train`, `evaluate`.

fn main() -> std::process::ExitCode {
    lightc_runtime::program::main(&lightc_models::tiny_9b::Tiny9b)
}
