//! What a hostile user or worker can put into a transcript, and the outcome of each: a score, a mismatch, no panic.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{CLIP_MILLI, auditor, cases, evaluate, evaluate_one, in_time, models, questions, sampling, serve};
use polylink_inference_server::model::{LoadedModel, Precision};
use polylink_judge::transcript::Completion;
use polylink_judge::{Auditor, Finding, Transcript};
use polylink_protocol::market::grammar_digest;
use polylink_protocol::market_v1::{FinishReason, LogitBias};
use tokio::time::Instant;

fn nano() -> LoadedModel {
    LoadedModel::open(models().join("nano"), Precision::F32).unwrap()
}

/// The transcript cut to its first tokens.
fn cut(transcript: &Transcript, tokens: usize) -> Transcript {
    let mut cut = transcript.clone();
    cut.completions[0].token_ids.truncate(tokens);
    cut.completions[0].sketches.truncate(tokens);
    cut
}

fn cancelled(mut transcript: Transcript) -> Transcript {
    transcript.receipt.finish_reason = FinishReason::Cancelled as i32;
    transcript
}

fn assert_match(finding: &Finding, tokens: u32) {
    assert!(!finding.mismatch && finding.score.replayed, "{finding:?}");
    assert_eq!((finding.score.tokens, finding.score.evidence_milli), (tokens, if tokens == 0 { 0 } else { -442 }));
}

fn assert_mismatch(finding: &Finding, why: &str) {
    assert!(finding.mismatch && finding.score.evidence_milli == CLIP_MILLI as i64, "{why}: {finding:?}");
}

#[tokio::test]
async fn an_answer_ends_where_an_honest_one_can() {
    let auditor = auditor();
    let honest = serve("nano", Precision::F32, &questions(4), 0.0).await;
    let all = &honest[0];
    let length = all.completions[0].token_ids.len();
    assert!(length > 2, "the question has a short answer");
    // A user that goes away leaves any number of tokens, and 0 of them say nothing.
    for tokens in 0..=length {
        let finding = evaluate_one(&auditor, cancelled(cut(all, tokens))).await;
        assert_match(&finding, tokens as u32);
        let finding = evaluate_one(&auditor, cut(all, tokens)).await;
        match tokens == length {
            true => assert_match(&finding, tokens as u32),
            false => assert_mismatch(&finding, "cut short, and nobody went away"),
        }
    }
    // The declared model, sent on past its end token: each token is what it would draw, and yet none is owed.
    let mut forced = all.clone();
    forced.request.sampling.as_mut().unwrap().ignore_eos = true;
    let beyond = common::serve_request(&forced).await;
    assert!(beyond.completions[0].token_ids.len() > length);
    let mut inflated = beyond.clone();
    inflated.request.sampling.as_mut().unwrap().ignore_eos = false;
    assert_mismatch(&evaluate_one(&auditor, inflated.clone()).await, "beyond the end token");
    assert_mismatch(&evaluate_one(&auditor, cancelled(inflated)).await, "cancelled is no free pass");
    assert_match(&evaluate_one(&auditor, beyond.clone()).await, beyond.completions[0].token_ids.len() as u32);
    // Past max_tokens.
    let mut long = beyond;
    long.request.sampling.as_mut().unwrap().max_tokens = 3;
    assert_mismatch(&evaluate_one(&auditor, long.clone()).await, "beyond the limit");
    assert_mismatch(&evaluate_one(&auditor, cancelled(long.clone())).await, "beyond the limit, cancelled");
    assert_match(&evaluate_one(&auditor, cut(&long, 3)).await, 3);
    assert_mismatch(&evaluate_one(&auditor, cut(&long, 2)).await, "before the limit");
    // At a stop text: the token that completes it is the last.
    let mut stopped = all.clone();
    let text = nano().tokenizer().decode(&all.completions[0].token_ids[..2]);
    stopped.request.sampling.as_mut().unwrap().stop = vec![text];
    assert_match(&evaluate_one(&auditor, cut(&stopped, 2)).await, 2);
    assert_mismatch(&evaluate_one(&auditor, stopped.clone()).await, "beyond the stop text");
    assert_mismatch(&evaluate_one(&auditor, cancelled(stopped.clone())).await, "beyond the stop text, cancelled");
    assert_match(&evaluate_one(&auditor, cancelled(cut(&stopped, 1))).await, 1);
}

