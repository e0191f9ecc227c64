//! What a person may get wrong before any network runs: each is an error that says what and what to do.
#![allow(clippy::unwrap_used)]

mod common;

use common::{command, fails, models, text};
use std::path::Path;

fn copied_model(to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(models().join("pico")).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn models_that_cannot_be_served_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("home").display().to_string();
    let serve = |model: &Path| {
        fails(&[
            "serve",
            "--local",
            "--listen",
            "127.0.0.1:0",
            "--home",
            &home,
            "--model",
            &model.display().to_string(),
        ])
    };
    let missing = directory.path().join("no/such/model");
    assert!(serve(&missing).contains("no/such/model"), "missing folder");

    let cut = directory.path().join("cut");
    copied_model(&cut);
    let weights = std::fs::read(cut.join("model.safetensors")).unwrap();
    std::fs::write(cut.join("model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    assert!(serve(&cut).contains("model.safetensors"), "truncated weights");

    let garbage = directory.path().join("garbage");
    copied_model(&garbage);
    std::fs::write(garbage.join("model.safetensors"), vec![0xAB; 4_096]).unwrap();
    assert!(serve(&garbage).contains("model.safetensors"), "corrupt weights");

    let damaged = directory.path().join("damaged");
    copied_model(&damaged);
    let mut bytes = weights.clone();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[data..].fill(0xff);
    std::fs::write(damaged.join("model.safetensors"), &bytes).unwrap();
    assert!(serve(&damaged).contains("damaged"), "weights that are no numbers");

    let other = directory.path().join("other");
    copied_model(&other);
    let config = std::fs::read_to_string(other.join("config.json")).unwrap();
    std::fs::write(other.join("config.json"), config.replace("LlamaForCausalLM", "OtherForCausalLM")).unwrap();
    assert!(serve(&other).contains("OtherForCausalLM"), "unknown architecture");

    let up = fails(&["up", "--home", &home, "--model", &missing.display().to_string()]);
    assert!(up.contains("no/such/model"), "{up}");
}

#[test]
fn ports_and_binaries_are_checked() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().display().to_string();
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port().to_string();
    let said = fails(&["up", "--home", &home, "--gateway-port", &port]);
    assert!(said.contains("--gateway-port") && said.contains(&port), "{said}");
    let said = fails(&["up", "--home", &home, "--cometbft", "/no/such/cometbft"]);
    assert!(said.contains("/no/such/cometbft"), "{said}");
    let said =
        fails(&["serve", "--local", "--model", "pico", "--home", &home, "--listen", &format!("127.0.0.1:{port}")]);
    assert!(said.contains(&port), "{said}");
}

#[test]
fn homes_files_and_values_are_checked() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().display().to_string();
    for (args, says) in [
        (vec!["query", "supply"], "polylink up"),
        (vec!["tx", "send", "x", "1plk"], "polylink keys new user"),
        (vec!["query", "--rpc", "http://127.0.0.1:1", "supply"], "is it running"),
        (vec!["query", "--rpc", "nonsense", "supply"], "nonsense"),
        (vec!["verify", "/no/such/receipt.json"], "/no/such/receipt.json"),
        (vec!["node"], "--genesis"),
        (
            ["serve", "--model", "pico", "--split", "2-1", "--split-secret", "s", "--peer", "127.0.0.1:1", "--local"]
                .to_vec(),
            "2:1",
        ),
        (vec!["serve", "--model", "pico", "--split", "2:1", "--peer", "127.0.0.1:1", "--local"], "--split-secret"),
        (vec!["serve", "--model", "pico", "--join"], "--split-secret"),
        (vec!["up", "--epoch-blocks", "3"], "--epoch-blocks"),
        (vec!["export"], "no ledger is there"),
        (vec!["tx", "vote", "1", "maybe"], "`maybe` is no option"),
        (vec!["tx", "vote", "1", "yes=0.5"], "not one"),
        (vec!["tx", "create-validator", "1plk", "--moniker", "m", "--key", "k", "--commission", "7"], "not a ratio"),
        (vec!["tx", "propose", "t", "s", "--upgrade", "next"], "--height"),
        (vec!["tx", "propose", "t", "s", "--params", "market"], "--file"),
        (vec!["tx", "multi-send", "1plk"], "TO"),
    ] {
        let said = fails(&[&args[..], &["--home", &home]].concat());
        assert!(said.contains(says), "{args:?}: {said}");
    }
    let receipt = directory.path().join("r.json");
    std::fs::write(&receipt, "{\"answer\": 5}").unwrap();
    let said = fails(&["verify", &receipt.display().to_string(), "--home", &home]);
    assert!(said.contains("not verified: receipt file"), "{said}");
    std::fs::write(directory.path().join("polylink.toml"), "[up]\nblok-time-ms = 5").unwrap();
    let said = fails(&["status", "--home", &home]);
    assert!(said.contains("blok-time-ms"), "{said}");
}

#[test]
fn help_teaches() {
    for args in
        [&["--help"][..], &["up", "--help"], &["tx", "--help"], &["verify", "--help"], &["bench", "serve", "--help"]]
    {
        let output = command(args).output().unwrap();
        assert!(output.status.success() && text(&output.stdout).contains("polylink "), "{args:?}");
    }
    let said = text(&command(&["nonsense"]).output().unwrap().stderr);
    assert!(said.contains("nonsense") && said.contains("Usage"), "{said}");
}
