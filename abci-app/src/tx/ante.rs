//! What stands before a transaction's messages: may it run, and who pays?
//!
//! The chain runs on one layer of the state: a failure anywhere in it charges nothing and changes nothing. When it
//! succeeds, the fee is paid, the keys are known and the sequences have risen, whatever the messages do then.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use polylink_protocol::cosmos::cosmos::auth::v1beta1::Params;
use polylink_protocol::cosmos::cosmos::crypto::multisig::v1beta1::MultiSignature;
use polylink_protocol::keys::verify_secp256k1;
use polylink_protocol::{Address, Amount, DENOM, Message as _};

use super::decode::{ModeAndBytes, Signature, Signer, Tx, Verified};
use super::{GAS_MAX, Mode};
use crate::auth::{self, Account, PublicKey};
use crate::bank::{Pool, balance, transfer};
use crate::context::Context;
use crate::error::TxError;
use crate::feegrant;
use crate::store::StateWrite;

/// Runs the chain. `ctx` is the transaction's own, with its gas limit.
pub fn run(ctx: &mut Context, state: &mut dyn StateWrite, tx: &Tx, mode: Mode) -> Result<(), TxError> {
    if mode != Mode::Simulate && tx.fee.gas_limit > GAS_MAX {
        return Err(TxError::GasLimit { limit: tx.fee.gas_limit, max: GAS_MAX });
    }
    if tx.timeout_height > 0 && ctx.height > tx.timeout_height {
        return Err(TxError::TimeoutHeight { height: ctx.height, timeout: tx.timeout_height });
    }
    let rules = Arc::clone(&ctx.rules);
    check_memo(tx, &rules.auth)?;
    // A simulation has empty signatures where the transaction will have 64 bytes.
    let parts = tx.signers.iter().flat_map(|signer| signer.signature.parts());
    let unsigned = parts.filter(|(_, bytes)| bytes.is_empty()).count();
    ctx.charge(rules.auth.tx_size_cost_per_byte * (tx.len + 64 * unsigned) as u64)?;
    pay_fee(ctx, state, tx, mode)?;
    let mut accounts = tx.signers.iter().map(|signer| with_key(state, signer)).collect::<Result<Vec<_>, _>>()?;
    check_keys(&accounts, &rules.auth)?;
    for signer in &tx.signers {
        ctx.charge(rules.auth.sig_verify_cost_secp256k1 * signer.signature.parts().len() as u64)?;
    }
    for (signer, account) in tx.signers.iter().zip(&accounts) {
        authorize(ctx, tx, signer, account, mode)?;
    }
    for (index, (signer, account)) in tx.signers.iter().zip(&mut accounts).enumerate() {
        let sequence = account.sequence;
        account.sequence = sequence
            .checked_add(1)
            .ok_or_else(|| TxError::Unauthorized(format!("the sequences of {} are used up", signer.address)))?;
        auth::set_account(state, &signer.address, account);
        ctx.emit("tx", [("acc_seq", format!("{}/{sequence}", signer.address))]);
        emit_signatures(ctx, &signer.signature);
        if index == 0 {
            // Later signers are events of their messages.
            ctx.emit("message", [("sender", signer.address.account())]);
        }
    }
    Ok(())
}

/// What governance allows of a memo, where that is less than the decoder takes.
fn check_memo(tx: &Tx, rules: &Params) -> Result<(), TxError> {
    let max = usize::try_from(rules.max_memo_characters).unwrap_or(usize::MAX);
    // A byte is a character at most.
    if tx.memo.len() > max && tx.memo.chars().count() > max {
        return Err(TxError::MemoTooLarge { len: tx.memo.chars().count(), max });
    }
    Ok(())
}

