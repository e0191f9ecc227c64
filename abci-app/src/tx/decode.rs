//! From received bytes to a transaction whose every byte is accounted for.
//!
//! Rules (the SDK's, ADR-020 and ADR-027): the outer `TxRaw` has exactly one encoding; `AuthInfo` has no unknown field;
//! the body has none but non-critical ones, and then may not be signed over amino JSON; every message is of a type that
//! the ledger executes. What a signature covers are the received bytes of body and auth info, never a re-encoding.

use std::sync::OnceLock;

use polylink_protocol::cosmos::cosmos::crypto::multisig::v1beta1::MultiSignature;
use polylink_protocol::cosmos::cosmos::tx::v1beta1::mode_info::{Multi, Sum};
use polylink_protocol::cosmos::cosmos::tx::v1beta1::{AuthInfo, Fee, ModeInfo, SignDoc, TxBody, TxRaw};
use polylink_protocol::digest::decode_canonical;
use polylink_protocol::{Address, Message};

use super::unknown::{self, Policy};
use super::{MEMO_CHARACTERS_MAX, MESSAGES_MAX, SIGNATURES_MAX, TX_BYTES_MAX, amino};
use crate::auth::PublicKey;
use crate::error::TxError;
use crate::modules::MessageRoute;
use crate::router;

/// How a signer signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignMode {
    /// Not at all: only in a simulation.
    Unspecified,
    /// Over the protobuf `SignDoc`.
    Direct,
    /// Over amino JSON.
    AminoJson,
}

/// A message with its route.
#[derive(Clone)]
pub struct RoutedMessage {
    /// Its type URL.
    pub type_url: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Who handles it.
    pub route: &'static MessageRoute,
    /// Who must sign it.
    pub signer: Address,
}

/// What is known of one signature before the state is looked at.
#[derive(Clone, Debug)]
pub struct Signer {
    /// Whose it must be.
    pub address: Address,
    /// The key in the transaction; unset where the account's own is meant.
    pub public_key: Option<PublicKey>,
    /// The sequence it signed.
    pub sequence: u64,
    /// How it signed.
    pub signature: Signature,
    /// What it has been verified for. A signature that is wrong, or right for something else, is verified each time.
    pub verified: OnceLock<Verified>,
}

/// All that a signature's being right depends on, besides its transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The account's key.
    pub key: PublicKey,
    /// The chain.
    pub chain_id: String,
    /// The account's number on it.
    pub account_number: u64,
}

/// A signature as it came: `r ‖ s`, empty in a simulation.
pub type ModeAndBytes = (SignMode, Vec<u8>);

/// What a signer has signed with.
#[derive(Clone, Debug)]
pub enum Signature {
    /// One key.
    Single(ModeAndBytes),
    /// Some of several keys.
    Multi {
        /// Which of them.
        signed: Vec<bool>,
        /// Their signatures, in the same order.
        parts: Vec<ModeAndBytes>,
    },
}

impl Signature {
    /// The signatures in it.
    pub fn parts(&self) -> &[ModeAndBytes] {
        match self {
            Signature::Single(part) => std::slice::from_ref(part),
            Signature::Multi { parts, .. } => parts,
        }
    }
}

/// A decoded transaction. All that can be said against it without the state has been said.
#[derive(Clone)]
pub struct Tx {
    /// The messages in order, at least one.
    pub messages: Vec<RoutedMessage>,
    /// The signers in the order of their first message, then who pays the fee if none of them does; at least one.
    pub signers: Vec<Signer>,
    /// The fee.
    pub fee: Fee,
    /// The memo.
    pub memo: String,
    /// The last height at which it may be executed; 0 for none.
    pub timeout_height: u64,
    /// Its bytes.
    pub len: usize,
    /// Who answers for the fee, where it says so.
    payer: Option<Address>,
    body: TxBody,
    body_bytes: Vec<u8>,
    auth_info_bytes: Vec<u8>,
}

/// Decodes for execution.
pub fn decode(bytes: &[u8]) -> Result<Tx, TxError> {
    decode_as(bytes, false)
}

/// Decodes for a simulation: signatures may be empty and sign modes unspecified.
pub fn decode_simulated(bytes: &[u8]) -> Result<Tx, TxError> {
    decode_as(bytes, true)
}

fn parse<M: Message + Default>(what: &str, bytes: &[u8]) -> Result<M, TxError> {
    M::decode(bytes).map_err(|error| TxError::Decode(format!("{what}: {error}")))
}

