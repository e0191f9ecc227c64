//! Indexes, budgets, answers and vouchers across restarts.

use polylink_protocol::market_v1::{SignedReceipt, SignedRequest};

use super::super::records::ReportRecord;
use super::*;

fn reopen(folder: &Path) -> PayerStore {
    PayerStore::open(folder).unwrap()
}

fn charge(budget: Option<u128>, session: bool) -> Charge {
    Charge {
        key_id: "key-a".into(),
        budget: budget.map(Amount),
        session: session.then(|| (99, ServiceKey::from_bytes(&[4; 32]))),
    }
}

async fn begin(store: &PayerStore, charge: Option<&Charge>, worst: u128) -> Result<u64, PayError> {
    let running = |index: u64| {
        let request = Digest([index as u8; 32]);
        let signed = Some(SignedRequest { request: None, signature: vec![index as u8] });
        (Running { request, epoch: 3, worst: Amount(worst), signed, prompt_tokens: 5, refused: false }, ())
    };
    store.begin(7, (Amount(100_000), 100), charge, Amount(worst), running).await.map(|(index, ())| index)
}

async fn answered(store: &PayerStore, index: u64, amount: u128, charge: Option<(&Charge, Amount)>) {
    let record = AnswerRecord {
        request: Default::default(),
        receipt: Default::default(),
        prompt_salt: vec![1],
        prompt_token_ids: vec![2, 3],
        grammar: None,
        completion_salt: vec![],
        completions: vec![vec![4]],
        path: None,
        root: None,
    };
    let owed = Owed { receipt: Digest([index as u8; 32]), epoch: 3, amount: Amount(amount) };
    let answer_id = format!("chatcmpl-{index}");
    let answered = Answered {
        session: 7,
        index,
        owed,
        answer_id: &answer_id,
        record: Some(&record),
        charge,
        tokens: (2, 1),
        endpoint: "http://w",
        cut: index == 1,
        signed: None,
    };
    store.answered("c", answered).await.unwrap();
}

#[tokio::test]
async fn no_index_is_given_out_twice_even_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let mut given = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let store = reopen(folder.path());
        for _ in 0..70 {
            let index = begin(&store, None, 10).await.unwrap();
            assert!(given.insert(index), "{index} twice");
            store.abandon(7, index);
        }
    }
    assert!(given.last().unwrap() < &500);
}

#[tokio::test]
async fn answers_and_their_costs_survive() {
    let folder = tempfile::tempdir().unwrap();
    let store = reopen(folder.path());
    let charge = charge(Some(100), true);
    for _ in 0..2 {
        let index = begin(&store, Some(&charge), 50).await.unwrap();
        answered(&store, index, 20, Some((&charge, Amount(50)))).await;
    }
    let unknown = begin(&store, Some(&charge), 30).await.unwrap();
    drop(store);
    let store = reopen(folder.path());
    let account = store.key("key-a");
    assert_eq!((account.spent, account.answers, account.reserved), (Amount(40), 2, Amount::ZERO));
    assert_eq!((account.prompt_tokens, account.completion_tokens), (4, 2));
    assert_eq!(account.cut, 1);
    let voucher = account.voucher.unwrap();
    polylink_protocol::market::verify_voucher(&voucher, &ServiceKey::from_bytes(&[4; 32]).public_key()).unwrap();
    let body = voucher.voucher.unwrap();
    assert_eq!((body.session, body.amount.as_str(), body.count, body.epoch), (99, "40", 2, 3));
    let (record, key_id, endpoint) = store.answer("chatcmpl-0").unwrap().unwrap();
    assert_eq!(
        (record.prompt_token_ids.as_slice(), key_id.as_str(), endpoint.as_str()),
        (&[2, 3][..], "key-a", "http://w")
    );
    assert!(store.answer("chatcmpl-9").unwrap().is_none());
    let book = store.book(7);
    assert_eq!(book.owed.len(), 2);
    let running = &book.running[&unknown];
    assert!(!running.refused, "its fate is asked of the worker");
    let signature = running.signed.as_ref().unwrap().signature.clone();
    assert_eq!(
        (signature, running.prompt_tokens),
        (vec![unknown as u8], 5),
        "with what its receipt is checked against"
    );
    assert_eq!(store.unsettled(), [7]);
}

#[tokio::test]
async fn a_refused_receipt_stays_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = reopen(folder.path());
    let charge = charge(None, false);
    let index = begin(&store, Some(&charge), 50).await.unwrap();
    store.refuse(7, index);
    assert!(store.unsettled().is_empty());
    drop(store);
    let store = reopen(folder.path());
    assert!(store.book(7).running[&index].refused && store.unsettled().is_empty());
    assert_eq!(store.key("key-a"), KeyAccount::default());
}

