//! Shows a sampled transcript to a judge that the chain has drawn for it, and to nobody else.

use std::sync::Arc;

use axum::http::StatusCode;
use polylink_protocol::keys::verify_ed25519;
use polylink_protocol::tiqe_v1::{Judge, Sample, TrialState};
use polylink_protocol::transcript::{Disclosure, DisclosureCall, disclosure_digest};

use super::Worker;
use super::service::{address, blocking, chain_error};
use crate::http::ApiError;

pub(super) async fn disclose(worker: &Arc<Worker>, call: &DisclosureCall) -> Result<Disclosure, ApiError> {
    if call.profile_digest != worker.profile_digest.0 {
        let message = format!(
            "this worker serves {}, the call is about {}",
            worker.profile_digest,
            hex::encode(&call.profile_digest)
        );
        return Err(ApiError::field("profile_digest", message));
    }
    let judge = judge(worker, call).await?;
    let me = worker.config.operator.address();
    let digest =
        disclosure_digest(worker.clock.chain_id(), &me, &call.judge, call.epoch, &call.profile_digest, call.point);
    verify_ed25519(&judge.disclosure_key, &digest.0, &call.signature)
        .map_err(|e| ApiError::new(StatusCode::UNAUTHORIZED, "wrong_signature", format!("the call: {e}")))?;
    if !drawn_in_round(worker, call).await? && !drawn_in_trial(worker, call, &judge).await? {
        let message = format!(
            "no round or trial of epoch {} has drawn this worker's receipt at {} for the judge {}",
            call.epoch, call.point, call.judge
        );
        return Err(ApiError::new(StatusCode::FORBIDDEN, "not_drawn", message));
    }
    let (store, epoch, point) = (Arc::clone(worker), call.epoch, call.point);
    let found = blocking(move || {
        let Some(proven) = store.store.sample(epoch, point)? else { return Ok(None) };
        Ok(Some((store.store.transcript(proven.location)?, proven)))
    });
    let (transcript, proven) = found.await?.ok_or_else(|| {
        let message = format!("there is no receipt at {point} of epoch {epoch} any more");
        ApiError::new(StatusCode::NOT_FOUND, "no_transcript", message)
    })?;
    let missing = || ApiError::internal("a transcript without request or receipt");
    Ok(Disclosure {
        request: transcript.request.ok_or_else(missing)?,
        receipt: transcript.receipt.ok_or_else(missing)?,
        path: proven.path,
        root: proven.root.to_proto(),
        prompt_salt: transcript.prompt_salt,
        prompt_token_ids: transcript.prompt_token_ids,
        grammar: transcript.grammar,
        completion_salt: transcript.completion_salt,
        completions: transcript.choices.iter().map(|c| c.token_ids.clone()).collect(),
        sketches: transcript.choices.into_iter().map(|c| c.sketches).collect(),
    })
}

async fn judge(worker: &Worker, call: &DisclosureCall) -> Result<Judge, ApiError> {
    address("judge", &call.judge)?;
    let judges = worker.clock.chain().judges().await.map_err(chain_error)?;
    judges
        .into_iter()
        .find(|judge| judge.operator == call.judge)
        .ok_or_else(|| ApiError::new(StatusCode::FORBIDDEN, "no_judge", format!("{} is no judge on chain", call.judge)))
}

fn holds(samples: &[Sample], worker: &Worker, call: &DisclosureCall) -> bool {
    let point = call.point.to_string();
    let is_it = |s: &Sample| s.worker == worker.operator && s.epoch == call.epoch && s.point == point;
    samples.iter().any(is_it)
}

async fn drawn_in_round(worker: &Worker, call: &DisclosureCall) -> Result<bool, ApiError> {
    let round = worker.clock.chain().round(call.epoch, &call.profile_digest).await.map_err(chain_error)?;
    Ok(round.is_some_and(|round| {
        round.seats.iter().any(|seat| seat.judge == call.judge) && holds(&round.samples, worker, call)
    }))
}

/// In a trial every judge that holds the profile votes.
async fn drawn_in_trial(worker: &Worker, call: &DisclosureCall, judge: &Judge) -> Result<bool, ApiError> {
    if !judge.profiles.contains(&call.profile_digest) {
        return Ok(false);
    }
    let trials = worker.clock.chain().trials(&worker.operator).await.map_err(chain_error)?;
    Ok(trials.iter().any(|trial| {
        trial.state == TrialState::Open as i32
            && trial.profile_digest == call.profile_digest
            && holds(&trial.samples, worker, call)
    }))
}
