//! What a granter allows: in all, in a period, for some messages. (`x/feegrant/{basic,periodic,filtered}_fee.go`.)

use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::feegrant::v1beta1::{AllowedMsgAllowance, BasicAllowance, PeriodicAllowance};
use polylink_protocol::cosmos::{Any, Timestamp};
use polylink_protocol::{Amount, DENOM, Message, Name};

use super::FeegrantError;
use crate::bank::check_coins;
use crate::context::BlockTime;
use crate::error::TxError;

/// Messages of a list at most, so that looking through it is bounded.
const ALLOWED_MAX: usize = 64;

/// An allowance of one of the SDK's kinds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Allowance {
    /// Until it is used up or expires.
    Basic(BasicAllowance),
    /// That, and not more in a period than so much.
    Periodic(PeriodicAllowance),
    /// One of those, for the messages of a list.
    Allowed(Box<Allowance>, Vec<String>),
}

fn decode<M: Message + Name + Default>(any: &Any) -> Result<M, TxError> {
    M::decode(any.value.as_slice()).map_err(|error| TxError::Decode(format!("{}: {error}", M::NAME)))
}

fn time(time: &Timestamp) -> BlockTime {
    BlockTime { seconds: time.seconds, nanos: time.nanos }
}

fn is_time(time: &Timestamp) -> bool {
    time.seconds >= 0 && (0..1_000_000_000).contains(&time.nanos)
}

/// Fees are paid in one coin alone.
fn check_limit(coins: &[Coin]) -> Result<(), TxError> {
    check_coins(coins)?;
    match coins.iter().find(|coin| coin.denom != DENOM) {
        Some(coin) => Err(TxError::InvalidCoins(format!("fees are paid in {DENOM}, not in {}", coin.denom))),
        None => Ok(()),
    }
}

/// How much a checked limit is. `None` where there is no coin in it.
fn limit(coins: &[Coin]) -> Option<Amount> {
    coins.first().and_then(|coin| coin.amount.parse().ok())
}

fn coins(amount: Amount) -> Vec<Coin> {
    if amount.is_zero() { Vec::new() } else { vec![Coin { denom: DENOM.into(), amount: amount.to_string() }] }
}

/// Takes a fee out of a limit; returns whether nothing is left. Without a limit there always is.
fn take(limits: &mut Vec<Coin>, fee: Amount, what: &'static str) -> Result<bool, FeegrantError> {
    let Some(most) = limit(limits) else { return Ok(false) };
    let rest = most.checked_sub(fee).ok_or(FeegrantError::Exceeded(what))?;
    *limits = coins(rest);
    Ok(rest.is_zero())
}

impl Allowance {
    /// From a message or the state.
    pub fn parse(any: Option<&Any>) -> Result<Self, TxError> {
        let any = any.ok_or_else(|| TxError::invalid("allowance: nothing"))?;
        if any.type_url == AllowedMsgAllowance::type_url() {
            let filtered: AllowedMsgAllowance = decode(any)?;
            let inner = Self::parse_plain(filtered.allowance.as_ref())?;
            return Ok(Allowance::Allowed(Box::new(inner), filtered.allowed_messages));
        }
        Self::parse_plain(Some(any))
    }

    fn parse_plain(any: Option<&Any>) -> Result<Self, TxError> {
        let any = any.ok_or_else(|| TxError::invalid("allowance: nothing"))?;
        if any.type_url == BasicAllowance::type_url() {
            return decode(any).map(Allowance::Basic);
        }
        if any.type_url == PeriodicAllowance::type_url() {
            return decode(any).map(Allowance::Periodic);
        }
        let shown: String = any.type_url.chars().take(64).flat_map(char::escape_debug).collect();
        Err(TxError::NotSupported(format!("{shown}: a basic, periodic or allowed-message allowance is expected")))
    }

    /// As it is stored.
    pub fn to_any(&self) -> Any {
        match self {
            Allowance::Basic(basic) => polylink_protocol::tx::any(basic),
            Allowance::Periodic(periodic) => polylink_protocol::tx::any(periodic),
            Allowance::Allowed(inner, messages) => polylink_protocol::tx::any(&AllowedMsgAllowance {
                allowance: Some(inner.to_any()),
                allowed_messages: messages.clone(),
            }),
        }
    }

