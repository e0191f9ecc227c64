//! Which worker is asked: the registry as the gateway last saw it, and a pure choice among its entries.
//!
//! A worker that asks more than the gateway pays is never asked. Among the others, in this order: one that does not rest
//! and answers; one with a free slot; the lowest price per quality; the least load; by name.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use polylink_protocol::Digest;
use polylink_protocol::market::{price_at, within};
use polylink_protocol::market_v1::{Model, TokenPrices, Worker};

use crate::client::WorkerRef;

/// How long a worker that failed is left alone: at first, and at most.
const COOL_DOWN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// The most that a gateway pays for 1,000 tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PriceLimit {
    /// So many times the model's registered price, in each of the three. (The epoch price is no measure: it falls where
    /// nobody asks, and a worker's ask does not.)
    Factor(u64),
    /// This much, whatever the price is.
    Fixed(TokenPrices),
}

impl PriceLimit {
    /// Where no limit is set: twice the registered price.
    pub const DEFAULT: Self = Self::Factor(2);

    /// As prices, for a model with this registered price.
    pub fn of(&self, registered: &TokenPrices) -> TokenPrices {
        match self {
            Self::Factor(factor) => TokenPrices {
                prompt: registered.prompt.saturating_mul(*factor),
                cached_prompt: registered.cached_prompt.saturating_mul(*factor),
                completion: registered.completion.saturating_mul(*factor),
            },
            Self::Fixed(prices) => *prices,
        }
    }
}

/// Workers of a profile that ask more than the limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Dear {
    pub(crate) workers: usize,
    /// What the cheapest of them takes.
    pub(crate) cheapest: TokenPrices,
    pub(crate) limit: TokenPrices,
}

/// What the gateway knows of a worker beyond the chain's record.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    /// Answers of this gateway that it gives now.
    pub(crate) in_flight: u32,
    /// Choices running and waiting there, as it says itself.
    pub(crate) load: u64,
    /// Choices that it can run at once, as it says itself; 0: unknown.
    pub(crate) slots: u64,
    /// It answered when it was last asked.
    pub(crate) reachable: bool,
    /// Failures in a row.
    pub(crate) failures: u32,
    /// Left alone until then, or until it answers.
    pub(crate) rest_until: Option<Instant>,
    /// Left alone until then, whatever it does.
    pub(crate) distrusted_until: Option<Instant>,
    /// Quality of its settled pots, in basis points.
    pub(crate) alpha_bps: u32,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            in_flight: 0,
            load: 0,
            slots: 0,
            reachable: true,
            failures: 0,
            rest_until: None,
            distrusted_until: None,
            alpha_bps: 10_000,
        }
    }
}

/// The registry.
#[derive(Default)]
pub(crate) struct Registry {
    /// Per profile.
    pub(crate) workers: HashMap<Digest, Vec<WorkerRef>>,
    /// Per profile, where there are any.
    pub(crate) dear: HashMap<Digest, Dear>,
    pub(crate) health: HashMap<String, Health>,
    /// In which epoch it was read: the prices of a later one are not in it.
    pub(crate) epoch: u64,
}

/// The epoch price of a model; where its entry is dropped already, as registered.
pub(crate) fn epoch_price(model: &Model, epoch: u64) -> TokenPrices {
    price_at(model, epoch).or(model.price).unwrap_or_default()
}

/// The workers of a model that may be asked: not jailed, with an endpoint, at a price within the limit now and later; and
/// what is known of those above it.
pub(crate) fn candidates(
    model: &Model,
    profile: &Digest,
    workers: &[Worker],
    epoch: u64,
    limit: &TokenPrices,
) -> (Vec<WorkerRef>, Option<Dear>) {
    let callable = workers.iter().filter(|w| !w.jailed && !w.endpoint.is_empty());
    let offered = callable.map(|worker| WorkerRef::new(worker, profile, model));
    let offered = offered.filter(|worker| worker.is_within(epoch, None));
    let (affordable, above): (Vec<_>, Vec<_>) = offered.partition(|worker| worker.is_within(epoch, Some(limit)));
    // What puts a worker above the limit may be what it takes from the next epoch on.
    let dear = |worker: &WorkerRef| {
        let later = worker.terms.iter().filter(|terms| terms.from_epoch > epoch);
        let mut prices = worker.at(epoch).into_iter().chain(later).filter_map(|terms| terms.price);
        prices.find(|price| !within(price, limit))
    };
    let cheapest = above.iter().filter_map(dear).min_by_key(sum);
    (affordable, cheapest.map(|cheapest| Dear { workers: above.len(), cheapest, limit: *limit }))
}

/// One figure to compare prices by: of 1,000 prompt tokens and 1,000 completion tokens.
fn sum(price: &TokenPrices) -> u64 {
    price.prompt.saturating_add(price.completion)
}

