//! Workers that serve other weights than they claim are convicted and slashed; the honest one beside them is not.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Net, PATIENCE, held_out};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Audited epochs within which a cheat must be convicted: threshold over clip is four, the trial takes three more, and
/// as many again are for epochs in which nobody asked it or a judge was late.
const EPOCHS_MAX: u64 = 16;

/// `TRIAL_STATE_GUILTY`.
const TRIAL_GUILTY: i32 = 2;

fn worker(net: &Net, name: &str) -> Value {
    let output = net.run(&["query", "worker", name, "--json"]);
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

async fn until_registered(net: &Net, name: &str) {
    let start = Instant::now();
    while worker(net, name)["worker"]["operator"].is_null() {
        assert!(start.elapsed() < PATIENCE, "{name} does not register");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cheats_are_convicted_and_the_honest_worker_is_not() {
    let net = Net::up(&[]);
    let common = ["--listen", "127.0.0.1:0", "--threads", "1", "--dishonestly-claim", "nano"];
    let pico = net.role("worker-2", &[&["serve", "--key", "worker-2", "--model", "pico"][..], &common[..]].concat());
    let four_bit = net.role(
        "worker-3",
        &[&["serve", "--key", "worker-3", "--model", "nano", "--quantize", "q4_0"][..], &common[..]].concat(),
    );
    let cheats = ["worker-2", "worker-3"];
    for name in cheats {
        until_registered(&net, name).await;
    }
    let bonds: Vec<u128> = cheats.iter().map(|n| bond(&worker(&net, n))).collect();
    let (first, questions) = (net.epoch(), held_out(3));
    let mut asked = 0;
    let mut convicted = [None, None];
    while convicted.contains(&None) {
        let epoch = net.epoch();
        assert!(
            epoch <= first + EPOCHS_MAX,
            "not convicted within {EPOCHS_MAX} epochs: {convicted:?}; {}",
            evidence(&net)
        );
        // Asked at once, so that the gateway spreads them: enough that each worker is audited in every epoch.
        let some = questions.iter().cycle().skip(asked).take(9);
        let answers = some.map(|(question, _)| net.chat(question, json!({"max_completion_tokens": 24})));
        asked += futures::future::join_all(answers).await.iter().filter(|(status, _)| *status == 200).count();
        for (at, name) in cheats.iter().enumerate() {
            if convicted[at].is_none() && worker(&net, name)["worker"]["jailed"] == true {
                convicted[at] = Some(epoch - first);
                let quality = net.json(&["query", "quality", "--worker", name]);
                println!("{name} convicted {} epochs after the first: {quality}", epoch - first);
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    for (at, name) in cheats.iter().enumerate() {
        let now = worker(&net, name);
        assert!(bond(&now) < bonds[at], "{name} was not slashed: {now}");
        let trials = net.json(&["query", "trials", "--worker", name])["trials"].clone();
        let guilty = trials.as_array().into_iter().flatten().find(|t| t["state"] == TRIAL_GUILTY);
        let guilty = guilty.unwrap_or_else(|| panic!("{name} was jailed without a verdict: {trials}"));
        println!(
            "{name}: bond {} -> {}, slashed {}, clawed back {}",
            bonds[at],
            bond(&now),
            guilty["slashed"],
            guilty["clawed_back"]
        );
    }
    let honest = worker(&net, "worker");
    assert_eq!(honest["worker"]["jailed"], false, "the honest worker was jailed");
    let trials = net.json(&["query", "trials", "--worker", "worker"])["trials"].clone();
    assert_eq!(trials.as_array().map(Vec::len), Some(0), "the honest worker was tried: {trials}");
    let quality = net.json(&["query", "quality", "--worker", "worker"])["quality"].clone();
    assert!(quality["audits"].as_u64() > Some(0), "the honest worker was not audited: {quality}");
    assert_eq!(quality["cusum_milli"], 0, "evidence against the honest worker: {quality}");
    println!("{asked} answers; {}", evidence(&net));
    drop((pico, four_bit));
}

fn bond(worker: &Value) -> u128 {
    worker["worker"]["bond"].as_str().and_then(|b| b.parse().ok()).unwrap_or_else(|| panic!("no bond: {worker}"))
}

/// Margins and sketch errors by worker, from the revealed scores of the last rounds.
fn evidence(net: &Net) -> String {
    let mut lines = Vec::new();
    for epoch in 0..net.epoch() {
        let output = net.run(&["query", "round", &epoch.to_string(), "--json"]);
        let Ok(round) = serde_json::from_slice::<Value>(&output.stdout) else { continue };
        let round = &round["round"];
        let Some(seat) = round["seats"].as_array().and_then(|s| s.iter().find(|s| s["revealed"]["scores"].is_array()))
        else {
            continue;
        };
        for score in seat["revealed"]["scores"].as_array().into_iter().flatten() {
            let sample = round["samples"].as_array().into_iter().flatten().find(|s| s["number"] == score["sample"]);
            let worker = sample.map_or(String::new(), |s| s["worker"].as_str().unwrap_or_default().to_owned());
            lines.push(format!(
                "epoch {epoch} {worker}: margin {} µ, sketch error {} n, mismatches {}/{}, evidence {} m",
                score["margin_micro"],
                score["sketch_error_nano"],
                score["token_mismatches"],
                score["tokens"],
                score["evidence_milli"]
            ));
        }
    }
    lines.join("\n")
}
