//! Entry points for fuzzing: what bytes from anybody may reach, each a function of bytes alone that must return.
//!
//! The targets of `cargo fuzz` in `fuzz/` call them, and `tests/fuzz.rs` does so in every run of the tests, with a bounded
//! number of made-up inputs. *Invariant*: no input makes one panic, loop or take memory out of proportion to its length;
//! whatever messages do, money is conserved and the modules' invariants hold.

mod choices;

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use polylink_protocol::cosmos::cosmos::tx::v1beta1::SimulateRequest;
use polylink_protocol::{DENOM, Digest, Message as _};
use tendermint_abci::Application;

use crate::chain::SCHEMA_VERSION;
use crate::context::{BlockTime, Context};
use crate::error::TxError;
use crate::gas::Metered;
use crate::modules::MODULES;
use crate::store::{Changes, Layer, MemoryState, Overlay, StateRead, Store, StoreError, probe_chunk};
use crate::testing::{CHAIN_ID, GENESIS_SECONDS, genesis, key};
use crate::tx::decode::{SignMode, decode_simulated};
use crate::tx::schema;
use crate::tx::{self, Mode};
use crate::{bank, distribution, query, router, server, staking};
use choices::Choices;

/// A target.
pub type Target = fn(&[u8]);

/// All targets by name.
pub const TARGETS: &[(&str, Target)] =
    &[("transaction", transaction), ("message", message), ("frame", frame), ("chunk", chunk), ("query", query)];

/// Frames that a fuzzed connection takes at most, in bytes.
const FRAME_BYTES_MAX: usize = 1 << 20;

/// What a query's answer may have at most, in bytes: a thousand rows of some thousand bytes.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Blocks that [`STATE`] has behind it.
const BLOCKS_BEHIND: u64 = 240;

/// A small chain's state: five accounts, one validator, and what blocks of made-up messages have left since genesis, so that
/// there is something to vote on, to withdraw, to leave.
static STATE: LazyLock<MemoryState> = LazyLock::new(|| {
    let time = BlockTime { seconds: GENESIS_SECONDS, nanos: 0 };
    let (changes, _) = crate::chain::genesis(CHAIN_ID, time, &genesis(5)).expect("the test genesis is a good one");
    let mut state = MemoryState(changes.into_iter().filter_map(|(key, value)| Some((key, value?))).collect());
    for height in 1..=BLOCKS_BEHIND {
        let data: Vec<u8> =
            (0..128_u64).flat_map(|n| Digest::of(&[height, n].map(u64::to_be_bytes).concat()).0).collect();
        let mut layer = Overlay::new(&state as &dyn StateRead);
        made_up_block(&mut Choices(&data), height, 12, &mut layer);
        let changes = layer.into_changes();
        state.apply(&changes);
    }
    state
});

fn block(height: u64) -> Context {
    let time = BlockTime { seconds: GENESIS_SECONDS.saturating_add_unsigned(height * 3_600), nanos: 0 };
    Context::new(CHAIN_ID, height, time, 20)
}

/// Decodes the bytes as a transaction and runs it in every mode.
pub fn transaction(data: &[u8]) {
    let ctx = block(BLOCKS_BEHIND + 1);
    for mode in [Mode::Check, Mode::Simulate, Mode::Deliver] {
        let mut layer = Overlay::new(&*STATE as &dyn StateRead);
        let _ = tx::run(&ctx, &mut layer, data, mode);
        assert_eq!(bank::check_conservation(&*STATE, layer.changes()), Ok(()));
    }
    if let Ok(tx) = decode_simulated(data) {
        for signer in &tx.signers {
            let _ = tx.sign_bytes(signer, SignMode::AminoJson, CHAIN_ID, 0);
        }
    }
}

/// Makes messages of the bytes, of any type that has a route, and lets them be handled one after the other in blocks.
pub fn message(data: &[u8]) {
    let _ = executed(data);
}

