//! One model over two processes, 2 : 1, through TCP on loopback: the same tokens as one process, and a peer that dies
//! fails its requests within a stated time while nothing hangs.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Running, command};
use serde_json::{Value, json};
use std::net::TcpListener;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A silent peer fails its requests within its timeout and one second (see `serve --peer-timeout`).
const PEER_TIMEOUT_S: u64 = 2;

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn serve(args: &[&str]) -> Running {
    let mut command = command(&["serve", "--model", "nano", "--threads", "1"]);
    command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
    Running(command.spawn().unwrap())
}

async fn until_ready(http: &reqwest::Client, port: u16) {
    let start = Instant::now();
    while http.get(format!("http://127.0.0.1:{port}/ready")).send().await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(60), "nothing on port {port}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn ask(http: &reqwest::Client, port: u16, max_tokens: u32) -> (u16, Value) {
    let body = json!({"model": "polylink/nano", "messages": [{"role": "user", "content": "What is 17 plus 25?"}], "seed": 11,
                      "temperature": 1.0, "max_completion_tokens": max_tokens, "ignore_eos": true, "return_token_ids": true});
    let url = format!("http://127.0.0.1:{port}/v1/chat/completions");
    let response = http.post(url).json(&body).timeout(Duration::from_secs(60)).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_answer_as_one_and_a_dead_peer_is_an_error() {
    let http = reqwest::Client::new();
    let (alone, leader, peer) = (free_port(), free_port(), free_port());
    let (at_alone, at_leader, at_peer) =
        (format!("127.0.0.1:{alone}"), format!("127.0.0.1:{leader}"), format!("127.0.0.1:{peer}"));
    let secret = ["--split-secret", "known to both"];
    let timeout = PEER_TIMEOUT_S.to_string();
    let one = serve(&["--local", "--listen", &at_alone]);
    let mut second = serve(&[&["--join", "--listen", &at_peer][..], &secret[..]].concat());
    let split = ["--local", "--listen", &at_leader, "--split", "2:1", "--peer", &at_peer, "--peer-timeout", &timeout];
    tokio::time::sleep(Duration::from_secs(2)).await;
    let first = serve(&[&split[..], &secret[..]].concat());
    until_ready(&http, alone).await;
    until_ready(&http, leader).await;

    let (status, expected) = ask(&http, alone, 60).await;
    assert_eq!(status, 200, "{expected}");
    let (status, got) = ask(&http, leader, 60).await;
    assert_eq!(status, 200, "{got}");
    let ids =
        |answer: &Value| answer["choices"][0]["token_ids"].as_array().cloned().unwrap_or_else(|| panic!("{answer:#}"));
    assert_eq!(ids(&expected).len(), 60);
    assert_eq!(ids(&got), ids(&expected), "the split changes tokens");

    let asked = tokio::spawn({
        let http = http.clone();
        async move { ask(&http, leader, 900).await }
    });
    tokio::time::sleep(Duration::from_millis(400)).await;
    let killed = Instant::now();
    second.0.kill().unwrap();
    let (status, answer) = asked.await.unwrap();
    assert!(status >= 500, "an answer without its peer: {status} {answer}");
    assert!(answer["error"]["message"].is_string(), "{answer}");
    assert!(killed.elapsed() < Duration::from_secs(PEER_TIMEOUT_S + 3), "it took {:?}", killed.elapsed());
    println!("peer lost: {status} {} after {:.1} s", answer["error"]["message"], killed.elapsed().as_secs_f64());
    let start = Instant::now();
    let (status, _) = ask(&http, leader, 5).await;
    assert!(status >= 500 && start.elapsed() < Duration::from_secs(10), "{status} after {:?}", start.elapsed());
    drop((one, first));
}

#[test]
fn a_split_without_a_secret_is_refused() {
    for side in [&["--join"][..], &["--local", "--split", "2:1", "--peer", "127.0.0.1:9"]] {
        let output = command(&["serve", "--model", "nano", "--listen", "127.0.0.1:0"]).args(side).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains("--split-secret"), "{side:?}: {error}");
    }
}
