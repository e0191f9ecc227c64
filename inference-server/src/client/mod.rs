//! The paying side: what a gateway, or a user without one, does to have a signed request answered by a worker and to pay
//! for it.
//!
//! What always holds: every request has an index of its own, also across restarts; an answer is accepted only if its
//! receipt verifies against what was streamed; a voucher is durable before it is sent, pays verified receipts only, and
//! never more than the session holds; of an answer that broke off no more is paid than was sent of it.

mod arrivals;
mod ask;
pub mod book;
pub mod call;
mod omissions;
pub mod payer;
pub mod records;
mod settle;
pub mod store;
pub mod text;
mod upstream;
pub mod verify;
mod worker;

pub use arrivals::Figures;
pub use ask::Ask;
pub use payer::{Payer, PayerConfig, PayerError, PayerSession};
pub use upstream::{Upstream, UpstreamEvent};
pub use verify::{CUT_SLACK_TOKENS, CutAnswer, VerifyError, verify_answer, verify_cut};
pub use worker::{ProfileTerms, WorkerRef};
