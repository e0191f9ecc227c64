//! Transactions made and put into requests before the clock runs, and how they are sent.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::try_join_all;
use polylink_protocol::Message;
use polylink_protocol::cosmos::cosmos::auth::v1beta1::{BaseAccount, QueryAccountRequest, QueryAccountResponse};

use super::accounts::{Sends, Signer, sender_key};
use super::network::{Kind, POLL, Pace};
use super::rpc::Rpc;
use crate::BenchError;
use crate::process::failed;

/// Calls of a request: as many as CometBFT takes by default.
const BATCH: usize = 10;
/// Requests under way at a time.
const LANES: usize = 8;
/// Bytes of a `key=value`.
const KEY_VALUE_BYTES: usize = 250;

/// Where a chain's transactions come from.
pub enum Source {
    /// Signed sends.
    Sends(Box<Sends>),
    /// Pairs, counted.
    KeyValues(u64),
}

impl Source {
    /// For a fresh chain with so many senders.
    ///
    /// # Errors
    /// [`BenchError::Contestant`] if the chain does not know the senders.
    pub async fn new(kind: Kind, rpc: &Rpc, senders: u64) -> Result<Self, BenchError> {
        if kind == Kind::KeyValues {
            return Ok(Source::KeyValues(0));
        }
        let chain_id = rpc.chain_id().await?;
        let first = number_of(rpc, 0).await?;
        let last = number_of(rpc, senders - 1).await?;
        if last.checked_sub(first) != Some(senders - 1) {
            return Err(failed("ledger", "the senders' accounts do not follow each other"));
        }
        let signers = (0..senders).map(|n| Signer::new(sender_key(n), &chain_id, first + n, 0)).collect();
        Ok(Source::Sends(Box::new(Sends::new(signers, senders, 1))))
    }

    fn next(&mut self) -> Vec<u8> {
        match self {
            Source::Sends(sends) => sends.sign_next(),
            Source::KeyValues(count) => {
                *count += 1;
                let mut pair = format!("{count:016x}=").into_bytes();
                pair.resize(KEY_VALUE_BYTES, b'v');
                pair
            }
        }
    }

    /// The next transactions, as requests.
    pub fn make(&mut self, txs: usize) -> Load {
        let texts: Vec<String> = (0..txs).map(|_| base64(&self.next())).collect();
        let call = |text: &String| {
            format!(r#"{{"jsonrpc":"2.0","id":1,"method":"broadcast_tx_async","params":{{"tx":"{text}"}}}}"#)
        };
        let body = |texts: &[String]| {
            let calls: Vec<String> = texts.iter().map(call).collect();
            Bytes::from(format!("[{}]", calls.join(",")))
        };
        let bodies = texts.chunks(BATCH).map(body).collect();
        let positions = texts.into_iter().enumerate().map(|(at, text)| (text, at)).collect();
        Load { bodies, positions }
    }
}

async fn number_of(rpc: &Rpc, sender: u64) -> Result<u64, BenchError> {
    let wrong = |reason: &dyn std::fmt::Display| failed("ledger", format!("account of sender {sender}: {reason}"));
    let request = QueryAccountRequest { address: sender_key(sender).address().account() };
    let value = rpc.query("/cosmos.auth.v1beta1.Query/Account", &request.encode_to_vec()).await?;
    let value = unbase64(&value).ok_or_else(|| wrong(&"it is not base64"))?;
    let account = QueryAccountResponse::decode(value.as_slice()).map_err(|e| wrong(&e))?.account.unwrap_or_default();
    Ok(BaseAccount::decode(account.value.as_slice()).map_err(|e| wrong(&e))?.account_number)
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn unbase64(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

/// Requests that are ready to be sent.
pub struct Load {
    bodies: Vec<Bytes>,
    positions: HashMap<String, usize>,
}

/// What of a load was seen in blocks: each once, executed, and nothing else.
pub struct Committed<'a> {
    load: &'a Load,
    seen: HashSet<usize>,
}

impl<'a> Committed<'a> {
    /// Nothing yet.
    pub fn of(load: &'a Load) -> Self {
        Self { load, seen: HashSet::new() }
    }

    /// Notes a block's transaction, by its base64, and its code; returns its position.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn note(&mut self, tx: &str, code: u64) -> Result<usize, String> {
        let at = self.load.positions.get(tx).copied().ok_or("it has a foreign transaction")?;
        match code {
            0 if self.seen.insert(at) => Ok(at),
            0 => Err(format!("transaction {at} was committed before")),
            code => Err(format!("transaction {at} failed with code {code}")),
        }
    }

    /// Looks whether all of it was seen.
    ///
    /// # Errors
    /// How many are missing.
    pub fn end(&self) -> Result<(), String> {
        match self.load.txs() - self.seen.len() {
            0 => Ok(()),
            missing => Err(format!("{missing} of {} transactions are in no block", self.load.txs())),
        }
    }
}

/// When each request was sent, from the beginning of the run.
pub struct Sent(Vec<Duration>);

impl Sent {
    /// When the transaction of a position was sent.
    pub fn at(&self, position: usize) -> Duration {
        self.0[position / BATCH]
    }
}

impl Load {
    /// How many transactions.
    pub fn txs(&self) -> usize {
        self.positions.len()
    }

