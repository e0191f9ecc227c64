//! Entry points for fuzzing: what bytes from anybody may reach, each a function of bytes alone that must return.
//!
//! The targets of `cargo fuzz` in `fuzz/` call them, and `tests/fuzz.rs` does so in every run of the tests, with a bounded
//! number of made-up inputs. *Invariant*: no input makes one panic, loop or take memory out of proportion to its length;
//! whatever messages do, money is conserved and the modules' invariants hold.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use polylink_protocol::market::profile_digest;
use polylink_protocol::market_v1::ModelProfile;
use polylink_protocol::tiqe::VrfKey;
use polylink_protocol::{DENOM, Digest, Message as _};
use tendermint_abci::Application;

use crate::bank::Pool;
use crate::context::{BlockTime, Context};
use crate::error::TxError;
use crate::gas::Metered;
use crate::modules::{MODULES, QueryContext};
use crate::store::{Layer, MemoryState, Overlay, StateRead, probe_chunk};
use crate::testing::{CHAIN_ID, GENESIS_SECONDS, genesis, key};
use crate::tx::decode::{SignMode, decode_simulated};
use crate::tx::schema::{self, Kind};
use crate::tx::{self, Mode};
use crate::{bank, distribution, router, server, staking};

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

/// Answers a query: the first byte names the path, the others are the request, or what one is made of.
pub fn query(data: &[u8]) {
    let mut choices = Choices(data);
    let paths: Vec<&str> = router::query_paths().collect();
    let path = paths[choices.below(paths.len())];
    let Some(route) = router::query(path) else { return };
    let request = if choices.below(4) == 0 { choices.rest(256).to_vec() } else { choices.blind() };
    let ctx =
        QueryContext { chain_id: CHAIN_ID.into(), height: BLOCKS_BEHIND, epoch: BLOCKS_BEHIND / 20, epoch_blocks: 20 };
    if let Ok(answer) = (route.answer)(&request, &ctx, &*STATE) {
        assert!(answer.len() <= ANSWER_BYTES_MAX, "{path} answers {} bytes", answer.len());
    }
}

