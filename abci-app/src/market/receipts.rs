//! Receipts: after an epoch its worker commits to all of its receipts by one Merkle-sum root, which the round audits, and
//! by another one to those of private sessions, which nobody draws samples of. Both come in one message and stand for good.
//!
//! With the root the pot takes down the key that signs those receipts and the price that each of them must be charged
//! at: the worker's terms in that epoch, whatever it changed since. One record then says all that a receipt is checked
//! against.

use polylink_protocol::market::{offer_in, price_at, price_in, terms_at};
use polylink_protocol::market_v1::{MsgCommitReceipts, MsgCommitReceiptsResponse, SumNode};
use polylink_protocol::merkle_sum::Sum;
use polylink_protocol::{Address, Amount, Digest};

use super::error::MarketError;
use super::records::{Kind, amount, pot, pot_or_new, save, save_pot};
use super::schedule::{Schedule, Window};
use super::{keys, models, params, workers};
use crate::context::Context;
use crate::error::TxError;
use crate::modules::Handle;
use crate::store::{StateRead, StateWrite};
use crate::tiqe;

fn check_root(root: Option<&SumNode>) -> Result<Sum, MarketError> {
    let wrong = |reason: &str| MarketError::Root(reason.into());
    let sum =
        Sum::from_proto(root.ok_or_else(|| wrong("the message has none; without receipts it is the empty tree's"))?)
            .map_err(|error| MarketError::Root(error.to_string()))?;
    if sum.count == 0 && sum != Sum::empty() {
        return Err(wrong("without receipts it is the empty tree's, with sums of 0"));
    }
    if sum.count > 0 && sum.hash == Sum::empty().hash {
        return Err(wrong("the empty tree's hash with a count of receipts"));
    }
    // Half of the range: an allowance can then be added without overflow.
    if sum.amount.0 > u128::MAX / 2 {
        return Err(wrong("the amount is more than there can be"));
    }
    Ok(sum)
}

/// A root is left out where there is no private receipt, so that there is one way to say so.
fn check_private_root(root: Option<&SumNode>) -> Result<Option<Sum>, MarketError> {
    let sum = root.map(|root| check_root(Some(root))).transpose()?;
    match sum {
        Some(sum) if sum.count == 0 => Err(MarketError::Root("the private one is left out where it is empty".into())),
        sum => Ok(sum),
    }
}

/// Every receipt is owed by a session within its deposit, and a session is closed only by the worker itself, or once its
/// expiry and the dispute window have passed, which is after the commitment of its last epoch.
fn check_deposits(
    state: &dyn StateRead,
    kind: Kind,
    operator: &Address,
    profile: &Digest,
    root: &Sum,
) -> Result<(), MarketError> {
    let deposits = amount(state, &keys::deposits(kind, operator, profile));
    match root.amount > deposits {
        true => Err(MarketError::AboveDeposits { amount: root.amount, deposits }),
        false => Ok(()),
    }
}

impl Handle for MsgCommitReceipts {
    const AMINO_NAME: &'static str = "polylink/market/CommitReceipts";
    type Response = MsgCommitReceiptsResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.operator.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        models::digest(&self.profile_digest)?;
        check_root(self.root.as_ref())?;
        check_private_root(self.private_root.as_ref())?;
        Ok(())
    }

    /// The same roots again are taken and change nothing, so that a worker may repeat itself after a crash.
    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgCommitReceiptsResponse, TxError> {
        let operator: Address = self.operator.parse()?;
        let root = check_root(self.root.as_ref())?;
        let private = check_private_root(self.private_root.as_ref())?;
        let mut record = workers::known(state, &operator)?;
        if record.jailed {
            return Err(MarketError::Jailed(record.operator).into());
        }
        let (profile, model) = models::known(state, &self.profile_digest)?;
        let schedule = Schedule::new(&params::at(state, ctx.epoch));
        if self.epoch.checked_add(1) != Some(ctx.epoch) || schedule.window(ctx.epoch_offset) != Window::Receipts {
            let (from, to) = schedule.heights(Window::Receipts, self.epoch);
            let reason = format!("they are committed from height {from} to {}", to.saturating_sub(1));
            return Err(MarketError::CommitWindow { found: self.epoch, height: ctx.height, reason }.into());
        }
        let terms = terms_at(&record, self.epoch)
            .ok_or_else(|| MarketError::Offers(format!("{operator} was no worker yet in epoch {}", self.epoch)))?;
        // Offers end with the epoch in which the bond, the place or the profile is given up: what is served later no bond
        // stands behind. A pot that vouchers have made without an offer takes an empty root alone; what they pay for of
        // the epoch before is covered by that one's commitment.
        let has_pot = pot(state, Kind::Audited, self.epoch, &profile, &operator).is_some();
        if offer_in(terms, &profile).is_none() && (root.count > 0 || private.is_some() || !has_pot) {
            let reason = format!("{operator} did not offer {profile} in epoch {}: no receipts are due", self.epoch);
            return Err(MarketError::Offers(reason).into());
        }
        let roots = [(Kind::Audited, Some(root)), (Kind::Private, private)];
        for (kind, root) in roots.iter().filter_map(|(kind, root)| Some((*kind, root.as_ref()?))) {
            check_deposits(state, kind, &operator, &profile, root)?;
        }
        let node = |root: &Option<Sum>| root.as_ref().map(Sum::to_proto);
        let earlier = |kind| pot(state, kind, self.epoch, &profile, &operator).and_then(|pot| pot.root);
        if earlier(Kind::Audited).is_some() {
            return match roots.iter().all(|(kind, root)| earlier(*kind) == node(root)) {
                true => Ok(MsgCommitReceiptsResponse {}),
                false => Err(MarketError::OtherRoot(self.epoch).into()),
            };
        }
        let price = price_in(terms, &profile, &price_at(&model, self.epoch).unwrap_or_default());
        for (kind, root) in roots.iter().filter(|(_, root)| root.is_some()) {
            let mut pot = pot_or_new(state, *kind, self.epoch, &profile, &operator);
            pot.root = node(root);
            pot.receipt_key.clone_from(&terms.receipt_key);
            pot.price = Some(price);
            save_pot(state, &profile, &operator, &pot);
        }
        record.last_heartbeat_epoch = self.epoch;
        save(state, keys::worker(&operator), &record);
        if root.amount > Amount::ZERO {
            tiqe::open_round(state, self.epoch, &profile);
        }
        ctx.emit(
            "commit_receipts",
            [
                ("worker", operator.account()),
                ("profile", profile.to_string()),
                ("epoch", self.epoch.to_string()),
                ("root", root.hash.to_string()),
                ("count", root.count.to_string()),
                ("amount", format!("{}uplk", root.amount)),
                ("private_amount", format!("{}uplk", private.map_or(Amount::ZERO, |root| root.amount))),
            ],
        );
        Ok(MsgCommitReceiptsResponse {})
    }
}
