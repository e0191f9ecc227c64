//! The messages of `cosmos.gov.v1beta1`, which wallets still send: each is one of `v1`.

use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::gov::v1::{
    MsgExecLegacyContent, MsgSubmitProposal as Submit, WeightedVoteOption,
};
use polylink_protocol::cosmos::cosmos::gov::v1beta1::{
    MsgDeposit, MsgDepositResponse, MsgSubmitProposal, MsgSubmitProposalResponse, MsgVote, MsgVoteResponse,
    MsgVoteWeighted, MsgVoteWeightedResponse, TextProposal,
};
use polylink_protocol::tx::any;
use polylink_protocol::{Address, Dec, Message, Name};

use super::deposits::{check_deposit, deposit};
use super::{GovError, METADATA_MAX, authority, proposals};
use crate::context::Context;
use crate::error::TxError;
use crate::modules::Handle;
use crate::store::StateWrite;

/// The one kind of content that is built.
pub(super) fn check_content(content: &Any) -> Result<TextProposal, TxError> {
    if content.type_url != TextProposal::type_url() {
        let shown: String = content.type_url.chars().take(128).flat_map(char::escape_debug).collect();
        return Err(GovError::NoHandler(shown).into());
    }
    let text = TextProposal::decode(content.value.as_slice())
        .map_err(|error| TxError::Decode(format!("TextProposal: {error}")))?;
    if text.title.trim().is_empty() || text.description.trim().is_empty() {
        return Err(GovError::Content("proposal title and description cannot be blank".into()).into());
    }
    if text.title.len() > METADATA_MAX {
        return Err(GovError::Content(format!("proposal title is longer than max length of {METADATA_MAX}")).into());
    }
    Ok(text)
}

/// The proposal of `v1` that holds the content.
fn modern(message: &MsgSubmitProposal) -> Result<Submit, TxError> {
    let content = message.content.as_ref().ok_or_else(|| GovError::Content("missing content".into()))?;
    let text = check_content(content)?;
    let inner = MsgExecLegacyContent { content: Some(content.clone()), authority: authority().account() };
    Ok(Submit {
        messages: vec![any(&inner)],
        initial_deposit: message.initial_deposit.clone(),
        proposer: message.proposer.clone(),
        title: text.title,
        summary: text.description,
        ..Default::default()
    })
}

impl Handle for MsgSubmitProposal {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgSubmitProposal";
    type Response = MsgSubmitProposalResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.proposer.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        proposals::check(&modern(self)?)
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgSubmitProposalResponse, TxError> {
        let proposal_id = proposals::submit(ctx, state, &modern(self)?, &self.signer()?)?;
        Ok(MsgSubmitProposalResponse { proposal_id })
    }
}

impl Handle for MsgDeposit {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgDeposit";
    type Response = MsgDepositResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.depositor.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        check_deposit(&self.amount).map(|_| ())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgDepositResponse, TxError> {
        let amount = check_deposit(&self.amount)?;
        if deposit(ctx, state, self.proposal_id, &self.signer()?, amount)? {
            ctx.emit("proposal_deposit", [("voting_period_start", self.proposal_id.to_string())]);
        }
        Ok(MsgDepositResponse {})
    }
}

impl Handle for MsgVote {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgVote";
    type Response = MsgVoteResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.voter.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        proposals::check_options(&proposals::whole(self.option))
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgVoteResponse, TxError> {
        proposals::vote(ctx, state, self.proposal_id, &self.signer()?, proposals::whole(self.option), "")?;
        Ok(MsgVoteResponse {})
    }
}

/// The options of `v1`: there weights are decimals, here atomics.
fn options(message: &MsgVoteWeighted) -> Result<Vec<WeightedVoteOption>, GovError> {
    let weight = |text: &str| Dec::from_atomics_str(text).map(|weight| weight.to_string());
    let option = |option: &polylink_protocol::cosmos::cosmos::gov::v1beta1::WeightedVoteOption| {
        let weight = weight(&option.weight).ok_or_else(|| GovError::Vote("a weight is no decimal".into()))?;
        Ok(WeightedVoteOption { option: option.option, weight })
    };
    message.options.iter().map(option).collect()
}

impl Handle for MsgVoteWeighted {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgVoteWeighted";
    type Response = MsgVoteWeightedResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.voter.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        proposals::check_options(&options(self)?)
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgVoteWeightedResponse, TxError> {
        proposals::vote(ctx, state, self.proposal_id, &self.signer()?, options(self)?, "")?;
        Ok(MsgVoteWeightedResponse {})
    }
}
