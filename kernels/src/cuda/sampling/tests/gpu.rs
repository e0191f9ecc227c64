//! The kernels on a GPU.

use super::*;

struct Gpu {
    sampler: Sampler,
    logits: DeviceBuffer,
}

impl Gpu {
    fn new(device: &Arc<Device>, shape: &Shape, scores_rows: usize) -> Self {
        let logits = device.alloc(4 * shape.limits.wanted_rows * shape.stride).unwrap();
        let layout = shape.layout(logits.ptr(), scores_rows);
        Self { sampler: Sampler::with_layout(device, layout, &shape.limits).unwrap(), logits }
    }
}

impl Target for Gpu {
    fn set_logits(&mut self, logits: &[f32]) {
        self.logits.write(0, logits).unwrap();
    }

    fn poison(&mut self) {
        for range in self.sampler.layout.unreliable() {
            // The scores are large: the start of them.
            let bytes = range.len().min(1 << 20);
            self.sampler.arena.write(range.start, &vec![0xffu8; bytes]).unwrap();
        }
    }

    fn step(
        &mut self,
        step: &SampleStep<'_>,
        slots: &mut SlotState,
        samples: &mut Vec<Sampled>,
    ) -> Result<(), BackendError> {
        self.sampler.prepare(step, slots)?;
        self.sampler.submit(step, slots).unwrap();
        self.sampler.device.synchronize().unwrap();
        self.sampler.take(slots, samples)
    }

    fn slots(&self) -> (Vec<u32>, Vec<u32>) {
        let Layout { last_sample, histories, .. } = self.sampler.layout;
        let slots = self.sampler.plan.slots();
        let read = |at, count| self.sampler.arena.read::<u32>(at, count).unwrap();
        (read(last_sample, slots), read(histories, slots * self.sampler.layout.positions()))
    }
}

#[test]
fn draws_what_the_cpu_draws_on_a_gpu() {
    let Some(device) = Device::for_tests() else { return };
    let seed = fresh_seed();
    let mut wrong = Vec::new();
    let shapes = [
        (1, 1, 3, 3, 10),
        (17, 17, 24, 24, 60),
        (1000, 1000, 24, 5, 60),
        (4099, 4099, 16, 16, 40),
        (4099, 4160, 16, 3, 40),
        (32_000, 32_000, 16, 16, 25),
        (128_256, 128_256, 16, 16, 12),
        (151_936, 151_936, 16, 4, 8),
        (300_000, 300_032, 3, 3, 6),
    ];
    for (vocabulary, stride, rows, scores_rows, steps) in shapes {
        let shape = Shape::new(vocabulary, stride, rows);
        let mut target = Gpu::new(&device, &shape, scores_rows);
        let found = wander(&mut target, &shape, seed ^ vocabulary as u64, steps);
        println!("vocabulary {vocabulary}: {} differences", found.len());
        wrong.extend(found);
    }
    let shape = Shape::new(128_256, 128_256, 8);
    let mut target = Gpu::new(&device, &shape, 1);
    let found = crowded(&mut target, &shape, seed);
    println!("crowded: {} differences", found.len());
    wrong.extend(found);
    none_wrong(&wrong);
}

/// Times of a step's launches, uploads and downloads apart; with POLYLINK_GPU_TIMES=1.
#[test]
fn times_of_draws() {
    if std::env::var_os("POLYLINK_GPU_TIMES").is_none() {
        return;
    }
    let Some(device) = Device::for_tests() else { return };
    let vocabulary = 128_256;
    let mut shape = Shape::new(vocabulary, vocabulary, 256);
    shape.limits.slots = 256;
    let mut target = Gpu::new(&device, &shape, 256);
    let mut random = Random(7);
    let flat: Vec<f32> = (0..256 * vocabulary).map(|_| random.normal() * 3.0).collect();
    let mut peaked = flat.clone();
    for row in peaked.chunks_exact_mut(vocabulary) {
        for place in 0..100 {
            let token = random.below(vocabulary);
            row[token] = 24.0 - 0.1 * place as f32 + random.normal();
        }
    }
    let warm = SampleParams { temperature: 0.8, ..SampleParams::greedy() };
    let kinds: [(&str, SampleParams, Option<u32>, bool); 7] = [
        ("greedy", SampleParams::greedy(), None, false),
        ("temperature 0.8", warm, None, false),
        ("top-p 0.9, top-k 50", SampleParams { top_k: 50, top_p: 0.9, ..warm }, None, false),
        ("top-p 0.9", SampleParams { top_p: 0.9, ..warm }, None, false),
        ("min-p 0.05", SampleParams { min_p: 0.05, ..warm }, None, false),
        ("temperature 0.8, 20 logprobs", warm, Some(20), false),
        ("greedy, penalties over 300", SampleParams { repetition_penalty: 1.1, ..SampleParams::greedy() }, None, true),
    ];
    let mut rows = RowState::default();
    for row in 0..256 {
        rows.wanted.push(row);
        rows.sketch_rows.push(SketchRow { noise_key: NoiseKey(0), position: 100 + row });
    }
    let data = [("peaked", &peaked), ("flat", &flat)];
    for ((shape_of, logits), (name, params, logprobs, penalties)) in
        data.into_iter().flat_map(|one| kinds.map(|kind| (one, kind)))
    {
        target.set_logits(logits);
        for count in [1u32, 32, 256] {
            let mut parts = Parts::default();
            for row in 0..count {
                if penalties {
                    let prompt = span(&mut parts.histories, random.tokens(299, vocabulary));
                    parts.starts.push(SlotStart { slot: row, prompt, completion: Span::default() });
                }
                let none = Span::default();
                let params = SampleParams { noise_key: noise_key(b"time", row), ..params };
                let (logit_bias, suppressed, mask) = (none, none, none);
                parts.rows.push(SampleRow {
                    row,
                    slot: row,
                    params,
                    logit_bias,
                    suppressed,
                    mask,
                    logprobs,
                    given: None,
                });
            }
            let mut slots = slot_state(&shape.limits);
            let mut samples = Vec::new();
            let step = parts.step();
            step_check::sample(&step, &shape.limits, vocabulary, &rows, &mut slots).unwrap();
            target.step(&step, &mut slots, &mut samples).unwrap();
            target.sampler.prepare(&step, &slots).unwrap();
            let launches: Vec<Launch> = target.sampler.launches().to_vec();
            let run = || launches.iter().try_for_each(|launch| launch.run(&device));
            run().unwrap();
            let graph = device
                .capture(|| (0..10).try_for_each(|_| launches.iter().try_for_each(|launch| launch.run(&device))))
                .unwrap();
            let seconds = device.time(9, || graph.launch()).unwrap() / 10.0;
            let bytes = 4.0 * vocabulary as f64 * f64::from(count);
            println!(
                "{shape_of}, {name}: {count} rows × {vocabulary}: {:.1} µs, {} launches, {:.2} TB/s of logits read once",
                seconds * 1e6,
                launches.len(),
                bytes / seconds * 1e-12
            );
        }
    }
}
