//! ICS23 proofs: that a key has a value, or none, under an application hash.
//!
//! Anyone who follows headers can check one with the `ics23` library and [`jmt::ics23_spec`]; the
//! state after block H is proved against the `app_hash` in the header of H + 1.

use ics23::{CommitmentProof, HostFunctionsManager, verify_membership, verify_non_membership};
use prost::Message;

use super::AppHash;

/// The `type` of the one `ProofOp` in the answer to `abci_query` with `prove = true`. Its `key` is
/// the state key, its `data` a `cosmos.ics23.v1.CommitmentProof`.
pub const PROOF_OP_TYPE: &str = "ics23:jmt";

/// A key, its value or absence, and the proof.
#[derive(Clone, Debug, PartialEq)]
pub struct Proof {
    /// The key asked for.
    pub key: Vec<u8>,
    /// Its value, or `None` where it is proved absent.
    pub value: Option<Vec<u8>>,
    /// The proof.
    pub proof: CommitmentProof,
}

impl Proof {
    /// The `data` of the `ProofOp`.
    pub fn encode(&self) -> Vec<u8> {
        self.proof.encode_to_vec()
    }
}

/// Whether `proof` (the `data` of a `ProofOp`) shows that under `app_hash` the key has this value,
/// or none. Bytes that are no proof show nothing.
pub fn verify_proof(app_hash: &AppHash, key: &[u8], value: Option<&[u8]>, proof: &[u8]) -> bool {
    let Ok(proof) = CommitmentProof::decode(proof) else { return false };
    let (spec, root) = (jmt::ics23_spec(), app_hash.to_vec());
    match value {
        Some(value) => verify_membership::<HostFunctionsManager>(&proof, &spec, &root, key, value),
        None => verify_non_membership::<HostFunctionsManager>(&proof, &spec, &root, key),
    }
}
