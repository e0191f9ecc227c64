//! The kernels under the emulator.

use std::sync::OnceLock;

use super::*;
use crate::cuda::emulated::Emulated;
use crate::memory::Aligned;

/// The sampler's kernels, compiled once; `None` without a compiler.
fn kernels() -> Option<&'static Emulated> {
    static LOADED: OnceLock<Option<Emulated>> = OnceLock::new();
    LOADED.get_or_init(|| Emulated::load("sampler")).as_ref()
}

struct OnCpu {
    kernels: &'static Emulated,
    layout: Layout,
    plan: Plan,
    logits: Aligned<f32>,
    arena: Aligned<f32>,
    upload: Vec<u64>,
}

impl OnCpu {
    fn new(shape: &Shape, scores_rows: usize) -> Option<Self> {
        let kernels = kernels()?;
        let logits = Aligned::<f32>::zeroed(shape.limits.wanted_rows * shape.stride);
        let layout = shape.layout(logits.as_ptr() as u64, scores_rows);
        Some(Self {
            kernels,
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

impl Target for OnCpu {
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
            unsafe { self.kernels.launch(place, planned.grid, planned.kernel.entry().2, &planned.args) };
        }
        // SAFETY: as many results as rows lie there, written by the kernels.
        let results = unsafe {
            let first = self.arena.as_ptr().cast::<u8>().add(self.layout.results).cast::<SampleResult>();
            std::slice::from_raw_parts(first, slots.jobs.len())
        };
        samples.clear();
        samples.extend(results.iter().map(SampleResult::sampled));
        settle(slots, &slots.jobs.clone(), samples, self.layout.positions())
    }

    fn slots(&self) -> (Vec<u32>, Vec<u32>) {
        let slots = self.plan.slots();
        (self.words(self.layout.last_sample, slots), self.words(self.layout.histories, slots * self.layout.positions()))
    }
}

#[test]
fn draws_what_the_cpu_draws() {
    let seed = fresh_seed();
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
        let Some(mut target) = OnCpu::new(&shape, scores_rows) else { return };
        wrong.extend(wander(&mut target, &shape, seed ^ vocabulary as u64, steps));
    }
    let shape = Shape::new(128_256, 128_256, 2);
    let Some(mut target) = OnCpu::new(&shape, 1) else { return };
    wrong.extend(crowded(&mut target, &shape, seed));
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
