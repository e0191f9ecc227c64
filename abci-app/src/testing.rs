//! A chain in one process for tests: the real application and the real store, driven through the calls that CometBFT
//! would make. Nothing of the ledger is replaced; only blocks come when the test says so.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use polylink_protocol::cosmos::Any;
use polylink_protocol::keys::AccountKey;
use polylink_protocol::tx::{SignContext, sign_direct};
use polylink_protocol::{Address, Amount, DENOM, Message};
use tendermint_abci::Application;
use tendermint_proto::google::protobuf::Timestamp;
use tendermint_proto::v0_38::abci as pb;
use tendermint_proto::v0_38::crypto::public_key::Sum;
use tendermint_proto::v0_38::types::BlockIdFlag;

use crate::app::{App, SnapshotConfig};
use crate::auth::{self, MIN_GAS_PRICE};
use crate::chain::SCHEMA_VERSION;
use crate::genesis::Genesis;
use crate::staking::{self, GenesisValidator};
use crate::store::{Snapshot, StateRead, Store};
use crate::tx::ante::least_fee;
use crate::upgrade::Upgrades;
use crate::{bank, distribution, gov};

/// The chain id of test chains.
pub const CHAIN_ID: &str = "polylink-test-1";
/// The time of a test chain's genesis, in Unix seconds; each block is one second later.
pub const GENESIS_SECONDS: i64 = 1_700_000_000;
/// The gas limit of [`TestChain::sign`].
pub const GAS_LIMIT: u64 = 2_000_000;

/// A chain of its own in a temporary directory, which is removed when it is dropped.
pub struct TestChain {
    app: App,
    directory: PathBuf,
    height: u64,
    /// What the last commit let CometBFT forget: the blocks below.
    pub retain_height: u64,
    /// The hash of the last block's state.
    pub app_hash: Vec<u8>,
    /// The validator updates of genesis and of all blocks so far.
    pub validator_updates: Vec<pb::ValidatorUpdate>,
    /// The events of the last block that belong to no transaction.
    pub block_events: Vec<pb::Event>,
    /// The validators, as CometBFT follows them, of the last block, the next, and the one after it.
    sets: [BTreeMap<Address, u64>; 3],
    /// Consensus addresses that do not sign.
    pub absent: BTreeSet<Address>,
    /// Seconds that were skipped.
    skipped: u64,
    /// Evidence for the next block.
    pub misbehavior: Vec<pb::Misbehavior>,
}

/// The address and power of an update.
fn updated(update: &pb::ValidatorUpdate) -> (Address, u64) {
    let Some(Sum::Ed25519(key)) = update.pub_key.as_ref().and_then(|key| key.sum.clone()) else {
        panic!("validators have ed25519 keys: {update:?}")
    };
    let key = key.as_slice().try_into().expect("an ed25519 key has 32 bytes");
    (Address::of_consensus_key(&key), u64::try_from(update.power).expect("powers are not negative"))
}

/// Applies updates as CometBFT does: it refuses two of a key, and the removal of one that is not there.
fn update(set: &mut BTreeMap<Address, u64>, updates: &[pb::ValidatorUpdate]) {
    let mut seen = BTreeSet::new();
    for (address, power) in updates.iter().map(updated) {
        assert!(seen.insert(address), "two updates of {}", address.valcons());
        if power > 0 {
            set.insert(address, power);
        } else {
            assert!(set.remove(&address).is_some(), "{} was not in the set", address.valcons());
        }
    }
    assert!(!set.is_empty(), "the set is empty: CometBFT stops");
}

/// The key of test account `n`.
pub fn key(n: u8) -> AccountKey {
    AccountKey::from_bytes(&[n.max(1); 32]).expect("32 equal small bytes are a secp256k1 key")
}

/// A genesis with one validator (account 200, 1,000 PLK staked) and 1,000,000 PLK in each of the test accounts 1 to
/// `accounts`.
pub fn genesis(accounts: u8) -> Genesis {
    let validator = key(200).address();
    let mut genesis = Genesis::default().with_account(&validator, Amount(2_000_000_000));
    for n in 1..=accounts {
        genesis = genesis.with_account(&key(n).address(), Amount(1_000_000_000_000));
    }
    let consensus_key = polylink_protocol::keys::ServiceKey::from_bytes(&[200; 32]).public_key();
    genesis.staking.validators.push(GenesisValidator::new(&validator, &consensus_key, Amount(1_000_000_000)));
    genesis
}

