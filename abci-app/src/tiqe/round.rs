//! A round's life: opened by the first commitment to receipts, or by a trial that needs its beacon, drawn at the end of
//! the beacon window, scored at the end of the reveal window. Rounds wait in queues, of which each block takes a bounded
//! number.

use std::collections::BTreeMap;

use polylink_protocol::market_v1::Pot;
use polylink_protocol::tiqe::{Candidate, draw_seats, next_beacon, sample_point};
use polylink_protocol::tiqe_v1::{Params, Quality, Round, RoundPhase, Sample, SampleResult, Score, Scores, Seat};
use polylink_protocol::{Address, Amount, Bps, Digest, Message as _};

use super::error::TiqeError;
use super::scoring::{self, Sheet};
use super::{SAMPLES_PER_ROUND_MAX, beacon, judges, keys, leaving, params, trial};
use crate::context::Context;
use crate::error::TxError;
use crate::market::records::{counter, load, save};
use crate::market::schedule::{Schedule, Window};
use crate::market::settle::prune;
use crate::market::{self, Kind, RELEASES_PER_BLOCK, committed};
use crate::store::{StateRead, StateWrite};

/// α of a pot that was not scored, of a worker that never was: half.
const ALPHA_UNKNOWN_BPS: u32 = 5_000;

/// What the audit says of a pot.
pub struct Verdict {
    /// α.
    pub alpha: Bps,
    /// The round's judges that revealed, with their shares of the judges' pay.
    pub judges: Vec<(Address, u64)>,
}

/// Opens the round over an epoch: something was committed to that can be sampled, or a trial waits for a beacon.
pub(crate) fn open(state: &mut dyn StateWrite, epoch: u64, profile: &Digest) {
    let key = keys::round(epoch, profile);
    if state.contains(&key) {
        return;
    }
    let phase = RoundPhase::Receipts as i32;
    save(state, key, &Round { epoch, profile_digest: profile.to_vec(), phase, ..Default::default() });
    state.put(keys::stage(keys::STAGE_BEACON, epoch, profile), keys::THERE.to_vec());
}

/// The round as it is stored: without outputs and seats.
pub(super) fn stored(state: &dyn StateRead, epoch: u64, profile: &Digest) -> Option<Round> {
    load(state, &keys::round(epoch, profile))
}

/// True while the round's scores are still to come.
pub(crate) fn is_pending(state: &dyn StateRead, epoch: u64, profile: &Digest) -> bool {
    [keys::STAGE_BEACON, keys::STAGE_REVEAL].into_iter().any(|s| state.contains(&keys::stage(s, epoch, profile)))
}

/// Refuses a message for a round that is not there, or whose window is another one. Returns the round.
pub(super) fn in_window(
    ctx: &Context,
    state: &dyn StateRead,
    what: &'static str,
    window: Window,
    epoch: u64,
    profile: &Digest,
) -> Result<Round, TxError> {
    let schedule = Schedule::new(&market::params::at(state, ctx.epoch));
    if epoch.checked_add(1) != Some(ctx.epoch) || schedule.window(ctx.epoch_offset) != window {
        let (from, to) = schedule.heights(window, epoch);
        let (to, height) = (to.saturating_sub(1), ctx.height);
        return Err(TiqeError::OutsideWindow { what, epoch, from, to, height }.into());
    }
    let no_round = |reason: &str| TiqeError::NoRound { epoch, profile: *profile, reason: reason.into() };
    let round =
        stored(state, epoch, profile).ok_or_else(|| no_round("no worker committed to receipts with an amount"))?;
    match (window, round.phase()) {
        (Window::Beacon, RoundPhase::Receipts) | (Window::Commit | Window::Reveal, RoundPhase::Commit) => Ok(round),
        (_, RoundPhase::Postponed) => Err(no_round("it was postponed, with too few beacon outputs").into()),
        (_, RoundPhase::Receipts) => Err(no_round("its seats are not drawn yet; send it with the next block").into()),
        _ => Err(no_round("it is over").into()),
    }
}

