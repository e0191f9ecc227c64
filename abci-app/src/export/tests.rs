//! Several ledgers fed the same random blocks of messages of every module, through the real store: two from the same
//! genesis document, and one that goes on from an exported state of the first.

use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::bank::v1beta1::{Input, MsgMultiSend, MsgSend, Output};
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::crypto::ed25519::PubKey;
use polylink_protocol::cosmos::cosmos::distribution::v1beta1::{
    MsgFundCommunityPool, MsgSetWithdrawAddress, MsgWithdrawDelegatorReward, MsgWithdrawValidatorCommission,
};
use polylink_protocol::cosmos::cosmos::feegrant::v1beta1::{BasicAllowance, MsgGrantAllowance, MsgRevokeAllowance};
use polylink_protocol::cosmos::cosmos::gov::v1::{MsgDeposit, MsgSubmitProposal, MsgVote};
use polylink_protocol::cosmos::cosmos::slashing::v1beta1::MsgUnjail;
use polylink_protocol::cosmos::cosmos::staking::v1beta1::{
    self as staking_proto, CommissionRates, Description, MsgBeginRedelegate, MsgCreateValidator, MsgDelegate,
    MsgUndelegate,
};
use polylink_protocol::cosmos::cosmos::vesting::v1beta1::MsgCreateVestingAccount;
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market::profile_digest;
use polylink_protocol::market_v1::*;
use polylink_protocol::tiqe_v1::MsgUnbondJudge;
use polylink_protocol::tx::any;
use polylink_protocol::{Address, DENOM};
use proptest::prelude::*;

use super::export;
use crate::genesis::Genesis;
use crate::gov::authority;
use crate::market::testbed::{profile, register_judge, register_model, register_worker, spend_key};
use crate::staking;
use crate::store::{Order, StateRead};
use crate::testing::{GENESIS_SECONDS, TestChain, genesis, key};

const PLK: u128 = 1_000_000;
/// Accounts that act; the last one is the validator of the genesis document.
const ACTORS: [u8; 6] = [1, 2, 3, 4, 5, 200];
/// Kinds of messages.
const KINDS: u8 = 25;

fn address(n: u8) -> Address {
    key(n).address()
}

fn coin(amount: u128) -> Coin {
    Coin { denom: DENOM.into(), amount: amount.to_string() }
}

