//! What a sample step becomes: rows as the kernels read them, and the launches that they need. Pure: no driver.

use super::layout::{HEADER, Header, Kernel, Layout, PARTS_MAX, Planned, ROW, Row, flag};
use crate::backend::{BackendError, Limits};
use crate::cuda::driver::DevicePtr;
use crate::sampler::{SampleJob, SlotHistory};
use crate::step::{SampleParams, SampleStep};

/// A k of top-k that leaves few tokens.
const LISTED: u32 = 1024;

/// Blocks of `sampler_scan` that a device runs at once: eight on each of some 132 processors.
const BLOCKS: usize = 1056;

/// Reused lists of a plan.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What is to be uploaded: the first `words` words.
    pub words: usize,
    pub launches: Vec<Planned>,
    rows: Vec<Row>,
    /// Tokens that this step adds, by slot.
    added: Vec<u32>,
}

impl Plan {
    pub fn new(limits: &Limits) -> Self {
        Self {
            words: 0,
            launches: Vec::with_capacity(8),
            rows: Vec::with_capacity(limits.wanted_rows),
            added: vec![0; limits.slots],
        }
    }

    /// Slots that there are.
    #[cfg(test)]
    pub fn slots(&self) -> usize {
        self.added.len()
    }

    /// Plans a step that was checked and whose slot starts are applied to `histories`. `upload` has `upload_words` words; the
    /// arena lies at `base`.
    pub fn make(
        &mut self,
        layout: &Layout,
        step: &SampleStep<'_>,
        jobs: &[SampleJob],
        histories: &[SlotHistory],
        base: DevicePtr,
        upload: &mut [u64],
    ) -> Result<(), BackendError> {
        let lists = Lists::write(step, HEADER + jobs.len() * ROW, base, upload)?;
        self.rows.clear();
        self.added.fill(0);
        let positions = layout.positions();
        for job in jobs {
            let mut row = row(job, &lists, step, layout.vocabulary());
            let (slot, history) = (job.row.slot as usize, &histories[job.row.slot as usize]);
            (row.history_length, row.prompt_length) = (history.tokens.len() as u32, history.prompt_length as u32);
            row.append_at = u32::MAX;
            if job.row.given.is_none() {
                let at = history.tokens.len() + self.added[slot] as usize;
                row.append_at = if at < positions { at as u32 } else { u32::MAX };
                self.added[slot] += 1;
            }
            self.rows.push(row);
        }
        for (row, _) in self.rows.iter_mut().zip(jobs).rev().filter(|(_, job)| job.row.given.is_none()) {
            let added = &mut self.added[row.slot as usize];
            row.flags |= if *added > 0 { flag::LAST } else { 0 };
            *added = 0;
        }
        self.list(layout, base);
        let mut header = Header { rows: jobs.len() as u32, ..Header::default() };
        for (list, count) in header.listed.iter_mut().enumerate() {
            *count = self.count(list) as u32;
        }
        put(&mut upload[..HEADER], &header);
        for (words, row) in upload[HEADER..].chunks_exact_mut(ROW).zip(&self.rows) {
            put(words, row);
        }
        self.words = lists.end;
        Ok(())
    }

    fn count(&self, list: usize) -> usize {
        match list {
            ADJUSTED => self.rows.iter().filter(|row| row.flags & flag::ADJUSTED != 0).count(),
            SCANNED => self.rows.len(),
            CUT => self.rows.iter().filter(|row| row.flags & flag::CUT != 0).count(),
            _ => self.rows.iter().filter(|row| row.flags & (flag::LOGPROBS | flag::GIVEN) != 0).count(),
        }
    }

