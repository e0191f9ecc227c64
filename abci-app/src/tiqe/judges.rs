//! Judges: their keys, their bond in equal tickets, the profiles that they hold, and what they lose by being absent.

use std::cmp::Reverse;

use polylink_protocol::keys::is_ed25519_key;
use polylink_protocol::tiqe_v1::{Judge, MsgRegisterJudge, MsgRegisterJudgeResponse};
use polylink_protocol::{Address, Amount, Bps, Digest};

use super::error::TiqeError;
use super::{JUDGES_PER_PROFILE_MAX, PROFILES_PER_JUDGE_MAX, TICKETS_MAX, keys, params};
use crate::bank::{self, Pool};
use crate::context::Context;
use crate::error::TxError;
use crate::market::models;
use crate::market::records::{load, save, uplk};
use crate::modules::Handle;
use crate::store::{StateRead, StateWrite};

/// The weight of a judge without canaries.
const WEIGHT_FIRST: u32 = 100;

/// A registered judge.
pub fn judge(state: &dyn StateRead, operator: &Address) -> Option<Judge> {
    load(state, &keys::judge(operator))
}

/// The judges of a profile that take part in what happens in `epoch`, by operator.
pub(super) fn active_for(state: &dyn StateRead, profile: &Digest, epoch: u64) -> Vec<(Address, Judge)> {
    let prefix = keys::judges_of(profile).finish();
    let operators = state.iter_prefix(&prefix).filter_map(|(key, _)| keys::last_address(&key));
    operators
        .filter_map(|operator| judge(state, &operator).map(|judge| (operator, judge)))
        .filter(|(_, judge)| !judge.jailed && judge.active_from_epoch <= epoch)
        .collect()
}

/// A judge that may act for a profile in `epoch`.
pub(super) fn acting(
    state: &dyn StateRead,
    operator: &Address,
    profile: &Digest,
    epoch: u64,
) -> Result<Judge, TiqeError> {
    let judge = judge(state, operator).ok_or_else(|| TiqeError::UnknownJudge(operator.account()))?;
    if judge.jailed {
        return Err(TiqeError::Jailed(operator.account()));
    }
    if judge.release_epoch > 0 {
        return Err(TiqeError::Left { judge: operator.account(), release_epoch: judge.release_epoch });
    }
    if judge.active_from_epoch > epoch {
        return Err(TiqeError::NotActive { from: judge.active_from_epoch, now: epoch });
    }
    if !judge.profiles.iter().any(|held| *held == profile.0) {
        return Err(TiqeError::OtherProfile(*profile));
    }
    Ok(judge)
}

/// Burns a share of a judge's bond (rounded down). A judge left with less than half of what its tickets stand for is
/// jailed: it draws no seats and has no vote any more.
pub(super) fn penalise(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    operator: &Address,
    share: Bps,
    reason: &str,
) -> Result<(), TxError> {
    let Some(mut record) = judge(state, operator) else { return Ok(()) };
    let bond = uplk(&record.bond);
    let part = share.of_floor(bond);
    let rest = bond.saturating_sub(part);
    let full = uplk(&params::at(state, ctx.epoch).ticket_bond).0.saturating_mul(u128::from(record.tickets));
    record.bond = rest.to_string();
    record.jailed |= rest.0 < full / 2;
    let jailed = record.jailed;
    if jailed {
        leave_places(state, operator, &record.profiles);
    }
    save(state, keys::judge(operator), &record);
    bank::burn(ctx, state, Pool::JudgeBonds, part)?;
    ctx.emit(
        "slash_judge",
        [
            ("judge", operator.account()),
            ("amount", format!("{part}uplk")),
            ("reason", reason.into()),
            ("jailed", jailed.to_string()),
        ],
    );
    Ok(())
}

/// A place in a profile: when all are taken, that of the judge with the least bond, if it is less than the newcomer's. Who
/// loses its place holds the profile no more; its other ones stay.
fn take_place(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    operator: &Address,
    bond: Amount,
    profile: &Digest,
) -> Result<(), TiqeError> {
    let prefix = keys::judges_of(profile).finish();
    let index = state.iter_prefix(&prefix).take(JUDGES_PER_PROFILE_MAX);
    let holders: Vec<Address> = index.filter_map(|(key, _)| keys::last_address(&key)).collect();
    if holders.len() >= JUDGES_PER_PROFILE_MAX {
        // Of equal bonds the higher address leaves.
        let records = holders.iter().filter_map(|holder| Some((*holder, judge(state, holder)?)));
        match records.min_by_key(|(holder, record)| (uplk(&record.bond), Reverse(*holder))) {
            Some((holder, mut record)) if uplk(&record.bond) < bond => {
                leave_places(state, &holder, &[profile.to_vec()]);
                record.profiles.retain(|held| *held != profile.0);
                save(state, keys::judge(&holder), &record);
                ctx.emit("place_lost", [("operator", holder.account()), ("profile", profile.to_string())]);
            }
            _ => return Err(TiqeError::TooManyJudges { profile: *profile, max: JUDGES_PER_PROFILE_MAX }),
        }
    }
    state.put(keys::judges_of(profile).bytes(&operator.0).finish(), keys::THERE.to_vec());
    Ok(())
}

