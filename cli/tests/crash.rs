//! `kill -9` of any one process: it is started again, the network goes on, balances are right, and an answer that did
//! not end is an error and is not billed.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Net, content, kill_hard};
use futures::StreamExt;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

async fn spent(net: &Net) -> Value {
    let url = format!("{}/polylink/v1/usage", net.gateway);
    net.http.get(url).bearer_auth(&net.api_key).send().await.unwrap().json().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn any_process_may_die() {
    let net = Net::up(&[]);
    assert!(!content(&net.answer("What is 2 plus 3?").await).is_empty());
    for role in ["worker", "gateway", "judge-1", "node", "ledger"] {
        let start = Instant::now();
        let balance = net.json(&["query", "balance", "user"])["amount"].clone();
        let pid = net.pid(role).unwrap_or_else(|| panic!("{role} has no process"));
        kill_hard(pid);
        // The supervisor must have seen it before health means anything.
        while net.pid(role) == Some(pid) {
            assert!(start.elapsed() < common::PATIENCE, "{role}: its end was not noticed");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        net.until_ok().await;
        assert!(!content(&net.answer("What is 4 plus 3?").await).is_empty());
        assert_eq!(net.json(&["query", "balance", "user"])["amount"], balance, "the user's own coins are untouched");
        println!("{role}: answers again {:.1} s after its kill -9", start.elapsed().as_secs_f64());
    }
    an_unfinished_answer_is_not_billed(&net).await;
    let height = |status: &Value| status["height"].as_u64().unwrap();
    let before = net.status();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(height(&net.status()) > height(&before), "blocks go on");
    even_the_supervisor_may_die(net).await;
}

/// Its children end with it, and the next `up` continues the same chain.
async fn even_the_supervisor_may_die(net: Net) {
    let before = net.status();
    let pids: Vec<u64> = before["roles"].as_array().unwrap().iter().filter_map(|r| r["pid"].as_u64()).collect();
    assert_eq!(pids.len(), before["roles"].as_array().unwrap().len());
    kill_hard(before["pid"].as_u64().unwrap());
    let start = Instant::now();
    let alive = |pid: &u64| {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Who was orphaned may stay a zombie where nobody reaps.
        !state.is_empty() && !state.contains(") Z ")
    };
    while pids.iter().any(alive) {
        assert!(start.elapsed() < Duration::from_secs(30), "roles outlive their supervisor: {before:#}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("all roles ended {:.1} s after their supervisor's kill -9", start.elapsed().as_secs_f64());
    assert_eq!(net.status()["health"], "stopped");
    let net = net.again();
    let after = net.status();
    assert_eq!(after["chain_id"], before["chain_id"]);
    assert!(after["height"].as_u64() >= before["height"].as_u64());
    assert!(!content(&net.answer("What is 6 plus 3?").await).is_empty());
}

/// The worker dies in the middle of a stream.
async fn an_unfinished_answer_is_not_billed(net: &Net) {
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = spent(net).await;
    let body = json!({"model": net.model, "messages": [{"role": "user", "content": "Hello!"}], "stream": true,
                      "max_completion_tokens": 900, "ignore_eos": true, "temperature": 1, "seed": 5});
    let request = net.http.post(format!("{}/chat/completions", net.endpoint)).bearer_auth(&net.api_key).json(&body);
    let response = request.timeout(Duration::from_secs(90)).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let mut stream = response.bytes_stream();
    let mut seen = String::new();
    while seen.matches("data:").count() < 5 {
        seen.push_str(&String::from_utf8_lossy(&stream.next().await.unwrap().unwrap()));
    }
    kill_hard(net.pid("worker").unwrap());
    while let Some(Ok(bytes)) = stream.next().await {
        seen.push_str(&String::from_utf8_lossy(&bytes));
    }
    assert!(!seen.contains("[DONE]"), "a broken answer must not look whole");
    assert!(seen.contains("\"error\""), "no error event: {}", &seen[seen.len().saturating_sub(600)..]);
    assert!(!seen.contains("\"receipt\":{"), "no receipt for half an answer");
    net.until_ok().await;
    assert!(!content(&net.answer("What is 5 plus 3?").await).is_empty());
    let (after, answer_cost) = (spent(net).await, 2_000);
    let amount = |usage: &Value| {
        usage["spent_uplk"].as_str().and_then(|s| s.parse::<u64>().ok()).unwrap_or_else(|| panic!("{usage}"))
    };
    assert!(amount(&after) - amount(&before) < answer_cost, "only the whole answer is billed: {before} {after}");
}
