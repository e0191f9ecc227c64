//! The gateway's background: what the chain offers, how the workers are, sessions to them, and users' vouchers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use polylink_protocol::Digest;
use polylink_protocol::market::profile_digest;
use polylink_protocol::market_v1::{Model, ModelProfile, MsgRedeem};
use polylink_protocol::transcript::WorkerInfo;
use polylink_protocol::tx;

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
/// Vouchers redeemed per epoch; the others wait for the next.
const REDEEM_MAX: usize = 10;

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

/// The name that requests give a model: its id, and its quantisation where there is one.
pub(super) fn name(profile: &ModelProfile) -> String {
    match profile.weight_quantization.as_str() {
        "none" if profile.compute_dtype == "bf16" => format!("{}:bf16", profile.id),
        "" | "none" => profile.id.clone(),
        quantization => format!("{}:{quantization}", profile.id),
    }
}

async fn models_and_workers(gateway: &Gateway) -> Result<(), ChainError> {
    let chain = gateway.payer.clock().chain();
    let mut offered = Vec::with_capacity(gateway.models.len());
    for known in &gateway.models {
        let digest = profile_digest(&known.profile);
        // Asked for by its digest: whoever registers other weights under the same name is not looked at.
        if let Some(model) = chain.model(&digest).await? {
            offered.push(offer(known, digest, model));
        }
    }
    let epoch = gateway.payer.clock().now()?.epoch;
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
        (registry.workers, registry.dear) = (workers, dear);
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

/// Redeems users' newest vouchers once per epoch.
pub(super) async fn redeem(gateway: &Arc<Gateway>) {
    let mut clock = gateway.payer.clock().clone();
    let mut done = clock.now().map(|time| time.epoch).unwrap_or_default();
    // A voucher that the ledger refuses is not sent again and again.
    let mut refused: BTreeMap<String, Instant> = BTreeMap::new();
    loop {
        clock.tick().await;
        let Ok(time) = clock.now() else { continue };
        if time.epoch == done {
            continue;
        }
        done = time.epoch;
        refused.retain(|_, at| at.elapsed() < Duration::from_secs(600));
        let mut vouchers = gateway.payer.store().user_vouchers();
        vouchers.retain(|(key, _, _)| !refused.contains_key(key));
        for (key, voucher, amount) in vouchers.into_iter().take(REDEEM_MAX) {
            let payee = gateway.config.account.address().account();
            let message = tx::any(&MsgRedeem { payee, voucher: Some(voucher) });
            match gateway.payer.clock().chain().broadcast(&gateway.config.account, vec![message]).await {
                Ok(_) => {
                    tracing::info!(key, %amount, "a user's voucher is redeemed");
                    if let Err(error) = gateway.payer.store().user_redeemed(&key, amount) {
                        tracing::warn!(%error, "a redemption is not noted");
                    }
                }
                Err(error) => {
                    tracing::warn!(key, %error, "a user's voucher cannot be redeemed");
                    refused.insert(key, Instant::now());
                }
            }
        }
    }
}
