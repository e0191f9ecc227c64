//! What a judge must not lose: salt and scores of a round, from before the commitment until after the reveal. And what
//! it noted of each sample, for people (`findings.jsonl`).

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use polylink_protocol::tiqe_v1::Scores;
use polylink_protocol::{Digest, hex_bytes};
use serde::{Deserialize, Serialize};

use crate::{Finding, JudgeError};

/// `findings.jsonl` is begun anew beyond this size; one older file is kept.
const FINDINGS_BYTES_MAX: u64 = 8 << 20;

/// One round's secret and content.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    /// Of the commitment.
    pub(super) salt: [u8; 32],
    /// As committed.
    pub(super) scores: Scores,
}

#[derive(Serialize, Deserialize)]
struct OnDisk {
    #[serde(with = "hex_bytes")]
    salt: Vec<u8>,
    scores: Scores,
}

/// The folder.
pub(super) struct Journal {
    rounds: PathBuf,
    findings: PathBuf,
}

impl Journal {
    /// Makes the folders.
    pub(super) fn open(home: &Path) -> Result<Self, JudgeError> {
        let rounds = home.join("rounds");
        fs::create_dir_all(&rounds).map_err(|e| failed(&rounds, &e))?;
        Ok(Self { rounds, findings: home.join("findings.jsonl") })
    }

    fn file(&self, epoch: u64, profile: &Digest) -> PathBuf {
        self.rounds.join(format!("{epoch:012}-{profile}.json"))
    }

    /// What was stored of a round.
    pub(super) fn load(&self, epoch: u64, profile: &Digest) -> Result<Option<Entry>, JudgeError> {
        let path = self.file(epoch, profile);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(&path, &e)),
        };
        let disk: OnDisk = serde_json::from_slice(&text).map_err(|e| failed(&path, &e))?;
        let salt = disk.salt.try_into().map_err(|_| failed(&path, &"the salt has not 32 bytes"))?;
        Ok(Some(Entry { salt, scores: disk.scores }))
    }

    /// Durable when it returns: written aside, synced, renamed, and the folder synced.
    pub(super) fn store(&self, epoch: u64, profile: &Digest, entry: &Entry) -> Result<(), JudgeError> {
        let path = self.file(epoch, profile);
        let partial = path.with_extension("partial");
        let disk = OnDisk { salt: entry.salt.to_vec(), scores: entry.scores.clone() };
        let text = serde_json::to_vec(&disk).map_err(|e| failed(&path, &e))?;
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&partial)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&partial, &path)?;
            File::open(&self.rounds)?.sync_all()
        };
        write().map_err(|e| failed(&path, &e))
    }

    /// Drops rounds that are over.
    pub(super) fn forget_before(&self, epoch: u64) -> Result<(), JudgeError> {
        for entry in fs::read_dir(&self.rounds).map_err(|e| failed(&self.rounds, &e))?.flatten() {
            let name = entry.file_name();
            let of = name.to_str().and_then(|n| n.split('-').next()).and_then(|n| n.parse::<u64>().ok());
            if of.is_some_and(|of| of < epoch) {
                fs::remove_file(entry.path()).map_err(|e| failed(&entry.path(), &e))?;
            }
        }
        Ok(())
    }

    /// A line for people; losing one loses nothing.
    pub(super) fn note(&self, epoch: u64, worker: &str, finding: Option<&Finding>) {
        let line = match finding {
            None => serde_json::json!({"epoch": epoch, "worker": worker, "missing": true}),
            Some(f) => serde_json::json!({
                "epoch": epoch, "worker": worker, "cross_bps": f.score.cross_bps,
                "llm_bps": f.score.has_llm.then_some(f.score.llm_bps), "tokens": f.score.tokens,
                "token_mismatches": f.score.token_mismatches, "margin": f.margin, "sketch_error": f.sketch_error,
                "mismatch": f.mismatch, "evidence_milli": f.score.evidence_milli,
            }),
        };
        if fs::metadata(&self.findings).is_ok_and(|m| m.len() > FINDINGS_BYTES_MAX) {
            let _ = fs::rename(&self.findings, self.findings.with_extension("jsonl.1"));
        }
        let written =
            OpenOptions::new().create(true).append(true).open(&self.findings).and_then(|mut f| writeln!(f, "{line}"));
        if let Err(error) = written {
            tracing::warn!(%error, "a finding was not written down");
        }
    }
}

fn failed(path: &Path, reason: &impl ToString) -> JudgeError {
    JudgeError::Journal { path: path.into(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polylink_protocol::tiqe_v1::Score;

    #[test]
    fn a_round_survives_a_restart_and_is_forgotten_when_over() {
        let home = tempfile::tempdir().unwrap();
        let profile = Digest([3; 32]);
        let entry = Entry { salt: [9; 32], scores: Scores { scores: vec![Score { sample: 1, ..Default::default() }] } };
        Journal::open(home.path()).unwrap().store(7, &profile, &entry).unwrap();
        let journal = Journal::open(home.path()).unwrap();
        assert_eq!(journal.load(7, &profile).unwrap(), Some(entry));
        assert_eq!(journal.load(8, &profile).unwrap(), None);
        journal.forget_before(8).unwrap();
        assert_eq!(journal.load(7, &profile).unwrap(), None);
    }

    #[test]
    fn a_damaged_entry_is_named() {
        let home = tempfile::tempdir().unwrap();
        let journal = Journal::open(home.path()).unwrap();
        let path = journal.file(1, &Digest([0; 32]));
        fs::write(&path, "{\"salt\":\"00\",\"scores\":{\"scores\":[]}}").unwrap();
        let error = journal.load(1, &Digest([0; 32])).unwrap_err().to_string();
        assert!(error.contains("32 bytes") && error.contains("000000000001-"), "{error}");
    }
}
