//! How much of an account has vested at a time: `x/auth/vesting/types/vesting_account.go`, with its rounding.

use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::auth::v1beta1::BaseAccount;
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::vesting::v1beta1::{
    BaseVestingAccount, ContinuousVestingAccount, DelayedVestingAccount, Period, PeriodicVestingAccount,
    PermanentLockedAccount,
};
use polylink_protocol::tx::any;
use polylink_protocol::{Amount, DENOM, Dec, Message, Name};

use crate::context::BlockTime;

/// How coins vest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Evenly, from a second on.
    Continuous(i64),
    /// All at the end.
    Delayed,
    /// In parts, from a second on: after so many seconds each, so much.
    Periodic(i64, Vec<(i64, Amount)>),
    /// Never.
    Permanent,
}

/// An account's schedule, and how much of it is staked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vesting {
    /// How it vests.
    pub kind: Kind,
    /// What vests in all.
    pub original: Amount,
    /// Staked coins that had vested when they were staked.
    pub delegated_free: Amount,
    /// Staked coins that had not.
    pub delegated_vesting: Amount,
    /// The second at which all has vested; 0 for never.
    pub end: i64,
}

fn coins(amount: Amount) -> Vec<Coin> {
    if amount.is_zero() { Vec::new() } else { vec![Coin { denom: DENOM.into(), amount: amount.to_string() }] }
}

fn amount(coins: &[Coin]) -> Option<Amount> {
    coins.first().map_or(Some(Amount::ZERO), |coin| coin.amount.parse().ok())
}

impl Vesting {
    /// With nothing staked.
    pub fn new(kind: Kind, original: Amount, end: i64) -> Self {
        Vesting { kind, original, delegated_free: Amount::ZERO, delegated_vesting: Amount::ZERO, end }
    }

    /// What has vested at a time.
    pub fn vested(&self, now: BlockTime) -> Amount {
        let now = now.seconds;
        match &self.kind {
            Kind::Permanent => Amount::ZERO,
            _ if now >= self.end => self.original,
            Kind::Delayed => Amount::ZERO,
            Kind::Continuous(start) | Kind::Periodic(start, _) if now <= *start => Amount::ZERO,
            Kind::Continuous(start) => {
                let (passed, all) = (now.abs_diff(*start), self.end.abs_diff(*start));
                let part = Dec::from_amount(Amount(passed.into())).quo_round(Dec::from_amount(Amount(all.into())));
                let vested = part.and_then(|part| Dec::from_amount(self.original).mul_round(part)).and_then(Dec::round);
                // An amount near 128 bits overflows the product: as if nothing had vested yet.
                vested.unwrap_or(Amount::ZERO).min(self.original)
            }
            Kind::Periodic(start, periods) => {
                let (mut begin, mut vested) = (*start, Amount::ZERO);
                for (length, part) in periods {
                    begin = begin.saturating_add(*length);
                    if now < begin {
                        break;
                    }
                    vested = Amount(vested.0.saturating_add(part.0));
                }
                vested.min(self.original)
            }
        }
    }

    fn unvested(&self, now: BlockTime) -> Amount {
        self.original.saturating_sub(self.vested(now))
    }

    /// What cannot be sent: what has not vested, less what of it is staked.
    pub fn locked(&self, now: BlockTime) -> Amount {
        self.unvested(now).saturating_sub(self.delegated_vesting)
    }

    /// An amount is staked: locked coins first (`TrackDelegation`).
    pub fn stake(&mut self, amount: Amount, now: BlockTime) {
        let locked = self.locked(now).min(amount);
        self.delegated_vesting = Amount(self.delegated_vesting.0.saturating_add(locked.0));
        self.delegated_free = Amount(self.delegated_free.0.saturating_add(amount.0 - locked.0));
    }

    /// An amount comes back: free coins first (`TrackUndelegation`). After a slash it is less than what was staked.
    pub fn unstake(&mut self, amount: Amount) {
        let free = self.delegated_free.min(amount);
        self.delegated_free = self.delegated_free.saturating_sub(free);
        self.delegated_vesting = self.delegated_vesting.saturating_sub(amount.saturating_sub(free));
    }

    /// As queries show it, or without the account as it is stored.
    pub fn to_any(&self, base_account: Option<BaseAccount>) -> Any {
        let base_vesting_account = Some(BaseVestingAccount {
            base_account,
            original_vesting: coins(self.original),
            delegated_free: coins(self.delegated_free),
            delegated_vesting: coins(self.delegated_vesting),
            end_time: self.end,
        });
        match &self.kind {
            Kind::Continuous(start) => any(&ContinuousVestingAccount { base_vesting_account, start_time: *start }),
            Kind::Delayed => any(&DelayedVestingAccount { base_vesting_account }),
            Kind::Periodic(start, periods) => {
                let period = |(length, part): &(i64, Amount)| Period { length: *length, amount: coins(*part) };
                let vesting_periods = periods.iter().map(period).collect();
                any(&PeriodicVestingAccount { base_vesting_account, start_time: *start, vesting_periods })
            }
            Kind::Permanent => any(&PermanentLockedAccount { base_vesting_account }),
        }
    }