/// Closes windows that end with this block, drops what is past its retention, and lets due trials have their verdict.
pub(super) fn end_block(ctx: &mut Context, state: &mut dyn StateWrite) -> Result<(), TxError> {
    let market = market::params::at(state, ctx.epoch);
    let schedule = Schedule::new(&market);
    let limit = market.max_pots_settled_per_block as usize;
    for (stage, window) in [(keys::STAGE_BEACON, Window::Beacon), (keys::STAGE_REVEAL, Window::Reveal)] {
        let due: Vec<(u64, Digest)> = state
            .iter_prefix(&[keys::STAGE, stage])
            .take(limit)
            .filter_map(|(key, _)| keys::split_stage(&key))
            .take_while(|(epoch, _)| schedule.is_over(window, *epoch, ctx.height))
            .collect();
        for (epoch, profile) in due {
            state.delete(keys::stage(stage, epoch, &profile));
            let Some(round) = stored(state, epoch, &profile) else { continue };
            match window {
                Window::Beacon => draw(ctx, state, round, &profile)?,
                _ => score(ctx, state, round, &profile)?,
            }
        }
    }
    trial::end_block(ctx, state)?;
    leaving::release(ctx, state, RELEASES_PER_BLOCK)?;
    for table in [keys::ROUND, keys::OUTPUT, keys::SEAT, keys::REVEAL, keys::ALPHA] {
        prune(state, table, ctx.epoch, RELEASES_PER_BLOCK);
    }
    Ok(())
}

fn event(ctx: &mut Context, round: &Round, profile: &Digest, phase: &str) {
    let beacon = Digest::from_slice(&round.beacon).map_or_else(String::new, |beacon| beacon.to_string());
    ctx.emit(
        "round",
        [
            ("epoch", round.epoch.to_string()),
            ("profile", profile.to_string()),
            ("phase", phase.into()),
            ("beacon", beacon),
            ("samples", round.samples.len().to_string()),
        ],
    );
}

/// End of the beacon window: the beacon, the seats, the samples; or no quorum.
fn draw(ctx: &mut Context, state: &mut dyn StateWrite, mut round: Round, profile: &Digest) -> Result<(), TxError> {
    let (epoch, params) = (round.epoch, params::at(state, ctx.epoch));
    let outputs: BTreeMap<_, _> = beacon::outputs(state, epoch, profile).into_iter().collect();
    let eligible = judges::active_for(state, profile, epoch.saturating_add(1));
    let penalty = Bps::clamped(params.slash_judge_bps);
    for (operator, _) in eligible.iter().filter(|(operator, _)| !outputs.contains_key(operator)) {
        judges::penalise(ctx, state, operator, penalty, "no beacon output")?;
    }
    if outputs.len() < params.beacon_quorum as usize {
        round.set_phase(RoundPhase::Postponed);
        save(state, keys::round(epoch, profile), &round);
        event(ctx, &round, profile, "postponed");
        return open_for_trials(ctx, state, profile);
    }
    let previous = beacon::before(state, &ctx.chain_id, profile, epoch);
    let values: Vec<_> = outputs.values().copied().collect();
    let beacon = next_beacon(&previous, &values);
    beacon::put(state, profile, epoch, &beacon);
    let candidates: Vec<Candidate> = eligible
        .iter()
        .filter_map(|(judge, record)| {
            Some(Candidate { judge: *judge, beta: *outputs.get(judge)?, tickets: record.tickets })
        })
        .collect();
    round.beacon = beacon.to_vec();
    round.samples = sample(&beacon, profile, &market::pots(state, Kind::Audited, epoch, profile), &params);
    trial::draw(ctx, state, &round, profile, &beacon, &params)?;
    open_for_trials(ctx, state, profile)?;
    if round.samples.is_empty() {
        // A trial's alone: there is nothing to score, so that nobody has a seat and nobody owes a reveal.
        round.set_phase(RoundPhase::Settled);
        save(state, keys::round(epoch, profile), &round);
        event(ctx, &round, profile, "settled");
        return Ok(());
    }
    for (judge, seats) in draw_seats(&candidates, params.seats) {
        let seat = Seat { judge: judge.account(), seats, ..Default::default() };
        save(state, keys::in_round(keys::SEAT, epoch, profile, &judge), &seat);
    }
    round.set_phase(RoundPhase::Commit);
    save(state, keys::round(epoch, profile), &round);
    state.put(keys::stage(keys::STAGE_REVEAL, epoch, profile), keys::THERE.to_vec());
    event(ctx, &round, profile, "commit");
    Ok(())
}

