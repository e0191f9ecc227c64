//! The bank's queries.

use polylink_protocol::cosmos::cosmos::bank::v1beta1::{
    DenomOwner, DenomUnit, Metadata, Params, QueryAllBalancesRequest, QueryAllBalancesResponse, QueryBalanceRequest,
    QueryBalanceResponse, QueryDenomMetadataRequest, QueryDenomMetadataResponse, QueryDenomOwnersRequest,
    QueryDenomOwnersResponse, QueryDenomsMetadataRequest, QueryDenomsMetadataResponse, QueryParamsRequest,
    QueryParamsResponse, QuerySendEnabledRequest, QuerySendEnabledResponse, QuerySpendableBalanceByDenomRequest,
    QuerySpendableBalanceByDenomResponse, QuerySpendableBalancesRequest, QuerySpendableBalancesResponse,
    QuerySupplyOfRequest, QuerySupplyOfResponse, QueryTotalSupplyRequest, QueryTotalSupplyResponse,
};
use polylink_protocol::cosmos::cosmos::base::{
    query::v1beta1::{PageRequest, PageResponse},
    v1beta1::Coin,
};
use polylink_protocol::{Address, Amount, DENOM};

use super::governed::{entries, params};
use super::{BALANCE, SUPPLY, amount_of, balance_of, is_denom, supply};
use crate::chain::last_time;
use crate::error::QueryError;
use crate::modules::{Answer, QueryContext};
use crate::store::{KeyBuilder, StateRead};
use crate::{paging, vesting};

fn check_denom(denom: &str) -> Result<(), QueryError> {
    if is_denom(denom) {
        return Ok(());
    }
    Err(QueryError::InvalidArgument(format!("`{}` is not a denomination", denom.escape_debug())))
}

fn coin(key_tail: &[u8], value: &[u8]) -> Coin {
    Coin { denom: String::from_utf8_lossy(key_tail).into_owned(), amount: amount_of(value).to_string() }
}

fn balances(
    state: &dyn StateRead,
    address: &str,
    page: Option<PageRequest>,
) -> Result<(Vec<Coin>, Option<PageResponse>), QueryError> {
    let address: Address = address.parse()?;
    let prefix = KeyBuilder::new(BALANCE).bytes(&address.0).finish();
    let (coins, page) = paging::cosmos(state, &prefix, page, |tail, value| Some(coin(tail, value)))?;
    Ok((coins, Some(page)))
}

impl Answer for QueryBalanceRequest {
    type Response = QueryBalanceResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryBalanceResponse, QueryError> {
        check_denom(&self.denom)?;
        let amount = balance_of(state, &self.address.parse()?, &self.denom).to_string();
        Ok(QueryBalanceResponse { balance: Some(Coin { denom: self.denom.clone(), amount }) })
    }
}

impl Answer for QueryAllBalancesRequest {
    type Response = QueryAllBalancesResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryAllBalancesResponse, QueryError> {
        let (balances, pagination) = balances(state, &self.address, self.pagination.clone())?;
        Ok(QueryAllBalancesResponse { balances, pagination })
    }
}

impl Answer for QuerySpendableBalancesRequest {
    type Response = QuerySpendableBalancesResponse;

    /// What has not vested is left out.
    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QuerySpendableBalancesResponse, QueryError> {
        let (mut balances, pagination) = balances(state, &self.address, self.pagination.clone())?;
        for coin in balances.iter_mut().filter(|coin| coin.denom == DENOM) {
            coin.amount = spendable(state, &self.address.parse()?, DENOM).to_string();
        }
        balances.retain(|coin| coin.amount != "0");
        Ok(QuerySpendableBalancesResponse { balances, pagination })
    }
}

/// What can be sent, as of the last block.
fn spendable(state: &dyn StateRead, address: &Address, denom: &str) -> Amount {
    let held = balance_of(state, address, denom);
    let locked = if denom == DENOM { vesting::locked(state, address, last_time(state)) } else { Amount::ZERO };
    held.saturating_sub(locked)
}

