//! What the store holds survives a restart; what was not finished does not; proofs and samples lead to the root.

use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market::{sign_receipt, sign_voucher};
use polylink_protocol::market_v1::Voucher;
use polylink_protocol::merkle_sum;

use super::*;
use crate::worker::records::ChoiceTranscript;

const LIMITS: SessionLimits = SessionLimits { funds: Amount(10_000), window: 8 };

fn transcript(session: u64, index: u64, epoch: u64, amount: u128) -> Transcript {
    let receipt = Receipt {
        request_digest: vec![index as u8; 32],
        session,
        index,
        epoch,
        prompt_tokens: 3,
        completion_tokens: 4,
        amount: amount.to_string(),
        ..Default::default()
    };
    Transcript {
        receipt: Some(sign_receipt(receipt, &ServiceKey::from_bytes(&[1; 32]))),
        choices: vec![ChoiceTranscript { token_ids: vec![1, 2, 3, 4], sketches: vec![7; 64] }],
        grammar: None,
        ..Default::default()
    }
}

fn running(index: u64, epoch: u64) -> Running {
    Running { request: Digest([index as u8; 32]), epoch, worst: Amount(100) }
}

async fn serve(store: &WorkerStore, session: u64, index: u64, epoch: u64, amount: u128) {
    store.begin(session, index, running(index, epoch), LIMITS).unwrap();
    store.finish(transcript(session, index, epoch, amount)).await.unwrap();
}

fn reopen(folder: &Path) -> WorkerStore {
    WorkerStore::open(folder).unwrap()
}

fn pay_call(store: &WorkerStore, session: u64, indexes: &[u64], amount: u128) -> VoucherCall {
    let state = store.lock();
    let book = &state.books[&session];
    let hash = indexes.iter().fold(book.receipts_hash, |hash, index| {
        polylink_protocol::market::chain_receipt(hash, book.unpaid()[index].receipt)
    });
    let epoch = indexes.iter().map(|i| book.unpaid()[i].epoch).max().unwrap();
    let voucher = Voucher {
        chain_id: "c".into(),
        session,
        epoch,
        amount: amount.to_string(),
        count: book.paid().1 + indexes.len() as u64,
        receipts_hash: hash.to_vec(),
    };
    VoucherCall { voucher: sign_voucher(voucher, &ServiceKey::from_bytes(&[2; 32])), indexes: indexes.to_vec() }
}

#[tokio::test]
async fn receipts_and_vouchers_survive_and_unfinished_answers_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let store = reopen(folder.path());
    serve(&store, 7, 0, 3, 50).await;
    serve(&store, 7, 1, 3, 60).await;
    store.begin(7, 2, running(2, 3), LIMITS).unwrap();
    let call = pay_call(&store, 7, &[0], 50);
    let key = ServiceKey::from_bytes(&[2; 32]).public_key();
    assert_eq!(store.pay("c", 7, &key, LIMITS, &call).await.unwrap(), (Amount(50), 1));
    drop(store);

    let store = reopen(folder.path());
    assert_eq!(store.pay("c", 7, &key, LIMITS, &call).await.unwrap(), (Amount(50), 1), "acknowledged once more");
    assert!(matches!(store.begin(7, 1, running(1, 3), LIMITS), Err(StoreError::Begin(BeginError::IndexUsed(1)))));
    assert_eq!(store.running(3), 0, "what ran is forgotten");
    assert_eq!(store.status(7, 2, &Digest([2; 32])).unwrap(), ReceiptStatus::Unserved);
    let served = store.status(7, 1, &Digest([1; 32])).unwrap();
    let ReceiptStatus::Served { receipt, completions, .. } = served else { panic!("{served:?}") };
    assert_eq!((receipt.receipt.unwrap().amount.as_str(), completions), ("60", vec![vec![1, 2, 3, 4]]));
    assert_eq!(store.status(7, 1, &Digest([9; 32])).unwrap(), ReceiptStatus::Unserved, "to a stranger");
    assert_eq!(store.redeemable(3).len(), 1);
    store.redeemed(&call.voucher).unwrap();
    assert!(store.redeemable(3).is_empty());
}

#[tokio::test]
async fn every_receipt_of_a_closed_epoch_is_proven_and_found_by_its_amount() {
    let folder = tempfile::tempdir().unwrap();
    let store = reopen(folder.path());
    let amounts = [5_u128, 1, 30, 7, 2];
    for (index, amount) in amounts.into_iter().enumerate() {
        serve(&store, 7, index as u64, 3, amount).await;
        let late = store.finish(transcript(8, index as u64, 2, amount)).await;
        assert!(late.is_ok());
        let call = pay_call(&store, 7, &[index as u64], amounts[..=index].iter().sum());
        store.pay("c", 7, &ServiceKey::from_bytes(&[2; 32]).public_key(), LIMITS, &call).await.unwrap();
    }
    let digest = |index: u64| {
        receipt_digest(transcript(7, index, 3, amounts[index as usize]).receipt.unwrap().receipt.as_ref().unwrap())
    };
    assert!(store.proof(7, 0, &digest(0)).unwrap().is_none(), "not committed yet");
    let roots = store.close_epoch(3).await.unwrap();
    let root = roots.audited;
    assert_eq!((root.count, root.amount, root.tokens), (5, Amount(45), 35));
    drop(store);
    let store = reopen(folder.path());
    assert_eq!(store.close_epoch(3).await.unwrap(), roots, "the same after a restart");
    assert_eq!(roots.private, None);
    for index in 0..5_u64 {
        let proven = store.proof(7, index, &digest(index)).unwrap().unwrap();
        let amount = Amount(amounts[index as usize]);
        let leaf = Leaf { session: 7, index, receipt: digest(index), tokens: 7, amount };
        merkle_sum::verify(&leaf, &proven.path, &root).unwrap();
        assert_eq!(store.transcript(proven.location).unwrap(), transcript(7, index, 3, amount.0));
    }
    assert!(store.proof(7, 0, &digest(1)).unwrap().is_none(), "only to who shows the receipt");
    for point in 0..45_u128 {
        let proven = store.sample(3, Amount(point)).unwrap().unwrap();
        let sampled = receipt_of(&store.transcript(proven.location).unwrap());
        let before: u128 = amounts[..sampled.index as usize].iter().sum();
        assert!((before..before + amounts[sampled.index as usize]).contains(&point));
    }
    assert!(store.sample(3, Amount(45)).unwrap().is_none());
}

