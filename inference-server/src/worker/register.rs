//! Puts the worker on chain: its model if the chain lacks it and this worker may register it, then the worker itself,
//! or what has changed of it since.

use std::time::Duration;

use polylink_protocol::Message;
use polylink_protocol::cosmos::Any;
use polylink_protocol::market::offer_in;
use polylink_protocol::market_v1::{
    MsgRegisterModel, MsgRegisterWorker, MsgUpdateWorker, Offer, Worker as ChainWorker,
};
use polylink_protocol::tx;

use super::Worker;
use crate::chain::ChainError;

/// First and longest pause between two attempts.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// Tries until the worker stands on chain as configured; `/ready` tells why it does not yet.
pub(super) async fn register(worker: &Worker) {
    let mut pause = PAUSE.0;
    loop {
        let outcome = attempt(worker).await;
        let reason = outcome.as_ref().err().map(|e| format!("the worker cannot be registered on chain: {e}"));
        if let Some(reason) = &reason {
            tracing::warn!(reason, "registration is tried again");
        }
        *worker.not_ready.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = reason;
        if outcome.is_ok() {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

async fn attempt(worker: &Worker) -> Result<(), ChainError> {
    let chain = worker.clock.chain();
    let config = &worker.config;
    if chain.model(&worker.profile_digest).await?.is_none() {
        let provider = config.provider.as_ref().ok_or_else(|| {
            let (id, digest) = (&config.profile.id, worker.profile_digest);
            ChainError::NotFound(format!(
                "the model {id} (profile {digest}) is not on chain: its provider registers it first"
            ))
        })?;
        let message = MsgRegisterModel {
            provider: worker.operator.clone(),
            profile: Some(config.profile.clone()),
            context_length: worker.engine.info().context_length as u32,
            royalty_bps: provider.royalty_bps,
            price: Some(provider.price),
        };
        send(worker, vec![tx::any(&message)]).await?;
        tracing::info!(model = config.profile.id, "the model is registered");
    }
    match chain.worker(&worker.operator).await? {
        None => {
            let message = MsgRegisterWorker {
                operator: worker.operator.clone(),
                endpoint: config.endpoint.clone(),
                tls_key: vec![],
                receipt_key: config.receipt_key.public_key().to_vec(),
                offers: vec![offer(worker)],
                bond: config.bond.to_string(),
            };
            send(worker, vec![tx::any(&message)]).await?;
            tracing::info!(operator = worker.operator, bond = %config.bond, "the worker is registered");
        }
        Some(found) if found.jailed => {
            return Err(ChainError::Refused("the worker is jailed: it was convicted in a trial".into()));
        }
        Some(found) => {
            if let Some(message) = update(worker, &found) {
                send(worker, vec![tx::any(&message)]).await?;
                tracing::info!(
                    operator = worker.operator,
                    "the worker's record is updated; a new key or ask holds from the next epoch on"
                );
            }
        }
    }
    // As it stands now: the key and the asks of this epoch may still be the old ones.
    refresh(worker).await
}

/// Reads the worker's record: the chain itself ends the offers of a worker that lost its place, its bond or a trial.
pub(super) async fn refresh(worker: &Worker) -> Result<(), ChainError> {
    let missing = || ChainError::NotFound("the worker's record is not on chain".into());
    let record = worker.clock.chain().worker(&worker.operator).await?.ok_or_else(missing)?;
    let ended = record.terms.last().is_none_or(|terms| offer_in(terms, &worker.profile_digest).is_none());
    let reason = match (record.jailed, ended) {
        (true, _) => Some("the worker is jailed: it was convicted in a trial".to_owned()),
        (_, true) => Some(
            "the chain ended the worker's offer: its bond is below the minimum or the least of a full \
             profile; bond more and start the worker again"
                .to_owned(),
        ),
        _ => None,
    };
    *worker.not_ready.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = reason;
    *worker.record.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = record;
    Ok(())
}

fn offer(worker: &Worker) -> Offer {
    Offer {
        profile_digest: worker.profile_digest.to_vec(),
        ask: Some(worker.config.ask),
        capacity_tokens_per_epoch: worker.config.capacity_tokens_per_epoch,
    }
}

/// What differs from the record on chain.
fn update(worker: &Worker, found: &ChainWorker) -> Option<MsgUpdateWorker> {
    let config = &worker.config;
    let key = config.receipt_key.public_key().to_vec();
    let offers = vec![offer(worker)];
    let newest = found.terms.last();
    let same_terms = newest.is_some_and(|terms| terms.receipt_key == key && terms.offers == offers);
    let same = found.endpoint == config.endpoint && same_terms;
    (!same).then(|| MsgUpdateWorker {
        operator: worker.operator.clone(),
        endpoint: config.endpoint.clone(),
        tls_key: vec![],
        receipt_key: key,
        offers,
    })
}

/// Sends messages of the operator.
pub(super) async fn send(worker: &Worker, messages: Vec<Any>) -> Result<u64, ChainError> {
    debug_assert!(messages.iter().all(|m| !m.value.is_empty()), "every message names its signer");
    worker.clock.chain().broadcast(&worker.config.operator, messages).await
}

/// Bytes of messages, for limits on how many go into one transaction.
pub(super) fn size(messages: &[Any]) -> usize {
    messages.iter().map(Message::encoded_len).sum()
}
