//! The ABCI application: [`chain`](crate::chain) behind the calls that CometBFT makes.
//!
//! One writer: the consensus connection alone executes blocks, and nothing becomes durable before `Commit`. `CheckTx`
//! runs on an overlay of its own over the last committed state, thrown away after every block (CometBFT then rechecks
//! what is left in the mempool). Queries read a snapshot and wait for nobody.
//!
//! Snapshots of committed states are taken and handed out beside all of it ([`snapshots`]); a node without a state may
//! restore one instead of executing every block.
//!
//! Bad transactions and queries are answered with codes, never with an ABCI exception, which would stop the node. A
//! broken invariant panics with its reason: the server then ends the process, before the block is committed.

mod convert;
mod join;
mod node;
pub mod snapshots;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tendermint_abci::Application;
use tendermint_proto::v0_38::abci as pb;
use tendermint_proto::v0_38::types::{ConsensusParams, VersionParams};

use crate::chain::{self, Block, SCHEMA_VERSION};
use crate::consensus;
use crate::context::Commit;
use crate::error::GenesisError;
use crate::genesis::Genesis;
use crate::query::{self, Answered, Index};
use crate::store::{AppHash, Changes, Memo, MemoryState, Moment, Overlay, Snapshot, Staged, StateRead, Store};
use crate::tx::{self, Mode};
use crate::upgrade::Upgrades;

pub use node::{NodeConfig, NodeHandle, SNAPSHOT_INTERVAL, ServeError, rollback, serve};
pub use snapshots::{SnapshotConfig, Snapshots};

use join::Joining;

/// The state below the mempool's overlay.
type Base = Arc<dyn StateRead + Send + Sync>;

/// The committed state with what was read of it: what CheckTx has asked for is known when the block is executed.
type Committed = Arc<Memo<Snapshot>>;

/// The application. Clones share one ledger.
#[derive(Clone)]
pub struct App(Arc<Shared>);

struct Shared {
    store: Store,
    /// Blocks that CometBFT keeps; 0 keeps all.
    retain_blocks: u64,
    snapshots: Option<Snapshots>,
    upgrades: Upgrades,
    consensus: Mutex<Consensus>,
    mempool: Mutex<Mempool>,
    joining: Mutex<Joining>,
    index: OnceLock<Box<dyn Index>>,
}

/// What is executed and not committed.
#[derive(Default)]
struct Consensus {
    /// From `InitChain` until the first block, with which it is committed; and its hash, which is in that block's header.
    genesis: Option<(Changes, AppHash)>,
    /// From `FinalizeBlock` until `Commit`.
    staged: Option<(Staged, Moment)>,
    /// None before the first block is executed.
    committed: Option<Committed>,
}

struct Mempool {
    state: Overlay<Base>,
    height: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Stops the process through the server's panic handling.
fn stop(reason: impl std::fmt::Display) -> ! {
    tracing::error!("{reason}");
    panic!("{reason}")
}

impl App {
    /// Over an open store, without snapshots.
    pub fn new(store: Store, retain_blocks: u64) -> Self {
        Self::with_snapshots(store, retain_blocks, None)
    }

    /// Over an open store.
    pub fn with_snapshots(store: Store, retain_blocks: u64, snapshots: Option<SnapshotConfig>) -> Self {
        Self::with_upgrades(store, retain_blocks, snapshots, Upgrades::default())
    }

    /// As [`Self::with_snapshots`], with what is known of upgrades.
    pub fn with_upgrades(
        store: Store,
        retain_blocks: u64,
        snapshots: Option<SnapshotConfig>,
        upgrades: Upgrades,
    ) -> Self {
        if let Err(error) = store.warm() {
            // Whoever needs what cannot be read says so too.
            tracing::warn!("the tree's upper nodes could not be read ahead: {error}");
        }
        let committed: Committed = Arc::new(Memo::new(store.snapshot()));
        let mempool = Mempool { state: Overlay::new(Arc::clone(&committed) as Base), height: store.height() };
        let consensus = Consensus { committed: Some(committed), ..Consensus::default() };
        let snapshots = snapshots.map(|config| Snapshots::open(config, store.height()));
        App(Arc::new(Shared {
            store,
            retain_blocks,
            snapshots,
            upgrades,
            consensus: Mutex::new(consensus),
            mempool: Mutex::new(mempool),
            joining: Mutex::default(),
            index: OnceLock::new(),
        }))
    }