pub(super) fn leave_places(state: &mut dyn StateWrite, operator: &Address, profiles: &[Vec<u8>]) {
    for profile in profiles.iter().filter_map(|profile| Digest::from_slice(profile)) {
        state.delete(keys::judges_of(&profile).bytes(&operator.0).finish());
    }
}

impl Handle for MsgRegisterJudge {
    const AMINO_NAME: &'static str = "polylink/tiqe/RegisterJudge";
    type Response = MsgRegisterJudgeResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.operator.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        let wrong = |name, reason| Err(TiqeError::Key { name, reason }.into());
        if !is_ed25519_key(&self.vrf_key) {
            return wrong("VRF key", "an ECVRF-EDWARDS25519-SHA512-TAI public key of 32 bytes is expected");
        }
        if !is_ed25519_key(&self.disclosure_key) {
            return wrong("disclosure key", "an ed25519 public key of 32 bytes is expected");
        }
        if self.x25519_key.len() != 32 || self.x25519_key.iter().all(|byte| *byte == 0) {
            return wrong("X25519 key", "a public key of 32 bytes is expected");
        }
        if !(1..=TICKETS_MAX).contains(&self.tickets) {
            return Err(TiqeError::Tickets { found: self.tickets, max: TICKETS_MAX }.into());
        }
        if self.profiles.is_empty() || self.profiles.len() > PROFILES_PER_JUDGE_MAX {
            let found = self.profiles.len();
            let reason = format!("1 to {PROFILES_PER_JUDGE_MAX} are expected, not {found}");
            return Err(TiqeError::Profiles(reason).into());
        }
        for (number, profile) in self.profiles.iter().enumerate() {
            models::digest(profile)?;
            if self.profiles[..number].contains(profile) {
                return Err(TiqeError::Profiles("one stands there twice".into()).into());
            }
        }
        Ok(())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgRegisterJudgeResponse, TxError> {
        let operator: Address = self.operator.parse()?;
        if judge(state, &operator).is_some() {
            return Err(TiqeError::JudgeExists(operator.account()).into());
        }
        if let Some(holder) = state.get(&keys::vrf_key(&self.vrf_key)) {
            let holder = keys::last_address(&holder).map_or_else(String::new, |holder| holder.account());
            return Err(TiqeError::VrfKeyTaken(holder).into());
        }
        let params = params::at(state, ctx.epoch);
        let bond = Amount(uplk(&params.ticket_bond).0.saturating_mul(u128::from(self.tickets)));
        for profile in &self.profiles {
            let (profile, _) = models::known(state, profile)?;
            take_place(ctx, state, &operator, bond, &profile)?;
        }
        bank::transfer(ctx, state, operator, Pool::JudgeBonds, bond)?;
        // Genesis judges act from the start; later ones once their key could no longer be chosen by a known beacon.
        let delay = if ctx.height == 0 { 0 } else { params.activation_delay_epochs };
        let active_from_epoch = ctx.epoch.saturating_add(delay);
        let record = Judge {
            operator: operator.account(),
            vrf_key: self.vrf_key.clone(),
            x25519_key: self.x25519_key.clone(),
            disclosure_key: self.disclosure_key.clone(),
            bond: bond.to_string(),
            tickets: self.tickets,
            profiles: self.profiles.clone(),
            active_from_epoch,
            jailed: false,
            weight: WEIGHT_FIRST,
            release_epoch: 0,
        };
        state.put(keys::vrf_key(&self.vrf_key), operator.0.to_vec());
        save(state, keys::judge(&operator), &record);
        ctx.emit(
            "register_judge",
            [
                ("judge", operator.account()),
                ("bond", format!("{bond}uplk")),
                ("active_from", active_from_epoch.to_string()),
            ],
        );
        Ok(MsgRegisterJudgeResponse { active_from_epoch })
    }
}
