//! The binary: parse, run, exit code.

/// A request makes a dozen small allocations, some of them freed by another thread than made them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    unified_backend::cli::main()
}