    /// Sends its first request.
    ///
    /// # Errors
    /// [`BenchError::Contestant`] if the node does not take it.
    pub async fn send_one(&self, rpc: &Rpc) -> Result<(), BenchError> {
        match self.bodies.first() {
            Some(body) => rpc.send(body.clone()).await,
            None => Ok(()),
        }
    }

    /// Sends all of it to the nodes in turn.
    ///
    /// # Errors
    /// [`BenchError::Contestant`] for the first request that is not taken.
    pub async fn send(&self, rpcs: &[Rpc], pace: Pace, begun: Instant) -> Result<Sent, BenchError> {
        let next = AtomicUsize::new(0);
        let room = AtomicI64::new(match pace {
            Pace::Full(most) => most as i64,
            Pace::Rate(_) => i64::MAX,
        });
        let lane = |lane: usize| {
            let (next, room) = (&next, &room);
            async move {
                let mut sent = Vec::new();
                loop {
                    while room.fetch_sub(BATCH as i64, Ordering::Relaxed) < BATCH as i64 {
                        room.fetch_add(BATCH as i64, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(body) = self.bodies.get(at) else { return Ok::<_, BenchError>(sent) };
                    if let Pace::Rate(rate) = pace {
                        let due = Duration::from_secs_f64((at * BATCH) as f64 / rate as f64);
                        tokio::time::sleep(due.saturating_sub(begun.elapsed())).await;
                    }
                    sent.push((at, begun.elapsed()));
                    rpcs[(lane + at) % rpcs.len()].send(body.clone()).await?;
                }
            }
        };
        let watch = async {
            if let Pace::Full(most) = pace {
                while next.load(Ordering::Relaxed) < self.bodies.len() {
                    tokio::time::sleep(POLL).await;
                    let waiting = rpcs[0].waiting().await?;
                    room.store(most as i64 - waiting as i64, Ordering::Relaxed);
                }
                // What is left are lanes that see the end.
                room.store(i64::MAX, Ordering::Relaxed);
            }
            Ok::<_, BenchError>(())
        };
        let (lanes, _) = futures::future::try_join(try_join_all((0..LANES).map(lane)), watch).await?;
        let mut times = vec![Duration::ZERO; self.bodies.len()];
        for (at, time) in lanes.into_iter().flatten() {
            times[at] = time;
        }
        Ok(Sent(times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_distinct_and_found_again() {
        let mut source = Source::KeyValues(0);
        let load = source.make(25);
        assert_eq!((load.txs(), load.bodies.len()), (25, 3));
        let first = base64(&[&b"0000000000000001="[..], &[b'v'; 233]].concat());
        assert_eq!(Committed::of(&load).note(&first, 0), Ok(0));
        assert!(Committed::of(&source.make(5)).note(&first, 0).unwrap_err().contains("foreign"));
        let calls: Vec<serde_json::Value> = serde_json::from_slice(&load.bodies[2]).unwrap();
        assert_eq!((calls.len(), calls[0]["method"].as_str()), (5, Some("broadcast_tx_async")));
    }

    #[test]
    fn what_is_lost_failed_or_twice_in_blocks_is_found() {
        let load = Source::KeyValues(0).make(3);
        let texts: Vec<&String> = load.positions.keys().collect();
        let mut committed = Committed::of(&load);
        for text in &texts[..2] {
            committed.note(text, 0).unwrap();
        }
        assert!(committed.note(texts[0], 0).unwrap_err().contains("before"));
        assert!(committed.note(texts[2], 5).unwrap_err().contains("code 5"));
        assert!(committed.end().unwrap_err().contains("1 of 3"));
        committed.note(texts[2], 0).unwrap();
        committed.end().unwrap();
    }
}
