//! Workers: where they are, what they offer, and the bond that answers for it.

use polylink_protocol::keys::is_ed25519_key;
use polylink_protocol::market::{offer_in, set_terms, terms_at};
use polylink_protocol::market_v1::{
    MsgRegisterWorker, MsgRegisterWorkerResponse, MsgUpdateWorker, MsgUpdateWorkerResponse, Offer, Params, Worker,
    WorkerTerms,
};
use polylink_protocol::{Address, Digest};

use super::error::MarketError;
use super::models::{self, PRICE_MAX};
use super::params::{self, min_bond};
use super::records::{save, uplk, worker};
use super::{OFFERS_PER_WORKER_MAX, keys, places};
use crate::bank::{self, Pool};
use crate::context::Context;
use crate::error::TxError;
use crate::modules::Handle;
use crate::store::{StateRead, StateWrite};

/// The longest endpoint, in bytes.
const ENDPOINT_BYTES_MAX: usize = 256;

fn check_endpoint(endpoint: &str) -> Result<(), MarketError> {
    let host = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
    let Some(host) = host.filter(|host| !host.is_empty()) else {
        return Err(MarketError::Endpoint("`http://host:port` or `https://host:port` is expected"));
    };
    if endpoint.len() > ENDPOINT_BYTES_MAX || !host.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(MarketError::Endpoint("at most 256 visible ASCII characters are expected"));
    }
    Ok(())
}

fn check_tls_key(key: &[u8]) -> Result<(), MarketError> {
    if key.is_empty() || key.len() == 32 {
        return Ok(());
    }
    Err(MarketError::Key {
        name: "TLS key",
        reason: "the SHA-256 of the endpoint's public key, or nothing, is expected",
    })
}

fn check_receipt_key(key: &[u8]) -> Result<(), MarketError> {
    if is_ed25519_key(key) {
        return Ok(());
    }
    Err(MarketError::Key { name: "receipt key", reason: "an ed25519 public key of 32 bytes is expected" })
}

fn check_offers(offers: &[Offer]) -> Result<(), MarketError> {
    if offers.is_empty() || offers.len() > OFFERS_PER_WORKER_MAX {
        return Err(MarketError::Offers(format!("1 to {OFFERS_PER_WORKER_MAX} are expected, not {}", offers.len())));
    }
    for (number, offer) in offers.iter().enumerate() {
        models::digest(&offer.profile_digest)?;
        if offers[..number].iter().any(|earlier| earlier.profile_digest == offer.profile_digest) {
            return Err(MarketError::Offers("a profile stands there twice; one price per profile is expected".into()));
        }
        if offer.capacity_tokens_per_epoch == 0 {
            return Err(MarketError::Offers("a capacity of 0 tokens per epoch offers nothing".into()));
        }
        let ask = offer.ask.unwrap_or_default();
        if ask.prompt.max(ask.cached_prompt).max(ask.completion) > PRICE_MAX {
            return Err(MarketError::Offers("an ask of at most 10^12 uplk per 1,000 tokens is expected".into()));
        }
    }
    Ok(())
}

/// True when the worker offers the profile in this epoch.
pub fn offers(worker: &Worker, profile: &Digest, epoch: u64) -> bool {
    terms_at(worker, epoch).is_some_and(|terms| offer_in(terms, profile).is_some())
}

/// Refuses a worker that may not take part: convicted, or bonded below the minimum.
pub fn check_active(worker: &Worker, params: &Params) -> Result<(), MarketError> {
    if worker.jailed {
        return Err(MarketError::Jailed(worker.operator.clone()));
    }
    let (bond, min) = (uplk(&worker.bond), min_bond(params));
    if bond < min {
        return Err(MarketError::BondTooSmall { found: bond, min });
    }
    Ok(())
}

/// The worker of an operator.
pub(super) fn known(state: &dyn StateRead, operator: &Address) -> Result<Worker, MarketError> {
    worker(state, operator).ok_or_else(|| MarketError::UnknownWorker(operator.account()))
}

