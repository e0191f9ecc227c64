//! CUDA: the same program, recorded in graphs; for the exact profiles the same bits.
//!
//! Built by the feature `cuda`: `cudarc` looks the driver's library up when the program runs, so that one binary starts
//! everywhere. A machine without a driver gets an answer that says so, never a panic.
#![allow(unsafe_code)] // calls into the driver

use cudarc::driver::{result, sys};

mod activations;
mod attend;
pub(crate) mod attention;
mod backend;
pub(crate) mod driver;
#[cfg(all(test, target_os = "linux", target_arch = "x86_64"))]
pub(crate) mod emulated;
pub(crate) mod exact;
#[cfg(test)]
#[path = "cuda/exact_math/tests.rs"]
mod exact_math;
pub(crate) mod gemm;
pub(crate) mod inputs;
mod lower;
mod mixture;
mod ropes;
pub(crate) mod rows;
pub(crate) mod sampling;
mod weights;

pub use self::backend::CudaBackend;

/// A device that the driver shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaDevice {
    /// The driver's number of it.
    pub ordinal: usize,
    /// Marketing name.
    pub name: String,
    /// Compute capability, for instance (9, 0).
    pub compute_capability: (i32, i32),
    /// Memory in bytes.
    pub memory_bytes: usize,
}

/// Why there is no CUDA here.
#[derive(Debug, thiserror::Error)]
pub enum CudaUnavailable {
    /// The driver's library cannot be loaded.
    #[error("no CUDA driver (install the NVIDIA driver, or ignore this on a machine without a GPU)")]
    NoDriver,
    /// The driver is there and refuses.
    #[error("the CUDA driver does not work: {0} (check that `nvidia-smi` lists a device)")]
    Driver(String),
    /// This program holds no kernels.
    #[error("this program was built without nvcc and holds no CUDA kernels (build it by `make cuda`)")]
    NoKernels,
}

impl From<result::DriverError> for CudaUnavailable {
    fn from(error: result::DriverError) -> Self {
        CudaUnavailable::Driver(format!("{error:?}"))
    }
}

/// The devices that could be used.
///
/// # Errors
/// [`CudaUnavailable`] if there is no driver, or none that works; the caller goes on with the CPU.
pub fn probe() -> Result<Vec<CudaDevice>, CudaUnavailable> {
    // SAFETY: only tries to open the driver's library.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaUnavailable::NoDriver);
    }
    result::init()?;
    let count = usize::try_from(result::device::get_count()?).unwrap_or(0);
    (0..count).map(device).collect()
}

fn device(ordinal: usize) -> Result<CudaDevice, CudaUnavailable> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
    };
    let number = i32::try_from(ordinal).map_err(|_| CudaUnavailable::Driver("too many devices".into()))?;
    let device = result::device::get(number)?;
    // SAFETY: `device` was just given out by the driver.
    unsafe {
        let major = result::device::get_attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = result::device::get_attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let (name, memory_bytes) = (result::device::get_name(device)?, result::device::total_mem(device)?);
        Ok(CudaDevice { ordinal, name, compute_capability: (major, minor), memory_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_answers_on_any_machine() {
        match probe() {
            Ok(devices) => {
                println!("{devices:?}");
                assert!(devices.iter().all(|device| !device.name.is_empty() && device.memory_bytes > 0));
            }
            Err(reason) => assert!(reason.to_string().contains("CUDA"), "{reason}"),
        }
    }
}