fn decode_as(bytes: &[u8], simulated: bool) -> Result<Tx, TxError> {
    if bytes.len() > TX_BYTES_MAX {
        return Err(TxError::TooLarge { len: bytes.len(), max: TX_BYTES_MAX });
    }
    let raw: TxRaw = decode_canonical("TxRaw", bytes).map_err(|error| TxError::Decode(error.to_string()))?;
    let non_critical = unknown::check("cosmos.tx.v1beta1.TxBody", &raw.body_bytes, Policy::NonCritical)?;
    unknown::check("cosmos.tx.v1beta1.AuthInfo", &raw.auth_info_bytes, Policy::Strict)?;
    let body: TxBody = parse("TxBody", &raw.body_bytes)?;
    let auth_info: AuthInfo = parse("AuthInfo", &raw.auth_info_bytes)?;
    check_body(&body)?;
    let messages = route(&body)?;
    let fee = check_fee(&auth_info)?;
    let payer = if fee.payer.is_empty() { None } else { Some(fee.payer.parse()?) };
    let signers = signers(&auth_info, raw.signatures, &messages, payer, simulated)?;
    let mut modes = signers.iter().flat_map(|signer| signer.signature.parts()).map(|(mode, _)| *mode);
    let amino = modes.any(|mode| mode == SignMode::AminoJson);
    if amino && (non_critical || !body.non_critical_extension_options.is_empty()) {
        return Err(TxError::Decode(
            "amino JSON does not cover unknown fields or extension options: sign in direct mode".into(),
        ));
    }
    Ok(Tx {
        messages,
        signers,
        fee,
        memo: body.memo.clone(),
        timeout_height: body.timeout_height,
        len: bytes.len(),
        payer,
        body,
        body_bytes: raw.body_bytes,
        auth_info_bytes: raw.auth_info_bytes,
    })
}

fn check_body(body: &TxBody) -> Result<(), TxError> {
    if body.messages.is_empty() || body.messages.len() > MESSAGES_MAX {
        let found = body.messages.len();
        return Err(TxError::invalid(format!("{found} messages; 1 to {MESSAGES_MAX} are expected")));
    }
    if !body.extension_options.is_empty() {
        let urls: Vec<&str> = body.extension_options.iter().take(4).map(|any| any.type_url.as_str()).collect();
        return Err(TxError::UnknownExtension(urls.join(", ").escape_debug().to_string()));
    }
    let len = body.memo.chars().count();
    if len > MEMO_CHARACTERS_MAX {
        return Err(TxError::MemoTooLarge { len, max: MEMO_CHARACTERS_MAX });
    }
    Ok(())
}

fn route(body: &TxBody) -> Result<Vec<RoutedMessage>, TxError> {
    let routed = |any: &polylink_protocol::cosmos::Any| {
        let route = router::message(&any.type_url).ok_or_else(|| router::refuse(&any.type_url))?;
        let signer = (route.check)(&any.value)?;
        Ok(RoutedMessage { type_url: any.type_url.clone(), bytes: any.value.clone(), route, signer })
    };
    body.messages.iter().map(routed).collect()
}

fn check_fee(auth_info: &AuthInfo) -> Result<Fee, TxError> {
    #[allow(deprecated, reason = "a set tip must be refused, not ignored")]
    if auth_info.tip.is_some() {
        return Err(TxError::NotSupported("tips".into()));
    }
    let fee = auth_info.fee.clone().ok_or_else(|| TxError::invalid("AuthInfo has no fee"))?;
    if !fee.amount.is_empty() {
        crate::bank::check_coins(&fee.amount)?;
    }
    if !fee.granter.is_empty() {
        fee.granter.parse::<Address>()?;
    }
    if !fee.payer.is_empty() {
        fee.payer.parse::<Address>()?;
    }
    Ok(fee)
}

fn signers(
    auth_info: &AuthInfo,
    signatures: Vec<Vec<u8>>,
    messages: &[RoutedMessage],
    payer: Option<Address>,
    simulated: bool,
) -> Result<Vec<Signer>, TxError> {
    let mut addresses: Vec<Address> = Vec::new();
    // Who pays signs too, after those whose messages they are.
    for address in messages.iter().map(|message| message.signer).chain(payer) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if signatures.is_empty() {
        return Err(TxError::NoSignatures);
    }
    if signatures.len() > SIGNATURES_MAX {
        return Err(TxError::TooManySignatures(format!("signatures: {}, limit: {SIGNATURES_MAX}", signatures.len())));
    }
    if auth_info.signer_infos.len() != addresses.len() || signatures.len() != addresses.len() {
        return Err(TxError::Unauthorized(format!(
            "invalid number of signers; expected: {}, got {} signer infos and {} signatures",
            addresses.len(),
            auth_info.signer_infos.len(),
            signatures.len()
        )));
    }
    let infos = auth_info.signer_infos.iter().zip(signatures).zip(addresses);
    let mut keys = 0;
    infos
        .map(|((info, signature), address)| {
            let mode = info.mode_info.as_ref();
            let signature = match mode.and_then(|mode| mode.sum.as_ref()) {
                Some(Sum::Multi(multi)) => multi_signature(multi, &signature, simulated)?,
                _ => Signature::Single((single_mode(mode, simulated)?, signature)),
            };
            let public_key = info.public_key.as_ref().map(PublicKey::from_any).transpose()?;
            keys += public_key.as_ref().map_or(1, PublicKey::len);
            if keys > SIGNATURES_MAX {
                return Err(TxError::TooManySignatures(format!("signatures: {keys}, limit: {SIGNATURES_MAX}")));
            }
            Ok(Signer { address, public_key, sequence: info.sequence, signature, verified: OnceLock::new() })
        })
        .collect()
}

