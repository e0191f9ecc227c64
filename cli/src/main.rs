//! The `polylink` binary: everything is in the library beside it, so that tests reach it.

/// A ledger's blocks allocate many small values and free them on other threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    polylink_cli::main(std::env::args_os().collect())
}
