//! `polylink bench faults`, a short run: four validators under load agree whatever is done to one of them.
#![allow(clippy::unwrap_used)]

mod common;

use common::{PATIENCE, Running, command, fails, text};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::process::Stdio;
use std::time::{Duration, Instant};

#[test]
fn nobody_disagrees_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("rows.json");
    let mut bench = command(&["bench", "faults", "--quick", "--json", json.to_str().unwrap()]);
    let output = bench.args(["--faults", "kill-ledger,freeze,wipe,sync,cut,double-sign"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    println!("{}", text(&output.stderr));
    let rows: Vec<Value> = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let value = |name: &str| {
        let found = rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no {name}"));
        found["value"].as_f64().unwrap()
    };
    assert_eq!(value("faults.inflicted"), 6.0);
    assert!(value("faults.committed") > 20.0 && value("faults.committed") <= value("faults.sent"));
    assert!(value("faults.heights_compared") > 20.0);
    // Four ledgers and a double node's, and one life more after each of kill, wipe and sync.
    assert!(value("faults.ledger_lives") >= 8.0 && value("faults.requests_checked") > 500.0);
    for kind in ["kill_ledger", "freeze", "wipe", "sync", "cut", "double_sign"] {
        assert!(value(&format!("faults.{kind}.recovery.max")) <= 60.0, "{kind}");
    }
}

#[test]
fn what_cannot_be_run_is_named() {
    for (args, named) in
        [(&["--validators", "3"][..], "--validators: 3"), (&["--rate", "0"], "--rate: 0"), (&["--faults", "x"], "x")]
    {
        let said = fails(&[&["bench", "faults", "--quick"][..], args].concat());
        assert!(said.contains(named), "{args:?}: {said}");
    }
}

/// Processes that have these words in their command line, with all of it.
fn processes(words: &str) -> Vec<(u64, String)> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok());
    let with = pids.map(|pid| (pid, text(&std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default())));
    with.filter(|(_, line)| line.contains(words)).collect()
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn what_it_has_started_ends_with_it() {
    let faults = &["faults", "--faults", "restart", "--count", "1000"][..];
    let ledger = &["ledger", "--figures", "in-process", "--accounts", "1000000"][..];
    for (args, folder, started, signal) in [
        (faults, "polylink-faults", 8, Signal::TERM),
        (faults, "polylink-faults", 8, Signal::KILL),
        (ledger, "polylink-bench-ledger", 1, Signal::INT),
    ] {
        let mut bench = command(&["bench"]);
        let mut bench = Running(bench.args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let folder = std::env::temp_dir().join(format!("{folder}-{}", bench.0.id()));
        let of_it = || processes(folder.to_str().unwrap());
        until("it has started all", || of_it().len() >= started);
        kill_process(Pid::from_child(&bench.0), signal).unwrap();
        assert!(!bench.0.wait().unwrap().success(), "{args:?} by {signal:?}");
        if signal == Signal::KILL {
            // Nobody was left to end CometBFT; its ledgers have seen that.
            until("the ledgers end", || !of_it().iter().any(|(_, line)| line.contains("\0ledger\0")));
            for (pid, _) in of_it() {
                let _gone = kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL);
            }
            std::fs::remove_dir_all(&folder).unwrap();
        }
        until("nothing is left", || of_it().is_empty() && !folder.exists());
    }
}
