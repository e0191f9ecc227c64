//! MsgCreateValidator and MsgEditValidator.

use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::crypto::ed25519::PubKey;
use polylink_protocol::cosmos::cosmos::staking::v1beta1::{
    BondStatus, Commission, CommissionRates, Description, MsgCreateValidator, MsgCreateValidatorResponse,
    MsgEditValidator, MsgEditValidatorResponse, Validator,
};
use polylink_protocol::{Address, Amount, DENOM, Dec, Message, Name};

use super::StakingError;
use super::delegate::{Source, delegate};
use super::records::{
    create_validator, from_timestamp, operator_of, params, require_validator, set_validator, timestamp, validator,
};
use super::shares::tokens;
use super::stake_messages::stake;
use crate::context::{BlockTime, Context};
use crate::error::TxError;
use crate::modules::Handle;
use crate::store::{StateRead, StateWrite};

/// A field of an edited description that stays as it is.
const DO_NOT_MODIFY: &str = "[do-not-modify]";

/// Between two changes of a commission.
const COMMISSION_CHANGE_SECONDS: u64 = 24 * 3600;

/// The 32 bytes of an ed25519 consensus key.
fn consensus_key(any: Option<&Any>) -> Result<[u8; 32], TxError> {
    let any = any.ok_or_else(|| StakingError::KeyType("nothing".into()))?;
    let key = (any.type_url == PubKey::type_url()).then(|| PubKey::decode(any.value.as_slice()).ok()).flatten();
    let key: Option<[u8; 32]> = key.and_then(|key| key.key.try_into().ok());
    match key {
        Some(key) if polylink_protocol::keys::is_ed25519_key(&key) => Ok(key),
        _ => Err(StakingError::KeyType(any.type_url.chars().take(64).flat_map(char::escape_debug).collect()).into()),
    }
}

fn check_description(description: Option<&Description>) -> Result<(), TxError> {
    let description = description.filter(|description| **description != Description::default());
    let description = description.ok_or_else(|| TxError::invalid("empty description"))?;
    let Description { moniker, identity, website, security_contact, details } = description;
    // The SDK's limits, in bytes.
    for (name, text, max) in [
        ("moniker", moniker, 70),
        ("identity", identity, 3_000),
        ("website", website, 140),
        ("security contact", security_contact, 140),
        ("details", details, 280),
    ] {
        if text.len() > max {
            return Err(TxError::invalid(format!("invalid {name} length; got: {}, max: {max}", text.len())));
        }
    }
    Ok(())
}

fn rate(text: &str) -> Result<Dec, TxError> {
    Dec::from_atomics_str(text).ok_or_else(|| TxError::invalid("a commission rate is decimal digits of 10^-18"))
}

/// The SDK's `CommissionRates.Validate`.
fn check_rates(rates: &CommissionRates) -> Result<(), TxError> {
    let (rate, max, change) = (rate(&rates.rate)?, rate(&rates.max_rate)?, rate(&rates.max_change_rate)?);
    if max > Dec::one() {
        return Err(StakingError::CommissionHuge.into());
    }
    if rate > max {
        return Err(StakingError::CommissionAboveMaxRate.into());
    }
    if change > max {
        return Err(StakingError::ChangeRateAboveMaxRate.into());
    }
    Ok(())
}

fn check_min_rate(state: &dyn StateRead, rate: Dec) -> Result<(), TxError> {
    let min = Dec::from_atomics_str(&params(state).min_commission_rate).unwrap_or(Dec::ZERO);
    if rate < min { Err(StakingError::CommissionBelowMinRate(min.to_string()).into()) } else { Ok(()) }
}

