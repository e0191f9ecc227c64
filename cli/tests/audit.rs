//! Workers that serve other weights than they claim are convicted and slashed within a stated number of audited answers;
//! the honest one beside them is not.
#![allow(clippy::unwrap_used)]

mod common;

use common::books::{Books, uplk};
use common::rounds::{Finding, Round, summary};
use common::{Net, held_out};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// Audited answers of a cheat until its trial opens, as `docs/market-and-tiqe.md` states: threshold over clip is four,
/// twice that for a round of four that crosses it at its end.
const AUDITS_MAX: u64 = 8;
/// Epochs from the opening of a trial until its verdict holds: evidence, beacon and votes, one in which nobody asked, and
/// two in which it could be appealed.
const TRIAL_EPOCHS_MAX: u64 = 7;
/// Epochs until the test gives up.
const EPOCHS_MAX: u64 = 16;

/// `TRIAL_STATE_GUILTY`.
const TRIAL_GUILTY: i32 = 2;

const CHEATS: [&str; 2] = ["worker-2", "worker-3"];

#[tokio::test(flavor = "multi_thread")]
async fn cheats_are_convicted_and_the_honest_worker_is_not() {
    let net = Net::up(&[]);
    let common = ["--listen", "127.0.0.1:0", "--threads", "1", "--dishonestly-claim", "nano"];
    let pico = net.role("worker-2", &[&["serve", "--key", "worker-2", "--model", "pico"][..], &common[..]].concat());
    let four_bit = net.role(
        "worker-3",
        &[&["serve", "--key", "worker-3", "--model", "nano", "--quantize", "q4_0"][..], &common[..]].concat(),
    );
    for name in CHEATS {
        net.until_registered(name).await;
    }
    let bonds = CHEATS.map(|name| bond(&net, name));
    let asked = until_convicted(&net).await;
    let rounds: Vec<Round> = (0..net.epoch()).filter_map(|epoch| Round::of(&net, epoch)).collect();
    let findings = by_worker(&net, &rounds);
    for (name, findings) in &findings {
        println!("{name}: {}", summary(findings));
    }
    for (at, name) in CHEATS.iter().enumerate() {
        assert!(bond(&net, name) < bonds[at], "{name} was not slashed");
        assert!(bond(&net, name) <= bonds[at] / 2, "half of the bond is slashed");
        let (trial, audits) = (guilty(&net, name).unwrap(), audits_until_trial(&net, name, &rounds));
        println!(
            "{name}: trial opened after {audits} audited answers in epoch {}, bond {} -> {}, slashed {}, clawed back {}",
            trial["opened_epoch"],
            bonds[at],
            bond(&net, name),
            trial["slashed"],
            trial["clawed_back"]
        );
        assert!(
            (1..=AUDITS_MAX).contains(&audits),
            "{name}: {audits} audited answers, at most {AUDITS_MAX} are stated"
        );
        assert!(findings[name].iter().any(|f| f.evidence_milli > 0), "{name}: nothing speaks against it");
    }
    let honest = net.json(&["query", "worker", "worker"]);
    assert_eq!(honest["worker"]["jailed"], false, "the honest worker was jailed");
    let trials = net.json(&["query", "trials", "--worker", "worker"])["trials"].clone();
    assert_eq!(trials.as_array().map(Vec::len), Some(0), "the honest worker was tried: {trials}");
    let quality = net.json(&["query", "quality", "--worker", "worker"])["quality"].clone();
    assert!(quality["audits"].as_u64() > Some(0), "the honest worker was not audited: {quality}");
    assert_eq!(quality["cusum_milli"], 0, "evidence against the honest worker: {quality}");
    for finding in &findings["worker"] {
        let (margin, sketch) = (finding.margin_micro, finding.sketch_error_nano);
        assert_eq!((margin, sketch, finding.mismatches), (0, 0, 0), "exact profiles replay exactly: {finding:?}");
    }
    let page = Books::of(&net).checked().await;
    println!("{asked} answers; supply {} after slashing: {} minted, {} burned", page.supply, page.minted, page.burned);
    drop((pico, four_bit));
}

/// Asks until both cheats are jailed; returns how many answers that took.
async fn until_convicted(net: &Net) -> usize {
    let (first, questions) = (net.epoch(), held_out(3));
    let mut asked = 0;
    let mut convicted = [false; 2];
    while convicted.contains(&false) {
        let epoch = net.epoch();
        assert!(epoch <= first + EPOCHS_MAX, "not convicted within {EPOCHS_MAX} epochs: {convicted:?}");
        // Asked at once, so that the gateway spreads them: enough that each worker is audited in every epoch.
        let some = questions.iter().cycle().skip(asked).take(9);
        let answers = some.map(|q| net.chat("", json!({"messages": q.messages, "max_completion_tokens": 24})));
        asked += futures::future::join_all(answers).await.iter().filter(|(status, _)| *status == 200).count();
        for (at, name) in CHEATS.iter().enumerate() {
            if !convicted[at] && net.json(&["query", "worker", name])["worker"]["jailed"] == true {
                convicted[at] = true;
                let trial = guilty(net, name).unwrap_or_else(|| panic!("{name} was jailed without a verdict"));
                let opened = trial["opened_epoch"].as_u64().unwrap();
                println!("{name} convicted in epoch {epoch}, its trial opened in {opened}, the first was {first}");
                assert!(epoch <= opened + TRIAL_EPOCHS_MAX, "{name}: a trial of more than {TRIAL_EPOCHS_MAX} epochs");
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    asked
}

fn bond(net: &Net, name: &str) -> u128 {
    let worker = net.json(&["query", "worker", name]);
    uplk(worker["worker"]["bond"].as_str().unwrap_or_else(|| panic!("no bond: {worker}")))
}

fn guilty(net: &Net, name: &str) -> Option<Value> {
    let trials = net.json(&["query", "trials", "--worker", name])["trials"].clone();
    trials.as_array().into_iter().flatten().find(|t| t["state"] == TRIAL_GUILTY).cloned()
}

/// Audited answers of the rounds that were scored by the opening of its trial.
fn audits_until_trial(net: &Net, name: &str, rounds: &[Round]) -> u64 {
    let (address, opened) = (net.address(name), guilty(net, name).unwrap()["opened_epoch"].as_u64().unwrap());
    // The round over epoch e is scored in e + 1.
    let scored = rounds.iter().filter(|round| round.json["epoch"].as_u64().unwrap() < opened);
    scored.filter_map(|round| round.audited.get(&address)).sum()
}

fn by_worker(net: &Net, rounds: &[Round]) -> BTreeMap<&'static str, Vec<Finding>> {
    let all = || rounds.iter().flat_map(|round| &round.findings);
    let of = |name: &'static str| {
        let address = net.address(name);
        (name, all().filter(|f| f.worker == address).cloned().collect())
    };
    ["worker", "worker-2", "worker-3"].into_iter().map(of).collect()
}
