//! The paying side: what a gateway, or a user without one, does to have a signed request answered by a worker and to pay
//! for it.
//!
//! What always holds: every request has an index of its own, also across restarts; an answer is accepted only if its
//! receipt verifies against what was streamed; a voucher is durable before it is sent, pays verified receipts only, and
//! never more than the session holds; what failed is not paid.

pub mod book;
pub mod call;
pub mod payer;
pub mod records;
mod settle;
pub mod store;
pub mod text;
mod upstream;
pub mod verify;
mod worker;

pub use payer::{Ask, Payer, PayerConfig, PayerError, PayerSession};
pub use upstream::{Upstream, UpstreamEvent};
pub use verify::{VerifyError, verify_answer};
pub use worker::{ProfileTerms, WorkerRef};
