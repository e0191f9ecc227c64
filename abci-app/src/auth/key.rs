//! The key of an account: a secp256k1 key, or several of which some must sign (`LegacyAminoPubKey`).

use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::crypto::multisig::LegacyAminoPubKey;
use polylink_protocol::cosmos::cosmos::crypto::secp256k1::PubKey;
use polylink_protocol::tx::any;
use polylink_protocol::{Address, Message, Name};
use sha2::{Digest as _, Sha256};

use crate::error::TxError;

/// What an account signs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    /// One key, compressed.
    Single([u8; 33]),
    /// Several, of which `threshold` sign.
    Multi {
        /// At least one, at most all.
        threshold: u32,
        /// In the order that the address is made of.
        keys: Vec<[u8; 33]>,
    },
}

fn single(any: &Any) -> Result<[u8; 33], TxError> {
    if any.type_url != PubKey::type_url() {
        let shown: String = any.type_url.chars().take(64).flat_map(char::escape_debug).collect();
        return Err(TxError::InvalidPubkey(format!("accounts have secp256k1 keys, not {shown}")));
    }
    let key = PubKey::decode(any.value.as_slice()).map_err(|error| TxError::Decode(format!("PubKey: {error}")))?.key;
    let len = key.len();
    key.try_into().map_err(|_| TxError::InvalidPubkey(format!("a secp256k1 key has 33 bytes, not {len}")))
}

impl PublicKey {
    /// From a transaction. Other kinds of keys are refused by name, multi-signature keys within others too.
    pub fn from_any(any: &Any) -> Result<Self, TxError> {
        if any.type_url != LegacyAminoPubKey::type_url() {
            return single(any).map(PublicKey::Single);
        }
        let multi = LegacyAminoPubKey::decode(any.value.as_slice())
            .map_err(|error| TxError::Decode(format!("LegacyAminoPubKey: {error}")))?;
        let keys = multi.public_keys.iter().map(single).collect::<Result<Vec<_>, _>>()?;
        let (threshold, of) = (multi.threshold, keys.len());
        if threshold == 0 || threshold as usize > of {
            return Err(TxError::InvalidPubkey(format!("{threshold} of {of} keys cannot sign")));
        }
        Ok(PublicKey::Multi { threshold, keys })
    }

    /// As queries show it.
    pub fn to_any(&self) -> Any {
        let single = |key: &[u8; 33]| any(&PubKey { key: key.to_vec() });
        match self {
            PublicKey::Single(key) => single(key),
            PublicKey::Multi { threshold, keys } => {
                any(&LegacyAminoPubKey { threshold: *threshold, public_keys: keys.iter().map(single).collect() })
            }
        }
    }

    /// As it is stored: 33 bytes, or a threshold of four bytes and the keys.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            PublicKey::Single(key) => key.to_vec(),
            PublicKey::Multi { threshold, keys } => [&threshold.to_be_bytes()[..], &keys.concat()].concat(),
        }
    }

    /// The inverse of [`Self::to_bytes`]; `None` of no bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if let Ok(key) = bytes.try_into() {
            return Some(PublicKey::Single(key));
        }
        let threshold = u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?);
        let keys = bytes[4..].chunks(33).map(|key| key.try_into().ok()).collect::<Option<Vec<_>>>()?;
        Some(PublicKey::Multi { threshold, keys })
    }

    /// The keys in it.
    pub fn len(&self) -> usize {
        match self {
            PublicKey::Single(_) => 1,
            PublicKey::Multi { keys, .. } => keys.len(),
        }
    }

    /// Never: a key has at least one.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The address of its account. That of several keys is made of their amino encoding: its first 20 bytes of SHA-256.
    pub fn address(&self) -> Address {
        match self {
            PublicKey::Single(key) => Address::of_secp256k1(key),
            PublicKey::Multi { threshold, keys } => {
                // Amino's prefixes of `tendermint/PubKeyMultisigThreshold` and `tendermint/PubKeySecp256k1`.
                let mut bytes = vec![0x22, 0xc1, 0xf7, 0xe2, 0x08];
                prost::encoding::encode_varint(u64::from(*threshold), &mut bytes);
                for key in keys {
                    bytes.extend_from_slice(&[0x12, 0x26, 0xeb, 0x5a, 0xe9, 0x87, 0x21]);
                    bytes.extend_from_slice(key);
                }
                let mut address = [0; 20];
                address.copy_from_slice(&Sha256::digest(&bytes)[..20]);
                Address(address)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_go_round_and_impossible_ones_are_refused() {
        let keys = vec![[2; 33], [3; 33], [4; 33]];
        for key in [PublicKey::Single([2; 33]), PublicKey::Multi { threshold: 2, keys: keys.clone() }] {
            assert_eq!(PublicKey::from_any(&key.to_any()).as_ref(), Ok(&key));
            assert_eq!(PublicKey::from_bytes(&key.to_bytes()).as_ref(), Some(&key));
        }
        assert_eq!(PublicKey::from_bytes(&[]), None);
        for threshold in [0, 4] {
            let key = PublicKey::Multi { threshold, keys: keys.clone() };
            assert!(matches!(PublicKey::from_any(&key.to_any()), Err(TxError::InvalidPubkey(_))));
        }
        let inner = PublicKey::Multi { threshold: 1, keys }.to_any();
        let nested = any(&LegacyAminoPubKey { threshold: 1, public_keys: vec![inner] });
        assert!(matches!(PublicKey::from_any(&nested), Err(TxError::InvalidPubkey(_))));
    }
}
