//! `polylink verify`: whether a receipt holds, link by link, from the answer's tokens to a block's header.
//!
//! The chain of checks: the token ids hash to the digests in request and receipt; the receipt names the request; the
//! spend key of the session and the receipt key of the worker in that epoch signed them; the amount is the epoch's price
//! of the tokens; the receipt is a leaf of the Merkle-sum tree whose root the worker committed; session and pot (root,
//! key and price) are in the ledger's state by ICS23 proofs under the application hash of a header; the header is signed by the validators, and followed from a trusted one.
//!
//! *Invariant*: [`answer`] and [`evidence`] are pure; each fault names the part that does not hold. Every field of the
//! file is bound by one of the checks, and a file in another than its canonical form is refused.

mod answer;
mod command;
mod evidence;
mod fetch;

pub use answer::check_answer;
pub use command::{VerifyArgs, header, read, run};
pub use evidence::{ChainEvidence, LightBlock, StateProof, check_evidence};
pub use fetch::{check_signatures_on, evidence, light_block};

use polylink_protocol::transcript::AnswerRecord;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{part}: {reason}")]
pub struct Fault {
    /// Which part: of the answer, its path, its proofs or the header.
    pub part: String,
    /// What is wrong with it.
    pub reason: String,
}

/// A fault of a part.
pub(crate) fn fault(part: impl Into<String>, reason: impl std::fmt::Display) -> Fault {
    Fault { part: part.into(), reason: reason.to_string() }
}

/// A receipt file: the answer's record and, once its epoch is committed, what the chain says of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiptFile {
    /// Request, receipt, tokens, path.
    pub answer: AnswerRecord,
    /// Header and state proofs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<ChainEvidence>,
}

impl ReceiptFile {
    /// Reads a file: this shape, or a bare answer record as the gateway gives it.
    pub fn from_json(text: &str) -> Result<Self, Fault> {
        let value: Value = serde_json::from_str(text).map_err(|e| fault("receipt file", format!("not JSON: {e}")))?;
        let value = if value.get("answer").is_some() { value } else { serde_json::json!({"answer": value}) };
        let file: Self = serde_json::from_value(value.clone())
            .map_err(|e| fault("receipt file", format!("not a receipt as the gateway gives it: {e}")))?;
        let again = serde_json::to_value(&file).map_err(|e| fault("receipt file", e))?;
        match difference(&value, &again, "") {
            None => Ok(file),
            Some(at) => Err(fault(at.trim_start_matches('.'), "not in its canonical form")),
        }
    }
}

/// Where two documents differ, an unset field and a null one being alike.
fn difference(a: &Value, b: &Value, at: &str) -> Option<String> {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))).find_map(|key| {
                let (a, b) = (a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null));
                difference(a, b, &format!("{at}.{key}"))
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(i, (a, b))| difference(a, b, &format!("{at}.{i}")))
        }
        // One number has two texts only when it is a float (sampling): compared at its own precision.
        (Value::Number(a), Value::Number(b)) => {
            let single = |n: &serde_json::Number| n.as_f64().map(|x| x as f32);
            (a != b && (!a.is_f64() && !b.is_f64() || single(a) != single(b))).then(|| at.to_owned())
        }
        (a, b) => (a != b).then(|| at.to_owned()),
    }
}