    /// Fills in the lists, rows that are not adjusted first, and the launches.
    fn list(&mut self, layout: &Layout, base: DevicePtr) {
        let mut ends = [0usize; 4];
        let mut adjusted = 0;
        // Where the pass's entries of the lists begin.
        let mut begin = [0; 4];
        self.launches.clear();
        for turn in 0..2 {
            for index in 0..self.rows.len() {
                let flags = self.rows[index].flags;
                let is_adjusted = flags & flag::ADJUSTED != 0;
                if is_adjusted != (turn == 1) {
                    continue;
                }
                if is_adjusted {
                    if adjusted == layout.adjusted_rows {
                        self.pass(layout, base, begin, Some(ends));
                        begin = ends;
                        adjusted = 0;
                    }
                    self.rows[index].scores_row = adjusted as u32;
                    adjusted += 1;
                }
                let member = [is_adjusted, true, flags & flag::CUT != 0, flags & (flag::LOGPROBS | flag::GIVEN) != 0];
                for list in (0..4).filter(|&list| member[list]) {
                    self.rows[ends[list]].listed[list] = index as u32;
                    ends[list] += 1;
                }
            }
        }
        self.pass(layout, base, begin, None);
        // Logprobs are of the raw logits: all passes' at once.
        let args = layout.args(base, self.parts(layout));
        if ends[SCORED] > 0 {
            let grid = [ends[SCORED].next_power_of_two() as u32, 1, 1];
            self.launches.push(Planned { kernel: Kernel::Logprobs, grid, args });
        }
        self.launches.push(Planned { kernel: Kernel::Finish, grid: [1, 1, 1], args });
    }

    /// Blocks per row: as many as the device runs at once, of at least 1024 tokens each.
    fn parts(&self, layout: &Layout) -> usize {
        let rows = self.rows.len().max(1).next_power_of_two();
        (BLOCKS / rows).clamp(1, PARTS_MAX.min(layout.vocabulary().div_ceil(1024)))
    }

    /// The launches of entries `from .. to` of the lists; the last pass, mostly the only one, takes all that the device's
    /// counts name.
    fn pass(&mut self, layout: &Layout, base: DevicePtr, from: [usize; 4], to: Option<[usize; 4]>) {
        let parts = self.parts(layout);
        let weighs = self.rows.iter().any(|row| row.flags & (flag::BY_RANK | flag::BY_WEIGHT) == flag::BY_WEIGHT);
        let draws = self.rows.iter().any(|row| row.flags & flag::DRAWN_APART != 0);
        let kernels = [
            (Kernel::Adjust, ADJUSTED, true),
            (Kernel::Scan, SCANNED, true),
            (Kernel::Weigh, CUT, weighs),
            (Kernel::Cut, CUT, true),
            (Kernel::Draw, CUT, draws),
        ];
        for (kernel, list, _) in kernels.into_iter().filter(|(.., needed)| *needed) {
            let count = to.map_or_else(|| self.count(list), |to| to[list]) - from[list];
            if count == 0 {
                continue;
            }
            let mut args = layout.args(base, parts);
            (args.first, args.last) = (from[list] as u32, to.map_or(u32::MAX, |to| to[list] as u32));
            let rows = count.next_power_of_two() as u32;
            let grid = if matches!(kernel, Kernel::Scan | Kernel::Weigh | Kernel::Draw) {
                [parts as u32, rows, 1]
            } else {
                [rows, 1, 1]
            };
            self.launches.push(Planned { kernel, grid, args });
        }
    }
}

const ADJUSTED: usize = 0;
const SCANNED: usize = 1;
const CUT: usize = 2;
const SCORED: usize = 3;

/// Writes a plain structure over words.
fn put<T: Copy>(words: &mut [u64], value: &T) {
    assert!(size_of::<T>() == 8 * words.len() && align_of::<T>() <= 8);
    // SAFETY: as many bytes, aligned; T is a structure of plain numbers without padding.
    unsafe { words.as_mut_ptr().cast::<T>().write(*value) };
}

/// Where the step's shared slices were put.
struct Lists {
    bias: DevicePtr,
    suppressed: DevicePtr,
    masks: DevicePtr,
    /// Words that are in use.
    end: usize,
}

