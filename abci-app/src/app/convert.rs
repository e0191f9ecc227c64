//! Between the ledger's types and CometBFT's. The only place, with the server, where `prost` 0.14 types appear.

use prost_014::Message as _;
use tendermint_proto::google::protobuf::Timestamp;
use tendermint_proto::v0_38::abci as pb;
use tendermint_proto::v0_38::crypto::{ProofOp, ProofOps, PublicKey, public_key::Sum};
use tendermint_proto::v0_38::types::{BlockIdFlag, ConsensusParams};

use polylink_protocol::Address;

use super::snapshots::{self, Manifest};
use crate::context::{BlockTime, Commit, Event, Misbehavior, ValidatorUpdate, Vote};
use crate::error::QueryError;
use crate::query::Answered;
use crate::store::PROOF_OP_TYPE;
use crate::tx::Outcome;

/// Heights are positive and far below 2^63.
pub(super) fn height(height: u64) -> i64 {
    i64::try_from(height).unwrap_or(i64::MAX)
}

fn gas(gas: u64) -> i64 {
    i64::try_from(gas).unwrap_or(i64::MAX)
}

pub(super) fn time(time: Option<Timestamp>) -> BlockTime {
    time.map_or_else(BlockTime::default, |time| BlockTime { seconds: time.seconds, nanos: time.nanos })
}

/// A validator's address and votes. CometBFT's addresses have 20 bytes.
fn validator(validator: Option<pb::Validator>) -> Option<(Address, u64)> {
    let validator = validator?;
    let address = validator.address.as_ref().try_into().ok().map(Address)?;
    Some((address, u64::try_from(validator.power).ok()?))
}

/// Who signed the last block, in the order of the set, and what is proved of whom. A vote for no block is a signature too.
pub(super) fn commit(last: Option<pb::CommitInfo>, misbehavior: Vec<pb::Misbehavior>) -> Commit {
    let votes = last.map(|last| last.votes).unwrap_or_default().into_iter().filter_map(|vote| {
        let signed = vote.block_id_flag != BlockIdFlag::Absent as i32;
        let (validator, power) = validator(vote.validator)?;
        Some(Vote { validator, power, signed })
    });
    let misbehavior = misbehavior.into_iter().filter_map(|found| {
        let (validator, power) = validator(found.validator)?;
        let height = u64::try_from(found.height).ok()?;
        Some(Misbehavior { validator, power, height, time: time(found.time) })
    });
    Commit { votes: votes.collect(), misbehavior: misbehavior.collect(), ..Commit::default() }
}

pub(super) fn event(event: Event) -> pb::Event {
    let kind = event.kind.to_owned();
    let attribute = |(key, value, index)| pb::EventAttribute { key, value, index };
    pb::Event { r#type: kind, attributes: event.into_attributes().map(attribute).collect() }
}

pub(super) fn validator_update(update: ValidatorUpdate) -> pb::ValidatorUpdate {
    pb::ValidatorUpdate {
        pub_key: Some(PublicKey { sum: Some(Sum::Ed25519(update.public_key.to_vec())) }),
        power: i64::try_from(update.power).unwrap_or(i64::MAX),
    }
}

/// The parameters of consensus as the state keeps them, if any are named: without the version, which is the program's.
pub(super) fn consensus_params(params: ConsensusParams) -> Option<Vec<u8>> {
    let kept = ConsensusParams { version: None, ..params };
    (kept != ConsensusParams::default()).then(|| kept.encode_to_vec())
}

/// What the state keeps, as CometBFT takes it: parts that are not named stay as they are.
pub(super) fn consensus_update(kept: &[u8]) -> ConsensusParams {
    ConsensusParams::decode(kept).expect("parameters are written encoded")
}

/// The longest log, in bytes; what is longer ends in `…`.
const LOG_BYTES_MAX: usize = 1_000;

/// A refusal as logs show it: one line of bounded length, whatever of the request it repeats. Logs are no part of what
/// nodes agree on.
fn log(error: &impl std::fmt::Display) -> String {
    // Marks that change the order in which a terminal shows what comes after.
    let turns =
        |c: char| matches!(c, '\u{061c}' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut line = String::new();
    for c in error.to_string().chars() {
        if line.len() >= LOG_BYTES_MAX {
            line.push('…');
            break;
        }
        if c.is_control() || turns(c) { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// Success has code 0 and an empty log.
pub(super) fn delivered(outcome: Outcome) -> pb::ExecTxResult {
    let Outcome { result, gas_wanted, gas_used, events } = outcome;
    let done = pb::ExecTxResult {
        gas_wanted: gas(gas_wanted),
        gas_used: gas(gas_used),
        events: events.into_iter().map(event).collect(),
        ..Default::default()
    };
    match result {
        Ok(data) => pb::ExecTxResult { data: data.into(), ..done },
        Err(error) => {
            let (codespace, code) = error.code();
            pb::ExecTxResult { code, codespace: codespace.to_owned(), log: log(&error), ..done }
        }
    }
}

pub(super) fn checked(outcome: Outcome) -> pb::ResponseCheckTx {
    let result = delivered(outcome);
    pb::ResponseCheckTx {
        code: result.code,
        data: result.data,
        log: result.log,
        info: result.info,
        gas_wanted: result.gas_wanted,
        gas_used: result.gas_used,
        events: result.events,
        codespace: result.codespace,
    }
}

pub(super) fn snapshot(manifest: Manifest) -> pb::Snapshot {
    pb::Snapshot {
        height: manifest.height,
        format: snapshots::FORMAT,
        chunks: u32::try_from(manifest.chunks.len()).unwrap_or(u32::MAX),
        hash: manifest.hash().to_vec().into(),
        metadata: manifest.metadata().into(),
    }
}

pub(super) fn query_error(error: QueryError, at: u64) -> pb::ResponseQuery {
    let (codespace, code) = error.code();
    pb::ResponseQuery {
        code,
        codespace: codespace.to_owned(),
        log: log(&error),
        height: height(at),
        ..Default::default()
    }
}

pub(super) fn answered(answered: Result<Answered, QueryError>, key: &[u8], newest: u64) -> pb::ResponseQuery {
    match answered {
        Err(error) => query_error(error, newest),
        Ok(answered) => pb::ResponseQuery {
            key: if answered.proof.is_some() { key.to_vec().into() } else { Default::default() },
            proof_ops: answered.proof.map(|proof| ProofOps {
                ops: vec![ProofOp { r#type: PROOF_OP_TYPE.into(), data: proof.encode(), key: proof.key }],
            }),
            value: answered.value.into(),
            height: height(answered.height),
            ..Default::default()
        },
    }
}
