//! The engine on the project's own models, as its callers use it: nothing is replaced by a stand-in.

#![allow(clippy::unwrap_used)] // every function here is part of a test

mod admission;
mod ahead;
mod architectures;
mod determinism;
mod faults;
mod folders;
mod gguf;
mod gguf_files;
mod goldens;
#[cfg(feature = "cuda")]
mod gpu;
mod grammars;
mod logits;
mod prompt_logprobs;
mod quantized;
mod requests;
mod speculation;
mod split;
mod support;
mod tiny;