/// Opens the next round whose beacon is still unknown while a trial of the profile waits for one, so that no worker puts
/// its trial off by committing nothing.
fn open_for_trials(ctx: &Context, state: &mut dyn StateWrite, profile: &Digest) -> Result<(), TxError> {
    if trial::is_waiting(state, profile) {
        open(state, ctx.epoch, profile);
    }
    Ok(())
}

/// Points of each pot that has something committed, by worker: at most one per receipt, and in all at most
/// [`SAMPLES_PER_ROUND_MAX`].
fn sample(beacon: &Digest, profile: &Digest, pots: &[(Address, Pot)], params: &Params) -> Vec<Sample> {
    let with_amount = pots.iter().filter(|(_, pot)| !committed(pot).is_zero()).count().max(1);
    let share = (SAMPLES_PER_ROUND_MAX / with_amount).max(1) as u64;
    let mut samples = Vec::new();
    for (worker, pot) in pots {
        let count = pot.root.as_ref().map_or(0, |root| root.count);
        for _ in 0..u64::from(params.samples_per_pot).min(count).min(share) {
            let number = samples.len() as u32;
            let Some(point) = sample_point(beacon, worker, profile, number, committed(pot)) else { break };
            if samples.len() < SAMPLES_PER_ROUND_MAX {
                samples.push(sample_of(pot, number, point));
            }
        }
    }
    samples
}

/// A sample of a pot, with all that its receipt is checked against.
pub(super) fn sample_of(pot: &Pot, number: u32, point: Amount) -> Sample {
    Sample {
        number,
        worker: pot.worker.clone(),
        epoch: pot.epoch,
        root: pot.root.clone(),
        receipt_key: pot.receipt_key.clone(),
        price: pot.price,
        point: point.to_string(),
    }
}

/// The seats of a round as stored (without scores), by judge.
pub(super) fn seats(state: &dyn StateRead, epoch: u64, profile: &Digest) -> Vec<(Address, Seat)> {
    let prefix = keys::of_round(keys::SEAT, epoch, profile);
    state
        .iter_prefix(&prefix)
        .filter_map(|(key, value)| Some((keys::last_address(&key)?, Seat::decode(value.as_slice()).ok()?)))
        .collect()
}

/// End of the reveal window: penalties, medians, the judges' shares, and what follows for each worker.
fn score(ctx: &mut Context, state: &mut dyn StateWrite, mut round: Round, profile: &Digest) -> Result<(), TxError> {
    let (epoch, params) = (round.epoch, params::at(state, ctx.epoch));
    let mut revealed: Vec<(Address, Seat, Vec<Score>)> = Vec::new();
    for (judge, seat) in seats(state, epoch, profile) {
        match load::<Scores>(state, &keys::in_round(keys::REVEAL, epoch, profile, &judge)) {
            Some(scores) => {
                let scores = scoring::counted(&scores.scores, params.missing_evidence_milli);
                revealed.push((judge, seat, scores));
            }
            None => {
                judges::penalise(ctx, state, &judge, Bps::clamped(params.slash_judge_bps), "no reveal")?;
            }
        }
    }
    let weight_of = |judge: &Address| judges::judge(state, judge).map_or(0, |judge| u64::from(judge.weight));
    let sheets: Vec<Sheet<'_>> = revealed
        .iter()
        .map(|(judge, seat, scores)| {
            let seats = u64::from(seat.seats);
            Sheet { weight: seats.saturating_mul(weight_of(judge)), seats, scores }
        })
        .collect();
    let numbers: Vec<u32> = round.samples.iter().map(|sample| sample.number).collect();
    round.results = scoring::medians(&sheets, &numbers, params.lambda_bps);
    let weights = scoring::pay_weights(&sheets, &round.results, params.lambda_bps, params.evidence_clip_milli);
    for ((judge, seat, _), pay_weight) in revealed.iter().zip(weights) {
        let seat = Seat { pay_weight, ..seat.clone() };
        save(state, keys::in_round(keys::SEAT, epoch, profile, judge), &seat);
    }
    round.set_phase(RoundPhase::Settled);
    save(state, keys::round(epoch, profile), &round);
    event(ctx, &round, profile, "settled");
    conclude(ctx, state, &round, profile, &params)
}

