//! Tests of the application: queries as wallets make them, the mempool's own state, restarts, proposals.

mod crash;
mod hostile;
mod requirements;
mod snapshots;

use polylink_protocol::cosmos::cosmos::auth::v1beta1::{
    BaseAccount, ModuleAccount, QueryAccountInfoRequest, QueryAccountInfoResponse, QueryAccountRequest,
    QueryAccountResponse, QueryAccountsRequest, QueryAccountsResponse, QueryModuleAccountByNameRequest,
    QueryModuleAccountByNameResponse, QueryModuleAccountsResponse,
};
use polylink_protocol::cosmos::cosmos::bank::v1beta1::{
    MsgSend, QueryAllBalancesRequest, QueryAllBalancesResponse, QueryBalanceRequest, QueryBalanceResponse,
    QueryDenomMetadataRequest, QueryDenomMetadataResponse, QueryDenomOwnersRequest, QueryDenomOwnersResponse,
    QueryDenomsMetadataResponse,
};
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::tx::v1beta1::{
    AuthInfo, Fee, ModeInfo, SignerInfo, SimulateRequest, SimulateResponse, TxBody, TxRaw,
};
use polylink_protocol::tx::any;
use polylink_protocol::{Address, DENOM, Message};
use tendermint_abci::Application;
use tendermint_proto::v0_38::abci as pb;

use super::{App, SnapshotConfig};
use crate::bank::{self, Pool};
use crate::chain::SCHEMA_VERSION;
use crate::query::{GAS_PRICES_PATH, GasPricesResponse, SIMULATE_PATH, STORE_PATH};
use crate::store::{CHUNK_BYTES_MAX, Store, verify_proof};
use crate::testing::{TestChain, genesis, key};

fn send(to: u8, amount: u128) -> polylink_protocol::cosmos::Any {
    any(&MsgSend {
        from_address: key(1).address().account(),
        to_address: key(to).address().account(),
        amount: vec![Coin { denom: DENOM.into(), amount: amount.to_string() }],
    })
}

fn account(chain: &TestChain, address: &Address) -> Result<QueryAccountResponse, String> {
    chain.query("/cosmos.auth.v1beta1.Query/Account", &QueryAccountRequest { address: address.account() })
}

fn base_of(chain: &TestChain, n: u8) -> BaseAccount {
    BaseAccount::decode(account(chain, &key(n).address()).unwrap().account.unwrap().value.as_slice()).unwrap()
}

