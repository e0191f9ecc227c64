//! Staking's part of the genesis document: parameters, and the validators that the chain starts with.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::crypto::ed25519::PubKey;
use polylink_protocol::cosmos::cosmos::staking::v1beta1::{CommissionRates, Description, MsgCreateValidator, Params};
use polylink_protocol::cosmos::tendermint::google::protobuf::Duration;
use polylink_protocol::tx::any;
use polylink_protocol::{Address, Amount, DENOM, Dec};
use serde::{Deserialize, Serialize};

use super::records::set_params;
use super::set::update_set;
use crate::context::Context;
use crate::error::GenesisError;
use crate::genesis::Genesis;
use crate::modules::Handle;
use crate::store::StateWrite;

/// Staking at the start of the chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StakingGenesis {
    /// From taking stake back until it is paid.
    pub unbonding_seconds: u64,
    /// Validators with power at most.
    pub max_validators: u32,
    /// Unbonding entries of one delegator and validator at most.
    pub max_entries: u32,
    /// The last headers that are kept with their sets.
    pub historical_entries: u32,
    /// The validators.
    pub validators: Vec<GenesisValidator>,
}

impl Default for StakingGenesis {
    /// The SDK's: three weeks, 100 validators, 7 entries; of headers the last 100 (there 10,000).
    fn default() -> Self {
        StakingGenesis {
            unbonding_seconds: 21 * 24 * 3600,
            max_validators: 100,
            max_entries: 7,
            historical_entries: 100,
            validators: Vec::new(),
        }
    }
}

/// A validator that is there from the start. It is created as by `MsgCreateValidator`, out of its operator's balance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenesisValidator {
    /// The operator's account, `poly1…`.
    pub operator: String,
    /// For people.
    pub moniker: String,
    /// ed25519, base64, as `pub_key.value` in CometBFT's `priv_validator_key.json`.
    pub consensus_key: String,
    /// Its own stake, in uplk; 1 PLK is one vote.
    pub self_delegation: Amount,
    /// Commission in basis points.
    pub commission_bps: u32,
}

impl GenesisValidator {
    /// With a commission of 10 %.
    pub fn new(operator: &Address, consensus_key: &[u8; 32], self_delegation: Amount) -> Self {
        GenesisValidator {
            operator: operator.account(),
            moniker: "genesis".into(),
            consensus_key: BASE64.encode(consensus_key),
            self_delegation,
            commission_bps: 1_000,
        }
    }

    fn message(&self) -> Result<MsgCreateValidator, String> {
        let operator: Address = self.operator.parse().map_err(|error| format!("operator: {error}"))?;
        let key = BASE64.decode(&self.consensus_key).map_err(|error| format!("consensus_key: {error}"))?;
        if self.commission_bps > 10_000 {
            return Err("commission_bps: at most 10000".into());
        }
        Ok(MsgCreateValidator {
            description: Some(Description { moniker: self.moniker.clone(), ..Default::default() }),
            commission: Some(CommissionRates {
                rate: Dec::from_bps(self.commission_bps).to_atomics_string(),
                max_rate: Dec::one().to_atomics_string(),
                max_change_rate: Dec::from_bps(100).to_atomics_string(),
            }),
            min_self_delegation: "1".into(),
            validator_address: operator.valoper(),
            pubkey: Some(any(&PubKey { key })),
            value: Some(Coin { denom: DENOM.into(), amount: self.self_delegation.to_string() }),
            ..Default::default()
        })
    }
}

pub(super) fn run(ctx: &mut Context, state: &mut dyn StateWrite, genesis: &Genesis) -> Result<(), GenesisError> {
    let staking = &genesis.staking;
    if staking.max_validators == 0 || staking.max_entries == 0 {
        return Err(GenesisError::invalid("staking", "max_validators and max_entries must be positive"));
    }
    let seconds = i64::try_from(staking.unbonding_seconds)
        .map_err(|_| GenesisError::invalid("staking.unbonding_seconds", "too many"))?;
    let params = Params {
        unbonding_time: Some(Duration { seconds, nanos: 0 }),
        max_validators: staking.max_validators,
        max_entries: staking.max_entries,
        historical_entries: staking.historical_entries,
        bond_denom: DENOM.into(),
        min_commission_rate: Dec::ZERO.to_atomics_string(),
    };
    super::params::check(&params).map_err(|error| GenesisError::invalid("staking", error))?;
    set_params(state, &params);
    for (index, validator) in staking.validators.iter().enumerate() {
        let field = format!("staking.validators[{index}]");
        let message = validator.message().map_err(|reason| GenesisError::invalid(&field, reason))?;
        let created = message.check().and_then(|()| message.execute(ctx, state));
        created.map_err(|error| GenesisError::invalid(&field, error))?;
    }
    Ok(update_set(ctx, state)?)
}