/// α, quality and evidence of each sampled worker. All are measured against the running quality before this round.
fn conclude(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    round: &Round,
    profile: &Digest,
    params: &Params,
) -> Result<(), TxError> {
    let mut of_worker: BTreeMap<Address, Vec<SampleResult>> = BTreeMap::new();
    for (sample, result) in round.samples.iter().zip(&round.results) {
        of_worker.entry(sample.worker.parse::<Address>()?).or_default().push(*result);
    }
    let baseline = counter(state, &keys::baseline(profile));
    let mut moved = baseline;
    for (worker, results) in of_worker {
        let count = results.len().max(1) as u64;
        let quality = (results.iter().map(|result| u64::from(result.quality_bps)).sum::<u64>() / count) as u32;
        let relative = scoring::relative_bps(quality, baseline, params.alpha_floor_bps);
        // What was not disclosed says nothing of what the profile is worth.
        if results.iter().all(|result| result.quality_bps > 0) {
            moved = scoring::move_baseline(moved, quality);
        }
        let key = keys::quality(&worker, profile);
        let old: Quality = load(state, &key).unwrap_or_default();
        let known = |value: u32| (old.audits > 0).then_some(value);
        let alpha_bps = scoring::blend_bps(known(old.alpha_bps), relative);
        let evidence = results.iter().map(|result| result.evidence_milli);
        let cusum_milli = scoring::cusum_milli(old.cusum_milli, evidence, params.evidence_clip_milli);
        let record = Quality {
            worker: worker.account(),
            profile_digest: profile.to_vec(),
            alpha_bps,
            quality_bps: scoring::blend_bps(known(old.quality_bps), quality),
            cusum_milli,
            audits: old.audits.saturating_add(count),
            updated_epoch: round.epoch,
        };
        save(state, key, &record);
        let alpha_key = keys::in_round(keys::ALPHA, round.epoch, profile, &worker);
        state.put(alpha_key, alpha_bps.to_be_bytes().to_vec());
        ctx.emit(
            "quality",
            [
                ("worker", worker.account()),
                ("profile", profile.to_string()),
                ("epoch", round.epoch.to_string()),
                ("alpha_bps", alpha_bps.to_string()),
                ("quality_bps", quality.to_string()),
                ("cusum_milli", cusum_milli.to_string()),
            ],
        );
        if cusum_milli >= params.cusum_threshold_milli {
            trial::open(ctx, state, &worker, profile, round.epoch);
        }
    }
    if moved != baseline {
        state.put(keys::baseline(profile), moved.to_be_bytes().to_vec());
    }
    Ok(())
}

/// What the settlement of a pot needs: its α (the worker's average where the round did not score it, half of everything
/// where there is none), and who judged.
pub(crate) fn verdict(state: &dyn StateRead, epoch: u64, profile: &Digest, worker: &Address) -> Verdict {
    let scored = state.get(&keys::in_round(keys::ALPHA, epoch, profile, worker));
    let alpha = scored.and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes).unwrap_or_else(|| {
        let quality = load::<Quality>(state, &keys::quality(worker, profile)).filter(|quality| quality.audits > 0);
        quality.map_or(ALPHA_UNKNOWN_BPS, |quality| quality.alpha_bps)
    });
    let judges = seats(state, epoch, profile)
        .into_iter()
        .filter(|(_, seat)| seat.pay_weight > 0)
        .map(|(judge, seat)| (judge, seat.pay_weight))
        .collect();
    Verdict { alpha: Bps::clamped(alpha), judges }
}

/// A round with everything that belongs to it, and its phase by the block.
pub(super) fn full(state: &dyn StateRead, height: u64, epoch: u64, profile: &Digest) -> Option<Round> {
    let mut round = stored(state, epoch, profile)?;
    let schedule = Schedule::new(&market::params::at(state, epoch.saturating_add(1)));
    let over = |window| schedule.is_over(window, epoch, height);
    round.set_phase(match round.phase() {
        RoundPhase::Receipts if over(Window::Receipts) => RoundPhase::Beacon,
        RoundPhase::Commit if over(Window::Commit) => RoundPhase::Reveal,
        phase => phase,
    });
    round.outputs = beacon::outputs(state, epoch, profile)
        .into_iter()
        .map(|(judge, beta)| polylink_protocol::tiqe_v1::BeaconOutput { judge: judge.account(), beta: beta.to_vec() })
        .collect();
    round.seats = seats(state, epoch, profile)
        .into_iter()
        .map(|(judge, seat)| Seat {
            revealed: load(state, &keys::in_round(keys::REVEAL, epoch, profile, &judge)),
            ..seat
        })
        .collect();
    Some(round)
}
