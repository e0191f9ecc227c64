//! Tables of bodies: what each field becomes, and how each wrong one is answered.

use serde_json::json;

use super::*;

fn chat(extra: Value) -> Result<AnswerRequest, ApiError> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    AnswerRequest::parse(Kind::Chat, body.to_string().as_bytes())
}

fn completion(extra: Value) -> Result<AnswerRequest, ApiError> {
    let mut body = json!({"model": "m", "prompt": "hi"});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    AnswerRequest::parse(Kind::Completion, body.to_string().as_bytes())
}

fn conversation(message: ChatMessage) -> Prompt {
    Prompt::Chat(Box::new(Conversation { messages: vec![message], ..Conversation::default() }))
}

#[test]
fn defaults_are_openais() {
    let request = chat(json!({})).unwrap();
    assert_eq!(request.prompt, conversation(ChatMessage::new("user", "hi")));
    let s = &request.sampling;
    assert_eq!((s.temperature, s.top_p, s.top_k, s.min_p, s.n), (1.0, 1.0, 0, 0.0, 1));
    assert_eq!((s.repetition_penalty, s.presence_penalty, s.frequency_penalty), (1.0, 0.0, 0.0));
    assert_eq!((s.max_tokens, request.seed, request.logprobs, request.stream), (0, None, None, false));
    assert_eq!(completion(json!({})).unwrap().sampling.max_tokens, 16);
}

#[test]
fn every_field_is_obeyed() {
    let request = chat(json!({
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "repetition_penalty": 1.1,
        "presence_penalty": -1, "frequency_penalty": 2, "logit_bias": {"7": -100, "3": 1.5},
        "max_tokens": 5, "max_completion_tokens": 9, "min_tokens": 2, "stop": "END", "stop_token_ids": [4, 5],
        "ignore_eos": true, "n": 3, "seed": 11, "logprobs": true, "top_logprobs": 4, "stream": true,
        "stream_options": {"include_usage": true}, "return_token_ids": true, "priority": -3,
        "add_special_tokens": false, "response_format": {"type": "json_object"},
    }))
    .unwrap();
    let s = &request.sampling;
    assert_eq!((s.temperature, s.top_p, s.top_k, s.min_p), (0.5, 0.9, 40, 0.1));
    assert_eq!((s.repetition_penalty, s.presence_penalty, s.frequency_penalty), (1.1, -1.0, 2.0));
    assert_eq!(s.logit_bias, [LogitBias { token: 3, bias: 1.5 }, LogitBias { token: 7, bias: -100.0 }]);
    assert_eq!((s.max_tokens, s.min_tokens, s.n, s.ignore_eos), (9, 2, 3, true));
    assert_eq!((s.stop.as_slice(), s.stop_token_ids.as_slice()), (&["END".to_string()][..], &[4, 5][..]));
    assert_eq!((request.seed, request.logprobs), (Some(client_seed(11)), Some(4)));
    assert_eq!((request.priority, request.add_special_tokens), (Some(-3), Some(false)));
    assert_eq!(request.grammar.unwrap().field, "response_format");
    assert!(request.stream && request.include_usage && request.return_token_ids && request.ignored.is_empty());
}

use polylink_protocol::market_v1::LogitBias;

#[test]
fn what_a_request_leaves_open_is_known() {
    let request = chat(json!({"temperature": 0.7, "top_k": null})).unwrap();
    let expected = Unset { temperature: false, top_p: true, top_k: true, repetition_penalty: true };
    assert_eq!(request.unset, expected);
}

/// What clients send for "greedy": the engine divides by the one, and keeps at least one token of the other.
#[test]
fn hardly_any_randomness_is_the_least_that_can_be_computed() {
    let sampling = chat(json!({"temperature": 1e-8, "top_p": 0})).unwrap().sampling;
    assert_eq!((sampling.temperature, sampling.top_p), (polylink_kernels::TEMPERATURE_MIN, f32::MIN_POSITIVE));
    assert_eq!(chat(json!({"temperature": 0})).unwrap().sampling.temperature, 0.0);
}

