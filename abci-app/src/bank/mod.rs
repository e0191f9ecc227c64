//! Money: what each address holds of each coin, and how much there is in all.
//!
//! All money of the ledger sits in balances: what a module keeps for others is the balance of one of its accounts
//! ([`Pool`]), whose address is the Cosmos SDK's for a module of that name. Coins move by [`transfer`], come into being
//! by [`mint`] and cease by [`burn`], and in no other way. What has not vested of an account ([`vesting`]) moves by
//! [`stake`] alone.
//!
//! Invariant: over every block, the sum of all changes of balances = minted − burned, and the recorded supply changes
//! by the same. [`check_conservation`] verifies it on the block's changes before anything is committed, independently
//! of how the changes came about; [`scan`] adds up the whole state, for tests and export.

mod conservation;
mod governed;
mod messages;
mod query;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use polylink_protocol::{Address, Amount, DENOM};

use crate::context::Context;
use crate::error::{GenesisError, TxError};
use crate::genesis::Genesis;
use crate::modules::{MessageRoute, Module, QueryRoute, no_hook};
use crate::store::{KeyBuilder, StateRead, StateWrite};
use crate::{auth, vesting};
use polylink_protocol::cosmos::cosmos::bank::v1beta1 as proto;

pub use conservation::{Breach, check_conservation, scan};
pub use governed::{is_send_enabled, params};
pub(crate) use messages::check_coins;

/// Balances: `0x10 ‖ address (20) ‖ denom` → amount, 16 bytes big-endian. A balance of zero has no key.
pub const BALANCE: u8 = 0x10;
/// Supply: `0x11 ‖ denom` → amount, 16 bytes big-endian.
pub const SUPPLY: u8 = 0x11;
/// All that was ever minted and burned since genesis: `0x12 ‖ denom` → minted ‖ burned, 16 bytes each.
pub const FLOWS: u8 = 0x12;
/// Parameters: `0x13` → `cosmos.bank.v1beta1.Params`, which coins may be sent; absent until governance writes some.
pub const PARAMS: u8 = 0x13;

/// The bank's tables.
pub const MODULE: Module = Module {
    name: "bank",
    messages: &[
        MessageRoute::of::<proto::MsgSend>(),
        MessageRoute::of::<proto::MsgMultiSend>(),
        MessageRoute::of::<proto::MsgSetSendEnabled>(),
        MessageRoute::of::<proto::MsgUpdateParams>(),
    ],
    refused: &[],
    queries: &[
        QueryRoute::of::<proto::QueryBalanceRequest>(),
        QueryRoute::of::<proto::QueryAllBalancesRequest>(),
        QueryRoute::of::<proto::QuerySpendableBalancesRequest>(),
        QueryRoute::of::<proto::QuerySpendableBalanceByDenomRequest>(),
        QueryRoute::of::<proto::QueryTotalSupplyRequest>(),
        QueryRoute::of::<proto::QuerySupplyOfRequest>(),
        QueryRoute::of::<proto::QueryDenomMetadataRequest>(),
        QueryRoute::of::<proto::QueryDenomsMetadataRequest>(),
        QueryRoute::of::<proto::QueryDenomOwnersRequest>(),
        QueryRoute::of::<proto::QueryParamsRequest>(),
        QueryRoute::of::<proto::QuerySendEnabledRequest>(),
    ],
    begin_block: no_hook,
    end_block: no_hook,
    genesis,
};

/// An account that a module holds for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pool {
    /// Fees of the last block's transactions, distributed at the next one's begin.
    FeeCollector,
    /// Stake behind bonded validators.
    BondedTokens,
    /// Stake that is unbonding, or behind validators without power.
    NotBondedTokens,
    /// What validators and delegators have earned and not withdrawn, and the community pool.
    Distribution,
    /// Where emission comes into being.
    Mint,
    /// Deposits of open sessions.
    MarketEscrow,
    /// Redeemed fees before their settlement.
    MarketPots,
    /// Workers' pay that has not vested yet.
    MarketVesting,
    /// Bonds of workers.
    WorkerBonds,
    /// Bonds of judges.
    JudgeBonds,
    /// Deposits of proposals; in its name proposals act.
    Gov,
}

