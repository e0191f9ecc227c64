//! Reading and writing the market's records. They are stored as the protobuf messages that queries answer with.

use polylink_protocol::market_v1::{Model, Pot, Session, Worker};
use polylink_protocol::{Address, Amount, Digest, Message};

use super::keys;
use crate::store::{StateRead, StateWrite};

/// Which of a worker's two pots of an epoch and profile, with a root of its own each: what private sessions pay is kept
/// apart from the first moment on, so that nothing of theirs is ever drawn and neither root covers the other's money.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of sessions whose receipts judges sample.
    Audited,
    /// Of private sessions.
    Private,
}

impl Kind {
    /// In the order of their settlement: what a private pot is worth depends on the other one.
    pub const BOTH: [Kind; 2] = [Kind::Audited, Kind::Private];

    /// By the flag of sessions and records.
    pub fn of(private: bool) -> Self {
        if private { Kind::Private } else { Kind::Audited }
    }

    /// As records have it.
    pub fn is_private(self) -> bool {
        self == Kind::Private
    }

    /// The prefix of one of two tables.
    pub(super) fn table(self, audited: u8, private: u8) -> u8 {
        if self.is_private() { private } else { audited }
    }
}

/// A record under a key.
pub(crate) fn load<M: Message + Default>(state: &dyn StateRead, key: &[u8]) -> Option<M> {
    state.get(key).map(|bytes| M::decode(bytes.as_slice()).expect("the state holds what the ledger's modules wrote"))
}

/// Writes a record.
pub(crate) fn save<M: Message>(state: &mut dyn StateWrite, key: Vec<u8>, record: &M) {
    state.put(key, record.encode_to_vec());
}

/// An amount of a record; an unset one is nothing.
pub(crate) fn uplk(text: &str) -> Amount {
    Amount::parse_or_zero(text).expect("amounts of records are written by their own Display")
}

/// A counter of 8 bytes; 0 where it is not there.
pub(crate) fn counter(state: &dyn StateRead, key: &[u8]) -> u64 {
    state.get(key).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
}

/// An amount of 16 bytes; nothing where it is not there.
pub(crate) fn amount(state: &dyn StateRead, key: &[u8]) -> Amount {
    state.get(key).and_then(|bytes| bytes.try_into().ok()).map_or(Amount::ZERO, |b| Amount(u128::from_be_bytes(b)))
}

/// A registered model.
pub fn model(state: &dyn StateRead, profile: &Digest) -> Option<Model> {
    load(state, &keys::model(profile))
}

/// A registered worker.
pub fn worker(state: &dyn StateRead, operator: &Address) -> Option<Worker> {
    load(state, &keys::worker(operator))
}

/// A session, closed ones included.
pub fn session(state: &dyn StateRead, id: u64) -> Option<Session> {
    load(state, &keys::session(id))
}

/// What a worker earned and committed in an epoch.
pub fn pot(state: &dyn StateRead, kind: Kind, epoch: u64, profile: &Digest, worker: &Address) -> Option<Pot> {
    load(state, &keys::pot(kind, epoch, profile, worker))
}

/// The pots of a profile in an epoch, by worker: at most as many as [`super::WORKERS_PER_PROFILE_MAX`] and those who
/// left the profile within the epoch.
pub fn pots(state: &dyn StateRead, kind: Kind, epoch: u64, profile: &Digest) -> Vec<(Address, Pot)> {
    let prefix = keys::pots_of_profile(kind, epoch, profile);
    state
        .iter_prefix(&prefix)
        .filter_map(|(key, value)| {
            let (_, _, worker) = keys::split_pot(&key)?;
            Some((worker, Pot::decode(value.as_slice()).expect("the state holds what the market wrote")))
        })
        .collect()
}

/// What a pot's worker committed to; nothing without a root.
pub fn committed(pot: &Pot) -> Amount {
    pot.root.as_ref().map_or(Amount::ZERO, |root| uplk(&root.amount))
}

/// The pot as it stands, or a new one that waits for its settlement.
pub(super) fn pot_or_new(
    state: &mut dyn StateWrite,
    kind: Kind,
    epoch: u64,
    profile: &Digest,
    worker: &Address,
) -> Pot {
    pot(state, kind, epoch, profile, worker).unwrap_or_else(|| {
        state.put(keys::pot_due(epoch, profile, worker), keys::THERE.to_vec());
        Pot {
            epoch,
            worker: worker.account(),
            profile_digest: profile.to_vec(),
            redeemed: "0".into(),
            private: kind.is_private(),
            ..Default::default()
        }
    })
}

/// Writes a pot.
pub(super) fn save_pot(state: &mut dyn StateWrite, profile: &Digest, worker: &Address, pot: &Pot) {
    save(state, keys::pot(Kind::of(pot.private), pot.epoch, profile, worker), pot);
}
