//! The account of a session: tables of refusals, and random runs against an obvious model.

use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market::sign_voucher;
use polylink_protocol::market_v1::Voucher;
use proptest::prelude::*;

use super::*;

const LIMITS: SessionLimits = SessionLimits { funds: Amount(1_000), window: 4 };

fn key() -> ServiceKey {
    ServiceKey::from_bytes(&[5; 32])
}

fn running(epoch: u64, worst: u128) -> Running {
    Running { request: Digest([1; 32]), epoch, worst: Amount(worst) }
}

fn unpaid(index: u64, epoch: u64, amount: u128) -> Unpaid {
    Unpaid { request: Digest([1; 32]), receipt: Digest([index as u8; 32]), epoch, amount: Amount(amount) }
}

fn served(indexes: &[u64]) -> SessionBook {
    let mut book = SessionBook::default();
    for index in indexes {
        book.begin(*index, running(3, 100), LIMITS).unwrap();
        book.finish(*index, unpaid(*index, 3, 10));
    }
    book
}

fn voucher(book: &SessionBook, indexes: &[u64], change: impl FnOnce(&mut Voucher)) -> VoucherCall {
    let hash = indexes.iter().fold(book.receipts_hash, |h, i| chain_receipt(h, Digest([*i as u8; 32])));
    let mut voucher = Voucher {
        chain_id: "c".into(),
        session: 7,
        epoch: 3,
        amount: (book.paid.0 + 10 * indexes.len() as u128).to_string(),
        count: book.paid_count + indexes.len() as u64,
        receipts_hash: hash.to_vec(),
    };
    change(&mut voucher);
    VoucherCall { voucher: sign_voucher(voucher, &key()), indexes: indexes.to_vec() }
}

fn check(book: &SessionBook, call: &VoucherCall) -> Result<bool, VoucherError> {
    book.check("c", 7, &key().public_key(), LIMITS, call)
}

#[test]
fn an_index_is_answered_once() {
    let mut book = served(&[0, 2]);
    for used in [0, 2] {
        assert_eq!(book.begin(used, running(3, 1), LIMITS), Err(BeginError::IndexUsed(used)));
    }
    book.begin(1, running(3, 1), LIMITS).unwrap();
    book.abandon(1);
    assert_eq!(book.begin(1, running(3, 1), LIMITS), Err(BeginError::IndexUsed(1)));
    assert_eq!((book.used_below, book.used.len()), (3, 0));
}

#[test]
fn gaps_in_the_indexes_do_not_grow_without_end() {
    let mut book = SessionBook::default();
    for index in (0..20_000).step_by(2) {
        book.begin(index, running(3, 1), LIMITS).unwrap();
        book.abandon(index);
    }
    assert!(book.used.len() <= INDEX_SPAN);
    assert!(book.is_used(1) && !book.is_used(19_999));
}

#[test]
fn window_and_funds_bound_what_can_be_lost() {
    let mut book = served(&[0, 1, 2]);
    book.begin(3, running(3, 100), LIMITS).unwrap();
    assert_eq!(book.begin(4, running(3, 1), LIMITS), Err(BeginError::WindowFull { unpaid: 4, window: 4 }));
    book.abandon(3);
    // 30 are unpaid, so 970 of 1,000 are left.
    let refused = book.begin(4, running(3, 971), LIMITS);
    assert_eq!(refused, Err(BeginError::Funds { worst: Amount(971), left: Amount(970), funds: Amount(1_000) }));
    book.begin(4, running(3, 970), LIMITS).unwrap();
}

