//! Every registered query path with wrong, huge and hostile parameters: answered with the SDK's code and a log that a
//! person can read, never with a panic, never without bound. New queries are in it by being registered.

use tendermint_abci::Application;
use tendermint_proto::v0_38::abci as pb;

use polylink_protocol::DENOM;

use crate::query::{GAS_PRICE_PATH, GAS_PRICES_PATH, GET_TX_PATH, Index, SIMULATE_PATH, STORE_PATH};
use crate::router;
use crate::store::MAX_KEY_BYTES;
use crate::testing::{TestChain, genesis, key};

/// The longest log of a refusal: a line.
const LOG_BYTES_MAX: usize = 1_024;
/// The largest answer that the state of these tests may give.
const ANSWER_BYTES_MAX: usize = 64 << 10;

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

fn page(key: &[u8], offset: u64, limit: u64, flags: u64) -> Vec<u8> {
    [bytes(1, key), number(2, offset), number(3, limit), number(4, flags & 1), number(5, flags >> 1)].concat()
}

/// Requests that no path expects, and those that some do: with their names.
fn hostile() -> Vec<(String, Vec<u8>)> {
    let huge = vec![b'x'; 1 << 20];
    let mut all: Vec<(String, Vec<u8>)> = vec![
        ("nothing".into(), vec![]),
        ("ones".into(), vec![0xff; 64]),
        ("zeros".into(), vec![0; 64]),
        ("a length cut off".into(), vec![0x0a, 0x80]),
        ("a field cut off".into(), vec![0x0a, 0x20, 1, 2, 3]),
        ("a length of 2^63".into(), [&[0x0a][..], &varint(1 << 63)].concat()),
        ("groups within groups".into(), vec![0x0b; 10_000]),
        ("messages within messages".into(), (0..200).fold(vec![], |inner, _| bytes(1, &inner))),
        ("a million".into(), huge.clone()),
        ("ten thousand fields".into(), bytes(1, b"a").repeat(10_000)),
    ];
    let text = [
        ("an account", key(1).address().account()),
        ("a validator", key(200).address().valoper()),
        ("a denomination", DENOM.into()),
        ("another chain's address", "cosmos1qypqxpq9qcrsszg2pvxq6rs0zqg3yyc5lzv7xu".into()),
        ("a path", "../../etc/passwd".into()),
        ("quotes and newlines", "\"'\n\r\0;--<script>".into()),
        ("a right-to-left override", "\u{202e}poly1\u{0}".into()),
        ("a number", "340282366920938463463374607431768211456".into()),
        ("an event query", "tx.height>0 AND message.sender='x'".into()),
    ];
    for field in 1..=4 {
        all.push((format!("field {field}: a million letters"), bytes(field, &huge)));
        all.push((format!("field {field}: no UTF-8"), bytes(field, &[0xff, 0xfe])));
        all.push((format!("field {field}: 2^64-1"), number(field, u64::MAX)));
        all.push((format!("field {field}: a fixed number"), [varint(field << 3 | 1), vec![0xff; 8]].concat()));
        for (name, value) in &text {
            all.push((format!("field {field}: {name}"), bytes(field, value.as_bytes())));
        }
        for (name, page) in [
            ("everything", page(&[], 0, u64::MAX, 1)),
            ("from the end", page(&[], u64::MAX, u64::MAX, 3)),
            ("backwards", page(&[], 0, 0, 2)),
            ("key and offset", page(&[1], 1, 1, 0)),
            ("a long key", page(&vec![0xff; MAX_KEY_BYTES + 1], 0, 1, 0)),
            ("a huge key", page(&huge, 0, 1, 2)),
            ("an odd key", page(&[0], 0, 1, 2)),
        ] {
            all.push((format!("field {field}: page {name}"), bytes(field, &page)));
            // With what stands before the page in most requests.
            for (kind, value) in &text[..3] {
                let both = [bytes(1, value.as_bytes()), bytes(field, &page)].concat();
                all.push((format!("{kind}, field {field}: page {name}"), both));
            }
        }
    }
    all
}

fn paths() -> Vec<&'static str> {
    let own = [STORE_PATH, "/store", "/store/bank/key", SIMULATE_PATH, GAS_PRICE_PATH, GAS_PRICES_PATH, GET_TX_PATH];
    own.into_iter().chain(router::query_paths()).collect()
}

/// What a client may rely on, whatever it asked.
fn check(what: &str, answer: &pb::ResponseQuery, newest: i64) {
    assert!(answer.value.len() <= ANSWER_BYTES_MAX, "{what}: {} bytes", answer.value.len());
    // Clients take 0 for "no answer".
    assert!(answer.height > 0 || answer.code != 0, "{what}: no height");
    assert!(answer.height <= newest, "{what}: height {}", answer.height);
    if answer.code == 0 {
        assert_eq!(answer.log, "", "{what}");
        return;
    }
    assert_eq!(answer.codespace, "sdk", "{what}: {}", answer.log);
    // Not found, invalid, height; or what a simulated transaction says.
    let known = [6, 7, 10, 18, 22, 26].contains(&answer.code) || what.starts_with(SIMULATE_PATH);
    assert!(known, "{what}: code {}: {}", answer.code, answer.log);
    assert!(!answer.log.is_empty() && answer.log.len() <= LOG_BYTES_MAX, "{what}: a log of {}", answer.log.len());
    let readable = |c: char| !c.is_control() && c != '\u{202e}';
    assert!(answer.log.chars().all(readable), "{what}: {:?}", answer.log);
    assert!(answer.value.is_empty(), "{what}: a refusal with a value");
}

