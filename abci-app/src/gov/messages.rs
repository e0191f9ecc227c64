//! The messages of `cosmos.gov.v1`.

use polylink_protocol::Address;
use polylink_protocol::Name as _;
use polylink_protocol::cosmos::cosmos::gov::v1::{
    MsgCancelProposal, MsgCancelProposalResponse, MsgDeposit, MsgDepositResponse, MsgExecLegacyContent,
    MsgExecLegacyContentResponse, MsgSubmitProposal, MsgSubmitProposalResponse, MsgUpdateParams,
    MsgUpdateParamsResponse, MsgVote, MsgVoteResponse, MsgVoteWeighted, MsgVoteWeightedResponse,
};
use polylink_protocol::cosmos::cosmos::gov::v1beta1::TextProposal;

use super::deposits::{check_deposit, deposit};
use super::records::{set_params, timestamp};
use super::{GovError, check_authority, params, proposals};
use crate::context::Context;
use crate::error::TxError;
use crate::modules::Handle;
use crate::store::StateWrite;

impl Handle for MsgSubmitProposal {
    const AMINO_NAME: &'static str = "cosmos-sdk/v1/MsgSubmitProposal";
    type Response = MsgSubmitProposalResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.proposer.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        proposals::check(self)
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgSubmitProposalResponse, TxError> {
        let proposal_id = proposals::submit(ctx, state, self, &self.signer()?)?;
        Ok(MsgSubmitProposalResponse { proposal_id })
    }
}

impl Handle for MsgDeposit {
    const AMINO_NAME: &'static str = "cosmos-sdk/v1/MsgDeposit";
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
    const AMINO_NAME: &'static str = "cosmos-sdk/v1/MsgVote";
    type Response = MsgVoteResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.voter.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        proposals::check_options(&proposals::whole(self.option))
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgVoteResponse, TxError> {
        let options = proposals::whole(self.option);
        proposals::vote(ctx, state, self.proposal_id, &self.signer()?, options, &self.metadata)?;
        Ok(MsgVoteResponse {})
    }
}

impl Handle for MsgVoteWeighted {
    const AMINO_NAME: &'static str = "cosmos-sdk/v1/MsgVoteWeighted";
    type Response = MsgVoteWeightedResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.voter.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        proposals::check_options(&self.options)
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgVoteWeightedResponse, TxError> {
        proposals::vote(ctx, state, self.proposal_id, &self.signer()?, self.options.clone(), &self.metadata)?;
        Ok(MsgVoteWeightedResponse {})
    }
}

impl Handle for MsgCancelProposal {
    const AMINO_NAME: &'static str = "cosmos-sdk/v1/MsgCancelProposal";
    type Response = MsgCancelProposalResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.proposer.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        Ok(())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgCancelProposalResponse, TxError> {
        proposals::cancel(ctx, state, self.proposal_id, &self.signer()?)?;
        Ok(MsgCancelProposalResponse {
            proposal_id: self.proposal_id,
            canceled_time: Some(timestamp(ctx.time)),
            canceled_height: ctx.height,
        })
    }
}

/// Content of before proposals had messages: a text, which does nothing.
impl Handle for MsgExecLegacyContent {
    const AMINO_NAME: &'static str = "cosmos-sdk/v1/MsgExecLegacyContent";
    const GOVERNED: bool = true;
    type Response = MsgExecLegacyContentResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.authority.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        check_authority(&self.authority)?;
        let content = self.content.as_ref().ok_or_else(|| GovError::Content("missing content".into()))?;
        super::legacy::check_content(content).map(|_| ())
    }

    fn execute(&self, _: &mut Context, _: &mut dyn StateWrite) -> Result<MsgExecLegacyContentResponse, TxError> {
        debug_assert!(self.content.as_ref().is_some_and(|any| any.type_url == TextProposal::type_url()));
        Ok(MsgExecLegacyContentResponse {})
    }
}

impl Handle for MsgUpdateParams {
    const AMINO_NAME: &'static str = "cosmos-sdk/x/gov/v1/MsgUpdateParams";
    const GOVERNED: bool = true;
    type Response = MsgUpdateParamsResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.authority.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        check_authority(&self.authority)?;
        params::check(self.params.as_ref().ok_or_else(|| TxError::invalid("params: nothing"))?)
    }

    fn execute(&self, _: &mut Context, state: &mut dyn StateWrite) -> Result<MsgUpdateParamsResponse, TxError> {
        set_params(state, self.params.as_ref().ok_or_else(|| TxError::invalid("params: nothing"))?);
        Ok(MsgUpdateParamsResponse {})
    }
}
