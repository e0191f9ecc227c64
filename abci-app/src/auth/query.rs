//! The accounts' queries: an `Any` of `BaseAccount`, of `ModuleAccount` for a pool, or of the kind of vesting account.

use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::auth::v1beta1::{
    BaseAccount, ModuleAccount, QueryAccountInfoRequest, QueryAccountInfoResponse, QueryAccountRequest,
    QueryAccountResponse, QueryAccountsRequest, QueryAccountsResponse, QueryModuleAccountByNameRequest,
    QueryModuleAccountByNameResponse, QueryModuleAccountsRequest, QueryModuleAccountsResponse, QueryParamsRequest,
    QueryParamsResponse,
};
use polylink_protocol::{Address, tx::any};

use super::{ACCOUNT, Account, PublicKey, account, decode, params};
use crate::bank::Pool;
use crate::error::QueryError;
use crate::modules::{Answer, QueryContext};
use crate::store::StateRead;
use crate::{paging, vesting};

fn base(address: &Address, account: &Account) -> BaseAccount {
    BaseAccount {
        address: address.account(),
        pub_key: account.public_key.as_ref().map(PublicKey::to_any),
        account_number: account.number,
        sequence: account.sequence,
    }
}

fn find(state: &dyn StateRead, address: &Address) -> Result<Account, QueryError> {
    account(state, address).ok_or_else(|| QueryError::NotFound(format!("account {address} not found")))
}

fn to_any(state: &dyn StateRead, address: &Address, account: &Account) -> Any {
    let base = base(address, account);
    match Pool::of_address(address) {
        None => vesting::account_any(state, address, &base).unwrap_or_else(|| any(&base)),
        Some(pool) => {
            any(&ModuleAccount { base_account: Some(base), name: pool.name().into(), permissions: Vec::new() })
        }
    }
}

impl Answer for QueryAccountRequest {
    type Response = QueryAccountResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryAccountResponse, QueryError> {
        let address: Address = self.address.parse()?;
        Ok(QueryAccountResponse { account: Some(to_any(state, &address, &find(state, &address)?)) })
    }
}

impl Answer for QueryAccountInfoRequest {
    type Response = QueryAccountInfoResponse;

    /// What accounts of any kind have.
    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryAccountInfoResponse, QueryError> {
        let address: Address = self.address.parse()?;
        Ok(QueryAccountInfoResponse { info: Some(base(&address, &find(state, &address)?)) })
    }
}

/// The account of a pool: there from genesis on.
fn of_pool(state: &dyn StateRead, pool: Pool) -> Result<Any, QueryError> {
    let address = pool.address();
    Ok(to_any(state, &address, &find(state, &address)?))
}

impl Answer for QueryModuleAccountsRequest {
    type Response = QueryModuleAccountsResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryModuleAccountsResponse, QueryError> {
        let accounts = Pool::ALL.into_iter().map(|pool| of_pool(state, pool)).collect::<Result<_, _>>()?;
        Ok(QueryModuleAccountsResponse { accounts })
    }
}

impl Answer for QueryModuleAccountByNameRequest {
    type Response = QueryModuleAccountByNameResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let pool = Pool::ALL.into_iter().find(|pool| pool.name() == self.name);
        let missing = || QueryError::NotFound(format!("account {} not found", self.name.escape_debug()));
        Ok(QueryModuleAccountByNameResponse { account: Some(of_pool(state, pool.ok_or_else(missing)?)?) })
    }
}

impl Answer for QueryAccountsRequest {
    type Response = QueryAccountsResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryAccountsResponse, QueryError> {
        let (accounts, page) = paging::cosmos(state, &[ACCOUNT], self.pagination.clone(), |tail, value| {
            Some(to_any(state, &Address(tail.try_into().ok()?), &decode(value)))
        })?;
        Ok(QueryAccountsResponse { accounts, pagination: Some(page) })
    }
}

impl Answer for QueryParamsRequest {
    type Response = QueryParamsResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryParamsResponse, QueryError> {
        Ok(QueryParamsResponse { params: Some(params(state)) })
    }
}
