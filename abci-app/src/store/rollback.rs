//! Going back to an older height: the way out where a program has committed a block wrongly.
//!
//! The values of every key at that height are still there as far as the pruning window reaches, and so are the tree's
//! nodes; what later heights wrote is removed, in one atomic batch. A scan over all keys.

use fjall::{Guard, PersistMode, Readable};
use std::sync::PoisonError;

use super::database::{HEAD, encode_head, fixed};
use super::snapshot::Head;
use super::times::TIME;
use super::tree::{DELETED, NODE, PREIMAGE, STALE, VALUE};
use super::{Store, StoreError};

impl Store {
    /// Forgets every block after `height`. The next one executed is `height + 1`; CometBFT must be brought back to the
    /// same height.
    pub fn rollback(&self, height: u64) -> Result<(), StoreError> {
        let _writing = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = self.snapshot();
        let app_hash = newest.app_hash_at(height)?;
        let (tables, all) = (&self.0.tables, newest.database());
        let mut batch = self.0.database.batch().durability(Some(PersistMode::SyncAll));
        for kind in [NODE, STALE, DELETED] {
            let (after, end) = ([&[kind], &(height + 1).to_be_bytes()[..]].concat(), vec![kind + 1]);
            let table = tables.of(&after);
            for row in all.range(table, after..end) {
                batch.remove(table, row.key()?);
            }
        }
        for row in all.prefix(&tables.tree, [TIME]).map(Guard::into_inner) {
            let (row, of) = row?;
            if u64::from_be_bytes(fixed(&of, "the height of a time")?) > height {
                batch.remove(&tables.tree, row);
            }
        }
        for row in all.prefix(&tables.tree, [PREIMAGE]).map(Guard::into_inner) {
            let (preimage, key) = row?;
            let hash = preimage.get(1..).unwrap_or_default();
            let (mut value, mut versions) = (None, 0);
            for row in all.prefix(&tables.tree, [&[VALUE], hash].concat()).map(Guard::into_inner) {
                let (row, stored) = row?;
                let version = row.last_chunk().map_or(0, |version| u64::from_be_bytes(*version));
                if version > height {
                    batch.remove(&tables.tree, row);
                    continue;
                }
                versions += 1;
                value = stored.strip_prefix(&[1]).map(<[u8]>::to_vec);
            }
            if versions == 0 {
                batch.remove(&tables.tree, preimage);
            }
            match (newest.read(&key)?, value) {
                (current, value) if current == value => {}
                (_, Some(value)) => batch.insert(&tables.state, key, value),
                (_, None) => batch.remove(&tables.state, key),
            }
        }
        let head = Head { height, oldest: newest.oldest(), app_hash };
        batch.insert(&tables.tree, HEAD, encode_head(&head));
        batch.commit()?;
        self.publish(head);
        self.0.upper.write().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(())
    }
}
