//! `kill -9` of any one process while answers are under way: it is started again, the network goes on, every coin is
//! where the books say, an answer that did not end is an error and is not billed, and one that did is billed exactly.
#![allow(clippy::unwrap_used)]

mod common;

use common::books::{Books, uplk};
use common::stream::{Streamed, Streaming};
use common::{Net, PATIENCE, content, kill_hard};
use polylink_protocol::market::answer_amount;
use polylink_protocol::market_v1::{QueryWorkersRequest, QueryWorkersResponse, TokenPrices};
use polylink_protocol::{Message, market_v1};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Answers under way when a process is killed.
const UNDER_WAY: usize = 3;
/// So many tokens take seconds: they are under way when the process is killed, and when it is gone.
const LONG_TOKENS: u64 = 900;
/// Of the answers that must end whole although a process dies.
const WHOLE_TOKENS: u64 = 250;

/// The answers that came whole: what the user must have paid, to the micro-unit.
struct Bill {
    /// What the worker asks: no epoch price of a network that is hardly used is above it.
    price: TokenPrices,
    answers: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
    amount: u128,
}

impl Bill {
    async fn new(net: &Net) -> Self {
        let profile_digest = hex::decode(net.status()["profile"].as_str().unwrap()).unwrap();
        let request = QueryWorkersRequest { profile_digest, pagination: None };
        let raw = net.abci_query("/polylink.market.v1.Query/Workers", &request.encode_to_vec()).await;
        let worker = QueryWorkersResponse::decode(raw.as_slice()).unwrap().workers.remove(0);
        let price = worker.terms[0].offers[0].ask.unwrap();
        Self { price, answers: 0, prompt_tokens: 0, completion_tokens: 0, amount: 0 }
    }

    /// A receipt's amount is price × tokens, and is added to the bill.
    fn add(&mut self, receipt: &Value) {
        let receipt: market_v1::Receipt = serde_json::from_value(receipt.clone()).unwrap();
        let (prompt, cached, completion) = (receipt.prompt_tokens, receipt.cached_tokens, receipt.completion_tokens);
        let amount = answer_amount(&self.price, prompt, cached, completion).0;
        assert_eq!(uplk(&receipt.amount), amount, "price × tokens: {receipt:?}");
        self.answers += 1;
        self.prompt_tokens += prompt;
        self.completion_tokens += completion;
        self.amount += amount;
    }

    async fn ask(&mut self, net: &Net, question: &str) {
        let answer = net.answer(question).await;
        assert!(!content(&answer).is_empty());
        self.add(&answer["polylink"]["receipt"]);
    }

