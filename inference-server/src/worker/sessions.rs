//! What the worker knows of the chain's sessions and prices: a bounded cache, since nothing in a session that a worker
//! relies on can shrink without it: the ledger never lowers a deposit or a cap, only the payee redeems, and a payer
//! closes after the expiry and the dispute window (or once the worker is convicted).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use polylink_protocol::Digest;
use polylink_protocol::market_v1::{Session, TokenPrices};

use crate::chain::{Chain, ChainError};

/// How long a session is believed.
const FRESH: Duration = Duration::from_secs(5);
/// Shortest time between two looks at one session, so that refused requests do not become chain queries.
const AGAIN: Duration = Duration::from_millis(300);
/// Sessions in the cache; at the limit all are forgotten.
const SESSIONS_MAX: usize = 10_000;

/// See the module.
pub(crate) struct Sessions {
    chain: Arc<dyn Chain>,
    known: Mutex<HashMap<u64, (Option<Session>, Instant)>>,
    price: Mutex<Option<(u64, TokenPrices)>>,
}

impl Sessions {
    pub(crate) fn new(chain: Arc<dyn Chain>) -> Self {
        Self { chain, known: Mutex::default(), price: Mutex::default() }
    }

    /// A session; `fresh`: what is cached did not suffice, so look again.
    pub(crate) async fn get(&self, id: u64, fresh: bool) -> Result<Option<Session>, ChainError> {
        let age_max = if fresh { AGAIN } else { FRESH };
        {
            let known = self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some((session, at)) = known.get(&id)
                && at.elapsed() < age_max
            {
                return Ok(session.clone());
            }
        }
        let session = self.chain.session(id).await?;
        let mut known = self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if known.len() >= SESSIONS_MAX {
            known.clear();
        }
        known.insert(id, (session.clone(), Instant::now()));
        Ok(session)
    }

    /// The epoch price of a profile.
    pub(crate) async fn price(&self, profile: &Digest, epoch: u64) -> Result<TokenPrices, ChainError> {
        if let Some((at, price)) = *self.price.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
            && at == epoch
        {
            return Ok(price);
        }
        let model = self.chain.model(profile).await?;
        let model =
            model.ok_or_else(|| ChainError::NotFound(format!("the profile {profile} is not registered on chain")))?;
        let price = model.price.unwrap_or_default();
        *self.price.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some((epoch, price));
        Ok(price)
    }
}
