//! Which worker is asked: the registry as the gateway last saw it, and a pure choice among its entries.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use polylink_protocol::Digest;
use polylink_protocol::market_v1::{Model, TokenPrices, Worker};

use crate::client::WorkerRef;

/// How long a worker that failed is left alone: at first, and at most.
const COOL_DOWN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// What the gateway knows of a worker beyond the chain's record.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    /// Answers of this gateway that it gives now.
    pub(crate) in_flight: u32,
    /// Choices running and waiting there, as it says itself.
    pub(crate) load: u64,
    /// It answered when it was last asked.
    pub(crate) reachable: bool,
    /// Failures in a row.
    pub(crate) failures: u32,
    /// Left alone until then.
    pub(crate) rest_until: Option<Instant>,
    /// Quality of its settled pots, in basis points.
    pub(crate) alpha_bps: u32,
}

impl Default for Health {
    fn default() -> Self {
        Self { in_flight: 0, load: 0, reachable: true, failures: 0, rest_until: None, alpha_bps: 10_000 }
    }
}

/// The registry.
#[derive(Default)]
pub(crate) struct Registry {
    /// Per profile.
    pub(crate) workers: HashMap<Digest, Vec<WorkerRef>>,
    pub(crate) health: HashMap<String, Health>,
}

/// The workers of a model that may be asked: not jailed, with an endpoint, at a price within the limit now and later.
pub(crate) fn candidates(
    model: &Model,
    profile: &Digest,
    workers: &[Worker],
    epoch: u64,
    limit: Option<&TokenPrices>,
) -> Vec<WorkerRef> {
    let epoch_price = model.price.unwrap_or_default();
    let callable = workers.iter().filter(|w| !w.jailed && !w.endpoint.is_empty());
    let offered = callable.map(|worker| WorkerRef::new(worker, profile, &epoch_price));
    offered.filter(|worker| worker.is_within(epoch, limit)).collect()
}

impl Registry {
    /// The best worker of a profile in an epoch that is not excluded: those that rest or do not answer last, then the least load per
    /// quality, then the lowest price, then by name.
    pub(crate) fn pick(&self, profile: &Digest, epoch: u64, excluded: &[String], now: Instant) -> Option<WorkerRef> {
        let fresh = Health::default();
        let workers = self.workers.get(profile)?.iter().filter(|w| !excluded.contains(&w.operator));
        let priced = workers.filter_map(|worker| worker.offer(epoch).map(|(_, price)| (worker, price)));
        let best = priced.min_by_key(|(worker, price)| {
            let health = self.health.get(&worker.operator).unwrap_or(&fresh);
            let rests = health.rest_until.is_some_and(|until| until > now);
            let load = u64::from(health.in_flight).max(health.load) + 1;
            let cost = load.saturating_mul(10_000) / u64::from(health.alpha_bps.max(100));
            let price = price.prompt.saturating_add(price.completion);
            (rests, !health.reachable, cost, price, worker.operator.clone())
        });
        best.map(|(worker, _)| worker.clone())
    }

    /// It failed: it is left alone, longer each time.
    pub(crate) fn failed(&mut self, operator: &str, now: Instant) {
        let health = self.health.entry(operator.into()).or_default();
        let pause = COOL_DOWN.0.saturating_mul(1 << health.failures.min(10)).min(COOL_DOWN.1);
        health.failures = health.failures.saturating_add(1);
        health.rest_until = Some(now + pause);
    }

    /// Its receipt did not hold: it rests as long as any.
    pub(crate) fn distrusted(&mut self, operator: &str, now: Instant) {
        let health = self.health.entry(operator.into()).or_default();
        health.rest_until = Some(now + COOL_DOWN.1);
    }

    /// It answered.
    pub(crate) fn succeeded(&mut self, operator: &str) {
        let health = self.health.entry(operator.into()).or_default();
        (health.failures, health.rest_until, health.reachable) = (0, None, true);
    }
}

#[cfg(test)]
mod tests {
    use polylink_protocol::market_v1::{Offer, WorkerTerms};

    use crate::client::ProfileTerms;

    use super::*;

    const PROFILE: Digest = Digest([7; 32]);

