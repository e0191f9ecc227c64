//! What a judge has to do for one round now. Pure.

use polylink_protocol::market_v1::Params;
use polylink_protocol::tiqe_v1::Round;

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Duty {
    /// Nothing, or nothing any more.
    None,
    /// Send the VRF proof.
    Beacon,
    /// Score and commit.
    Commit,
    /// Reveal.
    Reveal,
}

/// By the block that comes next, and what the round shows of this judge.
pub(super) fn duty(params: &Params, height: u64, audited: u64, round: Option<&Round>, me: &str, scored: bool) -> Duty {
    let next = height + 1;
    let first = audited.saturating_add(1).saturating_mul(params.epoch_blocks);
    let Some(offset) = next.checked_sub(first) else { return Duty::None };
    let beacon = params.receipts_window_blocks;
    let commit = beacon + params.beacon_window_blocks;
    let reveal = commit + params.commit_window_blocks;
    let settle = reveal + params.reveal_window_blocks;
    let seat = round.and_then(|r| r.seats.iter().find(|s| s.judge == me));
    if (beacon..commit).contains(&offset) {
        // The ledger opens a round when receipts are committed; an epoch without any has none.
        let waited_for = round.is_some_and(|r| r.outputs.iter().all(|o| o.judge != me));
        return if waited_for { Duty::Beacon } else { Duty::None };
    }
    match seat {
        Some(seat) if (commit..reveal).contains(&offset) && seat.commitment.is_empty() => Duty::Commit,
        Some(seat)
            if (reveal..settle).contains(&offset)
                && !seat.commitment.is_empty()
                && seat.revealed.is_none()
                && scored =>
        {
            Duty::Reveal
        }
        _ => Duty::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polylink_protocol::tiqe_v1::{BeaconOutput, Scores, Seat};

    fn params() -> Params {
        Params {
            epoch_blocks: 20,
            receipts_window_blocks: 5,
            beacon_window_blocks: 4,
            commit_window_blocks: 5,
            reveal_window_blocks: 4,
            ..Default::default()
        }
    }

    fn at(next: u64, round: &Round, scored: bool) -> Duty {
        duty(&params(), next - 1, 4, Some(round), "me", scored)
    }

    #[test]
    fn duties_follow_the_windows() {
        let mut round = Round::default();
        assert_eq!(duty(&params(), 105, 4, None, "me", false), Duty::None, "an idle epoch has no round");
        // The round over epoch 4 runs in the blocks 100 to 119.
        for (next, expected) in
            [(99, Duty::None), (104, Duty::None), (105, Duty::Beacon), (108, Duty::Beacon), (109, Duty::None)]
        {
            assert_eq!(at(next, &round, false), expected, "block {next}");
        }
        round.outputs.push(BeaconOutput { judge: "me".into(), beta: vec![] });
        assert_eq!(at(105, &round, false), Duty::None);
        round.seats.push(Seat { judge: "other".into(), seats: 1, ..Default::default() });
        assert_eq!(at(110, &round, false), Duty::None);
        round.seats.push(Seat { judge: "me".into(), seats: 1, ..Default::default() });
        assert_eq!(at(110, &round, false), Duty::Commit);
        assert_eq!(at(114, &round, true), Duty::None, "what was not committed is not revealed");
        round.seats[1].commitment = vec![1; 32];
        assert_eq!(at(110, &round, true), Duty::None);
        assert_eq!(at(114, &round, true), Duty::Reveal);
        assert_eq!(at(114, &round, false), Duty::None, "scores that are lost cannot be revealed");
        assert_eq!(at(118, &round, true), Duty::None);
        round.seats[1].revealed = Some(Scores::default());
        assert_eq!(at(115, &round, true), Duty::None);
    }
}