    /// Lets queries for single transactions be answered by the node's index. The first one that is given stays.
    pub fn ask_for_transactions(&self, index: Box<dyn Index>) {
        let _ = self.0.index.set(index);
    }

    /// Its snapshots, where it takes any.
    pub fn snapshots(&self) -> Option<&Snapshots> {
        self.0.snapshots.as_ref()
    }

    /// The ledger's store.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Blocks below it are needed by nobody: neither for evidence or by light clients (all below `settled` are older than
    /// the unbonding time), nor by a node that joins from the oldest snapshot, nor for what the operator keeps.
    fn retain_height(&self, height: u64, settled: u64) -> u64 {
        let Some(asked) = height.checked_sub(self.0.retain_blocks).filter(|_| self.0.retain_blocks > 0) else {
            return 0;
        };
        let joining = self.0.snapshots.as_ref().map_or(u64::MAX, Snapshots::needed);
        asked.min(settled).min(joining)
    }

    /// Keys that the block between its `FinalizeBlock` and its `Commit` changes; 0 where there is none.
    pub fn keys_staged(&self) -> usize {
        lock(&self.0.consensus).staged.as_ref().map_or(0, |(staged, _)| staged.changes().len())
    }

    fn reset_mempool(&self, base: Base, height: u64) {
        *lock(&self.0.mempool) = Mempool { state: Overlay::new(base), height };
    }

    /// Goes on from a committed state, which `before` and the changes of its block lead to, where there is such a state:
    /// what was known of it is still known.
    fn advance(&self, before: Option<(Committed, &Changes)>, state: Snapshot) -> Committed {
        let height = state.height();
        let mut mempool = lock(&self.0.mempool);
        // Whatever the mempool knew of the state before ends here: nobody reads what is being changed.
        mempool.state = Overlay::new(Arc::new(state.clone()));
        let known = before.and_then(|(before, changes)| Some((Arc::into_inner(before)?, changes)));
        let committed = Arc::new(match known {
            Some((known, changes)) => known.advance(state, changes),
            None => Memo::new(state),
        });
        *mempool = Mempool { state: Overlay::new(Arc::clone(&committed) as Base), height };
        committed
    }
}

impl Application for App {
    fn info(&self, _: pb::RequestInfo) -> pb::ResponseInfo {
        let height = self.0.store.height();
        let hash = if height == 0 { Vec::new() } else { self.0.store.app_hash().to_vec() };
        pb::ResponseInfo {
            data: format!("polylink ledger, state schema {SCHEMA_VERSION}"),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            app_version: SCHEMA_VERSION,
            last_block_height: convert::height(height),
            last_block_app_hash: hash.into(),
        }
    }

    fn init_chain(&self, request: pb::RequestInitChain) -> pb::ResponseInitChain {
        let first = u64::try_from(request.initial_height).unwrap_or(1).max(1);
        let started = Genesis::from_json(&request.app_state_bytes).and_then(|genesis| {
            // What an exported state says of heights must go on from there; any other chain may begin where it likes.
            if genesis.exported.is_some() && first != genesis.first_height() {
                let reason = format!("{first}: the exported state goes on at {}", genesis.first_height());
                return Err(GenesisError::invalid("initial_height", reason));
            }
            chain::genesis(&request.chain_id, convert::time(request.time), &genesis)
        });
        let (mut changes, updates) = started.unwrap_or_else(|error| stop(format!("the chain cannot start: {error}")));
        if let Some(params) = request.consensus_params.and_then(convert::consensus_params) {
            changes.insert(vec![consensus::PARAMS], Some(params));
        }
        let staged = self.0.store.stage(changes.clone(), first).unwrap_or_else(|error| stop(error));
        let state = MemoryState(changes.iter().filter_map(|(k, v)| Some((k.clone(), v.clone()?))).collect());
        consensus::check_age(&state).unwrap_or_else(|error| stop(format!("the chain cannot start: {error}")));
        self.reset_mempool(Arc::new(state), first - 1);
        *lock(&self.0.consensus) = Consensus { genesis: Some((changes, staged.app_hash())), ..Consensus::default() };
        // `Info` says the version too; CometBFT's rollback believes the parameters.
        let version = Some(VersionParams { app: SCHEMA_VERSION });
        pb::ResponseInitChain {
            consensus_params: Some(ConsensusParams { version, ..Default::default() }),
            validators: updates.into_iter().map(convert::validator_update).collect(),
            app_hash: staged.app_hash().to_vec().into(),
        }
    }