impl Lists {
    fn write(step: &SampleStep<'_>, first: usize, base: DevicePtr, upload: &mut [u64]) -> Result<Self, BackendError> {
        let SampleStep { logit_bias, suppressed, masks, .. } = *step;
        let words = [logit_bias.len(), suppressed.len().div_ceil(2), masks.len().div_ceil(2)];
        let end = first + words.iter().sum::<usize>();
        if end > upload.len() {
            let (biases, suppressed, masks) = (logit_bias.len(), suppressed.len(), masks.len());
            return Err(BackendError::Step(format!(
                "{biases} logit biases, {suppressed} suppressed tokens and {masks} words of masks in one step: there is room for {} bytes",
                8 * (upload.len() - first)
            )));
        }
        let [bias, rest, _] = words;
        let at = |word: usize| base + 8 * word as u64;
        for (word, (token, bias)) in upload[first..].iter_mut().zip(logit_bias) {
            *word = u64::from(*token) | u64::from(bias.to_bits()) << 32;
        }
        let pairs = |words: &mut [u64], values: &[u32]| {
            for (word, pair) in words.iter_mut().zip(values.chunks(2)) {
                *word = u64::from(pair[0]) | u64::from(pair.get(1).copied().unwrap_or(0)) << 32;
            }
        };
        pairs(&mut upload[first + bias..], suppressed);
        pairs(&mut upload[first + bias + rest..], masks);
        Ok(Self { bias: at(first), suppressed: at(first + bias), masks: at(first + bias + rest), end })
    }
}

/// A row but for what depends on the slots and the lists.
fn row(job: &SampleJob, lists: &Lists, step: &SampleStep<'_>, vocabulary: usize) -> Row {
    let one = &job.row;
    let SampleParams { temperature, top_k, top_p, min_p, .. } = one.params;
    let mut flags = 0;
    let mut set = |flag: u32, is: bool| flags |= if is { flag } else { 0 };
    set(flag::LOGPROBS, one.logprobs.is_some());
    let biases = one.logit_bias.of(step.logit_bias).unwrap_or_default();
    let greedy = temperature <= 0.0;
    if one.given.is_some() {
        set(flag::GIVEN, true);
    } else {
        let penalties = one.params.has_penalties();
        set(flag::GREEDY, greedy);
        set(flag::PENALTIES, penalties);
        let by_rank = !greedy && top_k > 0 && (top_k as usize) < vocabulary;
        let (by_weight, by_share) = (!greedy && top_p < 1.0, !greedy && min_p > 0.0);
        set(flag::BY_RANK, by_rank);
        set(flag::BY_WEIGHT, by_weight);
        set(flag::BY_SHARE, by_share);
        // Of a small k there is a list, from which sampler_cut draws at once.
        set(flag::DRAWN_APART, (by_weight || by_share || by_rank) && !(by_rank && top_k <= LISTED));
        set(flag::ADJUSTED, penalties || one.logit_bias.length > 0 || one.suppressed.length > 0);
        set(flag::BIAS_REPEATS, !biases.is_sorted_by(|a, b| a.0 < b.0));
    }
    let words = |base: DevicePtr, span: crate::step::Span, bytes: u64| base + bytes * u64::from(span.start);
    Row {
        bias: words(lists.bias, one.logit_bias, 8),
        suppressed: words(lists.suppressed, one.suppressed, 4),
        mask: if one.mask.length > 0 && one.given.is_none() { words(lists.masks, one.mask, 4) } else { 0 },
        noise_key: one.params.noise_key.0,
        // As `sampler::share`: exact, since f64 holds an f32 times a power of two.
        share: (f64::from(top_p.max(0.0)) * 4_294_967_296.0) as u64,
        logits_row: one.row,
        slot: one.slot,
        position: job.position,
        flags,
        given: one.given.unwrap_or(0),
        top_count: one.logprobs.unwrap_or(0).min(vocabulary as u32),
        top_k,
        bias_count: one.logit_bias.length,
        suppressed_count: one.suppressed.length,
        temperature,
        min_p,
        repetition: one.params.repetition_penalty,
        presence: one.params.presence_penalty,
        frequency: one.params.frequency_penalty,
        ..Row::default()
    }
}