static DIRECTORIES: AtomicU64 = AtomicU64::new(0);

/// An application over a fresh store, started from a genesis document.
fn begin(
    genesis: &Genesis,
    time: Option<Timestamp>,
    height: u64,
    over: impl FnOnce(Store) -> App,
) -> (App, PathBuf, pb::ResponseInitChain) {
    let number = DIRECTORIES.fetch_add(1, Ordering::Relaxed);
    let directory = std::env::temp_dir().join(format!("polylink-chain-{}-{number}", std::process::id()));
    let store = Store::open(&directory, SCHEMA_VERSION).expect("a store in a fresh temporary directory opens");
    let app = over(store);
    let started = app.init_chain(pb::RequestInitChain {
        time,
        chain_id: CHAIN_ID.into(),
        app_state_bytes: genesis.to_json().to_string().into(),
        initial_height: i64::try_from(height).expect("test chains are short"),
        ..Default::default()
    });
    (app, directory, started)
}

impl TestChain {
    /// Starts a chain. Panics where the genesis is refused, as the process would.
    pub fn start(genesis: &Genesis) -> Self {
        Self::start_with(genesis, None)
    }

    /// Starts a chain that takes snapshots.
    pub fn start_with(genesis: &Genesis, snapshots: Option<SnapshotConfig>) -> Self {
        Self::start_retaining(genesis, 0, snapshots)
    }

    /// Starts a chain that lets CometBFT forget all but so many blocks.
    pub fn start_retaining(genesis: &Genesis, retain_blocks: u64, snapshots: Option<SnapshotConfig>) -> Self {
        let time = Some(Timestamp { seconds: GENESIS_SECONDS, nanos: 0 });
        let (app, directory, started) =
            begin(genesis, time, 1, |store| App::with_snapshots(store, retain_blocks, snapshots));
        let mut first = BTreeMap::new();
        update(&mut first, &started.validators);
        TestChain {
            app,
            directory,
            height: 0,
            retain_height: 0,
            app_hash: started.app_hash.to_vec(),
            validator_updates: started.validators,
            block_events: Vec::new(),
            sets: [BTreeMap::new(), first.clone(), first],
            absent: BTreeSet::new(),
            skipped: 0,
            misbehavior: Vec::new(),
        }
    }

    /// Starts another chain from an exported state of this one, with the same validators at the same time.
    pub fn restored(&self, genesis: &Genesis) -> Self {
        let time = Some(Timestamp { seconds: self.seconds(), nanos: 0 });
        let (app, directory, started) = begin(genesis, time, self.height + 1, |store| App::new(store, 0));
        let mut first = BTreeMap::new();
        update(&mut first, &started.validators);
        assert_eq!(first, self.sets[2], "the exported state knows the validators of the block after it");
        TestChain {
            app,
            directory,
            app_hash: started.app_hash.to_vec(),
            validator_updates: started.validators,
            block_events: Vec::new(),
            sets: self.sets.clone(),
            absent: self.absent.clone(),
            misbehavior: self.misbehavior.clone(),
            ..*self
        }
    }

    /// Starts the application anew over what is committed, as another program would.
    pub fn restart(&mut self, upgrades: Upgrades) {
        self.app = App::with_upgrades(self.app.store().clone(), 0, None, upgrades);
        self.height = self.app.store().height();
    }

    /// The application, for calls that have no shorthand here.
    pub fn app(&self) -> &App {
        &self.app
    }

    /// The last committed height.
    pub fn height(&self) -> u64 {
        self.height
    }

    /// The last committed state.
    pub fn state(&self) -> Snapshot {
        self.app.store().snapshot()
    }