impl Pool {
    /// All of them, in the order of their account numbers.
    pub const ALL: [Pool; 11] = [
        Pool::FeeCollector,
        Pool::BondedTokens,
        Pool::NotBondedTokens,
        Pool::Distribution,
        Pool::Mint,
        Pool::MarketEscrow,
        Pool::MarketPots,
        Pool::MarketVesting,
        Pool::WorkerBonds,
        Pool::JudgeBonds,
        Pool::Gov,
    ];

    /// The module account's name, from which its address is derived.
    pub const fn name(self) -> &'static str {
        match self {
            Pool::FeeCollector => "fee_collector",
            Pool::BondedTokens => "bonded_tokens_pool",
            Pool::NotBondedTokens => "not_bonded_tokens_pool",
            Pool::Distribution => "distribution",
            Pool::Mint => "mint",
            Pool::MarketEscrow => "market_escrow",
            Pool::MarketPots => "market_pots",
            Pool::MarketVesting => "market_vesting",
            Pool::WorkerBonds => "worker_bonds",
            Pool::JudgeBonds => "judge_bonds",
            Pool::Gov => "gov",
        }
    }

    /// Its address.
    pub fn address(self) -> Address {
        ADDRESSES[self as usize]
    }

    /// The pool of an address, if it is one's.
    pub fn of_address(address: &Address) -> Option<Pool> {
        ADDRESSES.iter().position(|pool| pool == address).map(|index| Pool::ALL[index])
    }
}

/// The addresses of all pools, in their order. They are hashes, and asked for with every transfer.
static ADDRESSES: LazyLock<[Address; 11]> = LazyLock::new(|| Pool::ALL.map(|pool| Address::of_module(pool.name())));

impl From<Pool> for Address {
    fn from(pool: Pool) -> Self {
        pool.address()
    }
}

pub(crate) fn balance_key(address: &Address, denom: &str) -> Vec<u8> {
    KeyBuilder::new(BALANCE).bytes(&address.0).bytes(denom.as_bytes()).finish()
}

fn supply_key(denom: &str) -> Vec<u8> {
    KeyBuilder::new(SUPPLY).bytes(denom.as_bytes()).finish()
}

fn flows_key(denom: &str) -> Vec<u8> {
    KeyBuilder::new(FLOWS).bytes(denom.as_bytes()).finish()
}

/// 16 bytes, big-endian. The state holds nothing else under these keys.
fn amount_of(bytes: &[u8]) -> Amount {
    Amount(u128::from_be_bytes(bytes.try_into().expect("amounts are written with 16 bytes")))
}

/// What `address` holds, in uplk.
pub fn balance(state: &dyn StateRead, address: impl Into<Address>) -> Amount {
    balance_of(state, &address.into(), DENOM)
}

/// What `address` holds of a coin.
pub fn balance_of(state: &dyn StateRead, address: &Address, denom: &str) -> Amount {
    state.get(&balance_key(address, denom)).map_or(Amount::ZERO, |bytes| amount_of(&bytes))
}

/// How much there is of a coin.
pub fn supply(state: &dyn StateRead, denom: &str) -> Amount {
    state.get(&supply_key(denom)).map_or(Amount::ZERO, |bytes| amount_of(&bytes))
}

/// (minted, burned) of a coin since genesis. The difference of two readings is what happened in between.
pub fn flows(state: &dyn StateRead, denom: &str) -> (Amount, Amount) {
    match state.get(&flows_key(denom)) {
        Some(bytes) if bytes.len() == 32 => (amount_of(&bytes[..16]), amount_of(&bytes[16..])),
        _ => (Amount::ZERO, Amount::ZERO),
    }
}

fn set_balance(state: &mut dyn StateWrite, address: &Address, denom: &str, amount: Amount) {
    let key = balance_key(address, denom);
    if amount.is_zero() {
        state.delete(key);
    } else {
        state.put(key, amount.0.to_be_bytes().to_vec());
    }
}

fn set_supply(state: &mut dyn StateWrite, denom: &str, amount: Amount) {
    state.put(supply_key(denom), amount.0.to_be_bytes().to_vec());
}

