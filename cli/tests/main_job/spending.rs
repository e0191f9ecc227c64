//! What the user has spent, as the ledger says it: the user's session with the gateway and the gateway's with the worker,
//! by `polylink query` and by CometBFT's `abci_query` alike.

use std::time::{Duration, Instant};

use super::common::{Net, PATIENCE};
use super::uplk;
use polylink_cli::keys::Keyring;
use polylink_protocol::Message;
use polylink_protocol::market_v1::{QuerySessionRequest, QuerySessionResponse};
use serde_json::Value;

/// Waits until both sessions are redeemed over what the gateway says that its API key has spent, to the uplk; `served` are
/// the receipts of one epoch, `to_worker` the session that they stand on.
pub async fn both_sessions(net: &Net, to_worker: u64, served: u128) {
    let start = Instant::now();
    loop {
        let usage = usage(net).await;
        let spent = uplk(&usage["spent_uplk"]);
        assert!(spent >= served, "{served} uplk are receipts of one epoch: {usage:#}");
        let to_gateway = usage["voucher"]["voucher"]["session"].as_u64().unwrap();
        let redeemed =
            [by_both(net, to_gateway, ["user", "gateway"]).await, by_both(net, to_worker, ["gateway", "worker"]).await];
        // Vouchers are redeemed once an epoch; each of the two in its time.
        if redeemed == [spent, spent] {
            println!("spent {spent} uplk: redeemed from session {to_gateway} and from session {to_worker}");
            return;
        }
        assert!(start.elapsed() < PATIENCE, "spent {spent}, redeemed {redeemed:?}: {usage:#}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// A session's record, the same by both ways and between these two; returns what is redeemed of it.
async fn by_both(net: &Net, id: u64, parties: [&str; 2]) -> u128 {
    let ring = Keyring::new(net.home.path());
    let parties = parties.map(|name| ring.account(name).unwrap().address().account());
    let said = || net.json(&["query", "session", &id.to_string()])["session"].clone();
    let start = Instant::now();
    let (record, by_rpc) = loop {
        let before = said();
        let request = QuerySessionRequest { session: id };
        let raw = net.abci_query("/polylink.market.v1.Query/Session", &request.encode_to_vec()).await;
        // Else it was redeemed from in between.
        if said() == before {
            break (before, QuerySessionResponse::decode(raw.as_slice()).unwrap().session.unwrap());
        }
        assert!(start.elapsed() < PATIENCE, "session {id} does not stand still: {before:#}");
    };
    assert_eq!(serde_json::to_value(&by_rpc).unwrap(), record, "session {id} by RPC and by command line");
    assert_eq!([&by_rpc.payer, &by_rpc.payee], parties.each_ref(), "{record:#}");
    by_rpc.redeemed.parse().unwrap()
}

async fn usage(net: &Net) -> Value {
    let url = format!("{}/polylink/v1/usage", net.gateway);
    net.http.get(url).bearer_auth(&net.api_key).send().await.unwrap().json().await.unwrap()
}
