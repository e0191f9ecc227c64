//! Durability: what was told to be written is there after a restart, torn ends are cut, damage is named.

use super::*;

fn open(folder: &Path) -> (Journal, Vec<(Location, Vec<u8>)>) {
    let mut found = Vec::new();
    let opened = Journal::open(folder, |location, bytes| {
        found.push((location, bytes.to_vec()));
        Ok(())
    });
    (opened.unwrap().0, found)
}

#[tokio::test]
async fn records_come_back_in_order_and_by_location() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, found) = open(folder.path());
    assert!(found.is_empty());
    let pending: Vec<_> =
        (0..1_000_u32).map(|i| journal.enqueue(i.to_be_bytes().repeat(i as usize % 9)).unwrap()).collect();
    let mut locations = Vec::new();
    for one in pending {
        locations.push(one.durable().await.unwrap());
    }
    assert_eq!(journal.read(locations[8]).unwrap(), 8_u32.to_be_bytes().repeat(8));
    drop(journal);
    let (journal, found) = open(folder.path());
    assert_eq!(found.len(), 1_000);
    assert!(found.iter().zip(&locations).all(|((a, _), b)| a == b));
    journal.enqueue(b"more".to_vec()).unwrap().durable().await.unwrap();
    drop(journal);
    assert_eq!(open(folder.path()).1.last().unwrap().1, b"more");
}

#[tokio::test]
async fn a_new_segment_begins_with_its_snapshot_and_old_ones_can_go() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = open(folder.path());
    journal.enqueue(b"old".to_vec()).unwrap().durable().await.unwrap();
    let first = journal.rotate(vec![b"snapshot".to_vec(), b"two".to_vec()]).unwrap().durable().await.unwrap();
    assert_eq!((first.segment, first.offset), (2, 0));
    let after = journal.enqueue(b"after".to_vec()).unwrap().durable().await.unwrap();
    assert_eq!(after.segment, 2);
    journal.drop_before(2).unwrap();
    drop(journal);
    let (_journal, found) = open(folder.path());
    let texts: Vec<_> = found.iter().map(|(_, bytes)| bytes.as_slice()).collect();
    assert_eq!(texts, [b"snapshot".as_slice(), b"two", b"after"]);
}

#[tokio::test]
async fn a_torn_end_is_cut_at_every_byte() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = open(folder.path());
    for text in ["one", "two", "three"] {
        journal.enqueue(text.into()).unwrap().durable().await.unwrap();
    }
    drop(journal);
    drop(open(folder.path()));
    let path = segment_path(folder.path(), 1);
    let whole = std::fs::read(&path).unwrap();
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        let (journal, found) = open(folder.path());
        let complete = [11, 22, 35].iter().filter(|end| **end <= length).count();
        assert_eq!(found.len(), complete, "cut at {length}");
        journal.enqueue(b"next".to_vec()).unwrap().durable().await.unwrap();
        drop(journal);
        assert_eq!(open(folder.path()).1.len(), complete + 1);
    }
}

#[tokio::test]
async fn damage_in_the_middle_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = open(folder.path());
    for text in ["one", "two"] {
        journal.enqueue(text.into()).unwrap().durable().await.unwrap();
    }
    drop(journal);
    drop(open(folder.path()));
    let path = segment_path(folder.path(), 1);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[9] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = Journal::open(folder.path(), |_, _| Ok(())).err().unwrap();
    assert!(matches!(&error, JournalError::Damaged { offset: 0, .. }), "{error}");
    assert!(error.to_string().contains("00000001.log"));
}

#[test]
fn one_process_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let (_journal, _) = open(folder.path());
    assert!(matches!(Journal::open(folder.path(), |_, _| Ok(())), Err(JournalError::Locked { .. })));
}

#[test]
fn frames_have_the_bytes_they_always_had() {
    let mut bytes = Vec::new();
    frame(&mut bytes, b"abc");
    // The CRC-32 of `abc` is 352441c2 (ISO-HDLC, as in zlib).
    assert_eq!(hex::encode(&bytes), "00000003352441c2616263");
    assert_eq!(check_frame(&bytes), Ok(()));
}
