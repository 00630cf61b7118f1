//! The command `lightc`.

fn main() -> std::process::ExitCode {
    lightc_cli::main()
}
