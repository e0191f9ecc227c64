//! `polylink bench engine` on the small model, beside a second server of ours as the peer: what it says is what its rows
//! say, and both do the same work.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Running, command, models, text};
use serde_json::Value;
use std::net::TcpListener;
use std::process::Stdio;

/// A server beside the one that is measured.
fn twin() -> (Running, String) {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut serve = command(&["serve", "--local", "--model", "nano", "--quantize", "q8_0", "--threads", "1"]);
    serve.args(["--listen", &address]).stdout(Stdio::piped());
    let mut running = Running(serve.spawn().unwrap());
    let mut ready = String::new();
    let mut output = std::io::BufReader::new(running.0.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut output, &mut ready).unwrap();
    assert!(ready.contains("serves polylink/nano-q8_0"), "{ready}");
    (running, format!("http://{address}/v1"))
}

#[test]
fn ours_and_a_peer_are_compared_in_rows_and_table() {
    let (_running, url) = twin();
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("rows.json");
    let mut bench =
        command(&["bench", "engine", "--precision", "q8_0", "--runs", "2", "--streams", "4", "--threads", "1"]);
    bench.args(["--model", models().join("nano").to_str().unwrap(), "--figures", "prefill,decode,serve,start,growth"]);
    bench.args(["--peer", &format!("twin={url}"), "--json", json.to_str().unwrap()]);
    let output = bench.args(["--cache", folder.path().to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let rows: Vec<Value> = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let row = |name: &str, against: Option<&str>| {
        let found = rows.iter().find(|row| row["name"] == name && row["against"].as_str() == against);
        found.unwrap_or_else(|| panic!("no {name} against {against:?} in {rows:#?}"))
    };
    let number = |name: &str, against, field: &str| row(name, against)[field].as_f64().unwrap();
    for figure in ["prefill_512", "decode", "serve_4x128+64"] {
        let ours = format!("engine.q8_0.{figure}");
        let (value, ratio) = (number(&ours, Some("twin"), "value"), number(&ours, Some("twin"), "ratio"));
        let theirs = number(&format!("twin.q8_0.{figure}"), None, "value");
        assert!(value > 1.0 && theirs > 1.0 && (ratio - value / theirs).abs() < 1e-9, "{figure}: {value}, {theirs}");
        assert_eq!(row(&ours, Some("twin"))["runs"], 2);
    }
    // nano's context has no room for longer prompts.
    assert!(!rows.iter().any(|row| row["name"].as_str().unwrap().contains("prefill_4096")));
    assert!(number("engine.q8_0.decode", Some("read limit"), "ratio") > 0.0);
    assert!(number("engine.q8_0.prefill_512", Some("product limit"), "ratio") > 0.0);
    assert!(number("limit.q8_0.read", None, "value") > 0.1, "GB/s");
    assert!(number("engine.q8_0.load_time", None, "value") > 0.0);
    assert!((0.01..1.0).contains(&number("engine.q8_0.peak_memory", Some("weights and KV"), "ratio")));
    assert_eq!(number("growth.q8_0.streams_1", Some("1 stream"), "ratio"), 1.0);
    assert!(number("growth.q8_0.streams_256", Some("1 stream"), "value") > 0.0);
    // The difference of two loads: nothing, where another process took the second one's time.
    assert!(number("growth.q8_0.step_at_128", None, "value") >= 0.0);
    assert_eq!(number("llama.cpp.present", None, "value"), 0.0);
    let table = text(&output.stdout);
    assert!(table.contains("| q8_0.decode, tokens/s |") && table.contains("absent: llama.cpp: there is no"), "{table}");
}

#[test]
fn what_cannot_be_measured_is_named() {
    let said = common::fails(&["bench", "engine", "--model", "nano", "--peer", "llama.cpp=/nowhere"]);
    assert!(said.contains("--peer: there is no /nowhere/llama-server"), "{said}");
    let said = common::fails(&["bench", "engine", "--shape", "7b"]);
    assert!(said.contains("`7b` is unknown"), "{said}");
}

#[test]
fn flags_out_of_their_domain_are_named() {
    let much = usize::MAX.to_string();
    for (flags, says) in [
        (&["--load", "32x128"][..], "STREAMSxPROMPT+TOKENS is expected"),
        (&["--load", "x128+64"], "STREAMSxPROMPT+TOKENS is expected"),
        (&["--load", "1x128+0"], "STREAMSxPROMPT+TOKENS is expected"),
        (&["--decode", "1x0+64"], "STREAMSxPROMPT+TOKENS is expected"),
        (&["--decode", "1x128+64+64"], "STREAMSxPROMPT+TOKENS is expected"),
        (&["--load", "0x128+64"], "1 to 256 streams are expected"),
        (&["--decode", "257x128+64"], "1 to 256 streams are expected"),
        (&["--decode", &format!("1x128+{much}")], "is too short for"),
        (&["--load", &format!("1x{much}+64")], "is too short for"),
        (&["--prompt", "0"], "at least one token is expected"),
        (&["--prompt=-1"], "at least one token is expected"),
        (&["--prompt", "many"], "at least one token is expected"),
        (&["--prompt", "100000"], "is too short for 100001"),
        (&["--prompt", &much], "is too short for"),
        (&["--figures", "prefill,encode"], "possible values"),
        (&["--precision", "sm80-bf16"], "sm90-bf16"),
        (&["--streams", "0"], "--streams"),
        (&["--runs", "0"], "--runs"),
        (&["--figure-seconds", "soon"], "--figure-seconds"),
        (&["--no-limits=no"], "--no-limits"),
        (&["--serve-flag"], "--serve-flag"),
        (&["--peer", "other=ftp://127.0.0.1"], "--peer"),
    ] {
        let said = common::fails(&[&["bench", "engine", "--model", "nano", "--peer", "none"], flags].concat());
        assert!(said.contains(says), "{flags:?}: {said}");
    }
}

/// The server's own words, when what it was started with is wrong.
#[test]
fn a_server_of_ours_that_does_not_start_says_why() {
    let bench = ["bench", "engine", "--model", "nano", "--peer", "none", "--no-limits", "--prompt", "8"];
    let said = common::fails(&[&bench[..], &["--precision", "q8_0", "--serve-flag=--no-such-flag"]].concat());
    assert!(said.contains("--no-such-flag"), "{said}");
    if !std::path::Path::new("/dev/nvidiactl").exists() {
        let said = common::fails(&[&bench[..], &["--precision", "sm90-bf16"]].concat());
        assert!(said.contains("CUDA"), "{said}");
    }
}
