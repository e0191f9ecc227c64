//! Why a device group does not come together, or came apart.

/// What is wrong with a split, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// The peer cannot be reached.
    #[error("peer {peer}: {reason}; start it with `polylink serve --join` and check the address")]
    Unreachable {
        /// Its address.
        peer: String,
        /// What the system said.
        reason: String,
    },
    /// The other side does not follow the protocol.
    #[error("peer {peer} does not speak this protocol: {reason}")]
    Protocol {
        /// Its address.
        peer: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// The other side refused.
    #[error("peer {peer} refused: {reason}")]
    Refused {
        /// Its address.
        peer: String,
        /// What it said.
        reason: String,
    },
    /// The setting does not fit.
    #[error("split: {0}")]
    Config(String),
    /// Listening failed.
    #[error("cannot listen on {address}: {reason}; choose another port")]
    Listen {
        /// The address.
        address: String,
        /// What the system said.
        reason: String,
    },
}
