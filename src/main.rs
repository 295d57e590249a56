//! The `forebay` command.

use std::process::ExitCode;

/// A request makes many small allocations; this allocator takes less for each than the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Pingora 0.9.1 has 64 KiB for each body that it reads, of which a stream touches little. The allocator asks for huge pages,
    // in which it would take all of that; what they save of CPU time is too little to be measured.
    let _ = rustix::thread::disable_transparent_huge_pages(true); // where that cannot be, a stream takes twice as much
    forebay::cli::main()
}