/// Decisions taken from bytes; once they are used up, always the first.
struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// One of `count`, at most 65,536.
    fn below(&mut self, count: usize) -> usize {
        let low = usize::from(self.byte());
        let choice = if count > 256 { low << 8 | usize::from(self.byte()) } else { low };
        choice % count.max(1)
    }

    fn rest(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(self.0.len().min(most));
        self.0 = rest;
        taken
    }

    fn text(&mut self) -> String {
        let n = self.byte() % 8;
        let address = key(if n == 7 { 200 } else { n + 1 }).address();
        match self.below(20) {
            0..=4 => address.account(),
            5..=7 => address.valoper(),
            8 => address.valcons(),
            9 | 10 => DENOM.into(),
            11 => u64::from(self.byte()).to_string(),
            12 => (u64::from(self.byte()) * 1_000_000).to_string(),
            13 => u128::MAX.to_string(),
            14 => "-1".into(),
            15 => "1000000000000000000".into(),
            16 => "0.05".into(),
            17 => "9".repeat(usize::from(self.byte())),
            18 => String::from_utf8_lossy(self.rest(32)).into_owned(),
            _ => String::new(),
        }
    }

    /// What a field of this name mostly holds; now and then something else.
    fn fitting(&mut self, name: &str) -> String {
        let is = |words: &[&str]| words.iter().any(|word| name.contains(word));
        let account = key(self.byte() % 3 + 1).address();
        match self.below(10) {
            0 => self.text(),
            _ if name == "authority" => Pool::Gov.address().account(),
            _ if is(&["provider"]) => account.account(),
            _ if is(&["title", "summary", "metadata", "details"]) => "about something".into(),
            _ if name == "weight" => ["1", "1000000000000000000"][self.below(2)].into(),
            _ if is(&["validator"]) && !is(&["delegator"]) => {
                key(if self.below(4) == 0 { 1 } else { 200 }).address().valoper()
            }
            _ if is(&["denom"]) => DENOM.into(),
            _ if is(&["amount", "bond", "deposit", "price", "cap", "min_self", "reserve"]) => {
                (self.number() % 2_000_000_000).to_string()
            }
            _ if is(&["rate", "share"]) => (u64::from(self.byte()) * 1_000_000_000_000_000).to_string(),
            _ if is(&["endpoint"]) => "https://one.example:8443".into(),
            _ if is(&["id", "name", "moniker", "dtype", "numerics", "quantization"]) => "polylink/one@1".into(),
            _ => account.account(),
        }
    }

    fn number(&mut self) -> u64 {
        let choices = [0, 1, 2, 3, 20, 1_000, u64::from(u32::MAX), i64::MAX as u64, u64::MAX];
        match self.below(16) {
            choice if choice < choices.len() => choices[choice],
            _ => u64::from(self.byte()),
        }
    }

    /// A number that a field of this name mostly holds.
    fn fitting_number(&mut self, name: &str) -> u64 {
        let small = u64::from(self.byte());
        match name {
            _ if self.below(8) == 0 => self.number(),
            "proposal_id" | "session" | "trial" | "report" => small % 8,
            "option" => small % 4 + 1,
            "epoch" => small % (2 + BLOCKS_BEHIND / 20),
            "expiry_epoch" => BLOCKS_BEHIND / 20 + small,
            "tickets" => small % 4 + 1,
            "royalty_bps" | "window" | "prompt" | "cached_prompt" | "completion" => small,
            "context_length" | "capacity_tokens_per_epoch" => 1_000 * (small + 1),
            _ => self.number(),
        }
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = [0, 1, 20, 33, 64, 80].get(self.below(24)).copied().unwrap_or(32);
        vec![self.byte(); length]
    }

    /// Bytes that a field of this name mostly holds.
    fn fitting_bytes(&mut self, name: &str) -> Vec<u8> {
        let choice = self.byte() % 3;
        match name {
            _ if self.below(8) == 0 => self.bytes(),
            "profile_digest" | "profiles" => profile_digest(&profile(choice)).to_vec(),
            "tls_key" | "x25519_key" => vec![choice + 1; 32],
            _ if name.ends_with("_key") => VrfKey::from_bytes(&[choice + 1; 32]).public_key().to_vec(),
            _ => self.bytes(),
        }
    }

    /// A message of a known type, its fields filled with what passes for them.
    fn message(&mut self, name: &str, depth: usize) -> Vec<u8> {
        if name == "polylink.market.v1.ModelProfile" && self.below(4) > 0 {
            return profile(self.byte() % 3).encode_to_vec();
        }
        let mut out = Vec::new();
        for field in schema::of(name).unwrap_or_default() {
            let times = if field.repeated { self.below(8).div_ceil(5) } else { usize::from(self.below(24) != 0) };
            for _ in 0..times {
                match field.kind {
                    Kind::Text | Kind::Dec => put_bytes(&mut out, field.number, self.fitting(field.name).as_bytes()),
                    Kind::Bytes => put_bytes(&mut out, field.number, &self.fitting_bytes(field.name)),
                    Kind::Long | Kind::ZigZagLong => {
                        put_number(&mut out, field.number, self.fitting_number(field.name))
                    }
                    Kind::Int => {
                        put_number(&mut out, field.number, self.fitting_number(field.name) & u64::from(u32::MAX));
                    }
                    Kind::Bool => put_number(&mut out, field.number, u64::from(self.byte() & 1)),
                    Kind::Float => {
                        put_key(&mut out, field.number, 5);
                        out.extend([self.byte(), self.byte(), self.byte(), self.byte()]);
                    }
                    Kind::Message(name) if depth > 0 => {
                        put_bytes(&mut out, field.number, &self.message(name, depth - 1));
                    }
                    Kind::Any if depth > 0 => put_bytes(&mut out, field.number, &self.any(depth - 1)),
                    Kind::Message(_) | Kind::Any => {}
                }
            }
        }
        out
    }

    fn any(&mut self, depth: usize) -> Vec<u8> {
        let nested = schema::AMINO_KEYS.iter().chain(schema::AMINO_NESTED).map(|(name, _)| *name);
        let names: Vec<&str> = nested.chain(router::type_urls().map(schema::full_name)).collect();
        // Half of them what governance may do.
        let is_governed = |url: &&str| router::message(url).is_some_and(|route| route.governed);
        let governed: Vec<&str> = router::type_urls().filter(is_governed).map(schema::full_name).collect();
        let from = if self.below(2) == 0 { governed } else { names };
        let name = from[self.below(from.len())];
        let mut out = Vec::new();
        put_bytes(&mut out, 1, format!("/{name}").as_bytes());
        put_bytes(&mut out, 2, &self.message(name, depth));
        out
    }

    /// A message of an unknown type: its first fields hold something, a page request among it.
    fn blind(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        for number in 1..=4 {
            match self.below(6) {
                0 => put_number(&mut out, number, self.number()),
                1 | 2 => put_bytes(&mut out, number, self.text().as_bytes()),
                3 => put_bytes(&mut out, number, &self.bytes()),
                4 => {
                    let mut page = Vec::new();
                    put_bytes(&mut page, 1, &self.bytes());
                    put_number(&mut page, 2, self.number());
                    put_number(&mut page, 3, self.number());
                    put_number(&mut page, 4, u64::from(self.byte() & 1));
                    put_number(&mut page, 5, u64::from(self.byte() & 1));
                    put_bytes(&mut out, number, &page);
                }
                _ => {}
            }
        }
        out
    }
}

/// One of three profiles.
fn profile(number: u8) -> ModelProfile {
    let digest = vec![number + 1; 32];
    ModelProfile {
        id: format!("polylink/one@{number}"),
        config_digest: digest.clone(),
        tokenizer_digest: digest.clone(),
        chat_template_digest: digest.clone(),
        generation_config_digest: digest.clone(),
        weights_digest: digest,
        weight_quantization: "none".into(),
        compute_dtype: "f32".into(),
        kv_dtype: "f32".into(),
        numerics: "exact-1".into(),
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_key(out: &mut Vec<u8>, number: u32, wire_type: u8) {
    put_varint(out, u64::from(number) << 3 | u64::from(wire_type));
}

fn put_number(out: &mut Vec<u8>, number: u32, value: u64) {
    put_key(out, number, 0);
    put_varint(out, value);
}

fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_key(out, number, 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
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