impl Answer for QuerySpendableBalanceByDenomRequest {
    type Response = QuerySpendableBalanceByDenomResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        check_denom(&self.denom)?;
        let amount = spendable(state, &self.address.parse()?, &self.denom).to_string();
        Ok(QuerySpendableBalanceByDenomResponse { balance: Some(Coin { denom: self.denom.clone(), amount }) })
    }
}

impl Answer for QueryTotalSupplyRequest {
    type Response = QueryTotalSupplyResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryTotalSupplyResponse, QueryError> {
        let (supply, page) =
            paging::cosmos(state, &[SUPPLY], self.pagination.clone(), |tail, value| Some(coin(tail, value)))?;
        Ok(QueryTotalSupplyResponse { supply, pagination: Some(page) })
    }
}

impl Answer for QuerySupplyOfRequest {
    type Response = QuerySupplyOfResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QuerySupplyOfResponse, QueryError> {
        check_denom(&self.denom)?;
        let amount = supply(state, &self.denom).to_string();
        Ok(QuerySupplyOfResponse { amount: Some(Coin { denom: self.denom.clone(), amount }) })
    }
}

/// Of the one coin there is.
fn metadata() -> Metadata {
    let unit = |denom: &str, exponent| DenomUnit { denom: denom.into(), exponent, aliases: vec![] };
    Metadata {
        description: "The coin of PolyLink".into(),
        denom_units: vec![unit(DENOM, 0), unit("plk", 6)],
        base: DENOM.into(),
        display: "plk".into(),
        name: "PolyLink".into(),
        symbol: "PLK".into(),
        ..Default::default()
    }
}

impl Answer for QueryDenomsMetadataRequest {
    type Response = QueryDenomsMetadataResponse;

    fn answer(&self, _: &QueryContext, _: &dyn StateRead) -> Result<QueryDenomsMetadataResponse, QueryError> {
        let pagination = Some(PageResponse { next_key: Vec::new(), total: 1 });
        Ok(QueryDenomsMetadataResponse { metadatas: vec![metadata()], pagination })
    }
}

impl Answer for QueryDenomOwnersRequest {
    type Response = QueryDenomOwnersResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryDenomOwnersResponse, QueryError> {
        check_denom(&self.denom)?;
        let (denom_owners, page) = paging::cosmos(state, &[BALANCE], self.pagination.clone(), |tail, value| {
            let (address, denom) = tail.split_at_checked(20)?;
            let address = Address(address.try_into().ok()?).account();
            (denom == self.denom.as_bytes()).then(|| DenomOwner { address, balance: Some(coin(denom, value)) })
        })?;
        Ok(QueryDenomOwnersResponse { denom_owners, pagination: Some(page) })
    }
}

impl Answer for QueryDenomMetadataRequest {
    type Response = QueryDenomMetadataResponse;

    fn answer(&self, _: &QueryContext, _: &dyn StateRead) -> Result<QueryDenomMetadataResponse, QueryError> {
        if self.denom != DENOM {
            return Err(QueryError::NotFound(format!("client metadata for denom {}", self.denom.escape_debug())));
        }
        Ok(QueryDenomMetadataResponse { metadata: Some(metadata()) })
    }
}

impl Answer for QueryParamsRequest {
    type Response = QueryParamsResponse;

    /// What is said of single coins has a query of its own.
    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryParamsResponse, QueryError> {
        let default_send_enabled = params(state).default_send_enabled;
        Ok(QueryParamsResponse { params: Some(Params { default_send_enabled, ..Default::default() }) })
    }
}

impl Answer for QuerySendEnabledRequest {
    type Response = QuerySendEnabledResponse;

    /// What is said of these coins, or of all that something else than the default is said of: there are few, so that one
    /// page has them.
    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QuerySendEnabledResponse, QueryError> {
        let params = params(state);
        let asked = |denom: &str| self.denoms.is_empty() || self.denoms.iter().any(|asked| asked == denom);
        let send_enabled: Vec<_> = entries(&params).iter().filter(|entry| asked(&entry.denom)).cloned().collect();
        let total = send_enabled.len() as u64;
        let pagination = self.denoms.is_empty().then(|| PageResponse { next_key: Vec::new(), total });
        Ok(QuerySendEnabledResponse { send_enabled, pagination })
    }
}
