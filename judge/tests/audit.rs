//! The evaluators on real answers of the project's own models: an honest worker, one with 8-bit and one with 4-bit
//! weights, and one that serves the smaller model, all claiming the full one in exact f32.
#![allow(clippy::unwrap_used)]

mod common;

use common::{auditor, auditor_with, evaluate, evaluate_one, models, profile_of, questions, serve};
use polylink_inference_server::model::{LoadedModel, Precision};
use polylink_judge::Finding;
use polylink_protocol::market_v1::FinishReason;

fn report(name: &str, findings: &[Finding]) {
    let tokens: u32 = findings.iter().map(|f| f.score.tokens).sum();
    let wrong: u32 = findings.iter().map(|f| f.score.token_mismatches).sum();
    let mut errors: Vec<f64> = findings.iter().map(|f| f.sketch_error).collect();
    errors.sort_by(f64::total_cmp);
    let margin = findings.iter().map(|f| f.margin).fold(0.0, f32::max);
    let caught = findings.iter().filter(|f| f.mismatch).count();
    println!(
        "{name}: {caught} of {} answers differ; {wrong} of {tokens} tokens; largest margin {margin:.3}; sketch error min {:.1e}, median {:.1e}, max {:.1e}",
        findings.len(),
        errors[0],
        errors[errors.len() / 2],
        errors[errors.len() - 1]
    );
}

#[tokio::test]
async fn honest_answers_replay_to_the_bit_and_others_do_not() {
    let auditor = auditor();
    for temperature in [0.0, 1.0] {
        let questions = questions(16);
        let honest = serve("nano", Precision::F32, &questions, temperature).await;
        let findings = evaluate(&auditor, &honest).await;
        report(&format!("honest f32, temperature {temperature}"), &findings);
        for finding in &findings {
            assert!(!finding.mismatch && finding.margin == 0.0 && finding.sketch_error == 0.0, "{finding:?}");
            assert_eq!(finding.score.evidence_milli, -442);
        }
        for (name, folder, quantization) in
            [("8-bit", "nano", Precision::Q8_0), ("4-bit", "nano", Precision::Q4_0), ("pico", "pico", Precision::F32)]
        {
            let cheating = serve(folder, quantization, &questions, temperature).await;
            let findings = evaluate(&auditor, &cheating).await;
            report(&format!("{name}, temperature {temperature}"), &findings);
            assert!(findings.iter().all(|f| f.mismatch && f.score.evidence_milli == 6_000), "each answer shows it");
        }
    }
}

/// A profile with bf16 products is held to bounds: an honest worker's other hardware passes, other weights do not.
#[tokio::test]
async fn a_bf16_profile_is_judged_by_its_bounds() {
    let auditor = auditor_with(&[Precision::Bf16], None, 0);
    let questions = questions(12);
    for (name, folder, precision, caught) in [
        ("honest bf16", "nano", Precision::Bf16, false),
        ("exact f32, nearer to the weights than asked", "nano", Precision::F32, false),
        ("4-bit", "nano", Precision::Q4_0, true),
        ("pico", "pico", Precision::F32, true),
    ] {
        let mut served = serve(folder, precision, &questions, 1.0).await;
        served.iter_mut().for_each(|t| t.receipt.profile_digest = profile_of(Precision::Bf16));
        let findings = evaluate(&auditor, &served).await;
        report(&format!("{name}, claiming bf16"), &findings);
        assert!(findings.iter().all(|f| f.score.replayed && f.mismatch == caught), "{name}");
        if precision == Precision::Bf16 {
            assert!(findings.iter().all(|f| f.margin == 0.0 && f.sketch_error == 0.0), "the same kind of processor");
        }
    }
}

#[tokio::test]
async fn one_forward_serves_transcripts_of_several_workers_and_profiles() {
    let auditor = auditor_with(&[Precision::F32, Precision::Q8_0], None, 0);
    let mut mixed = serve("nano", Precision::F32, &questions(5), 0.0).await;
    mixed.extend(serve("pico", Precision::F32, &questions(4), 0.0).await);
    let mut other = serve("nano", Precision::Q8_0, &questions(3), 0.0).await;
    other.iter_mut().for_each(|t| t.receipt.profile_digest = profile_of(Precision::Q8_0));
    mixed.extend(other);
    let before = auditor.forwards();
    let findings = evaluate(&auditor, &mixed).await;
    assert_eq!(auditor.forwards() - before, 1, "one batch, whoever served them under whichever profile");
    let mismatches: Vec<bool> = findings.iter().map(|f| f.mismatch).collect();
    assert_eq!(mismatches, [[false; 5].as_slice(), &[true; 4], &[false; 3]].concat(), "each by its own profile");
}

