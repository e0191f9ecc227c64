//! Omitted receipts: a payer shows a receipt that the worker signed for an epoch and says that it is not under the root
//! which the worker committed: the private one where the session is, so that nothing is hidden from judges there. The
//! worker shows its path within some epochs, or is slashed.
//!
//! A report costs its payer a deposit: the worker's, when it shows the receipt, so that nobody makes it answer for free;
//! else it goes back, and with it, out of the slash, what the answer cost, at most as much as the deposit. The rest of
//! the slash is burned: a worker that accuses itself only loses. Each receipt is reported once.

use polylink_protocol::market::{receipt_digest, verify_receipt};
use polylink_protocol::market_v1::{
    MsgReportOmitted, MsgReportOmittedResponse, MsgShowReceipt, MsgShowReceiptResponse, OmissionReport, Params,
    Receipt, SignedReceipt,
};
use polylink_protocol::merkle_sum::{Leaf, Sum, verify};
use polylink_protocol::{Address, Amount, Bps, Digest};

use super::error::MarketError;
use super::records::{Kind, counter, load, pot, save, uplk};
use super::schedule::{Schedule, Window};
use super::{bonds, keys, models, params, sessions, workers};
use crate::bank::{self, Pool};
use crate::context::Context;
use crate::error::TxError;
use crate::modules::Handle;
use crate::store::{StateRead, StateWrite};

fn refused(reason: impl Into<String>) -> MarketError {
    MarketError::Report(reason.into())
}

fn body(signed: Option<&SignedReceipt>) -> Result<(&SignedReceipt, &Receipt), MarketError> {
    let signed = signed.ok_or_else(|| refused("the message has no receipt"))?;
    Ok((signed, signed.receipt.as_ref().ok_or_else(|| refused("the signed receipt has none in it"))?))
}

/// Prompt and completion, as the tree counts them.
fn tokens(receipt: &Receipt) -> Result<u64, MarketError> {
    let sum = receipt.prompt_tokens.checked_add(receipt.completion_tokens);
    sum.ok_or_else(|| refused("the receipt counts more tokens than there can be"))
}

/// Reports of an epoch's receipts are taken once its roots stand, for some epochs.
fn check_window(ctx: &Context, params: &Params, epoch: u64) -> Result<(), MarketError> {
    if params.report_epochs == 0 {
        return Err(refused("this chain's parameters take none"));
    }
    let until = epoch.saturating_add(params.report_epochs);
    let schedule = Schedule::new(params);
    let stands = epoch.checked_add(1).is_some_and(|next| {
        ctx.epoch > next || (ctx.epoch == next && schedule.window(ctx.epoch_offset) != Window::Receipts)
    });
    if !stands || ctx.epoch > until {
        let (_, from) = schedule.heights(Window::Receipts, epoch);
        let reason = format!("receipts of epoch {epoch} are reported from height {from} on, up to epoch {until}");
        return Err(refused(reason));
    }
    Ok(())
}

impl Handle for MsgReportOmitted {
    const AMINO_NAME: &'static str = "polylink/market/ReportOmitted";
    type Response = MsgReportOmittedResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.payer.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        let (_, receipt) = body(self.receipt.as_ref())?;
        receipt.worker.parse::<Address>()?;
        receipt.amount.parse::<Amount>()?;
        models::digest(&receipt.profile_digest)?;
        tokens(receipt)?;
        Ok(())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgReportOmittedResponse, TxError> {
        let params = params::at(state, ctx.epoch);
        let (signed, receipt) = body(self.receipt.as_ref())?;
        let (payer, operator): (Address, Address) = (self.payer.parse()?, receipt.worker.parse()?);
        let profile = models::digest(&receipt.profile_digest)?;
        let session = sessions::known(state, receipt.session)?;
        if session.payer != payer.account() {
            let reason = format!("only its payer {} reports receipts of it", session.payer);
            return Err(MarketError::NotParty { session: session.id, reason }.into());
        }
        if session.payee != operator.account() || session.profile_digest != receipt.profile_digest {
            return Err(refused("the receipt's session pays another worker, or for another profile").into());
        }
        check_window(ctx, &params, receipt.epoch)?;
        if workers::known(state, &operator)?.jailed {
            return Err(MarketError::Jailed(operator.account()).into());
        }
        let kind = Kind::of(session.private);
        let pot = pot(state, kind, receipt.epoch, &profile, &operator).filter(|pot| pot.root.is_some());
        let pot = pot.ok_or_else(|| {
            refused(format!("{operator} committed nothing for epoch {}, and is not paid for it", receipt.epoch))
        })?;
        let once = keys::reported(receipt.epoch, receipt.session, receipt.index);
        if state.contains(&once) {
            return Err(refused("the receipt was reported before").into());
        }
        ctx.charge_proofs(1)?;
        verify_receipt(signed, &pot.receipt_key).map_err(|error| refused(error.to_string()))?;

        let deposit = uplk(&params.report_deposit);
        bank::transfer(ctx, state, payer, Pool::MarketEscrow, deposit)?;
        let id = counter(state, &[keys::REPORT_NEXT]).max(1);
        state.put(vec![keys::REPORT_NEXT], id.saturating_add(1).to_be_bytes().to_vec());
        let deadline_epoch = ctx.epoch.saturating_add(params.report_answer_epochs);
        let report = OmissionReport {
            id,
            payer: payer.account(),
            worker: operator.account(),
            profile_digest: profile.to_vec(),
            epoch: receipt.epoch,
            session: receipt.session,
            index: receipt.index,
            receipt_digest: receipt_digest(receipt).to_vec(),
            tokens: tokens(receipt)?,
            amount: receipt.amount.parse::<Amount>()?.to_string(),
            deposit: deposit.to_string(),
            deadline_epoch,
            private: session.private,
        };
        state.put(once, keys::THERE.to_vec());
        state.put(keys::reports_of(&operator).u64(id).finish(), keys::THERE.to_vec());
        state.put(keys::report_due(deadline_epoch, id), keys::THERE.to_vec());
        save(state, keys::report(id), &report);
        ctx.emit(
            "report_omitted",
            [
                ("report", id.to_string()),
                ("payer", report.payer),
                ("worker", report.worker),
                ("epoch", report.epoch.to_string()),
                ("session", report.session.to_string()),
                ("index", report.index.to_string()),
                ("deadline_epoch", deadline_epoch.to_string()),
            ],
        );
        Ok(MsgReportOmittedResponse { report: id, deadline_epoch })
    }
}

