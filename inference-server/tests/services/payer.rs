//! A payer without gateway against a worker: what it pays of an answer that it does not read to the end, what it refuses,
//! and what it settles after a restart.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use polylink_abci_app::testing::key;
use polylink_inference_server::chain::{Chain, ChainClock};
use polylink_inference_server::client::book::BookError;
use polylink_inference_server::client::store::PayError;
use polylink_inference_server::client::{
    Ask, CUT_SLACK_TOKENS, Payer, PayerConfig, PayerError, ProfileTerms, Upstream, UpstreamEvent, WorkerRef,
};
use polylink_inference_server::worker::store::WorkerStore;
use polylink_protocol::Amount;
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market::{answer_amount, completion_digest, profile_digest, sign_receipt};
use polylink_protocol::market_v1::{FinishReason, Sampling};
use polylink_protocol::transcript::ReceiptStatus;

use super::network::*;
use super::proxy::Proxy;

const WINDOW: u32 = 4;

pub async fn payer(network: &Network, expiry_epochs: u64) -> Arc<Payer> {
    payer_with(network, expiry_epochs, WINDOW).await
}

pub async fn payer_with(network: &Network, expiry_epochs: u64, window: u32) -> Arc<Payer> {
    let chain: Arc<dyn Chain> = network.chain.clone();
    let config = PayerConfig {
        account: key(USER),
        spend_key: ServiceKey::from_bytes(&[44; 32]),
        deposit: Amount(5_000_000),
        window,
        expiry_epochs,
        private: false,
        journal: network.folder.path().join("payer"),
    };
    Payer::open(config, ChainClock::start(chain).await).unwrap()
}

pub fn worker_at(endpoint: &str) -> WorkerRef {
    WorkerRef {
        operator: worker_operator(),
        endpoint: endpoint.into(),
        profile: profile_digest(&model().profile(MODEL).unwrap()),
        terms: vec![ProfileTerms {
            from_epoch: 0,
            receipt_key: receipt_key().public_key().to_vec(),
            price: Some(PRICE),
        }],
    }
}

pub fn ask(max_tokens: u32, seed: u8) -> Ask {
    let sampling = Sampling {
        temperature: 1.0,
        top_p: 1.0,
        repetition_penalty: 1.0,
        max_tokens,
        n: 1,
        ignore_eos: true,
        ..Default::default()
    };
    Ask {
        prompt_token_ids: vec![5, 6, 7],
        sampling,
        grammar: None,
        seed: [seed; 32],
        logprobs: None,
        prompt_logprobs: None,
        answer_id: format!("a-{seed}"),
    }
}