fn set_flows(state: &mut dyn StateWrite, denom: &str, minted: Amount, burned: Amount) {
    let mut value = minted.0.to_be_bytes().to_vec();
    value.extend_from_slice(&burned.0.to_be_bytes());
    state.put(flows_key(denom), value);
}

fn too_much(denom: &str) -> TxError {
    TxError::InvalidCoins(format!("more {denom} than an amount can hold"))
}

/// Moves uplk. Refused with `InsufficientFunds` where `from` holds less; moving nothing does nothing. The receiver's
/// account comes into being. Emits `coin_spent`, `coin_received` and `transfer`.
pub fn transfer(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    from: impl Into<Address>,
    to: impl Into<Address>,
    amount: Amount,
) -> Result<(), TxError> {
    if amount.is_zero() {
        return Ok(());
    }
    let (from, to, coins) = (from.into(), to.into(), [(DENOM, amount)]);
    spend(ctx, state, &from, &coins)?;
    receive(ctx, state, &from, &to, &coins)
}

/// Coins of a message: denominations and amounts.
type Coins<'a> = [(&'a str, Amount)];

/// As events show them: `5uatom,7uplk`.
fn text(coins: &Coins<'_>) -> String {
    let coins: Vec<String> = coins.iter().map(|(denom, amount)| format!("{amount}{denom}")).collect();
    coins.join(",")
}

/// Takes coins from an account, as far as they have vested. Emits `coin_spent`.
fn spend(ctx: &mut Context, state: &mut dyn StateWrite, from: &Address, coins: &Coins<'_>) -> Result<(), TxError> {
    for (denom, amount) in coins {
        let locked = if *denom == DENOM { vesting::locked(state, from, ctx.time) } else { Amount::ZERO };
        subtract(state, from, denom, *amount, locked)?;
    }
    if !ctx.silent {
        ctx.emit("coin_spent", [("spender", from.account()), ("amount", text(coins))]);
    }
    Ok(())
}

/// Gives an account coins that `from` has spent. Emits `coin_received` and `transfer`.
fn receive(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    from: &Address,
    to: &Address,
    coins: &Coins<'_>,
) -> Result<(), TxError> {
    for (denom, amount) in coins {
        add(state, to, denom, *amount)?;
    }
    if !ctx.silent {
        let (from, to, coins) = (from.account(), to.account(), text(coins));
        ctx.emit("coin_received", [("receiver", to.clone()), ("amount", coins.clone())]);
        ctx.emit("transfer", [("recipient", to), ("sender", from), ("amount", coins)]);
    }
    Ok(())
}

/// Moves uplk of an account into a pool of stake, what has not vested too. Refused where the account holds less.
pub fn stake(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    from: &Address,
    to: Pool,
    amount: Amount,
) -> Result<(), TxError> {
    subtract(state, from, DENOM, amount, Amount::ZERO)?;
    vesting::staked(state, from, amount, ctx.time);
    add(state, &to.address(), DENOM, amount)?;
    emit_moved(ctx, from, &to.address(), amount);
    Ok(())
}

/// Moves uplk of a pool of stake back to an account.
pub fn unstake(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    from: Pool,
    to: &Address,
    amount: Amount,
) -> Result<(), TxError> {
    if amount.is_zero() {
        return Ok(());
    }
    subtract(state, &from.address(), DENOM, amount, Amount::ZERO)?;
    vesting::unstaked(state, to, amount);
    add(state, to, DENOM, amount)?;
    emit_moved(ctx, &from.address(), to, amount);
    Ok(())
}

/// Stake is moved without an event `transfer`, as in the SDK.
fn emit_moved(ctx: &mut Context, from: &Address, to: &Address, amount: Amount) {
    let coin = format!("{amount}{DENOM}");
    ctx.emit("coin_spent", [("spender", from.account()), ("amount", coin.clone())]);
    ctx.emit("coin_received", [("receiver", to.account()), ("amount", coin)]);
}

