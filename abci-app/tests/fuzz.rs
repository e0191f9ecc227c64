//! The fuzz targets, a bounded number of times in every run: made-up bytes, and sensible ones with alterations. Memory is
//! counted: it may not grow out of proportion to the input. `abci-app/fuzz` runs the same functions under `cargo fuzz`.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;

use polylink_abci_app::fuzzing::{TARGETS, asked, executed, seeds};

/// Inputs of a target; the variable `POLYLINK_FUZZ_INPUTS` says another number.
const INPUTS: u64 = 1_500;

/// What a call may hold at a time, beside a multiple of its input: a block's hooks, a page of rows.
const BYTES_BASE: u64 = 8 << 20;
const BYTES_FACTOR: u64 = 256;

/// splitmix64: the inputs are the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap()
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most)).map(|_| self.next() as u8).collect()
    }

    /// Some bytes altered, cut, doubled, or set to what lengths like least.
    fn altered(&mut self, seed: &[u8]) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(6) {
                0 => bytes.truncate(at),
                1 => bytes.splice(at..at, [0xff; 9]).for_each(drop),
                2 => bytes.extend_from_within(at..),
                3 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                _ if at < bytes.len() => bytes[at] = self.next() as u8,
                _ => {}
            }
        }
        bytes
    }
}

#[test]
fn no_input_panics_or_takes_memory_out_of_proportion() {
    let inputs = std::env::var("POLYLINK_FUZZ_INPUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(INPUTS);
    let seeds = seeds();
    for (name, target) in TARGETS {
        let seeds = seeds.get(name).cloned().unwrap_or_default();
        let mut random = Random(name.len() as u64);
        // Tables that are made once are no input's.
        seeds.iter().for_each(|seed| target(seed));
        target(&[]);
        let mut most = 0;
        for number in 0..inputs {
            let data = match seeds.first() {
                Some(seed) if number % 4 != 0 => random.altered(seed),
                _ => random.bytes(if *name == "message" { 1_500 } else { 400 }),
            };
            let result = std::panic::catch_unwind(|| allocation_counter::measure(|| target(&data)));
            let used = result.unwrap_or_else(|_| panic!("{name} panics on input {number}: {data:02x?}"));
            let limit = BYTES_BASE + BYTES_FACTOR * data.len() as u64;
            assert!(used.bytes_max <= limit, "{name} takes {} bytes for {}: {data:02x?}", used.bytes_max, data.len());
            most = most.max(used.bytes_max);
        }
        println!("{name}: {inputs} inputs, at most {most} bytes");
    }
}

/// What is made of random bytes gets past the handlers' checks: some of most kinds succeed.
#[test]
fn made_up_messages_reach_the_handlers() {
    let mut random = Random(1);
    let mut reached = BTreeMap::new();
    for _ in 0..2 * INPUTS {
        for url in executed(&random.bytes(1_500)) {
            *reached.entry(url).or_insert(0) += 1;
        }
    }
    println!("succeeded: {reached:?}");
    assert!(reached.len() >= 20, "{reached:?}");
}

/// And what is asked is answered: by most paths of the modules, by simulations, the store and the fee market.
#[test]
fn made_up_queries_are_answered() {
    let mut random = Random(2);
    let mut answered = BTreeMap::new();
    for _ in 0..4 * INPUTS {
        if let Some(path) = asked(&random.bytes(400)) {
            *answered.entry(path).or_insert(0) += 1;
        }
    }
    println!("answered: {answered:?}");
    for path in ["/store/key", "/store/bank/key", "/cosmos.tx.v1beta1.Service/Simulate"] {
        assert!(answered.get(path).is_some_and(|times| *times >= 3), "{path}: {answered:?}");
    }
    assert!(
        ["GasPrice", "GasPrices"]
            .iter()
            .all(|of| answered.contains_key(format!("/feemarket.feemarket.v1.Query/{of}").as_str()))
    );
    assert!(answered.len() >= 40, "{} paths: {answered:?}", answered.len());
}

/// A length that is only announced allocates nothing.
#[test]
fn announced_lengths_allocate_nothing() {
    let announced = [
        ("frame", vec![0xff, 0xff, 0x3f]),
        ("chunk", [&[0xff; 4][..], &[0x04, 0x00], &[1; 40]].concat()),
        ("chunk", [&[0, 0, 0, 1][..], &[0, 1, 7], &[0xff; 4]].concat()),
        ("chunk", [&[0, 0, 0, 0][..], &[0xff; 4]].concat()),
        ("transaction", [&[0x0a][..], &[0xff, 0xff, 0xff, 0x7f]].concat()),
    ];
    for (name, data) in announced {
        let (_, target) = TARGETS.iter().find(|(target, _)| *target == name).unwrap();
        target(&data);
        let used = allocation_counter::measure(|| target(&data));
        assert!(used.bytes_max < 1 << 20, "{name} {data:02x?}: {} bytes", used.bytes_max);
    }
}