/// As [`message`]; returns the type URLs of those that succeeded.
pub fn executed(data: &[u8]) -> Vec<&'static str> {
    let mut choices = Choices(data);
    let mut state = Overlay::new(&*STATE as &dyn StateRead);
    let mut done = Vec::new();
    for height in 1..=choices.below(3) as u64 + 1 {
        let most = choices.below(4) + 1;
        done.extend(made_up_block(&mut choices, BLOCKS_BEHIND + height, most, &mut state));
        assert_eq!(bank::check_conservation(&*STATE, state.changes()), Ok(()));
        assert_eq!(distribution::check_conservation(&*STATE, state.changes()), Ok(()));
        assert_eq!((staking::scan(&state), distribution::scan(&state)), (Ok(()), Ok(())));
    }
    done
}

/// A block with so many messages. Returns the type URLs of those that succeeded.
fn made_up_block(choices: &mut Choices<'_>, height: u64, messages: usize, state: &mut Layer<'_>) -> Vec<&'static str> {
    let urls: Vec<&'static str> = router::type_urls().collect();
    let mut done = Vec::new();
    let mut ctx = block(height);
    for module in MODULES {
        let begun = (module.begin_block)(&mut ctx, state);
        assert_eq!(begun, Ok(()), "{} at height {height}", module.name);
    }
    for _ in 0..messages {
        let url = urls[choices.below(urls.len())];
        let Some(route) = router::message(url) else { continue };
        let bytes =
            if choices.below(8) == 0 { choices.rest(64).to_vec() } else { choices.message(schema::full_name(url), 4) };
        // Now and then the gas is used up on the way.
        let left = if choices.below(4) == 0 { choices.below(50_000) as u64 } else { u64::MAX };
        let handle = |layer: &mut Layer<'_>| {
            let mut metered = Metered::new(layer, left);
            let done = (route.execute)(&bytes, &mut ctx, &mut metered);
            if metered.gas() <= left { done } else { Err(TxError::OutOfGas { limit: left, used: metered.gas() }) }
        };
        if (route.check)(&bytes).is_ok() && state.attempt(handle).is_ok() {
            done.push(url);
        }
    }
    for module in MODULES {
        let ended = (module.end_block)(&mut ctx, state);
        assert_eq!(ended, Ok(()), "{} at height {height}", module.name);
    }
    done
}

/// An application that does nothing, so that what is fuzzed is the server.
#[derive(Clone)]
struct Quiet;
impl Application for Quiet {}

/// Serves the bytes as a connection.
pub fn frame(data: &[u8]) {
    let options = server::Options { frame_bytes_max: FRAME_BYTES_MAX, ..server::Options::default() };
    let mut answers = Vec::new();
    let frames = server::FrameReader::new(data, FRAME_BYTES_MAX);
    let _ = server::serve_connection(0, frames, &mut answers, &Quiet, &options);
}

/// Reads the bytes as the first chunk of a snapshot, and verifies them against a root.
pub fn chunk(data: &[u8]) {
    let _ = probe_chunk(data, [7; 32]);
}

/// Heights of the store that [`query`] asks: what blocks have left, and one after it.
const NEWEST: u64 = BLOCKS_BEHIND + 1;

/// A store with [`STATE`] in a folder of its own, which goes with it.
struct Kept(Store);

impl Kept {
    fn new() -> Result<Self, StoreError> {
        static FOLDERS: AtomicU64 = AtomicU64::new(0);
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("polylink-fuzz-{}-{number}", std::process::id()));
        let kept = Kept(Store::open(folder, SCHEMA_VERSION)?);
        let all = STATE.0.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect();
        let last: Changes = BTreeMap::from([(vec![0xff], Some(vec![1]))]);
        for (changes, height) in [(all, BLOCKS_BEHIND), (last, NEWEST)] {
            kept.0.commit(kept.0.stage(changes, height)?)?;
        }
        Ok(kept)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.0.path());
    }
}

thread_local! {
    static KEPT: Kept = Kept::new().expect("a store in a fresh temporary folder opens");
}

