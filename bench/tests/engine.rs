//! The comparison refuses a peer that does other work than it was asked for.
#![allow(clippy::unwrap_used)]

use axum::{Json, Router, routing::get, routing::post};
use polylink_bench::BenchError;
use polylink_bench::engine::{Figure, Load, Options, Peers, Precision, run};
use polylink_bench::random_model::Shape;
use serde_json::{Value, json};

/// A server that says it completed `short` tokens fewer than it was asked for.
async fn server(short: u64) -> String {
    let models = get(|| async { Json(json!({"data": [{"id": "m"}]})) });
    let complete = post(move |Json(body): Json<Value>| async move {
        assert_eq!((&body["model"], &body["ignore_eos"], &body["temperature"]), (&json!("m"), &json!(true), &json!(0)));
        let (prompt, completion) = (body["prompt"].as_array().unwrap().len(), body["max_tokens"].as_u64().unwrap());
        tokio::time::sleep(std::time::Duration::from_millis(completion)).await;
        Json(json!({"usage": {"prompt_tokens": prompt, "completion_tokens": completion - short}}))
    });
    let router = Router::new()
        .route("/health", get(|| async { "ok" }))
        .route("/v1/models", models)
        .route("/v1/completions", complete);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    base
}

fn options(ours: &str) -> Options {
    Options {
        ours: ours.into(),
        model: "/nowhere/m".into(),
        shape: Shape::named("17m").unwrap(),
        cache: "/nowhere".into(),
        precisions: vec![Precision::Q8_0],
        figures: vec![Figure::Decode],
        start: false,
        growth: false,
        runs: 1,
        figure_time: std::time::Duration::from_secs(60),
        threads: 1,
        peers: Peers::none("not part of this test"),
        limits: true,
        serve_flags: Vec::new(),
    }
}

#[tokio::test]
async fn options_out_of_their_domain_are_named_before_anything_starts() {
    let named = async |change: &dyn Fn(&mut Options)| {
        let mut wrong = options("/nowhere/polylink");
        change(&mut wrong);
        run(&wrong, |_| ()).await.err().unwrap().to_string()
    };
    assert!(named(&|o| o.runs = 0).await.starts_with("--runs"));
    assert!(named(&|o| o.threads = 0).await.starts_with("--threads"));
    assert!(named(&|o| o.figures = vec![Figure::Serve(Load::new(257, 8, 8))]).await.starts_with("--streams"));
    assert!(named(&|o| o.figures = vec![Figure::Prefill { tokens: 32_768 }]).await.starts_with("--model"));
    assert!(named(&|_| ()).await.starts_with("ours: /nowhere/polylink could not be started"));
}

/// `false` ends at once: what it is that failed stands in the error.
#[tokio::test]
async fn a_server_that_ends_is_not_waited_for() {
    let error = run(&options("false"), |_| ()).await.err().unwrap();
    assert!(error.to_string().starts_with("ours: it ended (exit status: 1)"), "{error}");
}

#[tokio::test]
async fn an_answer_of_another_length_than_asked_for_fails_the_run() {
    let take = async |short| {
        let base = server(short).await;
        polylink_bench::engine::probe("peer", &base, 4_096, &Load::new(3, 20, 10)).await
    };
    assert!(take(0).await.unwrap() >= 0.01);
    match take(1).await {
        Err(BenchError::Contestant { name, reason }) => {
            assert_eq!(name, "peer");
            assert!(reason.contains("asked for 20 and 10 prompt and completion tokens"), "{reason}");
        }
        other => unreachable!("one token is missing in each answer: {other:?}"),
    }
}
