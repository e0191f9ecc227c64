//! The load generator against a small HTTP server with known delays.
#![allow(clippy::unwrap_used)]

use axum::{Json, Router, body::Body, extract::State, http::StatusCode, response::Response, routing::post};
use futures::StreamExt;
use polylink_bench::BenchError;
use polylink_bench::serve::{Options, Target, run};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[derive(Clone, Default)]
struct Seen {
    in_flight: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    number: Arc<AtomicUsize>,
}

/// Three tokens, 20 ms apart, the first after 30 ms; every tenth request answers 500.
async fn complete(State(seen): State<Seen>, Json(body): Json<Value>) -> Response {
    assert_eq!(body["stream"], true);
    let now = seen.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
    seen.most.fetch_max(now, Ordering::SeqCst);
    if seen.number.fetch_add(1, Ordering::SeqCst) % 10 == 9 {
        seen.in_flight.fetch_sub(1, Ordering::SeqCst);
        let mut refused = Response::new(Body::from("{\"error\":{\"message\":\"no\"}}"));
        *refused.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        return refused;
    }
    let events = futures::stream::iter(0..5).then(move |at| {
        let seen = seen.clone();
        async move {
            let text = match at {
                0..=2 => {
                    tokio::time::sleep(Duration::from_millis(if at == 0 { 30 } else { 20 })).await;
                    json!({"choices": [{"delta": {"content": "x"}}]}).to_string()
                }
                3 => json!({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}).to_string(),
                _ => {
                    seen.in_flight.fetch_sub(1, Ordering::SeqCst);
                    "[DONE]".to_owned()
                }
            };
            Ok::<_, std::convert::Infallible>(format!("data: {text}\n\n"))
        }
    });
    Response::new(Body::from_stream(events))
}

async fn server() -> (String, Seen) {
    let seen = Seen::default();
    let router = Router::new().route("/v1/chat/completions", post(complete)).with_state(seen.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/v1", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (endpoint, seen)
}

fn options(endpoint: String) -> Options {
    Options {
        target: Target {
            endpoint,
            api_key: "key".into(),
            model: "m".into(),
            max_tokens: 3,
            ignore_eos: true,
            timeout: Duration::from_secs(5),
        },
        concurrency: 4,
        rate_per_second: None,
        requests: 40,
        duration: Duration::from_secs(20),
        prompts: None,
        seed: 7,
    }
}

fn value(report: &polylink_bench::serve::Report, name: &str) -> f64 {
    report.rows.iter().find(|r| r.name == name).unwrap_or_else(|| panic!("no row {name}")).value
}

#[tokio::test]
async fn closed_loop_measures_the_delays_and_counts_errors() {
    let (endpoint, seen) = server().await;
    let report = run(&options(endpoint), |_, _| ()).await.unwrap();
    assert_eq!((report.succeeded, report.failed, report.not_sent), (36, 4, 0));
    assert!(report.first_error.as_deref().unwrap().contains("500"));
    assert_eq!(seen.most.load(Ordering::SeqCst), 4, "closed loop keeps four in flight, never more");
    assert!((30.0..300.0).contains(&value(&report, "serve.ttft.p50")));
    assert!((15.0..200.0).contains(&value(&report, "serve.inter_token.p50")));
    assert!(value(&report, "serve.end_to_end.p50") >= 70.0);
    assert!(value(&report, "serve.completion_tokens") > 0.0);
}

#[tokio::test]
async fn open_loop_sends_by_the_clock_and_never_over_the_bound() {
    let (endpoint, seen) = server().await;
    let mut options = options(endpoint);
    (options.rate_per_second, options.concurrency, options.requests) = (Some(400.0), 3, 60);
    let report = run(&options, |_, _| ()).await.unwrap();
    assert!(seen.most.load(Ordering::SeqCst) <= 3);
    assert!(report.not_sent > 0, "400 arrivals a second of 70 ms each do not fit into three");
    assert_eq!(report.succeeded + report.failed + report.not_sent, 60);
}

#[tokio::test]
async fn a_dead_endpoint_and_bad_options_are_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = format!("http://{}/v1", listener.local_addr().unwrap());
    drop(listener);
    let mut wrong = options(dead);
    wrong.requests = 2;
    let error = run(&wrong, |_, _| ()).await.unwrap_err();
    assert!(matches!(&error, BenchError::NothingSucceeded { sent: 2, .. }), "{error}");
    wrong.concurrency = 0;
    assert!(run(&wrong, |_, _| ()).await.unwrap_err().to_string().contains("--concurrency"));
    wrong.concurrency = 1;
    wrong.target.endpoint = "localhost".into();
    assert!(run(&wrong, |_, _| ()).await.unwrap_err().to_string().contains("--endpoint"));
}

#[test]
fn rows_are_written_as_json() {
    let path = std::env::temp_dir().join(format!("polylink-bench-rows-{}.json", std::process::id()));
    let rows = vec![polylink_bench::row::Row::new("a", 1.5, "ms", 3, 0.1)];
    polylink_bench::row::write_json(&path, &rows).unwrap();
    let back: Vec<polylink_bench::row::Row> = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(back, rows);
}