impl Registry {
    /// The best worker of a profile in an epoch that is not excluded; see the module. Where none has a free slot, load
    /// comes before price. A doubtful one is better than none.
    pub(crate) fn pick(&self, profile: &Digest, epoch: u64, excluded: &[String], now: Instant) -> Option<WorkerRef> {
        let fresh = Health::default();
        let workers = self.workers.get(profile)?.iter().filter(|w| !excluded.contains(&w.operator));
        let priced = workers.filter_map(|worker| worker.offer(epoch).map(|(_, price)| (worker, price)));
        let best = priced.min_by_key(|(worker, price)| {
            let health = self.health.get(&worker.operator).unwrap_or(&fresh);
            let rests = health.rest_until.max(health.distrusted_until).is_some_and(|until| until > now);
            let load = u64::from(health.in_flight).max(health.load);
            let queue = if health.slots > 0 && load >= health.slots { load } else { 0 };
            let price = u128::from(sum(price)) * 10_000 / u128::from(health.alpha_bps.max(100));
            (rests, !health.reachable, queue, price, load, worker.operator.clone())
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

    /// It refused a call that others take: it is left alone for a moment. Not longer each time, since who asks may have
    /// his hand in what is refused.
    pub(crate) fn refused(&mut self, operator: &str, now: Instant) {
        let health = self.health.entry(operator.into()).or_default();
        health.rest_until = health.rest_until.max(Some(now + COOL_DOWN.0));
    }

    /// Its receipt did not hold: it rests as long as any.
    pub(crate) fn distrusted(&mut self, operator: &str, now: Instant) {
        let health = self.health.entry(operator.into()).or_default();
        health.distrusted_until = Some(now + COOL_DOWN.1);
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
    fn the_cheapest_healthy_worker_with_a_free_slot_is_asked() {
        let mut registry = Registry::default();
        assert_eq!(picked(&registry, &[]), None);
        registry.workers.insert(PROFILE, vec![worker("b", 5), worker("a", 5), worker("c", 4)]);
        assert_eq!(picked(&registry, &[]).as_deref(), Some("c"), "the cheapest");
        *registry.health.entry("c".into()).or_default() = Health { in_flight: 2, slots: 3, ..Health::default() };
        assert_eq!(picked(&registry, &[]).as_deref(), Some("c"), "price before load");
        registry.health.entry("c".into()).or_default().in_flight = 3;
        assert_eq!(picked(&registry, &[]).as_deref(), Some("a"), "not everything to one that is busy");
        registry.health.entry("a".into()).or_default().load = 1;
        assert_eq!(picked(&registry, &[]).as_deref(), Some("b"), "the less loaded of equal price");
        registry.health.entry("a".into()).or_default().load = 0;
        registry.failed("a", Instant::now());
        assert_eq!(picked(&registry, &[]).as_deref(), Some("b"), "not the one that failed");
        registry.health.entry("b".into()).or_default().reachable = false;
        assert_eq!(picked(&registry, &[]).as_deref(), Some("c"));
        assert_eq!(picked(&registry, &["c"]).as_deref(), Some("b"), "better a doubtful one than none");
        assert_eq!(picked(&registry, &["a", "b", "c"]), None);
        registry.succeeded("a");
        assert_eq!(picked(&registry, &[]).as_deref(), Some("a"));
        registry.health.entry("a".into()).or_default().alpha_bps = 2_000;
        assert_eq!(picked(&registry, &["b"]).as_deref(), Some("a"), "a free slot counts more than quality");
        registry.health.entry("c".into()).or_default().slots = 8;
        assert_eq!(picked(&registry, &["b"]).as_deref(), Some("c"));
        registry.health.entry("c".into()).or_default().alpha_bps = 1_000;
        assert_eq!(picked(&registry, &["b"]).as_deref(), Some("a"), "what counts is the price of quality");
    }

    #[test]
    fn when_all_are_full_the_load_decides() {
        let mut registry = Registry::default();
        registry.workers.insert(PROFILE, vec![worker("cheap", 1), worker("dear", 9)]);
        for (name, load) in [("cheap", 7), ("dear", 5)] {
            *registry.health.entry(name.into()).or_default() = Health { load, slots: 4, ..Health::default() };
        }
        assert_eq!(picked(&registry, &[]).as_deref(), Some("dear"));
    }

    #[test]
    fn who_refuses_rests_a_moment_and_who_cheats_a_minute() {
        let mut registry = Registry::default();
        let now = Instant::now();
        let rest = |registry: &Registry| registry.health["a"].rest_until.unwrap() - now;
        (0..9).for_each(|_| registry.refused("a", now));
        assert_eq!(rest(&registry), COOL_DOWN.0);
        registry.workers.insert(PROFILE, vec![worker("a", 1), worker("b", 9)]);
        registry.distrusted("a", now);
        registry.succeeded("a");
        assert_eq!(picked(&registry, &[]).as_deref(), Some("b"), "an answer does not make it good");
        let a_minute_later = now + COOL_DOWN.1;
        assert_eq!(registry.pick(&PROFILE, 2, &[], a_minute_later).unwrap().operator, "a");
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
        let limit = PriceLimit::DEFAULT.of(&price(5).unwrap());
        assert_eq!(limit, price(10).unwrap());
        let (found, dear) = candidates(&model, &PROFILE, &workers, 2, &limit);
        assert_eq!(dear, Some(Dear { workers: 1, cheapest: price(30).unwrap(), limit }));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].operator.as_str(), found[0].endpoint.as_str()), ("good", "http://127.0.0.1:9"));
        assert_eq!(found[0].offer(2).unwrap().1, price(5).unwrap(), "the epoch price where the ask is below it");
        let none = (vec![], None);
        assert_eq!(candidates(&model, &PROFILE, &workers, 1, &limit), none, "not before the terms hold");
        // Each of the three counts.
        for (prompt, cached_prompt, completion) in [(11, 0, 0), (0, 11, 0), (0, 0, 11)] {
            let ask = Some(TokenPrices { prompt, cached_prompt, completion });
            let offer = Offer { profile_digest: PROFILE.to_vec(), ask, ..Default::default() };
            let (found, dear) = candidates(&model, &PROFILE, &[on_chain("dear", vec![offer])], 2, &limit);
            assert!(found.is_empty() && dear.is_some(), "{ask:?}");
        }
        let fixed = PriceLimit::Fixed(price(30).unwrap());
        assert_eq!(candidates(&model, &PROFILE, &workers, 2, &fixed.of(&price(5).unwrap())).0.len(), 2);
    }
}
