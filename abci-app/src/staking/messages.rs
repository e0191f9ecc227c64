//! MsgCreateValidator, MsgDelegate, MsgUndelegate.

use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::crypto::ed25519::PubKey;
use polylink_protocol::cosmos::cosmos::staking::v1beta1::{
    BondStatus, Commission, Description, MsgCreateValidator, MsgCreateValidatorResponse, MsgDelegate,
    MsgDelegateResponse, MsgUndelegate, MsgUndelegateResponse, Validator,
};
use polylink_protocol::{Address, Amount, DENOM, Dec, Message, Name};

use super::ledger::{check_denom, delegate, set_validator, timestamp, undelegate, validator};
use super::{BY_CONSENSUS_ADDRESS, StakingError};
use crate::bank::check_coin;
use crate::context::Context;
use crate::error::TxError;
use crate::modules::Handle;
use crate::store::{KeyBuilder, StateWrite};

/// Stake in a message: a positive amount of the coin of stake.
fn stake(coin: Option<&Coin>) -> Result<Amount, TxError> {
    let coin = coin.ok_or_else(|| TxError::InvalidCoins("no amount".into()))?;
    let amount = check_coin(coin)?;
    check_denom(&coin.denom)?;
    Ok(amount)
}

/// The 32 bytes of an ed25519 consensus key.
pub(super) fn consensus_key(any: Option<&Any>) -> Result<[u8; 32], TxError> {
    let any = any.ok_or_else(|| StakingError::KeyType("nothing".into()))?;
    let key = (any.type_url == PubKey::type_url()).then(|| PubKey::decode(any.value.as_slice()).ok()).flatten();
    let key: Option<[u8; 32]> = key.and_then(|key| key.key.try_into().ok());
    match key {
        Some(key) if polylink_protocol::keys::is_ed25519_key(&key) => Ok(key),
        _ => Err(StakingError::KeyType(any.type_url.chars().take(64).flat_map(char::escape_debug).collect()).into()),
    }
}

fn check_description(description: Option<&Description>) -> Result<(), StakingError> {
    let description = description.ok_or(StakingError::Description("a moniker is needed"))?;
    let Description { moniker, identity, website, security_contact, details } = description;
    if moniker.is_empty() {
        return Err(StakingError::Description("a moniker is needed"));
    }
    // The SDK's limits, in bytes.
    let fits = moniker.len() <= 70
        && identity.len() <= 3_000
        && website.len() <= 140
        && security_contact.len() <= 140
        && details.len() <= 280;
    if fits { Ok(()) } else { Err(StakingError::Description("a field is longer than its limit")) }
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
        check_description(self.description.as_ref())?;
        let value = stake(self.value.as_ref())?;
        let least: Amount = self.min_self_delegation.parse()?;
        if least.is_zero() || value < least {
            return Err(StakingError::SelfDelegation.into());
        }
        let rates = self.commission.as_ref().ok_or(StakingError::Commission("the rates are missing"))?;
        let rate = |text: &str| Dec::from_atomics_str(text).ok_or(StakingError::Commission("not a Dec"));
        let (rate, max, change) = (rate(&rates.rate)?, rate(&rates.max_rate)?, rate(&rates.max_change_rate)?);
        if max > Dec::one() || rate > max || change > max {
            return Err(StakingError::Commission("rate and max_change_rate ≤ max_rate ≤ 1 must hold").into());
        }
        Ok(())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgCreateValidatorResponse, TxError> {
        let operator = self.signer()?;
        let key = consensus_key(self.pubkey.as_ref())?;
        if validator(state, &operator).is_some() {
            return Err(StakingError::OwnerExists(operator.valoper()).into());
        }
        let index = KeyBuilder::new(BY_CONSENSUS_ADDRESS).bytes(&Address::of_consensus_key(&key).0).finish();
        if let Some(owner) = state.get(&index) {
            let owner = owner.try_into().map_or_else(|_| String::new(), |bytes| Address(bytes).valoper());
            return Err(StakingError::KeyExists(owner).into());
        }
        state.put(index, operator.0.to_vec());
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
        set_validator(state, &operator, &record);
        let amount = stake(self.value.as_ref())?;
        delegate(ctx, state, &operator, &operator, amount)?;
        let coin = format!("{amount}{DENOM}");
        ctx.emit("create_validator", &[("validator", operator.valoper()), ("amount", coin)]);
        Ok(MsgCreateValidatorResponse {})
    }
}

impl Handle for MsgDelegate {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgDelegate";
    type Response = MsgDelegateResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.delegator_address.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        Address::from_valoper(&self.validator_address)?;
        stake(self.amount.as_ref()).map(|_| ())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgDelegateResponse, TxError> {
        let (delegator, operator) = (self.signer()?, Address::from_valoper(&self.validator_address)?);
        let amount = stake(self.amount.as_ref())?;
        let shares = delegate(ctx, state, &delegator, &operator, amount)?;
        let attributes = [
            ("validator", operator.valoper()),
            ("delegator", delegator.account()),
            ("amount", format!("{amount}{DENOM}")),
            ("new_shares", shares.to_string()),
        ];
        ctx.emit("delegate", &attributes);
        Ok(MsgDelegateResponse {})
    }
}

impl Handle for MsgUndelegate {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgUndelegate";
    type Response = MsgUndelegateResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.delegator_address.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        Address::from_valoper(&self.validator_address)?;
        stake(self.amount.as_ref()).map(|_| ())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgUndelegateResponse, TxError> {
        let (delegator, operator) = (self.signer()?, Address::from_valoper(&self.validator_address)?);
        let asked = stake(self.amount.as_ref())?;
        let (amount, completion) = undelegate(ctx, state, &delegator, &operator, asked)?;
        let completion = completion.unwrap_or(ctx.time);
        let attributes = [
            ("validator", operator.valoper()),
            ("delegator", delegator.account()),
            ("amount", format!("{amount}{DENOM}")),
            ("completion_time", format!("{}.{:09}", completion.seconds, completion.nanos)),
        ];
        ctx.emit("unbond", &attributes);
        Ok(MsgUndelegateResponse {
            completion_time: Some(timestamp(completion)),
            amount: Some(Coin { denom: DENOM.into(), amount: amount.to_string() }),
        })
    }
}