    /// Executes and commits one block with these transactions; their results are in order.
    pub fn deliver(&mut self, txs: Vec<Vec<u8>>) -> Vec<pb::ExecTxResult> {
        self.height += 1;
        let votes = self.sets[0].iter().map(|(address, power)| pb::VoteInfo {
            validator: Some(pb::Validator {
                address: address.0.to_vec().into(),
                power: i64::try_from(*power).expect("powers are far below 2^63"),
            }),
            block_id_flag: if self.absent.contains(address) { BlockIdFlag::Absent } else { BlockIdFlag::Commit } as i32,
        });
        let commit = pb::CommitInfo { round: 0, votes: votes.collect() };
        let response = self.app.finalize_block(pb::RequestFinalizeBlock {
            txs: txs.into_iter().map(Into::into).collect(),
            decided_last_commit: Some(commit),
            misbehavior: std::mem::take(&mut self.misbehavior),
            height: i64::try_from(self.height).expect("test chains are short"),
            time: Some(Timestamp { seconds: self.seconds(), nanos: 0 }),
            ..Default::default()
        });
        let retained = self.app.commit().retain_height;
        self.retain_height = u64::try_from(retained).expect("heights are not negative");
        self.app_hash = response.app_hash.to_vec();
        // What a block changes holds from the second one after it on.
        self.sets.rotate_left(1);
        let mut next = self.sets[1].clone();
        update(&mut next, &response.validator_updates);
        self.sets[2] = next;
        self.validator_updates.extend(response.validator_updates);
        self.block_events = response.events;
        response.tx_results
    }

    /// The time of the last block.
    fn seconds(&self) -> i64 {
        GENESIS_SECONDS.saturating_add_unsigned(self.height + self.skipped)
    }

    /// Lets the next block be later.
    pub fn skip_seconds(&mut self, seconds: u64) {
        self.skipped += seconds;
    }

    /// Executes `blocks` empty blocks.
    pub fn advance(&mut self, blocks: u64) {
        for _ in 0..blocks {
            self.deliver(Vec::new());
        }
    }

    /// Executes empty blocks until the committed height is `height`.
    pub fn advance_to(&mut self, height: u64) {
        self.advance(height.saturating_sub(self.height));
    }

    /// Signs messages of test account `n` with its next sequence on the committed state, [`GAS_LIMIT`] and the least fee.
    pub fn sign(&self, n: u8, messages: Vec<Any>) -> Vec<u8> {
        self.sign_after(n, 0, messages)
    }

    /// As [`Self::sign`], for the `ahead`-th further transaction of the same account in the same block.
    pub fn sign_after(&self, n: u8, ahead: u64, messages: Vec<Any>) -> Vec<u8> {
        let key = key(n);
        let state = self.state();
        let account = auth::account(&state, &key.address());
        // Before the first block the numbers are those of genesis: the pools', then the accounts in order.
        let number = account.as_ref().map_or(bank::Pool::ALL.len() as u64 + u64::from(n), |account| account.number);
        let price = state
            .get(&[MIN_GAS_PRICE])
            .map_or(crate::genesis::MIN_GAS_PRICE_MILLI, |_| auth::min_gas_price_milli(&state));
        let context = SignContext {
            chain_id: CHAIN_ID.into(),
            account_number: number,
            sequence: account.map_or(0, |account| account.sequence) + ahead,
            gas_limit: GAS_LIMIT,
            fee: least_fee(GAS_LIMIT, price),
            memo: String::new(),
        };
        sign_direct(messages, &context, &key)
    }

    /// Signs, executes in a block of its own, and returns the result.
    pub fn send(&mut self, n: u8, messages: Vec<Any>) -> pb::ExecTxResult {
        let tx = self.sign(n, messages);
        self.deliver(vec![tx]).pop().expect("one transaction has one result")
    }

    /// Queries by ABCI path; the error is the log.
    pub fn query<Q: Message, R: Message + Default>(&self, path: &str, request: &Q) -> Result<R, String> {
        let response = self.app.query(pb::RequestQuery {
            data: request.encode_to_vec().into(),
            path: path.into(),
            ..Default::default()
        });
        if response.code != 0 {
            return Err(response.log);
        }
        R::decode(response.value).map_err(|error| error.to_string())
    }

    /// What an address holds, in uplk.
    pub fn balance(&self, address: impl Into<Address>) -> Amount {
        bank::balance(&self.state(), address)
    }

    /// The supply of uplk, after adding up every balance and verifying what must hold of stake and rewards.
    pub fn checked_supply(&self) -> Amount {
        let state = self.state();
        if let Err(breach) = bank::scan(&state) {
            panic!("{breach}");
        }
        if let Err(breach) = distribution::scan(&state) {
            panic!("{breach}");
        }
        if let Err(breach) = staking::scan(&state) {
            panic!("{breach}");
        }
        if let Err(breach) = gov::scan(&state) {
            panic!("{breach}");
        }
        bank::supply(&state, DENOM)
    }
}

impl Drop for TestChain {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