#[test]
fn a_wrong_value_is_answered_with_its_field() {
    for (body, param) in [
        (json!({"temperature": 3}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"top_p": -0.1}), "top_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"min_p": 1.5}), "min_p"),
        (json!({"presence_penalty": 3}), "presence_penalty"),
        (json!({"n": 0}), "n"),
        (json!({"n": 17}), "n"),
        (json!({"n": 1.5}), "n"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_completion_tokens": -1}), "max_completion_tokens"),
        (json!({"min_tokens": 9, "max_tokens": 8}), "min_tokens"),
        (json!({"stop": [1]}), "stop"),
        (json!({"stop": ""}), "stop"),
        (json!({"stop": vec!["x"; 17]}), "stop"),
        (json!({"stop_token_ids": ["a"]}), "stop_token_ids"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias"),
        (json!({"logit_bias": {"1": 101}}), "logit_bias"),
        (json!({"logit_bias": {"1": 1, "01": 2}}), "logit_bias"),
        (json!({"logit_bias": [1]}), "logit_bias"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"logprobs": 5}), "logprobs"),
        (json!({"prompt_logprobs": 21}), "prompt_logprobs"),
        (json!({"prompt_logprobs": true}), "prompt_logprobs"),
        (json!({"prompt_logprobs": 1, "stream": true}), "prompt_logprobs"),
        (json!({"echo": 1}), "echo"),
        (json!({"seed": "x"}), "seed"),
        (json!({"priority": 101}), "priority"),
        (json!({"priority": "high"}), "priority"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"model": 3}), "model"),
        (json!({"model": null}), "model"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": "hi"}), "messages"),
        (json!({"messages": [3]}), "messages[0]"),
        (json!({"messages": [{"content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "king", "content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "tool", "content": "x", "tool_call_id": 3}]}), "messages[0].tool_call_id"),
        (json!({"messages": [{"role": "function", "content": "x"}]}), "messages[0].role"),
        (json!({"tools": [1]}), "tools[0]"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"chat_template_kwargs": 1}), "chat_template_kwargs"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "messages[0].content"),
        (json!({"messages": [{"role": "assistant", "content": "x", "tool_calls": [1]}]}), "messages[0].tool_calls"),
    ] {
        let error = chat(body.clone()).expect_err(&body.to_string());
        assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{body}");
        assert!(error.message.len() > 10, "{body}: {error}");
    }
}

#[test]
fn what_would_change_the_answer_is_refused_by_name_never_dropped() {
    for (name, value) in [
        ("functions", json!([{}])),
        ("modalities", json!(["text", "audio"])),
        ("audio", json!({"voice": "x"})),
        ("prediction", json!({"type": "content"})),
        ("best_of", json!(2)),
        ("echo", json!(true)),
        ("suffix", json!("x")),
        ("use_beam_search", json!(true)),
        ("include_stop_str_in_output", json!(true)),
        ("skip_special_tokens", json!(false)),
        ("chat_template", json!("x")),
        ("reasoning_effort", json!("high")),
    ] {
        let error = chat(json!({ name: value })).expect_err(name);
        assert_eq!(
            (error.status.as_u16(), error.code(), error.param.as_deref()),
            (400, "unsupported_parameter", Some(name))
        );
        assert!(error.message.contains(name));
    }
    let nothing = json!({"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "structured_outputs": null,
        "modalities": ["text"],
        "best_of": 1, "echo": false, "parallel_tool_calls": true, "tools ": null, "chat_template_kwargs": {}});
    assert!(chat(nothing).unwrap().ignored.is_empty());
}

