//! The accounts' queries: an `Any` of `BaseAccount`, of `ModuleAccount` for a pool, or of the kind of vesting account.

use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::auth::v1beta1::{
    BaseAccount, ModuleAccount, QueryAccountRequest, QueryAccountResponse, QueryAccountsRequest, QueryAccountsResponse,
    QueryParamsRequest, QueryParamsResponse,
};
use polylink_protocol::{Address, tx::any};

use super::{ACCOUNT, Account, PublicKey, account, decode, params};
use crate::bank::Pool;
use crate::error::QueryError;
use crate::modules::{Answer, QueryContext};
use crate::store::StateRead;
use crate::{paging, vesting};

fn to_any(state: &dyn StateRead, address: &Address, account: &Account) -> Any {
    let base = BaseAccount {
        address: address.account(),
        pub_key: account.public_key.as_ref().map(PublicKey::to_any),
        account_number: account.number,
        sequence: account.sequence,
    };
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
        let account =
            account(state, &address).ok_or_else(|| QueryError::NotFound(format!("account {address} not found")))?;
        Ok(QueryAccountResponse { account: Some(to_any(state, &address, &account)) })
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
