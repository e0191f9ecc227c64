//! `kill -9` at any instant loses nothing that was committed, and leaves nothing half written.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::super::*;

/// Set in the child process to the store's path.
const CHILD: &str = "POLYLINK_TEST_CRASHING_STORE";

const ROUNDS: u64 = 20;

fn open(path: &std::path::Path) -> Store {
    Store::open_with(path, StoreOptions { keep_heights: 8, ..StoreOptions::new(1) }).unwrap()
}

/// The changes of a height: overwrites, new keys and deletions, the same in parent and child.
fn changes(height: u64) -> Changes {
    let mut changes = Changes::new();
    for index in 0..60u64 {
        let key = KeyBuilder::new(1).u64((index * 31 + height * 17) % 400).finish();
        changes
            .insert(key, (!(index + height).is_multiple_of(5)).then(|| [height, index].map(u64::to_be_bytes).concat()));
    }
    changes
}

/// Commits for ever, telling the parent of each height once it is durable.
fn run_child(path: &std::path::Path) -> ! {
    let store = open(path);
    let mut out = std::io::stdout();
    loop {
        let height = store.height() + 1;
        store.commit(store.stage(changes(height), height).unwrap()).unwrap();
        writeln!(out, "committed {height} {}", hex::encode(store.app_hash())).unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn kill_9_loses_nothing_committed() {
    if let Ok(path) = std::env::var(CHILD) {
        run_child(path.as_ref());
    }
    let dir = tempfile::tempdir().unwrap();
    let mut model = MemoryState::default();
    let mut modelled = 0;
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::crash::kill_9_loses_nothing_committed", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let told = |line: &str| line.split_once("committed ").map(|(_, rest)| rest.to_owned());
        // Let it commit a few, then kill it at an instant that differs from round to round.
        let mut last = None;
        for _ in 0..1 + round % 4 {
            last = lines.by_ref().map_while(Result::ok).find_map(|line| told(&line));
        }
        std::thread::sleep(Duration::from_micros(round * 937 % 9_000));
        child.kill().unwrap();
        child.wait().unwrap();
        last = lines.map_while(Result::ok).filter_map(|line| told(&line)).last().or(last);
        let last = last.expect("the child committed at least once");
        let (height, root) = last.split_once(' ').unwrap();
        let height: u64 = height.parse().unwrap();

        let store = open(dir.path());
        let found = store.height();
        assert!(found == height || found == height + 1, "told of {height}, found {found}");
        for height in modelled + 1..=found {
            model.apply(&changes(height));
        }
        modelled = found;
        store.check().unwrap();
        assert_eq!(store.app_hash(), root_of(model.0.clone()), "round {round}, height {found}");
        assert_eq!(hex::encode(store.snapshot().app_hash_at(height).unwrap()), root);
        for old in store.snapshot().oldest()..=found {
            store.snapshot().prove(&KeyBuilder::new(1).u64(3).finish(), old).unwrap();
        }
    }
    println!("{ROUNDS} kills, {modelled} heights");
}
