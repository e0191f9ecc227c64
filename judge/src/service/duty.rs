//! What a judge has to do for one round now. Pure.

use polylink_protocol::market_v1::Params;
use polylink_protocol::tiqe_v1::Round;

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

/// By the block that comes next, and what the round shows of this judge. An epoch without receipts has no round.
pub(super) fn duty(params: &Params, height: u64, audited: u64, round: &Round, me: &str, scored: bool) -> Duty {
    let next = height + 1;
    let first = audited.saturating_add(1).saturating_mul(params.epoch_blocks);
    let Some(offset) = next.checked_sub(first) else { return Duty::None };
    let beacon = params.receipts_window_blocks;
    let commit = beacon + params.beacon_window_blocks;
    let reveal = commit + params.commit_window_blocks;
    let settle = reveal + params.reveal_window_blocks;
    let seat = round.seats.iter().find(|s| s.judge == me);
    if (beacon..commit).contains(&offset) {
        let waited_for = round.outputs.iter().all(|o| o.judge != me);
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

/// Blocks after this height that may still hold the commitment of a round.
pub(super) fn blocks_to_commit(params: &Params, height: u64, audited: u64) -> u64 {
    let first = audited.saturating_add(1).saturating_mul(params.epoch_blocks);
    let windows = params.receipts_window_blocks + params.beacon_window_blocks + params.commit_window_blocks;
    first.saturating_add(windows).saturating_sub(height.saturating_add(1))
}

/// Blocks after this height that may still hold the vote of a trial that is decided with the end of `deadline`. One epoch
/// is time enough: the others wait for each vote.
pub(super) fn blocks_to_vote(params: &Params, height: u64, deadline: u64) -> u64 {
    let end = deadline.saturating_add(1).saturating_mul(params.epoch_blocks);
    end.saturating_sub(height.saturating_add(1)).min(params.epoch_blocks)
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
        duty(&params(), next - 1, 4, round, "me", scored)
    }

    #[test]
    fn blocks_left_are_those_that_the_ledger_takes() {
        // The commit window over epoch 4 is the blocks 109 to 113.
        for (height, left) in [(108, 5), (109, 4), (112, 1), (113, 0), (200, 0)] {
            assert_eq!(blocks_to_commit(&params(), height, 4), left, "at height {height}");
        }
        // Votes are taken to the end of epoch 6, block 139.
        for (height, left) in [(50, 20), (130, 9), (138, 1), (139, 0), (500, 0)] {
            assert_eq!(blocks_to_vote(&params(), height, 6), left, "at height {height}");
        }
    }

    #[test]
    fn duties_follow_the_windows() {
        let mut round = Round::default();
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
