//! Serving: the engine (scheduler, paged KV cache, sampler), model definitions, execution across devices, and the HTTP
//! services around them.
//!
//! *Invariant*: no async handler ever waits for compute, and the engine's thread never waits for a socket. What crosses
//! between the two are a bounded command queue and one bounded event queue per request.

pub mod chain;
pub mod client;
pub mod engine;
pub mod gateway;
pub mod http;
pub mod journal;
pub mod model;
pub mod records;
pub mod tensor_split;
pub mod worker;
