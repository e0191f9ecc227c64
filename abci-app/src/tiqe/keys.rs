//! The audit's keys (see `docs/state-keys.md`). What is dropped by epoch is keyed epoch first.

use polylink_protocol::{Address, Digest};

use crate::store::KeyBuilder;

/// `0x60 ‖ activation epoch` → `tiqe.v1.Params`.
pub const PARAMS: u8 = 0x60;
/// `0x61 ‖ operator` → `tiqe.v1.Judge`.
pub const JUDGE: u8 = 0x61;
/// `0x62 ‖ profile ‖ operator` → 1: who judges a profile.
pub const JUDGE_OF: u8 = 0x62;
/// `0x63 ‖ VRF key` → operator, 20 bytes.
pub const VRF_KEY: u8 = 0x63;
/// `0x64 ‖ profile ‖ epoch` → B(epoch), 32 bytes.
pub const BEACON: u8 = 0x64;
/// `0x65 ‖ epoch ‖ profile` → `tiqe.v1.Round` without outputs and seats, which have keys of their own.
pub const ROUND: u8 = 0x65;
/// `0x66 ‖ stage ‖ epoch ‖ profile` → 1: rounds that wait for the end of a window.
pub const STAGE: u8 = 0x66;
/// `0x67 ‖ epoch ‖ profile ‖ judge` → VRF output β, 64 bytes.
pub const OUTPUT: u8 = 0x67;
/// `0x68 ‖ epoch ‖ profile ‖ judge` → `tiqe.v1.Seat` without its scores.
pub const SEAT: u8 = 0x68;
/// `0x69 ‖ epoch ‖ profile ‖ judge` → `tiqe.v1.Scores`, as revealed.
pub const REVEAL: u8 = 0x69;
/// `0x6a ‖ epoch ‖ profile ‖ worker` → α of a scored pot in basis points, 4 bytes.
pub const ALPHA: u8 = 0x6a;
/// `0x6b ‖ worker ‖ profile` → `tiqe.v1.Quality`.
pub const QUALITY: u8 = 0x6b;
/// `0x6c ‖ profile` → the profile's running quality in 1/1,000 basis point, 8 bytes.
pub const BASELINE: u8 = 0x6c;
/// `0x6d ‖ id` → `tiqe.v1.Trial` without its votes.
pub const TRIAL: u8 = 0x6d;
/// `0x6e` → the next trial's id, 8 bytes.
pub const TRIAL_NEXT: u8 = 0x6e;
/// `0x6f ‖ worker ‖ profile` → id of the open trial, 8 bytes.
pub const OPEN_TRIAL: u8 = 0x6f;
/// `0x70 ‖ deadline epoch ‖ id` → 1: trials that wait for their verdict (deadline 0: all have voted).
pub const TRIAL_DUE: u8 = 0x70;
/// `0x71 ‖ id ‖ judge` → `tiqe.v1.TrialVote`.
pub const VOTE: u8 = 0x71;
/// `0x72 ‖ worker ‖ id` → 1: all trials of a worker.
pub const TRIAL_OF: u8 = 0x72;
/// `0x73 ‖ profile ‖ id` → 1: trials that wait for a beacon.
pub const TRIAL_WAITING: u8 = 0x73;
/// `0x74 ‖ release epoch ‖ operator` → 1: judges that have left.
pub const JUDGE_UNBONDING: u8 = 0x74;
/// `0x75 ‖ epoch of the verdict ‖ id` → 1: decided trials, until they are dropped.
pub const TRIAL_DECIDED: u8 = 0x75;

/// Waits for the end of the beacon window.
pub const STAGE_BEACON: u8 = 1;
/// Waits for the end of the reveal window.
pub const STAGE_REVEAL: u8 = 2;

/// The value of a key that is only there or not.
pub const THERE: [u8; 1] = [1];

fn by_round(prefix: u8, epoch: u64, profile: &Digest) -> KeyBuilder {
    KeyBuilder::new(prefix).u64(epoch).bytes(&profile.0)
}

