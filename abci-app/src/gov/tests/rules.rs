//! The rules of every transaction, changed by proposals: memo, signatures, what bytes and proofs cost, which coins may be
//! sent.

use polylink_protocol::cosmos::cosmos::auth::v1beta1 as auth_proto;
use polylink_protocol::cosmos::cosmos::bank::v1beta1 as bank_proto;
use polylink_protocol::tx::{SignContext, sign_direct};

use super::*;
use crate::modules::Handle;
use crate::testing::{CHAIN_ID, GAS_LIMIT};
use crate::tx::ante::least_fee;

fn to(n: u8, amount: u128) -> Any {
    let (from_address, to_address) = (address(1).account(), address(n).account());
    any(&bank_proto::MsgSend { from_address, to_address, amount: vec![coin(amount)] })
}

/// A transfer of account 1 with a memo.
fn with_memo(chain: &mut TestChain, memo: &str) -> pb::ExecTxResult {
    let account = crate::auth::account(&chain.state(), &address(1)).unwrap();
    let context = SignContext {
        chain_id: CHAIN_ID.into(),
        account_number: account.number,
        sequence: account.sequence,
        gas_limit: GAS_LIMIT,
        fee: least_fee(GAS_LIMIT, 25),
        memo: memo.into(),
    };
    chain.deliver(vec![sign_direct(vec![to(2, 1)], &context, &key(1))]).pop().unwrap()
}

#[test]
fn what_a_transaction_may_have_and_what_it_costs() {
    let mut chain = chain(3);
    chain.advance(1);
    let asked = |chain: &TestChain| {
        let path = "/cosmos.auth.v1beta1.Query/Params";
        let answer: auth_proto::QueryParamsResponse = chain.query(path, &auth_proto::QueryParamsRequest {}).unwrap();
        answer.params.unwrap()
    };
    let before = asked(&chain);
    assert_eq!((before.max_memo_characters, before.tx_size_cost_per_byte), (256, 10));
    // From the second transaction on the key is known.
    assert_eq!(with_memo(&mut chain, "").code, 0);
    let first = with_memo(&mut chain, "twelve words");
    assert_eq!(first.code, 0, "{}", first.log);
    let new = auth_proto::Params {
        max_memo_characters: 12,
        tx_size_cost_per_byte: 15,
        sig_verify_cost_secp256k1: 1_700,
        sig_verify_cost_ed25519: 5_000,
        tx_sig_limit: 1,
    };
    pass(
        &mut chain,
        vec![any(&auth_proto::MsgUpdateParams { authority: authority().account(), params: Some(new.clone()) })],
    );
    assert_eq!(asked(&chain), new);
    let second = with_memo(&mut chain, "twelve words");
    let length = chain.sign(1, vec![to(2, 1)]).len() as i64 + 2 + 12;
    // The sequence takes no more bytes than before: five for each byte, and 700 for the signature.
    assert_eq!(second.gas_used - first.gas_used, 5 * length + 700);
    // Characters, not bytes.
    assert_eq!(with_memo(&mut chain, "zwölf Wörter").code, 0);
    let refused = with_memo(&mut chain, "thirteen char");
    assert_eq!((refused.codespace.as_str(), refused.code), ("sdk", 12), "{}", refused.log);
    let mut ctx = crate::Context::new("c-1", 1, Default::default(), 20).under_rules_of(&chain.state());
    ctx.charge_proofs(2).unwrap();
    assert_eq!(ctx.gas.used(), 10_000);
}

#[test]
fn coins_that_may_not_be_sent() {
    let mut chain = chain(3);
    chain.advance(1);
    let set = |enabled: bool| bank_proto::MsgSetSendEnabled {
        authority: authority().account(),
        send_enabled: vec![bank_proto::SendEnabled { denom: DENOM.into(), enabled }],
        use_default_for: Vec::new(),
    };
    pass(&mut chain, vec![any(&set(false))]);
    let many = bank_proto::MsgMultiSend {
        inputs: vec![bank_proto::Input { address: address(1).account(), coins: vec![coin(5)] }],
        outputs: vec![bank_proto::Output { address: address(2).account(), coins: vec![coin(5)] }],
    };
    let before = chain.balance(address(1));
    for message in [to(2, 5), any(&many)] {
        let refused = chain.send(1, vec![message]);
        assert_eq!((refused.codespace.as_str(), refused.code), ("bank", 5), "{}", refused.log);
        assert!(refused.log.contains("uplk transfers are currently disabled"), "{}", refused.log);
    }
    assert!(chain.balance(address(1)) < before, "fees are paid all the same");
    let asked = |chain: &TestChain, denoms: Vec<String>| {
        let request = bank_proto::QuerySendEnabledRequest { denoms, pagination: None };
        let path = "/cosmos.bank.v1beta1.Query/SendEnabled";
        let answer: bank_proto::QuerySendEnabledResponse = chain.query(path, &request).unwrap();
        answer.send_enabled.into_iter().map(|entry| (entry.denom, entry.enabled)).collect::<Vec<_>>()
    };
    assert_eq!(asked(&chain, Vec::new()), [(DENOM.to_owned(), false)]);
    assert!(asked(&chain, vec!["uatom".into()]).is_empty());

    // Deposits and stake are no transfers: governance goes on, and takes it back. Then the default forbids all.
    let forget =
        bank_proto::MsgSetSendEnabled { use_default_for: vec![DENOM.into()], send_enabled: vec![], ..set(true) };
    pass(&mut chain, vec![any(&forget)]);
    assert_eq!(chain.send(1, vec![to(2, 5)]).code, 0);
    assert!(asked(&chain, Vec::new()).is_empty());
    let params = Some(bank_proto::Params { default_send_enabled: false, ..Default::default() });
    pass(&mut chain, vec![any(&bank_proto::MsgUpdateParams { authority: authority().account(), params })]);
    assert_eq!(chain.send(1, vec![to(2, 5)]).code, 5);
    let answer: bank_proto::QueryParamsResponse =
        chain.query("/cosmos.bank.v1beta1.Query/Params", &bank_proto::QueryParamsRequest {}).unwrap();
    assert!(!answer.params.unwrap().default_send_enabled);
    pass(&mut chain, vec![any(&set(true))]);
    assert_eq!(chain.send(1, vec![to(2, 5)]).code, 0);
    chain.checked_supply();
}