/// Creates uplk in a pool. Emits `coin_received` and `coinbase`.
pub fn mint(ctx: &mut Context, state: &mut dyn StateWrite, to: Pool, amount: Amount) -> Result<(), TxError> {
    if amount.is_zero() {
        return Ok(());
    }
    let new_supply = supply(state, DENOM).checked_add(amount).ok_or_else(|| too_much(DENOM))?;
    let (minted, burned) = flows(state, DENOM);
    add(state, &to.address(), DENOM, amount)?;
    set_supply(state, DENOM, new_supply);
    set_flows(state, DENOM, minted.checked_add(amount).ok_or_else(|| too_much(DENOM))?, burned);
    let (receiver, coin) = (to.address().account(), format!("{amount}{DENOM}"));
    ctx.emit("coin_received", [("receiver", receiver.clone()), ("amount", coin.clone())]);
    ctx.emit("coinbase", [("minter", receiver), ("amount", coin)]);
    Ok(())
}

/// Destroys uplk of a pool. Refused with `InsufficientFunds` where it holds less. Emits `coin_spent` and `burn`.
pub fn burn(ctx: &mut Context, state: &mut dyn StateWrite, from: Pool, amount: Amount) -> Result<(), TxError> {
    if amount.is_zero() {
        return Ok(());
    }
    subtract(state, &from.address(), DENOM, amount, Amount::ZERO)?;
    let (minted, burned) = flows(state, DENOM);
    let new_supply = supply(state, DENOM).checked_sub(amount).ok_or_else(|| too_much(DENOM))?;
    set_supply(state, DENOM, new_supply);
    set_flows(state, DENOM, minted, burned.checked_add(amount).ok_or_else(|| too_much(DENOM))?);
    let (burner, coin) = (from.address().account(), format!("{amount}{DENOM}"));
    ctx.emit("coin_spent", [("spender", burner.clone()), ("amount", coin.clone())]);
    ctx.emit("burn", [("burner", burner), ("amount", coin)]);
    Ok(())
}

fn subtract(
    state: &mut dyn StateWrite,
    from: &Address,
    denom: &str,
    amount: Amount,
    locked: Amount,
) -> Result<(), TxError> {
    let held = balance_of(state, from, denom);
    let available = held.saturating_sub(locked);
    if amount > available {
        let denom = denom.to_owned();
        return Err(TxError::InsufficientFunds { available: available.0, needed: amount.0, denom });
    }
    set_balance(state, from, denom, held.saturating_sub(amount));
    Ok(())
}

fn add(state: &mut dyn StateWrite, to: &Address, denom: &str, amount: Amount) -> Result<(), TxError> {
    let held = balance_of(state, to, denom);
    set_balance(state, to, denom, held.checked_add(amount).ok_or_else(|| too_much(denom))?);
    // Who holds a coin has an account.
    if held.is_zero() {
        auth::ensure_account(state, to);
    }
    Ok(())
}

/// A denomination by the SDK's rule: `[a-zA-Z][a-zA-Z0-9/:._-]{2,127}`.
pub fn is_denom(denom: &str) -> bool {
    let mut bytes = denom.bytes();
    (3..=128).contains(&denom.len())
        && bytes.next().is_some_and(|first| first.is_ascii_alphabetic())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"/:._-".contains(&byte))
}

fn genesis(_: &mut Context, state: &mut dyn StateWrite, genesis: &Genesis) -> Result<(), GenesisError> {
    let mut total = Amount::ZERO;
    for (index, account) in genesis.accounts.iter().enumerate() {
        let field = format!("accounts[{index}]");
        let address: Address = account.address.parse().map_err(|error| GenesisError::invalid(&field, error))?;
        if Pool::of_address(&address).is_some() || !balance(state, address).is_zero() {
            return Err(GenesisError::invalid(&field, "a module's account, or one that stands there twice"));
        }
        total = total
            .checked_add(account.balance)
            .ok_or_else(|| GenesisError::invalid(&field, "the balances overflow 128 bits"))?;
        set_balance(state, &address, DENOM, account.balance);
    }
    set_supply(state, DENOM, total);
    set_flows(state, DENOM, Amount::ZERO, Amount::ZERO);
    Ok(())
}
