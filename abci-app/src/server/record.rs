//! Requests written down in a folder, a file for each life of a ledger, and the check of such a folder against CometBFT's
//! grammar: of a ledger that is a process of its own, and of lives that ended by a kill.
//!
//! A file has the height at which its life began, then a line for each request: connection, name, height or −1.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::connection::REQUEST_NAMES;
use super::grammar::{GrammarError, check_grammar};
use super::{LogEntry, Observer, lock};

/// Begins a life whose newest block is `height`. The observer goes into [`Options`](super::Options).
///
/// # Errors
/// Where no file can be made in the folder.
pub fn record(folder: &Path, height: u64) -> io::Result<Observer> {
    fs::create_dir_all(folder)?;
    let number = fs::read_dir(folder)?.count();
    let mut file = File::create_new(folder.join(number.to_string()))?;
    writeln!(file, "{height}")?;
    let file = Mutex::new(file);
    Ok(Arc::new(move |connection, request| {
        let LogEntry { connection, name, height } = LogEntry::of(connection, request);
        if !matches!(name, "Echo" | "Flush") {
            // A full disk stops the store, which says so; a record may be cut off.
            let _written = lock(&file).write_all(format!("{connection} {name} {}\n", height.unwrap_or(-1)).as_bytes());
        }
    }))
}

/// What is wrong with a folder of lives.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be read.
    #[error("{}: {error}", path.display())]
    File {
        /// The folder or a file in it.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file is no record.
    #[error("{}: {line:?} is no request", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// What stands there.
        line: String,
    },
    /// A life leaves the grammar.
    #[error("{}: {error}", path.display())]
    Grammar {
        /// The file.
        path: PathBuf,
        /// How.
        error: GrammarError,
    },
}

/// Checks every life in a folder; returns how many there are, and how many requests.
///
/// # Errors
/// For the first life that leaves the grammar, and for what is no record of one.
pub fn check_records(folder: &Path) -> Result<(usize, usize), RecordError> {
    let at = |path: &Path| {
        let path = path.to_path_buf();
        move |error| RecordError::File { path, error }
    };
    let (mut lives, mut requests) = (0, 0);
    for life in fs::read_dir(folder).map_err(at(folder))? {
        let path = life.map_err(at(folder))?.path();
        let text = fs::read_to_string(&path).map_err(at(&path))?;
        // The last line may have been cut off by a kill.
        let mut lines = text.rsplit_once('\n').map_or("", |(whole, _)| whole).lines();
        let no_request = |line: &str| RecordError::Line { path: path.clone(), line: line.to_owned() };
        let first = lines.next().unwrap_or_default();
        let begun = first.parse().map_err(|_| no_request(first))?;
        let entries: Vec<LogEntry> =
            lines.map(|line| parse(line).ok_or_else(|| no_request(line))).collect::<Result<_, _>>()?;
        check_grammar(&entries, begun).map_err(|error| RecordError::Grammar { path: path.clone(), error })?;
        (lives, requests) = (lives + 1, requests + entries.len());
    }
    Ok((lives, requests))
}

fn parse(line: &str) -> Option<LogEntry> {
    let mut words = line.split(' ');
    let (connection, name, height) = (words.next()?, words.next()?, words.next()?);
    let name = REQUEST_NAMES.into_iter().find(|known| *known == name)?;
    let height: i64 = height.parse().ok()?;
    Some(LogEntry { connection: connection.parse().ok()?, name, height: (height >= 0).then_some(height) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_that_leaves_the_grammar_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let life = |number: u8, text: &str| fs::write(folder.path().join(number.to_string()), text).unwrap();
        life(0, "0\n0 Info -1\n1 InitChain 1\n1 FinalizeBlock 1\n1 Commit -1\n1 FinalizeBlo");
        assert_eq!(check_records(folder.path()).unwrap(), (1, 4), "what a kill has cut off is left out");
        life(1, "1\n0 Info -1\n1 FinalizeBlock 2\n1 FinalizeBlock 3\n");
        let error = check_records(folder.path()).unwrap_err();
        assert!(matches!(error, RecordError::Grammar { .. }) && error.to_string().contains("/1: "), "{error}");
        for wrong in ["", "x\n", "1\n0 Other -1\n", "1\nInfo\n", "1\n0 Info\n"] {
            life(1, wrong);
            assert!(matches!(check_records(folder.path()), Err(RecordError::Line { .. })), "{wrong:?}");
        }
        assert!(matches!(check_records(&folder.path().join("none")), Err(RecordError::File { .. })));
    }

    #[test]
    fn each_life_has_a_file_of_its_own() {
        use tendermint_proto::v0_38::abci::{RequestEcho, RequestInfo, request};
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("requests");
        for height in [0, 7] {
            let observer = record(&folder, height).unwrap();
            observer(3, &request::Value::Echo(RequestEcho::default()));
            observer(3, &request::Value::Info(RequestInfo::default()));
        }
        let read = |number: u8| fs::read_to_string(folder.join(number.to_string())).unwrap();
        assert_eq!((read(0).as_str(), read(1).as_str()), ("0\n3 Info -1\n", "7\n3 Info -1\n"));
        assert_eq!(check_records(&folder).unwrap(), (2, 2));
    }
}