    /// What can be said against it without the state (`ValidateBasic`).
    pub fn check(&self) -> Result<(), TxError> {
        match self {
            Allowance::Basic(basic) => check_basic(basic),
            Allowance::Periodic(periodic) => {
                check_basic(periodic.basic.as_ref().ok_or_else(|| TxError::invalid("basic: nothing"))?)?;
                check_limit(&periodic.period_spend_limit)?;
                if !periodic.period_can_spend.is_empty() {
                    check_limit(&periodic.period_can_spend)?;
                }
                let period = periodic.period.as_ref().map_or((0, 0), |period| (period.seconds, period.nanos));
                if period < (0, 1) || !(0..1_000_000_000).contains(&period.1) {
                    return Err(FeegrantError::InvalidDuration.into());
                }
                if periodic.period_reset.as_ref().is_some_and(|reset| !is_time(reset)) {
                    return Err(TxError::invalid("period_reset is no time"));
                }
                Ok(())
            }
            Allowance::Allowed(inner, messages) => {
                if messages.is_empty() {
                    return Err(FeegrantError::NoMessages.into());
                }
                if messages.len() > ALLOWED_MAX {
                    return Err(TxError::invalid(format!("{ALLOWED_MAX} allowed messages are the most")));
                }
                inner.check()
            }
        }
    }

    /// When it ends, if ever.
    pub fn expires(&self) -> Option<BlockTime> {
        match self {
            Allowance::Basic(basic) => basic.expiration.as_ref().map(time),
            Allowance::Periodic(periodic) => periodic.basic.as_ref()?.expiration.as_ref().map(time),
            Allowance::Allowed(inner, _) => inner.expires(),
        }
    }

    /// Takes a fee out of it; returns whether it is used up.
    pub fn accept(&mut self, now: BlockTime, fee: Amount, messages: &[&str]) -> Result<bool, FeegrantError> {
        if self.expires().is_some_and(|at| now > at) {
            return Err(FeegrantError::Expired);
        }
        match self {
            Allowance::Basic(basic) => take(&mut basic.spend_limit, fee, "basic allowance"),
            Allowance::Periodic(periodic) => {
                reset(periodic, now);
                // Nothing left of the period is a limit of nothing, not the absence of one.
                if periodic.period_can_spend.is_empty() && !fee.is_zero() {
                    return Err(FeegrantError::Exceeded("period limit"));
                }
                take(&mut periodic.period_can_spend, fee, "period limit")?;
                match &mut periodic.basic {
                    Some(basic) => take(&mut basic.spend_limit, fee, "absolute limit"),
                    None => Ok(false),
                }
            }
            Allowance::Allowed(inner, allowed) => {
                if !messages.iter().all(|message| allowed.iter().any(|allowed| allowed == message)) {
                    return Err(FeegrantError::NotAllowed);
                }
                inner.accept(now, fee, messages)
            }
        }
    }
}

fn check_basic(basic: &BasicAllowance) -> Result<(), TxError> {
    if !basic.spend_limit.is_empty() {
        check_limit(&basic.spend_limit)?;
    }
    match &basic.expiration {
        Some(at) if !is_time(at) || at.seconds == 0 => Err(TxError::invalid("expiration is no time")),
        _ => Ok(()),
    }
}

/// Begins a new period where the last one is over: on time for the next one, or from now where a whole one was missed.
fn reset(periodic: &mut PeriodicAllowance, now: BlockTime) {
    let last = periodic.period_reset.as_ref().map_or_else(BlockTime::default, time);
    if now < last {
        return;
    }
    let total = periodic.basic.as_ref().and_then(|basic| limit(&basic.spend_limit));
    let period = limit(&periodic.period_spend_limit).unwrap_or(Amount::ZERO);
    periodic.period_can_spend = coins(total.map_or(period, |total| total.min(period)));
    let next = |from: BlockTime| {
        let length = periodic.period.as_ref().map_or((0, 0), |period| (period.seconds, period.nanos));
        let nanos = i64::from(from.nanos) + i64::from(length.1);
        let seconds = from.seconds.saturating_add(length.0).saturating_add(nanos / 1_000_000_000);
        BlockTime { seconds, nanos: i32::try_from(nanos % 1_000_000_000).unwrap_or(0) }
    };
    let reset = next(last);
    let reset = if now > reset { next(now) } else { reset };
    periodic.period_reset = Some(Timestamp { seconds: reset.seconds, nanos: reset.nanos });
}
