//! The `polylink` binary.
fn main() {}
