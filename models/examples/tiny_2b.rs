//! The program of stage `tiny_2b`: `prepare`, `train`, `evaluate`.

fn main() -> std::process::ExitCode {
    lightc_runtime::program::main(&lightc_models::tiny_2b::Tiny2b)
}
