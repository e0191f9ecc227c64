//! RoPE tables on the device.

use std::sync::Arc;

use super::driver::{CudaError, Device, DeviceBuffer};
use crate::operations::RopeTable;
use crate::program::RopeSpec;

/// One table, `[positions][pairs]` f32 each.
#[derive(Debug)]
pub(super) struct DeviceRope {
    pub pairs: usize,
    pub sine: DeviceBuffer,
    pub cosine: DeviceBuffer,
    /// Of long sequences, where they differ.
    pub long: Option<[DeviceBuffer; 2]>,
}

impl DeviceRope {
    /// The table of positions `0..positions`.
    pub fn new(device: &Arc<Device>, spec: &RopeSpec, positions: usize) -> Result<Self, CudaError> {
        let RopeTable { pairs, sine, cosine, long } = RopeTable::new(spec, positions);
        let long = match long {
            Some((sine, cosine)) => Some([device.from_slice(&sine)?, device.from_slice(&cosine)?]),
            None => None,
        };
        Ok(Self { pairs, sine: device.from_slice(&sine)?, cosine: device.from_slice(&cosine)?, long })
    }

    /// Bytes of a table of this specification.
    pub fn bytes(spec: &RopeSpec, positions: usize) -> usize {
        let tables = if spec.long.is_some() { 4 } else { 2 };
        4 * tables * positions * spec.frequencies.len()
    }
}
