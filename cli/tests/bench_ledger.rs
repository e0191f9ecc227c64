//! `polylink bench ledger`: its figures stand in rows and table, and what it counts was executed.
#![allow(clippy::unwrap_used)]

mod common;

use common::{command, fails, text};
use serde_json::Value;

#[test]
fn sends_are_counted_in_process_and_over_rpc_beside_the_key_value_store() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("rows.json").display().to_string();
    let mut bench = command(&["bench", "ledger", "--figures", "in-process,one-validator", "--json", &json]);
    bench.args(["--accounts", "1000,3000", "--block-txs", "300", "--blocks", "3"]);
    let output = bench.args(["--txs", "600", "--paced-rate", "50", "--quick"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let rows: Vec<Value> = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let row = |name: &str, against: Option<&str>| {
        let found = rows.iter().find(|row| row["name"] == name && row["against"].as_str() == against);
        found.unwrap_or_else(|| panic!("no {name} against {against:?} in {rows:#?}"))
    };
    let value = |name: &str, against| row(name, against)["value"].as_f64().unwrap();
    assert!(value("ledger.in_process_1000.rate", None) > 1.0);
    assert!(value("ledger.in_process_1000.block.p99", None) >= value("ledger.in_process_1000.commit.p50", None));
    // A sender's account and balance, a receiver's balance, and what all share.
    let keys = value("ledger.in_process_3000.keys_per_tx", None);
    assert!((2.0..4.0).contains(&keys), "{keys} keys");
    let small = value("ledger.in_process_1000.cpu_per_tx", None);
    let larger = row("ledger.in_process_3000.cpu_per_tx", Some("1000 accounts"));
    let ratio = larger["ratio"].as_f64().unwrap();
    assert!((ratio - small / larger["value"].as_f64().unwrap()).abs() < 1e-9);
    let inside = Some("kvstore in the node");
    for figure in ["rate", "latency_full.p50", "latency_paced.p99"] {
        let (ours, theirs) = (format!("ledger.rpc_1.{figure}"), format!("kvstore in the node.rpc_1.{figure}"));
        assert!(value(&ours, inside) > 0.0 && value(&theirs, None) > 0.0, "{figure}");
    }
    let table = text(&output.stdout);
    assert!(table.contains("| rpc_1.rate, tx/s |"), "{table}");
    let socket = table.contains("| kvstore over the socket |");
    assert!(socket || table.contains("absent: kvstore over the socket"), "{table}");
}

#[test]
fn what_cannot_be_measured_is_named() {
    for (args, named) in [
        (&["--block-txs", "0"][..], "--block-txs: 1 to"),
        (&["--blocks", "1001"], "--blocks: 1 to"),
        (&["--waiting", "10001"], "--waiting: 100 to"),
        (&["--txs", "0"], "--txs: 1 to"),
        (&["--runs", "0"], "--runs: 1 to"),
        (&["--cometbft", "/bin/true", "--figures", "one-validator"], "/bin/true"),
        (&["--accounts", "500", "--block-txs", "300", "--figures", "in-process"], "--block-txs: twice"),
    ] {
        let said = fails(&[&["bench", "ledger", "--quick"][..], args].concat());
        assert!(said.contains(named), "{args:?}: {said}");
    }
}
