//! The grammar that CometBFT's calls obey, checked on a [`RequestLog`](super::RequestLog).
//!
//! Source: `spec/abci/abci++_comet_expected_behavior.md` of CometBFT v0.38:
//!
//! ```text
//! start            = clean-start / recovery
//! clean-start      = init-chain [state-sync] consensus-exec
//! state-sync       = *state-sync-attempt success-sync info
//! recovery         = info consensus-exec
//! consensus-height = *consensus-round decide commit
//! ```
//!
//! `Echo`, `Flush`, `Query`, `CheckTx`, `ListSnapshots` and `LoadSnapshotChunk` may come at any time, and `Info` may besides
//! its places in the grammar. Every part of a round is optional and a round may be any one of them, so that within a height
//! any order of `PrepareProposal`, `ProcessProposal`, `ExtendVote` and `VerifyVoteExtension` is a word of the grammar; what
//! can be wrong is checked here, with the heights, on which the grammar is silent: each height is one above the last
//! commit, and no call speaks of another one. A node that syncs its state calls no `InitChain` before it (v0.38.25 does
//! not, though the grammar has it there), so that both are accepted.

use super::LogEntry;

/// Where a log leaves the grammar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("request {index} ({name}, height {height:?}) breaks the ABCI grammar: {why}")]
pub struct GrammarError {
    /// The position in the log, from 0.
    pub index: usize,
    /// The request.
    pub name: &'static str,
    /// Its height.
    pub height: Option<i64>,
    /// What rule it breaks.
    pub why: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// A new consensus connection: `InitChain` at height 0, else straight into a height.
    Start,
    /// After `InitChain`, or between two heights and within rounds.
    Height,
    /// After an offer: the number of chunks applied since, and whether `Info` came after the last of them.
    Syncing(usize, bool),
    /// After `FinalizeBlock` of this height.
    Decided(i64),
}