impl Handle for MsgRegisterWorker {
    const AMINO_NAME: &'static str = "polylink/market/RegisterWorker";
    type Response = MsgRegisterWorkerResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.operator.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        check_endpoint(&self.endpoint)?;
        check_tls_key(&self.tls_key)?;
        check_receipt_key(&self.receipt_key)?;
        check_offers(&self.offers)?;
        self.bond.parse::<polylink_protocol::Amount>()?;
        Ok(())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgRegisterWorkerResponse, TxError> {
        let operator: Address = self.operator.parse()?;
        if worker(state, &operator).is_some() {
            return Err(MarketError::WorkerExists(operator.account()).into());
        }
        let (bond, min) = (self.bond.parse()?, min_bond(&params::at(state, ctx.epoch)));
        if bond < min {
            return Err(MarketError::BondTooSmall { found: bond, min }.into());
        }
        bank::transfer(ctx, state, operator, Pool::WorkerBonds, bond)?;
        places::take(ctx, state, &operator, bond, &self.offers)?;
        let record = Worker {
            operator: operator.account(),
            endpoint: self.endpoint.clone(),
            tls_key: self.tls_key.clone(),
            // Nothing was served before, so that these may hold at once.
            terms: vec![WorkerTerms {
                from_epoch: ctx.epoch,
                receipt_key: self.receipt_key.clone(),
                offers: self.offers.clone(),
            }],
            bond: bond.to_string(),
            unbonding: vec![],
            jailed: false,
            registered_epoch: ctx.epoch,
            last_heartbeat_epoch: 0,
        };
        save(state, keys::worker(&operator), &record);
        ctx.emit("register_worker", [("operator", operator.account()), ("endpoint", self.endpoint.clone())]);
        Ok(MsgRegisterWorkerResponse {})
    }
}

impl Handle for MsgUpdateWorker {
    const AMINO_NAME: &'static str = "polylink/market/UpdateWorker";
    type Response = MsgUpdateWorkerResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.operator.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        if !self.endpoint.is_empty() {
            check_endpoint(&self.endpoint)?;
        }
        check_tls_key(&self.tls_key)?;
        if !self.receipt_key.is_empty() {
            check_receipt_key(&self.receipt_key)?;
        }
        if !self.offers.is_empty() {
            check_offers(&self.offers)?;
        }
        Ok(())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgUpdateWorkerResponse, TxError> {
        let operator: Address = self.operator.parse()?;
        let mut record = known(state, &operator)?;
        if record.jailed {
            return Err(MarketError::Jailed(record.operator).into());
        }
        let old = places::newest(&record);
        let receipt_key = if self.receipt_key.is_empty() { &old.receipt_key } else { &self.receipt_key };
        let offers = if self.offers.is_empty() { &old.offers } else { &self.offers };
        if !self.offers.is_empty() {
            check_active(&record, &params::at(state, ctx.epoch))?;
            let is_kept = |offer: &&Offer| offers.iter().any(|new| new.profile_digest == offer.profile_digest);
            places::give_up(state, &operator, old.offers.iter().filter(|offer| !is_kept(offer)));
            places::take(ctx, state, &operator, uplk(&record.bond), offers)?;
        }
        // Key and asks hold from the next epoch on: what was served in this one keeps its own.
        if *receipt_key != old.receipt_key || *offers != old.offers {
            let from_epoch = ctx.epoch.saturating_add(1);
            let terms = WorkerTerms { from_epoch, receipt_key: receipt_key.clone(), offers: offers.clone() };
            set_terms(&mut record, terms);
        }
        // An endpoint comes with its TLS key, so that the two never belong to different servers.
        if !self.endpoint.is_empty() {
            record.endpoint.clone_from(&self.endpoint);
            record.tls_key.clone_from(&self.tls_key);
        }
        save(state, keys::worker(&operator), &record);
        ctx.emit("update_worker", [("operator", operator.account()), ("endpoint", record.endpoint)]);
        Ok(MsgUpdateWorkerResponse {})
    }
}
