//! The beacon: one VRF proof of every judge of the profile, after the receipts are committed.
//!
//! `B(e) = H(B(e') ‖ sorted outputs)` where e' is the last epoch with a beacon of the profile; before the first one
//! stands the genesis beacon. No block hash goes in, so that a proposer chooses nothing.

use polylink_protocol::tiqe::{VRF_OUTPUT_BYTES, genesis_beacon, vrf_input, vrf_verify};
use polylink_protocol::tiqe_v1::{MsgSubmitBeacon, MsgSubmitBeaconResponse};
use polylink_protocol::{Address, Digest};

use super::error::TiqeError;
use super::{judges, keys, round};
use crate::context::Context;
use crate::error::TxError;
use crate::market::POT_RETENTION_EPOCHS;
use crate::market::models;
use crate::market::schedule::Window;
use crate::modules::Handle;
use crate::store::{Order, StateRead, StateWrite};

/// The newest beacon of the profile at or before `epoch`; the genesis beacon where there is none.
pub fn at(state: &dyn StateRead, chain_id: &str, profile: &Digest, epoch: u64) -> Digest {
    let start = keys::beacons(profile).finish();
    let end = keys::beacons(profile).u64(epoch).u8(0).finish();
    let newest = state.iter_range(&start, Some(&end), Order::Descending).next();
    newest.and_then(|(_, value)| Digest::from_slice(&value)).unwrap_or_else(|| genesis_beacon(chain_id, profile))
}

/// The beacon that the round over `epoch` continues.
pub(super) fn before(state: &dyn StateRead, chain_id: &str, profile: &Digest, epoch: u64) -> Digest {
    epoch.checked_sub(1).map_or_else(|| genesis_beacon(chain_id, profile), |last| at(state, chain_id, profile, last))
}

/// Writes B(epoch) and drops beacons past their retention.
pub(super) fn put(state: &mut dyn StateWrite, profile: &Digest, epoch: u64, beacon: &Digest) {
    state.put(keys::beacons(profile).u64(epoch).finish(), beacon.to_vec());
    let prefix = keys::beacons(profile).finish();
    let limit = keys::beacons(profile).u64(epoch.saturating_sub(POT_RETENTION_EPOCHS)).finish();
    let old: Vec<Vec<u8>> =
        state.iter_prefix(&prefix).take(2).map(|(key, _)| key).take_while(|key| *key < limit).collect();
    for key in old {
        state.delete(key);
    }
}

/// The outputs of a round so far, by judge.
pub(super) fn outputs(state: &dyn StateRead, epoch: u64, profile: &Digest) -> Vec<(Address, [u8; VRF_OUTPUT_BYTES])> {
    let prefix = keys::of_round(keys::OUTPUT, epoch, profile);
    state
        .iter_prefix(&prefix)
        .filter_map(|(key, value)| Some((keys::last_address(&key)?, value.try_into().ok()?)))
        .collect()
}

impl Handle for MsgSubmitBeacon {
    const AMINO_NAME: &'static str = "polylink/tiqe/SubmitBeacon";
    type Response = MsgSubmitBeaconResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.judge.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        models::digest(&self.profile_digest)?;
        Ok(())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgSubmitBeaconResponse, TxError> {
        let (operator, profile): (Address, Digest) = (self.judge.parse()?, models::digest(&self.profile_digest)?);
        round::in_window(ctx, state, "beacon proofs", Window::Beacon, self.epoch, &profile)?;
        let judge = judges::acting(state, &operator, &profile, ctx.epoch)?;
        let key = keys::in_round(keys::OUTPUT, self.epoch, &profile, &operator);
        if state.contains(&key) {
            return Err(TiqeError::Twice("beacon proof").into());
        }
        ctx.charge_proofs(2)?;
        let previous = before(state, &ctx.chain_id, &profile, self.epoch);
        let input = vrf_input(&ctx.chain_id, &previous, self.epoch, &profile);
        let output =
            vrf_verify(&judge.vrf_key, &input, &self.proof).map_err(|error| TiqeError::Proof(error.to_string()))?;
        state.put(key, output.to_vec());
        ctx.emit(
            "submit_beacon",
            [("judge", operator.account()), ("profile", profile.to_string()), ("epoch", self.epoch.to_string())],
        );
        Ok(MsgSubmitBeaconResponse {})
    }
}
