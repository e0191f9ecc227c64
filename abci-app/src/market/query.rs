//! The market's queries.

use polylink_protocol::market::price_at;
use polylink_protocol::market_v1::*;
use polylink_protocol::{Address, DENOM, Digest, Message};

use super::records::{Kind, load, model, pot, session, uplk, worker};
use super::{POT_RETENTION_EPOCHS, keys, params, prices, vesting};
use crate::bank;
use crate::error::QueryError;
use crate::modules::{Answer, QueryContext};
use crate::paging::page;
use crate::store::StateRead;

fn profile(bytes: &[u8]) -> Result<Digest, QueryError> {
    let len = bytes.len();
    Digest::from_slice(bytes)
        .ok_or_else(|| QueryError::InvalidArgument(format!("profile_digest: 32 bytes are expected, not {len}")))
}

fn not_found(what: String) -> QueryError {
    QueryError::NotFound(what)
}

/// Rows of a table whose records are messages.
fn rows<M: Message + Default>(
    state: &dyn StateRead,
    prefix: &[u8],
    request: &Option<PageRequest>,
    keep: impl Fn(&M) -> bool,
) -> (Vec<M>, Option<PageResponse>) {
    let (key, limit) = request.as_ref().map_or((&[][..], 0), |page| (page.key.as_slice(), page.limit));
    let (rows, next_key) = page(state, prefix, key, limit, |_, value| M::decode(value).ok().filter(&keep));
    (rows, Some(PageResponse { next_key }))
}

/// Rows of an index whose keys end with the key of a record.
fn indexed<M: Message + Default>(
    state: &dyn StateRead,
    prefix: &[u8],
    request: &Option<PageRequest>,
    table: u8,
    keep: impl Fn(&M) -> bool,
) -> (Vec<M>, Option<PageResponse>) {
    let (key, limit) = request.as_ref().map_or((&[][..], 0), |page| (page.key.as_slice(), page.limit));
    let record = |tail: &[u8], _: &[u8]| load::<M>(state, &[&[table], tail].concat()).filter(&keep);
    let (rows, next_key) = page(state, prefix, key, limit, record);
    (rows, Some(PageResponse { next_key }))
}

impl Answer for QueryModelsRequest {
    type Response = QueryModelsResponse;
    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let (models, pagination) = rows(state, &[keys::MODEL], &self.pagination, |_| true);
        Ok(QueryModelsResponse { models, pagination })
    }
}

impl Answer for QueryModelRequest {
    type Response = QueryModelResponse;
    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let digest = profile(&self.profile_digest)?;
        let model = model(state, &digest).ok_or_else(|| not_found(format!("model of profile {digest}")))?;
        Ok(QueryModelResponse { model: Some(model) })
    }
}

impl Answer for QueryWorkersRequest {
    type Response = QueryWorkersResponse;
    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let (workers, pagination) = if self.profile_digest.is_empty() {
            rows(state, &[keys::WORKER], &self.pagination, |_| true)
        } else {
            let prefix = keys::offers_of(&profile(&self.profile_digest)?);
            indexed(state, &prefix, &self.pagination, keys::WORKER, |_| true)
        };
        Ok(QueryWorkersResponse { workers, pagination })
    }
}

impl Answer for QueryWorkerRequest {
    type Response = QueryWorkerResponse;
    fn answer(&self, ctx: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let operator: Address = self.operator.parse()?;
        let worker = worker(state, &operator).ok_or_else(|| not_found(format!("worker {operator}")))?;
        Ok(QueryWorkerResponse { worker: Some(worker), vesting: Some(vesting::of(state, &operator, ctx.epoch)) })
    }
}

impl Answer for QuerySessionsRequest {
    type Response = QuerySessionsResponse;
    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let text = |address: &str| match address {
            "" => Ok(None),
            address => address.parse::<Address>().map(Some),
        };
        let (payer, payee) = (text(&self.payer)?, text(&self.payee)?);
        let (sessions, pagination) = match (payer, payee) {
            (None, None) => rows(state, &[keys::SESSION], &self.pagination, |_| true),
            (Some(payer), payee) => {
                let payee = payee.map(|payee| payee.account());
                let keep = |session: &Session| payee.as_ref().is_none_or(|payee| session.payee == *payee);
                let prefix = keys::sessions_of_payer(&payer).finish();
                indexed(state, &prefix, &self.pagination, keys::SESSION, keep)
            }
            (None, Some(payee)) => {
                let prefix = keys::sessions_of_payee(&payee).finish();
                indexed(state, &prefix, &self.pagination, keys::SESSION, |_| true)
            }
        };
        Ok(QuerySessionsResponse { sessions, pagination })
    }
}