/// And of keys: each of a key that has several counts, whether it signs or not.
fn check_keys(accounts: &[Account], rules: &Params) -> Result<(), TxError> {
    let keys: usize = accounts.iter().map(|account| account.public_key.as_ref().map_or(1, PublicKey::len)).sum();
    if keys as u64 > rules.tx_sig_limit {
        return Err(TxError::TooManySignatures(format!("signatures: {keys}, limit: {}", rules.tx_sig_limit)));
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
    // No coins have an empty text.
    let said = if paid.is_zero() { String::new() } else { format!("{paid}{DENOM}") };
    let paid = if token { Amount(1) } else { paid };
    let first = ctx.events.len();
    transfer(ctx, state, payer, Pool::FeeCollector, paid)?;
    // A fee is found by who pays it.
    ctx.events[first..].iter_mut().for_each(|event| event.indexed = false);
    ctx.emit("tx", [("fee", said), ("fee_payer", payer.account())]);
    Ok(())
}

fn account_of(state: &dyn StateWrite, address: &Address) -> Result<Account, TxError> {
    auth::account(state, address).ok_or_else(|| TxError::UnknownAddress(address.account()))
}

/// The account of a signer with its key: the one that it has signed with before, or else the transaction's.
fn with_key(state: &dyn StateWrite, signer: &Signer) -> Result<Account, TxError> {
    let account = account_of(state, &signer.address)?;
    let public_key = match (account.public_key, &signer.public_key) {
        (Some(known), Some(given)) if known != *given => {
            return Err(TxError::InvalidPubkey(format!("not the key that {} has signed with before", signer.address)));
        }
        (Some(known), _) => Some(known),
        (None, Some(given)) if given.address() != signer.address => {
            return Err(TxError::InvalidPubkey(format!("the key is not that of signer {}", signer.address)));
        }
        (None, given) => given.clone(),
    };
    Ok(Account { public_key, ..account })
}

/// The sequence, then the signature.
fn authorize(ctx: &Context, tx: &Tx, signer: &Signer, account: &Account, mode: Mode) -> Result<(), TxError> {
    if account.public_key.is_none() && mode != Mode::Simulate {
        return Err(TxError::InvalidPubkey(format!("{} has not signed before: its key must be given", signer.address)));
    }
    if signer.sequence != account.sequence {
        return Err(TxError::WrongSequence { expected: account.sequence, got: signer.sequence });
    }
    if let Some(key) = &account.public_key
        && mode != Mode::Simulate
        && !verify(tx, signer, key, &ctx.chain_id, account.number)?
    {
        return Err(TxError::Unauthorized(format!(
            "signature verification failed; please verify account number ({}), sequence ({}) and chain-id ({})",
            account.number, account.sequence, ctx.chain_id
        )));
    }
    Ok(())
}

/// Each signature by which a transaction may be searched, in base64; of several keys, all of theirs together too.
fn emit_signatures(ctx: &mut Context, signature: &Signature) {
    if ctx.silent {
        return;
    }
    let parts = signature.parts().iter().map(|(_, bytes)| bytes.clone());
    let mut signatures: Vec<Vec<u8>> = parts.collect();
    if matches!(signature, Signature::Multi { .. }) {
        signatures.push(MultiSignature { signatures: signatures.clone() }.encode_to_vec());
    }
    // A simulation has empty ones.
    for bytes in signatures.iter().filter(|bytes| !bytes.is_empty()) {
        ctx.emit("tx", [("signature", BASE64.encode(bytes))]);
    }
}

/// Whether a signer has signed with its key: with enough of them where it has several. What has verified is remembered:
/// the result is the same, on any thread.
pub(super) fn verify(
    tx: &Tx,
    signer: &Signer,
    key: &PublicKey,
    chain_id: &str,
    account_number: u64,
) -> Result<bool, TxError> {
    let same = |v: &Verified| v.account_number == account_number && v.chain_id == chain_id && v.key == *key;
    if signer.verified.get().is_some_and(same) {
        return Ok(true);
    }
    let valid = verify_anew(tx, signer, key, chain_id, account_number)?;
    if valid {
        let verified = || Verified { key: key.clone(), chain_id: chain_id.to_owned(), account_number };
        signer.verified.get_or_init(verified);
    }
    Ok(valid)
}

fn verify_anew(
    tx: &Tx,
    signer: &Signer,
    key: &PublicKey,
    chain_id: &str,
    account_number: u64,
) -> Result<bool, TxError> {
    let part = |key: &[u8; 33], (mode, signature): &ModeAndBytes| {
        let bytes = tx.sign_bytes(signer, *mode, chain_id, account_number)?;
        Ok::<bool, TxError>(verify_secp256k1(key, &bytes, signature).is_ok())
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

#[cfg(test)]
mod tests {
    use super::*;
    use polylink_protocol::cosmos::cosmos::bank::v1beta1::MsgSend;
    use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
    use polylink_protocol::keys::AccountKey;

    #[test]
    fn fees_round_up() {
        assert_eq!(least_fee(0, 25), Amount(0));
        assert_eq!(least_fee(1, 25), Amount(1));
        assert_eq!(least_fee(40, 25), Amount(1));
        assert_eq!(least_fee(41, 25), Amount(2));
        assert_eq!(least_fee(u64::MAX, u64::MAX).0, (u128::from(u64::MAX) * u128::from(u64::MAX)).div_ceil(1_000));
    }

    #[test]
    fn what_has_verified_counts_for_nothing_else() {
        use polylink_protocol::tx::{SignContext, sign_direct};
        let [one, two] = [5, 6].map(|n| AccountKey::from_bytes(&[n; 32]).unwrap());
        let message = polylink_protocol::tx::any(&MsgSend {
            from_address: one.address().account(),
            to_address: two.address().account(),
            amount: vec![Coin { denom: DENOM.into(), amount: "1".into() }],
        });
        let context = SignContext {
            chain_id: "c-1".into(),
            account_number: 7,
            sequence: 0,
            gas_limit: 1,
            fee: Amount(1),
            memo: String::new(),
        };
        let signed = sign_direct(vec![message], &context, &one);
        let right = PublicKey::Single(one.public_key());
        let asked = [
            (&right, "c-1", 7, true),
            (&right, "c-2", 7, false),
            (&right, "c-1", 8, false),
            (&PublicKey::Single(two.public_key()), "c-1", 7, false),
        ];
        let tx = super::super::decode::decode(&signed).unwrap();
        for _ in 0..2 {
            for (key, chain_id, number, expected) in asked {
                assert_eq!(verify(&tx, &tx.signers[0], key, chain_id, number), Ok(expected), "{chain_id} {number}");
            }
        }
        assert!(tx.signers[0].verified.get().is_some());
        let mut altered = tx.clone();
        altered.signers[0].verified.take();
        if let Signature::Single((_, bytes)) = &mut altered.signers[0].signature {
            bytes[10] ^= 1;
        }
        assert_eq!(verify(&altered, &altered.signers[0], &right, "c-1", 7), Ok(false));
        assert!(altered.signers[0].verified.get().is_none(), "what is wrong is not remembered");
    }
}