/// Paths that no module has.
const OTHER_PATHS: [&str; 8] = [
    query::STORE_PATH,
    query::SIMULATE_PATH,
    query::SIMULATE_PATH,
    query::GAS_PRICE_PATH,
    query::GAS_PRICES_PATH,
    query::GET_TX_PATH,
    "/store/bank/key",
    "/app/version",
];

/// Answers a query: the first bytes name the path, the others are the request, or what one is made of. Returns the path where
/// it was answered.
pub fn asked(data: &[u8]) -> Option<&'static str> {
    let mut choices = Choices(data);
    let others = OTHER_PATHS.repeat(2);
    let paths: Vec<&'static str> = router::query_paths().chain(others).collect();
    let path = paths[choices.below(paths.len())];
    let height = [0, 0, 0, NEWEST, BLOCKS_BEHIND, NEWEST + 1, 1, u64::MAX][choices.below(8)];
    let prove = choices.below(4) == 0;
    let request = match path {
        _ if choices.below(4) == 0 => choices.rest(256).to_vec(),
        query::SIMULATE_PATH => SimulateRequest { tx_bytes: choices.unsigned(), ..Default::default() }.encode_to_vec(),
        query::GAS_PRICE_PATH => [&[0x0a, DENOM.len() as u8][..], DENOM.as_bytes()].concat(),
        _ if path.starts_with("/store/") => {
            let at = choices.below(65_536) % STATE.0.len();
            STATE.0.keys().nth(at).cloned().unwrap_or_default()
        }
        _ => choices.blind(),
    };
    let snapshot = KEPT.with(|kept| kept.0.snapshot());
    if let Some(answer) = query::of_node(None, path, &request) {
        assert!(answer.is_err(), "no node is asked");
        return None;
    }
    let answer = query::run(&snapshot, path, &request, height, prove).ok()?;
    let proof = answer.proof.as_ref().map_or(0, |proof| proof.encode().len());
    let length = answer.value.len() + proof;
    assert!(length <= ANSWER_BYTES_MAX, "{path} answers {length} bytes");
    assert!(answer.height > 0, "{path}: clients take 0 for no answer");
    Some(path)
}

/// As [`asked`].
pub fn query(data: &[u8]) {
    let _ = asked(data);
}

/// Inputs that make sense, to be altered: by target.
pub fn seeds() -> BTreeMap<&'static str, Vec<Vec<u8>>> {
    use polylink_protocol::cosmos::cosmos::bank::v1beta1::MsgSend;
    use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
    use polylink_protocol::tx::{SignContext, any, sign_direct};
    let send = MsgSend {
        from_address: key(1).address().account(),
        to_address: key(2).address().account(),
        amount: vec![Coin { denom: DENOM.into(), amount: "5".into() }],
    };
    let context = SignContext {
        chain_id: CHAIN_ID.into(),
        account_number: crate::bank::Pool::ALL.len() as u64 + 1,
        sequence: 0,
        gas_limit: 200_000,
        fee: polylink_protocol::Amount(5_000),
        memo: "memo".into(),
    };
    let tx = sign_direct(vec![any(&send), any(&send)], &context, &key(1));
    use prost_014::Message as _;
    use tendermint_proto::v0_38::abci::{Request, RequestCheckTx, RequestEcho, RequestFlush, request::Value};
    let frames: Vec<u8> = [
        Value::Echo(RequestEcho { message: "echo".into() }),
        Value::CheckTx(RequestCheckTx { tx: tx.clone().into(), r#type: 0 }),
        Value::Flush(RequestFlush {}),
    ]
    .into_iter()
    .flat_map(|value| Request { value: Some(value) }.encode_length_delimited_to_vec())
    .collect();
    // Two pairs and an empty proof: its form is right, its root is not.
    let chunk = [&[0, 0, 0, 2][..], &[0, 1, 7, 0, 0, 0, 1, 7], &[0, 1, 8, 0, 0, 0, 1, 8], &[0; 4]].concat();
    BTreeMap::from([("transaction", vec![tx]), ("frame", vec![frames]), ("chunk", vec![chunk])])
}
