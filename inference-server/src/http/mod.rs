//! OpenAI's REST interface, in front of anything that answers ([`Answerer`]): the gateway, or an engine in this process.
//!
//! What always holds: a field that would change the answer is either obeyed or refused by name, never dropped; every
//! error is OpenAI's error object; bodies, queues and connections have limits; a client that goes away drops its answer's
//! stream, which stops the generation.

mod answer;
mod echo;
pub mod error;
mod fields;
pub(crate) mod front;
mod grammar;
pub mod local;
pub mod metrics;
mod openapi;
mod patience;
pub mod request;
mod sampling;
pub mod server;
pub mod sse;
mod texts;
mod tools;

pub use answer::{AnswerEvent, AnswerUsage, TokenPiece};
pub use echo::PromptPiece;
pub use error::ApiError;
pub use front::{Answer, Answerer, Caller, Front, FrontLimits, ModelCard, router};
pub use grammar::AskedGrammar;
pub use request::{AnswerRequest, Kind, Prompt};
pub use sampling::client_seed;
pub use tools::{Dialect, ToolChoice, ToolReader, Tools};