    /// The inverse of [`Self::to_any`]. `None` of anything else.
    pub fn from_any(any: &Any) -> Option<Self> {
        fn decode<M: Message + Name + Default>(any: &Any) -> Option<M> {
            (any.type_url == M::type_url()).then(|| M::decode(any.value.as_slice()).ok()).flatten()
        }
        let (kind, base) = if let Some(account) = decode::<ContinuousVestingAccount>(any) {
            (Kind::Continuous(account.start_time), account.base_vesting_account)
        } else if let Some(account) = decode::<DelayedVestingAccount>(any) {
            (Kind::Delayed, account.base_vesting_account)
        } else if let Some(account) = decode::<PeriodicVestingAccount>(any) {
            let periods = account.vesting_periods.iter().map(|period| Some((period.length, amount(&period.amount)?)));
            (Kind::Periodic(account.start_time, periods.collect::<Option<_>>()?), account.base_vesting_account)
        } else {
            (Kind::Permanent, decode::<PermanentLockedAccount>(any)?.base_vesting_account)
        };
        let base = base?;
        Some(Vesting {
            kind,
            original: amount(&base.original_vesting)?,
            delegated_free: amount(&base.delegated_free)?,
            delegated_vesting: amount(&base.delegated_vesting)?,
            end: base.end_time,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> BlockTime {
        BlockTime { seconds, nanos: 999_999_999 }
    }

    #[test]
    fn what_has_vested_when() {
        let continuous = Vesting::new(Kind::Continuous(100), Amount(1_000), 400);
        let delayed = Vesting::new(Kind::Delayed, Amount(1_000), 400);
        let parts = vec![(100, Amount(300)), (50, Amount(200)), (150, Amount(500))];
        let periodic = Vesting::new(Kind::Periodic(100, parts), Amount(1_000), 400);
        let permanent = Vesting::new(Kind::Permanent, Amount(1_000), 0);
        for (second, vested) in [
            (0, [0, 0, 0, 0]),
            (100, [0, 0, 0, 0]),
            (101, [3, 0, 0, 0]),
            (199, [330, 0, 0, 0]),
            (200, [333, 0, 300, 0]),
            (249, [497, 0, 300, 0]),
            // 500 exactly, and the end of the second part.
            (250, [500, 0, 500, 0]),
            (399, [997, 0, 500, 0]),
            (400, [1_000, 1_000, 1_000, 0]),
            (i64::MAX, [1_000, 1_000, 1_000, 0]),
        ] {
            let found = [&continuous, &delayed, &periodic, &permanent].map(|vesting| vesting.vested(at(second)).0);
            assert_eq!(found, vested, "at {second}");
        }
        // Rounded half to even as the SDK does: 1/8 of 4 is a half, 3/8 are one and a half.
        let halves = Vesting::new(Kind::Continuous(0), Amount(4), 8);
        assert_eq!([1, 2, 3, 5].map(|second| halves.vested(at(second)).0), [0, 1, 2, 2]);
    }

    /// The example of the SDK's documentation: what is staked counts as locked first, what comes back as free first.
    #[test]
    fn stake_is_locked_first_and_comes_back_free_first() {
        let mut vesting = Vesting::new(Kind::Continuous(0), Amount(10), 10);
        vesting.stake(Amount(7), at(3));
        assert_eq!((vesting.delegated_vesting.0, vesting.delegated_free.0, vesting.locked(at(3)).0), (7, 0, 0));
        vesting.stake(Amount(5), at(3));
        assert_eq!((vesting.delegated_vesting.0, vesting.delegated_free.0), (7, 5));
        vesting.unstake(Amount(6));
        assert_eq!((vesting.delegated_vesting.0, vesting.delegated_free.0), (6, 0));
        assert_eq!([3, 4, 9].map(|second| vesting.locked(at(second)).0), [1, 0, 0]);
        vesting.unstake(Amount(100));
        assert_eq!((vesting.delegated_vesting.0, vesting.locked(at(3)).0), (0, 7));
    }

    #[test]
    fn schedules_go_round() {
        for kind in [Kind::Continuous(-5), Kind::Delayed, Kind::Periodic(3, vec![(4, Amount(5))]), Kind::Permanent] {
            let mut vesting = Vesting::new(kind, Amount(10), 77);
            vesting.stake(Amount(11), at(0));
            assert_eq!(Vesting::from_any(&vesting.to_any(None)).as_ref(), Some(&vesting));
            assert_eq!(Vesting::from_any(&vesting.to_any(Some(BaseAccount::default()))), Some(vesting));
        }
        assert_eq!(Vesting::from_any(&any(&BaseAccount::default())), None);
    }
}
