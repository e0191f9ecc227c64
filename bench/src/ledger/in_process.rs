//! The ledger without a network: its ABCI application is called as CometBFT calls it.
//!
//! CheckTx of the next block's transactions runs beside FinalizeBlock, as on a node's mempool and consensus connections;
//! nothing runs beside Commit. Signing comes before, and its time and processor time count for nothing.

use std::time::{Duration, Instant};

use bytes::Bytes;
use polylink_protocol::cosmos::cosmos::auth::v1beta1::{BaseAccount, QueryAccountRequest, QueryAccountResponse};
use polylink_protocol::{Address, Message};
use tendermint_abci::Application;
use tendermint_proto::google::protobuf::Timestamp;
use tendermint_proto::v0_38::abci as pb;
use tendermint_proto::v0_38::types::BlockIdFlag;

use super::accounts::{Sends, Signer, filler_key, sender_key, senders};
use super::{MIB, Options};
use crate::BenchError;
use crate::process::{self, failed};
use crate::row::Row;
use crate::stats::Summary;

/// Time of the genesis, in Unix seconds; blocks are a second apart.
const GENESIS_SECONDS: i64 = 1_700_000_000;
/// Receivers that a transaction makes.
const FILL_OUTPUTS: u64 = 3_000;
/// Transactions of a block that makes receivers.
const FILL_TXS: u64 = 10;
/// The power of the one validator in its votes.
const POWER: i64 = 1_000_000;

struct Driver<'a, L> {
    ledger: &'a L,
    chain_id: String,
    height: i64,
    /// The consensus address of the validator.
    validator: Bytes,
}

fn wrong(reason: impl std::fmt::Display) -> BenchError {
    failed("ledger", reason)
}

impl<'a, L: Application + Sync> Driver<'a, L> {
    fn new(ledger: &'a L, chain_id: &str, validator: Address) -> Self {
        let height = ledger.info(pb::RequestInfo::default()).last_block_height;
        Self { ledger, chain_id: chain_id.to_owned(), height, validator: validator.0.to_vec().into() }
    }

    fn time(&self) -> Option<Timestamp> {
        Some(Timestamp { seconds: GENESIS_SECONDS + self.height, nanos: 0 })
    }

    fn init_chain(&self, app_state: Bytes) {
        self.ledger.init_chain(pb::RequestInitChain {
            time: self.time(),
            chain_id: self.chain_id.clone(),
            app_state_bytes: app_state,
            initial_height: 1,
            ..Default::default()
        });
    }

    /// Executes the next block, whose transactions must all succeed.
    fn finalize(&mut self, txs: Vec<Bytes>) -> Result<(), BenchError> {
        self.height += 1;
        let validator = pb::Validator { address: self.validator.clone(), power: POWER };
        let vote = pb::VoteInfo { validator: Some(validator), block_id_flag: BlockIdFlag::Commit.into() };
        let votes = if self.height == 1 { Vec::new() } else { vec![vote] };
        let response = self.ledger.finalize_block(pb::RequestFinalizeBlock {
            txs,
            decided_last_commit: Some(pb::CommitInfo { round: 0, votes }),
            height: self.height,
            time: self.time(),
            ..Default::default()
        });
        match response.tx_results.iter().find(|result| result.code != 0) {
            Some(result) => Err(wrong(format!("a transaction failed in block {}: {}", self.height, result.log))),
            None => Ok(()),
        }
    }

    fn signer(&self, key: polylink_protocol::keys::AccountKey) -> Result<Signer, BenchError> {
        let address = key.address().account();
        let answer = self.ledger.query(pb::RequestQuery {
            path: "/cosmos.auth.v1beta1.Query/Account".into(),
            data: QueryAccountRequest { address }.encode_to_vec().into(),
            ..Default::default()
        });
        if answer.code != 0 {
            return Err(wrong(answer.log));
        }
        let account = QueryAccountResponse::decode(answer.value).map_err(wrong)?.account.unwrap_or_default();
        let account = BaseAccount::decode(account.value.as_slice()).map_err(wrong)?;
        Ok(Signer::new(key, &self.chain_id, account.account_number, account.sequence))
    }
}

/// Makes the state of so many accounts: the first ones by `app_state`, the others by transactions.
///
/// # Errors
/// [`BenchError::Contestant`] where the ledger refuses.
pub fn fill<L: Application + Sync>(
    ledger: &L,
    chain_id: &str,
    validator: Address,
    app_state: Bytes,
    accounts: u64,
) -> Result<(), BenchError> {
    let mut driver = Driver::new(ledger, chain_id, validator);
    if driver.height == 0 {
        driver.init_chain(app_state);
        driver.finalize(Vec::new())?;
        ledger.commit();
    }
    let mut filler = driver.signer(filler_key())?;
    // Each block before has made as many.
    let per_block = FILL_OUTPUTS * FILL_TXS;
    let mut next = senders(accounts) + filler.sequence * FILL_OUTPUTS;
    while next < accounts {
        let end = (next + per_block).min(accounts);
        let starts = (next..end).step_by(FILL_OUTPUTS as usize);
        let txs = starts.map(|start| filler.fill(start..(start + FILL_OUTPUTS).min(end)).into()).collect();
        driver.finalize(txs)?;
        ledger.commit();
        next = end;
    }
    Ok(())
}