#[tokio::test]
async fn receipts_are_kept_until_they_are_proven_and_reports_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Segments { answers: 3, bytes: 1 << 20, kept: 1 };
    let store = PayerStore::open_with(folder.path(), limits).unwrap();
    let signed = SignedReceipt { receipt: None, signature: vec![9] };
    for index in 0..2 {
        answered(&store, index, 20, None).await;
    }
    // Of an answer that nobody saw the receipt alone is kept.
    let owed = Owed { receipt: Digest([2; 32]), epoch: 4, amount: Amount(5) };
    let (answer_id, endpoint) = ("", "http://w");
    let nobodys = Answered {
        session: 8,
        index: 2,
        owed,
        answer_id,
        record: None,
        charge: None,
        tokens: (2, 1),
        endpoint,
        cut: true,
        signed: Some(&signed),
    };
    store.answered("c", nobodys).await.unwrap();
    assert_eq!(store.unproven(4).keys().copied().collect::<Vec<_>>(), [7], "epoch 4 has not ended");
    let first = store.unproven(4)[&7][0];
    assert_eq!((first.leaf.tokens, first.leaf.amount, first.leaf.receipt), (3, Amount(20), Digest([0; 32])));
    store.proven(&first);
    let report = ReportRecord {
        session: 7,
        index: 1,
        worker: "w".into(),
        deposit: "100".into(),
        deadline_epoch: 9,
        shown: false,
    };
    store.note_report(report.clone()).await.unwrap();
    assert_eq!(store.unproven(5).keys().copied().collect::<Vec<_>>(), [8], "proven, and reported");
    drop(store);

    let store = PayerStore::open_with(folder.path(), limits).unwrap();
    let indexes: Vec<u64> = store.unproven(5).values().flatten().map(|unproven| unproven.leaf.index).collect();
    assert_eq!(
        (indexes, store.reports()),
        (vec![0, 2], vec![report.clone()]),
        "what was reported is not reported again"
    );
    assert_eq!(store.signed_receipt(&store.unproven(5)[&8][0]).unwrap(), Some(signed));
    assert_eq!(store.signed_receipt(&first).unwrap(), Some(SignedReceipt::default()), "out of the record");
    // Its segment is deleted one day: then the snapshot has it.
    for index in 10..20 {
        answered(&store, index, 20, None).await;
    }
    drop(store);
    let store = PayerStore::open_with(folder.path(), limits).unwrap();
    assert_eq!(store.reports(), [report]);
    assert!(store.unproven(5)[&7].iter().all(|unproven| unproven.leaf.index >= 10) && store.unproven(5).len() == 1);
    store.forget_receipts(4, 10);
    assert!(store.unproven(5).is_empty() && store.reports().is_empty());
}

#[tokio::test]
async fn a_key_never_spends_beyond_its_budget() {
    let folder = tempfile::tempdir().unwrap();
    let store = reopen(folder.path());
    let charge = charge(Some(100), false);
    let first = begin(&store, Some(&charge), 60).await.unwrap();
    let refused = begin(&store, Some(&charge), 60).await;
    assert!(matches!(refused, Err(PayError::Budget { left: Amount(40), .. })));
    store.abandon(7, first);
    store.release(Some(&charge), Amount(60));
    let second = begin(&store, Some(&charge), 60).await.unwrap();
    answered(&store, second, 60, Some((&charge, Amount(60)))).await;
    assert!(matches!(begin(&store, Some(&charge), 41).await, Err(PayError::Budget { .. })));
    assert!(begin(&store, Some(&charge), 40).await.is_ok());
}

#[tokio::test]
async fn the_same_voucher_is_sent_until_it_is_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let key = ServiceKey::from_bytes(&[5; 32]);
    let store = reopen(folder.path());
    let index = begin(&store, None, 50).await.unwrap();
    answered(&store, index, 20, None).await;
    let call = store.voucher("c", 7, &key).await.unwrap().unwrap();
    let second = begin(&store, None, 50).await.unwrap();
    answered(&store, second, 20, None).await;
    drop(store);
    let store = reopen(folder.path());
    assert_eq!(store.voucher("c", 7, &key).await.unwrap().unwrap(), call);
    store.acknowledged(7).unwrap();
    let next = store.voucher("c", 7, &key).await.unwrap().unwrap();
    assert_eq!(next.indexes, [second]);
    store.acknowledged(7).unwrap();
    assert_eq!(store.voucher("c", 7, &key).await.unwrap(), None);
}

#[tokio::test]
async fn requests_that_are_never_answered_do_not_fill_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Segments { answers: 1_000, bytes: 4_096, kept: 2 };
    let mut store = PayerStore::open_with(folder.path(), limits).unwrap();
    let kept = begin(&store, None, 10).await.unwrap();
    for round in 0..600 {
        let index = begin(&store, None, 10).await.unwrap();
        assert_eq!(index, kept + 1 + round, "also over segments and restarts");
        store.abandon(7, index);
        if round % 250 == 200 {
            drop(store);
            store = PayerStore::open_with(folder.path(), limits).unwrap();
        }
    }
    // What was deleted is gone once what was enqueued after it is there.
    answered(&store, kept, 5, None).await;
    let files = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len());
    let bytes: u64 = files.sum();
    assert!(bytes < 4 * 4_096 + 4_096, "{bytes} bytes");
    drop(store);
    let store = PayerStore::open_with(folder.path(), limits).unwrap();
    assert_eq!((store.book(7).open(), store.book(7).committed()), (1, Amount(5)));
}