pub(super) fn params(activation_epoch: u64) -> Vec<u8> {
    KeyBuilder::new(PARAMS).u64(activation_epoch).finish()
}
pub(super) fn judge(operator: &Address) -> Vec<u8> {
    KeyBuilder::new(JUDGE).bytes(&operator.0).finish()
}
pub(super) fn judges_of(profile: &Digest) -> KeyBuilder {
    KeyBuilder::new(JUDGE_OF).bytes(&profile.0)
}
pub(super) fn vrf_key(key: &[u8]) -> Vec<u8> {
    KeyBuilder::new(VRF_KEY).bytes(key).finish()
}
pub(super) fn beacons(profile: &Digest) -> KeyBuilder {
    KeyBuilder::new(BEACON).bytes(&profile.0)
}
pub(super) fn round(epoch: u64, profile: &Digest) -> Vec<u8> {
    by_round(ROUND, epoch, profile).finish()
}
pub(super) fn stage(stage: u8, epoch: u64, profile: &Digest) -> Vec<u8> {
    KeyBuilder::new(STAGE).u8(stage).u64(epoch).bytes(&profile.0).finish()
}
pub(super) fn of_round(prefix: u8, epoch: u64, profile: &Digest) -> Vec<u8> {
    by_round(prefix, epoch, profile).finish()
}
pub(super) fn in_round(prefix: u8, epoch: u64, profile: &Digest, who: &Address) -> Vec<u8> {
    by_round(prefix, epoch, profile).bytes(&who.0).finish()
}
pub(super) fn quality(worker: &Address, profile: &Digest) -> Vec<u8> {
    KeyBuilder::new(QUALITY).bytes(&worker.0).bytes(&profile.0).finish()
}
pub(super) fn baseline(profile: &Digest) -> Vec<u8> {
    KeyBuilder::new(BASELINE).bytes(&profile.0).finish()
}
pub(super) fn trial(id: u64) -> Vec<u8> {
    KeyBuilder::new(TRIAL).u64(id).finish()
}
pub(super) fn open_trials(worker: &Address) -> KeyBuilder {
    KeyBuilder::new(OPEN_TRIAL).bytes(&worker.0)
}
pub(super) fn trial_due(deadline_epoch: u64, id: u64) -> Vec<u8> {
    KeyBuilder::new(TRIAL_DUE).u64(deadline_epoch).u64(id).finish()
}
pub(super) fn votes(id: u64) -> KeyBuilder {
    KeyBuilder::new(VOTE).u64(id)
}
pub(super) fn trials_of(worker: &Address) -> KeyBuilder {
    KeyBuilder::new(TRIAL_OF).bytes(&worker.0)
}

pub(super) fn waiting_trials(profile: &Digest) -> KeyBuilder {
    KeyBuilder::new(TRIAL_WAITING).bytes(&profile.0)
}

pub(super) fn judge_unbonding(release_epoch: u64, operator: &Address) -> Vec<u8> {
    KeyBuilder::new(JUDGE_UNBONDING).u64(release_epoch).bytes(&operator.0).finish()
}

pub(super) fn trial_decided(epoch: u64, id: u64) -> Vec<u8> {
    KeyBuilder::new(TRIAL_DECIDED).u64(epoch).u64(id).finish()
}

/// The id that a key ends with.
pub(super) fn last_id(key: &[u8]) -> Option<u64> {
    let at = key.len().checked_sub(8)?;
    Some(u64::from_be_bytes(key[at..].try_into().ok()?))
}

/// The address that a key ends with.
pub(super) fn last_address(key: &[u8]) -> Option<Address> {
    let at = key.len().checked_sub(20)?;
    Some(Address(key[at..].try_into().ok()?))
}

/// The epoch that follows a key's prefix.
pub(super) fn split_epoch(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(1..9)?.try_into().ok()?))
}

/// Reads `prefix ‖ stage ‖ epoch ‖ profile`.
pub(super) fn split_stage(key: &[u8]) -> Option<(u64, Digest)> {
    let (epoch, profile) = key.get(2..)?.split_at_checked(8)?;
    Some((u64::from_be_bytes(epoch.try_into().ok()?), Digest::from_slice(profile)?))
}

/// Reads `prefix ‖ deadline epoch ‖ id`.
pub(super) fn split_due(key: &[u8]) -> Option<(u64, u64)> {
    let (deadline, id) = key.get(1..)?.split_at_checked(8)?;
    Some((u64::from_be_bytes(deadline.try_into().ok()?), u64::from_be_bytes(id.try_into().ok()?)))
}
