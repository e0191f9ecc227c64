//! The engine on the project's own models, as its callers use it: nothing is replaced by a stand-in.

mod admission;
mod determinism;
mod folders;
mod goldens;
mod requests;
mod split;
mod support;
