//! Kernels under the emulator (`kernels/cuda/emulator`): compiled by the machine's C++ compiler, run on the CPU. For tests.

use std::ffi::{CString, c_void};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Number of the kernel, grid, threads of a block, the kernel's arguments.
type Run = unsafe extern "C" fn(u32, *const u32, u32, *const c_void);

/// Kernels of one file of the emulator's folder.
pub(crate) struct Emulated {
    /// Held while a kernel runs: what blocks share is static.
    run: Mutex<Run>,
}

impl Emulated {
    /// Compiles and loads `kernels/cuda/emulator/<stem>.cpp`; `None`, said aloud, without a compiler.
    pub fn load(stem: &str) -> Option<Self> {
        let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/cuda/emulator"));
        let library = std::env::temp_dir().join(format!("polylink-emulated-{stem}-{}.so", std::process::id()));
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
        let arguments = ["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-Wno-unknown-pragmas"];
        // What is not aligned as its type wants it ends the test, as it would end the kernel.
        let aligned = ["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"];
        let source = folder.join(format!("{stem}.cpp"));
        let output = match Command::new(&compiler)
            .args(arguments)
            .args(aligned)
            .arg("-I")
            .arg(&folder)
            .arg(&source)
            .arg("-o")
            .arg(&library)
            .output()
        {
            Ok(output) => output,
            Err(reason) => {
                println!("skipped: no C++ compiler {compiler} ({reason})");
                return None;
            }
        };
        assert!(output.status.success(), "{stem}.cpp: {}", String::from_utf8_lossy(&output.stderr));
        let path = CString::new(library.clone().into_os_string().into_encoded_bytes()).expect("a path has no zero");
        // SAFETY: a library of this repository, whose one function has the type `Run`; it is never unloaded.
        let run = unsafe {
            let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
            assert!(!handle.is_null(), "{stem}: the emulated kernels cannot be loaded");
            let symbol = libc::dlsym(handle, c"emulated_launch".as_ptr());
            assert!(!symbol.is_null());
            std::mem::transmute::<*mut c_void, Run>(symbol)
        };
        let _ = std::fs::remove_file(&library);
        Some(Self { run: Mutex::new(run) })
    }

    /// Runs a kernel of the file by its number there.
    ///
    /// # Safety
    /// The arguments are laid out as the kernel has them, and what they point at is there.
    pub unsafe fn launch<P>(&self, kernel: u32, grid: [u32; 3], block: u32, args: &P) {
        let run: MutexGuard<'_, Run> = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the caller's promise.
        unsafe { (*run)(kernel, grid.as_ptr(), block, std::ptr::from_ref(args).cast()) };
    }
}