fn chain() -> TestChain {
    let mut chain = TestChain::start(&genesis(3));
    chain.advance(3);
    chain
}

#[test]
fn every_path_answers_hostile_requests_with_a_code_and_a_log() {
    let chain = chain();
    let requests = hostile();
    let mut asked = 0;
    for path in paths() {
        let mut refused = 0;
        for (name, data) in &requests {
            let request = pb::RequestQuery { path: path.into(), data: data.clone().into(), ..Default::default() };
            let answer = chain.app().query(request);
            check(&format!("{path}: {name}"), &answer, 3);
            refused += usize::from(answer.code != 0);
            asked += 1;
        }
        assert!(refused > 0 || path == GAS_PRICES_PATH || path.starts_with("/store"), "{path} takes everything");
    }
    println!("{asked} hostile requests to {} paths", paths().len());
}

#[test]
fn every_path_answers_any_height() {
    let chain = chain();
    // The node answers by hash, whatever the height.
    for path in paths().into_iter().filter(|path| *path != GET_TX_PATH) {
        for height in [-1, i64::MIN, 4, 1_000_000, i64::MAX] {
            for prove in [false, true] {
                let request = pb::RequestQuery { path: path.into(), data: vec![1].into(), height, prove };
                let answer = chain.app().query(request);
                let what = format!("{path} at {height}, prove {prove}");
                check(&what, &answer, 3);
                let code = if height < 0 { 18 } else { 26 };
                assert_eq!((answer.codespace.as_str(), answer.code), ("sdk", code), "{what}: {}", answer.log);
            }
        }
    }
    // What is no path, or almost one.
    for path in [
        "",
        "/",
        "/store/key/",
        "/store/nobody/key",
        "/store//key",
        "store/key",
        "/STORE/KEY",
        "/cosmos.bank.v1beta1.Query",
        &"/x".repeat(100_000),
    ] {
        let answer = chain.app().query(pb::RequestQuery { path: path.into(), ..Default::default() });
        check(path, &answer, 3);
        assert_eq!((answer.codespace.as_str(), answer.code), ("sdk", 6), "{}", answer.log);
    }
}

/// A height that the window has left behind is refused by name; one within it is answered.
#[test]
fn pruned_heights_are_refused() {
    use crate::chain::SCHEMA_VERSION;
    use crate::store::{Store, StoreOptions};
    let directory = tempfile::tempdir().unwrap();
    let options = StoreOptions { keep_heights: 2, ..StoreOptions::new(SCHEMA_VERSION) };
    let app = crate::app::App::new(Store::open_with(directory.path(), options).unwrap(), 0);
    app.init_chain(pb::RequestInitChain {
        chain_id: crate::testing::CHAIN_ID.into(),
        app_state_bytes: genesis(1).to_json().to_string().into(),
        initial_height: 1,
        ..Default::default()
    });
    for height in 1..=6 {
        app.finalize_block(pb::RequestFinalizeBlock { height, ..Default::default() });
        app.commit();
    }
    for (height, code) in [(1, 18), (3, 18), (4, 0), (6, 0), (7, 26)] {
        for (path, prove) in [(STORE_PATH, false), (STORE_PATH, true), ("/cosmos.mint.v1beta1.Query/Params", false)] {
            let data = if path == STORE_PATH { vec![1] } else { vec![] };
            let request = pb::RequestQuery { path: path.into(), data: data.into(), height, prove };
            let answer = app.query(request);
            assert_eq!(answer.code, code, "height {height}: {}", answer.log);
            check("a pruned height", &answer, 6);
            assert!(code == 0 || answer.log.contains("heights 4 to 6"), "{}", answer.log);
        }
    }
}

/// An index that knows one transaction.
struct One;

impl Index for One {
    fn transaction(&self, request: &[u8]) -> Result<Vec<u8>, crate::QueryError> {
        if request == b"known" { Ok(vec![1, 2, 3]) } else { Err(crate::QueryError::NotFound("tx not found: x".into())) }
    }
}

#[test]
fn a_transaction_is_looked_up_where_the_node_can_be_asked() {
    let chain = chain();
    let ask = |method: &str, data: &'static [u8]| {
        let path = format!("/cosmos.tx.v1beta1.Service/{method}");
        chain.app().query(pb::RequestQuery { path, data: data.into(), ..Default::default() })
    };
    let code = |answer: &pb::ResponseQuery| (answer.codespace.clone(), answer.code);
    let alone = ask("GetTx", b"known");
    assert_eq!(code(&alone), ("sdk".into(), 6));
    assert!(alone.log.contains("does not know its node's RPC"), "{}", alone.log);
    chain.app().ask_for_transactions(Box::new(One));
    let found = ask("GetTx", b"known");
    assert_eq!((found.code, found.value.to_vec(), found.height), (0, vec![1, 2, 3], 3));
    let unknown = ask("GetTx", b"unknown");
    assert_eq!(code(&unknown), ("sdk".into(), 22));
    assert_eq!(unknown.log, "rpc error: code = NotFound desc = tx not found: x: key not found");
    for method in ["GetTxsEvent", "GetBlockWithTxs", "BroadcastTx"] {
        let refused = ask(method, b"known");
        check(method, &refused, 3);
        assert!(refused.code == 6 && refused.log.contains("ask the node's RPC"), "{method}: {}", refused.log);
    }
    assert_eq!(code(&ask("Simulate", b"known")), ("sdk".into(), 18));
}
