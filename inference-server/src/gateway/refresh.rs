//! The gateway's background: what the chain offers, how the workers are, sessions to them, users' vouchers, and receipts that
//! workers have omitted.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use polylink_protocol::market::profile_digest;
use polylink_protocol::market_v1::{Model, ModelProfile, MsgRedeem, SignedVoucher};
use polylink_protocol::transcript::WorkerInfo;
use polylink_protocol::{Amount, Digest, tx};

use super::workers::candidates;
use super::{Gateway, GatewayModel, Offered};
use crate::chain::ChainError;
use crate::client::WorkerRef;

/// Time between two looks at registry and workers.
const PERIOD: Duration = Duration::from_secs(2);
/// Looks between two looks at qualities, which change once per epoch, and at sessions that are no longer asked.
const QUALITY_EVERY: u64 = 5;
/// Workers whose load is asked for in one look; further ones are asked in later looks.
const WORKERS_MAX: usize = 256;
/// Vouchers redeemed per epoch; the others wait for the next, and are its first.
const REDEEM_MAX: usize = 200;
/// How long a voucher that the ledger refuses is left alone.
const REFUSED_PAUSE: Duration = Duration::from_secs(600);
/// Redemptions of one transaction: about 6 KiB.
const REDEEM_BATCH: usize = 20;

