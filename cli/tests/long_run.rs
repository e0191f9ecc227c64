//! Honest workers under continuous load for many epochs: never a trial, never evidence against them, no judge penalised,
//! every epoch settled, every coin accounted for.
//!
//! `POLYLINK_LONG_RUN_SECONDS=3600 cargo test --workspace --test long_run -- --nocapture` runs it for an hour.
#![allow(clippy::unwrap_used)]

mod common;

use common::books::{Books, uplk};
use common::rounds::{Finding, Round, summary};
use common::{Net, Question, held_out};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// An epoch of about seven seconds: judges have more than a second and a half to score what they have drawn, also on a
/// machine that does other things besides.
const SHORT: [&str; 2] = ["--block-time-ms", "300"];
/// The least that a run must have seen.
const EPOCHS_MIN: u64 = 30;
const AUDITS_MIN: u64 = 200;
/// Questions asked at once, so that both workers get some.
const AT_ONCE: usize = 4;
/// No more than one answer's worth of evidence may ever stand against an honest worker.
const CUSUM_MAX_MILLI: u64 = 6_000;

const WORKERS: [&str; 2] = ["worker", "worker-2"];

/// What was seen so far.
#[derive(Default)]
struct Seen {
    findings: Vec<Finding>,
    audits: u64,
    cusum_max: u64,
    epochs: u64,
    /// Epochs with a round.
    rounds: u64,
}

#[tokio::test(flavor = "multi_thread")]
async fn honest_workers_are_never_tried() {
    let seconds = std::env::var("POLYLINK_LONG_RUN_SECONDS").map_or(0, |text| text.parse().unwrap());
    let (net, start) = (Net::up(&SHORT), Instant::now());
    let serve = ["serve", "--key", "worker-2", "--model", "nano", "--listen", "127.0.0.1:0", "--threads", "1"];
    let second = net.role("worker-2", &serve);
    net.until_registered("worker-2").await;
    let answers = AtomicUsize::new(0);
    let seen = tokio::select! {
        seen = watch(&net, start, seconds) => seen,
        () = ask_on(&net, &answers) => Seen::default(),
    };
    println!(
        "{} epochs, {} answers, {} audited, largest CUSUM {} m, in {:.0} s; {}",
        seen.epochs,
        answers.load(Ordering::Relaxed),
        seen.audits,
        seen.cusum_max,
        start.elapsed().as_secs_f64(),
        summary(&seen.findings)
    );
    let page = Books::of(&net).checked().await;
    println!("supply {} = genesis + {} minted - {} burned", page.supply, page.minted, page.burned);
    assert!(seen.rounds + 1 >= seen.epochs, "only {} of {} epochs had a round", seen.rounds, seen.epochs);
    drop(second);
}

/// Looks at every epoch once its audit is over, until enough was seen.
async fn watch(net: &Net, start: Instant, seconds: u64) -> Seen {
    let (first, judges, mut books) = (net.epoch(), bonds_of_judges(net), Books::of(net));
    let mut seen = Seen::default();
    while seen.epochs < EPOCHS_MIN || seen.audits < AUDITS_MIN || start.elapsed().as_secs() < seconds {
        let limit = Duration::from_secs(seconds) + 3 * common::PATIENCE;
        assert!(start.elapsed() < limit, "only {} epochs, {} audits in {limit:?}", seen.epochs, seen.audits);
        let epoch = first + seen.epochs;
        // The round over an epoch is settled with the end of the next one.
        if net.epoch() < epoch + 2 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            continue;
        }
        look_at(net, epoch, &mut seen);
        assert_eq!(bonds_of_judges(net), judges, "epoch {epoch}: a judge was penalised");
        books.checked().await;
        seen.epochs += 1;
    }
    seen
}

/// The pots of an epoch are settled, all seated judges have revealed, and nothing speaks against anybody.
fn look_at(net: &Net, epoch: u64, seen: &mut Seen) {
    let pots = net.json(&["query", "pots", &epoch.to_string()])["pots"].clone();
    for pot in pots.as_array().into_iter().flatten() {
        assert!(pot["settled"] == true, "a pot of epoch {epoch} is not settled: {pot:#}");
        let committed = uplk(pot["root"]["amount"].as_str().unwrap_or_default());
        assert!(committed == 0 || pot["alpha_bps"].as_u64() > Some(3_000), "the pay of an honest worker: {pot:#}");
    }
    if let Some(round) = Round::of(net, epoch) {
        assert!(round.is_settled(), "epoch {epoch}: {:#}", round.json);
        assert!(round.silent().is_empty(), "epoch {epoch}: {:?} revealed nothing", round.silent());
        for finding in &round.findings {
            let Finding { margin_micro, sketch_error_nano, mismatches, missing, .. } = *finding;
            let found = (margin_micro, sketch_error_nano, mismatches, missing);
            assert_eq!(found, (0, 0, 0, false), "exact profiles replay exactly: {finding:?}");
        }
        seen.audits += round.audited.values().sum::<u64>();
        seen.rounds += 1;
        seen.findings.extend(round.findings);
    }
    for name in WORKERS {
        let trials = net.json(&["query", "trials", "--worker", name])["trials"].clone();
        assert_eq!(trials.as_array().map(Vec::len), Some(0), "epoch {epoch}: {name} was tried: {trials}");
        let output = net.run(&["query", "quality", "--worker", name, "--json"]);
        // Before its first audit there is none.
        if let Ok(quality) = serde_json::from_slice::<Value>(&output.stdout) {
            let cusum = quality["quality"]["cusum_milli"].as_u64().unwrap();
            assert!(cusum <= CUSUM_MAX_MILLI, "epoch {epoch}: evidence against {name}: {quality}");
            seen.cusum_max = seen.cusum_max.max(cusum);
        }
    }
}

fn bonds_of_judges(net: &Net) -> Vec<(String, String, bool)> {
    let judges = net.json(&["query", "judges"])["judges"].clone();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let bonds: Vec<_> = judges
        .as_array()
        .unwrap()
        .iter()
        .map(|j| (text(&j["operator"]), text(&j["bond"]), j["jailed"] == true))
        .collect();
    assert_eq!(bonds.len(), 3);
    bonds
}

/// Asks a few questions at once, again and again, without end.
async fn ask_on(net: &Net, answers: &AtomicUsize) {
    let questions = held_out(6);
    let mut next = questions.iter().cycle();
    loop {
        let some: Vec<&Question> = next.by_ref().take(AT_ONCE).collect();
        let asked = some.iter().map(|q| net.chat("", json!({"messages": q.messages, "max_completion_tokens": 32})));
        for (status, answer) in futures::future::join_all(asked).await {
            assert_eq!(status, 200, "{answer}");
            answers.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}