/// A message of actor `by`, with another actor, an amount, and a small number.
fn message(kind: u8, by: u8, other: u8, amount: u128, small: u64) -> Any {
    let (me, to) = (address(by).account(), address(other).account());
    let (own, its) = (address(by).valoper(), address(other).valoper());
    let digest = || profile_digest(&profile()).to_vec();
    match kind {
        0 => any(&MsgSend { from_address: me, to_address: to, amount: vec![coin(amount)] }),
        1 => any(&MsgMultiSend {
            inputs: vec![Input { address: me, coins: vec![coin(amount)] }],
            outputs: vec![Output { address: to, coins: vec![coin(amount)] }],
        }),
        2 | 3 => any(&MsgDelegate { delegator_address: me, validator_address: its, amount: Some(coin(amount)) }),
        4 => any(&MsgUndelegate { delegator_address: me, validator_address: its, amount: Some(coin(amount / 2)) }),
        5 => any(&MsgBeginRedelegate {
            delegator_address: me,
            validator_src_address: its,
            validator_dst_address: address(200).valoper(),
            amount: Some(coin(amount / 2)),
        }),
        6 => any(&MsgCreateValidator {
            description: Some(Description { moniker: format!("v{by}"), ..Default::default() }),
            commission: Some(CommissionRates::default()),
            min_self_delegation: "1".into(),
            validator_address: own,
            pubkey: Some(any(&PubKey { key: ServiceKey::from_bytes(&[by; 32]).public_key().to_vec() })),
            value: Some(coin(amount)),
            ..Default::default()
        }),
        7 => any(&MsgWithdrawDelegatorReward { delegator_address: me, validator_address: its }),
        8 => any(&MsgWithdrawValidatorCommission { validator_address: own }),
        9 => any(&MsgSetWithdrawAddress { delegator_address: me, withdraw_address: to }),
        10 => any(&MsgFundCommunityPool { amount: vec![coin(amount)], depositor: me }),
        11 => any(&MsgUnjail { validator_addr: own }),
        12 => {
            let allowance = Some(any(&BasicAllowance { spend_limit: vec![coin(amount)], expiration: None }));
            any(&MsgGrantAllowance { granter: me, grantee: to, allowance })
        }
        13 => any(&MsgRevokeAllowance { granter: me, grantee: to }),
        14 => any(&MsgCreateVestingAccount {
            from_address: me,
            to_address: Address([by.wrapping_add(small as u8) | 1; 20]).account(),
            amount: vec![coin(amount)],
            end_time: GENESIS_SECONDS + small as i64 * 10 + 1,
            delayed: small.is_multiple_of(2),
        }),
        15 => {
            let params = staking_proto::Params {
                max_entries: 1 + small as u32,
                max_validators: 3,
                bond_denom: DENOM.into(),
                unbonding_time: Some(polylink_protocol::cosmos::tendermint::google::protobuf::Duration {
                    seconds: 6,
                    nanos: 0,
                }),
                historical_entries: 4,
                min_commission_rate: "0".into(),
            };
            let update = staking_proto::MsgUpdateParams { authority: authority().account(), params: Some(params) };
            any(&MsgSubmitProposal {
                messages: vec![any(&update)],
                initial_deposit: vec![coin(10 * PLK)],
                proposer: me,
                title: "t".into(),
                summary: "s".into(),
                ..Default::default()
            })
        }
        16 => any(&MsgDeposit { proposal_id: small, depositor: me, amount: vec![coin(amount)] }),
        17 => any(&MsgVote { proposal_id: small, voter: me, option: 1 + (amount % 4) as i32, ..Default::default() }),
        18 => any(&MsgRegisterModel { provider: me, ..register_model() }),
        19 => any(&register_worker(address(by))),
        20 => any(&MsgBond { operator: me, amount: amount.to_string() }),
        21 => any(&MsgUnbond { operator: me, amount: (amount / 3).to_string() }),
        22 => any(&MsgOpenSession {
            payer: me,
            payee: to,
            spend_key: spend_key().public_key().to_vec(),
            deposit: amount.to_string(),
            cap: amount.to_string(),
            window: 8,
            expiry_epoch: small + 1,
            profile_digest: digest(),
            ..Default::default()
        }),
        23 => any(&MsgCloseSession { signer: me, session: small, voucher: None }),
        _ if small.is_multiple_of(2) => {
            any(&polylink_protocol::tiqe_v1::MsgRegisterJudge { operator: me, ..register_judge(by % 9) })
        }
        _ => any(&MsgUnbondJudge { operator: me }),
    }
}

#[derive(Clone, Debug)]
struct Block {
    /// By whom, of which kind, with whom, how much, a small number.
    txs: Vec<(usize, u8, usize, u128, u64)>,
    /// An actor whose validator begins or ceases to be absent.
    toggled: usize,
    skipped: u64,
}

fn block() -> impl Strategy<Value = Block> {
    let amount = prop_oneof![1..1_000_u128, PLK..200 * PLK, Just(100 * PLK)];
    let tx = (0..ACTORS.len(), 0..KINDS, 0..ACTORS.len(), amount, 0..6_u64);
    let toggled = prop_oneof![9 => Just(0_usize), 1 => 1..5_usize];
    (proptest::collection::vec(tx, 1..7), toggled, prop_oneof![4 => Just(0_u64), 1 => 1..5_u64])
        .prop_map(|(txs, toggled, skipped)| Block { txs, toggled, skipped })
}

fn start() -> Genesis {
    let mut genesis = genesis(5);
    genesis.staking.unbonding_seconds = 6;
    genesis.staking.max_validators = 3;
    genesis.staking.historical_entries = 4;
    genesis.slashing.signed_blocks_window = 6;
    genesis.slashing.downtime_jail_seconds = 4;
    (genesis.gov.voting_seconds, genesis.gov.expedited_voting_seconds, genesis.gov.deposit_seconds) = (6, 3, 9);
    genesis.market.models.push(MsgRegisterModel { provider: address(1).account(), ..register_model() });
    genesis
}

/// The transactions of a block, signed in their order on what the chain has committed.
fn transactions(chain: &TestChain, block: &Block) -> Vec<Vec<u8>> {
    let mut ahead = [0_u64; ACTORS.len()];
    let sign = |(by, kind, other, amount, small): &(usize, u8, usize, u128, u64)| {
        let tx = chain.sign_after(
            ACTORS[*by],
            ahead[*by],
            vec![message(*kind, ACTORS[*by], ACTORS[*other], *amount, *small)],
        );
        ahead[*by] += 1;
        tx
    };
    block.txs.iter().map(sign).collect()
}