#[tokio::test]
async fn batches_that_wait_together_share_a_forward() {
    let auditor = auditor();
    let transcripts = serve("nano", Precision::F32, &questions(4), 0.0).await;
    // Rounds and trials that come while the first ones compute.
    let batches = (0..8).map(|_| evaluate(&auditor, &transcripts));
    let findings = futures::future::join_all(batches).await;
    assert!(findings.iter().all(|f| f.len() == 4 && f.iter().all(|f| !f.mismatch && f.score.replayed)));
    assert!(auditor.forwards() <= 3, "{} forwards for eight batches", auditor.forwards());
}

#[tokio::test]
async fn cheap_tokens_under_honest_sketches_and_the_reverse_are_noticed() {
    let auditor = auditor();
    let questions = questions(8);
    let honest = serve("nano", Precision::F32, &questions, 1.0).await;
    let cheap = serve("pico", Precision::F32, &questions, 1.0).await;
    // The smaller model's tokens, then a prefill of them by the declared model for the sketches.
    let model = LoadedModel::open(models().join("nano"), Precision::F32).unwrap();
    let mut declared = polylink_judge::replay::LocalReplay::open(&model, 1).unwrap();
    let mut caught = 0;
    for transcript in cheap {
        let mut forged = transcript.clone();
        let tokens = polylink_judge::replay::Replay::replay(&mut declared, &transcript, 0).unwrap().unwrap();
        forged.completions[0].sketches = tokens.iter().map(|t| t.sketch).collect();
        let finding = evaluate_one(&auditor, forged).await;
        assert_eq!(finding.sketch_error, 0.0);
        caught += usize::from(finding.mismatch);
    }
    println!("cheap tokens under honest sketches: {caught} of 8 answers differ");
    assert!(caught > 0, "tokens give it away where the models disagree");
    let mut altered = honest[0].clone();
    altered.completions[0].token_ids[0] ^= 1;
    assert!(evaluate_one(&auditor, altered).await.mismatch);
    let mut cut = honest[0].clone();
    cut.completions[0].token_ids.pop();
    cut.completions[0].sketches.pop();
    assert!(evaluate_one(&auditor, cut.clone()).await.mismatch, "cut short");
    cut.receipt.finish_reason = FinishReason::Cancelled as i32;
    assert!(!evaluate_one(&auditor, cut).await.mismatch, "its user went away");
    let mut outside = honest[0].clone();
    outside.completions[0].token_ids[0] = u32::MAX;
    assert!(evaluate_one(&auditor, outside).await.mismatch);
}

/// The worst case for the judge: cheap answers mixed into honest ones, so that most audits find nothing.
#[tokio::test]
async fn a_worker_that_cheats_on_three_in_ten_answers_is_over_the_threshold() {
    const ANSWERS: usize = 60;
    /// Audited answers by which the statistic has crossed: 95 % of simulated workers that cheat so are over it by then.
    const STATED: usize = 40;
    let auditor = auditor();
    let questions = questions(ANSWERS);
    let honest = serve("nano", Precision::F32, &questions, 0.7).await;
    // Three in ten, scattered by a fixed rule; only these are served by the smaller model.
    let cheats = |at: usize| [1, 4, 8].contains(&(at * 7 % 10));
    let asked: Vec<_> = questions.into_iter().enumerate().filter(|(at, _)| cheats(*at)).map(|(_, q)| q).collect();
    let mut cheap = serve("pico", Precision::F32, &asked, 0.7).await.into_iter();
    let mixed: Vec<_> = honest
        .into_iter()
        .enumerate()
        .map(|(at, honest)| if cheats(at) { cheap.next().unwrap() } else { honest })
        .collect();
    let params = polylink_abci_app::tiqe::params::default();
    let (mut statistic, mut crossed) = (0, None);
    for (at, finding) in evaluate(&auditor, &mixed).await.iter().enumerate() {
        assert_eq!(finding.mismatch, cheats(at), "answer {at}: {finding:?}");
        let evidence = [finding.score.evidence_milli];
        statistic = polylink_abci_app::tiqe::scoring::cusum_milli(statistic, evidence, params.evidence_clip_milli);
        if statistic >= params.cusum_threshold_milli && crossed.is_none() {
            crossed = Some(at + 1);
        }
    }
    println!("pico on 30 % of answers: over the threshold after {crossed:?} audited answers");
    assert!(crossed.is_some_and(|answers| answers <= STATED), "{crossed:?}");
}
