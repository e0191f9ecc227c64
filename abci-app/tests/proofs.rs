//! Every kind of key of a running chain's state, proved present or absent by the `ics23` crate alone, against a header that
//! `tendermint-light-client-verifier` follows from a trusted one.
#![allow(clippy::unwrap_used, missing_docs)]

mod comet;

use std::collections::BTreeSet;
use std::time::Duration;

use comet::Comet;
use ics23::{CommitmentProof, HostFunctionsManager, verify_membership, verify_non_membership};
use polylink_abci_app::server::{self, Address as Socket, Options, RequestLog, check_grammar};
use polylink_abci_app::store::{Order, PROOF_OP_TYPE, StateRead, Store};
use polylink_abci_app::testing::{CHAIN_ID, genesis};
use polylink_abci_app::{App, chain::SCHEMA_VERSION};
use prost::Message;
use tendermint::block::Header;
use tendermint::block::signed_header::SignedHeader;
use tendermint::trust_threshold::TrustThresholdFraction;
use tendermint::validator::Set;
use tendermint_light_client_verifier::options::Options as Trust;
use tendermint_light_client_verifier::types::{TrustedBlockState, UntrustedBlockState};
use tendermint_light_client_verifier::{ProdVerifier, Verdict, Verifier};
use tendermint_rpc::{Client, HttpClient, Paging};

async fn light_block(client: &HttpClient, height: u64) -> (SignedHeader, Set) {
    let height = u32::try_from(height).unwrap();
    let validators = client.validators(height, Paging::All).await.unwrap().validators;
    (client.commit(height).await.unwrap().signed_header, Set::without_proposer(validators))
}

fn follow(trusted: &(SignedHeader, Set), block: &(SignedHeader, Set)) -> Verdict {
    let header = &trusted.0.header;
    let state = TrustedBlockState {
        chain_id: &header.chain_id,
        header_time: header.time,
        height: header.height,
        next_validators: &trusted.1,
        next_validators_hash: header.next_validators_hash,
    };
    let untrusted = UntrustedBlockState { signed_header: &block.0, validators: &block.1, next_validators: None };
    let trust = Trust {
        trust_threshold: TrustThresholdFraction::ONE_THIRD,
        trusting_period: Duration::from_secs(3_600),
        clock_drift: Duration::from_secs(10),
    };
    ProdVerifier::default().verify_update_header(untrusted, state, &trust, tendermint::Time::now())
}

/// Asks a node for a key with its proof at a height, and believes what the header after it says.
async fn read(client: &HttpClient, header: &Header, path: &str, key: &[u8]) -> Option<Vec<u8>> {
    let height = u32::try_from(header.height.value() - 1).unwrap();
    let answer = client.abci_query(Some(path.into()), key.to_vec(), Some(height.into()), true).await.unwrap();
    assert!(answer.code.is_ok(), "{}", answer.log);
    assert_eq!(answer.key, key);
    let op = answer.proof.unwrap().ops.remove(0);
    assert_eq!((op.field_type.as_str(), op.key.as_slice()), (PROOF_OP_TYPE, key));
    let proof = CommitmentProof::decode(op.data.as_slice()).unwrap();
    let (spec, root) = (jmt::ics23_spec(), header.app_hash.as_bytes().to_vec());
    let member = |value: &[u8]| verify_membership::<HostFunctionsManager>(&proof, &spec, &root, key, value);
    let absent = verify_non_membership::<HostFunctionsManager>(&proof, &spec, &root, key);
    assert_ne!(member(&answer.value), absent, "the key {key:02x?} is there or it is not");
    assert!(!member(b"a forged value"));
    let mut other_root = root.clone();
    other_root[0] ^= 1;
    assert!(!verify_membership::<HostFunctionsManager>(&proof, &spec, &other_root, key, &answer.value));
    assert!(!verify_non_membership::<HostFunctionsManager>(&proof, &spec, &other_root, key));
    (!absent).then_some(answer.value)
}

#[tokio::test]
async fn every_kind_of_key_is_proved_against_a_followed_header() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("node");
    let mut comet = Comet::init(&home, &home.join("abci.sock"), 50);
    let mut state = genesis(3);
    state.staking.validators[0].consensus_key = comet.consensus_key();
    comet.edit_genesis(|document| {
        document["chain_id"] = CHAIN_ID.into();
        document["validators"] = serde_json::json!([]);
        document["app_state"] = state.to_json();
    });
    let app = App::new(Store::open(home.join("ledger"), SCHEMA_VERSION).unwrap(), 0);
    let socket = Socket::unix(home.join("abci.sock")).unwrap();
    let log = RequestLog::new(1_000_000);
    let options = Options { observer: Some(log.observer()), ..Options::default() };
    let server = server::serve(&socket, app.clone(), options).unwrap();
    let client = comet.start().await;
    comet.wait_for_height(&client, 12).await;

    let trusted = light_block(&client, 2).await;
    let block = light_block(&client, 11).await;
    assert_eq!(follow(&trusted, &block), Verdict::Success);
    // The verifier is not a yes: a header with another application hash is not followed.
    let mut forged = block.clone();
    forged.0.header.app_hash = vec![7; 32].try_into().unwrap();
    assert!(matches!(follow(&trusted, &forged), Verdict::Invalid(_)));

    let header = &block.0.header;
    let snapshot = app.store().snapshot();
    let mut prefixes = BTreeSet::new();
    let (mut present, mut absent) = (0, 0);
    for (key, _) in snapshot.iter_range(&[], None, Order::Ascending) {
        // One key of each table, and every key's neighbour that is not there.
        if !prefixes.insert(key[0]) {
            continue;
        }
        let expected = snapshot.get_at(&key, 10).unwrap();
        assert_eq!(read(&client, header, "/store/key", &key).await, expected, "{key:02x?}");
        present += usize::from(expected.is_some());
        for neighbour in [[&key[..], &[0]].concat(), [&key[..key.len() - 1], &[key[key.len() - 1] ^ 0x80]].concat()] {
            if !neighbour.is_empty() && snapshot.get_at(&neighbour, 10).unwrap().is_none() {
                assert_eq!(read(&client, header, "/store/bank/key", &neighbour).await, None);
                absent += 1;
            }
        }
    }
    assert!(present > 15 && absent > 15, "{present} present, {absent} absent");
    println!("{present} keys proved present, {absent} absent, of tables {prefixes:02x?}");
    assert!(comet.stop(), "the node must stop on SIGTERM");
    server.shutdown();
    assert_eq!(check_grammar(&log.entries(), 0), Ok(app.store().height() as i64));
}
