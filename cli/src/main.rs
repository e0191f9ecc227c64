//! The `polylink` binary: everything is in the library beside it, so that tests reach it.

fn main() -> std::process::ExitCode {
    polylink_cli::main(std::env::args_os().collect())
}
