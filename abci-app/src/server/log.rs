//! A record of the requests, for tests: what CometBFT asked, on which connection, at what height.

use std::sync::{Arc, Mutex};

use tendermint_proto::v0_38::abci::request;

use super::{ConnectionId, Observer, lock, request_name};

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// The connection it came on.
    pub connection: ConnectionId,
    /// Its ABCI name, as `"FinalizeBlock"`.
    pub name: &'static str,
    /// The height it speaks of, where it carries one.
    pub height: Option<i64>,
}

impl LogEntry {
    /// The entry of a request.
    pub fn of(connection: ConnectionId, value: &request::Value) -> Self {
        use request::Value as Req;
        let height = match value {
            Req::InitChain(request) => Some(request.initial_height),
            Req::PrepareProposal(request) => Some(request.height),
            Req::ProcessProposal(request) => Some(request.height),
            Req::ExtendVote(request) => Some(request.height),
            Req::VerifyVoteExtension(request) => Some(request.height),
            Req::FinalizeBlock(request) => Some(request.height),
            _ => None,
        };
        LogEntry { connection, name: request_name(value), height }
    }
}

/// Records requests up to a limit; what comes after is only counted. `Echo` and `Flush`, which say
/// nothing, are left out.
#[derive(Clone)]
pub struct RequestLog {
    inner: Arc<Mutex<Inner>>,
    limit: usize,
}

#[derive(Default)]
struct Inner {
    entries: Vec<LogEntry>,
    left_out: u64,
}

impl RequestLog {
    /// A log of at most `limit` requests.
    pub fn new(limit: usize) -> Self {
        RequestLog { inner: Arc::default(), limit }
    }

    /// The observer to put into [`Options`](super::Options).
    pub fn observer(&self) -> Observer {
        let log = self.clone();
        Arc::new(move |connection, value| log.record(LogEntry::of(connection, value)))
    }

    fn record(&self, entry: LogEntry) {
        if matches!(entry.name, "Echo" | "Flush") {
            return;
        }
        let mut inner = lock(&self.inner);
        if inner.entries.len() < self.limit {
            inner.entries.push(entry);
        } else {
            inner.left_out += 1;
        }
    }

    /// The requests so far, in the order of arrival.
    pub fn entries(&self) -> Vec<LogEntry> {
        lock(&self.inner).entries.clone()
    }

    /// Requests beyond the limit.
    pub fn left_out(&self) -> u64 {
        lock(&self.inner).left_out
    }
}