fn all(chain: &TestChain) -> Vec<(Vec<u8>, Vec<u8>)> {
    chain.state().iter_range(&[], None, Order::Ascending).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, max_shrink_iters: 60, ..ProptestConfig::default() })]

    #[test]
    fn ledgers_agree_whether_they_were_there_from_the_start_or_not(
        blocks in proptest::collection::vec(block(), 36),
        exported_at in 8..20_usize,
    ) {
        let (mut one, mut two) = (TestChain::start(&start()), TestChain::start(&start()));
        one.advance(1);
        two.advance(1);
        let mut third: Option<TestChain> = None;
        let (mut done, mut refused) = (0, 0);
        for (index, block) in blocks.iter().enumerate() {
            if index == exported_at {
                let state = export(&one.state()).unwrap();
                let restored = Genesis::from_json(state.to_string().as_bytes()).unwrap();
                third = Some(one.restored(&restored));
                prop_assert_eq!(&third.as_ref().unwrap().app_hash, &one.app_hash, "as it was exported");
            }
            let txs = transactions(&one, block);
            let mut results = Vec::new();
            for chain in [Some(&mut one), Some(&mut two), third.as_mut()].into_iter().flatten() {
                if block.toggled > 0 {
                    let consensus = Address::of_consensus_key(
                        &ServiceKey::from_bytes(&[ACTORS[block.toggled]; 32]).public_key(),
                    );
                    if !chain.absent.remove(&consensus) {
                        chain.absent.insert(consensus);
                    }
                }
                chain.skip_seconds(block.skipped);
                results.push(chain.deliver(txs.clone()));
            }
            done += results[0].iter().filter(|result| result.code == 0).count();
            refused += results[0].iter().filter(|result| result.code != 0).count();
            prop_assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "results of block {}", index);
            prop_assert_eq!(&one.app_hash, &two.app_hash, "block {}", index);
            if let Some(third) = &third {
                prop_assert_eq!(&one.app_hash, &third.app_hash, "block {} of the restored one", index);
            }
        }
        let third = third.unwrap();
        prop_assert_eq!(all(&one), all(&third));
        for chain in [&one, &two, &third] {
            chain.checked_supply();
            chain.app().store().check().map_err(|error| TestCaseError::fail(error.to_string()))?;
        }
        prop_assert!(done > 20 && refused > 5, "{} done, {} refused", done, refused);
        println!("{done} messages done, {refused} refused, {} validators", staking::bonded_validators(&one.state()).len());
    }
}

#[test]
fn a_state_that_does_not_add_up_is_not_taken() {
    let mut chain = TestChain::start(&start());
    chain.advance(2);
    let good = export(&chain.state()).unwrap();
    let refused = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut state = good.clone();
        change(&mut state);
        let parsed = Genesis::from_json(state.to_string().as_bytes());
        let imported = parsed.and_then(|genesis| crate::chain::genesis("c-1", Default::default(), &genesis));
        imported.map(|_| ()).expect_err("it was taken").to_string()
    };
    let balance = {
        let entries = good["exported"]["entries"].as_array().unwrap();
        // A key that begins with the byte 0x10.
        let is_balance = |entry: &serde_json::Value| {
            let key = entry[0].as_str().unwrap().as_bytes();
            key[0] == b'E' && (b'A'..=b'P').contains(&key[1])
        };
        entries.iter().position(is_balance).expect("somebody has coins")
    };
    for (said, text) in [
        (refused(&|state| drop(state["exported"]["entries"].as_array_mut().unwrap().remove(balance))), "conservation"),
        (refused(&|state| state["exported"]["entries"] = serde_json::json!([])), "no state of a chain"),
        (refused(&|state| state["exported"]["entries"][0][0] = "?".into()), "entries[0]"),
        (refused(&|state| state["exported"]["schema"] = 3.into()), "another version"),
        (refused(&|state| state["min_gas_price_milli"] = 7.into()), "nothing else"),
    ] {
        assert!(said.contains(text), "{said}");
    }
    let genesis = Genesis::from_json(good.to_string().as_bytes()).unwrap();
    assert_eq!(genesis.first_height(), chain.height() + 1);
}