/// Checks a log that begins with the application at height `committed`, and returns the height that
/// it ends at. A node that restarts while the application runs on shows as a new connection.
pub fn check_grammar(log: &[LogEntry], committed: i64) -> Result<i64, GrammarError> {
    let mut committed = committed;
    let mut state = State::Start;
    let mut consensus_connection = None;
    let mut infos = 0usize;
    let mut synced = false;
    for (index, entry) in log.iter().enumerate() {
        let wrong = |why: String| GrammarError { index, name: entry.name, height: entry.height, why };
        match entry.name {
            "Info" => {
                infos += 1;
                if let State::Syncing(_, verified) = &mut state {
                    *verified = true;
                }
                continue;
            }
            "Echo" | "Flush" | "Query" | "CheckTx" | "ListSnapshots" | "LoadSnapshotChunk" => continue,
            "OfferSnapshot" | "ApplySnapshotChunk" => {
                state = match (entry.name, state) {
                    _ if committed != 0 => return Err(wrong("state sync after a commit".into())),
                    (_, State::Decided(_)) => return Err(wrong("state sync within a height".into())),
                    ("OfferSnapshot", _) => State::Syncing(0, false),
                    (_, State::Syncing(chunks, _)) => State::Syncing(chunks + 1, false),
                    _ => return Err(wrong("a chunk without an offer before it".into())),
                };
                continue;
            }
            _ => {}
        }
        if consensus_connection != Some(entry.connection) {
            consensus_connection = Some(entry.connection);
            state = if let State::Syncing(..) = state { state } else { State::Start };
        }
        if let State::Syncing(chunks, verified) = state {
            if chunks == 0 {
                return Err(wrong("consensus begins although the last offer was never applied".into()));
            }
            if !verified {
                return Err(wrong("consensus begins although no Info has verified the restored state".into()));
            }
            (state, synced, infos) = (State::Height, true, 0);
        }
        // Each recovery has an Info of its own.
        let informed = if state == State::Start { std::mem::take(&mut infos) > 0 } else { true };
        state = match (entry.name, state) {
            ("InitChain", State::Start) if committed == 0 => {
                committed = entry.height.unwrap_or(1).max(1) - 1;
                State::Height
            }
            ("InitChain", _) => return Err(wrong(format!("the chain is begun already, at height {committed}"))),
            (_, State::Start) if committed == 0 => return Err(wrong("the first call must be InitChain".into())),
            (_, State::Start) if !informed => return Err(wrong("a recovery must begin with Info".into())),
            ("Commit", State::Decided(height)) => {
                committed = height;
                State::Height
            }
            ("Commit", _) => return Err(wrong("no FinalizeBlock before it".into())),
            (_, State::Decided(height)) => return Err(wrong(format!("height {height} is decided and not committed"))),
            (name, _) => {
                let height = entry.height.unwrap_or_default();
                if synced {
                    (committed, synced) = (height - 1, false);
                }
                if height != committed + 1 {
                    return Err(wrong(format!("the last commit is of height {committed}")));
                }
                if name == "FinalizeBlock" { State::Decided(height) } else { State::Height }
            }
        };
    }
    Ok(committed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `"1 Prepare 3"`: connection, name, height.
    fn log(lines: &[&str]) -> Vec<LogEntry> {
        let names = ["Info", "InitChain", "PrepareProposal", "ProcessProposal", "FinalizeBlock", "Commit", "CheckTx"];
        let more = ["ExtendVote", "VerifyVoteExtension", "OfferSnapshot", "ApplySnapshotChunk", "Query"];
        let parse = |line: &&str| {
            let mut words = line.split_whitespace();
            let connection = words.next().unwrap().parse().unwrap();
            let word = words.next().unwrap();
            let name = *names.iter().chain(&more).find(|name| **name == word).unwrap();
            LogEntry { connection, name, height: words.next().map(|height| height.parse().unwrap()) }
        };
        lines.iter().map(parse).collect()
    }

    #[test]
    fn accepts_what_the_specification_allows() {
        let clean = ["0 Info", "3 InitChain 1", "3 PrepareProposal 1", "3 ProcessProposal 1", "2 CheckTx"];
        let first = ["3 FinalizeBlock 1", "0 Query", "3 Commit"];
        let second = ["3 ProcessProposal 2", "3 VerifyVoteExtension 2", "3 ProcessProposal 2", "3 FinalizeBlock 2"];
        let restart = ["4 Info", "7 FinalizeBlock 2", "7 Commit", "7 FinalizeBlock 3", "7 Commit"];
        let all: Vec<&str> = clean.into_iter().chain(first).chain(second).chain(restart).collect();
        assert_eq!(check_grammar(&log(&all), 0), Ok(3));
        assert_eq!(check_grammar(&log(&["0 Info", "3 PrepareProposal 8"]), 7), Ok(7));
        let sync = ["3 InitChain 1", "2 OfferSnapshot", "2 OfferSnapshot", "2 ApplySnapshotChunk", "0 Info"];
        let sync: Vec<&str> = sync.into_iter().chain(["3 FinalizeBlock 50", "3 Commit"]).collect();
        assert_eq!(check_grammar(&log(&sync), 0), Ok(50));
    }

    #[test]
    fn names_the_rule_that_is_broken() {
        let cases: [(&[&str], i64, &str); 12] = [
            (&["3 FinalizeBlock 1"], 0, "first call must be InitChain"),
            (&["3 InitChain 1", "3 InitChain 1"], 0, "begun already"),
            (&["3 InitChain 1"], 5, "begun already"),
            (&["3 FinalizeBlock 6"], 5, "begin with Info"),
            (&["3 Info", "3 Commit"], 5, "no FinalizeBlock"),
            (&["3 Info", "3 FinalizeBlock 7"], 5, "last commit is of height 5"),
            (&["3 Info", "3 FinalizeBlock 6", "3 PrepareProposal 7"], 5, "decided and not committed"),
            (&["3 InitChain 1", "2 ApplySnapshotChunk"], 0, "without an offer"),
            (&["3 InitChain 1", "2 OfferSnapshot", "3 FinalizeBlock 9"], 0, "never applied"),
            (&["0 Info", "2 OfferSnapshot", "2 ApplySnapshotChunk", "3 FinalizeBlock 9"], 0, "no Info has verified"),
            (&["0 Info", "3 FinalizeBlock 6", "3 Commit", "2 OfferSnapshot"], 5, "after a commit"),
            (&["0 Info", "3 FinalizeBlock 6", "3 Commit", "7 FinalizeBlock 7"], 5, "begin with Info"),
        ];
        for (lines, committed, why) in cases {
            let error = check_grammar(&log(lines), committed).unwrap_err();
            assert!(error.why.contains(why), "{lines:?}: {error}");
            assert_eq!(error.index, lines.len() - 1);
        }
    }

    /// Derives words by the rules as they are written, one function each.
    struct Derive<'a> {
        bits: &'a [u8],
        word: Vec<LogEntry>,
        height: i64,
        connection: u64,
    }

    impl Derive<'_> {
        fn choose(&mut self, options: u8) -> u8 {
            let Some((first, rest)) = self.bits.split_first() else { return 0 };
            self.bits = rest;
            first % options
        }
        fn call(&mut self, name: &'static str, height: Option<i64>) {
            self.word.push(LogEntry { connection: self.connection, name, height });
        }
        fn got_votes(&mut self) {
            for _ in 0..self.choose(3) {
                self.call("VerifyVoteExtension", Some(self.height));
            }
        }
        fn extend(&mut self) {
            self.got_votes();
            self.call("ExtendVote", Some(self.height));
            self.got_votes();
        }
        fn round(&mut self) {
            self.got_votes();
            let proposer = self.choose(2) == 1;
            if proposer && self.choose(2) == 1 {
                self.call("PrepareProposal", Some(self.height));
            }
            if self.choose(2) == 1 {
                self.call("ProcessProposal", Some(self.height));
            }
            if self.choose(2) == 1 {
                self.extend();
            }
        }
        fn consensus_exec(&mut self) {
            for _ in 0..1 + self.choose(4) {
                for _ in 0..self.choose(3) {
                    self.round();
                }
                self.call("FinalizeBlock", Some(self.height));
                self.call("Commit", None);
                self.height += 1;
            }
        }
        fn state_sync(&mut self) {
            for _ in 0..self.choose(3) {
                self.call("OfferSnapshot", None);
                for _ in 0..self.choose(3) {
                    self.call("ApplySnapshotChunk", None);
                }
            }
            self.call("OfferSnapshot", None);
            for _ in 0..1 + self.choose(3) {
                self.call("ApplySnapshotChunk", None);
            }
            self.call("Info", None);
            self.height += i64::from(self.choose(200));
        }
        fn clean_start(&mut self) {
            self.call("InitChain", Some(1));
            if self.choose(2) == 1 {
                self.state_sync();
            }
            self.consensus_exec();
        }
        fn recovery(&mut self) {
            self.connection += 4;
            self.call("Info", None);
            self.consensus_exec();
        }
    }

    fn derive(bits: &[u8]) -> (Vec<LogEntry>, i64) {
        let mut derive = Derive { bits, word: Vec::new(), height: 1, connection: 3 };
        derive.clean_start();
        for _ in 0..derive.choose(3) {
            derive.recovery();
        }
        (derive.word, derive.height - 1)
    }

    proptest::proptest! {
        /// Every word of the grammar is taken, with all its beginnings; without one of the calls that it cannot do without,
        /// none is.
        #[test]
        fn takes_the_words_of_the_grammar_and_no_others(
            bits in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..120),
            at in proptest::prelude::any::<proptest::sample::Index>(),
        ) {
            let (word, height) = derive(&bits);
            proptest::prop_assert_eq!(check_grammar(&word, 0), Ok(height));
            proptest::prop_assert!(check_grammar(&word[..at.index(word.len())], 0).is_ok());
            for (index, entry) in word.iter().enumerate() {
                let last = index + 1 == word.len();
                let mut without = word.clone();
                without.remove(index);
                // The chunk that is the only one of its offer, where consensus follows.
                let sole = entry.name == "ApplySnapshotChunk"
                    && word[index - 1].name == "OfferSnapshot"
                    && word[index + 1].name == "Info";
                // A synced node's log may be without it.
                let begins = entry.name == "InitChain" && !last && word[index + 1].name != "OfferSnapshot";
                let needed = matches!(entry.name, "Info" | "FinalizeBlock" | "Commit") || sole || begins;
                if needed && !last {
                    proptest::prop_assert!(check_grammar(&without, 0).is_err(), "without {} ({})", index, entry.name);
                }
                let mut twice = word.clone();
                twice.insert(index, *entry);
                if matches!(entry.name, "InitChain" | "FinalizeBlock" | "Commit") {
                    proptest::prop_assert!(check_grammar(&twice, 0).is_err(), "twice {} ({})", index, entry.name);
                }
            }
        }
    }
}
