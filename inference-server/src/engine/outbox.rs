//! The queue of events of one request, from the engine's thread to whoever asked.
//!
//! Its room is reserved when the request is admitted, and is proved by adding up: a request gives each prompt token but the
//! first at most once, a choice at most `max_tokens` tokens and one end, a request one last event. So pushing never blocks, never fails and never allocates, whether or
//! not anybody reads; a slow reader costs memory that was counted beforehand.
//!
//! The other way, a reader that wants less says so once in [`Signals`], so that the engine looks at those requests alone.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use polylink_kernels::{SKETCH_VALUES, Sampled, TokenLogprob};
use tokio::sync::Notify;

use super::api::{Event, FailureCode, FinishReason, PromptToken, TokenEvent, Usage, sketch_bytes};

/// An event before its lists are boxed for the reader.
#[derive(Debug)]
enum Queued {
    Prompt { token: TokenLogprob, rank: u32, top_count: u32 },
    Token { choice: u32, token: TokenLogprob, top_count: u32, sketch: [u16; SKETCH_VALUES] },
    Finished { choice: u32, reason: FinishReason },
    Done { usage: Usage },
    Failed { code: FailureCode, message: String },
}

#[derive(Debug)]
struct Queue {
    events: VecDeque<Queued>,
    /// Likeliest tokens of the queued tokens, in their order.
    top: VecDeque<TokenLogprob>,
    /// The last event was pushed.
    closed: bool,
}

/// "The engine has it not (yet, or any more)".
const NOWHERE: u32 = u32::MAX;

/// Requests whose readers want less: told by any thread, taken by the engine once per step.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    any: AtomicBool,
    /// Places of requests; one that has ended meanwhile, or is another's by now, does no harm.
    places: Mutex<Vec<u32>>,
}

impl Signals {
    fn lock(&self) -> MutexGuard<'_, Vec<u32>> {
        // No code that holds the lock can panic half-way through a change: each is one push or swap.
        self.places.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn tell(&self, place: u32) {
        self.lock().push(place);
        self.any.store(true, Ordering::SeqCst);
    }

    /// Puts what was told since the last time into `places`. Allocates nothing: the lists change hands.
    pub(crate) fn take(&self, places: &mut Vec<u32>) {
        places.clear();
        if self.any.swap(false, Ordering::SeqCst) {
            std::mem::swap(places, &mut self.lock());
        }
    }
}

/// Both ends' shared part.
#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    ready: Notify,
    ready_blocking: Condvar,
    /// The reader wants no more of anything.
    cancelled: AtomicBool,
    /// Bit `c`: the reader wants no more of choice `c` (a stop text was seen).
    stopped_choices: AtomicU32,
    /// Where the engine has the request.
    place: AtomicU32,
    /// It is among the signals.
    told: AtomicBool,
    signals: Arc<Signals>,
}