#[tokio::test]
async fn transcripts_of_absurd_shape_are_mismatches() {
    let auditor = auditor();
    let honest = serve("nano", Precision::F32, &questions(2), 1.0).await.remove(0);
    let context = nano().context_length();
    let (token, sketch) = (honest.completions[0].token_ids[0], honest.completions[0].sketches[0]);
    type Alter = Box<dyn Fn(&mut Transcript)>;
    let alterations: [(&str, Alter); 9] = [
        ("an empty prompt", Box::new(|t| t.prompt_ids.clear())),
        ("a prompt that fills the context", Box::new(move |t| t.prompt_ids = vec![token; context])),
        ("a prompt far beyond the context", Box::new(move |t| t.prompt_ids = vec![token; 20 * context])),
        ("ids beyond the vocabulary in the prompt", Box::new(|t| t.prompt_ids[0] = u32::MAX)),
        ("ids beyond the vocabulary in the answer", Box::new(|t| t.completions[0].token_ids[0] = u32::MAX)),
        ("no choice", Box::new(|t| t.completions.clear())),
        ("more choices than asked for", Box::new(|t| t.completions = vec![t.completions[0].clone(); 1_000])),
        ("fewer choices than asked for", Box::new(|t| t.request.sampling.as_mut().unwrap().n = u32::MAX)),
        (
            "an answer far beyond the context",
            Box::new(move |t| {
                t.completions[0] =
                    Completion { token_ids: vec![token; 9 * context], sketches: vec![sketch; 9 * context] };
                t.request.sampling.as_mut().unwrap().max_tokens = u32::MAX;
            }),
        ),
    ];
    for (name, alter) in &alterations {
        for cancel in [false, true] {
            let mut altered = if cancel { cancelled(honest.clone()) } else { honest.clone() };
            alter(&mut altered);
            assert_mismatch(&evaluate_one(&auditor, altered).await, name);
        }
    }
    // A prompt that no worker can have computed is billed without a single token of answer.
    let mut phantom = cancelled(cut(&honest, 0));
    phantom.prompt_ids = vec![token; context];
    assert_mismatch(&evaluate_one(&auditor, phantom).await, "a phantom prompt");
    let mut outside = cancelled(cut(&honest, 0));
    outside.prompt_ids[0] = u32::MAX;
    assert_mismatch(&evaluate_one(&auditor, outside).await, "a phantom prompt outside the vocabulary");
}

#[tokio::test]
async fn hostile_texts_are_scored_like_any_other() {
    let (auditor, model) = (auditor(), nano());
    let special = model.end_tokens()[0];
    let honest = serve("nano", Precision::F32, &questions(2), 1.0).await.remove(0);
    // Special tokens in the user's message, in the answer, nothing but special tokens, and pieces of characters.
    let mut injected = honest.clone();
    injected.prompt_ids.extend([special; 3]);
    let mut only_special = honest.clone();
    only_special.prompt_ids = vec![special; 7];
    let mut answered = honest.clone();
    answered.completions[0].token_ids[0] = special;
    let pieces: Vec<u32> = (0..model.tokenizer().vocabulary() as u32)
        .filter(|id| model.tokenizer().decode(&[*id]).contains('\u{fffd}'))
        .take(5)
        .collect();
    assert!(!pieces.is_empty(), "some tokens are pieces of characters");
    let mut broken = honest.clone();
    let tokens = broken.completions[0].token_ids.len();
    broken.completions[0].token_ids = pieces.iter().cycle().copied().take(tokens).collect();
    broken.request.sampling.as_mut().unwrap().stop = vec!["\u{fffd}\u{fffd}".into()];
    for (name, altered) in [
        ("special tokens in the prompt", injected),
        ("nothing but special tokens", only_special),
        ("an end token at the beginning", answered),
        ("pieces of characters", broken),
    ] {
        let finding = evaluate_one(&auditor, altered).await;
        assert!(finding.score.cross_bps <= 10_000 && finding.score.replayed, "{name}: {finding:?}");
        assert_mismatch(&finding, name);
    }
    // Pieces of characters that the declared model was made to draw are an honest answer.
    let mut forced = honest;
    forced.request.sampling = Some(sampling(1.0));
    forced.request.sampling.as_mut().unwrap().logit_bias =
        pieces.iter().map(|token| LogitBias { token: *token, bias: 100.0 }).collect();
    let forced = common::serve_request(&forced).await;
    assert!(forced.completions[0].token_ids.iter().any(|id| pieces.contains(id)));
    assert_match(&evaluate_one(&auditor, forced.clone()).await, forced.completions[0].token_ids.len() as u32);
}

