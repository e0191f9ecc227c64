//! The host's side of a step: what the device copies from and to it, and what of it is under way. The device's own memory is one
//! step's: what two of them do there is in order.

use std::sync::Arc;

use crate::backend::{Limits, Ticket};
use crate::cuda::driver::{CudaError, Device, Event, Pinned};
use crate::executor::RowState;
use crate::step::SKETCH_VALUES;

pub(super) struct Passage {
    /// The inputs, as they go up.
    pub staging: Pinned<u32>,
    pub sketches: Pinned<[u16; SKETCH_VALUES]>,
    pub rows: RowState,
    pub logits_out: bool,
    pub forward: Option<Ticket>,
    pub sample: Option<Ticket>,
    /// Before a forward step's inputs go up; after its last kernel; after the draws behind it.
    pub begun: Event,
    pub forward_done: Event,
    pub sample_done: Event,
}

impl Passage {
    /// For steps within the limits, of at most `words` words of inputs.
    pub fn new(device: &Arc<Device>, words: usize, limits: &Limits) -> Result<Self, CudaError> {
        Ok(Self {
            staging: device.pinned(words)?,
            sketches: device.pinned(limits.wanted_rows)?,
            rows: RowState {
                tokens: Vec::with_capacity(limits.rows),
                sequence_of: Vec::with_capacity(limits.rows),
                positions: Vec::with_capacity(limits.rows),
                wanted: Vec::with_capacity(limits.wanted_rows),
                sketch_rows: Vec::with_capacity(limits.wanted_rows),
            },
            logits_out: false,
            forward: None,
            sample: None,
            begun: device.event(true)?,
            forward_done: device.event(true)?,
            sample_done: device.event(true)?,
        })
    }

    /// What is to be waited for next.
    pub fn oldest(&self) -> Option<Ticket> {
        self.forward.or(self.sample)
    }

    pub fn is_under_way(&self) -> bool {
        self.oldest().is_some()
    }
}
