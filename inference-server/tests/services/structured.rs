//! Structured output and reproducible seeds as a client sees them, through HTTP.

use std::sync::Arc;
use std::time::Duration;

use polylink_inference_server::engine::{Engine, EngineConfig, KvCacheSize};
use polylink_inference_server::http::local::{LocalAnswerer, TextModel};
use polylink_inference_server::http::metrics::HttpMetrics;
use polylink_inference_server::http::server::{self, HttpServer};
use polylink_inference_server::http::{FrontLimits, router};
use polylink_inference_server::model::{ChatMessage, LoadedModel, Precision};
use serde_json::{Value, json};

use super::http::{get, post, stream};
use super::network::{Network, model};

async fn serve(config: EngineConfig) -> (HttpServer, String) {
    serve_model(model(), config).await
}

async fn serve_model(model: LoadedModel, config: EngineConfig) -> (HttpServer, String) {
    let text = TextModel::of(&model);
    let engine = tokio::task::spawn_blocking(|| Engine::start(model, config).unwrap()).await.unwrap();
    let answerer = LocalAnswerer::new(engine, text, "pico".into());
    let listener = server::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let routes = router(Arc::new(answerer), FrontLimits::default(), HttpMetrics::new());
    let server = server::start(listener, routes).unwrap();
    let base = format!("http://{}", server.address());
    (server, base)
}

fn small() -> EngineConfig {
    EngineConfig { threads: 1, kv_cache: KvCacheSize::Blocks(256), ..EngineConfig::default() }
}

