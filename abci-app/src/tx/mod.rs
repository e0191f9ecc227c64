//! Transactions: from received bytes to executed messages.

/// Characters of a memo at most (the SDK's default).
pub const MEMO_CHARACTERS_MAX: usize = 256;
/// Signers of a transaction at most (the SDK's default).
pub const SIGNATURES_MAX: usize = 7;
