//! What an engine is given to do, and the figures that come of it.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Tokens that a figure of decoding counts.
const DECODED: usize = 64;
/// Tokens of a prompt before them.
const BEFORE: usize = 128;

/// Streams that start together, each with a prompt of its own, all of one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// How many.
    pub streams: usize,
    /// Prompt tokens of each.
    pub prompt: usize,
    /// Completion tokens of each: exactly so many.
    pub completion: usize,
    /// Leading tokens of the prompts that are the same in all and were seen before; 0: nothing was.
    pub shared: usize,
    /// Whether it is about the very prompts of the last such load of this length: all but their ends are in the cache.
    pub again: bool,
}

impl Load {
    /// Prompts that share nothing with any other.
    pub fn new(streams: usize, prompt: usize, completion: usize) -> Self {
        Self { streams, prompt, completion, shared: 0, again: false }
    }
    /// Tokens of one stream, prompt and completion.
    pub fn tokens(&self) -> usize {
        self.prompt.saturating_add(self.completion)
    }
    /// Completion tokens of all streams.
    pub fn completed(&self) -> usize {
        self.streams * self.completion
    }
}

/// A rate that contestants are compared by, in tokens per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Prompt tokens of one request that asks for one token.
    Prefill {
        /// Its length.
        tokens: usize,
    },
    /// Completion tokens of one request, what its prompt takes not counted.
    Decode,
    /// Completion tokens of streams that are under way together, each behind a prompt of its own that is in the cache:
    /// what more tokens take than one.
    Steps(Load),
    /// Completion tokens of streams that start together, prompts included in the time.
    Serve(Load),
    /// The same, where most of each prompt is in the cache.
    SharedPrefix(Load),
    /// What that would be if tokens found in the cache cost nothing: steps at this depth, as all prompts are found in the
    /// cache with and without them, and prompts computed as a whole, less the same up to where they differ.
    FreePrefix(Load),
}

impl Figure {
    /// Such as `serve_32x128+64`.
    pub fn name(&self) -> String {
        let load = |load: &Load| format!("{}x{}+{}", load.streams, load.prompt, load.completion);
        match self {
            Figure::Prefill { tokens } => format!("prefill_{tokens}"),
            Figure::Decode => "decode".into(),
            Figure::Steps(of) => format!("decode_{}x{}", of.streams, of.prompt),
            Figure::Serve(of) => format!("serve_{}", load(of)),
            Figure::SharedPrefix(of) => format!("shared_prefix_{}", load(of)),
            Figure::FreePrefix(of) => format!("free_prefix_{}", load(of)),
        }
    }

    /// What is timed, one after the other.
    pub fn loads(&self) -> Vec<Load> {
        match self {
            Figure::Prefill { tokens } => vec![Load::new(1, *tokens, 1)],
            Figure::Decode => vec![Load::new(1, BEFORE, 1 + DECODED), Load::new(1, BEFORE, 1)],
            Figure::Steps(of) => {
                let found = Load { completion: 1, again: true, ..*of };
                // The first one only puts the prompts into the cache, unless they are there.
                vec![found, Load { again: true, completion: of.completion.saturating_add(1), ..*of }, found]
            }
            Figure::Serve(load) | Figure::SharedPrefix(load) => vec![*load],
            Figure::FreePrefix(of) => {
                let found = Load { shared: of.prompt, completion: 1, ..*of };
                let steps = Load { shared: of.prompt, ..*of };
                // The first one only puts the prompt into the cache.
                vec![found, steps, found, Load::new(of.streams, of.prompt, 1), Load::new(of.streams, of.shared, 1)]
            }
        }
    }

    /// The rate, from the seconds of each load. None if they make no sense: the longer one took no longer.
    pub fn rate(&self, seconds: &[f64]) -> Option<f64> {
        let (tokens, time) = match (self, seconds) {
            (Figure::Prefill { tokens }, [time]) => (*tokens, *time),
            (Figure::Decode, [long, short]) => (DECODED, long - short),
            (Figure::Steps(load), [_, long, short]) => (load.completed(), long - short),
            (Figure::Serve(load) | Figure::SharedPrefix(load), [time]) => (load.completed(), *time),
            (Figure::FreePrefix(load), [_, steps, found, whole, shared]) => {
                (load.completed(), (steps - found).max(0.0) + (whole - shared).max(0.0))
            }
            _ => return None,
        };
        (time > 0.0).then(|| tokens as f64 / time)
    }

