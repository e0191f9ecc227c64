//! Answers held to grammars: whatever the model would rather say, at temperature 1, they are what was asked for; the same
//! ones whatever else runs; and a judge's replay agrees with every token.

use polylink_inference_server::engine::{
    BackendKind, EngineConfig, FinishReason, GenerateRequest, KvCacheSize, ReplayRequest, Replayer,
};
use polylink_protocol::market::grammar_digest;
use polylink_protocol::market_v1::{LogitBias, Sampling};
use serde_json::{Value, json};

use crate::support::*;

fn asked(grammar: &str, sampling: Sampling, seed: u8) -> GenerateRequest {
    let grammar_digest = grammar_digest(Some(grammar));
    let sampling = Sampling { grammar_digest, ..sampling };
    GenerateRequest { grammar: Some(grammar.into()), ..request(prompt(u32::from(seed), 30), sampling, seed) }
}

/// Temperature 1 and no cut-off: the mask alone decides what is possible.
fn free(max_tokens: u32) -> Sampling {
    Sampling { temperature: 1.0, ignore_eos: false, max_tokens, ..sampling() }
}

/// Schemas whose answers fit into 300 tokens, but for the digits of a number.
fn schemas() -> Vec<Value> {
    let name = json!({"type": "string", "minLength": 2, "maxLength": 12});
    let closed = |properties: Value| {
        let required: Vec<&String> = properties.as_object().unwrap().keys().collect();
        json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
    };
    vec![
        closed(
            json!({"name": name, "age": {"type": "integer", "minimum": 0, "maximum": 150}, "ok": {"type": "boolean"}}),
        ),
        closed(
            json!({"b": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1, "maxItems": 3},
            "a": closed(json!({"none": {"type": "null"}, "fixed": {"const": {"x": [1, "two"]}}}))}),
        ),
        json!({"type": "array", "items": {"anyOf": [{"type": "integer", "minimum": -9, "maximum": 9}, name]},
            "minItems": 2, "maxItems": 4}),
        closed(json!({"share": {"type": "number", "minimum": 0, "maximum": 1}})),
        closed(json!({"größe": {"enum": ["klein", "groß", "😀", "日本"]}, "zähler": {"const": "é\n\"\\"}})),
        closed(
            json!({"code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}, "day": {"type": "string", "format": "date"}}),
        ),
        json!({"type": "object", "properties": {"p": {"type": "boolean"}, "q": name}, "additionalProperties": false}),
        json!({"$defs": {"node": closed(json!({"v": {"enum": [1, 2]},
            "next": {"anyOf": [{"type": "null"}, {"type": "null"}, {"$ref": "#/$defs/leaf"}]}})),
            "leaf": closed(json!({"v": {"type": "boolean"}}))}, "$ref": "#/$defs/node"}),
    ]
}

/// What of JSON Schema these schemas use; panics with the place that is wrong.
fn check(schema: &Value, root: &Value, value: &Value) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("{what}: {value} under {schema}"));
    if let Some(name) = schema["$ref"].as_str() {
        return check(&root["$defs"][name.rsplit('/').next().unwrap()], root, value);
    }
    if let Some(options) = schema["anyOf"].as_array() {
        return options.iter().map(|option| check(option, root, value)).find(Result::is_ok).unwrap_or(wrong("anyOf"));
    }
    if schema["enum"].as_array().is_some_and(|list| !list.contains(value)) {
        return wrong("enum");
    }
    if schema.get("const").is_some_and(|constant| constant != value) {
        return wrong("const");
    }
    let between = |n: f64, low: &str, high: &str| {
        n >= schema[low].as_f64().unwrap_or(f64::MIN) && n <= schema[high].as_f64().unwrap_or(f64::MAX)
    };
    match (schema["type"].as_str(), value) {
        (None, _) | (Some("null"), Value::Null) | (Some("boolean"), Value::Bool(_)) => Ok(()),
        (Some("integer"), Value::Number(n)) if n.is_i64() && between(n.as_f64().unwrap(), "minimum", "maximum") => {
            Ok(())
        }
        (Some("number"), Value::Number(n)) if between(n.as_f64().unwrap(), "minimum", "maximum") => Ok(()),
        (Some("string"), Value::String(text)) => {
            let code = |b: &[u8]| b.len() == 6 && b[2] == b'-' && b[..2].iter().all(u8::is_ascii_uppercase);
            let day = |b: &[u8]| b.len() == 10 && b[4] == b'-' && b[7] == b'-' && b[..4].iter().all(u8::is_ascii_digit);
            let formed = (schema["pattern"].is_null() || code(text.as_bytes()))
                && (schema["format"].is_null() || day(text.as_bytes()));
            let length = between(text.chars().count() as f64, "minLength", "maxLength");
            if formed && length { Ok(()) } else { wrong("string") }
        }
        (Some("array"), Value::Array(items)) if between(items.len() as f64, "minItems", "maxItems") => {
            items.iter().try_for_each(|item| check(&schema["items"], root, item))
        }
        (Some("object"), Value::Object(map)) => {
            let required = schema["required"].as_array().cloned().unwrap_or_default();
            if required.iter().any(|name| !map.contains_key(name.as_str().unwrap())) {
                return wrong("required");
            }
            map.iter().try_for_each(|(name, value)| match schema["properties"].get(name) {
                Some(property) => check(property, root, value),
                None if schema["additionalProperties"] == false => wrong("additionalProperties"),
                None => Ok(()),
            })
        }
        _ => wrong("type"),
    }
}

