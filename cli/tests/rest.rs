//! The REST bridge in front of a real node: what wallets and explorers ask, wrong input, and a payment from signing to
//! the transaction's page.
#![allow(clippy::unwrap_used)]

mod common;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use common::{PATIENCE, Running, command, text};
use polylink_abci_app::modules::MODULES;
use polylink_abci_app::router;
use polylink_bridge::{descriptors, routes};
use polylink_cli::keys::Keyring;
use polylink_protocol::cosmos::cosmos::bank::v1beta1::MsgSend;
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::keys::AccountKey;
use polylink_protocol::tx::{SignContext, any, sign_direct};
use polylink_protocol::{Amount, DENOM};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

struct Chain {
    _node: Running,
    folder: tempfile::TempDir,
    rest: String,
    grpc: String,
    rpc: String,
    http: reqwest::Client,
}

impl Drop for Chain {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self._node.0);
        let _gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _stopped = self._node.0.wait();
        if !std::thread::panicking() {
            common::requests_keep_to_the_grammar(&self.folder.path().join("node-1"));
        }
    }
}

impl Chain {
    async fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("pl").tempdir().unwrap();
        let out = folder.path().display().to_string();
        let made =
            command(&["testnet", "--out", &out, "--validators", "1", "--block-time-ms", "300"]).output().unwrap();
        assert!(made.status.success(), "{}", text(&made.stderr));
        let home = folder.path().join("node-1");
        let settings = std::fs::read_to_string(home.join("polylink.toml")).unwrap();
        let port = |name: &str| {
            let line = settings.lines().find(|line| line.starts_with(name)).unwrap();
            line.rsplit(' ').next().unwrap().to_owned()
        };
        let grpc = format!("127.0.0.1:{}", port("grpc-port"));
        let (rest, rpc) = (port("rest-port"), port("rpc-port"));
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let mut node = command(&["node", "--home", home.to_str().unwrap()]);
        let node = Running(node.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
        let (rest, rpc) = (format!("http://127.0.0.1:{rest}"), format!("http://127.0.0.1:{rpc}"));
        let chain = Chain { _node: node, folder, rest, grpc, rpc, http: reqwest::Client::new() };
        let begun = Instant::now();
        while chain.get("/cosmos/bank/v1beta1/supply").await.0 != 200 {
            assert!(begun.elapsed() < PATIENCE, "REST does not answer");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        chain
    }

    fn key(&self, name: &str) -> AccountKey {
        Keyring::new(&self.folder.path().join("node-1")).account(name).unwrap()
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let Ok(answer) = self.http.get(format!("{}{path}", self.rest)).send().await else { return (0, Value::Null) };
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    async fn ok(&self, path: &str) -> Value {
        let (status, value) = self.get(path).await;
        assert_eq!(status, 200, "{path}: {value}");
        value
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let answer = self.http.post(format!("{}{path}", self.rest)).json(body).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }
}

fn payment(key: &AccountKey, to: &str, chain_id: &str, number: u64, sequence: u64) -> Vec<u8> {
    let amount = vec![Coin { denom: DENOM.into(), amount: "5".into() }];
    let send = MsgSend { from_address: key.address().account(), to_address: to.into(), amount };
    let context = SignContext {
        chain_id: chain_id.into(),
        account_number: number,
        sequence,
        gas_limit: 200_000,
        fee: Amount(5_000),
        memo: "hello".into(),
    };
    sign_direct(vec![any(&send)], &context, key)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wallets_and_explorers_find_what_they_ask() {
    let chain = Chain::start().await;
    let (user, validator) = (chain.key("user"), chain.key("validator"));
    let (address, operator) = (user.address().account(), validator.address().valoper());

    // The state of the chain.
    let info = chain.ok("/cosmos/base/tendermint/v1beta1/node_info").await;
    let chain_id = info["default_node_info"]["network"].as_str().unwrap().to_owned();
    assert!(chain_id.starts_with("polylink-local-"), "{info}");
    assert_eq!(chain.ok("/cosmos/base/tendermint/v1beta1/syncing").await, json!({"syncing": false}));
    let latest = chain.ok("/cosmos/base/tendermint/v1beta1/blocks/latest").await;
    let header = &latest["block"]["header"];
    assert!(
        header["chain_id"] == chain_id.as_str()
            && latest["sdk_block"]["header"]["proposer_address"].as_str().unwrap().starts_with("polyvalcons1")
    );
    assert_eq!(BASE64.decode(header["app_hash"].as_str().unwrap()).unwrap().len(), 32, "{header}");
    let first = chain.ok("/cosmos/base/tendermint/v1beta1/blocks/1").await;
    assert_eq!(first["block"]["header"]["height"], "1");
    let set = chain.ok("/cosmos/base/tendermint/v1beta1/validatorsets/latest").await;
    assert_eq!(
        (&set["pagination"]["total"], &set["validators"][0]["pub_key"]["@type"]),
        (&json!("1"), &json!("/cosmos.crypto.ed25519.PubKey"))
    );

    // Accounts, money, stake.
    let account = chain.ok(&format!("/cosmos/auth/v1beta1/accounts/{address}")).await["account"].clone();
    assert_eq!(
        (&account["@type"], &account["sequence"], &account["pub_key"]),
        (&json!("/cosmos.auth.v1beta1.BaseAccount"), &json!("0"), &Value::Null)
    );
    let number = account["account_number"].as_str().unwrap().parse().unwrap();
    let balances = chain.ok(&format!("/cosmos/bank/v1beta1/balances/{address}?pagination.limit=10")).await;
    assert_eq!(balances["balances"], json!([{"denom": "uplk", "amount": "1000000000000"}]));
    let one = chain.ok(&format!("/cosmos/bank/v1beta1/balances/{address}/by_denom?denom=uplk")).await;
    assert_eq!(one["balance"], balances["balances"][0]);
    let validators = chain.ok("/cosmos/staking/v1beta1/validators?status=BOND_STATUS_BONDED").await;
    let found = &validators["validators"][0];
    assert_eq!((&found["operator_address"], &found["status"]), (&json!(operator), &json!("BOND_STATUS_BONDED")));
    assert_eq!(found["delegator_shares"], "5000000000.000000000000000000");
    let path = format!("/cosmos/staking/v1beta1/validators/{operator}/delegations/{}", validator.address().account());
    assert_eq!(chain.ok(&path).await["delegation_response"]["balance"]["amount"], "5000000000");
    let inflation = chain.ok("/cosmos/mint/v1beta1/inflation").await;
    assert!(inflation["inflation"].as_str().unwrap().starts_with("0."), "{inflation}");
    let slashing = chain.ok("/cosmos/slashing/v1beta1/params").await;
    assert!(slashing["params"]["slash_fraction_double_sign"].as_str().unwrap().starts_with("0.0"), "{slashing}");
    let config = chain.ok("/cosmos/base/node/v1beta1/config").await;
    assert_eq!(config["minimum_gas_price"], "0.025000000000000000uplk");
    let gas = chain.ok("/feemarket/v1/gas_prices").await;
    assert_eq!(gas["prices"], json!([{"denom": "uplk", "amount": "0.025000000000000000"}]));

    // A payment: what it would use, its broadcast, a second one, and its page.
    let to = validator.address().account();
    let tx = payment(&user, &to, &chain_id, number, 0);
    let (status, used) = chain.post("/cosmos/tx/v1beta1/simulate", &json!({"tx_bytes": BASE64.encode(&tx)})).await;
    let gas: u64 = used["gas_info"]["gas_used"].as_str().unwrap_or_default().parse().unwrap_or(0);
    assert!(status == 200 && (10_000..200_000).contains(&gas), "{used}");
    let body = json!({"tx_bytes": BASE64.encode(&tx), "mode": "BROADCAST_MODE_SYNC"});
    let (status, sent) = chain.post("/cosmos/tx/v1beta1/txs", &body).await;
    assert_eq!((status, &sent["tx_response"]["code"]), (200, &json!(0)), "{sent}");
    let hash = sent["tx_response"]["txhash"].as_str().unwrap().to_owned();
    let (status, again) = chain.post("/cosmos/tx/v1beta1/txs", &body).await;
    assert!(status == 200 && again["tx_response"]["code"] != 0, "{again}");
    let begun = Instant::now();
    let page = loop {
        let (status, page) = chain.get(&format!("/cosmos/tx/v1beta1/txs/{hash}")).await;
        if status == 200 {
            break page;
        }
        assert_eq!((status, &page["code"]), (404, &json!(5)), "{page}");
        assert!(begun.elapsed() < PATIENCE, "the payment is not committed");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let message = &page["tx"]["body"]["messages"][0];
    assert_eq!((&message["@type"], &message["to_address"]), (&json!("/cosmos.bank.v1beta1.MsgSend"), &json!(to)));
    assert_eq!((&page["tx"]["body"]["memo"], &page["tx_response"]["code"]), (&json!("hello"), &json!(0)));
    assert_eq!(
        page["tx"]["auth_info"]["signer_infos"][0]["mode_info"],
        json!({"single": {"mode": "SIGN_MODE_DIRECT"}})
    );
    let tx = &page["tx_response"]["tx"];
    assert_eq!((&tx["@type"], &tx["body"]), (&json!("/cosmos.tx.v1beta1.Tx"), &page["tx"]["body"]));
    let search = format!("/cosmos/tx/v1beta1/txs?events=message.sender='{address}'&order_by=ORDER_BY_DESC&limit=5");
    let found = chain.ok(&search).await;
    assert_eq!((&found["total"], &found["tx_responses"][0]["txhash"]), (&json!("1"), &json!(hash)));
    let events = found["tx_responses"][0]["events"].as_array().unwrap();
    let fee = json!({"key": "fee_payer", "value": address, "index": true});
    assert!(events.iter().any(|event| event["attributes"].as_array().unwrap().contains(&fee)), "{events:?}");
    let none = chain.ok("/cosmos/tx/v1beta1/txs?query=tx.height=1&page=9").await;
    assert_eq!((&none["total"], &none["txs"]), (&json!("0"), &json!([])));

    let paid: u64 = page["tx_response"]["height"].as_str().unwrap().parse().unwrap();
    older_heights_are_answered(&chain, &address, paid).await;
    grpc_is_beside_it(&chain).await;
    wrong_input_is_answered_as_by_the_sdk(&chain).await;
    every_query_of_the_ledger_is_there(&chain).await;
    a_wallet_is_told_of_the_chain(&chain, &chain_id);
}

/// Before and after the block of the account's first payment.
async fn older_heights_are_answered(chain: &Chain, address: &str, paid: u64) {
    let path = format!("{}/cosmos/bank/v1beta1/balances/{address}", chain.rest);
    let mut amounts = Vec::new();
    for height in [paid - 1, paid] {
        let answer = chain.http.get(&path).header("x-cosmos-block-height", height).send().await.unwrap();
        assert_eq!(answer.headers()["x-cosmos-block-height"].to_str().unwrap(), height.to_string());
        let answer: Value = answer.json().await.unwrap();
        amounts.push(answer["balances"][0]["amount"].as_str().unwrap().parse::<u64>().unwrap());
    }
    assert!(amounts[0] == 1_000_000_000_000 && amounts[1] < amounts[0], "{amounts:?}");
    let future = chain.http.get(&path).header("x-cosmos-block-height", paid + 1_000_000).send().await.unwrap();
    assert_eq!(future.status(), 400);
}

/// That a server of HTTP/2 is there; `tests/grpc_client.py` is a client of what it serves.
async fn grpc_is_beside_it(chain: &Chain) {
    let mut stream = tokio::net::TcpStream::connect(&chain.grpc).await.unwrap();
    let mut begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    begin.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    stream.write_all(&begin).await.unwrap();
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).await.unwrap();
    assert_eq!(frame[3..], [4, 0, 0, 0, 0, 0], "settings of the connection: {frame:?}");
}

async fn wrong_input_is_answered_as_by_the_sdk(chain: &Chain) {
    let long = "x".repeat(3_000);
    for (path, status, code, named) in [
        ("/cosmos/auth/v1beta1/accounts/poly1x", 400, 3, "poly1x"),
        ("/cosmos/auth/v1beta1/accounts/poly1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqm9dayc", 400, 3, ""),
        ("/cosmos/bank/v1beta1/supply?pagination.limit=-1", 400, 3, "pagination.limit"),
        ("/cosmos/bank/v1beta1/supply?pagination.key=%25", 400, 3, "pagination.key"),
        ("/cosmos/base/tendermint/v1beta1/blocks/0", 400, 3, "height"),
        ("/cosmos/base/tendermint/v1beta1/blocks/99999999", 400, 3, "height"),
        ("/cosmos/tx/v1beta1/txs/xyz", 400, 3, "64 hexadecimal"),
        ("/cosmos/tx/v1beta1/txs", 400, 3, "at least one event"),
        ("/cosmos/tx/v1beta1/txs?query=nonsense", 400, 3, ""),
        ("/cosmos/no/such/path", 501, 12, "Not Implemented"),
        ("/", 501, 12, "Not Implemented"),
        (&format!("/cosmos/bank/v1beta1/balances/{long}"), 400, 3, ""),
    ] {
        let (found, value) = chain.get(path).await;
        assert_eq!((found, &value["code"], &value["details"]), (status, &json!(code), &json!([])), "{path}: {value}");
        assert!(value["message"].as_str().unwrap().contains(named), "{path}: {value}");
    }
    for (path, body, status) in [
        ("/cosmos/tx/v1beta1/txs", json!({"tx_bytes": "AA==", "mode": "BROADCAST_MODE_SYNC"}), 200),
        ("/cosmos/tx/v1beta1/txs", json!({"tx_bytes": "AA=="}), 400),
        ("/cosmos/tx/v1beta1/txs", json!({"tx_bytes": "", "mode": "BROADCAST_MODE_SYNC"}), 400),
        ("/cosmos/tx/v1beta1/txs", json!([]), 400),
        ("/cosmos/tx/v1beta1/simulate", json!({"tx_bytes": "AA=="}), 500),
        ("/cosmos/bank/v1beta1/supply", json!({}), 501),
        ("/cosmos/tx/v1beta1/txs", json!({"tx_bytes": "A".repeat(600_000), "mode": "BROADCAST_MODE_SYNC"}), 400),
    ] {
        let (found, value) = chain.post(path, &body).await;
        assert_eq!(found, status, "{path}: {value}");
        assert!(status != 200 || value["tx_response"]["code"] != 0, "garbage is no transaction: {value}");
    }
    let request = chain.http.get(format!("{}/cosmos/bank/v1beta1/supply", chain.rest));
    let answer = request.try_clone().unwrap().send().await.unwrap();
    assert_eq!(answer.headers()["access-control-allow-origin"], "*");
    let height: u64 = answer.headers()["x-cosmos-block-height"].to_str().unwrap().parse().unwrap();
    assert!(height > 0);
    let answer = request.header("x-cosmos-block-height", "x").send().await.unwrap();
    assert_eq!(answer.status(), 400);
}

async fn every_query_of_the_ledger_is_there(chain: &Chain) {
    let mut asked = 0;
    for route in MODULES.iter().flat_map(|module| module.queries) {
        let path = route.path();
        let method = descriptors::method(path.trim_start_matches('/'));
        let method = method.unwrap_or_else(|| panic!("{path} is in no proto file of the bridge"));
        let (status, value) = chain.get(&routes::general_path(&method)).await;
        // Without its fields a query may be refused, but by the ledger, with a reason.
        assert!([200, 400, 404, 500].contains(&status), "{path}: {status} {value}");
        assert!(status == 200 || !value["message"].as_str().unwrap().is_empty(), "{path}: {value}");
        asked += 1;
    }
    assert!(asked > 50, "{asked}");
}

#[test]
fn every_path_of_the_table_has_a_query_behind_it() {
    // The bridge answers the prices itself.
    let of_the_ledger = |name: &str| name.contains(".Query/") && !name.starts_with("feemarket.");
    let missing: Vec<&str> = (routes::TABLE.iter())
        .filter(|(_, name)| of_the_ledger(name) && router::query(&format!("/{name}")).is_none())
        .map(|(path, _)| *path)
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

fn a_wallet_is_told_of_the_chain(chain: &Chain, chain_id: &str) {
    let printed = command(&["query", "--rpc", &chain.rpc, "suggest-chain", "--rest", &chain.rest]).output().unwrap();
    let info: Value = serde_json::from_slice(&printed.stdout).unwrap_or_else(|_| panic!("{}", text(&printed.stderr)));
    assert_eq!(
        (&info["chainId"], &info["rest"], &info["rpc"]),
        (&json!(chain_id), &json!(chain.rest), &json!(chain.rpc))
    );
    assert_eq!(info["feeCurrencies"][0]["gasPriceStep"]["low"], 0.025);
}
