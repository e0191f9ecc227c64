//! Keys and asks hold by epoch: what was served is signed, priced and audited by the terms under which it was.

use polylink_protocol::Digest;
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market::terms_at;
use polylink_protocol::market_v1::*;

use crate::market::testbed::*;
use crate::market::{records, workers};

fn key(number: u8) -> Vec<u8> {
    ServiceKey::from_bytes(&[number; 32]).public_key().to_vec()
}

fn prices(prompt: u64, cached_prompt: u64, completion: u64) -> TokenPrices {
    TokenPrices { prompt, cached_prompt, completion }
}

fn offer(profile: &Digest, ask: TokenPrices) -> Offer {
    Offer { profile_digest: profile.to_vec(), ask: Some(ask), capacity_tokens_per_epoch: 1_000 }
}

fn update(bed: &mut Bed, receipt_key: Vec<u8>, offers: Vec<Offer>) {
    let message = MsgUpdateWorker { operator: WORKER.account(), receipt_key, offers, ..Default::default() };
    bed.send(&message).unwrap();
}

fn standing(bed: &Bed) -> Vec<(u64, Vec<u8>)> {
    let worker = records::worker(&bed.state, &WORKER).unwrap();
    worker.terms.into_iter().map(|terms| (terms.from_epoch, terms.receipt_key)).collect()
}

#[test]
fn an_update_holds_from_the_next_epoch_and_the_last_one_of_an_epoch_counts() {
    let mut bed = Bed::new(0);
    let ask = vec![offer(&bed.profile, price())];
    let same = register_worker(WORKER).offers;
    assert_eq!(standing(&bed), [(0, key(9))]);
    // Nothing new, nothing written; the endpoint alone changes at once.
    let endpoint = "http://127.0.0.1:9001".to_string();
    let message =
        MsgUpdateWorker { operator: WORKER.account(), endpoint: endpoint.clone(), offers: same, ..Default::default() };
    bed.send(&message).unwrap();
    assert_eq!(standing(&bed), [(0, key(9))]);
    assert_eq!(records::worker(&bed.state, &WORKER).unwrap().endpoint, endpoint);

    bed.until(4, 3);
    update(&mut bed, key(10), ask.clone());
    update(&mut bed, key(11), ask.clone());
    assert_eq!(standing(&bed), [(0, key(9)), (5, key(11))]);
    bed.until(5, 19);
    update(&mut bed, key(12), ask.clone());
    assert_eq!(standing(&bed), [(0, key(9)), (5, key(11)), (6, key(12))]);
    bed.until(6, 0);
    update(&mut bed, key(13), ask);
    assert_eq!(standing(&bed), [(5, key(11)), (6, key(12)), (7, key(13))]);
    let worker = records::worker(&bed.state, &WORKER).unwrap();
    assert_eq!(terms_at(&worker, 6).unwrap().receipt_key, key(12), "the epoch of the update keeps its own");
}

#[test]
fn a_commitment_after_a_rotation_names_the_key_and_the_price_of_its_epoch() {
    let mut bed = Bed::with(3, |genesis| genesis.market.params.price_gain_bps = 0);
    let dear = vec![offer(&bed.profile, prices(500, 400, 9_000))];
    let plain = vec![offer(&bed.profile, price())];
    bed.open_session(1_000);
    bed.until(1, 1);
    update(&mut bed, key(10), dear);
    // The receipts of epochs 0 and 1 were served before the update holds.
    bed.commit(0, root(2, 5)).unwrap();
    bed.until(2, 1);
    update(&mut bed, key(11), plain);
    bed.commit(1, root(2, 5)).unwrap();
    bed.until(3, 1);
    bed.commit(2, root(2, 5)).unwrap();
    for (epoch, signer, expected) in [(0, 9, price()), (1, 9, price()), (2, 10, prices(1_000, 400, 9_000))] {
        let pot = bed.pot(epoch);
        assert_eq!((pot.receipt_key, pot.price), (key(signer), Some(expected)), "epoch {epoch}");
    }
    // The samples say it too: a judge needs nothing else.
    bed.run_round(2, &[0, 1, 2], |_, _| Default::default());
    let sample = bed.round(2).samples.remove(0);
    assert_eq!((sample.epoch, sample.receipt_key, sample.price), (2, key(10), bed.pot(2).price));
    assert_eq!(sample.root, bed.pot(2).root);
}

#[test]
fn what_was_not_offered_in_the_epoch_is_not_committed() {
    let mut bed = Bed::new(0);
    let mut message = register_model();
    message.profile.as_mut().unwrap().id = "polylink/pico@1".into();
    let pico = Digest::from_slice(&bed.send(&message).unwrap().profile_digest).unwrap();
    let nano = bed.profile;
    let session = bed.open_session(1_000);
    bed.until(1, 1);
    update(&mut bed, vec![], vec![offer(&pico, price())]);
    let offered =
        |bed: &Bed, profile, epoch| workers::offers(&records::worker(&bed.state, &WORKER).unwrap(), profile, epoch);
    assert_eq!(
        [1, 2].map(|epoch| (offered(&bed, &nano, epoch), offered(&bed, &pico, epoch))),
        [(true, false), (false, true)]
    );
    let commit = |profile: &Digest, epoch| MsgCommitReceipts {
        operator: WORKER.account(),
        epoch,
        profile_digest: profile.to_vec(),
        root: Some(root(1, 5)),
        private_root: None,
    };
    assert_eq!(bed.refused(&commit(&pico, 0)), ("market", 12));
    bed.until(2, 1);
    assert_eq!(bed.refused(&commit(&pico, 1)), ("market", 12));
    // An empty root: an amount that is not redeemed would make the next epoch's pot, for late vouchers.
    bed.send(&MsgCommitReceipts { root: Some(root(0, 0)), ..commit(&nano, 1) }).unwrap();
    // A voucher leaves a pot of an epoch without the offer: there too nothing was served that could be committed to.
    bed.until(3, 1);
    let nothing = MsgCommitReceipts { root: Some(root(0, 0)), ..commit(&nano, 2) };
    assert_eq!(bed.refused(&nothing), ("market", 12));
    bed.redeem(session, 2, 5, 1).unwrap();
    assert_eq!(bed.refused(&commit(&nano, 2)), ("market", 12));
    bed.send(&nothing).unwrap();
    assert_eq!((bed.pot(2).receipt_key, bed.pot(2).price), (key(9), Some(price())));
    bed.send(&MsgCommitReceipts { root: Some(root(0, 0)), ..commit(&pico, 2) }).unwrap();
}

#[test]
fn a_worker_has_nothing_to_commit_before_its_first_epoch() {
    let mut bed = Bed::new(0);
    bed.until(3, 1);
    bed.send(&register_worker(GATEWAY)).unwrap();
    let message = |epoch| MsgCommitReceipts {
        operator: GATEWAY.account(),
        epoch,
        profile_digest: polylink_protocol::market::profile_digest(&profile()).to_vec(),
        root: Some(root(1, 5)),
        private_root: None,
    };
    assert_eq!(bed.refused(&message(2)), ("market", 12));
    bed.open_session_with(GATEWAY, 5);
    bed.until(4, 1);
    bed.send(&message(3)).unwrap();
}
