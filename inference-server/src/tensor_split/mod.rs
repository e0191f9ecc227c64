//! One model over several processes: a tensor split through TCP, with the same bits as one process.

mod error;

pub use error::SplitError;