    fn check_tx(&self, request: pb::RequestCheckTx) -> pb::ResponseCheckTx {
        let mut mempool = lock(&self.0.mempool);
        let height = mempool.height;
        match chain::next_block_context(&mempool.state, height) {
            Some(ctx) => convert::checked(tx::run(&ctx, &mut mempool.state, &request.tx, Mode::Check)),
            None => pb::ResponseCheckTx { code: 1, log: "the chain has not begun".into(), ..Default::default() },
        }
    }

    /// Takes what can be decoded, in the mempool's order, as far as the block has room.
    fn prepare_proposal(&self, request: pb::RequestPrepareProposal) -> pb::ResponsePrepareProposal {
        let mut room = u64::try_from(request.max_tx_bytes).unwrap_or(0);
        let mut gas = consensus::block_gas_max(&self.0.store.snapshot());
        let mut txs = Vec::new();
        for tx in request.txs {
            // As CometBFT counts: the field's key, its length, its bytes.
            let size = 1 + prost::encoding::encoded_len_varint(tx.len() as u64) as u64 + tx.len() as u64;
            let Ok(decoded) = tx::seen::decode(&tx) else { continue };
            let left = (room.checked_sub(size), gas.checked_sub(decoded.fee.gas_limit));
            let (Some(bytes_left), Some(gas_left)) = left else { break };
            (room, gas) = (bytes_left, gas_left);
            txs.push(tx);
        }
        pb::ResponsePrepareProposal { txs }
    }

    /// Accepts exactly what `prepare_proposal` of any honest node makes: transactions that decode, within the block's gas.
    fn process_proposal(&self, request: pb::RequestProcessProposal) -> pb::ResponseProcessProposal {
        use pb::response_process_proposal::ProposalStatus;
        let decoded = tx::ahead::decode(&request.txs);
        // What verifies now need not be verified when the block is decided; a wrong signature makes no proposal wrong.
        let snapshot = self.0.store.snapshot();
        if let Some(constants) = chain::constants(&snapshot) {
            tx::ahead::verify(&snapshot, &constants.chain_id, &decoded);
        }
        let gas = decoded.iter().try_fold(0_u64, |gas, tx| gas.checked_add(tx.as_ref().ok()?.fee.gas_limit));
        let good = gas.is_some_and(|gas| gas <= consensus::block_gas_max(&snapshot));
        let status = if good { ProposalStatus::Accept } else { ProposalStatus::Reject };
        pb::ResponseProcessProposal { status: status.into() }
    }

    /// Votes carry nothing here.
    fn verify_vote_extension(&self, request: pb::RequestVerifyVoteExtension) -> pb::ResponseVerifyVoteExtension {
        use pb::response_verify_vote_extension::VerifyStatus;
        let status = if request.vote_extension.is_empty() { VerifyStatus::Accept } else { VerifyStatus::Reject };
        pb::ResponseVerifyVoteExtension { status: status.into() }
    }

