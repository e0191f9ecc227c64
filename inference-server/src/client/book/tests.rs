//! The payer's account: order of epochs, one voucher at a time, bounds; a random run against the worker's own account,
//! which must agree at every step.

use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market::sign_voucher;
use proptest::prelude::*;

use super::*;
use crate::worker::book as worker;

fn running(index: u64, epoch: u64) -> Running {
    let request = Digest([index as u8; 32]);
    Running { request, epoch, worst: Amount(100), signed: None, prompt_tokens: 3, refused: false }
}

fn owed(index: u64, epoch: u64) -> Owed {
    Owed { receipt: Digest([index as u8; 32]), epoch, amount: Amount(10 + u128::from(index)) }
}

fn sign(book: &mut PayerBook) -> Option<VoucherCall> {
    let (voucher, indexes) = book.next_voucher("c", 7)?;
    let call = VoucherCall { voucher: sign_voucher(voucher, &ServiceKey::from_bytes(&[5; 32])), indexes };
    book.signed(call.clone());
    Some(call)
}

#[test]
fn newer_epochs_are_paid_only_when_older_answers_have_ended() {
    let mut book = PayerBook::default();
    book.begin(0, running(0, 3));
    book.begin(1, running(1, 4));
    book.finish(1, owed(1, 4));
    assert_eq!(book.next_voucher("c", 7), None, "index 0 of epoch 3 still runs");
    book.finish(0, owed(0, 3));
    let first = sign(&mut book).unwrap();
    assert_eq!((first.indexes.as_slice(), first.voucher.voucher.as_ref().unwrap().epoch), (&[0][..], 3));
    assert_eq!(book.next_voucher("c", 7), None, "one at a time");
    book.acknowledged();
    let second = sign(&mut book).unwrap();
    let voucher = second.voucher.voucher.as_ref().unwrap();
    assert_eq!((second.indexes.as_slice(), voucher.epoch, voucher.count), (&[1][..], 4, 2));
    assert_eq!(voucher.amount, "21");
    book.acknowledged();
    assert!(book.is_settled());
}

#[test]
fn an_answer_that_broke_off_is_not_paid_and_does_not_block() {
    let mut book = PayerBook::default();
    book.begin(0, running(0, 3));
    book.begin(1, running(1, 4));
    book.finish(1, owed(1, 4));
    book.abandon(0);
    assert_eq!(sign(&mut book).unwrap().indexes, [1]);
}

#[test]
fn a_refused_receipt_is_never_paid_holds_nothing_up_and_keeps_its_place() {
    let mut book = PayerBook::default();
    book.begin(0, running(0, 3));
    book.begin(1, running(1, 4));
    book.finish(1, owed(1, 4));
    book.refuse(0);
    assert_eq!(sign(&mut book).unwrap().indexes, [1], "the older epoch does not wait for it");
    book.acknowledged();
    assert!(book.is_settled());
    assert_eq!((book.open(), book.committed()), (1, Amount(111)), "it may still cost what it might have cost");
    assert_eq!(book.check(Amount(1), Amount(1_000), 1), Err(BookError::WindowFull(1)));
}

#[test]
fn window_and_funds_are_kept() {
    let mut book = PayerBook::default();
    book.begin(0, running(0, 3));
    book.finish(0, owed(0, 3));
    book.begin(1, running(1, 3));
    assert_eq!(book.check(Amount(1), Amount(1_000), 2), Err(BookError::WindowFull(2)));
    assert_eq!(book.committed(), Amount(110));
    assert_eq!(book.check(Amount(91), Amount(200), 9), Err(BookError::Funds { left: Amount(90), worst: Amount(91) }));
    assert_eq!(book.check(Amount(90), Amount(200), 9), Ok(()));
}

proptest! {
    /// Whatever order answers end in, the worker accepts every voucher, and in the end both accounts agree.
    #[test]
    fn payer_and_worker_agree(steps in prop::collection::vec((0_u8..5, any::<prop::sample::Index>()), 1..150)) {
        let key = ServiceKey::from_bytes(&[5; 32]).public_key();
        let limits = worker::SessionLimits { funds: Amount(1_000_000), window: 8 };
        let (mut payer, mut payee) = (PayerBook::default(), worker::SessionBook::default());
        let mut epoch = 1;
        for (what, which) in steps {
            let in_flight: Vec<u64> = payer.running.keys().copied().collect();
            match what {
                0 if payer.check(Amount(100), limits.funds, limits.window).is_ok() => {
                    let index = payer.next_index;
                    payer.begin(index, running(index, epoch));
                    let there = worker::Running { request: Digest([0; 32]), epoch, worst: Amount(100) };
                    prop_assert_eq!(payee.begin(index, there, limits), Ok(()));
                }
                1 | 2 if !in_flight.is_empty() => {
                    let index = *which.get(&in_flight);
                    let at = payer.running[&index].epoch;
                    if what == 1 {
                        let Owed { receipt, epoch, amount } = owed(index, at);
                        payee.finish(index, worker::Unpaid { request: Digest([0; 32]), receipt, epoch, amount });
                        payer.finish(index, owed(index, at));
                    } else {
                        payee.abandon(index);
                        payer.abandon(index);
                    }
                }
                3 => epoch += 1,
                _ => if let Some(call) = sign(&mut payer) {
                    prop_assert_eq!(payee.check("c", 7, &key, limits, &call), Ok(true));
                    payee.pay(&call);
                    payer.acknowledged();
                }
            }
        }
        for index in payer.running.keys().copied().collect::<Vec<_>>() {
            payee.abandon(index);
            payer.abandon(index);
        }
        while let Some(call) = sign(&mut payer) {
            prop_assert_eq!(payee.check("c", 7, &key, limits, &call), Ok(true));
            payee.pay(&call);
            payer.acknowledged();
        }
        prop_assert!(payer.is_settled());
        prop_assert_eq!(payee.paid(), (payer.paid, payer.count));
    }
}
