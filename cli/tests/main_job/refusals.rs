//! Bad input to a running network is refused by an error that says what is wrong, and changes nothing.

use std::time::Instant;

use super::common::{Net, PATIENCE};
use base64::Engine as _;
use polylink_cli::keys::Keyring;
use polylink_protocol::Amount;
use polylink_protocol::client::{ChainClient, ClientError, TxTerms};
use polylink_protocol::cosmos::cosmos::{bank::v1beta1::MsgSend, base::v1beta1::Coin};
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market::sign_voucher;
use polylink_protocol::market_v1::{MsgRedeem, SignedVoucher, Voucher};
use polylink_protocol::tx::{SignContext, any, sign_direct};
use serde_json::{Value, json};

pub async fn all(net: &Net) {
    at_the_gateway(net).await;
    forged_vouchers(net).await;
    bad_transactions(net).await;
    on_the_command_line(net);
}

async fn at_the_gateway(net: &Net) {
    let model = &net.model;
    let ask = |more: Value| {
        let mut body = json!({"model": model, "messages": [{"role": "user", "content": "Hi"}]});
        more.as_object().unwrap().iter().for_each(|(k, v)| body[k] = v.clone());
        body.to_string()
    };
    let long = "many words ".repeat(3_000);
    let key = net.api_key.as_str();
    for (what, key, body, status, says) in [
        ("malformed JSON", key, "{\"model\": ".to_owned(), 400, "JSON"),
        ("unknown model", key, ask(json!({"model": "org/other"})), 404, "org/other"),
        ("prompt too long", key, ask(json!({"messages": [{"role": "user", "content": long}]})), 400, "context"),
        ("wrong key", "sk-polylink-wrong", ask(json!({})), 401, "key"),
        ("no key", "", ask(json!({})), 401, "key"),
        ("tools", key, ask(json!({"tools": [{"type": "function", "function": {"name": "f"}}]})), 400, "tools"),
        ("response_format", key, ask(json!({"response_format": {"type": "xml"}})), 400, "response_format"),
        ("temperature", key, ask(json!({"temperature": 9})), 400, "temperature"),
        ("body over the limit", key, "x".repeat(2 << 20), 413, "1048576"),
    ] {
        let (got, answer) = net.post("/v1/chat/completions", key, &body).await;
        assert_eq!(got, status, "{what}: {answer}");
        let message =
            answer["error"]["message"].as_str().unwrap_or_else(|| panic!("{what}: no error object: {answer}"));
        assert!(message.contains(says) || answer["error"]["param"] == says, "{what}: {message}");
    }
    // No funds: a key whose session holds almost nothing.
    let poor = net.json(&["gateway", "key", "new", "poor", "--deposit", "1uplk"]);
    let (status, answer) = net.post("/v1/chat/completions", poor["api_key"].as_str().unwrap(), &ask(json!({}))).await;
    assert_eq!(status, 402, "no funds: {answer}");
    assert!(answer["error"]["message"].as_str().is_some_and(|m| m.contains("uplk")), "no funds: {answer}");
}

/// Vouchers for the whole deposit of a real session, each wrong in one thing alone: signed by another key or by none, for
/// another chain, for no session; all others by the session's own spend key. Shown to the worker, and redeemed on chain
/// by the worker itself.
async fn forged_vouchers(net: &Net) {
    let session = net.json(&["query", "sessions", "--payer", "gateway"])["sessions"][0].clone();
    let (id, deposit) = (session["id"].as_u64().unwrap(), session["deposit"].as_str().unwrap().to_owned());
    let chain_id = net.status()["chain_id"].as_str().unwrap().to_owned();
    let voucher = |chain_id: &str, session: u64| Voucher {
        chain_id: chain_id.into(),
        session,
        epoch: net.epoch(),
        amount: deposit.clone(),
        count: 1_000_000,
        receipts_hash: vec![7; 32],
    };
    let ring = Keyring::new(net.home.path());
    let spend = ServiceKey::from_bytes(&ring.service_secret("gateway-spend").unwrap());
    assert_eq!(session["spend_key"], hex::encode(spend.public_key()), "the key that may spend: {session:#}");
    let good = sign_voucher(voucher(&chain_id, id), &spend);
    let forged = sign_voucher(voucher(&chain_id, id), &ServiceKey::from_bytes(&[7; 32]));
    let empty = SignedVoucher { signature: vec![], ..good.clone() };
    let elsewhere = sign_voucher(voucher("another-chain", id), &spend);
    let nowhere = sign_voucher(voucher(&chain_id, 999_999), &spend);
    for (what, voucher, status, code, says) in [
        ("another's signature", &forged, 400, "invalid_voucher", "signature"),
        ("no signature", &empty, 400, "invalid_voucher", "signature"),
        ("another chain", &elsewhere, 400, "invalid_voucher", "another-chain"),
        ("no such session", &nowhere, 402, "no_session", "999999"),
        // Nothing of the above, so that nothing else refuses those: this one pays for no receipt.
        ("no such receipt", &good, 409, "not_unpaid", "1000000"),
    ] {
        let body = json!({"voucher": voucher, "indexes": [1_000_000]}).to_string();
        let url = format!("{}/polylink/v1/vouchers", net.worker);
        let response = net.http.post(url).body(body).send().await.unwrap();
        let got = response.status().as_u16();
        let answer: Value = response.json().await.unwrap();
        assert_eq!((got, &answer["error"]["code"]), (status, &json!(code)), "{what}: {answer}");
        assert!(answer["error"]["message"].as_str().is_some_and(|m| m.contains(says)), "{what}: {answer}");
    }
    for (what, voucher, code, says) in [
        ("another's signature", forged, 32, "signature"),
        ("no signature", empty, 32, "signature"),
        ("another chain", elsewhere, 30, "another-chain"),
        ("no such session", nowhere, 17, "999999"),
    ] {
        let (codespace, found, log) = redeem_refused(net, voucher).await;
        assert_eq!((codespace.as_str(), found), ("market", code), "{what}: {log}");
        assert!(log.contains(says), "{what}: {log}");
    }
    let after = net.json(&["query", "session", &id.to_string()])["session"].clone();
    assert_ne!(after["redeemed"], deposit, "the deposit is not taken: {after}");
}