#[test]
fn a_voucher_pays_exactly_what_it_names() {
    let mut book = served(&[0, 1, 2]);
    let call = voucher(&book, &[0, 2], |_| ());
    assert_eq!(check(&book, &call), Ok(true));
    book.pay(&call);
    assert_eq!(book.paid(), (Amount(20), 2));
    assert_eq!(check(&book, &call), Ok(false), "the same one again is acknowledged again");
    let rest = voucher(&book, &[1], |_| ());
    assert_eq!(check(&book, &rest), Ok(true));
    book.pay(&rest);
    assert!(book.unpaid().is_empty());
    assert_eq!(book.redeemable(2), None);
    assert_eq!(book.redeemable(3), Some(&rest.voucher));
    book.redeemed(Amount(30));
    assert!(book.is_idle());
}

#[test]
fn forged_vouchers_are_refused() {
    let book = served(&[0, 1]);
    let field = |call: &VoucherCall| match check(&book, call) {
        Err(VoucherError::Other { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(&voucher(&book, &[0], |v| v.chain_id = "d".into())), "chain_id");
    assert_eq!(field(&voucher(&book, &[0], |v| v.session = 8)), "session");
    assert_eq!(field(&voucher(&book, &[0], |v| v.amount = "9".into())), "amount");
    assert_eq!(field(&voucher(&book, &[0], |v| v.amount = "11".into())), "amount");
    assert_eq!(field(&voucher(&book, &[0], |v| v.count = 2)), "count");
    assert_eq!(field(&voucher(&book, &[0], |v| v.receipts_hash = vec![0; 32])), "receipts_hash");
    assert_eq!(field(&voucher(&book, &[0], |v| v.epoch = 4)), "epoch");
    assert_eq!(check(&book, &voucher(&book, &[5], |_| ())), Err(VoucherError::NotUnpaid(5)));
    assert_eq!(check(&book, &voucher(&book, &[], |_| ())), Err(VoucherError::Order));
    assert_eq!(check(&book, &voucher(&book, &[1, 0], |_| ())), Err(VoucherError::Order));
    let mut altered = voucher(&book, &[0], |_| ());
    altered.voucher.signature[0] ^= 1;
    assert!(matches!(check(&book, &altered), Err(VoucherError::Object(_))));
    let mut unsigned = voucher(&book, &[0], |_| ());
    unsigned.voucher.voucher = None;
    assert!(matches!(check(&book, &unsigned), Err(VoucherError::Object(_))));
    let poor = SessionLimits { funds: Amount(9), window: 4 };
    let call = voucher(&book, &[0], |_| ());
    let refused = book.check("c", 7, &key().public_key(), poor, &call);
    assert_eq!(refused, Err(VoucherError::Funds { amount: Amount(10), funds: Amount(9) }));
}

proptest! {
    /// Whatever happens in whatever order: paid + unpaid is what was served, and the bounds hold.
    #[test]
    fn nothing_is_paid_twice_or_lost(steps in prop::collection::vec((0_u8..4, 0_u64..12), 1..200)) {
        let mut book = SessionBook::default();
        let mut served = 0_u128;
        for (what, index) in steps {
            match what {
                0 => drop(book.begin(index, running(3, 100), LIMITS)),
                1 => book.abandon(index),
                2 if book.running.contains_key(&index) => {
                    book.finish(index, unpaid(index, 3, 10));
                    served += 10;
                }
                _ => {
                    let indexes: Vec<u64> = book.unpaid().keys().copied().filter(|i| *i <= index).collect();
                    let call = voucher(&book, &indexes, |_| ());
                    // An empty one that repeats the newest voucher is acknowledged; any other empty one is refused.
                    prop_assert!(check(&book, &call) == Ok(true) || indexes.is_empty());
                    prop_assert!(check(&book, &call) != Ok(true) || !indexes.is_empty());
                    if !indexes.is_empty() {
                        book.pay(&call);
                    }
                }
            }
            let owed: u128 = book.unpaid().values().map(|u| u.amount.0).sum();
            prop_assert_eq!(book.paid.0 + owed, served);
            prop_assert!(book.running.len() + book.unpaid.len() <= LIMITS.window as usize);
            prop_assert!(book.running.keys().all(|i| !book.unpaid.contains_key(i) && book.is_used(*i)));
        }
    }
}
