//! MsgUpdateParams and MsgCommunityPoolSpend: what governance decides of the distribution.

use polylink_protocol::cosmos::cosmos::distribution::v1beta1::{
    MsgCommunityPoolSpend, MsgCommunityPoolSpendResponse, MsgUpdateParams, MsgUpdateParamsResponse,
};
use polylink_protocol::{Address, Amount, DENOM, Dec};

use super::DistributionError;
use super::records::{community_pool, set_community_pool, set_params};
use crate::bank::{Pool, check_coins, transfer};
use crate::context::Context;
use crate::error::TxError;
use crate::gov::check_authority;
use crate::modules::Handle;
use crate::store::StateWrite;

impl Handle for MsgUpdateParams {
    const AMINO_NAME: &'static str = "cosmos-sdk/distribution/MsgUpdateParams";
    const GOVERNED: bool = true;
    type Response = MsgUpdateParamsResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.authority.parse()?)
    }

    #[allow(deprecated, reason = "the SDK refuses other values than zero")]
    fn check(&self) -> Result<(), TxError> {
        check_authority(&self.authority)?;
        let params = self.params.as_ref().ok_or_else(|| TxError::invalid("params: nothing"))?;
        let dec = |text: &str| Dec::from_atomics_str(text).filter(|dec| *dec <= Dec::one());
        if dec(&params.community_tax).is_none() {
            return Err(TxError::invalid("community_tax: a decimal between 0 and 1 is expected"));
        }
        let zero = |text: &str| dec(text).is_some_and(Dec::is_zero);
        if !zero(&params.base_proposer_reward) || !zero(&params.bonus_proposer_reward) {
            return Err(TxError::invalid("cannot update base or bonus proposer reward because these are deprecated"));
        }
        Ok(())
    }

    fn execute(&self, _: &mut Context, state: &mut dyn StateWrite) -> Result<MsgUpdateParamsResponse, TxError> {
        set_params(state, self.params.as_ref().ok_or_else(|| TxError::invalid("params: nothing"))?);
        Ok(MsgUpdateParamsResponse {})
    }
}

impl Handle for MsgCommunityPoolSpend {
    const AMINO_NAME: &'static str = "cosmos-sdk/distr/MsgCommunityPoolSpend";
    const GOVERNED: bool = true;
    type Response = MsgCommunityPoolSpendResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.authority.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        check_authority(&self.authority)?;
        self.recipient.parse::<Address>()?;
        check_coins(&self.amount)?;
        match self.amount.iter().find(|coin| coin.denom != DENOM) {
            Some(coin) => Err(TxError::InvalidCoins(format!("the community pool holds {DENOM}, not {}", coin.denom))),
            None => Ok(()),
        }
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<Self::Response, TxError> {
        let to: Address = self.recipient.parse()?;
        if Pool::of_address(&to).is_some() {
            return Err(TxError::Unauthorized(format!("{to} is not allowed to receive external funds")));
        }
        for coin in &self.amount {
            let amount: Amount = coin.amount.parse()?;
            let rest = community_pool(state).checked_sub(Dec::from_amount(amount));
            set_community_pool(state, rest.ok_or(DistributionError::PoolTooSmall)?);
            transfer(ctx, state, Pool::Distribution, to, amount)?;
        }
        Ok(MsgCommunityPoolSpendResponse {})
    }
}