#[tokio::test]
async fn private_receipts_have_a_tree_of_their_own_that_nothing_is_sampled_from() {
    let folder = tempfile::tempdir().unwrap();
    let store = reopen(folder.path());
    for (session, private) in [(7, false), (8, true), (9, true)] {
        store.begin(session, 0, running(0, 3), LIMITS).unwrap();
        store.finish(Transcript { private, ..transcript(session, 0, 3, 10) }).await.unwrap();
    }
    let roots = store.close_epoch(3).await.unwrap();
    let private = roots.private.unwrap();
    assert_eq!([roots.audited, private].map(|root| (root.count, root.amount)), [(1, Amount(10)), (2, Amount(20))]);
    assert_eq!(roots.count(), 3);
    drop(store);
    let store = reopen(folder.path());
    assert_eq!(store.close_epoch(3).await.unwrap(), roots, "the same after a restart");
    let receipt = |session| transcript(session, 0, 3, 10).receipt.unwrap().receipt.unwrap();
    for (session, root) in [(7, roots.audited), (8, private), (9, private)] {
        let digest = receipt_digest(&receipt(session));
        let proven = store.proof(session, 0, &digest).unwrap().unwrap();
        let leaf = Leaf { session, index: 0, receipt: digest, tokens: 7, amount: Amount(10) };
        merkle_sum::verify(&leaf, &proven.path, &root).unwrap();
        assert_eq!(proven.root, root);
    }
    for point in 0..30 {
        let sampled = store.sample(3, Amount(point)).unwrap().map(|proven| store.transcript(proven.location).unwrap());
        assert_eq!(sampled.map(|sampled| receipt_of(&sampled).session), (point < 10).then_some(7), "{point}");
    }
}

#[tokio::test]
async fn a_closed_epoch_takes_no_answers() {
    let folder = tempfile::tempdir().unwrap();
    let store = reopen(folder.path());
    store.begin(7, 0, running(0, 3), LIMITS).unwrap();
    assert_eq!((store.running(2), store.running(3)), (0, 1));
    assert_eq!(store.close_epoch(3).await.unwrap(), Roots { audited: Sum::empty(), private: None });
    assert!(matches!(store.finish(transcript(7, 0, 3, 5)).await, Err(StoreError::EpochClosed(3))));
    assert!(matches!(store.begin(7, 1, running(1, 3), LIMITS), Err(StoreError::EpochClosed(3))));
    store.begin(7, 1, running(1, 4), LIMITS).unwrap();
}

#[tokio::test]
async fn old_transcripts_are_dropped_and_accounts_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = reopen(folder.path());
    let key = ServiceKey::from_bytes(&[2; 32]).public_key();
    for epoch in 1..=10_u64 {
        serve(&store, 7, epoch, epoch, 10).await;
        let call = pay_call(&store, 7, &[epoch], 10 * u128::from(epoch));
        store.pay("c", 7, &key, LIMITS, &call).await.unwrap();
        store.close_epoch(epoch).await.unwrap();
        store.rotate(epoch.saturating_sub(4)).await.unwrap();
    }
    drop(store);
    let segments =
        std::fs::read_dir(folder.path()).unwrap().filter(|f| f.as_ref().unwrap().path().extension().is_some()).count();
    assert!((5..=7).contains(&segments), "{segments} segments");
    let store = reopen(folder.path());
    assert_eq!(store.lock().books[&7].paid(), (Amount(100), 10));
    assert!(store.sample(2, Amount(0)).unwrap().is_none());
    assert!(store.sample(10, Amount(0)).unwrap().is_some());
    assert_eq!(store.open_from(), 11);
    assert!(matches!(store.begin(7, 4, running(4, 11), LIMITS), Err(StoreError::Begin(BeginError::IndexUsed(4)))));
}

#[tokio::test]
async fn an_account_is_forgotten_only_when_nothing_is_left_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let store = reopen(folder.path());
    let key = ServiceKey::from_bytes(&[2; 32]).public_key();
    for session in [7, 8, 9] {
        serve(&store, session, 1, 1, 10).await;
    }
    store.begin(9, 2, running(2, 1), LIMITS).unwrap();
    assert_eq!((store.sessions(0, 2), store.sessions(9, 2)), (vec![7, 8], vec![9]));
    assert!(!store.forget(7, false), "unpaid");
    let call = pay_call(&store, 7, &[1], 10);
    store.pay("c", 7, &key, LIMITS, &call).await.unwrap();
    assert!(!store.forget(7, false), "not redeemed");
    store.redeemed(&call.voucher).unwrap();
    assert!(store.forget(7, false) && store.forget(8, true), "done, and closed");
    assert!(!store.forget(9, true), "one runs");
    assert!(store.written() > 0);
    store.rotate(0).await.unwrap();
    assert_eq!(store.written(), 0);
    drop(store);
    let store = reopen(folder.path());
    assert_eq!(store.sessions(0, 9), [9]);
}
