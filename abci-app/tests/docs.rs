//! What `docs/state-keys.md` says is what the code does: every prefix stands there once, and the gas table is in force.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

use polylink_abci_app::gas::COSTS;

fn rust_files(folder: &Path, out: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

#[test]
fn every_prefix_is_in_the_table_once() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = std::fs::read_to_string(root.join("../docs/state-keys.md")).unwrap();
    let mut files = Vec::new();
    rust_files(&root.join("src"), &mut files);
    let mut prefixes = BTreeSet::new();
    for file in files {
        for line in std::fs::read_to_string(&file).unwrap().lines() {
            let Some((_, value)) = line.split_once(": u8 = 0x") else { continue };
            let prefix = format!("0x{}", value.trim_end_matches(';'));
            let rows = table.matches(&format!("| `{prefix}` |")).count();
            assert_eq!(rows, 1, "{prefix} of {} in docs/state-keys.md", file.display());
            assert!(prefixes.insert(prefix.clone()), "{prefix} is the prefix of two tables");
        }
    }
    let rows = table.lines().filter(|line| line.starts_with("| `0x")).count();
    assert_eq!(prefixes.len(), rows, "the table has rows that no code writes");
}

#[test]
fn the_gas_table_is_in_force() {
    let table = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/state-keys.md")).unwrap();
    for (work, gas) in [
        ("byte of the transaction", COSTS.tx_byte),
        ("secp256k1 signature", COSTS.signature),
        ("message", COSTS.message),
        ("key looked up, or pair of a scan", COSTS.read),
        ("byte of a value read", COSTS.read_byte),
        ("key written or deleted", COSTS.write),
        ("byte of a key or value written", COSTS.write_byte),
        ("ed25519 signature or VRF proof in a message", COSTS.proof),
    ] {
        let gas = if gas >= 1_000 { format!("{},{:03}", gas / 1_000, gas % 1_000) } else { gas.to_string() };
        assert!(table.contains(&format!("| {work} | {gas} |")), "{work}: {gas}");
    }
}
