//! Messages of every module, made of a few numbers and of what stands in the state.

use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::bank::v1beta1::{Input, MsgMultiSend, MsgSend, Output};
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::crypto::ed25519::PubKey;
use polylink_protocol::cosmos::cosmos::distribution::v1beta1::{
    MsgFundCommunityPool, MsgSetWithdrawAddress, MsgWithdrawDelegatorReward, MsgWithdrawValidatorCommission,
};
use polylink_protocol::cosmos::cosmos::feegrant::v1beta1::{BasicAllowance, MsgGrantAllowance, MsgRevokeAllowance};
use polylink_protocol::cosmos::cosmos::gov::v1::{MsgCancelProposal, MsgDeposit, MsgSubmitProposal, MsgVote};
use polylink_protocol::cosmos::cosmos::slashing::v1beta1::MsgUnjail;
use polylink_protocol::cosmos::cosmos::staking::v1beta1::{
    self as staking_proto, CommissionRates, Description, MsgBeginRedelegate, MsgCancelUnbondingDelegation,
    MsgCreateValidator, MsgDelegate, MsgUndelegate,
};
use polylink_protocol::cosmos::cosmos::vesting::v1beta1::MsgCreateVestingAccount;
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market::{RECEIPT_CHAIN_START, profile_digest, sign_voucher};
use polylink_protocol::market_v1::*;
use polylink_protocol::tiqe::{score_commitment, vrf_input};
use polylink_protocol::tiqe_v1::*;
use polylink_protocol::tx::any;
use polylink_protocol::{Address, DENOM, Digest};

use crate::gov::authority;
use crate::market::records;
use crate::market::testbed::{profile, register_judge, register_model, register_worker, root, spend_key, vrf};
use crate::testing::{CHAIN_ID, GENESIS_SECONDS, TestChain, key};

pub const PLK: u128 = 1_000_000;
/// Accounts that act; the last one is the validator of the genesis document.
pub const ACTORS: [u8; 6] = [1, 2, 3, 4, 5, 200];
/// Of them, those that judge and those that work from the start.
pub const JUDGES: [u8; 3] = [1, 2, 3];
pub const WORKERS: [u8; 2] = [4, 5];
/// Blocks of an epoch.
pub const EPOCH_BLOCKS: u64 = 20;
/// Kinds of messages; from [`REDEEM`] on they redeem.
pub const KINDS: u8 = 40;
pub const REDEEM: u8 = 33;

pub fn address(n: u8) -> Address {
    key(n).address()
}

pub fn coin(amount: u128) -> Coin {
    Coin { denom: DENOM.into(), amount: amount.to_string() }
}

/// A message of actor `by`, with another actor, an amount, and a small number, as the chain stands.
pub fn message(chain: &TestChain, kind: u8, by: u8, other: u8, amount: u128, small: u64) -> Any {
    let (me, to) = (address(by).account(), address(other).account());
    let (own, its) = (address(by).valoper(), address(other).valoper());
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
            expiry_epoch: epoch(chain) + small + 1,
            private: amount.is_multiple_of(3),
            profile_digest: if small == 0 { vec![] } else { digest() },
        }),
        23 => any(&MsgCloseSession { signer: me, session: small, voucher: None }),
        24 if small.is_multiple_of(2) => any(&MsgRegisterJudge { operator: me, ..register_judge(by % 9) }),
        24 => any(&MsgUnbondJudge { operator: me }),
        25 => any(&MsgTopUp { payer: me, session: small, amount: amount.to_string(), cap: String::new() }),
        26 => any(&MsgRevokeSpendKey { payer: me, session: small, spend_key: spend_key().public_key().to_vec() }),
        27 => any(&MsgUpdateModel { provider: me, profile_digest: digest(), royalty_bps: 10 * small as u32 }),
        28 => {
            let MsgRegisterWorker { offers, receipt_key, .. } = register_worker(address(by));
            any(&MsgUpdateWorker { operator: me, offers, receipt_key, ..Default::default() })
        }
        29 => any(&MsgAppeal { worker: me, trial: small }),
        30 => any(&MsgCancelProposal { proposal_id: small, proposer: me }),
        31 => any(&MsgCancelUnbondingDelegation {
            delegator_address: me,
            validator_address: its,
            amount: Some(coin(amount / 4)),
            creation_height: chain.height() as i64 - small as i64,
        }),
        32 => vote(chain, by, WORKERS[small as usize % 2], !amount.is_multiple_of(4)),
        _ => redeem(chain, small, amount),
    }
}

