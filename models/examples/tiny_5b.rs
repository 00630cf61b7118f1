//! The program of stage `tiny_5b`: `prepare`, `train`, `evaluate`.

fn main() -> std::process::ExitCode {
    lightc_runtime::program::main(&lightc_models::tiny_5b::Tiny5b)
}
