//! Keys and signatures. secp256k1 signs transactions (wallets hold these), ed25519 signs requests, receipts, vouchers
//! and disclosure requests (services hold these), ECVRF proves beacons, X25519 encrypts transcripts.
//!
//! Key material comes from the caller: this crate draws no randomness.

use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use secp256k1::{All, Message as SecpMessage, PublicKey, Secp256k1, SecretKey, ecdsa};
use sha2::{Digest as _, Sha256};

use std::sync::LazyLock;

use crate::Address;

/// Made once: making one costs as much as a signature.
static SECP256K1: LazyLock<Secp256k1<All>> = LazyLock::new(Secp256k1::new);

/// Why a key or signature is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    /// The bytes are no key of this kind.
    #[error("not a {0} key")]
    Key(&'static str),
    /// Wrong length.
    #[error("a {kind} signature has {found} bytes, 64 are expected")]
    SignatureLength {
        /// Which kind.
        kind: &'static str,
        /// Found bytes.
        found: usize,
    },
    /// s above half the group's order: another signature of the same message, made without the key.
    #[error("the secp256k1 signature is not in low-S form")]
    HighS,
    /// It does not verify.
    #[error("the {0} signature does not verify")]
    Signature(&'static str),
}

/// An account's key.
#[derive(Clone)]
pub struct AccountKey {
    secret: SecretKey,
    public: [u8; 33],
}

impl AccountKey {
    /// From 32 secret bytes.
    pub fn from_bytes(secret: &[u8; 32]) -> Result<Self, KeyError> {
        let secret = SecretKey::from_byte_array(*secret).map_err(|_| KeyError::Key("secp256k1"))?;
        let public = PublicKey::from_secret_key(&SECP256K1, &secret).serialize();
        Ok(Self { secret, public })
    }
    /// The secret, to be kept by the caller's keyring.
    pub fn secret_bytes(&self) -> [u8; 32] {
        self.secret.secret_bytes()
    }
    /// Compressed public key.
    pub fn public_key(&self) -> [u8; 33] {
        self.public
    }
    /// The account's address.
    pub fn address(&self) -> Address {
        Address::of_secp256k1(&self.public)
    }
    /// `r ‖ s` over SHA-256 of the bytes, low S, nonce by RFC 6979.
    pub fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        let message = SecpMessage::from_digest(Sha256::digest(bytes).into());
        SECP256K1.sign_ecdsa(message, &self.secret).serialize_compact()
    }
}

/// Verifies `r ‖ s` over SHA-256 of the bytes; high S is refused.
pub fn verify_secp256k1(public_key: &[u8], bytes: &[u8], signature: &[u8]) -> Result<(), KeyError> {
    let public = PublicKey::from_slice(public_key).map_err(|_| KeyError::Key("secp256k1"))?;
    let compact: &[u8; 64] =
        signature.try_into().map_err(|_| KeyError::SignatureLength { kind: "secp256k1", found: signature.len() })?;
    let signature = ecdsa::Signature::from_compact(compact).map_err(|_| KeyError::Signature("secp256k1"))?;
    let mut low = signature;
    low.normalize_s();
    if low != signature {
        return Err(KeyError::HighS);
    }
    let message = SecpMessage::from_digest(Sha256::digest(bytes).into());
    SECP256K1.verify_ecdsa(message, &signature, &public).map_err(|_| KeyError::Signature("secp256k1"))
}

/// A service's ed25519 key: spend key, receipt key, disclosure key.
#[derive(Clone)]
pub struct ServiceKey(SigningKey);

impl ServiceKey {
    /// From 32 secret bytes.
    pub fn from_bytes(secret: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(secret))
    }
    /// The secret, to be kept by the caller's keyring.
    pub fn secret_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }
    /// The public key.
    pub fn public_key(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }
    /// A 64-byte signature.
    pub fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        self.0.sign(bytes).to_bytes().to_vec()
    }
}

/// Verifies an ed25519 signature strictly (no small-order keys, canonical encodings).
pub fn verify_ed25519(public_key: &[u8], bytes: &[u8], signature: &[u8]) -> Result<(), KeyError> {
    let key: [u8; 32] = public_key.try_into().map_err(|_| KeyError::Key("ed25519"))?;
    let key = VerifyingKey::from_bytes(&key).map_err(|_| KeyError::Key("ed25519"))?;
    let signature: [u8; 64] =
        signature.try_into().map_err(|_| KeyError::SignatureLength { kind: "ed25519", found: signature.len() })?;
    key.verify_strict(bytes, &ed25519_dalek::Signature::from_bytes(&signature))
        .map_err(|_| KeyError::Signature("ed25519"))
}

/// True when the bytes are an ed25519 public key.
pub fn is_ed25519_key(public_key: &[u8]) -> bool {
    public_key.try_into().is_ok_and(|key: &[u8; 32]| VerifyingKey::from_bytes(key).is_ok_and(|k| !k.is_weak()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secp_signs_low_s_and_verifies() {
        let key = AccountKey::from_bytes(&[7; 32]).unwrap();
        let signature = key.sign(b"hello");
        assert_eq!(verify_secp256k1(&key.public_key(), b"hello", &signature), Ok(()));
        assert_eq!(verify_secp256k1(&key.public_key(), b"hullo", &signature), Err(KeyError::Signature("secp256k1")));
        // s' = n − s verifies mathematically, and is refused.
        const ORDER: &str = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141";
        let order = bnum::types::U256::from_str_radix(ORDER, 16).unwrap();
        let s = bnum::types::U256::from_str_radix(&hex::encode(&signature[32..]), 16).unwrap();
        let mut high = signature;
        let text = format!("{:0>64}", (order - s).to_str_radix(16));
        high[32..].copy_from_slice(&hex::decode(text).unwrap());
        assert_eq!(verify_secp256k1(&key.public_key(), b"hello", &high), Err(KeyError::HighS));
    }

    #[test]
    fn ed25519_is_strict_about_lengths() {
        let key = ServiceKey::from_bytes(&[9; 32]);
        let signature = key.sign(b"x");
        assert_eq!(verify_ed25519(&key.public_key(), b"x", &signature), Ok(()));
        assert!(matches!(
            verify_ed25519(&key.public_key(), b"x", &signature[..63]),
            Err(KeyError::SignatureLength { found: 63, .. })
        ));
        assert!(!is_ed25519_key(&[0; 32]));
    }
}
