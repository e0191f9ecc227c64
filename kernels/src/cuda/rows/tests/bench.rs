//! Where a test runs: on a GPU, or under the emulator on the CPU, where memory is the machine's own and ends at a page that
//! nobody may touch.

use std::sync::{Arc, Mutex};

use crate::cuda::driver::{CudaError, Device, DeviceBuffer, DevicePtr, Launch};
use crate::cuda::rows::RowKernels;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
use crate::cuda::{driver::Function, emulated::Emulated};
use crate::memory::Aligned;

/// A device and its kernels.
pub(in super::super) struct Bench {
    pub kernels: RowKernels,
    place: Place,
}

enum Place {
    Gpu(Arc<Device>),
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    Emulated(&'static Emulated),
}

/// Memory of the place.
pub(in super::super) enum Memory {
    Gpu(DeviceBuffer),
    Host { words: Mutex<Aligned<f32>>, bytes: usize },
}

impl Bench {
    /// `None`, said aloud, if there is no GPU.
    pub fn gpu() -> Option<Self> {
        let device = Device::for_tests()?;
        device.bind().expect("the device was opened");
        let kernels = RowKernels::load(&device).expect("the kernels are embedded");
        Some(Self { kernels, place: Place::Gpu(device) })
    }

    /// `None`, said aloud, if there is no compiler.
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    pub fn emulated() -> Option<Self> {
        static LOADED: std::sync::OnceLock<Option<Emulated>> = std::sync::OnceLock::new();
        let emulated = LOADED.get_or_init(|| Emulated::load("rows")).as_ref()?;
        // Kernels are numbered as the emulator's file lists them.
        let listed = include_str!("../../../../cuda/emulator/rows.cpp").split("kernel(\"").skip(1);
        let names: Vec<&str> = listed.filter_map(|rest| rest.split('"').next()).collect();
        let function = |_: &str, name: &str| {
            let number = names.iter().position(|known| *known == name);
            Ok(Function::emulated(number.unwrap_or_else(|| panic!("the emulator does not list kernel {name}"))))
        };
        let kernels = RowKernels::with(132, &function).expect("all kernels are emulated");
        Some(Self { kernels, place: Place::Emulated(emulated) })
    }

    /// There is no emulator for this machine.
    #[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
    pub fn emulated() -> Option<Self> {
        println!("skipped: the emulator runs on Linux on x86-64");
        None
    }

    /// Whether so many values are too many to be computed here.
    pub fn too_large(&self, values: usize) -> bool {
        !matches!(self.place, Place::Gpu(_)) && values > 1 << 19
    }

    /// The GPU.
    pub fn device(&self) -> &Arc<Device> {
        match &self.place {
            Place::Gpu(device) => device,
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Place::Emulated(_) => panic!("asked for under the emulator"),
        }
    }

    pub fn upload<T: Copy>(&self, values: &[T]) -> Memory {
        let memory = self.poisoned(size_of_val(values));
        memory.write(0, values).expect("a copy");
        memory
    }

    /// Memory whose every word is NaN.
    pub fn poisoned(&self, bytes: usize) -> Memory {
        let bytes = bytes.max(4);
        match &self.place {
            Place::Gpu(device) => {
                let buffer = device.alloc(bytes).expect("memory of the device");
                buffer.fill(0xff).expect("a fill");
                Memory::Gpu(buffer)
            }
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Place::Emulated(_) => {
                let mut words = Aligned::zeroed(bytes.div_ceil(4));
                words.fill(f32::from_bits(u32::MAX));
                Memory::Host { words: Mutex::new(words), bytes }
            }
        }
    }

    pub fn run(&self, what: &str, launch: &Launch) {
        match &self.place {
            Place::Gpu(device) => {
                let ran = launch.run(device).and_then(|()| device.synchronize());
                ran.unwrap_or_else(|error| panic!("{what}: {error}"));
            }
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Place::Emulated(emulated) => launch.emulate(|number, grid, block, params| {
                // SAFETY: the number is that of a kernel which takes these parameters; they point into live memory.
                unsafe { emulated.launch(number as u32, grid, block, params) };
            }),
        }
    }
}

impl Memory {
    pub fn ptr(&self) -> DevicePtr {
        match self {
            Memory::Gpu(buffer) => buffer.ptr(),
            Memory::Host { words, .. } => words.lock().expect("no test panics with it").as_ptr() as DevicePtr,
        }
    }

    pub fn bytes(&self) -> usize {
        match self {
            Memory::Gpu(buffer) => buffer.bytes(),
            Memory::Host { bytes, .. } => *bytes,
        }
    }

    pub fn write<T: Copy>(&self, at_byte: usize, values: &[T]) -> Result<(), CudaError> {
        match self {
            Memory::Gpu(buffer) => buffer.write(at_byte, values),
            Memory::Host { words, bytes } => {
                assert!(at_byte + size_of_val(values) <= *bytes, "a copy beyond the memory");
                let mut words = words.lock().expect("no test panics with it");
                let to = words.as_mut_ptr().cast::<u8>();
                // SAFETY: within the memory, which is borrowed; values of plain numbers.
                unsafe { to.add(at_byte).copy_from_nonoverlapping(values.as_ptr().cast(), size_of_val(values)) };
                Ok(())
            }
        }
    }

    pub fn read<T: Copy + Default>(&self, at_byte: usize, count: usize) -> Result<Vec<T>, CudaError> {
        match self {
            Memory::Gpu(buffer) => buffer.read(at_byte, count),
            Memory::Host { words, bytes } => {
                assert!(at_byte + count * size_of::<T>() <= *bytes, "a copy beyond the memory");
                let mut values = vec![T::default(); count];
                let words = words.lock().expect("no test panics with it");
                let from = words.as_ptr().cast::<u8>();
                let to = values.as_mut_ptr().cast::<u8>();
                // SAFETY: within the memory, which is borrowed; any bits are a `T` of plain numbers.
                unsafe { to.copy_from_nonoverlapping(from.add(at_byte), count * size_of::<T>()) };
                Ok(values)
            }
        }
    }
}