/// Looks after the registry until it is dropped.
pub(super) async fn run(gateway: &Arc<Gateway>) {
    for look in 0_u64.. {
        if let Err(error) = models_and_workers(gateway).await {
            tracing::warn!(%error, "the registry cannot be read; what was known stays in use");
        }
        let workers: Vec<WorkerRef> =
            gateway.registry().workers.values().flatten().take(WORKERS_MAX).cloned().collect();
        futures::future::join_all(workers.iter().map(|worker| look_after(gateway, worker))).await;
        if look % QUALITY_EVERY == 0 {
            if let Err(error) = gateway.payer.settle_older().await {
                tracing::warn!(%error, "older sessions cannot be settled now; tried again");
            }
            for worker in &workers {
                quality(gateway, worker).await;
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// The name that requests give a model: its id, and its quantisation or its kind of bf16 where there is one.
pub(super) fn name(profile: &ModelProfile) -> String {
    match profile.weight_quantization.as_str() {
        "none" if profile.numerics == "amx-bf16" => format!("{}:amx-bf16", profile.id),
        "none" if profile.numerics == "sm90-bf16" => format!("{}:sm90-bf16", profile.id),
        "none" if profile.compute_dtype == "bf16" => format!("{}:bf16", profile.id),
        "" | "none" => profile.id.clone(),
        quantization => format!("{}:{quantization}", profile.id),
    }
}

/// Sees to it that the registry knows an epoch's prices before anything is asked for in it; requests wait for one look.
pub(super) async fn follow(gateway: &Gateway, epoch: u64) {
    let _one = gateway.following.lock().await;
    let known = gateway.registry().epoch;
    if known >= epoch {
        return;
    }
    if let Err(error) = models_and_workers(gateway).await {
        tracing::warn!(%error, "the epoch's prices cannot be read; what was known stays in use");
    }
}

async fn models_and_workers(gateway: &Gateway) -> Result<(), ChainError> {
    let chain = gateway.payer.clock().chain();
    // Before the reading: what is read is at least as new.
    let epoch = gateway.payer.clock().now()?.epoch;
    let mut offered = Vec::with_capacity(gateway.models.len());
    for known in &gateway.models {
        let digest = profile_digest(&known.profile);
        // Asked for by its digest: whoever registers other weights under the same name is not looked at.
        if let Some(model) = chain.model(&digest).await? {
            offered.push(offer(known, digest, model));
        }
    }
    let (mut workers, mut dear) = (HashMap::new(), HashMap::new());
    for offer in &offered {
        let found = chain.workers(&offer.digest).await?;
        let limit = gateway.config.max_price.of(&offer.model.price.unwrap_or_default());
        let (within, above) = candidates(&offer.model, &offer.digest, &found, epoch, &limit);
        workers.insert(offer.digest, within);
        dear.extend(above.map(|above| (offer.digest, above)));
    }
    {
        let mut registry = gateway.registry();
        (registry.workers, registry.dear, registry.epoch) = (workers, dear, epoch);
    }
    *gateway.offered.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = offered;
    Ok(())
}

fn offer(known: &GatewayModel, digest: Digest, model: Model) -> Offered {
    let mut text = known.text.clone();
    text.context_length = text.context_length.min(model.context_length);
    Offered { name: name(&known.profile), digest, text, model }
}

/// Asks a worker how it is, and opens or tops up the session to it.
async fn look_after(gateway: &Arc<Gateway>, worker: &WorkerRef) {
    let info = gateway.payer.http().get::<WorkerInfo>(&format!("{}/polylink/v1/info", worker.endpoint)).await;
    let reachable = match &info {
        Ok(info) => info.operator == worker.operator && signs_now(gateway, worker, &info.receipt_key),
        Err(error) => {
            tracing::debug!(worker = worker.operator, %error, "a worker does not answer");
            false
        }
    };
    {
        let mut registry = gateway.registry();
        let health = registry.health.entry(worker.operator.clone()).or_default();
        health.reachable = reachable;
        let said = info.map(|info| (info.running.saturating_add(info.waiting), info.slots));
        (health.load, health.slots) = said.unwrap_or_default();
    }
    if reachable && let Err(error) = gateway.payer.session(worker).await {
        tracing::warn!(worker = worker.operator, %error, "there is no session to this worker yet");
    }
}

/// Whether it holds the key of the current epoch; a worker that changes its key answers again with the next one.
fn signs_now(gateway: &Gateway, worker: &WorkerRef, receipt_key: &[u8]) -> bool {
    let epoch = gateway.payer.clock().now().map(|time| time.epoch);
    epoch.is_ok_and(|epoch| worker.at(epoch).is_some_and(|terms| terms.receipt_key == receipt_key))
}

async fn quality(gateway: &Gateway, worker: &WorkerRef) {
    let found = gateway.payer.clock().chain().quality(&worker.operator, &worker.profile).await;
    if let Ok(Some(quality)) = found
        && quality.audits > 0
    {
        gateway.registry().health.entry(worker.operator.clone()).or_default().alpha_bps = quality.alpha_bps;
    }
}

/// Redeems users' newest vouchers once per epoch: those that have waited longest first, so that none waits for ever,
/// however many keys are always owing.
pub(super) async fn redeem(gateway: &Arc<Gateway>) {
    let mut clock = gateway.payer.clock().clone();
    let mut done = clock.now().map(|time| time.epoch).unwrap_or_default();
    // Per key, the epoch in which its voucher was last sent, or refused.
    let mut turns: BTreeMap<String, u64> = BTreeMap::new();
    // A voucher that the ledger refuses is not sent again and again.
    let mut refused: BTreeMap<String, Instant> = BTreeMap::new();
    loop {
        clock.tick().await;
        let Ok(time) = clock.now() else { continue };
        if time.epoch == done {
            continue;
        }
        done = time.epoch;
        refused.retain(|_, at| at.elapsed() < REFUSED_PAUSE);
        let mut vouchers = by_turn(gateway.payer.store().user_vouchers(), &turns);
        vouchers.retain(|(key, _, _)| !refused.contains_key(key));
        turns.retain(|key, _| vouchers.iter().any(|(owing, _, _)| owing == key));
        for batch in vouchers.into_iter().take(REDEEM_MAX).collect::<Vec<_>>().chunks(REDEEM_BATCH) {
            turns.extend(batch.iter().map(|(key, _, _)| (key.clone(), time.epoch)));
            match send(gateway, batch).await {
                Ok(()) => {}
                // One bad voucher fails its whole transaction: then each goes alone.
                Err(ChainError::Refused(_)) => {
                    for alone in batch {
                        if let Err(error) = send(gateway, std::slice::from_ref(alone)).await {
                            tracing::warn!(key = alone.0, %error, "a user's voucher cannot be redeemed");
                            refused.insert(alone.0.clone(), Instant::now());
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "users' vouchers cannot be redeemed now; tried again in their turn")
                }
            }
        }
    }
}

/// Looks once per epoch whether the workers have committed what they signed, and reports what they have not.
pub(super) async fn report(gateway: &Arc<Gateway>) {
    let mut clock = gateway.payer.clock().clone();
    let mut looked = 0;
    loop {
        clock.tick().await;
        let Ok(time) = clock.now() else { continue };
        if time.epoch <= looked || time.offset() < time.receipts_window {
            continue;
        }
        match gateway.payer.report_omissions(gateway.config.report_stake_max).await {
            Ok(()) => looked = time.epoch,
            Err(error) => {
                tracing::warn!(%error, "workers' roots cannot be looked at now; tried again");
                tokio::time::sleep(PERIOD).await;
            }
        }
    }
}

type UserVoucher = (String, SignedVoucher, Amount);

/// In the order in which they are redeemed: whose turn is longest ago (never: first), then the largest amount.
fn by_turn(mut vouchers: Vec<UserVoucher>, turns: &BTreeMap<String, u64>) -> Vec<UserVoucher> {
    vouchers.sort_by_key(|(key, _, amount)| (turns.get(key).copied(), std::cmp::Reverse(*amount)));
    vouchers
}

async fn send(gateway: &Gateway, batch: &[UserVoucher]) -> Result<(), ChainError> {
    let payee = gateway.config.account.address().account();
    let message =
        |voucher: &SignedVoucher| tx::any(&MsgRedeem { payee: payee.clone(), voucher: Some(voucher.clone()) });
    let messages = batch.iter().map(|(_, voucher, _)| message(voucher)).collect();
    gateway.payer.clock().chain().broadcast(&gateway.config.account, messages).await?;
    for (key, _, amount) in batch {
        tracing::info!(key, %amount, "a user's voucher is redeemed");
        if let Err(error) = gateway.payer.store().user_redeemed(key, *amount) {
            tracing::warn!(%error, "a redemption is not noted");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_its_turn_however_many_are_owing() {
        let owing = |n: u32| (format!("key-{n:04}"), SignedVoucher::default(), Amount(u128::from(n)));
        let keys = 3 * REDEEM_MAX as u32;
        let mut turns = BTreeMap::new();
        for epoch in 1..=3 {
            let order = by_turn((0..keys).map(owing).collect(), &turns);
            if epoch == 1 {
                assert_eq!(order[0].2, Amount(u128::from(keys - 1)), "the largest first");
            }
            turns.extend(order.into_iter().take(REDEEM_MAX).map(|(key, _, _)| (key, epoch)));
        }
        assert_eq!(turns.len(), keys as usize, "after as many epochs as are needed all had theirs");
    }
}
