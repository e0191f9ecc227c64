//! What the worker knows of the chain's sessions and prices: a bounded cache, since nothing in a session that a worker
//! relies on can shrink without it: the ledger never lowers a deposit or a cap, only the payee redeems, and a payer
//! closes after the expiry and the dispute window (or once the worker is convicted). A payer may revoke the spend key: what
//! is served in that epoch and the next is still paid, so that a session is looked at again in every epoch.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use polylink_protocol::Digest;
use polylink_protocol::market::price_at;
use polylink_protocol::market_v1::{Model, Session, TokenPrices};

use crate::chain::{Chain, ChainError};

/// How long a session is believed.
const FRESH: Duration = Duration::from_secs(5);
/// Shortest time between two looks at one session, so that refused requests do not become chain queries.
const AGAIN: Duration = Duration::from_millis(300);
/// Sessions in the cache; at the limit all are forgotten.
const SESSIONS_MAX: usize = 10_000;

/// What was read of a session, when, and in which epoch.
type Read = (Option<Session>, Instant, u64);

/// See the module.
pub(crate) struct Sessions {
    chain: Arc<dyn Chain>,
    known: Mutex<HashMap<u64, Read>>,
    /// The model, and in which epoch it was read.
    model: Mutex<Option<(u64, Model)>>,
}

impl Sessions {
    pub(crate) fn new(chain: Arc<dyn Chain>) -> Self {
        Self { chain, known: Mutex::default(), model: Mutex::default() }
    }

    /// A session as it stands in this epoch or later; `fresh`: what is cached did not suffice, so look again.
    pub(crate) async fn get(&self, id: u64, epoch: u64, fresh: bool) -> Result<Option<Session>, ChainError> {
        let age_max = if fresh { AGAIN } else { FRESH };
        {
            let known = self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some((session, at, read)) = known.get(&id)
                && at.elapsed() < age_max
                && *read >= epoch
            {
                return Ok(session.clone());
            }
        }
        let session = self.chain.session(id).await?;
        let mut known = self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if known.len() >= SESSIONS_MAX {
            known.clear();
        }
        known.insert(id, (session.clone(), Instant::now(), epoch));
        Ok(session)
    }

    /// The price of a profile in an epoch up to the current one, `now`; None for one that is too long over. The price of an
    /// epoch is fixed before it begins, so that the model is read once per epoch.
    pub(crate) async fn price(
        &self,
        profile: &Digest,
        now: u64,
        epoch: u64,
    ) -> Result<Option<TokenPrices>, ChainError> {
        {
            let known = self.model.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some((_, model)) = known.as_ref().filter(|(read, _)| *read >= now) {
                return Ok(price_at(model, epoch));
            }
        }
        let model = self.chain.model(profile).await?;
        let model =
            model.ok_or_else(|| ChainError::NotFound(format!("the profile {profile} is not registered on chain")))?;
        let price = price_at(&model, epoch);
        *self.model.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some((now, model));
        Ok(price)
    }
}
