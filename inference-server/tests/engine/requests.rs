//! What a request may ask for, and what its stream does.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use polylink_inference_server::engine::{
    EngineConfig, EngineStatus, Event, FailureCode, FinishReason, GenerateRequest, KvCacheSize, TextEvent, TextStream,
};
use polylink_protocol::market_v1::{LogitBias, Sampling};

use crate::support::*;

#[test]
fn the_model_answers_a_question_and_stops_at_its_end_token() {
    let model = model("nano");
    let engine = start("nano", small());
    let sampling = Sampling { ignore_eos: false, max_tokens: 60, ..sampling() };
    let answer = run(&engine, request(chat(&model, "What is 2 + 3?"), sampling, 0));
    let choice = &answer.choices[0];
    assert_eq!(choice.reason, Some(FinishReason::Stop));
    assert_eq!(choice.ids().last(), model.end_tokens().first(), "the end token is the last one");
    println!("nano: {}", model.tokenizer().decode(&choice.ids()));
}

#[test]
fn greedy_tokens_are_stopped_suppressed_and_biased() {
    let engine = start("pico", small());
    let plain = run(&engine, request(prompt(1, 20), sampling(), 0)).choices[0].ids();
    let run = |sampling| run(&engine, request(prompt(1, 20), sampling, 0));

    // A stop token ends the choice and is its last token.
    let stop = plain[3];
    let first = plain.iter().position(|&id| id == stop).unwrap();
    let stopped = run(Sampling { stop_token_ids: vec![stop], ..sampling() });
    assert_eq!(stopped.choices[0].reason, Some(FinishReason::Stop));
    assert_eq!(stopped.choices[0].ids(), plain[..=first]);
    // Before min_tokens it is not drawn at all.
    let suppressed = run(Sampling { stop_token_ids: vec![stop], min_tokens: 10, ..sampling() });
    let ids = suppressed.choices[0].ids();
    assert!(ids.len() >= 10 && !ids[..10].contains(&stop), "{ids:?}");
    // A bias decides.
    let bias = vec![LogitBias { token: 777, bias: 100.0 }];
    let biased = run(Sampling { logit_bias: bias, max_tokens: 5, ..sampling() });
    assert_eq!(biased.choices[0].ids(), [777; 5]);
    assert_eq!(biased.choices[0].reason, Some(FinishReason::Length));
    // A presence penalty is only felt once a token was there.
    let bias = vec![LogitBias { token: 777, bias: 30.0 }, LogitBias { token: 778, bias: 29.5 }];
    let turned = run(Sampling { logit_bias: bias, max_tokens: 2, presence_penalty: 2.0, ..sampling() });
    assert_eq!(turned.choices[0].ids().len(), 2);
    assert_ne!(turned.choices[0].ids()[0], turned.choices[0].ids()[1]);
}

#[test]
fn a_stop_text_ends_the_answer_and_what_lies_beyond_counts_nowhere() {
    let model = model("nano");
    let engine = start("nano", small());
    let prompt_ids = chat(&model, "What is 47 + 38?");
    let sampling = Sampling { max_tokens: 30, ..sampling() };
    let whole = run(&engine, request(prompt_ids.clone(), sampling.clone(), 0));
    let text = model.tokenizer().decode(&whole.choices[0].ids());
    let (at, _) = text.char_indices().nth(6).unwrap();
    let stop: String = text[at..].chars().take(3).collect();
    let expected = &text[..text.find(&stop).unwrap()];

    let stream = engine.submit(request(prompt_ids, sampling, 0)).unwrap();
    let mut stream = TextStream::new(stream, Arc::clone(model.tokenizer()), 1, vec![stop.clone()]);
    let (mut said, mut tokens, mut reason, mut counted) = (String::new(), Vec::new(), None, 0);
    while let Some(event) = stream.blocking_next() {
        match event {
            TextEvent::Prompt(_) => panic!("nobody asked for it"),
            TextEvent::Token { token, text } => {
                assert_eq!(reason, None, "no token after the end");
                tokens.push(token.id);
                said.push_str(&text);
            }
            TextEvent::Finished { reason: why, text, .. } => {
                reason = Some(why);
                said.push_str(&text);
            }
            TextEvent::Done { usage } => counted = usage.completion_tokens,
            TextEvent::Failed { message, .. } => panic!("{message}"),
        }
    }
    assert_eq!((said.as_str(), reason), (expected, Some(FinishReason::Stop)));
    assert_eq!(counted as usize, tokens.len());
    assert_eq!(tokens, whole.choices[0].ids()[..tokens.len()]);
    assert!(model.tokenizer().decode(&tokens).contains(&stop));
    assert!(
        !model.tokenizer().decode(&tokens[..tokens.len() - 1]).contains(&stop),
        "it ended with the stop text's token"
    );
}

