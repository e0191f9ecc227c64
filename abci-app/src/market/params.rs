//! The market's parameters: versions, each with the epoch from which it holds.

use polylink_protocol::Amount;
use polylink_protocol::market_v1::Params;

use super::keys;
use super::records::{save, uplk};
use crate::error::GenesisError;
use crate::store::{Order, StateRead, StateWrite};
use polylink_protocol::Message as _;

/// The longest vesting, in epochs: it bounds what one reward writes and one claw-back reads.
pub const VESTING_EPOCHS_MAX: u64 = 64;

/// The parameters of a network that names none. Epochs of 20 blocks: 5 receipts, 4 beacon, 5 commit, 4 reveal, 2 settle.
pub fn default() -> Params {
    Params {
        version: 1,
        activation_epoch: 0,
        epoch_blocks: 20,
        receipts_window_blocks: 5,
        beacon_window_blocks: 4,
        commit_window_blocks: 5,
        reveal_window_blocks: 4,
        fee_burn_bps: 1_000,
        kappa_bps: 5_000,
        judge_share_bps: 3_000,
        vesting_epochs: 8,
        min_worker_bond: "100000000".into(),
        unbonding_epochs: 72,
        dispute_epochs: 4,
        max_window: 256,
        max_pots_settled_per_block: 64,
        emission_per_epoch: "1000000000".into(),
    }
}

/// Refuses parameters that the ledger could not run by.
pub fn check(params: &Params) -> Result<(), GenesisError> {
    let wrong = |field: &str, reason: &str| Err(GenesisError::invalid(format!("market.params.{field}"), reason));
    let windows = [
        ("receipts_window_blocks", params.receipts_window_blocks),
        ("beacon_window_blocks", params.beacon_window_blocks),
        ("commit_window_blocks", params.commit_window_blocks),
        ("reveal_window_blocks", params.reveal_window_blocks),
    ];
    for (field, blocks) in windows {
        if !(1..=1_000_000).contains(&blocks) {
            return wrong(field, "1 to 1,000,000 blocks are expected");
        }
    }
    if windows.iter().map(|(_, blocks)| blocks).sum::<u64>() >= params.epoch_blocks {
        return wrong("epoch_blocks", "more blocks than the four windows are expected: the rest is for the settlement");
    }
    if params.epoch_blocks > 10_000_000 {
        return wrong("epoch_blocks", "at most 10,000,000 blocks are expected");
    }
    if params.fee_burn_bps > 10_000 || params.judge_share_bps > 10_000 {
        return wrong("fee_burn_bps, judge_share_bps", "at most 10,000 basis points are expected");
    }
    if params.kappa_bps >= 10_000 {
        return wrong("kappa_bps", "below 10,000 is expected, else paying oneself would farm emission");
    }
    if !(1..=VESTING_EPOCHS_MAX).contains(&params.vesting_epochs) {
        return wrong("vesting_epochs", "1 to 64 epochs are expected");
    }
    // With a dispute window of one epoch a session stands until the receipts of its last epoch are committed.
    if [params.unbonding_epochs, params.dispute_epochs].iter().any(|epochs| !(1..=1_000_000).contains(epochs)) {
        return wrong("unbonding_epochs, dispute_epochs", "1 to 1,000,000 epochs are expected");
    }
    if !(1..=65_536).contains(&params.max_window) {
        return wrong("max_window", "1 to 65,536 answers are expected");
    }
    if !(1..=1_024).contains(&params.max_pots_settled_per_block) {
        return wrong("max_pots_settled_per_block", "1 to 1,024 pots are expected");
    }
    for (field, text) in
        [("min_worker_bond", &params.min_worker_bond), ("emission_per_epoch", &params.emission_per_epoch)]
    {
        if let Err(error) = text.parse::<Amount>() {
            return wrong(field, &error.to_string());
        }
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

/// The least bond of a worker.
pub fn min_bond(params: &Params) -> Amount {
    uplk(&params.min_worker_bond)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryState;

    #[test]
    fn versions_hold_from_their_epoch() {
        let mut state = MemoryState::default();
        assert_eq!(at(&state, 7), default());
        for (version, activation_epoch) in [(1, 0), (2, 5)] {
            put(&mut state, &Params { version, activation_epoch, ..default() });
        }
        assert_eq!([0, 4, 5, u64::MAX].map(|e| at(&state, e).version), [1, 1, 2, 2]);
    }

    #[test]
    fn the_defaults_run_and_nonsense_is_refused() {
        check(&default()).unwrap();
        let cases: [fn(&mut Params); 9] = [
            |p| p.dispute_epochs = 0,
            |p| p.epoch_blocks = 18,
            |p| p.beacon_window_blocks = 0,
            |p| p.kappa_bps = 10_000,
            |p| p.fee_burn_bps = 10_001,
            |p| p.vesting_epochs = 65,
            |p| p.max_pots_settled_per_block = 0,
            |p| p.min_worker_bond = "-1".into(),
            |p| p.max_window = 0,
        ];
        for (number, alter) in cases.iter().enumerate() {
            let mut params = default();
            alter(&mut params);
            assert!(check(&params).is_err(), "case {number}");
        }
    }
}