#[test]
fn an_echo_may_be_the_whole_answer_of_a_completion() {
    let asked = |extra| completion(extra).map(|request| (request.prompt_only, request.scored_prompt()));
    assert_eq!(asked(json!({"echo": true, "max_tokens": 0})).unwrap(), (true, None));
    assert_eq!(asked(json!({"echo": true, "max_tokens": 0, "logprobs": 2})).unwrap(), (true, Some(2)));
    assert_eq!(asked(json!({"echo": true, "logprobs": 2, "prompt_logprobs": 4})).unwrap(), (false, Some(4)));
    assert_eq!(asked(json!({"logprobs": 2})).unwrap(), (false, None));
    assert_eq!(asked(json!({"prompt_logprobs": 0})).unwrap(), (false, Some(0)));
    for (extra, param) in [
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": 0, "echo": false}), "max_tokens"),
        (json!({"max_tokens": 0, "echo": true, "min_tokens": 1}), "min_tokens"),
        (json!({"echo": true, "logprobs": 21}), "logprobs"),
        (json!({"echo": true, "best_of": 2}), "best_of"),
    ] {
        let error = completion(extra.clone()).expect_err(&extra.to_string());
        assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{extra}");
    }
}

#[test]
fn unknown_fields_are_named() {
    let request = chat(json!({"user": "u", "metadata": {"a": 1}, "frobnicate": 1, "zeta": null, "alpha": []})).unwrap();
    assert_eq!(request.ignored, ["alpha", "frobnicate"]);
}

#[test]
fn bodies_that_are_no_object_are_answered() {
    for body in ["", "{", "[]", "3", "nul", "\"x\"", "{\"model\": }"] {
        let error = AnswerRequest::parse(Kind::Chat, body.as_bytes()).expect_err(body);
        assert_eq!((error.status.as_u16(), error.code()), (400, "invalid_json"), "{body}");
    }
}

#[test]
fn prompts_come_as_text_or_ids() {
    for (prompt, expected) in [
        (json!("hi"), Some(Prompt::Text("hi".into()))),
        (json!(["hi"]), Some(Prompt::Text("hi".into()))),
        (json!([1, 2]), Some(Prompt::Ids(vec![1, 2]))),
        (json!([7]), Some(Prompt::Ids(vec![7]))),
        (json!([[1, 2]]), Some(Prompt::Ids(vec![1, 2]))),
        (json!(["a", "b"]), None),
        (json!([]), None),
        (json!([1, "a"]), None),
        (json!([-1]), None),
        (json!({"a": 1}), None),
        (json!(null), None),
    ] {
        let found = completion(json!({"prompt": prompt.clone()}));
        match expected {
            Some(expected) => assert_eq!(found.unwrap().prompt, expected),
            None => assert_eq!(found.expect_err(&prompt.to_string()).param.as_deref(), Some("prompt"), "{prompt}"),
        }
    }
    assert_eq!(completion(json!({"logprobs": 3})).unwrap().logprobs, Some(3));
}

#[test]
fn content_parts_are_joined_and_developer_is_system() {
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let request = chat(json!({"messages": [{"role": "developer", "content": parts}]})).unwrap();
    assert_eq!(request.prompt, conversation(ChatMessage::new("system", "ab")));
}

#[test]
fn a_client_seed_is_expanded_in_one_documented_way() {
    let by_hand = polylink_protocol::Digest::of(b"polylink/client-seed/v1\0\0\0\0\0\0\0\0\x07");
    assert_eq!(client_seed(7), by_hand.0);
    assert_ne!(client_seed(7), client_seed(-7));
}

#[test]
fn calls_and_their_results_are_part_of_a_conversation() {
    let call =
        json!({"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{\"b\": 1, \"a\": 2}"}});
    let messages = json!([{"role": "user", "content": "2 + 1?"}, {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "name": "add", "content": [{"type": "text", "text": "3"}]}]);
    let Prompt::Chat(conversation) = chat(json!({"messages": messages})).unwrap().prompt else {
        panic!("a conversation")
    };
    let [_, assistant, tool] = conversation.messages.as_slice() else { panic!("three messages") };
    assert_eq!(assistant.content, "");
    let arguments = &assistant.more["tool_calls"][0]["function"]["arguments"];
    assert_eq!(arguments.to_string(), "{\"b\":1,\"a\":2}", "as an object, in its order");
    assert_eq!((tool.role.as_str(), tool.content.as_str(), &tool.more["tool_call_id"]), ("tool", "3", &json!("c1")));
}
