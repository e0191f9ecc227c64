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

/// The longest windows of reports, in epochs.
pub const REPORT_EPOCHS_MAX: u64 = 64;

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
        price_band_low_bps: 4_000,
        price_band_high_bps: 6_000,
        // A whole band's distance from it, which is no use or full use, makes the largest step.
        price_gain_bps: 3_125,
        price_step_max_bps: 1_250,
        price_floor_bps: 1_000,
        capacity_tokens_per_plk: 10_000,
        report_epochs: 4,
        report_answer_epochs: 4,
        report_deposit: "100000".into(),
        slash_omission_bps: 500,
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
    check_prices(params)?;
    if params.report_epochs > REPORT_EPOCHS_MAX || params.report_answer_epochs > REPORT_EPOCHS_MAX {
        return wrong("report_epochs, report_answer_epochs", "at most 64 epochs are expected");
    }
    if params.report_epochs > 0 && params.report_answer_epochs == 0 {
        return wrong("report_answer_epochs", "1 to 64 epochs are expected: the worker must be able to answer");
    }
    if params.slash_omission_bps > 10_000 {
        return wrong("slash_omission_bps", "at most 10,000 basis points are expected");
    }
    // Empty in parameters that are older than reports, of which they take none.
    let deposit =
        if params.report_epochs == 0 && params.report_deposit.is_empty() { "0" } else { &params.report_deposit };
    for (field, text) in [
        ("min_worker_bond", params.min_worker_bond.as_str()),
        ("emission_per_epoch", &params.emission_per_epoch),
        ("report_deposit", deposit),
    ] {
        if let Err(error) = text.parse::<Amount>() {
            return wrong(field, &error.to_string());
        }
    }
    Ok(())
}

/// Those of the price; with a gain of 0, as parameters without them have, prices are fixed and the others not looked at.
fn check_prices(params: &Params) -> Result<(), GenesisError> {
    let wrong = |field: &str, reason: &str| Err(GenesisError::invalid(format!("market.params.{field}"), reason));
    if params.price_gain_bps == 0 {
        return Ok(());
    }
    if params.price_gain_bps > 100_000 {
        return wrong("price_gain_bps", "at most 100,000 basis points are expected");
    }
    if params.price_band_low_bps > params.price_band_high_bps || params.price_band_high_bps > 10_000 {
        return wrong("price_band_low_bps, price_band_high_bps", "ascending, at most 10,000 basis points are expected");
    }
    if !(1..=5_000).contains(&params.price_step_max_bps) {
        return wrong("price_step_max_bps", "1 to 5,000 basis points are expected");
    }
    if !(1..=10_000).contains(&params.price_floor_bps) {
        return wrong("price_floor_bps", "1 to 10,000 basis points are expected");
    }
    if params.capacity_tokens_per_plk == 0 {
        return wrong("capacity_tokens_per_plk", "more than 0 tokens are expected");
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
        let cases: [fn(&mut Params); 17] = [
            |p| p.dispute_epochs = 0,
            |p| p.epoch_blocks = 18,
            |p| p.beacon_window_blocks = 0,
            |p| p.kappa_bps = 10_000,
            |p| p.fee_burn_bps = 10_001,
            |p| p.vesting_epochs = 65,
            |p| p.max_pots_settled_per_block = 0,
            |p| p.min_worker_bond = "-1".into(),
            |p| p.max_window = 0,
            |p| p.price_gain_bps = 100_001,
            |p| p.price_band_low_bps = 6_001,
            |p| p.price_step_max_bps = 0,
            |p| p.price_floor_bps = 0,
            |p| p.capacity_tokens_per_plk = 0,
            |p| p.report_answer_epochs = 0,
            |p| p.report_deposit = "".into(),
            |p| p.slash_omission_bps = 10_001,
        ];
        for (number, alter) in cases.iter().enumerate() {
            let mut params = default();
            alter(&mut params);
            assert!(check(&params).is_err(), "case {number}");
        }
    }
}
