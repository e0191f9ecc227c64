//! Accounts: a number that never changes, a sequence that counts transactions, and the key once it has signed.
//!
//! Invariant: every address that ever held a coin has an account, numbers are given once, and a sequence only rises:
//! a signature over (chain id, account number, sequence) is good for one transaction.

mod key;
mod params;
mod query;

use polylink_protocol::Address;
use polylink_protocol::cosmos::cosmos::auth::v1beta1 as proto;

pub use key::PublicKey;
pub use params::params;

use crate::bank::Pool;
use crate::context::Context;
use crate::error::GenesisError;
use crate::genesis::Genesis;
use crate::modules::{MessageRoute, Module, QueryRoute, no_hook};
use crate::store::{KeyBuilder, StateRead, StateWrite};

/// Accounts: `0x08 ‖ address (20)` → number u64 ‖ sequence u64 ‖ public key (none, 33 bytes, or threshold u32 and keys).
pub const ACCOUNT: u8 = 0x08;
/// The next account number: `0x09` → u64.
pub const NEXT_NUMBER: u8 = 0x09;
/// The minimum gas price: `0x0a` → u64, in uplk per 1,000 gas.
pub const MIN_GAS_PRICE: u8 = 0x0a;
/// Parameters: `0x0c` → `cosmos.auth.v1beta1.Params`; absent until governance writes some.
pub const PARAMS: u8 = 0x0c;

/// The accounts' tables.
pub const MODULE: Module = Module {
    name: "auth",
    messages: &[MessageRoute::of::<proto::MsgUpdateParams>()],
    refused: &[],
    queries: &[
        QueryRoute::of::<proto::QueryAccountRequest>(),
        QueryRoute::of::<proto::QueryAccountsRequest>(),
        QueryRoute::of::<proto::QueryAccountInfoRequest>(),
        QueryRoute::of::<proto::QueryModuleAccountsRequest>(),
        QueryRoute::of::<proto::QueryModuleAccountByNameRequest>(),
        QueryRoute::of::<proto::QueryParamsRequest>(),
    ],
    begin_block: no_hook,
    end_block: no_hook,
    genesis,
};

/// An account's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Given once, in the order of creation.
    pub number: u64,
    /// Of its next transaction.
    pub sequence: u64,
    /// From its first transaction on.
    pub public_key: Option<PublicKey>,
}

fn key(address: &Address) -> Vec<u8> {
    KeyBuilder::new(ACCOUNT).bytes(&address.0).finish()
}

fn read_u64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("numbers are written with 8 bytes"))
}

fn decode(bytes: &[u8]) -> Account {
    Account {
        number: read_u64(&bytes[..8]),
        sequence: read_u64(&bytes[8..16]),
        public_key: PublicKey::from_bytes(&bytes[16..]),
    }
}

/// The account of an address.
pub fn account(state: &dyn StateRead, address: &Address) -> Option<Account> {
    state.get(&key(address)).map(|bytes| decode(&bytes))
}

/// Writes an account.
pub fn set_account(state: &mut dyn StateWrite, address: &Address, account: &Account) {
    let mut value = account.number.to_be_bytes().to_vec();
    value.extend_from_slice(&account.sequence.to_be_bytes());
    value.extend(account.public_key.as_ref().map(PublicKey::to_bytes).unwrap_or_default());
    state.put(key(address), value);
}

/// Gives an address an account with the next number, unless it has one.
pub fn ensure_account(state: &mut dyn StateWrite, address: &Address) {
    if state.contains(&key(address)) {
        return;
    }
    let number = state.get(&[NEXT_NUMBER]).map_or(0, |bytes| read_u64(&bytes));
    state.put(vec![NEXT_NUMBER], (number + 1).to_be_bytes().to_vec());
    set_account(state, address, &Account { number, sequence: 0, public_key: None });
}

/// The minimum gas price in uplk per 1,000 gas: the fee is at least `ceil(gas limit · price / 1,000)`.
pub fn min_gas_price_milli(state: &dyn StateRead) -> u64 {
    state.get(&[MIN_GAS_PRICE]).map_or(0, |bytes| read_u64(&bytes))
}

fn genesis(_: &mut Context, state: &mut dyn StateWrite, genesis: &Genesis) -> Result<(), GenesisError> {
    for pool in Pool::ALL {
        ensure_account(state, &pool.address());
    }
    for (index, account) in genesis.accounts.iter().enumerate() {
        let address = account
            .address
            .parse()
            .map_err(|error| GenesisError::invalid(format!("accounts[{index}].address"), error))?;
        ensure_account(state, &address);
    }
    state.put(vec![MIN_GAS_PRICE], genesis.min_gas_price_milli.to_be_bytes().to_vec());
    Ok(())
}
