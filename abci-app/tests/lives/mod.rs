//! The requests of a ledger that is a process of its own: every life of it writes them down in a file, and whoever has
//! started it checks them against CometBFT's grammar, lives that ended by a kill too.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use polylink_abci_app::server::{LogEntry, Observer, check_grammar};

/// Begins a life of the ledger at `home` whose newest block is `height`: its file has the height, then a line for each
/// request.
pub fn begin(home: &Path, height: u64) -> Observer {
    let folder = home.join("lives");
    fs::create_dir_all(&folder).unwrap();
    let number = fs::read_dir(&folder).unwrap().count();
    let mut file = File::create(folder.join(number.to_string())).unwrap();
    writeln!(file, "{height}").unwrap();
    let log = Mutex::new(file);
    Arc::new(move |connection, request| {
        let LogEntry { connection, name, height } = LogEntry::of(connection, request);
        writeln!(log.lock().unwrap(), "{connection} {name} {}", height.unwrap_or(-1)).unwrap();
    })
}

/// Checks every life; returns how many there were, and how many requests.
pub fn check(home: &Path) -> (usize, usize) {
    const NAMES: [&str; 9] = [
        "Info",
        "InitChain",
        "CheckTx",
        "Query",
        "PrepareProposal",
        "ProcessProposal",
        "FinalizeBlock",
        "Commit",
        "ListSnapshots",
    ];
    let (mut lives, mut requests) = (0, 0);
    for life in fs::read_dir(home.join("lives")).unwrap() {
        let text = fs::read_to_string(life.unwrap().path()).unwrap();
        // The last line may have been cut off by the kill.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let mut lines = whole.lines();
        let begun: i64 = lines.next().unwrap().parse().unwrap();
        let entries =
            lines.map(|line| line.split(' ').collect::<Vec<_>>()).filter(|line| !matches!(line[1], "Echo" | "Flush"));
        let entries: Vec<LogEntry> = entries
            .map(|line| LogEntry {
                connection: line[0].parse().unwrap(),
                name: NAMES.into_iter().find(|name| *name == line[1]).unwrap_or_else(|| panic!("{line:?}")),
                height: line[2].parse().ok().filter(|height| *height >= 0),
            })
            .collect();
        assert!(check_grammar(&entries, begun).is_ok(), "{:?}", check_grammar(&entries, begun));
        (lives, requests) = (lives + 1, requests + entries.len());
    }
    (lives, requests)
}
