//! The ledger dies: at each crash point of commit, snapshot and restore; with a journal written in part; by `kill -9`, two
//! hundred times. Each time it starts again at a height it had told of or the one after, with that height's hash.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tendermint_abci::Application;
use tendermint_proto::google::protobuf::Timestamp;
use tendermint_proto::v0_38::abci as pb;

use polylink_protocol::cosmos::cosmos::bank::v1beta1::MsgSend;
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::tx::{SignContext, any, sign_direct};
use polylink_protocol::{Amount, DENOM};

use crate::app::{App, SnapshotConfig};
use crate::chain::SCHEMA_VERSION;
use crate::store::fault::CRASH_AT;
use crate::store::{AppHash, CHUNK_BYTES_MAX, Store};
use crate::testing::{CHAIN_ID, GENESIS_SECONDS, genesis, key};
use crate::{auth, bank, distribution, staking};

/// Set in the child to its directory.
const CHILD: &str = "POLYLINK_TEST_CRASHING_LEDGER";

fn open(home: &Path) -> App {
    let config =
        SnapshotConfig { directory: home.join("snapshots"), interval: 3, keep: 2, chunk_bytes: CHUNK_BYTES_MAX };
    App::with_snapshots(Store::open(home.join("ledger"), SCHEMA_VERSION).unwrap(), 0, Some(config))
}

/// What CometBFT does with a ledger: `InitChain` where it has nothing, then the block after its height. The block is a
/// function of its height and of the state before it.
fn next_block(app: &App) -> (u64, AppHash) {
    let height = app.store().height() + 1;
    if height == 1 {
        app.init_chain(pb::RequestInitChain {
            time: Some(Timestamp { seconds: GENESIS_SECONDS, nanos: 0 }),
            chain_id: CHAIN_ID.into(),
            app_state_bytes: genesis(3).to_json().to_string().into(),
            initial_height: 1,
            ..Default::default()
        });
    }
    let send = MsgSend {
        from_address: key(1).address().account(),
        to_address: key(2 + (height % 2) as u8).address().account(),
        amount: vec![Coin { denom: DENOM.into(), amount: height.to_string() }],
    };
    let sequence = auth::account(&app.store().snapshot(), &key(1).address()).map_or(0, |account| account.sequence);
    let context = SignContext {
        chain_id: CHAIN_ID.into(),
        account_number: bank::Pool::ALL.len() as u64 + 1,
        sequence,
        gas_limit: 200_000,
        fee: Amount(5_000),
        memo: String::new(),
    };
    let answer = app.finalize_block(pb::RequestFinalizeBlock {
        height: height as i64,
        time: Some(Timestamp { seconds: GENESIS_SECONDS + height as i64, nanos: 0 }),
        txs: vec![sign_direct(vec![any(&send)], &context, &key(1)).into()],
        ..Default::default()
    });
    assert_eq!(answer.tx_results[0].code, 0, "{}", answer.tx_results[0].log);
    app.commit();
    (height, answer.app_hash.as_ref().try_into().unwrap())
}

fn whole(app: &App) {
    let state = app.store().snapshot();
    app.store().check().unwrap();
    bank::scan(&state).unwrap();
    distribution::scan(&state).unwrap();
    staking::scan(&state).unwrap();
}

fn child(test: &str, home: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("app::tests::crash::{test}"), "--nocapture"]);
    command.env(CHILD, home).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// Heights of the script below.
const LAST: u64 = 4;

/// Blocks up to [`LAST`] with a snapshot of height 3 on the way, then its restore elsewhere, as far as it is not done yet.
fn script(home: &Path) {
    let app = open(home);
    while app.store().height() < LAST {
        next_block(&app);
        app.snapshots().unwrap().wait();
    }
    let Some(snapshot) = app.list_snapshots().snapshots.pop() else { return };
    let joined = App::new(Store::open(home.join("joined"), SCHEMA_VERSION).unwrap(), 0);
    if joined.store().height() > 0 {
        return;
    }
    let app_hash = app.store().snapshot().app_hash_at(snapshot.height).unwrap().to_vec().into();
    joined.offer_snapshot(pb::RequestOfferSnapshot { snapshot: Some(snapshot), app_hash });
    let chunk = app.load_snapshot_chunk(pb::RequestLoadSnapshotChunk { height: 3, format: 1, chunk: 0 }).chunk;
    joined.apply_snapshot_chunk(pb::RequestApplySnapshotChunk { index: 0, chunk, ..Default::default() });
}