#[test]
fn answers_at_temperature_1_are_valid_under_their_schemas() {
    let (model, engine) = (model("nano"), start("nano", small()));
    let schemas = schemas();
    let streams: Vec<_> = schemas
        .iter()
        .flat_map(|schema| (0..3).map(move |seed| (schema, seed)))
        .map(|(schema, seed)| (schema, engine.submit(asked(&format!("json:{schema}"), free(300), seed)).unwrap()))
        .collect();
    let (mut different, mut cut) = (std::collections::BTreeSet::new(), 0);
    for (schema, stream) in streams {
        let answer = collect(stream);
        let text = model.tokenizer().decode(&answer.choices[0].ids());
        if answer.choices[0].reason == Some(FinishReason::Length) {
            assert!(text.contains("share"), "only a number has no end: {text}");
            cut += 1;
            continue;
        }
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        check(schema, schema, &value).unwrap();
        different.insert(text);
    }
    println!("{} different valid answers, {cut} cut", different.len());
    assert!(different.len() > schemas.len(), "the seeds give different answers: {different:?}");
    // Any object: as long as it ends within its tokens, it is one.
    let mut ended = 0;
    for seed in 0..6 {
        let answer = run(&engine, asked("json:{\"type\":\"object\"}", free(200), seed));
        let text = model.tokenizer().decode(&answer.choices[0].ids());
        if answer.choices[0].reason == Some(FinishReason::Stop) {
            assert!(serde_json::from_str::<Value>(&text).unwrap().is_object(), "{text}");
            ended += 1;
        }
    }
    println!("{ended} of 6 objects of any shape ended within 200 tokens");
}

#[test]
fn no_bias_makes_the_impossible_possible() {
    let (model, engine) = (model("pico"), start("pico", small()));
    let digits = |text: &str| text.len() == 4 && text.bytes().all(|b| b.is_ascii_digit());
    let bias = (0..500).map(|i| LogitBias { token: i * 4, bias: if i % 2 == 0 { 100.0 } else { 60.0 } }).collect();
    for sampling in
        [free(50), Sampling { logit_bias: bias, ..free(50) }, Sampling { top_k: 1, ..free(50) }, Sampling { ..noisy() }]
    {
        let answer = run(&engine, asked("regex:[0-9]{4}", Sampling { max_tokens: 50, ..sampling }, 3));
        let text = model.tokenizer().decode(&answer.choices[0].ids());
        assert!(digits(&text), "{text}");
        assert_eq!(answer.choices[0].reason, Some(FinishReason::Stop));
        assert_eq!(answer.choices[0].ids().last(), model.end_tokens().first());
    }
}

#[test]
fn a_complete_grammar_ends_the_answer_and_min_tokens_holds_it_open_where_it_can() {
    let (model, engine) = (model("pico"), start("pico", small()));
    // Complete after a few tokens, whatever is asked of the length.
    let stubborn = Sampling { min_tokens: 30, ignore_eos: true, ..free(40) };
    let answer = run(&engine, asked("regex:yes|no", stubborn.clone(), 1));
    let ids = answer.choices[0].ids();
    assert!(["yes", "no"].contains(&model.tokenizer().decode(&ids).as_str()) && ids.len() < 5);
    assert_eq!(answer.choices[0].reason, Some(FinishReason::Stop));
    // It can go on: held open until then.
    for seed in 0..4 {
        let answer = run(&engine, asked("regex:[a-z ]+", Sampling { min_tokens: 20, ..free(60) }, seed));
        assert!(answer.choices[0].tokens.len() >= 20);
    }
    let cut = run(&engine, asked("regex:[a-z]{200}", free(10), 1));
    assert_eq!(cut.choices[0].reason, Some(FinishReason::Length));
}