/// Nobody makes the ledger walk over more than was paid for: a proposal may have any number of votes, and whoever cancels it
/// says how much gas that may take.
#[test]
fn a_message_walks_no_further_than_its_gas() {
    use crate::store::Overlay;
    use crate::tx::{self, Mode};
    let mut chain = chain(3);
    send(&mut chain, 1, any(&proposal(1, vec![], 10 * PLK)));
    let cancel = chain.sign(1, vec![any(&v1::MsgCancelProposal { proposal_id: 1, proposer: address(1).account() })]);
    let ctx = crate::chain::next_block_context(&chain.state(), chain.height()).unwrap();
    let run = |votes: u32| {
        let mut state = Overlay::new(chain.state());
        for n in 0..votes {
            let mut voter = [7; 20];
            voter[..4].copy_from_slice(&n.to_be_bytes());
            let vote = v1::Vote { proposal_id: 1, voter: "a voter".into(), ..Default::default() };
            crate::gov::records::set_vote(&mut state, &Address(voter), &vote);
        }
        tx::run(&ctx, &mut state, &cancel, Mode::Deliver)
    };
    let done = run(100);
    assert!(done.result.is_ok() && done.gas_used < GAS_LIMIT, "{done:?}");
    let [one, other] = [20_000, 40_000].map(run);
    assert_eq!(one.result.as_ref().map_err(|error| error.code()), Err(("sdk", 11)), "{one:?}");
    assert!(one.gas_used < 4 * GAS_LIMIT, "{} of {GAS_LIMIT}", one.gas_used);
    assert_eq!(one, other, "whatever the others have written");
}

#[test]
fn rules_that_nobody_could_keep_to_are_refused() {
    let good = crate::auth::params(&crate::store::MemoryState::default());
    let update = |alter: &dyn Fn(&mut auth_proto::Params)| {
        let mut params = good.clone();
        alter(&mut params);
        auth_proto::MsgUpdateParams { authority: authority().account(), params: Some(params) }
    };
    update(&|_| {}).check().unwrap();
    for (message, text) in [
        (update(&|params| params.max_memo_characters = 0), "max_memo_characters: 1 to 256"),
        (update(&|params| params.max_memo_characters = 257), "max_memo_characters: 1 to 256"),
        (update(&|params| params.tx_sig_limit = 8), "tx_sig_limit: 1 to 7"),
        (update(&|params| params.tx_size_cost_per_byte = 1_001), "tx_size_cost_per_byte"),
        (update(&|params| params.sig_verify_cost_secp256k1 = 0), "sig_verify_cost_secp256k1"),
        (update(&|params| params.sig_verify_cost_ed25519 = u64::MAX), "sig_verify_cost_ed25519"),
    ] {
        let error = message.check().unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    let set = |denoms: &[&str], forgotten: &[&str]| bank_proto::MsgSetSendEnabled {
        authority: authority().account(),
        send_enabled: denoms
            .iter()
            .map(|denom| bank_proto::SendEnabled { denom: (*denom).into(), enabled: false })
            .collect(),
        use_default_for: forgotten.iter().map(|denom| (*denom).into()).collect(),
    };
    for (message, text) in [
        (set(&["a b"], &[]), "is not a denomination"),
        (set(&["uatom", "uplk", "uatom"], &[]), "duplicate denom entries"),
        (set(&[], &["uplk", "uplk"]), "duplicate denom entries"),
        (bank_proto::MsgSetSendEnabled { authority: address(1).account(), ..set(&["uplk"], &[]) }, "invalid authority"),
    ] {
        let error = message.check().unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    let mut state = crate::store::MemoryState::default();
    let mut ctx = crate::Context::new("c-1", 1, Default::default(), 20);
    for part in 0..2 {
        let denoms: Vec<String> = (0..60).map(|n| format!("coin{part}{n}")).collect();
        let denoms: Vec<&str> = denoms.iter().map(String::as_str).collect();
        let done = set(&denoms, &[]).execute(&mut ctx, &mut state);
        assert_eq!(done.is_ok(), part == 0, "at most a hundred: {done:?}");
    }
}