    /// Executes the block.
    fn finalize_block(&self, request: pb::RequestFinalizeBlock) -> pb::ResponseFinalizeBlock {
        let mut consensus = lock(&self.0.consensus);
        let store = &self.0.store;
        let height = u64::try_from(request.height).unwrap_or_else(|_| stop("FinalizeBlock with a negative height"));
        let genesis = if store.height() == 0 { consensus.genesis.clone() } else { None };
        let (genesis, app_hash) = genesis.unwrap_or_else(|| (Changes::default(), store.app_hash()));
        let committed = consensus.committed.take().unwrap_or_else(|| Arc::new(Memo::new(store.snapshot())));
        let base = Overlay::with_changes(&*committed, genesis);
        let commit = Commit {
            proposer: request.proposer_address.to_vec(),
            next_validators_hash: request.next_validators_hash.to_vec(),
            app_hash: app_hash.to_vec(),
            ..convert::commit(request.decided_last_commit, request.misbehavior)
        };
        let (block_time, upgrades) = (convert::time(request.time), &self.0.upgrades);
        let block = Block { height, time: block_time, txs: &request.txs, commit, upgrades };
        let executed = chain::block(&base, block).unwrap_or_else(|fatal| stop(fatal));
        let moment = chain::moment(&base, block_time);
        let written = executed.changes.get([consensus::PARAMS].as_slice()).and_then(Option::as_deref);
        let consensus_param_updates = written.map(convert::consensus_update);
        let mut changes = base.into_changes();
        changes.extend(executed.changes);
        let staged = store.stage_over(&committed, changes, height).unwrap_or_else(|error| stop(error));
        let app_hash = staged.app_hash().to_vec().into();
        (consensus.staged, consensus.committed) = (Some((staged, moment)), Some(committed));
        pb::ResponseFinalizeBlock {
            events: executed.events.into_iter().map(convert::event).collect(),
            tx_results: executed.outcomes.into_iter().map(convert::delivered).collect(),
            validator_updates: executed.validator_updates.into_iter().map(convert::validator_update).collect(),
            consensus_param_updates,
            app_hash,
        }
    }

    fn commit(&self) -> pb::ResponseCommit {
        let mut consensus = lock(&self.0.consensus);
        let (staged, moment) =
            consensus.staged.take().unwrap_or_else(|| stop("Commit without a FinalizeBlock before it"));
        let height = staged.height();
        let (settled, changes) = self.0.store.commit_at(staged, Some(moment)).unwrap_or_else(|error| stop(error));
        let committed = self.0.store.snapshot();
        if let Some(snapshots) = &self.0.snapshots {
            snapshots.committed(&committed);
        }
        // Of the first block what differs from nothing is known, not what differs from the genesis.
        let first = consensus.genesis.take().is_some();
        let known = consensus.committed.take().filter(|_| !first);
        consensus.committed = Some(self.advance(known.map(|known| (known, &changes)), committed));
        let retained = self.retain_height(height, settled);
        pb::ResponseCommit { retain_height: convert::height(retained) }
    }

    fn query(&self, request: pb::RequestQuery) -> pb::ResponseQuery {
        let height = match u64::try_from(request.height) {
            Ok(height) => height,
            Err(_) => return convert::query_error(crate::QueryError::NoState("a negative height".into()), 0),
        };
        let snapshot = self.0.store.snapshot();
        let index = self.0.index.get().map(|index| &**index as &dyn Index);
        if let Some(found) = query::of_node(index, &request.path, &request.data) {
            let answered = found.map(|value| Answered { value, height: snapshot.height(), proof: None });
            return convert::answered(answered, &[], snapshot.height());
        }
        let answered = query::run(&snapshot, &request.path, &request.data, height, request.prove);
        convert::answered(answered, &request.data, snapshot.height())
    }

    fn list_snapshots(&self) -> pb::ResponseListSnapshots {
        let list = self.0.snapshots.as_ref().map(Snapshots::list).unwrap_or_default();
        pb::ResponseListSnapshots { snapshots: list.into_iter().map(convert::snapshot).collect() }
    }

    fn load_snapshot_chunk(&self, request: pb::RequestLoadSnapshotChunk) -> pb::ResponseLoadSnapshotChunk {
        let snapshots = self.0.snapshots.as_ref().filter(|_| request.format == snapshots::FORMAT);
        let chunk = snapshots.and_then(|snapshots| snapshots.chunk(request.height, request.chunk));
        pb::ResponseLoadSnapshotChunk { chunk: chunk.unwrap_or_default().into() }
    }

    fn offer_snapshot(&self, request: pb::RequestOfferSnapshot) -> pb::ResponseOfferSnapshot {
        let offered = lock(&self.0.joining).offer(&self.0.store, request);
        pb::ResponseOfferSnapshot { result: offered.into() }
    }

    fn apply_snapshot_chunk(&self, request: pb::RequestApplySnapshotChunk) -> pb::ResponseApplySnapshotChunk {
        let (answer, restored) = lock(&self.0.joining).apply(request);
        if restored {
            let committed = Some(self.advance(None, self.0.store.snapshot()));
            *lock(&self.0.consensus) = Consensus { committed, ..Consensus::default() };
        }
        answer
    }
}
