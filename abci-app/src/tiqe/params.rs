//! The audit's parameters: versions, each with the epoch from which it holds.

use polylink_protocol::tiqe_v1::Params;
use polylink_protocol::{Amount, Message as _};

use super::{TRIAL_SAMPLES_MAX, keys};
use crate::error::GenesisError;
use crate::market::records::save;
use crate::store::{Order, StateRead, StateWrite};

/// The most of private money that audited money may vouch for: ten times as much.
const PRIVATE_SHARE_BPS_MAX: u32 = 100_000;

/// The parameters of a network that names none.
///
/// The threshold of 24 nats is above ln 10^9 = 20.7; evidence is clipped to ±6 nats per answer, so that no fewer than
/// four answers open a trial. An answer that is not disclosed counts 2 nats, so that three rounds of four open one.
pub fn default() -> Params {
    Params {
        version: 1,
        activation_epoch: 0,
        seats: 7,
        beacon_quorum: 2,
        samples_per_pot: 4,
        ticket_bond: "10000000".into(),
        activation_delay_epochs: 2,
        lambda_bps: 3_000,
        cusum_threshold_milli: 24_000,
        evidence_clip_milli: 6_000,
        slash_worker_bps: 5_000,
        slash_judge_bps: 100,
        trial_epochs: 3,
        alpha_floor_bps: 3_000,
        trial_samples: 8,
        missing_evidence_milli: 2_000,
        private_share_bps: 10_000,
        appeal_epochs: 2,
        appeal_deposit: "10000000".into(),
    }
}

/// Refuses parameters that the ledger could not run by.
pub fn check(params: &Params) -> Result<(), GenesisError> {
    let wrong = |field: &str, reason: &str| Err(GenesisError::invalid(format!("tiqe.params.{field}"), reason));
    if !(1..=64).contains(&params.seats) {
        return wrong("seats", "1 to 64 are expected");
    }
    if !(1..=64).contains(&params.beacon_quorum) {
        return wrong("beacon_quorum", "1 to 64 are expected");
    }
    if !(1..=64).contains(&params.samples_per_pot) || !(1..=TRIAL_SAMPLES_MAX).contains(&params.trial_samples) {
        return wrong("samples_per_pot, trial_samples", "1 to 64 samples are expected");
    }
    match params.ticket_bond.parse::<Amount>() {
        Ok(bond) if !bond.is_zero() && bond.0 <= u128::MAX >> 32 => {}
        _ => return wrong("ticket_bond", "an amount of uplk above 0 is expected"),
    }
    let ratios = [params.lambda_bps, params.slash_worker_bps, params.slash_judge_bps, params.alpha_floor_bps];
    if ratios.iter().any(|bps| *bps > 10_000) {
        return wrong("lambda_bps, slash_worker_bps, slash_judge_bps, alpha_floor_bps", "at most 10,000 is expected");
    }
    if !(1..=1_000_000).contains(&params.evidence_clip_milli)
        || params.cusum_threshold_milli < params.evidence_clip_milli
    {
        return wrong("cusum_threshold_milli", "at least the clip is expected, and a clip of 1 to 1,000,000");
    }
    if params.private_share_bps > PRIVATE_SHARE_BPS_MAX {
        return wrong("private_share_bps", "at most 100,000 is expected, ten times what is audited");
    }
    if params.appeal_epochs > 1_000 || Amount::parse_or_zero(&params.appeal_deposit).is_err() {
        return wrong("appeal_epochs, appeal_deposit", "at most 1,000 epochs and an amount of uplk are expected");
    }
    if params.missing_evidence_milli > params.evidence_clip_milli {
        return wrong("missing_evidence_milli", "at most the clip is expected");
    }
    if !(1..=1_000).contains(&params.trial_epochs) || params.activation_delay_epochs > 1_000_000 {
        return wrong("trial_epochs, activation_delay_epochs", "1 to 1,000 and at most 1,000,000 epochs are expected");
    }
    Ok(())
}

/// Writes a version.
pub fn put(state: &mut dyn StateWrite, params: &Params) {
    save(state, keys::params(params.activation_epoch), params);
}

/// The newest version that holds in `epoch`; the defaults where there is none.
pub fn at(state: &dyn StateRead, epoch: u64) -> Params {
    let end = keys::params(epoch.saturating_add(1));
    let newest = state.iter_range(&[keys::PARAMS], Some(&end), Order::Descending).next();
    newest.map_or_else(default, |(_, value)| {
        Params::decode(value.as_slice()).expect("the state holds what this module wrote")
    })
}