const SCHEMA: &str = r#"json:{"type":"array","items":{"type":"object","properties":{"name":{"type":"string","maxLength":20},"value":{"type":"number"}},"required":["name","value"]},"minItems":3,"maxItems":3}"#;

#[test]
fn neither_batch_nor_preemption_nor_threads_change_an_answer_with_a_grammar() {
    let probe = || {
        let sampling = Sampling { n: 2, grammar_digest: grammar_digest(Some(SCHEMA)), ..free(90) };
        GenerateRequest { grammar: Some(SCHEMA.into()), ..request(prompt(1, 70), sampling, 5) }
    };
    let alone = run(&start("nano", small()), probe());
    let tight = EngineConfig { token_budget: 20, threads: 2, kv_cache: KvCacheSize::Blocks(16), ..small() };
    let engine = start("nano", tight);
    let long = Sampling { max_tokens: 150, ..noisy() };
    let before: Vec<_> =
        (0..4).map(|i| engine.submit(request(prompt(1, 70 + i), long.clone(), i as u8)).unwrap()).collect();
    let stream = engine.submit(probe()).unwrap();
    let after: Vec<_> = (0..5).map(|i| engine.submit(asked("regex:[a-z]+", free(60), i)).unwrap()).collect();
    let crowded = collect(stream);
    before.into_iter().chain(after).for_each(|stream| drop(collect(stream)));
    let preempted = engine.metrics().preemptions.load(std::sync::atomic::Ordering::Relaxed);
    assert!(preempted > 0, "the crowd is too small to preempt anything");
    for (one, other) in alone.choices.iter().zip(&crowded.choices) {
        assert_eq!((one.ids(), one.reason), (other.ids(), other.reason));
    }
    assert_ne!(alone.choices[0].ids(), alone.choices[1].ids());
    // Found in the prefix cache.
    let again = run(&engine, probe());
    assert!(again.usage.cached_tokens > 0);
    assert_eq!(again.choices[0].ids(), alone.choices[0].ids());
}

#[test]
fn a_replay_applies_the_grammar_and_sees_what_it_forbids() {
    let engine = start("pico", small());
    let sampling = Sampling { min_tokens: 3, grammar_digest: grammar_digest(Some(SCHEMA)), ..free(80) };
    let prompt_ids = prompt(4, 40);
    let generate = GenerateRequest { grammar: Some(SCHEMA.into()), ..request(prompt_ids.clone(), sampling.clone(), 9) };
    let answer = run(&engine, generate);
    let ids = answer.choices[0].ids();
    let mut replayer = Replayer::new(&model("pico"), BackendKind::Cpu, 1).unwrap();
    let honest = ReplayRequest {
        prompt_ids: &prompt_ids,
        completion_ids: &ids,
        sampling: &sampling,
        grammar: Some(SCHEMA),
        seed: &[9; 32],
        choice: 0,
    };
    let replayed = replayer.replay(&honest).unwrap();
    assert_eq!(replayed.len(), ids.len());
    for (replayed, token) in replayed.iter().zip(&answer.choices[0].tokens) {
        assert_eq!((replayed.margin, replayed.drawn, replayed.sketch), (0.0, token.id, token.sketch));
    }
    let without = replayer.replay(&ReplayRequest { grammar: None, ..honest.clone() }).unwrap();
    assert!(without.iter().any(|token| token.margin > 0.0), "the model alone says something else");
    let mut forged = ids.clone();
    forged[2] = model("pico").tokenizer().token_id("}").unwrap();
    let seen = replayer.replay(&ReplayRequest { completion_ids: &forged, ..honest.clone() }).unwrap();
    assert_eq!((seen[1].margin, seen[2].margin), (0.0, f32::INFINITY));
    let unknown = replayer.replay(&ReplayRequest { grammar: Some("xml:"), ..honest }).unwrap_err();
    assert!(unknown.to_string().contains("grammar"), "{unknown}");
}
