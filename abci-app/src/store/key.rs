//! Building the keys of the state: `prefix ‖ big-endian fields`.
//!
//! Big-endian integers sort as numbers, so that a prefix scan walks heights, epochs and indices in
//! their order. Fields of variable length are length-prefixed unless they come last, so that no key
//! of one kind is a prefix of a neighbour's. The table of all keys is in `docs/state-keys.md`.

/// Builds one key. `KeyBuilder::new(0x21).u64(epoch).bytes(&worker).finish()`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyBuilder(Vec<u8>);

impl KeyBuilder {
    /// Starts a key with its table's prefix byte.
    pub fn new(prefix: u8) -> Self {
        let mut key = Vec::with_capacity(48);
        key.push(prefix);
        KeyBuilder(key)
    }

    /// Appends one byte.
    #[must_use]
    pub fn u8(mut self, field: u8) -> Self {
        self.0.push(field);
        self
    }

    /// Appends a 32-bit integer, big-endian.
    #[must_use]
    pub fn u32(mut self, field: u32) -> Self {
        self.0.extend_from_slice(&field.to_be_bytes());
        self
    }

    /// Appends a 64-bit integer, big-endian.
    #[must_use]
    pub fn u64(mut self, field: u64) -> Self {
        self.0.extend_from_slice(&field.to_be_bytes());
        self
    }

    /// Appends a field of fixed length (an address, a digest) or the last field, as it is.
    #[must_use]
    pub fn bytes(mut self, field: &[u8]) -> Self {
        self.0.extend_from_slice(field);
        self
    }

    /// Appends a field of variable length that is followed by others: two bytes of length,
    /// big-endian, then the field. Fields longer than [`MAX_KEY_BYTES`](super::MAX_KEY_BYTES) make a
    /// key that the store refuses.
    #[must_use]
    pub fn var(mut self, field: &[u8]) -> Self {
        let length = u16::try_from(field.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(field);
        self
    }

    /// The key, or the prefix of a scan.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

impl From<KeyBuilder> for Vec<u8> {
    fn from(builder: KeyBuilder) -> Self {
        builder.0
    }
}

impl AsRef<[u8]> for KeyBuilder {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