    fn worker(name: &str, price: u64) -> WorkerRef {
        WorkerRef {
            operator: name.into(),
            endpoint: "http://127.0.0.1:1".into(),
            profile: PROFILE,
            terms: vec![ProfileTerms {
                from_epoch: 2,
                receipt_key: vec![1; 32],
                price: Some(TokenPrices { prompt: price, cached_prompt: 0, completion: price }),
            }],
        }
    }

    fn picked(registry: &Registry, excluded: &[&str]) -> Option<String> {
        let excluded: Vec<String> = excluded.iter().map(|e| e.to_string()).collect();
        registry.pick(&PROFILE, 2, &excluded, Instant::now()).map(|w| w.operator)
    }

    #[test]
    fn the_least_loaded_healthy_cheap_worker_is_asked() {
        let mut registry = Registry::default();
        assert_eq!(picked(&registry, &[]), None);
        registry.workers.insert(PROFILE, vec![worker("b", 5), worker("a", 5), worker("c", 4)]);
        assert_eq!(picked(&registry, &[]).as_deref(), Some("c"), "the cheapest of equals");
        registry.health.entry("c".into()).or_default().in_flight = 2;
        assert_eq!(picked(&registry, &[]).as_deref(), Some("a"), "the least loaded");
        registry.failed("a", Instant::now());
        assert_eq!(picked(&registry, &[]).as_deref(), Some("b"), "not the one that failed");
        registry.health.entry("b".into()).or_default().reachable = false;
        assert_eq!(picked(&registry, &[]).as_deref(), Some("c"));
        assert_eq!(picked(&registry, &["c"]).as_deref(), Some("b"), "better a doubtful one than none");
        assert_eq!(picked(&registry, &["a", "b", "c"]), None);
        registry.succeeded("a");
        assert_eq!(picked(&registry, &[]).as_deref(), Some("a"));
        registry.health.entry("a".into()).or_default().alpha_bps = 2_000;
        assert_eq!(picked(&registry, &[]).as_deref(), Some("c"), "quality weighs against load");
    }

    #[test]
    fn a_worker_that_keeps_failing_rests_longer_up_to_a_limit() {
        let mut registry = Registry::default();
        let now = Instant::now();
        let rest = |registry: &Registry| registry.health["a"].rest_until.unwrap() - now;
        registry.failed("a", now);
        assert_eq!(rest(&registry), COOL_DOWN.0);
        registry.failed("a", now);
        assert_eq!(rest(&registry), COOL_DOWN.0 * 2);
        (0..50).for_each(|_| registry.failed("a", now));
        assert_eq!(rest(&registry), COOL_DOWN.1);
    }

    #[test]
    fn only_offers_within_the_limits_count() {
        let price = |p| Some(TokenPrices { prompt: p, cached_prompt: p, completion: p });
        let offer =
            |profile: Digest, ask| Offer { profile_digest: profile.to_vec(), ask: price(ask), ..Default::default() };
        let on_chain = |name: &str, offers| Worker {
            operator: name.into(),
            endpoint: "http://127.0.0.1:9/".into(),
            terms: vec![WorkerTerms { from_epoch: 2, receipt_key: vec![1; 32], offers }],
            ..Default::default()
        };
        let workers = [
            on_chain("good", vec![offer(PROFILE, 3)]),
            on_chain("dear", vec![offer(PROFILE, 30)]),
            on_chain("other", vec![offer(Digest([8; 32]), 3)]),
            Worker { jailed: true, ..on_chain("jailed", vec![offer(PROFILE, 3)]) },
            Worker { endpoint: String::new(), ..on_chain("nowhere", vec![offer(PROFILE, 3)]) },
        ];
        let model = Model { price: price(5), ..Default::default() };
        let found = candidates(&model, &PROFILE, &workers, 2, price(10).as_ref());
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].operator.as_str(), found[0].endpoint.as_str()), ("good", "http://127.0.0.1:9"));
        assert_eq!(found[0].offer(2).unwrap().1, price(5).unwrap(), "the epoch price where the ask is below it");
        assert!(candidates(&model, &PROFILE, &workers, 1, None).is_empty(), "not before the terms hold");
    }
}
