//! Accounts of the genesis document whose coins vest.

use polylink_protocol::{Address, Amount};
use serde::{Deserialize, Serialize};

use super::schedule::{Kind, Vesting};
use super::{PERIODS_MAX, set_vesting};
use crate::context::Context;
use crate::error::GenesisError;
use crate::genesis::Genesis;
use crate::store::StateWrite;

/// How an account's coins vest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum GenesisVesting {
    /// Evenly between two seconds of Unix time.
    Continuous {
        /// How much of the balance.
        amount: Amount,
        /// From when on.
        start_seconds: i64,
        /// Until when.
        end_seconds: i64,
    },
    /// All at once.
    Delayed {
        /// How much of the balance.
        amount: Amount,
        /// When.
        end_seconds: i64,
    },
    /// In parts, one after the other.
    Periodic {
        /// From when on.
        start_seconds: i64,
        /// The parts.
        periods: Vec<GenesisPeriod>,
    },
    /// Never: it can be staked, and that alone.
    Permanent {
        /// How much of the balance.
        amount: Amount,
    },
}

/// A part of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenesisPeriod {
    /// How long after the part before it.
    pub seconds: u64,
    /// How much.
    pub amount: Amount,
}

impl GenesisVesting {
    /// The schedule, or what is wrong with it.
    fn schedule(&self) -> Result<Vesting, &'static str> {
        match self {
            GenesisVesting::Continuous { amount, start_seconds, end_seconds } if start_seconds < end_seconds => {
                Ok(Vesting::new(Kind::Continuous(*start_seconds), *amount, *end_seconds))
            }
            GenesisVesting::Continuous { .. } => Err("start_seconds before end_seconds is expected"),
            GenesisVesting::Delayed { amount, end_seconds } => Ok(Vesting::new(Kind::Delayed, *amount, *end_seconds)),
            GenesisVesting::Permanent { amount } => Ok(Vesting::new(Kind::Permanent, *amount, 0)),
            GenesisVesting::Periodic { start_seconds, periods } => {
                let (mut end, mut total) = (*start_seconds, Amount::ZERO);
                if periods.is_empty() || periods.len() > PERIODS_MAX {
                    return Err("1 to 256 periods are expected");
                }
                let mut parts = Vec::new();
                for period in periods {
                    let length = i64::try_from(period.seconds).map_err(|_| "a period is too long")?;
                    end = end.checked_add(length).ok_or("the periods are too long")?;
                    total = total.checked_add(period.amount).ok_or("the amounts overflow 128 bits")?;
                    parts.push((length, period.amount));
                }
                Ok(Vesting::new(Kind::Periodic(*start_seconds, parts), total, end))
            }
        }
    }
}

pub(super) fn run(_: &mut Context, state: &mut dyn StateWrite, genesis: &Genesis) -> Result<(), GenesisError> {
    for (index, account) in genesis.accounts.iter().enumerate() {
        let Some(vesting) = &account.vesting else { continue };
        let field = format!("accounts[{index}].vesting");
        let address: Address = account.address.parse().map_err(|error| GenesisError::invalid(&field, error))?;
        let schedule = vesting.schedule().map_err(|reason| GenesisError::invalid(&field, reason))?;
        if schedule.original > account.balance || schedule.original.is_zero() {
            return Err(GenesisError::invalid(&field, "an amount above 0 and within the balance is expected"));
        }
        set_vesting(state, &address, &schedule);
    }
    Ok(())
}