#[test]
fn a_dropped_or_cancelled_stream_stops_within_a_step() {
    let engine = start("pico", small());
    let long = || request(prompt(1, 10), Sampling { max_tokens: 1000, ..sampling() }, 0);
    let mut stream = engine.submit(long()).unwrap();
    for _ in 0..3 {
        assert!(matches!(stream.blocking_next(), Some(Event::Token(_))));
    }
    stream.cancel();
    let (mut tokens, mut reason) = (3, None);
    let usage = loop {
        match stream.blocking_next().unwrap() {
            Event::Prompt(_) => panic!("nobody asked for it"),
            Event::Token(_) => tokens += 1,
            Event::Finished { reason: why, .. } => reason = Some(why),
            Event::Done { usage } => break usage,
            Event::Failed { message, .. } => panic!("{message}"),
        }
    };
    assert_eq!(reason, Some(FinishReason::Cancelled));
    assert_eq!(usage.completion_tokens, tokens);
    assert!(tokens < 1000);
    assert_eq!(stream.blocking_next(), None);

    drop(engine.submit(long()).unwrap());
    let deadline = Instant::now() + Duration::from_secs(10);
    while engine.metrics().finished_cancelled.load(Ordering::Relaxed) < 2 {
        assert!(Instant::now() < deadline, "a dropped request goes on");
        std::thread::yield_now();
    }
}