#[test]
fn a_crash_at_any_point_leaves_a_whole_ledger() {
    if let Ok(home) = std::env::var(CHILD) {
        return script(home.as_ref());
    }
    let dir = tempfile::tempdir().unwrap();
    script(&dir.path().join("reference"));
    let reference = open(&dir.path().join("reference"));
    let hash = |height| reference.store().snapshot().app_hash_at(height).unwrap();
    let mut points = BTreeMap::new();
    for passed in 0.. {
        let home = dir.path().join(passed.to_string());
        let command =
            child("a_crash_at_any_point_leaves_a_whole_ledger", &home).env(CRASH_AT, passed.to_string()).output();
        let output = command.unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let Some(point) = said.lines().find_map(|line| line.split("crash at ").nth(1)) else {
            assert!(output.status.success(), "it ends by itself once all points are passed: {said}");
            break;
        };
        *points.entry(point.to_owned()).or_insert(0) += 1;
        assert!(!output.status.success());

        let app = open(&home);
        let height = app.store().height();
        if height > 0 {
            assert_eq!(app.store().app_hash(), hash(height), "after {point}");
            whole(&app);
        }
        for manifest in app.snapshots().unwrap().list() {
            assert!(app.snapshots().unwrap().chunk(manifest.height, 0).is_some(), "after {point}: a partial snapshot");
        }
        drop(app);
        let joined = Store::open(home.join("joined"), SCHEMA_VERSION).unwrap();
        let found = (joined.height(), joined.app_hash());
        assert!(joined.height() == 0 || found == (3, hash(3)), "after {point}: {found:?}");
        drop(joined);
        // It goes on to where it would have come.
        script(&home);
        let app = open(&home);
        assert_eq!((app.store().height(), app.store().app_hash()), (LAST, hash(LAST)), "after {point}");
        let joined = Store::open(home.join("joined"), SCHEMA_VERSION).unwrap();
        if !app.snapshots().unwrap().list().is_empty() {
            assert_eq!((joined.height(), joined.app_hash()), (3, hash(3)), "after {point}");
            joined.check().unwrap();
        }
        std::fs::remove_dir_all(&home).unwrap();
    }
    println!("crash points: {points:?}");
    for point in [
        "commit: before the batch",
        "commit: durable",
        "commit: published",
        "snapshot: file written",
        "snapshot: named",
        "restore: marked",
        "restore: chunk written",
        "restore: before the head",
        "restore: head written",
    ] {
        assert!(points.contains_key(point), "no crash at {point}");
    }
}

fn told(line: &str) -> Option<(u64, String)> {
    let (height, hash) = line.split_once("committed ")?.1.split_once(' ')?;
    Some((height.parse().unwrap(), hash.to_owned()))
}

const KILLS: u64 = 200;

#[test]
fn two_hundred_kills_lose_nothing_committed() {
    if let Ok(home) = std::env::var(CHILD) {
        let app = open(home.as_ref());
        let mut out = std::io::stdout();
        loop {
            let (height, hash) = next_block(&app);
            writeln!(out, "committed {height} {}", hex::encode(hash)).unwrap();
            out.flush().unwrap();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let mut hashes: BTreeMap<u64, String> = BTreeMap::new();
    let mut unsaid = 0;
    for round in 0..KILLS {
        let mut running: Child = child("two_hundred_kills_lose_nothing_committed", dir.path()).spawn().unwrap();
        let mut lines = BufReader::new(running.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut last = lines.by_ref().find_map(|line| told(&line)).unwrap();
        // Not only between blocks: at instants that differ from round to round.
        std::thread::sleep(Duration::from_micros(round * 937 % 7_000));
        running.kill().unwrap();
        running.wait().unwrap();
        for (height, hash) in std::iter::once(last.clone()).chain(lines.filter_map(|line| told(&line))) {
            last = (height, hash.clone());
            let known = hashes.entry(height).or_insert(hash.clone());
            assert_eq!(*known, hash, "height {height} has two hashes");
        }
        let app = open(dir.path());
        let (height, hash) = (app.store().height(), hex::encode(app.store().app_hash()));
        assert!(height == last.0 || height == last.0 + 1, "told of {}, found {height}", last.0);
        unsaid += height - last.0;
        assert_eq!(hashes.entry(height).or_insert(hash.clone()), &hash, "height {height} has another hash");
        if round % 10 == 0 {
            whole(&app);
        }
    }
    let app = open(dir.path());
    whole(&app);
    println!("{KILLS} kills, {} heights, {unsaid} of them committed and not told of", app.store().height());
}

/// The disk holds any beginning of what a commit writes to the journal, and nothing after it: what a power cut leaves.
#[test]
fn a_journal_written_in_part_is_read_as_before_or_after_the_block() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("node");
    let app = open(&home);
    let journal = || {
        let files = std::fs::read_dir(home.join("ledger")).unwrap().flatten().map(|entry| entry.path());
        let mut journals: Vec<_> = files.filter(|path| path.extension().is_some_and(|kind| kind == "jnl")).collect();
        journals.sort();
        journals.pop().unwrap()
    };
    next_block(&app);
    let before = (next_block(&app), std::fs::read(journal()).unwrap());
    let after = (next_block(&app), std::fs::read(journal()).unwrap());
    drop(app);
    let first = before.1.iter().zip(&after.1).position(|(old, new)| old != new).unwrap();
    let last = before.1.iter().zip(&after.1).rposition(|(old, new)| old != new).unwrap() + 1;
    let (mut olds, mut news) = (0, 0);
    for part in 0..=40 {
        let cut = first + (last - first) * part / 40;
        let torn = dir.path().join(part.to_string());
        copy(&home.join("ledger"), &torn.join("ledger"));
        let journal = torn.join("ledger").join(journal().file_name().unwrap());
        std::fs::write(&journal, [&after.1[..cut], &before.1[cut..last]].concat()).unwrap();
        let found = open(&torn);
        let state = (found.store().height(), found.store().app_hash());
        assert!(state == before.0 || state == after.0, "{cut} bytes of {first} to {last}: {state:?}");
        olds += usize::from(state == before.0);
        news += usize::from(state == after.0);
        whole(&found);
        while found.store().height() < 3 {
            next_block(&found);
        }
        assert_eq!(found.store().app_hash(), after.0.1);
        drop(found);
        std::fs::remove_dir_all(torn).unwrap();
    }
    assert!(olds > 30 && news > 0, "{olds} before, {news} after");
    println!("{} bytes of a commit cut at 41 places: {olds} times before it, {news} after", last - first);
}

/// All files but the newest journal's contents, which are written anew.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        match entry.path() {
            path if path.is_dir() => copy(&path, &target),
            path if path.extension().is_some_and(|kind| kind == "jnl") => std::fs::write(target, []).unwrap(),
            path => std::fs::copy(path, target).map(|_| ()).unwrap(),
        }
    }
}
