//! Going back to an older height: the way out where a program has committed a block wrongly.
//!
//! The values of every key at that height are still there as far as the pruning window reaches, and so are the tree's
//! nodes; what later heights wrote is removed, and the keys that they changed get their values of that height, in one atomic
//! batch. A scan over those heights, and over deletions within the window.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use fjall::{Guard, PersistMode, Readable};
use jmt::KeyHash;
use jmt::storage::TreeReader;

use super::database::{HEAD, encode_head, fixed};
use super::snapshot::Head;
use super::times::TIME;
use super::tree::{DELETED, HEIGHT, decode_preimage, encode_preimage, preimage_row, valued_key};
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
        let mut touched = BTreeSet::new();
        let (after, end) = ([&[HEIGHT], &(height + 1).to_be_bytes()[..]].concat(), vec![HEIGHT + 1]);
        for row in all.range(&tables.heights, after..end).map(Guard::key) {
            let row = row?;
            touched.extend(valued_key(&row));
            batch.remove(&tables.heights, row);
        }
        let mut deleted = BTreeSet::new();
        for row in all.prefix(&tables.tree, [DELETED]).map(Guard::key) {
            let row = row?;
            let (at, key) = deletion(&row)?;
            if at > height {
                touched.insert(key);
                batch.remove(&tables.tree, row);
            } else {
                deleted.insert(key);
            }
        }
        for row in all.prefix(&tables.tree, [TIME]).map(Guard::into_inner) {
            let (row, of) = row?;
            if u64::from_be_bytes(fixed(&of, "the height of a time")?) > height {
                batch.remove(&tables.tree, row);
            }
        }
        let view = newest.view();
        for hash in touched {
            let row = preimage_row(&hash);
            let missing = || StoreError::Damaged("a key has no preimage".into());
            let preimage = all.get(&tables.tree, &row)?.ok_or_else(missing)?;
            let (since, key) = decode_preimage(&preimage)?;
            let value = view.get_value_option(height, hash).map_err(|reason| {
                let reason = format!("{reason:#}");
                StoreError::Tree { height, reason }
            })?;
            // A key that has come since was there before, or is still to be shown absent where it was deleted, or neither.
            if since > height {
                match (&value, deleted.contains(&hash)) {
                    (Some(_), _) => batch.insert(&tables.tree, row, encode_preimage(height, key)),
                    (None, true) => batch.insert(&tables.tree, row, encode_preimage(0, key)),
                    (None, false) => batch.remove(&tables.tree, row),
                }
            }
            match value {
                Some(value) => batch.insert(&tables.state, key, value),
                None => batch.remove(&tables.state, key),
            }
        }
        let pruned = newest.pruned().min(height + 1);
        let head = Head { height, oldest: newest.oldest(), pruned, app_hash };
        batch.insert(&tables.tree, HEAD, encode_head(&head));
        batch.commit()?;
        self.publish(head);
        self.0.upper.write().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(())
    }
}

/// The height and the key of a deletion's row.
fn deletion(row: &[u8]) -> Result<(u64, KeyHash), StoreError> {
    let row: [u8; 41] = fixed(row, "the row of a deletion")?;
    Ok((u64::from_be_bytes(fixed(&row[1..9], "a height")?), KeyHash(fixed(&row[9..], "a key")?)))
}