/// The epoch of the next block.
pub fn epoch(chain: &TestChain) -> u64 {
    (chain.height() + 1) / EPOCH_BLOCKS
}

fn digest() -> Vec<u8> {
    profile_digest(&profile()).to_vec()
}

/// A payer's next voucher, for this epoch; the payee is whoever it is.
fn redeem(chain: &TestChain, session: u64, amount: u128) -> Any {
    let record = records::session(&chain.state(), session).unwrap_or_default();
    let left = records::uplk(&record.deposit).0.min(records::uplk(&record.cap).0) - records::uplk(&record.redeemed).0;
    let voucher = Voucher {
        chain_id: CHAIN_ID.into(),
        session,
        epoch: epoch(chain),
        amount: (records::uplk(&record.redeemed).0 + left.min(amount)).to_string(),
        count: record.redeemed_count + 1,
        receipts_hash: RECEIPT_CHAIN_START.to_vec(),
    };
    any(&MsgRedeem { payee: record.payee, voucher: Some(sign_voucher(voucher, &spend_key())) })
}

/// The session's payee, who must sign what [`redeem`] makes, where there is one.
pub fn payee(chain: &TestChain, session: u64) -> Option<u8> {
    let payee = records::session(&chain.state(), session)?.payee;
    ACTORS.into_iter().find(|n| address(*n).account() == payee)
}

/// In the newest trial of a worker.
fn vote(chain: &TestChain, by: u8, worker: u8, guilty: bool) -> Any {
    let request = QueryTrialsRequest { worker: address(worker).account() };
    let found: Option<QueryTrialsResponse> = chain.query("/polylink.tiqe.v1.Query/Trials", &request).ok();
    let trial = found.and_then(|answer| answer.trials.into_iter().max_by_key(|trial| trial.id)).unwrap_or_default();
    let scores = trial.samples.iter().map(|sample| Score { sample: sample.number, ..Default::default() }).collect();
    any(&MsgVoteTrial { judge: address(by).account(), trial: trial.id, guilty, scores: Some(Scores { scores }) })
}

/// What the window that is open asks of an actor: receipts of workers, beacons, scores and their reveal of judges. The scores
/// of an epoch are always the same.
pub fn duty(chain: &TestChain, by: u8) -> Option<Any> {
    let (now, offset) = (epoch(chain), (chain.height() + 1) % EPOCH_BLOCKS);
    let (epoch, me) = (now.checked_sub(1)?, address(by).account());
    if WORKERS.contains(&by) {
        let root = Some(root(1 + epoch % 7, 10 * PLK));
        let profile_digest = digest();
        return Some(any(&MsgCommitReceipts { operator: me, epoch, profile_digest, root, private_root: None }));
    }
    let profile = profile_digest(&profile());
    let profile_digest = digest();
    if offset < 9 {
        let request = QueryBeaconRequest { epoch: epoch.saturating_sub(1), profile_digest: profile_digest.clone() };
        let before: QueryBeaconResponse = chain.query("/polylink.tiqe.v1.Query/Beacon", &request).ok()?;
        let before = Digest::from_slice(&before.beacon)?;
        let proof = vrf(by).prove(&vrf_input(CHAIN_ID, &before, epoch, &profile)).unwrap();
        return Some(any(&MsgSubmitBeacon { judge: me, epoch, profile_digest, proof }));
    }
    let request = QueryRoundRequest { epoch, profile_digest: profile_digest.clone() };
    let round: QueryRoundResponse = chain.query("/polylink.tiqe.v1.Query/Round", &request).ok()?;
    let samples = round.round?.samples;
    let score = |sample: &Sample| Score {
        sample: sample.number,
        cross_bps: 9_000 - u32::from(by),
        evidence_milli: if epoch.is_multiple_of(3) { 900 } else { -300 },
        ..Default::default()
    };
    let scores = Scores { scores: samples.iter().map(score).collect() };
    if offset < 14 {
        let commitment = score_commitment(CHAIN_ID, epoch, &profile, &address(by), &[by; 32], &scores).to_vec();
        return Some(any(&MsgCommitScores { judge: me, epoch, profile_digest, commitment }));
    }
    Some(any(&MsgRevealScores { judge: me, epoch, profile_digest, salt: vec![by; 32], scores: Some(scores) }))
}
