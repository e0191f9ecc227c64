//! The ledger under a real CometBFT as a wallet sees it: the RPC methods, paths, codes and events that CosmJS uses, the
//! validator set, a proof against a header, and the order of the ABCI calls.
#![allow(clippy::unwrap_used, missing_docs)]

mod comet;

use comet::Comet;
use polylink_abci_app::bank::BALANCE;
use polylink_abci_app::server::{self, Address as Socket, Options, RequestLog, check_grammar};
use polylink_abci_app::store::{KeyBuilder, Store, verify_proof};
use polylink_abci_app::testing::{CHAIN_ID, genesis, key};
use polylink_abci_app::{App, chain::SCHEMA_VERSION};
use polylink_protocol::client::ChainClient;
use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::bank::v1beta1::MsgSend;
use polylink_protocol::cosmos::cosmos::base::abci::v1beta1::TxMsgData;
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::distribution::v1beta1::{
    MsgWithdrawDelegatorReward, MsgWithdrawDelegatorRewardResponse,
};
use polylink_protocol::cosmos::cosmos::staking::v1beta1::MsgDelegate;
use polylink_protocol::tx::{SignContext, any, sign_direct};
use polylink_protocol::{Amount, DENOM, Message, Name};
use tendermint_rpc::query::Query;
use tendermint_rpc::{Client, HttpClient, Order, Paging};

fn coin(amount: u128) -> Coin {
    Coin { denom: DENOM.into(), amount: amount.to_string() }
}

fn send(amount: u128) -> Any {
    any(&MsgSend {
        from_address: key(1).address().account(),
        to_address: key(2).address().account(),
        amount: vec![coin(amount)],
    })
}

fn signed(chain_id: &str, sequence: u64, message: Any) -> Vec<u8> {
    let context = SignContext {
        chain_id: chain_id.into(),
        account_number: 12,
        sequence,
        gas_limit: 200_000,
        fee: Amount(5_000),
        memo: String::new(),
    };
    sign_direct(vec![message], &context, &key(1))
}

/// Waits for the one transaction that a search finds; returns its height.
async fn find(comet: &Comet, client: &HttpClient, query: Query) -> (u64, u32) {
    comet
        .wait_for("a transaction", || async {
            let found = client.tx_search(query.clone(), false, 1, 10, Order::Ascending).await;
            let found = found.map_err(|error| error.to_string())?;
            let tx = found.txs.first().ok_or_else(|| "not found".to_owned())?;
            Ok::<_, String>((tx.height.value(), tx.tx_result.code.value()))
        })
        .await
}

#[tokio::test]
async fn a_wallet_connects_reads_sends_finds_and_delegates() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("node");
    let socket = home.join("abci.sock");
    let mut comet = Comet::init(&home, &socket, 100);
    let mut state = genesis(2);
    state.staking.validators[0].consensus_key = comet.consensus_key();
    comet.edit_genesis(|document| {
        document["chain_id"] = CHAIN_ID.into();
        document["validators"] = serde_json::json!([]);
        document["app_state"] = state.to_json();
    });
    let log = RequestLog::new(1_000_000);
    let app = App::new(Store::open(home.join("ledger"), SCHEMA_VERSION).unwrap(), 0);
    let options = Options { observer: Some(log.observer()), ..Options::default() };
    let server = server::serve(&Socket::unix(&socket).unwrap(), app, options).unwrap();
    let client = comet.start().await;

    let status = client.status().await.unwrap();
    assert!(status.node_info.version.to_string().starts_with("0.38."), "{}", status.node_info.version);
    assert!(!status.sync_info.latest_app_hash.as_bytes().is_empty());

    for (name, tx, code) in [
        ("garbage", b"garbage".to_vec(), 2),
        ("another chain", signed("other-1", 0, send(1)), 4),
        ("a wrong sequence", signed(CHAIN_ID, 5, send(1)), 32),
        (
            "a message that is not built",
            signed(CHAIN_ID, 0, Any { type_url: "/cosmos.group.v1.MsgVote".into(), value: vec![] }),
            6,
        ),
    ] {
        let answer = client.broadcast_tx_sync(tx).await.unwrap();
        assert_eq!((answer.codespace.as_str(), answer.code.value()), ("sdk", code), "{name}: {}", answer.log);
        assert!(!answer.log.is_empty(), "{name}");
    }

    let sent = client.broadcast_tx_sync(signed(CHAIN_ID, 0, send(7))).await.unwrap();
    assert!(sent.code.is_ok() && sent.log.is_empty(), "{}", sent.log);
    let (height, code) = find(&comet, &client, Query::eq("tx.hash", sent.hash.to_string())).await;
    assert_eq!(code, 0);
    let by_sender = Query::eq("message.sender", key(1).address().account()).and_eq("tx.height", height);
    assert_eq!(find(&comet, &client, by_sender).await.0, height);
    let by_receiver = Query::eq("transfer.recipient", key(2).address().account());
    assert_eq!(find(&comet, &client, by_receiver).await.0, height);

    let delegate = any(&MsgDelegate {
        delegator_address: key(1).address().account(),
        validator_address: key(200).address().valoper(),
        amount: Some(coin(500_000_000)),
    });
    let sent = client.broadcast_tx_sync(signed(CHAIN_ID, 1, delegate)).await.unwrap();
    assert!(sent.code.is_ok(), "{}", sent.log);
    let (delegated, code) = find(&comet, &client, Query::eq("tx.hash", sent.hash.to_string())).await;
    assert_eq!(code, 0);
    // Updates of block H hold from H + 2 on.
    comet.wait_for_height(&client, delegated + 2).await;
    let at = u32::try_from(delegated + 2).unwrap();
    assert_eq!(client.validators(at, Paging::Default).await.unwrap().validators[0].power.value(), 1_500);

    // Our own client reads what a message answered.
    let withdraw = any(&MsgWithdrawDelegatorReward {
        delegator_address: key(1).address().account(),
        validator_address: key(200).address().valoper(),
    });
    let outcome = ChainClient::new(&comet.url()).unwrap().broadcast(&key(1), vec![withdraw]).await.unwrap();
    let answered = TxMsgData::decode(outcome.data.as_slice()).unwrap().msg_responses.remove(0);
    assert_eq!(answered.type_url, MsgWithdrawDelegatorRewardResponse::type_url());
    let paid = MsgWithdrawDelegatorRewardResponse::decode(answered.value.as_slice()).unwrap().amount;
    assert_eq!(paid[0].denom, DENOM, "a third of what two fees left for delegators");

    // A balance, proved against the header of the height after the answer's.
    let balance_key = KeyBuilder::new(BALANCE).bytes(&key(2).address().0).bytes(DENOM.as_bytes()).finish();
    let answer = client.abci_query(Some("/store/key".into()), balance_key.clone(), None, true).await.unwrap();
    assert!(answer.code.is_ok(), "{}", answer.log);
    let next = u32::try_from(answer.height.value() + 1).unwrap();
    comet.wait_for_height(&client, next.into()).await;
    let header = client.commit(next).await.unwrap().signed_header.header;
    let root: [u8; 32] = header.app_hash.as_bytes().try_into().unwrap();
    let proof = &answer.proof.unwrap().ops[0];
    assert!(verify_proof(&root, &balance_key, Some(&answer.value), &proof.data));
    assert_eq!(u128::from_be_bytes(answer.value.try_into().unwrap()), 1_000_000_000_007);

    assert!(comet.stop(), "the node must stop on SIGTERM");
    server.shutdown();
    assert!(check_grammar(&log.entries(), 0).is_ok(), "{:?}", check_grammar(&log.entries(), 0));
}
