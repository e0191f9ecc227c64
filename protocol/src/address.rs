//! Account, validator and consensus addresses: 20 bytes in bech32 (BIP-173) under the prefixes of this chain.

use bech32::{Bech32, Hrp};
use ripemd::Ripemd160;
use sha2::{Digest as _, Sha256};
use std::{fmt, str::FromStr};

/// Prefix of accounts.
pub const PREFIX: &str = "poly";
/// Prefix of validator operators.
pub const PREFIX_VALOPER: &str = "polyvaloper";
/// Prefix of consensus keys.
pub const PREFIX_VALCONS: &str = "polyvalcons";

/// A 20-byte address. Its text is the account form; the others are asked for by name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub [u8; 20]);

/// Why a text is not an address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AddressError {
    /// Not bech32: characters, length or checksum.
    #[error("`{text}` is not a bech32 address: {reason}")]
    Malformed {
        /// As given, cut to 100 characters.
        text: String,
        /// What the decoder said.
        reason: String,
    },
    /// Of another chain or of another kind.
    #[error("`{text}` has the prefix `{found}`, `{expected}` is expected")]
    Prefix {
        /// As given, cut to 100 characters.
        text: String,
        /// Its prefix.
        found: String,
        /// The one asked for.
        expected: &'static str,
    },
    /// Not 20 bytes.
    #[error("`{text}` holds {len} bytes, 20 are expected")]
    Length {
        /// As given, cut to 100 characters.
        text: String,
        /// Its bytes.
        len: usize,
    },
}

impl Address {
    /// Of a compressed secp256k1 key: RIPEMD-160(SHA-256(33 bytes)).
    pub fn of_secp256k1(public_key: &[u8; 33]) -> Self {
        Self(Ripemd160::digest(Sha256::digest(public_key)).into())
    }
    /// Of an ed25519 consensus key: the first 20 bytes of its SHA-256 (CometBFT).
    pub fn of_consensus_key(public_key: &[u8; 32]) -> Self {
        Self::truncated(&Sha256::digest(public_key))
    }
    /// Of a module's account: the first 20 bytes of SHA-256(name) (Cosmos SDK, `NewModuleAddress`).
    pub fn of_module(name: &str) -> Self {
        Self::truncated(&Sha256::digest(name.as_bytes()))
    }
    /// The account form, `poly1…`.
    pub fn account(&self) -> String {
        self.encode(PREFIX)
    }
    /// The operator form, `polyvaloper1…`.
    pub fn valoper(&self) -> String {
        self.encode(PREFIX_VALOPER)
    }
    /// The consensus form, `polyvalcons1…`.
    pub fn valcons(&self) -> String {
        self.encode(PREFIX_VALCONS)
    }
    /// From the operator form.
    pub fn from_valoper(text: &str) -> Result<Self, AddressError> {
        Self::decode(text, PREFIX_VALOPER)
    }
    /// From the consensus form.
    pub fn from_valcons(text: &str) -> Result<Self, AddressError> {
        Self::decode(text, PREFIX_VALCONS)
    }

    fn truncated(hash: &[u8]) -> Self {
        let mut out = [0; 20];
        out.copy_from_slice(&hash[..20]);
        Self(out)
    }
    fn encode(&self, prefix: &'static str) -> String {
        let hrp = Hrp::parse(prefix).expect("the prefixes are constants of lower-case letters");
        bech32::encode::<Bech32>(hrp, &self.0).expect("20 bytes are within bech32's length")
    }
    fn decode(text: &str, expected: &'static str) -> Result<Self, AddressError> {
        let shown = || text.chars().take(100).collect::<String>();
        let checked = bech32::primitives::decode::CheckedHrpstring::new::<Bech32>(text)
            .map_err(|e| AddressError::Malformed { text: shown(), reason: e.to_string() })?;
        let found = checked.hrp().to_string();
        if found != expected {
            return Err(AddressError::Prefix { text: shown(), found, expected });
        }
        let bytes: Vec<u8> = checked.byte_iter().collect();
        let len = bytes.len();
        bytes.try_into().map(Self).map_err(|_| AddressError::Length { text: shown(), len })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.account())
    }
}
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.account())
    }
}
impl FromStr for Address {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::decode(text, PREFIX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_go_round_and_are_not_confused() {
        let a = Address::of_module("bonded_tokens_pool");
        assert_eq!(a.account().parse(), Ok(a));
        assert_eq!(Address::from_valoper(&a.valoper()), Ok(a));
        assert!(matches!(a.valoper().parse::<Address>(), Err(AddressError::Prefix { .. })));
        assert!(matches!("cosmos1qqqq".parse::<Address>(), Err(AddressError::Malformed { .. })));
        let mut typo = a.account();
        typo.pop();
        typo.push('q');
        assert!(
            typo.parse::<Address>() == Ok(a) || matches!(typo.parse::<Address>(), Err(AddressError::Malformed { .. }))
        );
    }

    #[test]
    fn known_cosmos_module_address() {
        // The Cosmos Hub's `fee_collector`, re-encoded with this chain's prefix: same 20 bytes.
        assert_eq!(hex::encode(Address::of_module("fee_collector").0), "f1829676db577682e944fc3493d451b67ff3e29f");
    }
}
