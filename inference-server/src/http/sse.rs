//! Server-sent events: writing them as a response, and reading them from one.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures::{Stream, StreamExt};
use serde::Serialize;

/// Longest event that is read from another service.
pub const EVENT_BYTES_MAX: usize = 8 << 20;
/// Quiet time after which a comment keeps the connection open, and a client that is gone is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// One `data:` event with JSON.
pub fn event<T: Serialize>(value: &T) -> Bytes {
    // Only maps with keys that are no texts, or a failing Serialize, could fail: the types here have neither.
    let json = serde_json::to_string(value).unwrap_or_else(|e| format!("{{\"error\":{{\"message\":\"{e}\"}}}}"));
    Bytes::from(format!("data: {json}\n\n"))
}

/// The event that ends OpenAI's streams.
pub fn done() -> Bytes {
    Bytes::from_static(b"data: [DONE]\n\n")
}

/// A response that streams events; dropping it (the client is gone) drops the stream.
pub fn response(events: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let kept = futures::stream::unfold(Box::pin(events), |mut events| async move {
        match tokio::time::timeout(KEEP_ALIVE, events.next()).await {
            Ok(Some(bytes)) => Some((bytes, events)),
            Ok(None) => None,
            Err(_) => Some((Bytes::from_static(b": still working\n\n"), events)),
        }
    });
    let mut response = Response::new(Body::from_stream(kept.map(Ok::<_, std::convert::Infallible>)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Cuts a byte stream into the data of its events.
#[derive(Debug, Default)]
pub struct EventReader {
    buffer: Vec<u8>,
    /// Bytes already searched for the end of a line.
    searched: usize,
    data: Vec<u8>,
}

/// The event is longer than [`EVENT_BYTES_MAX`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("an event of more than {EVENT_BYTES_MAX} bytes: the sender is not one of this network's services")]
pub struct EventTooLong;

impl EventReader {
    /// Takes bytes as they arrive and returns the data of each event that is now complete.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, EventTooLong> {
        self.buffer.extend_from_slice(bytes);
        let mut events = Vec::new();
        let mut start = 0;
        while let Some(at) = self.buffer[self.searched..].iter().position(|b| *b == b'\n') {
            let end = self.searched + at;
            let line = self.buffer[start..end].strip_suffix(b"\r").unwrap_or(&self.buffer[start..end]);
            if line.is_empty() {
                if !self.data.is_empty() {
                    events.push(std::mem::take(&mut self.data));
                }
            } else if let Some(data) = line.strip_prefix(b"data:") {
                if !self.data.is_empty() {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
            }
            start = end + 1;
            self.searched = start;
        }
        self.buffer.drain(..start);
        self.searched = self.buffer.len();
        if self.buffer.len() + self.data.len() > EVENT_BYTES_MAX {
            return Err(EventTooLong);
        }
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_however_the_bytes_are_cut() {
        let text = b": comment\n\ndata: {\"a\":1}\n\ndata:x\r\ndata: y\r\n\r\nevent: z\ndata: last\n\ndata: cut";
        let expected: Vec<&[u8]> = vec![b"{\"a\":1}", b"x\ny", b"last"];
        for size in 1..text.len() {
            let mut reader = EventReader::default();
            let found: Vec<Vec<u8>> = text.chunks(size).flat_map(|chunk| reader.push(chunk).unwrap()).collect();
            assert_eq!(found, expected, "chunks of {size}");
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut reader = EventReader::default();
        let chunk = vec![b'x'; 1 << 20];
        assert!((0..9).any(|_| reader.push(&chunk) == Err(EventTooLong)));
    }
}
