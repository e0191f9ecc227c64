//! Joining by state sync: a snapshot is offered by CometBFT, its chunks are verified and written, and the ledger is at
//! its height.
//!
//! CometBFT's light client vouches for the application hash; whatever else peers send is believed as far as it leads to
//! that hash. A chunk that does not match the snapshot's digests is fetched anew and its sender shunned; a snapshot whose
//! digests are of another state is rejected as soon as a chunk shows it. Source: *State Sync Methods* in CometBFT's
//! `abci++_methods.md`, v0.38.

use tendermint_proto::v0_38::abci as pb;
use tendermint_proto::v0_38::abci::response_apply_snapshot_chunk::Result as Applied;
use tendermint_proto::v0_38::abci::response_offer_snapshot::Result as Offered;

use super::snapshots::{FORMAT, Manifest};
use super::stop;
use crate::store::{Restore, Store, StoreError};

/// A restore under way, if any.
#[derive(Default)]
pub(super) struct Joining(Option<UnderWay>);

struct UnderWay {
    manifest: Manifest,
    /// The chunk that comes next.
    next: usize,
    restore: Restore,
}

impl Joining {
    /// Takes up a snapshot, giving up the one before.
    pub(super) fn offer(&mut self, store: &Store, request: pb::RequestOfferSnapshot) -> Offered {
        self.0 = None;
        let Some(offer) = request.snapshot else { return Offered::Reject };
        if offer.format != FORMAT {
            tracing::warn!("a snapshot of format {}: {FORMAT} is the only one known here", offer.format);
            return Offered::RejectFormat;
        }
        let manifest = Manifest::offered(offer.height, &request.app_hash, offer.chunks, &offer.hash, &offer.metadata);
        let Some(manifest) = manifest else {
            tracing::warn!(height = offer.height, "a snapshot that is not of the verified state is rejected");
            return Offered::Reject;
        };
        match store.restore(manifest.height, manifest.app_hash) {
            Ok(restore) => {
                tracing::info!(height = manifest.height, chunks = manifest.chunks.len(), "a snapshot is restored");
                self.0 = Some(UnderWay { manifest, next: 0, restore });
                Offered::Accept
            }
            Err(error @ StoreError::Occupied { .. }) => {
                tracing::error!("no state sync: {error}");
                Offered::Abort
            }
            Err(StoreError::Empty { .. }) => Offered::Reject,
            Err(error) => stop(error),
        }
    }

    /// Takes a chunk. Returns whether the ledger now holds the snapshot's state.
    pub(super) fn apply(&mut self, request: pb::RequestApplySnapshotChunk) -> (pb::ResponseApplySnapshotChunk, bool) {
        let answer = |result: Applied| pb::ResponseApplySnapshotChunk { result: result.into(), ..Default::default() };
        let Some(mut under_way) = self.0.take() else { return (answer(Applied::Abort), false) };
        let index = under_way.next;
        if usize::try_from(request.index) != Ok(index) {
            // CometBFT applies them in their order; from the beginning, then.
            return (answer(Applied::RetrySnapshot), false);
        }
        if !under_way.manifest.holds(index, &request.chunk) {
            tracing::warn!(chunk = index, sender = request.sender, "a chunk is not what the snapshot says: once more");
            self.0 = Some(under_way);
            let (refetch_chunks, reject_senders) = (vec![request.index], vec![request.sender]);
            let result = Applied::Retry.into();
            return (pb::ResponseApplySnapshotChunk { result, refetch_chunks, reject_senders }, false);
        }
        under_way.next += 1;
        let last = under_way.next == under_way.manifest.chunks.len();
        let restored = under_way.restore.add(request.chunk.into());
        let restored = match restored {
            Ok(()) if last => under_way.restore.finish(),
            Ok(()) => {
                self.0 = Some(under_way);
                Ok(())
            }
            Err(error) => Err(error),
        };
        match restored {
            Ok(()) => (answer(Applied::Accept), last),
            Err(error @ StoreError::Chunk(_)) => {
                tracing::warn!(chunk = index, "{error}");
                (answer(Applied::RejectSnapshot), false)
            }
            Err(error) => stop(error),
        }
    }
}
