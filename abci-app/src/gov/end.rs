//! The end of a block: proposals whose time is over (`x/gov/abci.go`).

use polylink_protocol::cosmos::cosmos::gov::v1::{Proposal, ProposalStatus};

use super::deposits::{burn_all, refund};
use super::records::{after, delete_proposal, delete_votes, dequeue, due, enqueue, params, proposal, set_proposal};
use super::{DEPOSIT_QUEUE, VOTING_QUEUE, tally};
use crate::context::Context;
use crate::error::TxError;
use crate::gas::GasMeter;
use crate::router;
use crate::store::{Overlay, StateRead, StateWrite};

/// Proposals of each queue that one block decides at most; the rest waits for the next.
const DECIDED_MAX: usize = 16;

/// The hook.
pub(super) fn end_block(ctx: &mut Context, state: &mut dyn StateWrite) -> Result<(), TxError> {
    for id in due(state, DEPOSIT_QUEUE, ctx.time, DECIDED_MAX) {
        if let Some(proposal) = proposal(state, id) {
            drop_proposal(ctx, state, &proposal)?;
        }
    }
    for id in due(state, VOTING_QUEUE, ctx.time, DECIDED_MAX) {
        if let Some(proposal) = proposal(state, id) {
            decide(ctx, state, proposal)?;
        }
    }
    Ok(())
}

/// Not enough was deposited in time.
fn drop_proposal(ctx: &mut Context, state: &mut dyn StateWrite, proposal: &Proposal) -> Result<(), TxError> {
    delete_proposal(state, proposal);
    if params(state).burn_proposal_deposit_prevote {
        burn_all(ctx, state, proposal.id)?;
    } else {
        refund(ctx, state, proposal.id)?;
    }
    let attributes = [("proposal_id", proposal.id.to_string()), ("proposal_result", "proposal_dropped".into())];
    ctx.emit("inactive_proposal", attributes);
    Ok(())
}

/// The voting is over.
fn decide(ctx: &mut Context, state: &mut dyn StateWrite, mut proposal: Proposal) -> Result<(), TxError> {
    let params = params(state);
    let counted = tally::count(state, proposal.id)?;
    let verdict = counted.verdict(tally::bonded(state), &params, proposal.expedited);
    delete_votes(state, proposal.id);
    if let Some(end) = &proposal.voting_end_time {
        dequeue(state, VOTING_QUEUE, end, proposal.id);
    }
    proposal.final_tally_result = Some(counted.result());
    // A proposal in a hurry that fails goes on as an ordinary one, with its deposits.
    let goes_on = proposal.expedited && !verdict.passes;
    if !goes_on {
        if verdict.burns {
            burn_all(ctx, state, proposal.id)?;
        } else {
            refund(ctx, state, proposal.id)?;
        }
    }
    let (result, log) = if verdict.passes {
        match execute(ctx, state, &proposal) {
            Ok(()) => {
                proposal.status = ProposalStatus::Passed.into();
                ("proposal_passed", "passed".to_owned())
            }
            Err((index, error)) => {
                proposal.status = ProposalStatus::Failed.into();
                proposal.failed_reason = error.to_string();
                let url = &proposal.messages[index].type_url;
                ("proposal_failed", format!("passed, but msg {index} ({url}) failed on execution: {error}"))
            }
        }
    } else if goes_on {
        proposal.expedited = false;
        if let Some(start) = &proposal.voting_start_time {
            let end = after(start, params.voting_period.as_ref());
            enqueue(state, VOTING_QUEUE, &end, proposal.id);
            proposal.voting_end_time = Some(end);
        }
        ("expedited_proposal_rejected", "expedited proposal converted to regular".to_owned())
    } else {
        proposal.status = ProposalStatus::Rejected.into();
        proposal.failed_reason = "proposal did not get enough votes to pass".into();
        ("proposal_rejected", "rejected".to_owned())
    };
    set_proposal(state, &proposal);
    let attributes =
        [("proposal_id", proposal.id.to_string()), ("proposal_result", result.to_owned()), ("proposal_log", log)];
    ctx.emit("active_proposal", attributes);
    Ok(())
}

/// All messages of a proposal, or none of them: then which one failed, and why.
fn execute(ctx: &mut Context, state: &mut dyn StateWrite, proposal: &Proposal) -> Result<(), (usize, TxError)> {
    let mut inner = Context { events: Vec::new(), gas: GasMeter::unlimited(), ..ctx.clone() };
    let mut layer = Overlay::new(&*state as &dyn StateRead);
    for (index, any) in proposal.messages.iter().enumerate() {
        let route = router::message(&any.type_url).filter(|route| route.governed);
        let done = match route {
            Some(route) => {
                (route.check)(&any.value).and_then(|_| (route.execute)(&any.value, &mut inner, &mut layer)).map(|_| ())
            }
            None => Err(router::refuse(&any.type_url)),
        };
        done.map_err(|error| (index, error))?;
    }
    for (key, change) in layer.into_changes() {
        match change {
            Some(value) => state.put(key, value),
            None => state.delete(key),
        }
    }
    ctx.events.append(&mut inner.events);
    Ok(())
}
