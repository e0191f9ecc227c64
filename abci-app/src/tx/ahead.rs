//! What of a block's transactions does not depend on their order, done on all cores before they are executed one after
//! another: decoding, and the signatures of accounts that are there before the block.
//!
//! Nothing is decided here. A signature that verifies is remembered with its transaction, so that execution does not verify it again;
//! one that does not, or whose account the block itself changes, is judged by the execution alone. So the result of a
//! block is the same with and without this, on any number of cores.

use std::sync::Arc;

use bytes::Bytes;
use rayon::prelude::*;

use super::ante::verify as verify_signer;
use super::decode::{Signer, Tx};
use super::seen;
use crate::auth::{self, PublicKey};
use crate::error::TxError;
use crate::store::StateRead;

/// Decodes a block's transactions; in their order.
pub fn decode(txs: &[Bytes]) -> Vec<Result<Arc<Tx>, TxError>> {
    txs.par_iter().map(|bytes| seen::decode(bytes)).collect()
}

/// Verifies the signatures of what could be decoded, by keys and account numbers in `state`.
pub fn verify(state: &dyn StateRead, chain_id: &str, txs: &[Result<Arc<Tx>, TxError>]) {
    let signers = txs.iter().flatten().flat_map(|tx| tx.signers.iter().map(move |signer| (&**tx, signer)));
    let jobs: Vec<(&Tx, &Signer, u64, PublicKey)> = signers
        .filter(|(_, signer)| signer.verified.get().is_none())
        .filter_map(|(tx, signer)| {
            let account = auth::account(state, &signer.address)?;
            Some((tx, signer, account.number, account.public_key.or_else(|| signer.public_key.clone())?))
        })
        .collect();
    jobs.par_iter().for_each(|(tx, signer, number, key)| {
        // What it says is of no interest: a signature that verifies is remembered.
        let _ = verify_signer(tx, signer, key, chain_id, *number);
    });
}
