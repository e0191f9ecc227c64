//! The market's keys (see `docs/state-keys.md`). What is dropped by epoch is keyed epoch first.

use polylink_protocol::{Address, Digest};

use super::records::Kind;
use crate::store::KeyBuilder;

/// `0x40 ‖ activation epoch` → `market.v1.Params`.
pub const PARAMS: u8 = 0x40;
/// `0x41 ‖ profile` → `market.v1.Model`.
pub const MODEL: u8 = 0x41;
/// `0x42 ‖ operator` → `market.v1.Worker`.
pub const WORKER: u8 = 0x42;
/// `0x43 ‖ profile ‖ operator` → 1: who offers a profile.
pub const OFFER: u8 = 0x43;
/// `0x44 ‖ release epoch ‖ operator` → 1: unbonding that is due.
pub const UNBONDING: u8 = 0x44;
/// `0x45 ‖ id` → `market.v1.Session`.
pub const SESSION: u8 = 0x45;
/// `0x46` → the next session's id, 8 bytes.
pub const SESSION_NEXT: u8 = 0x46;
/// `0x47 ‖ payer ‖ id` → 1.
pub const SESSION_BY_PAYER: u8 = 0x47;
/// `0x48 ‖ payee ‖ id` → 1.
pub const SESSION_BY_PAYEE: u8 = 0x48;
/// `0x49 ‖ epoch ‖ profile ‖ worker` → `market.v1.Pot`.
pub const POT: u8 = 0x49;
/// `0x4a ‖ epoch ‖ profile ‖ worker` → 1: pots to be settled.
pub const POT_DUE: u8 = 0x4a;
/// `0x4b ‖ release epoch ‖ owner` → amount, 16 bytes.
pub const VESTING: u8 = 0x4b;
/// `0x4c ‖ epoch` → `market.v1.Epoch` with all that was minted and burned **before** it.
pub const EPOCH: u8 = 0x4c;
/// `0x4d ‖ audited epoch` → emission so far, 16 bytes.
pub const EMITTED: u8 = 0x4d;
/// `0x4e` → number of models, 8 bytes.
pub const MODEL_COUNT: u8 = 0x4e;
/// `0x4f ‖ worker ‖ profile` → deposits of the unclosed sessions that pay this worker for this profile, 16 bytes.
pub const DEPOSITS: u8 = 0x4f;
/// `0x50 ‖ epoch of the close ‖ id` → 1: closed sessions, until they are dropped.
pub const SESSION_CLOSED: u8 = 0x50;

/// `0x51 ‖ profile ‖ epoch` → `market.v1.EpochPrice`.
pub const PRICE: u8 = 0x51;
/// `0x52` → where the prices' turns stand: epoch of the last whole circle + 1, 8 bytes ‖ last profile of the running one.
pub const PRICE_TURN: u8 = 0x52;
/// `0x53 ‖ id` → `market.v1.OmissionReport` that waits for its worker.
pub const REPORT: u8 = 0x53;
/// `0x54` → the next report's id, 8 bytes.
pub const REPORT_NEXT: u8 = 0x54;
/// `0x55 ‖ worker ‖ id` → 1: its open reports.
pub const REPORT_BY_WORKER: u8 = 0x55;
/// `0x56 ‖ deadline epoch ‖ id` → 1.
pub const REPORT_DUE: u8 = 0x56;
/// `0x57 ‖ the receipt's epoch ‖ session ‖ index` → 1: receipts that were reported, so that each is once.
pub const REPORTED: u8 = 0x57;

/// `0x58 ‖ epoch ‖ profile ‖ worker ‖ payer` → what the payer's vouchers moved into the pot, 16 bytes.
pub const PAID: u8 = 0x58;
/// `0x59 ‖ trial` → `market.v1.Refunding`.
pub const REFUNDING: u8 = 0x59;
/// `0x5a ‖ payer ‖ trial` → `market.v1.Refund`.
pub const REFUND: u8 = 0x5a;
/// `0x5b ‖ epoch ‖ trial ‖ payer` → 1: refunds that were made, until they are dropped.
pub const REFUND_MADE: u8 = 0x5b;

/// `0x5c ‖ epoch ‖ profile ‖ worker` → `market.v1.Pot` of private sessions; never iterated by the audit.
pub const PRIVATE_POT: u8 = 0x5c;
/// `0x5d ‖ epoch ‖ profile ‖ worker ‖ payer` → what the payer's vouchers moved into the private pot, 16 bytes.
pub const PRIVATE_PAID: u8 = 0x5d;
/// `0x5e ‖ worker ‖ profile` → deposits of the unclosed private sessions that pay this worker for this profile, 16 bytes.
pub const PRIVATE_DEPOSITS: u8 = 0x5e;

/// The value of a key that is only there or not.
pub const THERE: [u8; 1] = [1];