impl Shared {
    /// Tells the engine to look at this request. Whoever changed a flag before reads the place here; the engine sets the
    /// place before it reads the flags ([`Outbox::settle`]): one of both sees the other.
    fn tell(&self) {
        let place = self.place.load(Ordering::SeqCst);
        if place != NOWHERE && !self.told.swap(true, Ordering::SeqCst) {
            self.signals.tell(place);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // No code that holds the lock can panic half-way through a change: each is one push or pop.
        self.queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The engine's end.
#[derive(Debug)]
pub(crate) struct Outbox {
    shared: Arc<Shared>,
}

/// What a request can give at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) choices: usize,
    /// Tokens of a choice, and likeliest ones of each.
    pub(crate) tokens: (usize, usize),
    /// Prompt tokens whose logprobs are told, and likeliest ones of each.
    pub(crate) prompt: (usize, usize),
}

/// Creates a queue with room for all events of a request.
pub(crate) fn outbox(room: Room, signals: Arc<Signals>) -> (Outbox, RequestStream) {
    let Room { choices, tokens: (tokens, top), prompt: (prompt, prompt_top) } = room;
    let tokens = choices * tokens;
    let queue = Queue {
        events: VecDeque::with_capacity(prompt + tokens + choices + 1),
        top: VecDeque::with_capacity(prompt * prompt_top + tokens * top),
        closed: false,
    };
    let shared = Arc::new(Shared {
        queue: Mutex::new(queue),
        ready: Notify::new(),
        ready_blocking: Condvar::new(),
        cancelled: AtomicBool::new(false),
        stopped_choices: AtomicU32::new(0),
        place: AtomicU32::new(NOWHERE),
        told: AtomicBool::new(false),
        signals,
    });
    (Outbox { shared: Arc::clone(&shared) }, RequestStream { shared })
}

impl Outbox {
    fn push(&self, event: Queued, top: &[TokenLogprob], last: bool) {
        {
            let mut queue = self.shared.lock();
            if queue.closed {
                return;
            }
            debug_assert!(queue.events.len() < queue.events.capacity(), "the room was counted at admission");
            queue.events.push_back(event);
            queue.top.extend(top);
            queue.closed = last;
            if last {
                self.shared.place.store(NOWHERE, Ordering::SeqCst);
            }
        }
        self.shared.ready.notify_one();
        self.shared.ready_blocking.notify_one();
    }

    pub(crate) fn prompt(&self, told: &Sampled) {
        let top = &told.top[..told.top_count as usize];
        self.push(Queued::Prompt { token: told.token, rank: told.rank, top_count: told.top_count }, top, false);
    }

    pub(crate) fn token(&self, choice: u32, sampled: &Sampled, sketch: &[u16; SKETCH_VALUES]) {
        let top = &sampled.top[..sampled.top_count as usize];
        let event = Queued::Token { choice, token: sampled.token, top_count: sampled.top_count, sketch: *sketch };
        self.push(event, top, false);
    }

    pub(crate) fn finished(&self, choice: u32, reason: FinishReason) {
        self.push(Queued::Finished { choice, reason }, &[], false);
    }

    pub(crate) fn done(&self, usage: Usage) {
        self.push(Queued::Done { usage }, &[], true);
    }

    pub(crate) fn failed(&self, code: FailureCode, message: &str) {
        self.push(Queued::Failed { code, message: message.to_owned() }, &[], true);
    }

    /// From now on the engine has the request at this place; what its reader said before is told now.
    pub(crate) fn settle(&self, place: u32) {
        let shared = &self.shared;
        shared.place.store(place, Ordering::SeqCst);
        if self.is_cancelled() || shared.stopped_choices.load(Ordering::SeqCst) != 0 {
            shared.tell();
        }
    }

    /// The engine looks at what the reader wants; what it wants later is told again.
    pub(crate) fn hear(&self) {
        self.shared.told.store(false, Ordering::SeqCst);
    }

    /// Whether the reader has cancelled the whole request, or is gone.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.shared.cancelled.load(Ordering::SeqCst)
    }

    /// Whether the reader wants no more of this choice.
    pub(crate) fn is_stopped(&self, choice: u32) -> bool {
        self.shared.stopped_choices.load(Ordering::SeqCst) & (1 << choice) != 0
    }
}

impl Drop for Outbox {
    /// A reader never waits for an engine that is gone.
    fn drop(&mut self) {
        if !self.shared.lock().closed {
            self.failed(FailureCode::EngineStopped, "the engine stopped before the answer was complete: ask again");
        }
    }
}

/// The reader's end: the events of one request. Dropping it cancels the request within one engine step.
#[derive(Debug)]
pub struct RequestStream {
    shared: Arc<Shared>,
}

impl RequestStream {
    /// The next event; `None` after the last one. Cancel-safe: dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(next) = self.try_next() {
                return next;
            }
            // A push between the look and the wait leaves a permit behind, so it is not missed.
            self.shared.ready.notified().await;
        }
    }

    /// As [`RequestStream::next`], for threads that may block.
    pub fn blocking_next(&mut self) -> Option<Event> {
        let mut queue = self.shared.lock();
        loop {
            if let Some(event) = pop(&mut queue) {
                return Some(event);
            }
            if queue.closed {
                return None;
            }
            queue = self.shared.ready_blocking.wait(queue).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    /// What is there now: `None`: nothing yet; `Some(None)`: nothing will come any more.
    pub fn try_next(&mut self) -> Option<Option<Event>> {
        let mut queue = self.shared.lock();
        match pop(&mut queue) {
            Some(event) => Some(Some(event)),
            None if queue.closed => Some(None),
            None => None,
        }
    }

    /// Stops all choices within one step. Go on reading: [`Event::Finished`] with `Cancelled` for what was unfinished,
    /// then [`Event::Done`] with the partial usage.
    pub fn cancel(&self) {
        self.shared.cancelled.store(true, Ordering::SeqCst);
        self.shared.tell();
    }

    /// Ends one choice within one step (a stop text was seen). Tokens of it that still arrive are to be ignored; its
    /// [`Event::Finished`] comes with `Stop`.
    pub fn stop_choice(&self, choice: u32) {
        if choice < u32::BITS {
            self.shared.stopped_choices.fetch_or(1 << choice, Ordering::SeqCst);
            self.shared.tell();
        }
    }
}

fn pop(queue: &mut Queue) -> Option<Event> {
    Some(match queue.events.pop_front()? {
        Queued::Prompt { token, rank, top_count } => Event::Prompt(PromptToken {
            id: token.token,
            logprob: token.logprob,
            rank,
            top: queue.top.drain(..top_count as usize).collect(),
        }),
        Queued::Token { choice, token, top_count, sketch } => Event::Token(TokenEvent {
            choice,
            id: token.token,
            logprob: token.logprob,
            top: queue.top.drain(..top_count as usize).collect(),
            sketch: sketch_bytes(&sketch),
        }),
        Queued::Finished { choice, reason } => Event::Finished { choice, reason },
        Queued::Done { usage } => Event::Done { usage },
        Queued::Failed { code, message } => Event::Failed { code, message },
    })
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        self.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(signals: &Signals) -> Vec<u32> {
        let mut places = Vec::new();
        signals.take(&mut places);
        places
    }

    #[test]
    fn a_reader_is_heard_once_wherever_its_request_is() {
        let signals = Arc::new(Signals::default());
        let (outbox, stream) = outbox(Room { choices: 2, tokens: (4, 0), prompt: (0, 0) }, Arc::clone(&signals));
        stream.stop_choice(1);
        assert_eq!(taken(&signals), [0; 0], "the engine has not seen it yet");
        outbox.settle(7);
        stream.stop_choice(0);
        stream.cancel();
        assert_eq!(taken(&signals), [7], "once, however much was said");
        outbox.hear();
        assert!(outbox.is_cancelled() && outbox.is_stopped(0) && outbox.is_stopped(1));
        stream.cancel();
        assert_eq!(taken(&signals), [7]);
        outbox.hear();
        outbox.done(Usage::default());
        drop(stream);
        assert_eq!(taken(&signals), [0; 0], "nothing is told of a request that has ended");
    }
}
