//! The `forebay` command.

use std::process::ExitCode;

/// A request makes many small allocations; this allocator takes less for each than the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    forebay::cli::main()
}
