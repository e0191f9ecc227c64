//! Accounts whose coins become theirs in time: `x/auth/vesting` of the Cosmos SDK.
//!
//! Such an account holds all of its coins from the start. What has not vested yet is *locked*: it can be staked, and not
//! be sent. Staked coins are counted as locked ones first (`delegated_vesting`), so that an account that stakes its locked
//! coins can send the others; when they come back, as free ones first. The schedule is in uplk.
//!
//! Invariant: what an account has of `delegated_vesting` and `delegated_free` only moves by its own stake, and its locked
//! coins are never more than what has not vested.

mod genesis;
mod messages;
mod schedule;
#[cfg(test)]
mod tests;

use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::auth::v1beta1::BaseAccount;
use polylink_protocol::cosmos::cosmos::vesting::v1beta1 as proto;
use polylink_protocol::{Address, Amount, Message};

use crate::context::BlockTime;
use crate::modules::{MessageRoute, Module, no_hook};
use crate::store::{KeyBuilder, StateRead, StateWrite};

pub use genesis::{GenesisPeriod, GenesisVesting};
pub use schedule::Vesting;

/// Schedules: `0x0b ‖ address (20)` → `google.protobuf.Any` of the account as queries show it, without its base account.
pub const VESTING: u8 = 0x0b;

/// Periods of one schedule at most: each transfer adds them up.
pub const PERIODS_MAX: usize = 256;

/// The tables of vesting accounts.
pub const MODULE: Module = Module {
    name: "vesting",
    messages: &[
        MessageRoute::of::<proto::MsgCreateVestingAccount>(),
        MessageRoute::of::<proto::MsgCreatePermanentLockedAccount>(),
        MessageRoute::of::<proto::MsgCreatePeriodicVestingAccount>(),
    ],
    refused: &[],
    queries: &[],
    begin_block: no_hook,
    end_block: no_hook,
    genesis: genesis::run,
};

fn key(address: &Address) -> Vec<u8> {
    KeyBuilder::new(VESTING).bytes(&address.0).finish()
}

/// The schedule of an account, if it has one.
pub fn vesting(state: &dyn StateRead, address: &Address) -> Option<Vesting> {
    let any = Any::decode(state.get(&key(address))?.as_slice()).expect("schedules are written encoded");
    Some(Vesting::from_any(&any).expect("schedules are checked before they are written"))
}

fn set_vesting(state: &mut dyn StateWrite, address: &Address, vesting: &Vesting) {
    state.put(key(address), vesting.to_any(None).encode_to_vec());
}

/// The account as queries show it, where it has a schedule.
pub(crate) fn account_any(state: &dyn StateRead, address: &Address, base: &BaseAccount) -> Option<Any> {
    vesting(state, address).map(|vesting| vesting.to_any(Some(base.clone())))
}

/// What an account holds and cannot send.
pub fn locked(state: &dyn StateRead, address: &Address, now: BlockTime) -> Amount {
    vesting(state, address).map_or(Amount::ZERO, |vesting| vesting.locked(now))
}

/// Notes that an account stakes an amount of what it holds.
pub(crate) fn staked(state: &mut dyn StateWrite, address: &Address, amount: Amount, now: BlockTime) {
    if let Some(mut vesting) = vesting(state, address) {
        vesting.stake(amount, now);
        set_vesting(state, address, &vesting);
    }
}

/// Notes that stake of an account has come back.
pub(crate) fn unstaked(state: &mut dyn StateWrite, address: &Address, amount: Amount) {
    if let Some(mut vesting) = vesting(state, address) {
        vesting.unstake(amount);
        set_vesting(state, address, &vesting);
    }
}