fn format() -> Value {
    let schema = json!({"type": "object", "properties": {"word": {"type": "string", "maxLength": 8},
        "many": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["word", "many"], "additionalProperties": false});
    json!({"type": "json_schema", "json_schema": {"name": "count", "strict": true, "schema": schema}})
}

fn is_in_format(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_eq!(value.as_object().unwrap().keys().collect::<Vec<_>>(), ["word", "many"], "in the schema's order");
    assert!(value["word"].as_str().unwrap().chars().count() <= 8 && (1..=9).contains(&value["many"].as_u64().unwrap()));
}

fn chat(extra: Value) -> Value {
    let mut body = json!({"model": "pico", "messages": [{"role": "user", "content": "Count!"}], "max_tokens": 120});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_come_in_the_format_that_was_asked_for() {
    let (server, base) = serve(small()).await;
    let url = format!("{base}/v1/chat/completions");
    for seed in 0..4 {
        let reply = post(&url, None, &chat(json!({"response_format": format(), "seed": seed, "n": 2}))).await.json();
        for choice in reply["choices"].as_array().unwrap() {
            is_in_format(choice["message"]["content"].as_str().unwrap());
            assert_eq!(choice["finish_reason"], "stop");
        }
    }
    let chunks = stream(&url, None, &chat(json!({"response_format": format(), "stream": true}))).await.chunks().await;
    let text: String = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    is_in_format(&text);
    let completion =
        json!({"model": "pico", "prompt": "x", "max_tokens": 40, "structured_outputs": {"regex": "[a-f]{3}[0-9]?"}});
    let reply = post(&format!("{base}/v1/completions"), None, &completion).await.json();
    let text = reply["choices"][0]["text"].as_str().unwrap();
    assert!(text.len() >= 3 && text.len() <= 4 && text.bytes().take(3).all(|b| (b'a'..=b'f').contains(&b)), "{text}");
    let reply = post(&url, None, &chat(json!({"guided_choice": ["left", "right"], "temperature": 0}))).await.json();
    assert!(["left", "right"].contains(&reply["choices"][0]["message"]["content"].as_str().unwrap()));

    for (extra, param) in [
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}}),
            "response_format",
        ),
        (json!({"structured_outputs": {"regex": "("}}), "structured_outputs"),
        (json!({"guided_grammar": "start: nobody"}), "guided_grammar"),
    ] {
        let reply = post(&url, None, &chat(extra)).await;
        assert_eq!((reply.status, reply.json()["error"]["param"].as_str()), (400, Some(param)), "{}", reply.json());
        assert!(reply.error().2.starts_with(&format!("`{param}` cannot be enforced: ")), "{}", reply.error().2);
    }
    server.stop(Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_gives_the_same_answer_after_a_restart_with_other_threads_beside_other_load() {
    let bodies = || {
        let sampled = json!({"seed": 77, "temperature": 1.3, "n": 2, "return_token_ids": true, "ignore_eos": true, "max_tokens": 40});
        let penal =
            json!({"seed": -5, "frequency_penalty": 0.7, "top_p": 0.9, "return_token_ids": true, "max_tokens": 40});
        let held = json!({"seed": 3, "response_format": format(), "return_token_ids": true});
        [chat(sampled), chat(penal), chat(held)]
    };
    let ask = async |base: &str| {
        let mut seen = Vec::new();
        for body in bodies() {
            let reply = post(&format!("{base}/v1/chat/completions"), None, &body).await;
            assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
            let choices = reply.json()["choices"].clone();
            assert!(choices[0]["token_ids"].as_array().unwrap().len() > 1);
            seen.push(choices);
        }
        seen
    };
    let (server, base) = serve(small()).await;
    let first = ask(&base).await;
    server.stop(Duration::from_secs(1)).await;
    let (server, base) = serve(EngineConfig { threads: 2, token_budget: 24, ..small() }).await;
    let mut load = Vec::new();
    for seed in 0..4 {
        let body = chat(json!({"stream": true, "seed": seed, "ignore_eos": true, "max_tokens": 400}));
        load.push(stream(&format!("{base}/v1/chat/completions"), None, &body).await);
    }
    let second = ask(&base).await;
    assert_eq!(first, second);
    let other =
        post(&format!("{base}/v1/chat/completions"), None, &chat(json!({"seed": 78, "temperature": 1.3}))).await;
    assert_ne!(other.json()["choices"][0]["message"], first[0][0]["message"], "another seed says something else");
    drop(load);
    server.stop(Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_and_token_ids_turn_into_each_other() {
    let (server, base) = serve(small()).await;
    let text = "Grüße, 你好 👍🏽\n\ttab <|end|>";
    let reply =
        post(&format!("{base}/tokenize"), None, &json!({"model": "pico", "prompt": text, "return_token_strs": true}))
            .await;
    let tokens = reply.json();
    assert_eq!(tokens["count"], tokens["tokens"].as_array().unwrap().len());
    assert_eq!(tokens["token_strs"].as_array().unwrap().len(), tokens["count"].as_u64().unwrap() as usize);
    assert_eq!(tokens["max_model_len"], model().context_length());
    let back = post(&format!("{base}/detokenize"), None, &json!({"tokens": tokens["tokens"]})).await.json();
    assert_eq!(back["prompt"], text);
    let chat =
        post(&format!("{base}/tokenize"), None, &json!({"messages": [{"role": "user", "content": "hi"}]})).await.json();
    let expected = model().encode_chat(&[ChatMessage::new("user", "hi")]);
    assert_eq!(chat["tokens"], json!(expected.unwrap()));
    for (path, body, param) in [
        ("detokenize", json!({"tokens": [1, 999_999]}), "tokens"),
        ("detokenize", json!({"tokens": "x"}), "tokens"),
        ("detokenize", json!({}), "tokens"),
        ("tokenize", json!({"model": "pico"}), "prompt"),
        ("tokenize", json!({"model": "nobody", "prompt": "x"}), "model"),
    ] {
        let reply = post(&format!("{base}/{path}"), None, &body).await;
        assert!(matches!(reply.status, 400 | 404), "{path} {body}");
        assert_eq!(reply.json()["error"]["param"], param, "{path} {body}");
    }
    assert!(get(&format!("{base}/version"), None).await.json()["version"].is_string());
    // What the document names is there.
    let document = get(&format!("{base}/openapi.json"), None).await.json();
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() > 8);
    for (path, methods) in paths {
        let url = format!("{base}{}", path.replace("{id}", "pico"));
        let reply = if methods["get"].is_object() { get(&url, None).await } else { post(&url, None, &json!({})).await };
        assert!(![404, 405].contains(&reply.status), "{path}: {}", reply.status);
    }
    server.stop(Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grammar_is_signed_sent_and_kept_with_the_answer() {
    let network = Network::start().await;
    let key = Some(network.api_key.as_str());
    let url = network.url("/v1/chat/completions");
    let mut body = chat(json!({"response_format": format(), "seed": 5}));
    let reply = post(&url, key, &body).await;
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    let answer = reply.json();
    is_in_format(answer["choices"][0]["message"]["content"].as_str().unwrap());
    let id = answer["id"].as_str().unwrap();
    let record = get(&network.url(&format!("/polylink/v1/receipts/{id}")), key).await.json();
    let record = if record["answer"].is_object() { record["answer"].clone() } else { record };
    let grammar = record["grammar"].as_str().unwrap();
    assert_eq!(grammar, format!("json:{}", format()["json_schema"]["schema"]));
    let signed = &record["request"]["request"]["sampling"]["grammar_digest"];
    let digest = polylink_protocol::market::grammar_digest(Some(grammar));
    assert!(*signed == json!(digest) || *signed == json!(hex::encode(&digest)), "{signed}");
    // The worker's refusal names the user's field.
    body["response_format"]["json_schema"]["schema"] = json!({"type": "nothing"});
    let refused = post(&url, key, &body).await;
    assert_eq!((refused.status, refused.json()["error"]["param"].as_str()), (400, Some("response_format")));
    network.stop().await;
}

/// The project's model with a template that knows tools: it has never seen one, and must call one all the same.
fn model_with_tools(folder: &std::path::Path, tagged: bool) -> LoadedModel {
    for entry in std::fs::read_dir(model().folder()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    let file = folder.join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let call = if tagged { "<tool_call>" } else { "" };
    config["chat_template"] = json!(format!(
        "{{% if tools %}}{{{{ tools | tojson }}}}{call}{{% endif %}}{{% for m in messages %}}\
        {{{{ m.role }}}}: {{{{ m.content }}}}{{{{ m.tool_calls | tojson if m.tool_calls }}}}\n{{% endfor %}}"
    ));
    std::fs::write(&file, config.to_string()).unwrap();
    LoadedModel::open(folder, Precision::F32).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tool_that_has_to_be_called_is_called_with_arguments_of_its_schema() {
    let tool = |name: &str, field: &str| {
        let schema = json!({"type": "object", "properties": {field: {"type": "integer", "minimum": 0, "maximum": 99}},
            "required": [field], "additionalProperties": false});
        json!({"type": "function", "function": {"name": name, "description": "x", "parameters": schema}})
    };
    for tagged in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let (server, base) = serve_model(model_with_tools(folder.path(), tagged), small()).await;
        let url = format!("{base}/v1/chat/completions");
        let ask = |choice: Value| {
            chat(json!({"tools": [tool("add", "a"), tool("sub", "s")], "tool_choice": choice, "seed": 3}))
        };
        let named = json!({"type": "function", "function": {"name": "sub"}});
        for (choice, names) in [(json!("required"), vec!["add", "sub"]), (named, vec!["sub"])] {
            let reply = post(&url, None, &ask(choice.clone())).await;
            assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
            let answer = &reply.json()["choices"][0];
            assert_eq!(
                (answer["finish_reason"].as_str(), &answer["message"]["content"]),
                (Some("tool_calls"), &Value::Null)
            );
            let call = &answer["message"]["tool_calls"][0];
            let name = call["function"]["name"].as_str().unwrap();
            assert!(names.contains(&name) && call["type"] == "function" && call["id"].as_str().unwrap().len() > 8);
            let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
            assert!(arguments[if name == "add" { "a" } else { "s" }].as_u64().unwrap() <= 99);
            // Streamed: the same call, and no text of it.
            let mut body = ask(choice);
            body["stream"] = json!(true);
            let chunks = stream(&url, None, &body).await.chunks().await;
            let deltas: Vec<&Value> = chunks.iter().map(|c| &c["choices"][0]["delta"]).collect();
            let text: String = deltas.iter().filter_map(|d| d["content"].as_str()).collect();
            let calls: Vec<&Value> = deltas.iter().filter_map(|d| d["tool_calls"].as_array()).flatten().collect();
            assert_eq!((text.as_str(), calls.len()), ("", 1));
            assert_eq!((&calls[0]["function"], calls[0]["index"].as_u64()), (&call["function"], Some(0)));
            assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
        }
        // Free to call or not: what is no call is text, and results of calls are part of a conversation.
        let mut body = ask(json!("auto"));
        let call = json!({"id": "c", "type": "function", "function": {"name": "add", "arguments": "{\"a\": 1}"}});
        body["messages"] = json!([{"role": "user", "content": "1?"}, {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "1"}]);
        let reply = post(&url, None, &body).await;
        assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
        assert!(reply.json()["choices"][0]["message"]["content"].is_string());
        server.stop(Duration::from_secs(1)).await;
    }
    let (server, base) = serve(small()).await;
    let refused = post(&format!("{base}/v1/chat/completions"), None, &chat(json!({"tools": [tool("add", "a")]}))).await;
    assert_eq!((refused.status, refused.json()["error"]["param"].as_str()), (400, Some("tools")));
    server.stop(Duration::from_secs(1)).await;
}