fn single_mode(mode: Option<&ModeInfo>, simulated: bool) -> Result<SignMode, TxError> {
    match mode.and_then(|mode| mode.sum.as_ref()) {
        Some(Sum::Single(single)) => sign_mode(single.mode, simulated),
        Some(Sum::Multi(_)) => Err(TxError::NotSupported("multi-signatures within others".into())),
        None if simulated => Ok(SignMode::Unspecified),
        None => Err(TxError::invalid("a signer info without a sign mode")),
    }
}

/// The signatures of some of several keys: the bits say of which (`CompactBitArray`, the first key's bit is the highest).
fn multi_signature(multi: &Multi, signature: &[u8], simulated: bool) -> Result<Signature, TxError> {
    let bits = multi.bitarray.as_ref().ok_or_else(|| TxError::Unauthorized("a multi-signature without bits".into()))?;
    let whole = bits.elems.len().saturating_mul(8);
    let count = match bits.extra_bits_stored {
        0 => whole,
        extra => whole.saturating_sub(8) + extra.min(8) as usize,
    };
    if count > SIGNATURES_MAX {
        return Err(TxError::TooManySignatures(format!("signatures: {count}, limit: {SIGNATURES_MAX}")));
    }
    let bit = |index: usize| bits.elems.get(index / 8).is_some_and(|byte| byte >> (7 - index % 8) & 1 == 1);
    let signed: Vec<bool> = (0..count).map(bit).collect();
    let signatures: MultiSignature = parse("MultiSignature", signature)?;
    let expected = signed.iter().filter(|signed| **signed).count();
    let given = signatures.signatures.len();
    if multi.mode_infos.len() != expected || (given != expected && !(simulated && given == 0)) {
        return Err(TxError::Unauthorized(format!(
            "a multi-signature of {expected} keys with {} modes and {given} signatures",
            multi.mode_infos.len()
        )));
    }
    let signatures = signatures.signatures.into_iter().chain(std::iter::repeat(Vec::new()));
    let parts = multi.mode_infos.iter().zip(signatures);
    let parts: Result<Vec<ModeAndBytes>, TxError> =
        parts.map(|(mode, bytes)| Ok((single_mode(Some(mode), simulated)?, bytes))).collect();
    Ok(Signature::Multi { signed, parts: parts? })
}

fn sign_mode(mode: i32, simulated: bool) -> Result<SignMode, TxError> {
    match mode {
        1 => Ok(SignMode::Direct),
        127 => Ok(SignMode::AminoJson),
        0 if simulated => Ok(SignMode::Unspecified),
        other => Err(TxError::NotSupported(format!(
            "sign mode {other}: SIGN_MODE_DIRECT (1) and SIGN_MODE_LEGACY_AMINO_JSON (127) are"
        ))),
    }
}

impl Tx {
    /// What a signer must have signed in this mode, for its account's number.
    pub fn sign_bytes(
        &self,
        signer: &Signer,
        mode: SignMode,
        chain_id: &str,
        account_number: u64,
    ) -> Result<Vec<u8>, TxError> {
        match mode {
            SignMode::AminoJson => amino::SignDoc {
                chain_id,
                account_number,
                sequence: signer.sequence,
                fee: &self.fee,
                messages: &self.body.messages,
                memo: &self.memo,
                timeout_height: self.timeout_height,
            }
            .to_bytes(),
            SignMode::Direct | SignMode::Unspecified => Ok(SignDoc {
                body_bytes: self.body_bytes.clone(),
                auth_info_bytes: self.auth_info_bytes.clone(),
                chain_id: chain_id.to_owned(),
                account_number,
            }
            .encode_to_vec()),
        }
    }

    /// Who answers for the fee: a signer that it names, or the first.
    pub fn fee_payer(&self) -> Address {
        self.payer.unwrap_or(self.signers[0].address)
    }

    /// Who pays it by a grant, if somebody else does.
    pub fn fee_granter(&self) -> Option<Address> {
        self.fee.granter.parse().ok().filter(|granter| *granter != self.fee_payer())
    }
}
