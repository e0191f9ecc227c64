//! Where the tests run kernels: a device, if there is one, else the emulator (`kernels/cuda/emulator`), if there is a C++
//! compiler: the same source, compiled for this processor.
#![allow(unsafe_code)] // calls into a library, memory of plain numbers

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::*;
use crate::memory::Aligned;

type Run = unsafe extern "C" fn(*const c_char, *const c_char, *const u32, u32, u32, *const c_void) -> c_int;

/// Runs kernels.
pub(crate) enum Machine {
    Device(Arc<Device>),
    /// One kernel at a time: shared memory is static.
    Emulator(MutexGuard<'static, Run>),
}

/// Memory of a machine.
pub(crate) enum Memory {
    Device(DeviceBuffer),
    Host(Aligned<f32>, usize),
}

/// A file of the emulator whose kernels are known by their names.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Emulated {
    Exact,
    Attention,
    Gemm,
}

fn load(file: Emulated) -> Option<Run> {
    let stem = format!("{file:?}").to_lowercase();
    let source = PathBuf::from(format!("{}/cuda/emulator/{stem}.cpp", env!("CARGO_MANIFEST_DIR")));
    let library = std::env::temp_dir().join(format!("polylink-emulated-{stem}-{}.so", std::process::id()));
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let arguments =
        ["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-fvisibility=hidden", "-Wno-unknown-pragmas"];
    let compiled = Command::new(&compiler).args(arguments).arg(&source).arg("-o").arg(&library).output();
    let output = match compiled {
        Ok(output) => output,
        Err(reason) => {
            println!("skipped: no C++ compiler {compiler} ({reason})");
            return None;
        }
    };
    assert!(output.status.success(), "the emulated kernels: {}", String::from_utf8_lossy(&output.stderr));
    let path = CString::new(library.to_str().unwrap()).unwrap();
    // SAFETY: a library of this repository, whose one function has the type `Run`; it is never unloaded.
    let run = unsafe {
        let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        assert!(!handle.is_null(), "the emulated kernels cannot be loaded");
        let symbol = libc::dlsym(handle, c"emulated_launch".as_ptr());
        assert!(!symbol.is_null());
        std::mem::transmute::<*mut c_void, Run>(symbol)
    };
    std::fs::remove_file(&library).unwrap();
    Some(run)
}

impl Machine {
    /// The device; where there is none, the emulator, if it can be built. (A device's time is worth more than both.)
    pub fn all() -> Vec<Machine> {
        Self::all_for(Emulated::Exact)
    }

    /// The same for the kernels of another file of the emulator.
    pub fn all_for(file: Emulated) -> Vec<Machine> {
        static LOADED: [OnceLock<Option<Mutex<Run>>>; 3] = [const { OnceLock::new() }; 3];
        if let Some(device) = Device::for_tests() {
            return vec![Machine::Device(device)];
        }
        let loaded = || if cfg!(target_arch = "x86_64") { load(file).map(Mutex::new) } else { None };
        let emulator = LOADED[file as usize].get_or_init(loaded);
        let emulator = emulator.as_ref().map(|run| run.lock().unwrap_or_else(PoisonError::into_inner));
        emulator.map(Machine::Emulator).into_iter().collect()
    }

    pub fn name(&self) -> &'static str {
        match self {
            Machine::Device(_) => "device",
            Machine::Emulator(_) => "emulator",
        }
    }

    /// Whether it is slow.
    pub fn slow(&self) -> bool {
        matches!(self, Machine::Emulator(_))
    }

    pub fn multiprocessors(&self) -> u32 {
        match self {
            Machine::Device(device) => device.multiprocessors(),
            Machine::Emulator(_) => 3,
        }
    }

    /// Poisoned memory: all bits set.
    pub fn memory(&self, bytes: usize) -> Memory {
        let memory = match self {
            Machine::Device(device) => Memory::Device(device.alloc(bytes).unwrap()),
            Machine::Emulator(_) => Memory::Host(Aligned::zeroed(bytes.div_ceil(4).max(4)), bytes),
        };
        memory.poison();
        memory
    }

    pub fn holding<T: Copy>(&self, values: &[T]) -> Memory {
        let memory = self.memory(size_of_val(values));
        memory.write(values);
        memory
    }

    /// Runs a kernel to its end.
    pub fn run<P: Copy>(&self, call: &Call<P>) -> Result<(), String> {
        match self {
            Machine::Device(device) => {
                let done = device.function(call.module, call.name).and_then(|function| {
                    function.allow_shared(call.shared)?;
                    call.launch(&function).run(device)?;
                    device.synchronize()
                });
                done.map_err(|error| format!("{}: {error}", call.name))
            }
            Machine::Emulator(run) => {
                let (module, name) = (CString::new(call.module).unwrap(), CString::new(call.name).unwrap());
                assert!(call.shared <= 227 << 10, "{} wants {} bytes of shared memory", call.name, call.shared);
                let params = (&raw const call.params).cast();
                // SAFETY: the parameters are laid out as the kernel has it, and point to memory of this machine.
                let found = unsafe {
                    (**run)(module.as_ptr(), name.as_ptr(), call.grid.as_ptr(), call.block, call.shared, params)
                };
                if found == 1 { Ok(()) } else { Err(format!("no kernel {} in {}", call.name, call.module)) }
            }
        }
    }
}

impl Memory {
    pub fn ptr(&self) -> DevicePtr {
        match self {
            Memory::Device(buffer) => buffer.ptr(),
            Memory::Host(values, _) => values.as_ptr() as u64,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Memory::Device(buffer) => buffer.bytes(),
            Memory::Host(_, bytes) => *bytes,
        }
    }

    pub fn poison(&self) {
        match self {
            Memory::Device(buffer) => buffer.fill(0xff).unwrap(),
            // SAFETY: its own memory; nobody else looks at it while a test writes.
            Memory::Host(values, _) => unsafe {
                values.as_ptr().cast_mut().cast::<u8>().write_bytes(0xff, values.len() * 4);
            },
        }
    }

    pub fn write<T: Copy>(&self, values: &[T]) {
        assert!(size_of_val(values) <= self.bytes());
        match self {
            Memory::Device(buffer) => buffer.write(0, values).unwrap(),
            // SAFETY: within its own memory, checked; as above.
            Memory::Host(own, _) => unsafe {
                own.as_ptr().cast_mut().cast::<u8>().copy_from(values.as_ptr().cast(), size_of_val(values));
            },
        }
    }

    pub fn read<T: Copy + Default>(&self, count: usize) -> Vec<T> {
        assert!(count * size_of::<T>() <= self.bytes());
        match self {
            Memory::Device(buffer) => buffer.read(0, count).unwrap(),
            // SAFETY: within its own memory, checked; any bits are a T of plain numbers.
            Memory::Host(own, _) => unsafe { std::slice::from_raw_parts(own.as_ptr().cast(), count).to_vec() },
        }
    }
}
