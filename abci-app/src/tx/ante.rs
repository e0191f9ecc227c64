//! What stands before a transaction's messages: may it run, and who pays?
//!
//! The chain runs on one layer of the state: a failure anywhere in it charges nothing and changes nothing. When it
//! succeeds, the fee is paid, the keys are known and the sequences have risen, whatever the messages do then.

use std::collections::HashSet;
use std::sync::{LazyLock, Mutex, PoisonError};

use polylink_protocol::keys::verify_secp256k1;
use polylink_protocol::{Address, Amount, DENOM};
use sha2::{Digest as _, Sha256};

use super::decode::{ModeAndBytes, Signature, Signer, Tx};
use super::{GAS_MAX, Mode};
use crate::auth::{self, Account, PublicKey};
use crate::bank::{Pool, balance, transfer};
use crate::context::Context;
use crate::error::TxError;
use crate::feegrant;
use crate::gas::COSTS;
use crate::store::StateWrite;

/// Runs the chain. `ctx` is the transaction's own, with its gas limit.
pub fn run(ctx: &mut Context, state: &mut dyn StateWrite, tx: &Tx, mode: Mode) -> Result<(), TxError> {
    if mode != Mode::Simulate && tx.fee.gas_limit > GAS_MAX {
        return Err(TxError::invalid(format!("gas limit {} is above the ledger's {GAS_MAX}", tx.fee.gas_limit)));
    }
    if tx.timeout_height > 0 && ctx.height > tx.timeout_height {
        return Err(TxError::TimeoutHeight { height: ctx.height, timeout: tx.timeout_height });
    }
    // A simulation has empty signatures where the transaction will have 64 bytes.
    let parts = tx.signers.iter().flat_map(|signer| signer.signature.parts());
    let unsigned = parts.filter(|(_, bytes)| bytes.is_empty()).count();
    ctx.charge(COSTS.tx_byte * (tx.len + 64 * unsigned) as u64)?;
    pay_fee(ctx, state, tx, mode)?;
    for (index, signer) in tx.signers.iter().enumerate() {
        ctx.charge(COSTS.signature * signer.signature.parts().len() as u64)?;
        authorize(ctx, state, tx, signer, mode)?;
        if index == 0 {
            // Later signers are events of their messages.
            ctx.emit("message", &[("sender", signer.address.account())]);
        }
    }
    Ok(())
}

/// `ceil(gas · price / 1,000)`.
pub fn least_fee(gas_limit: u64, price_milli: u64) -> Amount {
    Amount((u128::from(gas_limit) * u128::from(price_milli)).div_ceil(1_000))
}

fn pay_fee(ctx: &mut Context, state: &mut dyn StateWrite, tx: &Tx, mode: Mode) -> Result<(), TxError> {
    let payer = tx.fee_payer();
    if let Some(coin) = tx.fee.amount.iter().find(|coin| coin.denom != DENOM) {
        return Err(TxError::InvalidCoins(format!("fees are paid in {DENOM}, not in {}", coin.denom)));
    }
    let paid: Amount = tx.fee.amount.first().map_or(Ok(Amount::ZERO), |coin| coin.amount.parse())?;
    if mode != Mode::Simulate {
        let least = least_fee(tx.fee.gas_limit, auth::min_gas_price_milli(state));
        if paid < least {
            return Err(TxError::InsufficientFee {
                got: format!("{paid}{DENOM}"),
                required: format!("{least}{DENOM}"),
            });
        }
    }
    let payer = match tx.fee_granter() {
        Some(granter) => {
            let messages: Vec<&str> = tx.messages.iter().map(|message| message.type_url.as_str()).collect();
            feegrant::pay(ctx, state, &granter, &payer, paid, &messages)?;
            granter
        }
        None => payer,
    };
    account_of(state, &payer)?;
    // A simulation comes without a fee. It moves a token one, so that the work of paying is in the gas it foretells.
    let token = mode == Mode::Simulate && paid.is_zero() && !balance(state, payer).is_zero();
    let paid = if token { Amount(1) } else { paid };
    transfer(ctx, state, payer, Pool::FeeCollector, paid)?;
    ctx.emit("tx", &[("fee", format!("{paid}{DENOM}")), ("fee_payer", payer.account())]);
    Ok(())
}

fn account_of(state: &dyn StateWrite, address: &Address) -> Result<Account, TxError> {
    auth::account(state, address).ok_or_else(|| TxError::UnknownAddress(address.account()))
}

