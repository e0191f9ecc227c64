//! A worker as the paying side sees it: where it listens, and by which key and at which price it answers in an epoch.
//!
//! Both are the chain's word. What a worker changes holds from the next epoch on, and so does a new epoch price, so that a
//! request is signed, and its receipt checked, by the terms of the request's epoch, not by the newest.

use polylink_protocol::Digest;
use polylink_protocol::market::{offer_in, price_at, price_in, terms_at, within};
use polylink_protocol::market_v1::{Model, TokenPrices, Worker};

/// What holds for a profile from an epoch until the next entry's.
#[derive(Clone, Debug, PartialEq)]
pub struct ProfileTerms {
    /// Its first epoch.
    pub from_epoch: u64,
    /// Signs receipts.
    pub receipt_key: Vec<u8>,
    /// max(epoch price, ask); None: the profile is not offered, or the price is of an epoch that nobody needs any more.
    pub price: Option<TokenPrices>,
}

/// A worker, from the chain's registry.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerRef {
    /// Its account.
    pub operator: String,
    /// Where it listens, without a trailing slash.
    pub endpoint: String,
    /// The profile asked of it.
    pub profile: Digest,
    /// Ascending by epoch.
    pub terms: Vec<ProfileTerms>,
}

impl WorkerRef {
    /// From the chain's records: an entry for each epoch in which the worker's terms or the epoch price change.
    pub fn new(worker: &Worker, profile: &Digest, model: &Model) -> Self {
        let changes = worker.terms.iter().map(|terms| terms.from_epoch);
        let mut changes: Vec<u64> = changes.chain(model.prices.iter().map(|entry| entry.from_epoch)).collect();
        changes.sort_unstable();
        changes.dedup();
        let terms = changes.into_iter().filter_map(|from_epoch| {
            let terms = terms_at(worker, from_epoch)?;
            let epoch_price = offer_in(terms, profile).and_then(|_| price_at(model, from_epoch));
            let price = epoch_price.map(|epoch_price| price_in(terms, profile, &epoch_price));
            Some(ProfileTerms { from_epoch, receipt_key: terms.receipt_key.clone(), price })
        });
        Self {
            operator: worker.operator.clone(),
            endpoint: worker.endpoint.trim_end_matches('/').into(),
            profile: *profile,
            terms: terms.collect(),
        }
    }

    /// What holds in an epoch; None before the first entry.
    pub fn at(&self, epoch: u64) -> Option<&ProfileTerms> {
        self.terms.iter().rev().find(|terms| terms.from_epoch <= epoch)
    }

    /// Key and price of an epoch's answers; None where the profile is not offered in it.
    pub fn offer(&self, epoch: u64) -> Option<(&[u8], TokenPrices)> {
        let terms = self.at(epoch)?;
        Some((&terms.receipt_key, terms.price?))
    }

    /// True when the profile is offered in this epoch and, as far as is known, at no price above the limit from it on.
    pub fn is_within(&self, epoch: u64, limit: Option<&TokenPrices>) -> bool {
        let later = self.terms.iter().filter(|terms| terms.from_epoch > epoch).filter_map(|terms| terms.price);
        let mut prices = self.offer(epoch).map(|(_, price)| price).into_iter().chain(later);
        self.offer(epoch).is_some() && prices.all(|price| limit.is_none_or(|limit| within(&price, limit)))
    }
}

#[cfg(test)]
mod tests {
    use polylink_protocol::market_v1::{Offer, PriceTerms, WorkerTerms};

    use super::*;

    const PROFILE: Digest = Digest([7; 32]);

    fn price(all: u64) -> TokenPrices {
        TokenPrices { prompt: all, cached_prompt: all, completion: all }
    }

    fn terms(from_epoch: u64, ask: Option<u64>) -> WorkerTerms {
        let offer = |ask| Offer { profile_digest: PROFILE.to_vec(), ask: Some(price(ask)), ..Default::default() };
        WorkerTerms { from_epoch, receipt_key: vec![from_epoch as u8], offers: ask.map(offer).into_iter().collect() }
    }

    #[test]
    fn a_request_goes_by_the_terms_of_its_epoch() {
        let record = Worker { terms: vec![terms(4, Some(3)), terms(5, Some(9)), terms(6, None)], ..Default::default() };
        let mut model = Model { price: Some(price(5)), ..Default::default() };
        let worker = WorkerRef::new(&record, &PROFILE, &model);
        let offers = [3, 4, 5, 6, 7].map(|epoch| worker.offer(epoch).map(|(key, price)| (key[0], price.prompt)));
        assert_eq!(offers, [None, Some((4, 5)), Some((5, 9)), None, None]);
        let within = |epoch| worker.is_within(epoch, Some(&price(8)));
        assert_eq!([3, 4, 5, 6].map(within), [false; 4], "epoch 4 is within the limit, but the next one is known");
        assert!(worker.is_within(4, Some(&price(9))) && worker.is_within(5, None) && !worker.is_within(6, None));

        // The epoch price moves: each epoch has its own, what is older than the record knows has none, the key all the same.
        let entry = |from_epoch, all| PriceTerms { from_epoch, price: Some(price(all)) };
        model.prices = vec![entry(3, 1), entry(5, 12), entry(6, 13)];
        let record = Worker { terms: vec![terms(1, Some(3)), terms(4, Some(6))], ..Default::default() };
        let worker = WorkerRef::new(&record, &PROFILE, &model);
        let prices = [1, 2, 3, 4, 5, 6, 9].map(|epoch| worker.offer(epoch).map(|(_, price)| price.prompt));
        assert_eq!(prices, [None, None, Some(3), Some(6), Some(12), Some(13), Some(13)]);
        assert_eq!([2, 9].map(|epoch| worker.at(epoch).unwrap().receipt_key[0]), [1, 4]);
        assert!(
            !worker.is_within(4, Some(&price(12))) && worker.is_within(4, Some(&price(13))),
            "what is known to come"
        );
    }
}