pub(super) fn params(activation_epoch: u64) -> Vec<u8> {
    KeyBuilder::new(PARAMS).u64(activation_epoch).finish()
}
pub(super) fn model(profile: &Digest) -> Vec<u8> {
    KeyBuilder::new(MODEL).bytes(&profile.0).finish()
}
pub(super) fn worker(operator: &Address) -> Vec<u8> {
    KeyBuilder::new(WORKER).bytes(&operator.0).finish()
}
pub(super) fn offers_of(profile: &Digest) -> Vec<u8> {
    KeyBuilder::new(OFFER).bytes(&profile.0).finish()
}
pub(super) fn offer(profile: &Digest, operator: &Address) -> Vec<u8> {
    KeyBuilder::new(OFFER).bytes(&profile.0).bytes(&operator.0).finish()
}
pub(super) fn unbonding(release_epoch: u64, operator: &Address) -> Vec<u8> {
    KeyBuilder::new(UNBONDING).u64(release_epoch).bytes(&operator.0).finish()
}
pub(super) fn session(id: u64) -> Vec<u8> {
    KeyBuilder::new(SESSION).u64(id).finish()
}
pub(super) fn sessions_of_payer(payer: &Address) -> KeyBuilder {
    KeyBuilder::new(SESSION_BY_PAYER).bytes(&payer.0)
}
pub(super) fn sessions_of_payee(payee: &Address) -> KeyBuilder {
    KeyBuilder::new(SESSION_BY_PAYEE).bytes(&payee.0)
}
pub(super) fn pots_of_profile(kind: Kind, epoch: u64, profile: &Digest) -> Vec<u8> {
    KeyBuilder::new(kind.table(POT, PRIVATE_POT)).u64(epoch).bytes(&profile.0).finish()
}
/// A pot.
pub fn pot(kind: Kind, epoch: u64, profile: &Digest, worker: &Address) -> Vec<u8> {
    KeyBuilder::new(kind.table(POT, PRIVATE_POT)).u64(epoch).bytes(&profile.0).bytes(&worker.0).finish()
}
pub(super) fn pot_due(epoch: u64, profile: &Digest, worker: &Address) -> Vec<u8> {
    KeyBuilder::new(POT_DUE).u64(epoch).bytes(&profile.0).bytes(&worker.0).finish()
}
pub(super) fn vesting(release_epoch: u64, owner: &Address) -> Vec<u8> {
    KeyBuilder::new(VESTING).u64(release_epoch).bytes(&owner.0).finish()
}
pub(super) fn epoch(number: u64) -> Vec<u8> {
    KeyBuilder::new(EPOCH).u64(number).finish()
}
pub(super) fn emitted(epoch: u64) -> Vec<u8> {
    KeyBuilder::new(EMITTED).u64(epoch).finish()
}

pub(super) fn deposits(kind: Kind, worker: &Address, profile: &Digest) -> Vec<u8> {
    KeyBuilder::new(kind.table(DEPOSITS, PRIVATE_DEPOSITS)).bytes(&worker.0).bytes(&profile.0).finish()
}

pub(super) fn session_closed(epoch: u64, id: u64) -> Vec<u8> {
    KeyBuilder::new(SESSION_CLOSED).u64(epoch).u64(id).finish()
}

pub(super) fn prices_of(profile: &Digest) -> Vec<u8> {
    KeyBuilder::new(PRICE).bytes(&profile.0).finish()
}
pub(super) fn price(profile: &Digest, epoch: u64) -> Vec<u8> {
    KeyBuilder::new(PRICE).bytes(&profile.0).u64(epoch).finish()
}

pub(super) fn report(id: u64) -> Vec<u8> {
    KeyBuilder::new(REPORT).u64(id).finish()
}
pub(super) fn reports_of(worker: &Address) -> KeyBuilder {
    KeyBuilder::new(REPORT_BY_WORKER).bytes(&worker.0)
}
pub(super) fn report_due(deadline_epoch: u64, id: u64) -> Vec<u8> {
    KeyBuilder::new(REPORT_DUE).u64(deadline_epoch).u64(id).finish()
}
pub(super) fn reported(epoch: u64, session: u64, index: u64) -> Vec<u8> {
    KeyBuilder::new(REPORTED).u64(epoch).u64(session).u64(index).finish()
}

pub(super) fn paid_into(kind: Kind, epoch: u64, profile: &Digest, worker: &Address) -> KeyBuilder {
    KeyBuilder::new(kind.table(PAID, PRIVATE_PAID)).u64(epoch).bytes(&profile.0).bytes(&worker.0)
}
pub(super) fn paid(kind: Kind, epoch: u64, profile: &Digest, worker: &Address, payer: &Address) -> Vec<u8> {
    paid_into(kind, epoch, profile, worker).bytes(&payer.0).finish()
}
pub(super) fn refunding(trial: u64) -> Vec<u8> {
    KeyBuilder::new(REFUNDING).u64(trial).finish()
}
pub(super) fn refunds_of(payer: &Address) -> KeyBuilder {
    KeyBuilder::new(REFUND).bytes(&payer.0)
}
pub(super) fn refund(payer: &Address, trial: u64) -> Vec<u8> {
    refunds_of(payer).u64(trial).finish()
}
pub(super) fn refund_made(epoch: u64, trial: u64, payer: &Address) -> Vec<u8> {
    KeyBuilder::new(REFUND_MADE).u64(epoch).u64(trial).bytes(&payer.0).finish()
}

/// The address that a key ends with.
pub(super) fn last_address(key: &[u8]) -> Option<Address> {
    let at = key.len().checked_sub(20)?;
    Some(Address(key[at..].try_into().ok()?))
}

/// Reads `prefix ‖ epoch ‖ address`.
pub(super) fn split_epoch_address(key: &[u8]) -> Option<(u64, Address)> {
    let (epoch, address) = key.get(1..)?.split_at_checked(8)?;
    Some((u64::from_be_bytes(epoch.try_into().ok()?), Address(address.try_into().ok()?)))
}

/// Reads `prefix ‖ epoch ‖ profile ‖ address`.
pub(super) fn split_pot(key: &[u8]) -> Option<(u64, Digest, Address)> {
    let (epoch, rest) = key.get(1..)?.split_at_checked(8)?;
    let (profile, worker) = rest.split_at_checked(32)?;
    Some((u64::from_be_bytes(epoch.try_into().ok()?), Digest::from_slice(profile)?, Address(worker.try_into().ok()?)))
}
