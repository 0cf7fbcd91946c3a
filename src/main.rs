//! The binary: parse, run, exit code.

fn main() -> std::process::ExitCode {
    unified_backend::cli::main()
}
