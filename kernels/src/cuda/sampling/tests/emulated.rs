//! The kernels under the emulator (`kernels/cuda/emulator`): compiled by the machine's C++ compiler, run on the CPU.

use std::ffi::{CString, c_void};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::*;
use crate::cuda::sampling::layout::SampleArgs;
use crate::memory::Aligned;

type Run = unsafe extern "C" fn(u32, *const u32, u32, *const SampleArgs);

/// Compiles and loads the emulated kernels; `None`, said aloud, without a compiler.
fn kernels() -> Option<MutexGuard<'static, Run>> {
    static LOADED: OnceLock<Option<Mutex<Run>>> = OnceLock::new();
    // One kernel at a time: shared memory is static.
    let loaded = LOADED.get_or_init(|| load().map(Mutex::new)).as_ref()?;
    Some(loaded.lock().unwrap_or_else(PoisonError::into_inner))
}

fn load() -> Option<Run> {
    let source = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/cuda/emulator/sampler.cpp"));
    let library = std::env::temp_dir().join(format!("polylink-emulated-sampler-{}.so", std::process::id()));
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let arguments = ["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-Wno-unknown-pragmas"];
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

struct Emulated {
    run: MutexGuard<'static, Run>,
    layout: Layout,
    plan: Plan,
    logits: Aligned<f32>,
    arena: Aligned<f32>,
    upload: Vec<u64>,
}

impl Emulated {
    fn new(shape: &Shape, scores_rows: usize) -> Option<Self> {
        let run = kernels()?;
        let logits = Aligned::<f32>::zeroed(shape.limits.wanted_rows * shape.stride);
        let layout = shape.layout(logits.as_ptr() as u64, scores_rows);
        Some(Self {
            run,
            plan: Plan::new(&shape.limits),
            arena: Aligned::zeroed(layout.bytes / 4),
            upload: vec![0; layout.upload_words],
            logits,
            layout,
        })
    }

    fn words(&self, at: usize, count: usize) -> Vec<u32> {
        self.arena[at / 4..][..count].iter().map(|value| value.to_bits()).collect()
    }
}

impl Target for Emulated {
    fn set_logits(&mut self, logits: &[f32]) {
        self.logits.copy_from_slice(logits);
    }

    fn poison(&mut self) {
        for range in self.layout.unreliable() {
            self.arena[range.start / 4..range.end / 4].fill(f32::from_bits(u32::MAX));
        }
    }

    fn step(
        &mut self,
        step: &SampleStep<'_>,
        slots: &mut SlotState,
        samples: &mut Vec<Sampled>,
    ) -> Result<(), BackendError> {
        let base = self.arena.as_ptr() as u64;
        for start in step.starts {
            let SlotHistory { tokens, .. } = &slots.histories[start.slot as usize];
            let at = self.layout.histories / 4 + start.slot as usize * self.layout.positions();
            self.arena[at..].iter_mut().zip(tokens).for_each(|(to, token)| *to = f32::from_bits(*token));
        }
        self.upload.fill(u64::MAX);
        self.plan.make(&self.layout, step, &slots.jobs, &slots.histories, base, &mut self.upload)?;
        for (to, word) in self.arena.chunks_exact_mut(2).zip(&self.upload[..self.plan.words]) {
            to.copy_from_slice(&[f32::from_bits(*word as u32), f32::from_bits((*word >> 32) as u32)]);
        }
        for planned in &self.plan.launches {
            let place = Kernel::ALL.iter().position(|kernel| *kernel == planned.kernel).unwrap() as u32;
            // SAFETY: the arguments point into the arena and the logits, laid out as the kernels have it.
            unsafe { (self.run)(place, planned.grid.as_ptr(), planned.kernel.entry().2, &planned.args) };
        }
        // SAFETY: as many results as rows lie there, written by the kernels.
        let results = unsafe {
            let first = self.arena.as_ptr().cast::<u8>().add(self.layout.results).cast::<SampleResult>();
            std::slice::from_raw_parts(first, slots.jobs.len())
        };
        samples.clear();
        samples.extend(results.iter().map(SampleResult::sampled));
        settle(slots, samples, self.layout.positions())
    }

    fn slots(&self) -> (Vec<u32>, Vec<u32>) {
        let slots = self.plan.slots();
        (self.words(self.layout.last_sample, slots), self.words(self.layout.histories, slots * self.layout.positions()))
    }
}

#[test]
fn draws_what_the_cpu_draws() {
    let mut wrong = Vec::new();
    // Vocabulary, stride, rows, rows of adjusted scores at once, steps.
    let shapes = [
        (1, 1, 3, 3, 20),
        (17, 17, 9, 9, 150),
        (17, 20, 9, 2, 150),
        (1000, 1000, 12, 1, 60),
        (4099, 4099, 7, 7, 30),
        (4099, 4160, 7, 3, 30),
        (32000, 32000, 6, 2, 12),
        (128_256, 128_256, 4, 2, 4),
    ];
    for (vocabulary, stride, rows, scores_rows, steps) in shapes {
        let shape = Shape::new(vocabulary, stride, rows);
        let Some(mut target) = Emulated::new(&shape, scores_rows) else { return };
        wrong.extend(wander(&mut target, &shape, 0x5eed + vocabulary as u64, steps));
    }
    none_wrong(&wrong);
}

#[test]
fn refuses_more_lists_than_there_is_room_for() {
    let shape = Shape::new(100, 100, 2);
    let layout = shape.layout(0, 1);
    let mut slots = slot_state(&shape.limits);
    let bias = vec![(3, 1.0); 20_000];
    let parts = Parts { logit_bias: bias, ..Parts::default() };
    let mut plan = Plan::new(&shape.limits);
    let mut upload = vec![0; layout.upload_words];
    slots.jobs.clear();
    let refused = plan.make(&layout, &parts.step(), &slots.jobs, &slots.histories, 0, &mut upload).unwrap_err();
    assert!(refused.to_string().contains("20000 logit biases"), "{refused}");
}
