//! Building and signing Cosmos transactions (`cosmos.tx.v1beta1`, SIGN_MODE_DIRECT), for the project's own clients.
//! What the ledger accepts is decided in `abci-app`, which shares only the type names here.

use cosmos_sdk_proto::Any;
use cosmos_sdk_proto::cosmos::base::v1beta1::Coin;
use cosmos_sdk_proto::cosmos::tx::v1beta1::{
    AuthInfo, Fee, ModeInfo, SignDoc, SignerInfo, TxBody, TxRaw,
    mode_info::{Single, Sum},
};
use prost::{Message, Name};
use sha2::{Digest as _, Sha256};

use crate::keys::AccountKey;
use crate::{Amount, DENOM};

/// Type URL of single secp256k1 public keys.
pub const SECP256K1_PUBKEY_URL: &str = "/cosmos.crypto.secp256k1.PubKey";

/// What a signature binds besides the messages.
#[derive(Clone, Debug)]
pub struct SignContext {
    /// Chain id.
    pub chain_id: String,
    /// Of the signer's account.
    pub account_number: u64,
    /// Of the signer's account, counting its transactions.
    pub sequence: u64,
    /// The most gas it may use.
    pub gas_limit: u64,
    /// Paid whether or not it succeeds.
    pub fee: Amount,
    /// Free text.
    pub memo: String,
}

/// Packs a message behind its type URL.
pub fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// Signs with one secp256k1 key and returns the bytes of a `TxRaw`.
pub fn sign_direct(messages: Vec<Any>, context: &SignContext, key: &AccountKey) -> Vec<u8> {
    let body = TxBody { messages, memo: context.memo.clone(), ..Default::default() }.encode_to_vec();
    let public_key = cosmos_sdk_proto::cosmos::crypto::secp256k1::PubKey { key: key.public_key().to_vec() };
    let amount = match context.fee {
        Amount::ZERO => vec![],
        fee => vec![Coin { denom: DENOM.into(), amount: fee.to_string() }],
    };
    let auth_info = AuthInfo {
        signer_infos: vec![SignerInfo {
            public_key: Some(Any { type_url: SECP256K1_PUBKEY_URL.into(), value: public_key.encode_to_vec() }),
            mode_info: Some(ModeInfo { sum: Some(Sum::Single(Single { mode: 1 })) }),
            sequence: context.sequence,
        }],
        fee: Some(Fee { amount, gas_limit: context.gas_limit, ..Default::default() }),
        ..Default::default()
    }
    .encode_to_vec();
    let sign_doc = SignDoc {
        body_bytes: body.clone(),
        auth_info_bytes: auth_info.clone(),
        chain_id: context.chain_id.clone(),
        account_number: context.account_number,
    };
    let signature = key.sign(&sign_doc.encode_to_vec()).to_vec();
    TxRaw { body_bytes: body, auth_info_bytes: auth_info, signatures: vec![signature] }.encode_to_vec()
}

/// A transaction's hash: SHA-256 of its bytes, upper-case hexadecimal.
pub fn hash(tx: &[u8]) -> String {
    hex::encode_upper(Sha256::digest(tx))
}
