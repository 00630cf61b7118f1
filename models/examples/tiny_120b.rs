//! The program of stage `tiny_120b`: `prepare`, `train`, `evaluate`.

fn main() -> std::process::ExitCode {
    lightc_runtime::program::main(&lightc_models::tiny_120b::Tiny120b)
}