#[tokio::test]
async fn several_choices_and_the_whole_context_replay() {
    let auditor = auditor();
    let honest = serve("nano", Precision::F32, &questions(2), 1.0).await.remove(0);
    let mut several = honest.clone();
    several.request.sampling.as_mut().unwrap().n = 3;
    let several = common::serve_request(&several).await;
    let tokens = several.completions.iter().map(|c| c.token_ids.len() as u32).sum();
    assert_match(&evaluate_one(&auditor, several.clone()).await, tokens);
    let mut swapped = several.clone();
    swapped.completions.swap(0, 2);
    assert_mismatch(&evaluate_one(&auditor, swapped).await, "each choice has its own noise");
    // Cancelled before the second choice had a token.
    let mut partial = cancelled(several.clone());
    partial.completions[1] = Completion { token_ids: vec![], sketches: vec![] };
    let left = tokens - several.completions[1].token_ids.len() as u32;
    assert_match(&evaluate_one(&auditor, partial).await, left);
    // To the last position of the context.
    let mut full = honest;
    let sampling = full.request.sampling.as_mut().unwrap();
    (sampling.max_tokens, sampling.ignore_eos) = (u32::MAX, true);
    let full = common::serve_request(&full).await;
    let length = full.completions[0].token_ids.len();
    assert_eq!(full.prompt_ids.len() + length, nano().context_length());
    assert_match(&evaluate_one(&auditor, full.clone()).await, length as u32);
    assert_mismatch(&evaluate_one(&auditor, cut(&full, length - 1)).await, "one before the context's end");
}

#[tokio::test]
async fn a_profile_that_is_not_held_is_scored_without_replay() {
    let auditor = auditor();
    let mut other = serve("nano", Precision::F32, &questions(1), 0.0).await.remove(0);
    other.receipt.profile_digest = vec![9; 32];
    let finding = evaluate_one(&auditor, other).await;
    assert!(!finding.score.replayed && !finding.mismatch && finding.score.evidence_milli == 0, "{finding:?}");
}

#[tokio::test]
async fn what_the_deadline_cuts_off_is_left_out_and_not_held_against_anyone() {
    let auditor = auditor();
    let honest = serve("nano", Precision::F32, &questions(3), 0.0).await;
    let late = auditor.evaluate(cases(&honest), CLIP_MILLI, Instant::now()).await.unwrap();
    for finding in &late {
        assert!(!finding.score.replayed && !finding.score.missing && finding.score.evidence_milli == 0, "{finding:?}");
    }
    assert_eq!(late[0].score.cross_bps, evaluate(&auditor, &honest).await[0].score.cross_bps);
}

/// Evaluates on a thread of one: what blocks it blocks all.
#[tokio::test]
async fn the_chain_is_watched_while_replays_compute_and_the_next_deadline_goes_first() {
    let auditor = auditor();
    let mut long = serve("nano", Precision::F32, &questions(1), 1.0).await.remove(0);
    let sampling = long.request.sampling.as_mut().unwrap();
    (sampling.max_tokens, sampling.ignore_eos) = (u32::MAX, true);
    let long = common::serve_request(&long).await;
    let short = serve("nano", Precision::F32, &questions(2), 0.0).await;
    let evaluating = |auditor: Auditor, transcripts: Vec<Transcript>, until| {
        tokio::spawn(async move { auditor.evaluate(cases(&transcripts), CLIP_MILLI, until).await.unwrap() })
    };
    // A trial of many long answers, then a round that is due before it.
    let trial = evaluating(auditor.clone(), vec![long; 16], in_time());
    let mut polls = 0;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let round = evaluating(auditor.clone(), short, in_time() - Duration::from_secs(60));
    while !round.is_finished() {
        polls += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(!trial.is_finished(), "the round did not wait for the trial");
    assert!(polls > 0 && round.await.unwrap().iter().all(|f| f.score.replayed));
    let trial = trial.await.unwrap();
    assert!(trial.len() == 16 && trial.iter().all(|f| !f.mismatch && f.score.replayed));
}

/// An answer that is held to a grammar: honest under it, and not under another one or none.
#[tokio::test]
async fn a_grammar_is_part_of_what_is_replayed() {
    let auditor = auditor();
    let asked = |transcript: &Transcript, grammar: Option<&str>| {
        let mut asked = transcript.clone();
        asked.grammar = grammar.map(str::to_owned);
        asked.request.sampling.as_mut().unwrap().grammar_digest = grammar_digest(grammar);
        asked
    };
    let plain = serve("nano", Precision::F32, &questions(3), 1.0).await;
    let schema =
        r#"json:{"type":"object","properties":{"answer":{"type":"string","maxLength":8}},"required":["answer"]}"#;
    let honest = common::serve_request(&asked(&plain[1], Some(schema))).await;
    let text = nano().tokenizer().decode(&honest.completions[0].token_ids);
    assert!(text.starts_with('{'), "{text}");
    assert_match(&evaluate_one(&auditor, honest.clone()).await, honest.completions[0].token_ids.len() as u32);
    assert_mismatch(&evaluate_one(&auditor, asked(&honest, None)).await, "the model alone says something else");
    assert_mismatch(&evaluate_one(&auditor, asked(&honest, Some("regex:[0-9]+"))).await, "another grammar");
    assert_mismatch(&evaluate_one(&auditor, asked(&honest, Some("regex:("))).await, "one that no worker takes");
    assert_mismatch(&evaluate_one(&auditor, asked(&plain[1], Some(schema))).await, "a worker that ignores it");
}
