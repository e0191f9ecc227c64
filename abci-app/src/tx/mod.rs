//! Transactions: from received bytes to executed messages.
//!
//! [`decode`] says all that can be said without the state, [`ante`] decides whether the transaction may run and takes
//! its fee, and [`run`] executes its messages. The ante chain and the messages each have a layer of the state of their
//! own: a failed ante leaves nothing, a failed message leaves the ante's effects (fee and sequence) and nothing else.

pub mod ahead;
mod amino;
pub mod ante;
pub mod decode;
pub mod schema;
pub mod seen;
#[cfg(test)]
mod tests;
mod unknown;
mod wire;

use std::sync::Arc;

use polylink_protocol::Message;
use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::base::abci::v1beta1::TxMsgData;

use crate::context::{Context, Event};
use crate::error::TxError;
use crate::gas::{COSTS, GasMeter, Metered};
use crate::router;
use crate::store::{Overlay, StateRead, StateWrite};
use decode::Tx;

/// The sign document in amino JSON of one message, with everything else empty.
#[cfg(test)]
pub(crate) fn amino_document(message: &Any) -> Result<String, TxError> {
    let messages = std::slice::from_ref(message);
    let fee = polylink_protocol::cosmos::cosmos::tx::v1beta1::Fee::default();
    let (chain_id, memo) = ("", "");
    let document =
        amino::SignDoc { chain_id, account_number: 0, sequence: 0, fee: &fee, messages, memo, timeout_height: 0 };
    document.to_bytes().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Bytes of a transaction at most.
pub const TX_BYTES_MAX: usize = 256 * 1024;
/// Messages of a transaction at most.
pub const MESSAGES_MAX: usize = 64;
/// Characters of a memo at most (the SDK's default).
pub const MEMO_CHARACTERS_MAX: usize = 256;
/// Signers of a transaction at most (the SDK's default).
pub const SIGNATURES_MAX: usize = 7;
/// Gas limit of a transaction at most.
pub const GAS_MAX: u64 = 100_000_000;
/// Gas limits of a block's transactions together at most: four of the largest, or some thousand transfers.
pub const BLOCK_GAS_MAX: u64 = 400_000_000;

/// Why a transaction is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// To see whether it may enter the mempool: the ante chain alone.
    Check,
    /// To learn what it would use: without signature, fee and gas limit.
    Simulate,
    /// In a block.
    Deliver,
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// `Ok` with the encoded `TxMsgData`, or why not.
    pub result: Result<Vec<u8>, TxError>,
    /// The gas limit.
    pub gas_wanted: u64,
    /// The gas used until it ended.
    pub gas_used: u64,
    /// The events of what was kept: the ante's, and the messages' if all of them succeeded.
    pub events: Vec<Event>,
}

/// Runs a transaction on `state`, which receives what is to be kept of it. `block` is the block's context.
pub fn run<R: StateRead>(block: &Context, state: &mut Overlay<R>, bytes: &[u8], mode: Mode) -> Outcome {
    let decoded = match mode {
        Mode::Simulate => decode::decode_simulated(bytes).map(Arc::new),
        Mode::Check | Mode::Deliver => seen::decode(bytes),
    };
    run_decoded(block, state, decoded, mode)
}

/// Runs a transaction that was decoded before, or says why it could not be.
pub fn run_decoded<R: StateRead>(
    block: &Context,
    state: &mut Overlay<R>,
    decoded: Result<Arc<Tx>, TxError>,
    mode: Mode,
) -> Outcome {
    match decoded {
        Ok(tx) => execute(block, state, &tx, mode),
        Err(error) => Outcome { result: Err(error), gas_wanted: 0, gas_used: 0, events: Vec::new() },
    }
}

fn execute<R: StateRead>(block: &Context, state: &mut Overlay<R>, tx: &Tx, mode: Mode) -> Outcome {
    let gas_wanted = tx.fee.gas_limit;
    let gas = if mode == Mode::Simulate { GasMeter::unlimited() } else { GasMeter::limited(gas_wanted) };
    let mut ctx = block.for_tx(gas);
    (ctx.dry_run, ctx.silent) = (mode != Mode::Deliver, mode == Mode::Check);
    if let Err(error) = state.attempt(|layer| metered(&mut ctx, layer, |ctx, state| ante::run(ctx, state, tx, mode))) {
        return Outcome { result: Err(error), gas_wanted, gas_used: ctx.gas.used(), events: Vec::new() };
    }
    if mode == Mode::Check {
        return Outcome { result: Ok(Vec::new()), gas_wanted, gas_used: ctx.gas.used(), events: Vec::new() };
    }
    let kept = ctx.events.len();
    let result = state.attempt(|layer| messages(&mut ctx, layer, tx));
    if result.is_err() {
        ctx.events.truncate(kept);
    } else {
        // The first message names the same sender, with what it does.
        let senders = ctx.events[..kept].iter_mut().filter(|event| event.kind == "message");
        senders.for_each(|event| event.indexed = false);
    }
    Outcome { result, gas_wanted, gas_used: ctx.gas.used(), events: ctx.events }
}

/// Runs `work` on a state whose reads and writes are charged when it is done, also when it fails. Beyond the gas that is
/// left, and beyond [`GAS_MAX`] in a simulation too, it has seen only a part of what it iterated over.
fn metered<T>(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    work: impl FnOnce(&mut Context, &mut dyn StateWrite) -> Result<T, TxError>,
) -> Result<T, TxError> {
    let left = ctx.gas.left(GAS_MAX);
    let mut metered = Metered::new(state, left);
    let result = work(ctx, &mut metered);
    let gas = metered.gas();
    ctx.charge(gas)?;
    if gas > left {
        return Err(TxError::OutOfGas { limit: GAS_MAX, used: ctx.gas.used() });
    }
    result
}

/// All messages, or none of them.
fn messages(ctx: &mut Context, state: &mut dyn StateWrite, tx: &Tx) -> Result<Vec<u8>, TxError> {
    let mut data = TxMsgData::default();
    for (index, message) in tx.messages.iter().enumerate() {
        ctx.charge(COSTS.message)?;
        let first = ctx.events.len();
        let module = router::module_of(&message.type_url).unwrap_or_default();
        let attributes =
            [("action", message.type_url.clone()), ("sender", message.signer.account()), ("module", module.to_owned())];
        ctx.emit("message", attributes);
        let value = metered(ctx, state, |ctx, state| (message.route.execute)(&message.bytes, ctx, state))
            .map_err(|error| at(index, tx.messages.len(), error))?;
        for event in &mut ctx.events[first..] {
            event.attributes.push(("msg_index", index.to_string()));
        }
        data.msg_responses.push(Any { type_url: message.route.response_url(), value });
    }
    Ok(data.encode_to_vec())
}

/// Says which message of several failed; the code stays.
fn at(index: usize, of: usize, error: TxError) -> TxError {
    let (codespace, code) = error.code();
    if of == 1 {
        return error;
    }
    TxError::Module { codespace, code, log: format!("failed to execute message; message index: {index}: {error}") }
}
