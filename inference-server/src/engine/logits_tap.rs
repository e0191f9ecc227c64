//! Looking at the whole rows of logits that tokens are drawn from: for tests of bit-equality and for debugging numerics.
//!
//! A tap is set before the engine starts. Without one nothing is copied; with one a step copies its wanted rows once,
//! and the engine's thread waits for the observer. Rows of a step that failed are not shown.

use std::fmt;
use std::sync::Arc;

use polylink_protocol::noise::NoiseKey;

/// The raw logits of one completion token (before penalties, bias and temperature).
#[derive(Clone, Copy, Debug)]
pub struct LogitsRow<'a> {
    /// Key of the choice's noise, `noise_key(seed, choice)`: tells whose row it is.
    pub noise_key: NoiseKey,
    /// Which of the choice's completion tokens is drawn from it, from 0.
    pub index: usize,
    /// `[vocabulary]`.
    pub logits: &'a [f32],
}

/// An observer of logits, called on the engine's thread.
#[derive(Clone)]
pub struct LogitsTap(Arc<dyn Fn(&LogitsRow<'_>) + Send + Sync>);

impl LogitsTap {
    /// Calls `observer` once for every completion token that is drawn.
    pub fn new(observer: impl Fn(&LogitsRow<'_>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(observer))
    }

    pub(crate) fn show(&self, row: &LogitsRow<'_>) {
        (self.0)(row);
    }
}

impl fmt::Debug for LogitsTap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogitsTap")
    }
}
