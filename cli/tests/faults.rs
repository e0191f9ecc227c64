//! `polylink bench faults`, a short run: four validators under load agree whatever is done to one of them.
#![allow(clippy::unwrap_used)]

mod common;

use common::{command, fails, text};
use serde_json::Value;

#[test]
fn nobody_disagrees_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("rows.json");
    let mut bench = command(&["bench", "faults", "--quick", "--json", json.to_str().unwrap()]);
    let output = bench.args(["--faults", "kill-ledger,freeze,wipe,cut,double-sign"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    println!("{}", text(&output.stderr));
    let rows: Vec<Value> = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let value = |name: &str| {
        let found = rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no {name}"));
        found["value"].as_f64().unwrap()
    };
    assert_eq!(value("faults.inflicted"), 5.0);
    assert!(value("faults.committed") > 20.0 && value("faults.committed") <= value("faults.sent"));
    assert!(value("faults.heights_compared") > 20.0);
    for kind in ["kill_ledger", "freeze", "wipe", "cut", "double_sign"] {
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