/// The key, the sequence, the signature, in the SDK's order; then the sequence rises.
fn authorize(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    tx: &Tx,
    signer: &Signer,
    mode: Mode,
) -> Result<(), TxError> {
    let mut account = account_of(state, &signer.address)?;
    let key = match (account.public_key, &signer.public_key) {
        (Some(known), Some(given)) if known != *given => {
            return Err(TxError::InvalidPubkey(format!("not the key that {} has signed with before", signer.address)));
        }
        (Some(known), _) => Some(known),
        (None, Some(given)) if given.address() != signer.address => {
            return Err(TxError::InvalidPubkey(format!("the key is not that of signer {}", signer.address)));
        }
        (None, given) => given.clone(),
    };
    if key.is_none() && mode != Mode::Simulate {
        return Err(TxError::InvalidPubkey(format!("{} has not signed before: its key must be given", signer.address)));
    }
    if signer.sequence != account.sequence {
        return Err(TxError::WrongSequence { expected: account.sequence, got: signer.sequence });
    }
    if let Some(key) = &key
        && mode != Mode::Simulate
        && !verify(tx, signer, key, &ctx.chain_id, account.number)?
    {
        return Err(TxError::Unauthorized(format!(
            "signature verification failed; please verify account number ({}), sequence ({}) and chain-id ({})",
            account.number, account.sequence, ctx.chain_id
        )));
    }
    let sequence = account.sequence;
    account.public_key = key;
    account.sequence = sequence
        .checked_add(1)
        .ok_or_else(|| TxError::Unauthorized(format!("the sequences of {} are used up", signer.address)))?;
    auth::set_account(state, &signer.address, &account);
    ctx.emit("tx", &[("acc_seq", format!("{}/{sequence}", signer.address))]);
    Ok(())
}

/// Whether a signer has signed with its key: with enough of them where it has several.
pub(super) fn verify(
    tx: &Tx,
    signer: &Signer,
    key: &PublicKey,
    chain_id: &str,
    account_number: u64,
) -> Result<bool, TxError> {
    let part = |key: &[u8; 33], (mode, signature): &ModeAndBytes| {
        let bytes = tx.sign_bytes(signer, *mode, chain_id, account_number)?;
        Ok::<bool, TxError>(verify_cached(key, &bytes, signature))
    };
    match (key, &signer.signature) {
        (PublicKey::Single(key), Signature::Single(signature)) => part(key, signature),
        (PublicKey::Multi { threshold, keys }, Signature::Multi { signed, parts }) => {
            if signed.len() != keys.len() || parts.len() < *threshold as usize {
                return Ok(false);
            }
            let signing = keys.iter().zip(signed).filter(|(_, signed)| **signed).map(|(key, _)| key);
            for (key, signature) in signing.zip(parts) {
                if !part(key, signature)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// Digests of signatures that have verified: those of the mempool are seen again in their block. Two generations, so
/// that its size is bounded and a full one does not forget all at once.
static VERIFIED: LazyLock<Mutex<[HashSet<[u8; 32]>; 2]>> = LazyLock::new(Default::default);

/// Signatures of one generation: 1 MiB of digests.
const GENERATION_MAX: usize = 16_384;

/// Verifies, or remembers that it has: the result is the same, on any thread. The entry is of (key, SHA-256 of the signed bytes,
/// signature).
pub(super) fn verify_cached(key: &[u8; 33], bytes: &[u8], signature: &[u8]) -> bool {
    let entry: [u8; 32] =
        Sha256::new().chain_update(key).chain_update(Sha256::digest(bytes)).chain_update(signature).finalize().into();
    let lock = || VERIFIED.lock().unwrap_or_else(PoisonError::into_inner);
    if lock().iter().any(|generation| generation.contains(&entry)) {
        return true;
    }
    let valid = verify_secp256k1(key, bytes, signature).is_ok();
    if valid {
        let mut generations = lock();
        if generations[0].len() >= GENERATION_MAX {
            generations[1] = std::mem::take(&mut generations[0]);
        }
        generations[0].insert(entry);
    }
    valid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fees_round_up() {
        assert_eq!(least_fee(0, 25), Amount(0));
        assert_eq!(least_fee(1, 25), Amount(1));
        assert_eq!(least_fee(40, 25), Amount(1));
        assert_eq!(least_fee(41, 25), Amount(2));
        assert_eq!(least_fee(u64::MAX, u64::MAX).0, (u128::from(u64::MAX) * u128::from(u64::MAX)).div_ceil(1_000));
    }

    #[test]
    fn the_cache_does_not_confuse_signatures() {
        let key = polylink_protocol::keys::AccountKey::from_bytes(&[5; 32]).unwrap();
        let (public, signature) = (key.public_key(), key.sign(b"one"));
        assert!(verify_cached(&public, b"one", &signature));
        assert!(verify_cached(&public, b"one", &signature));
        assert!(!verify_cached(&public, b"two", &signature));
        let mut altered = signature;
        altered[10] ^= 1;
        assert!(!verify_cached(&public, b"one", &altered));
        assert!(!verify_cached(&public, b"one", &[]));
    }
}