/// Reads until so many tokens are there, or, with none given, until the last choice has ended.
pub async fn read(upstream: &mut Upstream, tokens: Option<usize>) -> usize {
    let mut seen = 0;
    while tokens.is_none_or(|wanted| seen < wanted) {
        match upstream.next().await.expect("the answer goes on").unwrap() {
            UpstreamEvent::Tokens { token_ids, .. } => seen += token_ids.len(),
            UpstreamEvent::Prompt { .. } => panic!("nobody asked for it"),
            UpstreamEvent::Finish { .. } => break,
            UpstreamEvent::Verified(_) => panic!("the receipt is not read"),
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_dropped_before_its_receipt_is_paid_whole() {
    let mut network = Network::start().await;
    let payer = payer(&network, 1_000).await;
    let session = payer.session(&worker_at(&network.worker_url)).await.unwrap();
    let whole = answer_amount(&PRICE, 3, 0, 12);
    let mut owed = Amount::ZERO;
    for seed in 0..3 {
        let mut upstream = payer.ask(&session, &ask(12, seed), None).await.unwrap();
        assert_eq!(read(&mut upstream, None).await, 12);
        drop(upstream);
        owed = owed.checked_add(whole).unwrap();
        eventually("it is paid", async || {
            let book = payer.store().book(session.id());
            (book.is_settled() && book.open() == 0).then_some(())
        })
        .await;
        assert_eq!(payer.store().book(session.id()).committed(), owed, "to the micro-unit");
    }
    eventually("it is redeemed", async || (network.redeemed(USER).await == owed.0).then_some(())).await;
    // Nothing is left undone at a stop: every receipt can be shown.
    network.worker.take().unwrap().stop(Duration::from_secs(2)).await;
    let store = WorkerStore::open(&network.folder.path().join("worker")).unwrap();
    let epoch = (&*network.chain as &dyn Chain).epoch().await.unwrap().0;
    let mut shown = 0;
    for epoch in 0..=epoch {
        let root = store.close_epoch(epoch).await.unwrap().audited;
        for leaf in 0..root.count {
            let point = Amount(u128::from(leaf) * whole.0);
            let proven = store.sample(epoch, point).unwrap().expect("a leaf at every point");
            let receipt = store.transcript(proven.location).unwrap().receipt.unwrap().receipt.unwrap();
            assert_eq!((receipt.finish_reason(), receipt.amount.parse()), (FinishReason::Length, Ok(whole)));
            shown += 1;
        }
    }
    assert_eq!(shown, 3);
    network.stop().await;
}

/// How a worker may lie about a stream that broke off.
fn lie(which: usize, status: ReceiptStatus) -> ReceiptStatus {
    let ReceiptStatus::Served { receipt, completion_salt, mut completions } = status else { return status };
    let mut body = receipt.receipt.clone().unwrap();
    match which {
        0 => completions[0].extend((0..=CUT_SLACK_TOKENS as u32).map(|i| i % 100)),
        1 => completions[0][0] = (completions[0][0] + 1) % 100,
        _ => {}
    }
    let salt = completion_salt.as_slice().try_into().unwrap();
    body.completion_digest = completion_digest(&salt, completions.iter().map(Vec::as_slice)).to_vec();
    body.completion_tokens = completions[0].len() as u64;
    let amount = answer_amount(&PRICE, body.prompt_tokens, body.cached_tokens, body.completion_tokens);
    body.amount = Amount(amount.0 + u128::from(which == 2)).to_string();
    let key = if which == 3 { ServiceKey::from_bytes(&[9; 32]) } else { receipt_key() };
    ReceiptStatus::Served { receipt: Box::new(sign_receipt(body, &key)), completion_salt, completions }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_does_not_hold_is_not_paid_and_ends_with_the_window() {
    let network = Network::start().await;
    let payer = payer(&network, 1_000).await;
    let told = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&told);
    payer.on_refusal(move |operator| {
        assert_eq!(operator, worker_operator());
        counted.fetch_add(1, Ordering::SeqCst);
    });
    let which = Arc::new(AtomicUsize::new(0));
    let chosen = Arc::clone(&which);
    let proxy = Proxy::start(&network.worker_url, move |path, reply| {
        if path.starts_with("/polylink/v1/receipts/") && reply.status == 200 {
            let status = serde_json::from_slice(&reply.body).unwrap();
            reply.body = serde_json::to_vec(&lie(chosen.load(Ordering::SeqCst), status)).unwrap();
        }
    })
    .await;
    let session = payer.session(&worker_at(&proxy.url)).await.unwrap();
    for lied in 0..WINDOW as usize {
        which.store(lied, Ordering::SeqCst);
        let mut upstream = payer.ask(&session, &ask(380, lied as u8), None).await.unwrap();
        read(&mut upstream, Some(5)).await;
        drop(upstream);
        eventually("it is refused", async || (payer.figures().refused.get() == lied as u64 + 1).then_some(())).await;
        let book = payer.store().book(session.id());
        assert!(book.is_settled(), "nothing is owed");
        assert_eq!((book.open(), told.load(Ordering::SeqCst)), (lied + 1, lied + 1));
    }
    let refused = payer.ask(&session, &ask(12, 9), None).await.err().unwrap();
    assert!(matches!(refused, PayerError::Pay(PayError::Book(BookError::WindowFull(4)))), "{refused}");
    // Also after a restart, when nobody remembers what was seen: the refusal stands.
    drop((session, payer));
    let payer = self::payer(&network, 1_000).await;
    let session = payer.session(&worker_at(&network.worker_url)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let book = payer.store().book(session.id());
    assert_eq!((book.open(), payer.figures().refused.get(), network.redeemed(USER).await), (4, 0, 0));
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_was_replaced_is_settled_after_a_restart() {
    let network = Network::start().await;
    let payer = payer(&network, 4).await;
    let cut_off = Proxy::start(&network.worker_url, |path, reply| {
        if path == "/polylink/v1/vouchers" || path.starts_with("/polylink/v1/receipts/") {
            (reply.status, reply.body) = (503, b"{}".to_vec());
        }
    })
    .await;
    let worker = worker_at(&cut_off.url);
    let old = payer.session(&worker).await.unwrap();
    // One answer whole and one cut; neither can be settled.
    let mut upstream = payer.ask(&old, &ask(12, 0), None).await.unwrap();
    let seen = Mutex::new(0);
    while let Some(event) = upstream.next().await {
        if matches!(event.unwrap(), UpstreamEvent::Verified(_)) {
            *seen.lock().unwrap() += 1;
        }
    }
    assert_eq!(*seen.lock().unwrap(), 1);
    drop(upstream);
    let mut upstream = payer.ask(&old, &ask(380, 1), None).await.unwrap();
    read(&mut upstream, Some(3)).await;
    drop(upstream);
    let old = old.id();
    let new = eventually("another session", async || {
        let session = payer.session(&worker).await.unwrap();
        (session.id() != old).then_some(session)
    })
    .await;
    assert!(!payer.store().book(old).is_settled() && payer.store().book(new.id()).is_settled());
    drop((new, payer));
    let payer = self::payer(&network, 4).await;
    assert_eq!(payer.store().unsettled(), [old]);
    payer.settle_older().await.unwrap();
    let paid = eventually("the old session is settled", async || {
        let book = payer.store().book(old);
        (book.is_settled() && book.open() == 0).then(|| book.committed())
    })
    .await;
    assert!(paid > answer_amount(&PRICE, 3, 0, 12 + 3 - 1), "both answers: {paid}");
    eventually("it is redeemed", async || (network.redeemed(USER).await == paid.0).then_some(())).await;
    network.stop().await;
}
