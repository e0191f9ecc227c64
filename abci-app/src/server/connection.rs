//! One connection: requests in, responses out, in order.
//!
//! Invariants: responses are buffered and written on `Flush` (or when the buffer is full), so that a
//! call costs one write, and a burst of calls few: where the next request is there already, its
//! response goes with them; whatever cannot be understood is answered with `Exception` and ends this
//! connection; a panic of the application ends the process, for a state machine that broke an
//! invariant must not go on answering. The one exception is a query, which reads a committed
//! snapshot and leaves nothing behind: its panic is an error code, so that no reader can stop a node.

use std::any::Any;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use prost_014::Message;
use tendermint_abci::Application;
use tendermint_proto::v0_38::abci::{Request, Response, ResponseException, ResponseQuery, request, response};

use super::codec::{FrameError, put_frame};
use super::intake::Frames;
use super::{ConnectionId, Options};

/// Responses held back for a `Flush` before they are written anyway.
const OUT_BYTES_MAX: usize = 1 << 20;

/// Responses that wait for those of requests that are there already: some milliseconds of CheckTx.
const BURST_BYTES_MAX: usize = 16 << 10;

/// The Cosmos SDK's code and codespace for a recovered panic.
const PANIC_CODE: u32 = 111_222;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The bytes are no frames.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame is no request.
    #[error("a request does not decode: {0}; the peer must speak ABCI 2.0 of CometBFT v0.38")]
    Decode(#[from] prost_014::DecodeError),
    /// A request of a kind that ABCI 2.0 does not have.
    #[error("a request of an unknown kind; the peer must speak ABCI 2.0 of CometBFT v0.38")]
    Unknown,
    /// The answer cannot be written.
    #[error("the answer cannot be written: {0}")]
    Write(std::io::Error),
}

/// Serves one connection until its peer leaves.
pub(crate) fn serve<A: Application>(
    id: ConnectionId,
    mut frames: impl Frames,
    mut sink: impl Write,
    app: &A,
    options: &Options,
) -> Result<(), ConnectionError> {
    let mut out = Vec::with_capacity(4096);
    let ended = loop {
        let value = match next_request(&mut frames) {
            Ok(Some(value)) => value,
            Ok(None) => break None,
            Err(error) => break Some(error),
        };
        let flush = matches!(value, request::Value::Flush(_));
        if let Some(observer) = &options.observer {
            observer(id, &value);
        }
        put_frame(&mut out, &Response { value: Some(guarded(app, value)) });
        let wanted = flush && (out.len() >= BURST_BYTES_MAX || !frames.is_ready());
        if wanted || out.len() >= OUT_BYTES_MAX {
            write_all(&mut sink, &mut out)?;
        }
    };
    if let Some(error) = ended {
        // A peer that is gone cannot be told; why it is gone is the error that counts.
        put_frame(&mut out, &exception(error.to_string()));
        let _ = write_all(&mut sink, &mut out);
        return Err(error);
    }
    write_all(&mut sink, &mut out)
}

/// The response that makes a CometBFT node stop, with the reason in its log.
pub(super) fn exception(error: String) -> Response {
    Response { value: Some(response::Value::Exception(ResponseException { error })) }
}

fn next_request(frames: &mut impl Frames) -> Result<Option<request::Value>, ConnectionError> {
    let Some(frame) = frames.next_frame()? else { return Ok(None) };
    Request::decode(frame)?.value.map(Some).ok_or(ConnectionError::Unknown)
}

fn write_all(sink: &mut impl Write, out: &mut Vec<u8>) -> Result<(), ConnectionError> {
    sink.write_all(out).and_then(|()| sink.flush()).map_err(ConnectionError::Write)?;
    out.clear();
    out.shrink_to(OUT_BYTES_MAX);
    Ok(())
}