impl Answer for QuerySessionRequest {
    type Response = QuerySessionResponse;
    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let session = session(state, self.session).ok_or_else(|| not_found(format!("session {}", self.session)))?;
        Ok(QuerySessionResponse { session: Some(session) })
    }
}

impl Answer for QueryPriceRequest {
    type Response = QueryPriceResponse;
    fn answer(&self, ctx: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let digest = profile(&self.profile_digest)?;
        let model = model(state, &digest).ok_or_else(|| not_found(format!("model of profile {digest}")))?;
        let epoch = if self.epoch == 0 { ctx.epoch } else { self.epoch };
        let record = prices::record(state, &digest, epoch);
        let missing = || not_found(format!("price of {digest} in epoch {epoch}"));
        // The price of the next epoch is known once a turn has fixed it.
        if epoch < model.registered_epoch || (epoch > ctx.epoch && record.is_none()) {
            return Err(missing());
        }
        let older = || prices::newest(state, &digest, epoch).and_then(|record| record.price);
        // Before the first record it was as registered; what is dropped may have been one.
        let kept = epoch.saturating_add(POT_RETENTION_EPOCHS) >= ctx.epoch;
        let registered = model.price.filter(|_| kept);
        let price = price_at(&model, epoch).or_else(older).or(registered).ok_or_else(missing)?;
        Ok(QueryPriceResponse { price: Some(price), epoch, record })
    }
}

impl Answer for QueryPriceHistoryRequest {
    type Response = QueryPriceHistoryResponse;
    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let prefix = keys::prices_of(&profile(&self.profile_digest)?);
        let (prices, pagination) = rows(state, &prefix, &self.pagination, |_| true);
        Ok(QueryPriceHistoryResponse { prices, pagination })
    }
}

impl Answer for QueryReportRequest {
    type Response = QueryReportResponse;
    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let report = load(state, &keys::report(self.report));
        let report = report.ok_or_else(|| not_found(format!("open report {}", self.report)))?;
        Ok(QueryReportResponse { report: Some(report) })
    }
}

impl Answer for QueryReportsRequest {
    type Response = QueryReportsResponse;
    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let prefix = keys::reports_of(&self.worker.parse()?).finish();
        let (reports, pagination) = indexed(state, &prefix, &self.pagination, keys::REPORT, |_| true);
        Ok(QueryReportsResponse { reports, pagination })
    }
}

impl Answer for QueryRefundsRequest {
    type Response = QueryRefundsResponse;
    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let prefix = keys::refunds_of(&self.payer.parse()?).finish();
        let (refunds, pagination) = rows(state, &prefix, &self.pagination, |_| true);
        Ok(QueryRefundsResponse { refunds, pagination })
    }
}

impl Answer for QueryPotRequest {
    type Response = QueryPotResponse;
    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let (operator, digest): (Address, Digest) = (self.worker.parse()?, profile(&self.profile_digest)?);
        let pot = pot(state, Kind::of(self.private), self.epoch, &digest, &operator)
            .ok_or_else(|| not_found(format!("pot of {operator} for {digest} in epoch {}", self.epoch)))?;
        Ok(QueryPotResponse { pot: Some(pot) })
    }
}

impl Answer for QueryPotsRequest {
    type Response = QueryPotsResponse;
    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let table = Kind::of(self.private).table(keys::POT, keys::PRIVATE_POT);
        let prefix = [&[table][..], &self.epoch.to_be_bytes()].concat();
        let (pots, pagination) = rows(state, &prefix, &self.pagination, |_| true);
        Ok(QueryPotsResponse { pots, pagination })
    }
}

impl Answer for QueryEpochRequest {
    type Response = QueryEpochResponse;
    /// The epoch's own minting and burning: the totals at its end (now, for the current one) less those before it.
    fn answer(&self, ctx: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let number = if self.current { ctx.epoch } else { self.number };
        let missing = || not_found(format!("epoch {number}"));
        let mut epoch: Epoch = load(state, &keys::epoch(number)).ok_or_else(missing)?;
        let (minted, burned) = match load::<Epoch>(state, &keys::epoch(number.saturating_add(1))) {
            Some(next) => (uplk(&next.minted), uplk(&next.burned)),
            None => bank::flows(state, DENOM),
        };
        epoch.minted = minted.saturating_sub(uplk(&epoch.minted)).to_string();
        epoch.burned = burned.saturating_sub(uplk(&epoch.burned)).to_string();
        let height = i64::try_from(ctx.height).unwrap_or(i64::MAX);
        Ok(QueryEpochResponse { epoch: Some(epoch), height })
    }
}

impl Answer for QueryParamsRequest {
    type Response = QueryParamsResponse;
    fn answer(&self, ctx: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        Ok(QueryParamsResponse { params: Some(params::at(state, ctx.epoch)) })
    }
}