/// Takes a report out of all tables but the one that keeps receipts from being reported twice.
fn close(state: &mut dyn StateWrite, report: &OmissionReport) -> Result<(), TxError> {
    state.delete(keys::report(report.id));
    state.delete(keys::report_due(report.deadline_epoch, report.id));
    state.delete(keys::reports_of(&report.worker.parse()?).u64(report.id).finish());
    Ok(())
}

fn check_shown(state: &dyn StateRead, report: &OmissionReport, message: &MsgShowReceipt) -> Result<(), TxError> {
    let wrong = |reason: String| MarketError::NotShown(reason);
    let path = message.path.as_ref().ok_or_else(|| wrong("the message has no path".into()))?;
    let (operator, profile) = (report.worker.parse()?, models::digest(&report.profile_digest)?);
    let root = pot(state, Kind::of(report.private), report.epoch, &profile, &operator).and_then(|pot| pot.root);
    let root = root.ok_or_else(|| wrong("the root is kept no more".into()))?;
    let root = Sum::from_proto(&root).map_err(|error| wrong(error.to_string()))?;
    let receipt = Digest::from_slice(&report.receipt_digest).ok_or_else(|| wrong("the report's digest".into()))?;
    let leaf = Leaf {
        session: report.session,
        index: report.index,
        receipt,
        tokens: report.tokens,
        amount: uplk(&report.amount),
    };
    verify(&leaf, path, &root).map_err(|error| wrong(error.to_string()))?;
    Ok(())
}

impl Handle for MsgShowReceipt {
    const AMINO_NAME: &'static str = "polylink/market/ShowReceipt";
    type Response = MsgShowReceiptResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.operator.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        Ok(())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgShowReceiptResponse, TxError> {
        let operator: Address = self.operator.parse()?;
        let report: OmissionReport =
            load(state, &keys::report(self.report)).ok_or(MarketError::UnknownReport(self.report))?;
        if report.worker != operator.account() {
            return Err(MarketError::NotShown(format!("the report is about {}", report.worker)).into());
        }
        if ctx.epoch > report.deadline_epoch {
            let reason = format!("it could be until epoch {}", report.deadline_epoch);
            return Err(MarketError::NotShown(reason).into());
        }
        ctx.charge_proofs(1)?;
        check_shown(state, &report, self)?;
        close(state, &report)?;
        bank::transfer(ctx, state, Pool::MarketEscrow, operator, uplk(&report.deposit))?;
        ctx.emit(
            "show_receipt",
            [("report", report.id.to_string()), ("worker", report.worker), ("payer", report.payer)],
        );
        Ok(MsgShowReceiptResponse {})
    }
}

/// Ends at most `limit` reports that nobody has answered.
pub(super) fn end_block(ctx: &mut Context, state: &mut dyn StateWrite, limit: usize) -> Result<(), TxError> {
    let due = state.iter_prefix(&[keys::REPORT_DUE]).take(limit).filter_map(|(key, _)| {
        let number = |at: usize| Some(u64::from_be_bytes(key.get(at..at + 8)?.try_into().ok()?));
        Some((number(1)?, number(9)?))
    });
    let due: Vec<(u64, u64)> = due.take_while(|(deadline, _)| *deadline < ctx.epoch).collect();
    for (deadline, id) in due {
        state.delete(keys::report_due(deadline, id));
        if let Some(report) = load::<OmissionReport>(state, &keys::report(id)) {
            close(state, &report)?;
            punish(ctx, state, &report)?;
        }
    }
    Ok(())
}

fn punish(ctx: &mut Context, state: &mut dyn StateWrite, report: &OmissionReport) -> Result<(), TxError> {
    let params = params::at(state, ctx.epoch);
    let (payer, operator): (Address, Address) = (report.payer.parse()?, report.worker.parse()?);
    let deposit = uplk(&report.deposit);
    bank::transfer(ctx, state, Pool::MarketEscrow, payer, deposit)?;
    let slashed = bonds::slash(ctx, state, &operator, Bps::clamped(params.slash_omission_bps), &params)?;
    let refund = uplk(&report.amount).min(deposit).min(slashed);
    bank::transfer(ctx, state, Pool::WorkerBonds, payer, refund)?;
    bank::burn(ctx, state, Pool::WorkerBonds, slashed.saturating_sub(refund))?;
    ctx.emit(
        "omission",
        [
            ("report", report.id.to_string()),
            ("worker", report.worker.clone()),
            ("payer", report.payer.clone()),
            ("slashed", format!("{slashed}uplk")),
            ("refund", format!("{refund}uplk")),
        ],
    );
    Ok(())
}