impl Handle for MsgCreateValidator {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgCreateValidator";
    type Response = MsgCreateValidatorResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(Address::from_valoper(&self.validator_address)?)
    }

    fn check(&self) -> Result<(), TxError> {
        #[allow(deprecated, reason = "old clients still send it, and it must not contradict the operator")]
        let delegator = &self.delegator_address;
        if !delegator.is_empty() && delegator.parse::<Address>()? != self.signer()? {
            return Err(TxError::invalid("the delegator of a new validator is its operator"));
        }
        consensus_key(self.pubkey.as_ref())?;
        let value = stake(self.value.as_ref())?;
        check_description(self.description.as_ref())?;
        check_rates(self.commission.as_ref().ok_or_else(|| TxError::invalid("empty commission"))?)?;
        let least: Amount = self.min_self_delegation.parse()?;
        if least.is_zero() {
            return Err(TxError::invalid("minimum self delegation must be a positive integer"));
        }
        if value < least { Err(StakingError::SelfDelegationBelowMinimum.into()) } else { Ok(()) }
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgCreateValidatorResponse, TxError> {
        let operator = self.signer()?;
        let consensus = Address::of_consensus_key(&consensus_key(self.pubkey.as_ref())?);
        check_min_rate(state, rate(self.commission.as_ref().map_or("", |rates| &rates.rate))?)?;
        if validator(state, &operator).is_some() {
            return Err(StakingError::OwnerExists(operator.valoper()).into());
        }
        if let Some(owner) = operator_of(state, &consensus) {
            return Err(StakingError::KeyExists(owner.valoper()).into());
        }
        let record = Validator {
            operator_address: operator.valoper(),
            consensus_pubkey: self.pubkey.clone(),
            status: BondStatus::Unbonded.into(),
            tokens: "0".into(),
            delegator_shares: "0".into(),
            description: self.description.clone(),
            commission: Some(Commission {
                commission_rates: self.commission.clone(),
                update_time: Some(timestamp(ctx.time)),
            }),
            min_self_delegation: self.min_self_delegation.clone(),
            ..Default::default()
        };
        create_validator(state, &operator, &consensus, &record)?;
        let amount = stake(self.value.as_ref())?;
        delegate(ctx, state, &operator, &operator, amount, Source::Account)?;
        let coin = format!("{amount}{DENOM}");
        ctx.emit("create_validator", [("validator", operator.valoper()), ("amount", coin)]);
        Ok(MsgCreateValidatorResponse {})
    }
}

/// The new rate, or why it may not be that (the SDK's `Commission.ValidateNewRate`): one change a day, and no rise above
/// what the validator has promised.
fn change_rate(commission: &mut Commission, new: Dec, now: BlockTime) -> Result<(), TxError> {
    let last = commission.update_time.as_ref().map_or_else(BlockTime::default, from_timestamp);
    if now < last.plus_seconds(COMMISSION_CHANGE_SECONDS) {
        return Err(StakingError::CommissionUpdateTime.into());
    }
    let rates = commission.commission_rates.get_or_insert_default();
    if new > rate(&rates.max_rate)? {
        return Err(StakingError::CommissionAboveMaxRate.into());
    }
    if new.saturating_sub(rate(&rates.rate)?) > rate(&rates.max_change_rate)? {
        return Err(StakingError::CommissionAboveMaxChange.into());
    }
    rates.rate = new.to_atomics_string();
    commission.update_time = Some(timestamp(now));
    Ok(())
}

impl Handle for MsgEditValidator {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgEditValidator";
    type Response = MsgEditValidatorResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(Address::from_valoper(&self.validator_address)?)
    }

    fn check(&self) -> Result<(), TxError> {
        if self.description.as_ref().is_none_or(|description| *description == Description::default()) {
            return Err(TxError::invalid("empty description"));
        }
        if !self.min_self_delegation.is_empty() && self.min_self_delegation.parse::<Amount>()?.is_zero() {
            return Err(TxError::invalid("minimum self delegation must be a positive integer"));
        }
        if rate(&self.commission_rate)? > Dec::one() {
            return Err(TxError::invalid("commission rate must be between 0 and 1 (inclusive)"));
        }
        Ok(())
    }

    /// An empty rate or minimum is one that does not change.
    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgEditValidatorResponse, TxError> {
        let operator = self.signer()?;
        if !self.commission_rate.is_empty() {
            check_min_rate(state, rate(&self.commission_rate)?).map_err(|error| TxError::invalid(error.to_string()))?;
        }
        let mut record = require_validator(state, &operator)?;
        let new = self.description.clone().unwrap_or_default();
        let old = record.description.take().unwrap_or_default();
        let pick = |new: String, old: String| if new == DO_NOT_MODIFY { old } else { new };
        record.description = Some(Description {
            moniker: pick(new.moniker, old.moniker),
            identity: pick(new.identity, old.identity),
            website: pick(new.website, old.website),
            security_contact: pick(new.security_contact, old.security_contact),
            details: pick(new.details, old.details),
        });
        check_description(record.description.as_ref())?;
        if !self.commission_rate.is_empty() {
            change_rate(record.commission.get_or_insert_default(), rate(&self.commission_rate)?, ctx.time)?;
        }
        if !self.min_self_delegation.is_empty() {
            let least: Amount = self.min_self_delegation.parse()?;
            if least <= Amount::parse_or_zero(&record.min_self_delegation)? {
                return Err(StakingError::MinSelfDelegationDecreased.into());
            }
            if least > tokens(&record) {
                return Err(StakingError::SelfDelegationBelowMinimum.into());
            }
            record.min_self_delegation = least.to_string();
        }
        set_validator(state, &operator, &record);
        let rates = record.commission.and_then(|commission| commission.commission_rates).unwrap_or_default();
        let attributes =
            [("commission_rate", rate(&rates.rate)?.to_string()), ("min_self_delegation", record.min_self_delegation)];
        ctx.emit("edit_validator", attributes);
        Ok(MsgEditValidatorResponse {})
    }
}