/// The ledger's refusal of a voucher that the worker's own account redeems.
async fn redeem_refused(net: &Net, voucher: SignedVoucher) -> (String, u32, String) {
    let worker = Keyring::new(net.home.path()).account("worker").unwrap();
    let chain = ChainClient::new(&net.rpc).unwrap();
    let message = any(&MsgRedeem { payee: worker.address().account(), voucher: Some(voucher) });
    let start = Instant::now();
    loop {
        // With gas and fee given nothing is simulated first: the block itself refuses it.
        let terms = TxTerms { gas_limit: Some(300_000), fee: Some(Amount(150_000)), ..TxTerms::default() };
        match chain.broadcast_with(&worker, vec![message.clone()], terms).await {
            // The running worker signs with the same account: it was faster with this sequence.
            Err(ClientError::Refused { codespace, code: 32, .. }) if codespace == "sdk" => {}
            Err(ClientError::Refused { codespace, code, log, .. }) => return (codespace, code, log),
            other => panic!("a forged voucher on chain: {other:?}"),
        }
        assert!(start.elapsed() < PATIENCE, "the worker's account never stands still");
    }
}

async fn broadcast(net: &Net, bytes: &[u8]) -> Value {
    let tx = base64::engine::general_purpose::STANDARD.encode(bytes);
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "broadcast_tx_sync", "params": {"tx": tx}});
    net.http.post(&net.rpc).json(&body).send().await.unwrap().json().await.unwrap()
}

/// Garbage, and a well-signed transaction for another chain id.
async fn bad_transactions(net: &Net) {
    for bytes in [vec![], vec![0xff; 40], b"not a transaction".to_vec()] {
        let answer = broadcast(net, &bytes).await;
        let refused = answer["result"]["code"].as_u64().is_some_and(|c| c != 0) || answer["error"].is_object();
        assert!(refused, "garbage of {} bytes: {answer}", bytes.len());
        let said = answer["result"]["log"].as_str().or(answer["error"]["data"].as_str()).unwrap_or_default();
        assert!(!said.is_empty(), "garbage of {} bytes is refused without a reason: {answer}", bytes.len());
    }
    let user = Keyring::new(net.home.path()).account("user").unwrap();
    let account = net.json(&["query", "account", "user"]);
    let me = user.address().account();
    let coin = Coin { denom: "uplk".into(), amount: "1".into() };
    let send = MsgSend { from_address: me.clone(), to_address: me, amount: vec![coin] };
    let context = SignContext {
        chain_id: "another-chain".into(),
        account_number: account["account_number"].as_u64().unwrap(),
        sequence: account["sequence"].as_u64().unwrap(),
        gas_limit: 200_000,
        fee: Amount(100_000),
        memo: String::new(),
    };
    let answer = broadcast(net, &sign_direct(vec![any(&send)], &context, &user)).await;
    assert_eq!(answer["result"]["code"], 4, "unauthorized: {answer}");
    let log = answer["result"]["log"].as_str().unwrap_or_default();
    assert!(log.contains("chain"), "a wrong chain id should be thought of: {log}");
}

fn on_the_command_line(net: &Net) {
    assert!(net.fails(&["tx", "send", "worker", "99999999999plk"]).contains("insufficient"), "more than there is");
    assert!(net.fails(&["tx", "send", "nobody", "1plk"]).contains("nobody"));
    assert!(net.fails(&["tx", "send", "worker", "1.5"]).contains("not an amount"));
    assert!(net.fails(&["query", "tx", "zz"]).contains("hexadecimal"));
    assert!(net.fails(&["query", "session", "999999"]).contains("999999"));
    assert!(net.fails(&["up", "--detach"]).contains("runs in"), "a second supervisor in one home");
}
