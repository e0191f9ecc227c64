//! What a payer remembers of the answers that arrive and of those that broke off, until it is known what is owed for
//! them: what was asked, what was seen, and whom it is charged to.
//!
//! In memory only: after a restart an answer that broke off is settled by what the journal has of its request, and no
//! user is charged for it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use polylink_protocol::Amount;
use polylink_protocol::market::SALT_BYTES;
use polylink_protocol::market_v1::SignedRequest;
use prometheus::IntCounter;

use super::store::Charge;

/// An answer, as far as it has arrived.
#[derive(Clone)]
pub(super) struct Arrival {
    pub(super) request: SignedRequest,
    pub(super) prompt_salt: [u8; SALT_BYTES],
    pub(super) prompt_token_ids: Vec<u32>,
    pub(super) grammar: Option<String>,
    /// Per choice, the tokens that have arrived.
    pub(super) completions: Vec<Vec<u32>>,
    pub(super) answer_id: String,
    /// Whom it is charged to, and what is reserved for it; None: nobody.
    pub(super) charge: Option<(Charge, Amount)>,
    /// It failed on the way: the worker, or what lies between, broke it off.
    pub(super) failed: bool,
}

impl Arrival {
    /// Why a receipt of this broken answer is not paid, whatever it says. What a payer owes without a user who pays it
    /// must not be in a worker's hand: with a user of its own it would have the same answers paid again and again.
    pub(super) fn unpayable(&self, late: bool) -> Option<&'static str> {
        match () {
            () if self.failed => Some("the answer failed at the worker or on the way from it"),
            () if late => Some("it was shown later than a user can be charged for it"),
            () if self.charge.is_none() && self.completions.iter().all(Vec::is_empty) => {
                Some("nothing of the answer had arrived")
            }
            () => None,
        }
    }
}

/// Per (session, index): None while it arrives, else what had arrived.
type Open = HashMap<(u64, u64), Option<Arc<Arrival>>>;

/// Every answer whose fate is not known, bounded by the windows of the sessions.
#[derive(Default)]
pub(super) struct Arrivals {
    open: Mutex<Open>,
    stopping: AtomicBool,
}

impl Arrivals {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self, session: u64, index: u64) {
        self.lock().insert((session, index), None);
    }

    /// Its fate is known.
    pub(super) fn end(&self, session: u64, index: u64) -> Option<Arc<Arrival>> {
        self.lock().remove(&(session, index)).flatten()
    }

    /// It broke off.
    pub(super) fn cut(&self, session: u64, index: u64, arrival: Arrival) {
        self.lock().insert((session, index), Some(Arc::new(arrival)));
    }

    /// Nobody is charged for it any more. Returns who was to be.
    pub(super) fn uncharge(&self, session: u64, index: u64) -> Option<(Charge, Amount)> {
        let mut open = self.lock();
        Arc::make_mut(open.get_mut(&(session, index))?.as_mut()?).charge.take()
    }

    /// None while it arrives; else what had arrived, which is unknown after a restart.
    pub(super) fn broken(&self, session: u64, index: u64) -> Option<Option<Arc<Arrival>>> {
        match self.lock().get(&(session, index)) {
            Some(None) => None,
            Some(Some(arrival)) => Some(Some(Arc::clone(arrival))),
            None => Some(None),
        }
    }

    pub(super) fn stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

/// What became of answers that broke off, and of receipts, for `/metrics`.
pub struct Figures {
    /// Cut by their users and charged to them.
    pub cut_charged: IntCounter,
    /// Owed to workers and charged to nobody, uplk.
    pub unbilled: IntCounter,
    /// Receipts that did not hold.
    pub refused: IntCounter,
    /// Receipts that their workers have shown under their roots.
    pub proven: IntCounter,
    /// Receipts that they have not, reported on chain.
    pub reported: IntCounter,
}

impl Figures {
    pub(super) fn new() -> Self {
        let counter = |name: &str, help: &str| {
            IntCounter::new(name, help).expect("the name is a constant that Prometheus allows")
        };
        Self {
            cut_charged: counter(
                "polylink:cut_answers_total",
                "Answers that their users cut, charged for what was sent",
            ),
            unbilled: counter("polylink:unbilled_uplk_total", "Owed to workers for broken answers, charged to nobody"),
            refused: counter("polylink:refused_receipts_total", "Receipts of workers that did not hold"),
            proven: counter("polylink:proven_receipts_total", "Receipts that workers have shown under their roots"),
            reported: counter("polylink:reported_receipts_total", "Receipts that were reported as omitted"),
        }
    }

    /// All of them.
    pub fn counters(&self) -> [IntCounter; 5] {
        [&self.cut_charged, &self.unbilled, &self.refused, &self.proven, &self.reported].map(IntCounter::clone)
    }
}
