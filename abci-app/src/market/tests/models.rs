//! A provider changes its royalty: running epochs keep their terms.

use polylink_protocol::market::royalty_at;
use polylink_protocol::market_v1::*;

use crate::market::records;
use crate::market::testbed::*;

fn update(bed: &Bed, royalty_bps: u32) -> MsgUpdateModel {
    MsgUpdateModel { provider: PROVIDER.account(), profile_digest: bed.profile.to_vec(), royalty_bps }
}

#[test]
fn a_royalty_holds_from_the_epoch_after_the_next_one() {
    let mut bed = Bed::new(0);
    let session = bed.open_session(1_000_000);
    // Epoch 0 settles late in epoch 1, when the change has been made; it keeps its 5 %, as epochs 1 and 2 do.
    bed.until(1, 1);
    let message = update(&bed, 2_000);
    assert_eq!(bed.send(&message).unwrap().from_epoch, 3);
    for (epoch, royalty) in [(0, 475), (1, 475), (2, 475), (3, 1_900), (4, 1_900)] {
        bed.until(epoch + 1, 2);
        bed.commit(epoch, root(1, 10_000)).unwrap();
        bed.redeem(session, epoch, 10_000 * (u128::from(epoch) + 1), epoch + 1).unwrap();
        bed.until(epoch + 1, 19);
        assert_eq!(bed.pot(epoch).royalty, royalty.to_string(), "epoch {epoch}");
    }
    let model = records::model(&bed.state, &bed.profile).unwrap();
    assert_eq!([0, 2, 3, 9].map(|epoch| royalty_at(&model, epoch)), [500, 500, 2_000, 2_000]);
}

#[test]
fn the_last_change_of_an_epoch_counts_and_entries_are_bounded() {
    let mut bed = Bed::new(0);
    for royalty_bps in [100, 200] {
        let message = update(&bed, royalty_bps);
        bed.send(&message).unwrap();
    }
    let royalties = |bed: &Bed| records::model(&bed.state, &bed.profile).unwrap().royalties;
    assert_eq!(royalties(&bed).iter().map(|r| (r.from_epoch, r.royalty_bps)).collect::<Vec<_>>(), [(0, 500), (2, 200)]);
    // What no pot needs any more is dropped.
    for epoch in 1..40 {
        bed.until(epoch, 1);
        let message = update(&bed, 300 + epoch as u32);
        bed.send(&message).unwrap();
        let entries = royalties(&bed);
        assert!(entries.len() <= 4, "{entries:?}");
        assert!(royalty_at(&records::model(&bed.state, &bed.profile).unwrap(), epoch + 2) == 300 + epoch as u32);
    }
}

#[test]
fn changes_of_models_are_refused_by_name() {
    let mut bed = Bed::new(0);
    let good = update(&bed, 5_000);
    for (message, code) in [
        (MsgUpdateModel { provider: STRANGER.account(), ..good.clone() }, 39),
        (MsgUpdateModel { royalty_bps: 5_001, ..good.clone() }, 6),
        (MsgUpdateModel { profile_digest: vec![7; 32], ..good.clone() }, 2),
        (MsgUpdateModel { profile_digest: vec![7; 31], ..good.clone() }, 4),
    ] {
        assert_eq!(bed.refused(&message), ("market", code), "{message:?}");
    }
    bed.send(&good).unwrap();
}
