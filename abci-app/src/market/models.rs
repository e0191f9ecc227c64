//! Models: a profile, its provider, its royalty and its price.
//!
//! A royalty holds by epoch. A change holds from the epoch after the next one: pots of the running epoch and the next one
//! keep their terms, and a worker that does not want the new ones has a whole epoch to raise its ask or leave.

use polylink_protocol::market::{check_profile, profile_digest, set_royalty};
use polylink_protocol::market_v1::{
    Model, ModelProfile, MsgRegisterModel, MsgRegisterModelResponse, MsgUpdateModel, MsgUpdateModelResponse,
    RoyaltyTerms, TokenPrices,
};
use polylink_protocol::{Address, Digest};

use super::error::MarketError;
use super::records::{counter, model, save};
use super::{MODELS_MAX, ROYALTY_BPS_MAX, keys};
use crate::context::Context;
use crate::error::TxError;
use crate::modules::Handle;
use crate::store::{StateRead, StateWrite};

/// The longest context that a model may declare, in tokens.
pub const CONTEXT_LENGTH_MAX: u32 = 16_777_216;
/// The highest price, in uplk per 1,000 tokens: amounts of answers then stay far below 2^128.
pub const PRICE_MAX: u64 = 1_000_000_000_000;

fn profile_of(message: &MsgRegisterModel) -> Result<&ModelProfile, MarketError> {
    let profile = message.profile.as_ref().ok_or_else(|| MarketError::Profile("the message has none".into()))?;
    check_profile(profile).map_err(|error| MarketError::Profile(error.to_string()))?;
    Ok(profile)
}

/// Refuses a price of nothing, or one that pays more for a token that was not computed.
pub(super) fn check_price(price: Option<&TokenPrices>) -> Result<&TokenPrices, MarketError> {
    let price = price.ok_or(MarketError::Price("the message has none"))?;
    if price.prompt == 0 || price.completion == 0 {
        return Err(MarketError::Price("at least 1 uplk per 1,000 prompt and completion tokens is expected, not 0"));
    }
    if price.cached_prompt > price.prompt {
        return Err(MarketError::Price("a cached prompt token may not cost more than a computed one"));
    }
    if price.prompt.max(price.completion) > PRICE_MAX {
        return Err(MarketError::Price("at most 10^12 uplk per 1,000 tokens are expected"));
    }
    Ok(price)
}

fn check_royalty(found: u32) -> Result<(), MarketError> {
    if found > ROYALTY_BPS_MAX {
        return Err(MarketError::Royalty { found, max: ROYALTY_BPS_MAX });
    }
    Ok(())
}

/// A profile named by a message.
pub(crate) fn digest(bytes: &[u8]) -> Result<Digest, MarketError> {
    Digest::from_slice(bytes)
        .ok_or_else(|| MarketError::Profile(format!("a profile digest has 32 bytes, not {}", bytes.len())))
}

/// The registered model of a profile named by a message.
pub(crate) fn known(state: &dyn StateRead, profile: &[u8]) -> Result<(Digest, Model), MarketError> {
    let profile = digest(profile)?;
    model(state, &profile).map(|model| (profile, model)).ok_or(MarketError::UnknownModel(profile))
}

impl Handle for MsgRegisterModel {
    const AMINO_NAME: &'static str = "polylink/market/RegisterModel";
    type Response = MsgRegisterModelResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.provider.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        profile_of(self)?;
        check_price(self.price.as_ref())?;
        check_royalty(self.royalty_bps)?;
        if !(1..=CONTEXT_LENGTH_MAX).contains(&self.context_length) {
            return Err(MarketError::ContextLength { found: self.context_length, max: CONTEXT_LENGTH_MAX }.into());
        }
        Ok(())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgRegisterModelResponse, TxError> {
        let profile = profile_of(self)?;
        let digest = profile_digest(profile);
        if model(state, &digest).is_some() {
            return Err(MarketError::ModelExists(digest).into());
        }
        let count = counter(state, &[keys::MODEL_COUNT]);
        if count >= MODELS_MAX {
            return Err(
                MarketError::Profile(format!("{MODELS_MAX} models are registered, as many as there may be")).into()
            );
        }
        state.put(vec![keys::MODEL_COUNT], (count + 1).to_be_bytes().to_vec());
        let record = Model {
            profile_digest: digest.to_vec(),
            profile: Some(profile.clone()),
            provider: self.provider.clone(),
            context_length: self.context_length,
            royalty_bps: self.royalty_bps,
            price: self.price,
            registered_epoch: ctx.epoch,
            ..Default::default()
        };
        save(state, keys::model(&digest), &record);
        ctx.emit(
            "register_model",
            [("profile", digest.to_string()), ("id", profile.id.clone()), ("provider", self.provider.clone())],
        );
        Ok(MsgRegisterModelResponse { profile_digest: digest.to_vec() })
    }
}

impl Handle for MsgUpdateModel {
    const AMINO_NAME: &'static str = "polylink/market/UpdateModel";
    type Response = MsgUpdateModelResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.provider.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        digest(&self.profile_digest)?;
        Ok(check_royalty(self.royalty_bps)?)
    }

    /// A second change before the first one holds replaces it if both are for one epoch.
    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgUpdateModelResponse, TxError> {
        let (profile, mut record) = known(state, &self.profile_digest)?;
        if record.provider.parse::<Address>()? != self.signer()? {
            return Err(MarketError::NotProvider { profile, provider: record.provider }.into());
        }
        let from_epoch = ctx.epoch.saturating_add(2);
        // Pots are settled by their own epoch's royalty, however long they wait.
        let oldest_pot = state.iter_prefix(&[keys::POT_DUE]).next().and_then(|(key, _)| keys::split_pot(&key));
        let running = ctx.epoch.saturating_sub(1);
        let oldest_needed = oldest_pot.map_or(running, |(epoch, _, _)| epoch.min(running));
        set_royalty(&mut record, RoyaltyTerms { from_epoch, royalty_bps: self.royalty_bps }, oldest_needed);
        save(state, keys::model(&profile), &record);
        ctx.emit(
            "update_model",
            [
                ("profile", profile.to_string()),
                ("provider", record.provider),
                ("royalty_bps", self.royalty_bps.to_string()),
                ("from_epoch", from_epoch.to_string()),
            ],
        );
        Ok(MsgUpdateModelResponse { from_epoch })
    }
}
