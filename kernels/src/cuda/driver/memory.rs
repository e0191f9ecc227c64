//! Memory of the device, and memory of the host that it copies from and to.
#![allow(unsafe_code)] // calls into the driver

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::result;

use super::{CudaError, Device, DevicePtr, Result, failed};

/// Memory of the device.
#[derive(Debug)]
pub(crate) struct DeviceBuffer {
    device: Arc<Device>,
    ptr: DevicePtr,
    bytes: usize,
}

impl DeviceBuffer {
    /// Takes memory that the driver has given out.
    pub(super) fn new(device: Arc<Device>, ptr: DevicePtr, bytes: usize) -> Self {
        Self { device, ptr, bytes }
    }

    /// Its address.
    pub fn ptr(&self) -> DevicePtr {
        self.ptr
    }

    /// As asked for.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn check<T>(&self, at_byte: usize, count: usize) -> Result<()> {
        if at_byte.checked_add(count * size_of::<T>()).is_none_or(|end| end > self.bytes) {
            let reason = format!("{count} values at byte {at_byte} of a buffer of {}", self.bytes);
            return Err(CudaError::Driver { what: "copy", reason });
        }
        self.device.synchronize()
    }

    /// Writes values, after everything that was launched, and waits until they are there.
    pub fn write<T: Copy>(&self, at_byte: usize, values: &[T]) -> Result<()> {
        self.check::<T>(at_byte, values.len())?;
        // SAFETY: within the buffer, checked; the source lives until the copy is complete.
        unsafe { result::memcpy_htod_async(self.ptr + at_byte as u64, values, self.device.stream) }
            .map_err(failed("copy"))?;
        // Over the device's own stream: one that does not block is not ordered with the default stream.
        self.device.synchronize()
    }

    /// Copies bytes of another buffer, and waits until they are there.
    pub fn copy_from(&self, at_byte: usize, from: &Self, bytes: usize) -> Result<()> {
        from.check::<u8>(0, bytes)?;
        self.check::<u8>(at_byte, bytes)?;
        // SAFETY: within both buffers, checked.
        unsafe { result::memcpy_dtod_sync(self.ptr + at_byte as u64, from.ptr, bytes) }.map_err(failed("copy"))?;
        self.device.synchronize()
    }

    /// Reads values, after everything that was launched.
    pub fn read<T: Copy + Default>(&self, at_byte: usize, count: usize) -> Result<Vec<T>> {
        self.check::<T>(at_byte, count)?;
        let mut values = vec![T::default(); count];
        // SAFETY: within the buffer, checked; any bits are a `T` of plain numbers; waited for before anyone looks.
        unsafe { result::memcpy_dtoh_async(&mut values, self.ptr + at_byte as u64, self.device.stream) }
            .map_err(failed("copy"))?;
        self.device.synchronize()?;
        Ok(values)
    }

    /// Sets all bytes.
    pub fn fill(&self, byte: u8) -> Result<()> {
        self.check::<u8>(0, self.bytes)?;
        // SAFETY: within the buffer.
        unsafe { result::memset_d8_async(self.ptr, byte, self.bytes, self.device.stream) }.map_err(failed("fill"))?;
        self.device.synchronize()
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if self.device.synchronize().is_ok() {
            // SAFETY: given out by the driver, freed once, and nothing that was launched still uses it.
            let _ = unsafe { result::free_sync(self.ptr) };
        }
    }
}

/// Page-locked memory of the host.
#[derive(Debug)]
pub(crate) struct Pinned<T> {
    device: Arc<Device>,
    ptr: *mut T,
    count: usize,
}

// SAFETY: it owns its memory, as a Vec does.
unsafe impl<T: Send> Send for Pinned<T> {}

impl<T: Copy> Pinned<T> {
    /// Takes initialised memory that the driver has given out.
    pub(super) fn new(device: Arc<Device>, ptr: *mut T, count: usize) -> Self {
        Self { device, ptr, count }
    }

    /// All of it.
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: `count` initialised values that this owns.
        unsafe { std::slice::from_raw_parts(self.ptr, self.count) }
    }

    /// All of it. No copy may be under way.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.count) }
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        if self.device.synchronize().is_ok() {
            // SAFETY: given out by the driver, freed once; no copy is under way.
            let _ = unsafe { result::free_host(self.ptr.cast::<c_void>()) };
        }
    }
}