    /// What a shared prefix is compared with.
    pub fn free_prefix(&self) -> Option<Figure> {
        let Figure::SharedPrefix(load) = self else { return None };
        Some(Figure::FreePrefix(*load))
    }
}

/// Prompts as token ids: the same for every contestant, and none of them twice.
pub struct Prompts {
    random: ChaCha8Rng,
    ids: std::ops::Range<u32>,
}

impl Prompts {
    /// Ids that any vocabulary of this size has as ordinary tokens; the first ones are often special.
    pub fn new(vocabulary: usize) -> Self {
        let high = vocabulary.clamp(2, 2_048) as u32;
        Self { random: ChaCha8Rng::seed_from_u64(1), ids: high.min(600) / 2..high }
    }

    /// The prompt of one of `load`'s streams.
    pub fn next(&mut self, load: &Load, stream: usize) -> Vec<u32> {
        if load.again {
            let mut own = ChaCha8Rng::seed_from_u64(3 + stream as u64);
            return (0..load.prompt).map(|_| own.random_range(self.ids.clone())).collect();
        }
        let mut shared = ChaCha8Rng::seed_from_u64(2);
        let shared = (0..load.shared).map(|_| shared.random_range(self.ids.clone()));
        let own = (load.shared..load.prompt).map(|_| self.random.random_range(self.ids.clone()));
        shared.chain(own).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_alike_only_where_they_are_said_to() {
        let mut prompts = Prompts::new(4_096);
        let load = Load { shared: 20, ..Load::new(2, 30, 1) };
        let (first, second) = (prompts.next(&load, 0), prompts.next(&load, 1));
        assert_eq!((first.len(), &first[..20]), (30, &second[..20]));
        assert_ne!(first[20..], second[20..]);
        assert!(first.iter().all(|id| (300..2_048).contains(id)));
        let longer = prompts.next(&Load { shared: 25, ..load }, 0);
        assert_eq!(longer[..20], first[..20], "a longer shared prefix begins with the shorter one");
        let again = Load { again: true, ..Load::new(2, 30, 1) };
        let (first, second) = (prompts.next(&again, 0), prompts.next(&again, 1));
        assert_ne!(first, second);
        assert_eq!(prompts.next(&Load { completion: 9, ..again }, 0), first, "asked for again");
    }

    #[test]
    fn rates_are_tokens_by_the_time_that_they_took() {
        assert_eq!(Figure::Prefill { tokens: 512 }.rate(&[2.0]), Some(256.0));
        assert_eq!(Figure::Decode.rate(&[1.5, 0.5]), Some(64.0));
        assert_eq!(Figure::Decode.rate(&[0.5, 0.5]), None);
        let steps = Figure::Steps(Load::new(8, 100, 10));
        assert_eq!((steps.rate(&[9.0, 3.0, 1.0]), steps.name()), (Some(40.0), "decode_8x100".to_owned()));
        assert_eq!(steps.loads().iter().map(|load| load.completion).collect::<Vec<_>>(), [1, 11, 1]);
        let shared = Figure::SharedPrefix(Load { shared: 90, ..Load::new(8, 100, 10) });
        assert_eq!(shared.rate(&[4.0]), Some(20.0));
        let free = shared.free_prefix().unwrap();
        let prompts: Vec<(usize, usize)> = free.loads().iter().map(|load| (load.prompt, load.shared)).collect();
        assert_eq!(prompts, [(100, 100), (100, 100), (100, 100), (100, 0), (90, 0)]);
        assert_eq!(free.rate(&[9.0, 4.0, 1.0, 7.0, 6.0]), Some(20.0));
        assert_eq!(shared.name(), "shared_prefix_8x100+10");
    }
}