#[test]
fn draining_finishes_what_there_is_and_refuses_more() {
    let engine = start("pico", small());
    let stream = engine.submit(request(prompt(1, 10), Sampling { max_tokens: 300, ..sampling() }, 0)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(engine.drain());
    assert_eq!(collect(stream).usage.completion_tokens, 300);
    assert_eq!(engine.status(), EngineStatus::Stopped);
    let refused = engine.submit(request(prompt(1, 10), sampling(), 0)).unwrap_err();
    assert_eq!(refused.http_status(), 503);
}

#[test]
fn a_shut_down_engine_fails_what_is_unfinished() {
    let engine = start("pico", small());
    let mut stream = engine.submit(request(prompt(1, 10), Sampling { max_tokens: 1000, ..sampling() }, 0)).unwrap();
    stream.blocking_next().unwrap();
    engine.shutdown();
    let last = std::iter::from_fn(|| stream.blocking_next()).last().unwrap();
    assert!(matches!(last, Event::Failed { code: FailureCode::EngineStopped, .. }), "{last:?}");
}

#[test]
fn sixteen_at_once_are_all_answered_and_counted() {
    let engine = start("pico", EngineConfig { max_running: 4, ..small() });
    let streams: Vec<_> = (0..16)
        .map(|i| {
            let tenant = [i % 3; 32];
            let request = request(prompt(u32::from(i), 20), noisy(), i);
            engine.submit(GenerateRequest { tenant, priority: i32::from(i) % 2, ..request }).unwrap()
        })
        .collect();
    for stream in streams {
        assert_eq!(collect(stream).choices[0].tokens.len(), 16);
    }
    let metrics = engine.metrics();
    assert_eq!(metrics.completion_tokens.load(Ordering::Relaxed), 256);
    assert_eq!(metrics.requests_accepted.load(Ordering::Relaxed), 16);
    assert_eq!(metrics.finished_length.load(Ordering::Relaxed), 16);
    assert_eq!(metrics.time_to_first_token.snapshot().counts.iter().sum::<u64>(), 16);
    assert_eq!(metrics.inter_token_latency.snapshot().counts.iter().sum::<u64>(), 240);
    // Nothing is left behind.
    let again = run(&engine, request(prompt(3, 20), sampling(), 0));
    assert_eq!(again.choices.len(), 1);
    assert_eq!(metrics.kv_blocks_total.load(Ordering::Relaxed), 128);
}

#[test]
fn tenants_do_not_share_prefixes() {
    let engine = start("pico", EngineConfig { kv_cache: KvCacheSize::Blocks(64), ..small() });
    let ask = |tenant: u8| {
        let request = request(prompt(1, 100), sampling(), 0);
        run(&engine, GenerateRequest { tenant: [tenant; 32], ..request }).usage.cached_tokens
    };
    assert_eq!(ask(1), 0);
    assert!(ask(1) >= 64);
    assert_eq!(ask(2), 0, "another tenant finds nothing");
}

#[test]
fn choices_end_one_by_one_and_the_rest_by_cancelling() {
    let engine = start("pico", small());
    let mut stream = engine.submit(request(prompt(1, 40), Sampling { max_tokens: 900, n: 3, ..noisy() }, 0)).unwrap();
    let (mut ended, mut tokens) = (Vec::new(), [0; 3]);
    let usage = loop {
        match stream.blocking_next().unwrap() {
            Event::Prompt(_) => panic!("nobody asked for it"),
            Event::Token(token) => {
                assert!(!ended.iter().any(|(choice, _)| *choice == token.choice), "no token after the end of a choice");
                tokens[token.choice as usize] += 1;
                if tokens[1] == 3 {
                    stream.stop_choice(1);
                }
            }
            Event::Finished { choice, reason } => {
                ended.push((choice, reason));
                if choice == 1 {
                    stream.cancel();
                }
            }
            Event::Done { usage } => break usage,
            Event::Failed { message, .. } => panic!("{message}"),
        }
    };
    assert_eq!(ended[0], (1, FinishReason::Stop));
    assert_eq!(ended[1..], [(0, FinishReason::Cancelled), (2, FinishReason::Cancelled)]);
    assert_eq!(usage.completion_tokens, tokens.iter().sum::<u64>());
    assert!(tokens.iter().all(|&tokens| (1..900).contains(&tokens)), "{tokens:?}");
    run(&engine, request(prompt(1, 40), sampling(), 0));
}

/// Weights that are finite but overflow: the request fails by name, and the engine lives on.
#[test]
fn overflowing_weights_fail_the_request_and_not_the_engine() {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder("pico")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let file = copy.path().join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    // The last norm's weights become the largest bf16: the logits overflow.
    let tensors: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let offsets = &tensors["model.norm.weight"]["data_offsets"];
    let place = |index: usize| 8 + header + offsets[index].as_u64().unwrap() as usize;
    bytes[place(0)..place(1)].chunks_exact_mut(2).for_each(|value| value.copy_from_slice(&[0x7f, 0x7f]));
    std::fs::write(&file, bytes).unwrap();
    let model = polylink_inference_server::model::LoadedModel::open(
        copy.path(),
        polylink_inference_server::model::Precision::F32,
    )
    .unwrap();
    let engine = polylink_inference_server::engine::Engine::start(model, small()).unwrap();
    for _ in 0..2 {
        let mut stream = engine.submit(request(prompt(1, 20), sampling(), 0)).unwrap();
        let last = std::iter::from_fn(|| stream.blocking_next()).last().unwrap();
        let Event::Failed { code: FailureCode::EngineFailed, message } = last else { panic!("{last:?}") };
        assert!(message.contains("not finite"), "{message}");
    }
    assert_eq!(engine.metrics().requests_failed.load(Ordering::Relaxed), 2);
    assert_eq!(engine.status(), EngineStatus::Ready);
}