    /// What the gateway says that the key has used is this bill, once nothing is under way any more.
    async fn check(&self, net: &Net, when: &str) {
        let start = Instant::now();
        let usage = loop {
            let usage = usage(net).await;
            if usage["reserved_uplk"] == "0" {
                break usage;
            }
            assert!(start.elapsed() < PATIENCE, "{when}: something stays reserved: {usage}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        let seen = ["answers", "prompt_tokens", "completion_tokens"].map(|name| usage[name].as_u64().unwrap());
        assert_eq!(seen, [self.answers, self.prompt_tokens, self.completion_tokens], "{when}: {usage}");
        assert_eq!(uplk(usage["spent_uplk"].as_str().unwrap()), self.amount, "{when}: {usage}");
        assert_eq!(usage["voucher"]["voucher"]["amount"], self.amount.to_string(), "{when}: {usage}");
    }
}

async fn usage(net: &Net) -> Value {
    let url = format!("{}/polylink/v1/usage", net.gateway);
    net.http.get(url).bearer_auth(&net.api_key).send().await.unwrap().json().await.unwrap()
}

/// Begins answers of so many tokens, and returns once each of them has shown some.
async fn under_way(net: &Net, tokens: u64) -> Vec<Streaming> {
    let begun = (0..UNDER_WAY).map(|seed| {
        let more = json!({"max_completion_tokens": tokens, "ignore_eos": true, "temperature": 1, "seed": seed});
        net.stream(json!([{"role": "user", "content": "Hello!"}]), more)
    });
    let mut streams = futures::future::join_all(begun).await;
    for stream in &mut streams {
        stream.until_events(5).await;
    }
    streams
}

fn assert_broken(answer: &Streamed, with_error: bool) {
    assert!(!answer.done, "a broken answer must not look whole: {answer:?}");
    assert!(answer.receipt.is_none(), "no receipt for half an answer: {answer:?}");
    assert_eq!(answer.error.is_some(), with_error, "{answer:?}");
}

/// Waits until the supervisor has seen the end of a process: before that, health means nothing.
async fn until_noticed(net: &Net, role: &str, pid: u64) {
    let start = Instant::now();
    while net.pid(role) == Some(pid) {
        assert!(start.elapsed() < PATIENCE, "{role}: its end was not noticed");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_process_may_die() {
    let net = Net::up(&[]);
    let (mut books, mut bill) = (Books::of(&net), Bill::new(&net).await);
    let user = books.checked().await.accounts["user"];
    bill.ask(&net, "What is 2 plus 3?").await;
    for role in ["judge-1", "node", "ledger", "worker", "gateway"] {
        let breaks = ["worker", "gateway"].contains(&role);
        // CometBFT ends when its application does.
        let ends: &[&str] = if role == "ledger" { &["ledger", "node"] } else { &[role] };
        let pid = |role: &str| net.pid(role).unwrap_or_else(|| panic!("{role} has no process"));
        let pids: Vec<(&str, u64)> = ends.iter().map(|role| (*role, pid(role))).collect();
        let streams = under_way(&net, if breaks { LONG_TOKENS } else { WHOLE_TOKENS }).await;
        let start = Instant::now();
        kill_hard(pids[0].1);
        for answer in futures::future::join_all(streams.into_iter().map(Streaming::read_out)).await {
            if breaks {
                // The worker's end is told by the gateway; the gateway's own can only be seen.
                assert_broken(&answer, role == "worker");
            } else {
                assert!(answer.done, "{role}: an answer did not end although its worker lives: {answer:?}");
                bill.add(&answer.receipt.unwrap());
            }
        }
        for (role, pid) in pids {
            until_noticed(&net, role, pid).await;
        }
        net.until_ok().await;
        bill.ask(&net, "What is 4 plus 3?").await;
        println!("{role}: answers again {:.1} s after its kill -9", start.elapsed().as_secs_f64());
        bill.check(&net, role).await;
        let page = books.checked().await;
        assert_eq!(page.accounts["user"], user, "the user's own coins are untouched");
        assert!(page.redeemed(&books, "user", "gateway") <= bill.amount, "more redeemed than was answered");
    }
    a_user_may_go_away(&net, &mut bill).await;
    let height = |status: &Value| status["height"].as_u64().unwrap();
    let before = net.status();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(height(&net.status()) > height(&before), "blocks go on");
    let net = even_the_supervisor_may_die(net, &mut bill).await;
    every_claim_is_paid(&net, &mut books, &bill).await;
}

/// Who goes away in the middle pays for exactly the tokens that were sent.
async fn a_user_may_go_away(net: &Net, bill: &mut Bill) {
    let streams = under_way(net, LONG_TOKENS).await;
    let ids: Vec<String> = streams.iter().map(Streaming::id).collect();
    drop(streams);
    let start = Instant::now();
    for id in &ids {
        let receipt = loop {
            let record = net.record(id).await;
            if record["receipt"]["receipt"].is_object() {
                break record["receipt"]["receipt"].clone();
            }
            assert!(start.elapsed() < PATIENCE, "no receipt for a cut answer: {record}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        let tokens = receipt["completion_tokens"].as_u64().unwrap();
        assert!((1..LONG_TOKENS).contains(&tokens), "it was cut: {receipt}");
        assert_eq!(receipt["finish_reason"], market_v1::FinishReason::Cancelled as i32, "{receipt}");
        bill.add(&receipt);
    }
    bill.check(net, "the user went away").await;
    assert_eq!(usage(net).await["cut_answers"], UNDER_WAY, "cut answers are told apart");
}

/// Its children end with it, and the next `up` continues the same chain.
async fn even_the_supervisor_may_die(net: Net, bill: &mut Bill) -> Net {
    let before = net.status();
    let pids: Vec<u64> = before["roles"].as_array().unwrap().iter().filter_map(|r| r["pid"].as_u64()).collect();
    assert_eq!(pids.len(), before["roles"].as_array().unwrap().len());
    let streams = under_way(&net, LONG_TOKENS).await;
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
    for answer in futures::future::join_all(streams.into_iter().map(Streaming::read_out)).await {
        // Services that end in order let running answers end: each is whole and billed, or neither.
        match answer.receipt {
            Some(receipt) if answer.done => bill.add(&receipt),
            receipt => assert!(receipt.is_none() && !answer.done, "a receipt for half an answer"),
        }
    }
    assert_eq!(net.status()["health"], "stopped");
    let net = net.again();
    let after = net.status();
    assert_eq!(after["chain_id"], before["chain_id"]);
    assert!(after["height"].as_u64() >= before["height"].as_u64());
    bill.ask(&net, "What is 6 plus 3?").await;
    bill.check(&net, "supervisor").await;
    net
}

/// In the end the gateway has redeemed the user's bill exactly, and the worker what it has committed to: the bill, and
/// at most the answers that broke when the gateway died.
async fn every_claim_is_paid(net: &Net, books: &mut Books, bill: &Bill) {
    let start = Instant::now();
    loop {
        let page = books.checked().await;
        let (user_paid, gateway_paid) =
            (page.redeemed(books, "user", "gateway"), page.redeemed(books, "gateway", "worker"));
        let mut claimed = 0;
        for epoch in 0..page.epoch {
            for pot in net.json(&["query", "pots", &epoch.to_string()])["pots"].as_array().into_iter().flatten() {
                claimed += uplk(pot["root"]["amount"].as_str().unwrap_or_default());
            }
        }
        assert!(user_paid <= bill.amount, "the user paid {user_paid}, more than the bill of {}", bill.amount);
        if user_paid == bill.amount && gateway_paid == claimed && claimed >= bill.amount {
            let broken = claimed - bill.amount;
            let most = 2 * UNDER_WAY as u128 * answer_amount(&bill.price, 100, 0, LONG_TOKENS).0;
            assert!(broken <= most, "the worker claims {broken} for answers that broke, at most {most} were begun");
            println!(
                "{} answers, {} uplk: paid by the user; {claimed} claimed and paid to the worker",
                bill.answers, bill.amount
            );
            return;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "bill {}, paid by the user {user_paid}; claimed by the worker {claimed}, paid by the gateway {gateway_paid}",
            bill.amount
        );
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