/// What the blocks of one run took.
#[derive(Default)]
struct Seen {
    check: Duration,
    checked: usize,
    finalize_ms: Vec<f64>,
    commit_ms: Vec<f64>,
    block_ms: Vec<f64>,
    keys: Vec<f64>,
}

fn ms(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}

fn check_all<L: Application + Sync>(ledger: &L, txs: &[Bytes]) -> Result<Duration, BenchError> {
    let begun = Instant::now();
    for tx in txs {
        let response = ledger.check_tx(pb::RequestCheckTx { tx: tx.clone(), r#type: 0 });
        if response.code != 0 {
            return Err(wrong(format!("CheckTx refused a send: {}", response.log)));
        }
    }
    Ok(begun.elapsed())
}

/// Runs blocks of sends on the state in this process. `keys_staged` says how many keys of the state the block between
/// its FinalizeBlock and its Commit changes.
///
/// # Errors
/// [`BenchError::Contestant`] where a transaction is refused, or a block has more senders than there are.
pub fn measure<L: Application + Sync>(
    ledger: &L,
    keys_staged: impl Fn() -> usize,
    chain_id: &str,
    validator: Address,
    accounts: u64,
    options: &Options,
) -> Result<Vec<Row>, BenchError> {
    let per_block = options.block_txs;
    let mut driver = Driver::new(ledger, chain_id, validator);
    let have = senders(accounts);
    // CheckTx of a block runs on the state before the one that is executed meanwhile: no sender is in both.
    if 2 * per_block as u64 > have {
        return Err(BenchError::Option {
            option: "--block-txs",
            reason: format!("twice as many senders are needed, there are {have}"),
        });
    }
    let signers = (0..have).map(|number| driver.signer(sender_key(number))).collect::<Result<Vec<_>, _>>()?;
    let mut sends = Sends::new(signers, accounts, driver.height as u64);
    // The first block finds nothing in memory.
    let blocks: Vec<Vec<Bytes>> =
        (0..=options.blocks).map(|_| (0..per_block).map(|_| Bytes::from(sends.sign_next())).collect()).collect();
    let mut seen = Seen::default();
    check_all(ledger, &blocks[0])?;
    let mut begun = Instant::now();
    let mut cpu = process::cpu_seconds(None);
    for at in 0..blocks.len() {
        if at == 1 {
            (begun, cpu, seen) = (Instant::now(), process::cpu_seconds(None), Seen::default());
        }
        let block = Instant::now();
        let next = blocks.get(at + 1).map_or(&[][..], Vec::as_slice);
        std::thread::scope(|scope| {
            let checking = scope.spawn(|| check_all(ledger, next));
            driver.finalize(blocks[at].clone())?;
            seen.finalize_ms.push(ms(block));
            let took = checking.join().map_err(|_| wrong("CheckTx panicked"))??;
            (seen.check, seen.checked) = (seen.check + took, seen.checked + next.len());
            Ok::<(), BenchError>(())
        })?;
        seen.keys.push(keys_staged() as f64);
        let commit = Instant::now();
        ledger.commit();
        seen.commit_ms.push(ms(commit));
        seen.block_ms.push(ms(block));
    }
    let (seconds, cpu) = (begun.elapsed().as_secs_f64(), process::cpu_seconds(None) - cpu);
    Ok(rows(accounts, seen, seconds, cpu, options))
}

fn rows(accounts: u64, seen: Seen, seconds: f64, cpu: f64, options: &Options) -> Vec<Row> {
    let sent = (options.blocks * options.block_txs) as f64;
    let name = |what: &str| format!("ledger.in_process_{accounts}.{what}");
    let keys = Summary::of(seen.keys.iter().map(|keys| keys / options.block_txs as f64).collect());
    let one = |what: &str, value: f64, unit: &str| Row::new(name(what), value, unit, 1, 0.0);
    let check_us = seen.check.as_secs_f64() * 1e6 / seen.checked.max(1) as f64;
    let mut rows = vec![
        one("rate", sent / seconds, "tx/s"),
        one("cpu_per_tx", cpu * 1e6 / sent, "µs"),
        one("check_tx", check_us, "µs"),
        Row::new(name("keys_per_tx"), keys.mean, "keys", keys.count, keys.deviation),
    ];
    for (what, samples) in [("finalize", seen.finalize_ms), ("commit", seen.commit_ms), ("block", seen.block_ms)] {
        rows.extend(Row::percentiles(&name(what), "ms", &Summary::of(samples)));
    }
    if let Some(bytes) = process::peak_bytes(None) {
        rows.push(one("peak_memory", bytes / MIB, "MiB"));
    }
    rows
}