fn check(chain: &TestChain, tx: &[u8]) -> u32 {
    chain.app().check_tx(pb::RequestCheckTx { tx: tx.to_vec().into(), r#type: 0 }).code
}

#[test]
fn accounts_are_answered_as_wallets_expect() {
    let mut chain = TestChain::start(&genesis(2));
    let early = chain.app().query(pb::RequestQuery { path: "/x".into(), ..Default::default() });
    assert!(early.code != 0 && early.log.contains("no block"), "{}", early.log);
    chain.advance(1);
    let any = account(&chain, &key(1).address()).unwrap().account.unwrap();
    assert_eq!(any.type_url, "/cosmos.auth.v1beta1.BaseAccount");
    let base = BaseAccount::decode(any.value.as_slice()).unwrap();
    assert_eq!((base.account_number, base.sequence, base.pub_key), (12, 0, None));
    chain.send(1, vec![send(2, 5)]);
    let any = account(&chain, &key(1).address()).unwrap().account.unwrap();
    let base = BaseAccount::decode(any.value.as_slice()).unwrap();
    assert_eq!((base.sequence, base.pub_key.unwrap().type_url.as_str()), (1, "/cosmos.crypto.secp256k1.PubKey"));
    let pool = account(&chain, &Pool::MarketEscrow.address()).unwrap().account.unwrap();
    assert_eq!(ModuleAccount::decode(pool.value.as_slice()).unwrap().name, "market_escrow");
    let missing = account(&chain, &key(99).address()).unwrap_err();
    assert!(missing.contains("rpc error: code = NotFound"), "{missing}");
    let ask = |path: &str, request: Vec<u8>| {
        let path = format!("/cosmos.auth.v1beta1.Query/{path}");
        chain.app().query(pb::RequestQuery { path, data: request.into(), ..Default::default() })
    };
    let by_name =
        |name: &str| ask("ModuleAccountByName", QueryModuleAccountByNameRequest { name: name.into() }.encode_to_vec());
    let found = QueryModuleAccountByNameResponse::decode(by_name("market_escrow").value).unwrap();
    assert_eq!(found.account, Some(pool));
    assert_eq!((by_name("nobody").code, by_name("").code), (22, 22));
    let all = QueryModuleAccountsResponse::decode(ask("ModuleAccounts", vec![]).value).unwrap();
    assert_eq!(all.accounts.len(), Pool::ALL.len());
    let info =
        |n: u8| ask("AccountInfo", QueryAccountInfoRequest { address: key(n).address().account() }.encode_to_vec());
    assert_eq!(QueryAccountInfoResponse::decode(info(1).value).unwrap().info.unwrap(), base_of(&chain, 1));
    assert_eq!(info(99).code, 22);
    // An account comes into being with its first coins, with the next number.
    chain.send(1, vec![send(99, 5)]);
    let any = account(&chain, &key(99).address()).unwrap().account.unwrap();
    assert_eq!(BaseAccount::decode(any.value.as_slice()).unwrap().account_number, 14);
}

#[test]
fn balances_are_set_even_when_zero_and_heights_are_never_zero() {
    let mut chain = TestChain::start(&genesis(1));
    chain.advance(3);
    let request = QueryBalanceRequest { address: key(42).address().account(), denom: DENOM.into() };
    let answered: QueryBalanceResponse = chain.query("/cosmos.bank.v1beta1.Query/Balance", &request).unwrap();
    assert_eq!(answered.balance, Some(Coin { denom: DENOM.into(), amount: "0".into() }));
    let raw = chain.app().query(pb::RequestQuery {
        path: "/cosmos.bank.v1beta1.Query/Balance".into(),
        data: request.encode_to_vec().into(),
        ..Default::default()
    });
    assert_eq!((raw.code, raw.height), (0, 3));
    let all = QueryAllBalancesRequest { address: key(1).address().account(), ..Default::default() };
    let all: QueryAllBalancesResponse = chain.query("/cosmos.bank.v1beta1.Query/AllBalances", &all).unwrap();
    assert_eq!(all.balances.len(), 1);
    let bank = |path: &str| format!("/cosmos.bank.v1beta1.Query/{path}");
    let owners = QueryDenomOwnersRequest { denom: DENOM.into(), pagination: None };
    let owners: QueryDenomOwnersResponse = chain.query(&bank("DenomOwners"), &owners).unwrap();
    let held: u128 =
        owners.denom_owners.iter().map(|owner| owner.balance.as_ref().unwrap().amount.parse::<u128>().unwrap()).sum();
    assert_eq!(held, bank::supply(&chain.state(), DENOM).0, "every coin has an owner");
    assert_eq!(owners.pagination.unwrap().total, owners.denom_owners.len() as u64);
    let nobody = QueryDenomOwnersRequest { denom: "other".into(), pagination: None };
    let nobody: QueryDenomOwnersResponse = chain.query(&bank("DenomOwners"), &nobody).unwrap();
    assert!(nobody.denom_owners.is_empty());
    let one = QueryDenomMetadataRequest { denom: DENOM.into() };
    let one: QueryDenomMetadataResponse = chain.query(&bank("DenomMetadata"), &one).unwrap();
    let all: QueryDenomsMetadataResponse = chain.query(&bank("DenomsMetadata"), &()).unwrap();
    assert_eq!(all.metadatas, [one.metadata.unwrap()]);
    let prices: GasPricesResponse = chain.query(GAS_PRICES_PATH, &QueryAllBalancesRequest::default()).unwrap();
    assert_eq!(prices.prices[0].amount, "25000000000000000", "0.025");
}

#[test]
fn methods_are_answered_as_of_any_height_that_is_kept() {
    let mut chain = TestChain::start(&genesis(1));
    chain.advance(2);
    for amount in [5, 7] {
        chain.send(1, vec![send(42, amount)]);
    }
    let newest = i64::try_from(chain.app().store().height()).unwrap();
    let ask = |path: &str, data: Vec<u8>, height: i64| {
        let request = pb::RequestQuery { path: path.into(), data: data.into(), height, ..Default::default() };
        let answer = chain.app().query(request);
        assert_eq!((answer.code, answer.height), (0, height), "{}", answer.log);
        answer.value
    };
    let request = QueryBalanceRequest { address: key(42).address().account(), denom: DENOM.into() }.encode_to_vec();
    let balance = |height| {
        let answer = ask("/cosmos.bank.v1beta1.Query/Balance", request.clone(), height);
        QueryBalanceResponse::decode(answer).unwrap().balance.unwrap().amount
    };
    assert_eq!([newest - 2, newest - 1, newest].map(balance), ["0", "5", "12"]);
    let accounts = |height| {
        let request = QueryAccountsRequest::default().encode_to_vec();
        let answer = ask("/cosmos.auth.v1beta1.Query/Accounts", request, height);
        QueryAccountsResponse::decode(answer).unwrap().accounts.len()
    };
    assert_eq!([newest - 2, newest - 1, newest].map(|height| accounts(height) - accounts(1)), [0, 1, 1]);
}

#[test]
fn bad_queries_are_answered_with_their_fault() {
    let mut chain = TestChain::start(&genesis(1));
    chain.advance(2);
    let ask = |path: &str, data: &[u8], height: i64| {
        let request = pb::RequestQuery { path: path.into(), data: data.to_vec().into(), height, ..Default::default() };
        let answer = chain.app().query(request);
        (answer.codespace, answer.code, answer.log)
    };
    let balance = "/cosmos.bank.v1beta1.Query/Balance";
    let bad_address = QueryBalanceRequest { address: "cosmos1x".into(), denom: DENOM.into() }.encode_to_vec();
    for (path, data, height, code, text) in [
        ("/no.such.Query/Thing", &[][..], 0, 6, "unknown query path /no.such.Query/Thing"),
        ("", &[], 0, 6, "unknown query path"),
        (balance, b"\xff\xff", 0, 18, "QueryBalanceRequest"),
        (balance, &bad_address, 0, 18, "cosmos1x"),
        (balance, &[], 3, 26, "height 3 cannot be read"),
        (SIMULATE_PATH, &[], 1, 26, "newest height (2) only"),
        (balance, &[], -1, 18, "negative"),
        (STORE_PATH, &[1], 99, 26, "99"),
        (SIMULATE_PATH, &[], 0, 18, "tx_bytes is empty"),
    ] {
        let (codespace, found, log) = ask(path, data, height);
        assert_eq!((codespace.as_str(), found), ("sdk", code), "{path}: {log}");
        assert!(log.contains(text), "{path}: {log}");
    }
}

#[test]
fn a_key_is_proved_against_the_hash_of_the_next_header() {
    let mut chain = TestChain::start(&genesis(1));
    let mut hashes = vec![Vec::new()];
    for _ in 0..4 {
        chain.advance(1);
        hashes.push(chain.app_hash.clone());
    }
    let key = bank::balance_key(&key(1).address(), DENOM);
    for (asked, height) in [(0, 3), (2, 2), (4, 4)] {
        let answer = chain.app().query(pb::RequestQuery {
            path: STORE_PATH.into(),
            data: key.clone().into(),
            height: asked,
            prove: true,
        });
        assert_eq!((answer.code, answer.height, answer.value.len()), (0, height, 16), "{}", answer.log);
        let proof = &answer.proof_ops.unwrap().ops[0];
        let hash: [u8; 32] = hashes[usize::try_from(height).unwrap()].clone().try_into().unwrap();
        assert!(verify_proof(&hash, &key, Some(&answer.value), &proof.data));
        assert!(!verify_proof(&hash, &key, Some(b"another value...").map(|value| &value[..]), &proof.data));
    }
}

/// CosmJS simulates with an empty signature, an unset sign mode and no fee.
#[test]
fn a_simulation_needs_no_signature_and_foretells_the_gas() {
    let mut chain = TestChain::start(&genesis(2));
    chain.advance(1);
    let real = TxRaw::decode(chain.sign(1, vec![send(2, 5)]).as_slice()).unwrap();
    let info = AuthInfo::decode(real.auth_info_bytes.as_slice()).unwrap().signer_infos.remove(0);
    let auth_info = AuthInfo {
        signer_infos: vec![SignerInfo { mode_info: Some(ModeInfo { sum: None }), ..info }],
        fee: Some(Fee::default()),
        ..Default::default()
    };
    let simulate = |messages| {
        let body = TxBody { messages, ..Default::default() };
        let tx = TxRaw {
            body_bytes: body.encode_to_vec(),
            auth_info_bytes: auth_info.encode_to_vec(),
            signatures: vec![vec![]],
        };
        #[allow(deprecated)]
        let request = SimulateRequest { tx: None, tx_bytes: tx.encode_to_vec() };
        chain.query::<_, SimulateResponse>(SIMULATE_PATH, &request)
    };
    let response = simulate(vec![send(2, 5)]).unwrap();
    let refused = simulate(vec![send(2, u128::from(u64::MAX))]).unwrap_err();
    assert!(refused.contains("insufficient funds"), "{refused}");
    let foretold = response.gas_info.unwrap().gas_used;
    let used = u64::try_from(chain.send(1, vec![send(2, 5)]).gas_used).unwrap();
    // The bytes of the fee are missing, no more: clients add 30 to 40 %.
    assert!(foretold <= used && used * 100 <= foretold * 105, "foretold {foretold}, used {used}");
    assert_eq!(response.result.unwrap().msg_responses[0].type_url, "/cosmos.bank.v1beta1.MsgSendResponse");
}

#[test]
fn the_mempool_counts_its_own_sequences_and_forgets_them_with_the_block() {
    let mut chain = TestChain::start(&genesis(2));
    let txs: Vec<Vec<u8>> = (0..3).map(|ahead| chain.sign_after(1, ahead, vec![send(2, 5)])).collect();
    assert_eq!(check(&chain, &txs[1]), 32, "out of order");
    assert_eq!(check(&chain, &txs[0]), 0);
    assert_eq!(check(&chain, &txs[0]), 32, "a second time");
    assert_eq!(check(&chain, &txs[1]), 0);
    // Nothing of it has touched the chain; the block takes only the first.
    assert!(chain.deliver(vec![txs[0].clone()]).iter().all(|result| result.code == 0));
    assert_eq!(check(&chain, &txs[0]), 32, "rechecked");
    assert_eq!(check(&chain, &txs[1]), 0, "rechecked");
    assert_eq!(check(&chain, &txs[2]), 0);
}

#[test]
fn proposals_keep_to_the_room_and_hold_only_what_decodes() {
    let chain = TestChain::start(&genesis(2));
    let txs: Vec<bytes::Bytes> = (0..5).map(|ahead| chain.sign_after(1, ahead, vec![send(2, 5)]).into()).collect();
    let size = |tx: &bytes::Bytes| 3 + tx.len() as i64;
    let mut offered = txs.clone();
    offered.insert(1, b"garbage".as_slice().into());
    let room = txs[..3].iter().map(size).sum::<i64>();
    for (max_tx_bytes, taken) in [(room, 3), (room - 1, 2), (0, 0), (-1, 0), (1 << 20, 5)] {
        let request = pb::RequestPrepareProposal { max_tx_bytes, txs: offered.clone(), ..Default::default() };
        let proposal = chain.app().prepare_proposal(request).txs;
        assert_eq!(proposal, txs[..taken], "room for {max_tx_bytes}");
        let answer = chain.app().process_proposal(pb::RequestProcessProposal { txs: proposal, ..Default::default() });
        assert_eq!(answer.status, 1);
    }
    let answer = chain.app().process_proposal(pb::RequestProcessProposal { txs: offered, ..Default::default() });
    assert_eq!(answer.status, 2, "garbage is no proposal of an honest node");
}

#[test]
fn proposals_keep_to_the_gas_of_a_block() {
    let chain = TestChain::start(&genesis(2));
    let fits = crate::tx::BLOCK_GAS_MAX / crate::testing::GAS_LIMIT;
    let txs: Vec<bytes::Bytes> = (0..=fits).map(|ahead| chain.sign_after(1, ahead, vec![send(2, 5)]).into()).collect();
    let request = pb::RequestPrepareProposal { max_tx_bytes: 1 << 20, txs: txs.clone(), ..Default::default() };
    let proposal = chain.app().prepare_proposal(request).txs;
    assert_eq!(proposal, txs[..fits as usize]);
    for (txs, status) in [(proposal, 1), (txs, 2)] {
        let answer = chain.app().process_proposal(pb::RequestProcessProposal { txs, ..Default::default() });
        assert_eq!(answer.status, status);
    }
}

#[test]
fn a_block_has_one_result_on_any_number_of_cores() {
    let pay = |n: u8| {
        let amount = vec![Coin { denom: DENOM.into(), amount: "5".into() }];
        let (from_address, to_address) = (key(n).address().account(), key(8).address().account());
        vec![any(&MsgSend { from_address, to_address, amount })]
    };
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut chain = TestChain::start(&genesis(8));
        let mut codes = Vec::new();
        for _ in 0..3 {
            // Good ones in their order, one whose signature is altered, one out of sequence, and garbage.
            let mut txs: Vec<Vec<u8>> = (1..=6)
                .flat_map(|n| (0..3).map(move |ahead| (n, ahead)))
                .map(|(n, ahead)| chain.sign_after(n, ahead, pay(n)))
                .collect();
            let mut forged = chain.sign(7, pay(7));
            let last = forged.len() - 1;
            forged[last] ^= 1;
            txs.extend([forged, chain.sign_after(7, 4, pay(7)), b"garbage".to_vec()]);
            let request = pb::RequestProcessProposal {
                txs: txs[..20].iter().cloned().map(Into::into).collect(),
                ..Default::default()
            };
            assert_eq!(pool.install(|| chain.app().process_proposal(request)).status, 1, "a forged signature too");
            codes.push(pool.install(|| chain.deliver(txs)).iter().map(|result| result.code).collect::<Vec<_>>());
        }
        (codes, chain.app_hash.clone())
    };
    let expected: Vec<u32> = [vec![0; 18], vec![4, 32, 2]].concat();
    let several = run(8);
    assert_eq!(several.0, vec![expected; 3]);
    assert_eq!(several, run(1));
}

#[test]
fn a_block_that_was_not_committed_is_forgotten_by_a_restart() {
    let mut chain = TestChain::start(&genesis(2));
    chain.advance(2);
    let before = (chain.app_hash.clone(), chain.balance(key(2).address()));
    let tx = chain.sign(1, vec![send(2, 5)]);
    let block = pb::RequestFinalizeBlock { height: 3, txs: vec![tx.into()], ..Default::default() };
    let first = chain.app().finalize_block(block.clone());
    assert_ne!(first.app_hash, before.0);
    // A new application over the same store, as after a crash between FinalizeBlock and Commit.
    let restarted = App::new(chain.app().store().clone(), 2);
    let info = restarted.info(pb::RequestInfo::default());
    assert_eq!((info.last_block_height, info.app_version), (2, SCHEMA_VERSION));
    assert_eq!(info.last_block_app_hash.to_vec(), before.0);
    let again = restarted.finalize_block(block);
    assert_eq!(again.app_hash, first.app_hash, "replayed to the same state");
    assert_eq!(restarted.commit().retain_height, 0, "no block is older than the unbonding time");
    assert_eq!(bank::balance(&restarted.store().snapshot(), key(2).address()).0, before.1.0 + 5);
}

#[test]
fn the_same_blocks_give_the_same_hash_and_the_genesis_hash_is_not_empty() {
    let (mut one, mut two) = (TestChain::start(&genesis(2)), TestChain::start(&genesis(2)));
    assert_eq!(one.app_hash.len(), 32);
    assert_eq!(one.app_hash, two.app_hash);
    for amount in 1..5 {
        let tx = one.sign(1, vec![send(2, amount)]);
        one.deliver(vec![tx.clone(), b"garbage".to_vec()]);
        two.deliver(vec![tx, b"garbage".to_vec()]);
        assert_eq!(one.app_hash, two.app_hash);
    }
    one.checked_supply();
    assert_eq!(one.app().store().check().map_err(|error| error.to_string()), Ok(()));
}

#[test]
fn a_genesis_that_no_chain_can_start_from_is_refused_by_name() {
    use crate::context::BlockTime;
    let start = |change: &dyn Fn(&mut crate::Genesis)| {
        let mut genesis = genesis(1);
        change(&mut genesis);
        crate::chain::genesis("c-1", BlockTime::default(), &genesis).map(|_| ()).unwrap_err().to_string()
    };
    for (error, text) in [
        (start(&|g| g.accounts[0].address = "poly1x".into()), "accounts[0]"),
        (start(&|g| g.accounts.push(g.accounts[0].clone())), "accounts[2]"),
        (start(&|g| g.staking.validators.clear()), "at least one validator"),
        (start(&|g| g.staking.validators[0].self_delegation.0 = 1 << 100), "insufficient funds"),
        (start(&|g| g.staking.validators[0].consensus_key = "AAAA".into()), "staking.validators[0]"),
        (start(&|g| g.staking.max_validators = 0), "max_validators"),
        (start(&|g| g.market.params.epoch_blocks = 0), "epoch_blocks"),
        (crate::Genesis::from_json(br#"{"acounts": []}"#).unwrap_err().to_string(), "acounts"),
        (crate::Genesis::from_json(b"").unwrap_err().to_string(), "app_state"),
    ] {
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn genesis_goes_round_through_json() {
    let genesis = genesis(2);
    let text = genesis.to_json().to_string();
    assert_eq!(crate::Genesis::from_json(text.as_bytes()), Ok(genesis));
}

/// Blocks may be forgotten once nobody needs them: older than the operator keeps, than the unbonding time and than the
/// oldest snapshot.
#[test]
fn the_retained_height_is_the_lowest_that_anybody_needs() {
    let directory = tempfile::tempdir().unwrap();
    let run = |keep: u64, unbonding_seconds: u64, interval: Option<u64>| {
        let mut genesis = genesis(1);
        genesis.staking.unbonding_seconds = unbonding_seconds;
        let config = |interval| SnapshotConfig {
            directory: directory.path().join("snapshots"),
            interval,
            keep: 2,
            chunk_bytes: CHUNK_BYTES_MAX,
        };
        let mut chain = TestChain::start_retaining(&genesis, keep, interval.map(config));
        let mut retained = Vec::new();
        for _ in 0..100 {
            chain.advance(1);
            if let Some(snapshots) = chain.app().snapshots() {
                snapshots.wait();
            }
            retained.push(chain.retain_height);
        }
        assert!(retained.is_sorted(), "{retained:?}");
        chain.retain_height
    };
    assert_eq!(run(0, 10, None), 0, "everything is kept");
    assert_eq!(run(10, 1, None), 90, "as the operator asks");
    // Blocks are a second apart; one in 16 is known by its time.
    assert_eq!(run(10, 40, None), 48, "block 60 is 40 seconds old");
    assert_eq!(run(10, 1_000, None), 0, "all are younger than the unbonding time");
    assert_eq!(run(10, 1, Some(30)), 60, "the snapshots of 60 and 90 are there");
    assert_eq!(run(10, 1, Some(1_000)), 0, "none to join from yet");
    assert_eq!(run(10, 1, Some(0)), 90, "this node offers none");
}

/// Store is used by name above; a store of another schema must not open.
#[test]
fn a_store_of_another_schema_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    drop(Store::open(directory.path(), SCHEMA_VERSION).unwrap());
    assert!(Store::open(directory.path(), SCHEMA_VERSION + 1).is_err());
}