/// Calls the application; see the module for what becomes of a panic.
fn guarded<A: Application>(app: &A, value: request::Value) -> response::Value {
    let name = request_name(&value);
    let is_query = matches!(value, request::Value::Query(_));
    match catch_unwind(AssertUnwindSafe(|| dispatch(app, value))) {
        Ok(response) => response,
        Err(panic) if is_query => {
            let log = format!("internal error: the query panicked: {}", panic_text(panic.as_ref()));
            tracing::error!("{log}");
            response::Value::Query(ResponseQuery {
                code: PANIC_CODE,
                log,
                codespace: "sdk".into(),
                ..Default::default()
            })
        }
        Err(panic) => {
            let why = panic_text(panic.as_ref());
            eprintln!(
                "polylink ledger: {name} broke an invariant: {why}\npolylink ledger: stopping at once; nothing \
                 after the last commit was made durable. Restart to replay from there; if it comes again, report it."
            );
            std::process::exit(super::EXIT_CODE_PANIC);
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no message)")
}

fn dispatch<A: Application>(app: &A, value: request::Value) -> response::Value {
    use request::Value as Req;
    use response::Value as Res;
    match value {
        Req::Echo(request) => Res::Echo(app.echo(request)),
        Req::Flush(_) => Res::Flush(app.flush()),
        Req::Info(request) => Res::Info(app.info(request)),
        Req::InitChain(request) => Res::InitChain(app.init_chain(request)),
        Req::Query(request) => Res::Query(app.query(request)),
        Req::CheckTx(request) => Res::CheckTx(app.check_tx(request)),
        Req::Commit(_) => Res::Commit(app.commit()),
        Req::ListSnapshots(_) => Res::ListSnapshots(app.list_snapshots()),
        Req::OfferSnapshot(request) => Res::OfferSnapshot(app.offer_snapshot(request)),
        Req::LoadSnapshotChunk(request) => Res::LoadSnapshotChunk(app.load_snapshot_chunk(request)),
        Req::ApplySnapshotChunk(request) => Res::ApplySnapshotChunk(app.apply_snapshot_chunk(request)),
        Req::PrepareProposal(request) => Res::PrepareProposal(app.prepare_proposal(request)),
        Req::ProcessProposal(request) => Res::ProcessProposal(app.process_proposal(request)),
        Req::ExtendVote(request) => Res::ExtendVote(app.extend_vote(request)),
        Req::VerifyVoteExtension(request) => Res::VerifyVoteExtension(app.verify_vote_extension(request)),
        Req::FinalizeBlock(request) => Res::FinalizeBlock(app.finalize_block(request)),
    }
}

/// The ABCI names of all requests.
pub(super) const REQUEST_NAMES: [&str; 16] = [
    "Echo",
    "Flush",
    "Info",
    "InitChain",
    "Query",
    "CheckTx",
    "Commit",
    "ListSnapshots",
    "OfferSnapshot",
    "LoadSnapshotChunk",
    "ApplySnapshotChunk",
    "PrepareProposal",
    "ProcessProposal",
    "ExtendVote",
    "VerifyVoteExtension",
    "FinalizeBlock",
];

/// The ABCI name of a request.
pub fn request_name(value: &request::Value) -> &'static str {
    use request::Value as Req;
    match value {
        Req::Echo(_) => "Echo",
        Req::Flush(_) => "Flush",
        Req::Info(_) => "Info",
        Req::InitChain(_) => "InitChain",
        Req::Query(_) => "Query",
        Req::CheckTx(_) => "CheckTx",
        Req::Commit(_) => "Commit",
        Req::ListSnapshots(_) => "ListSnapshots",
        Req::OfferSnapshot(_) => "OfferSnapshot",
        Req::LoadSnapshotChunk(_) => "LoadSnapshotChunk",
        Req::ApplySnapshotChunk(_) => "ApplySnapshotChunk",
        Req::PrepareProposal(_) => "PrepareProposal",
        Req::ProcessProposal(_) => "ProcessProposal",
        Req::ExtendVote(_) => "ExtendVote",
        Req::VerifyVoteExtension(_) => "VerifyVoteExtension",
        Req::FinalizeBlock(_) => "FinalizeBlock",
    }
}
