//! Random transactions, right ones and such with one thing wrong, against an obvious model of accounts ([`model`]): what is
//! refused before a fee is paid and a sequence rises, what fails after it, and with which code. What was refused is sent again
//! later, when it may have become right; what was executed never is.

mod model;

use std::collections::BTreeMap;

use polylink_protocol::Address;
use polylink_protocol::cosmos::cosmos::auth::v1beta1::MsgUpdateParams;
use polylink_protocol::cosmos::cosmos::crypto::multisig::v1beta1::{CompactBitArray, MultiSignature};
use polylink_protocol::cosmos::cosmos::tx::v1beta1::mode_info::{Multi, Single};
use polylink_protocol::cosmos::cosmos::tx::v1beta1::{ModeInfo, SignerInfo};
use polylink_protocol::tx::any;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::*;
use crate::auth::{self, PublicKey};
use crate::bank;
use crate::chain;
use crate::context::{BlockTime, Context};
use crate::gov::authority;
use crate::modules::Handle;
use crate::store::{MemoryState, Overlay, StateRead};
use crate::testing::GENESIS_SECONDS;
use crate::tests::drawn;
use crate::tx::{GAS_MAX, Mode, Outcome, SIGNATURES_MAX, run as execute};
use model::*;

/// What one signer says and does, as it stands in the transaction.
#[derive(Clone, Debug)]
pub struct Signing {
    pub account: u8,
    pub number: u64,
    pub sequence: u64,
    /// Its own key, another's, or none.
    pub key: Said,
    /// Which of several keys sign.
    pub parts: Vec<usize>,
    /// Direct, or amino JSON.
    pub mode: i32,
    pub flaw: Flaw,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    Own,
    Other,
    Nothing,
}

/// What may be wrong with a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    None,
    /// Over another chain's id.
    Chain,
    /// By another key.
    Key,
    /// A bit of it.
    Bit,
    /// The other of the two `s` that a curve has.
    HighS,
}

/// How much gas a transaction may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gas {
    Ample,
    /// Less than its bytes cost.
    Tiny,
    /// Enough for what stands before its messages.
    Mid,
    /// More than any may have.
    Huge,
}

/// A transaction, and what is known of it without looking at any state.
#[derive(Clone, Debug)]
pub struct Sent {
    pub signers: Vec<Signing>,
    pub sends: Vec<(u8, u8, u128)>,
    pub payer: Option<u8>,
    pub fee: u128,
    pub gas: Gas,
    pub gas_limit: u64,
    pub timeout: u64,
    pub memo: usize,
    /// Signatures too many, or too few.
    pub surplus: i8,
}

/// The one thing that may be wrong with a transaction.
#[derive(Clone, Debug)]
enum Wrong {
    Nothing,
    Sequence { who: usize, by: i64 },
    Number { who: usize },
    Flaw { who: usize, flaw: Flaw },
    Key { who: usize, said: Said },
    Parts { who: usize, parts: Vec<usize> },
    Fee(u128),
    Gas(Gas),
    Timeout,
    Memo(usize),
    Surplus(i8),
}

#[derive(Clone, Debug)]
enum Step {
    Tx {
        by: u8,
        also: Option<u8>,
        payer: Option<u8>,
        sends: Vec<(bool, u8, u128)>,
        amino: bool,
        /// Whether keys that are known are left out.
        terse: bool,
        wrong: Wrong,
    },
    /// Something that was sent before, as it was.
    Again(usize),
    /// What governance allows.
    Rules {
        keys: u64,
        memo: u64,
    },
    Blocks(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let account = || prop_oneof![20 => 1..NOBODY, 1 => Just(NOBODY)];
    let to = prop_oneof![9 => 1..NOBODY, 2 => NOBODY + 1..=ALL];
    let amount = prop_oneof![12 => 1..1_000_u128, 2 => 1..60_000_u128, 1 => Just(u128::MAX)];
    let sends = proptest::collection::vec((prop::bool::ANY, to, amount), 1..4);
    let who = || 0..3_usize;
    let flaw = prop_oneof![Just(Flaw::Chain), Just(Flaw::Key), Just(Flaw::Bit), Just(Flaw::HighS)];
    let parts = proptest::collection::vec(0..3_usize, 0..4);
    let wrong = prop_oneof![
        16 => Just(Wrong::Nothing),
        2 => (who(), prop_oneof![1..3_i64, Just(-1)]).prop_map(|(who, by)| Wrong::Sequence { who, by }),
        1 => who().prop_map(|who| Wrong::Number { who }),
        4 => (who(), flaw).prop_map(|(who, flaw)| Wrong::Flaw { who, flaw }),
        2 => (who(), prop_oneof![Just(Said::Other), Just(Said::Nothing)])
            .prop_map(|(who, said)| Wrong::Key { who, said }),
        2 => (who(), parts).prop_map(|(who, parts)| Wrong::Parts { who, parts }),
        2 => prop_oneof![0..FEE, Just(FEE + 9), Just(40_000)].prop_map(Wrong::Fee),
        3 => prop_oneof![Just(Gas::Tiny), Just(Gas::Mid), Just(Gas::Huge)].prop_map(Wrong::Gas),
        1 => Just(Wrong::Timeout),
        1 => (1..300_usize).prop_map(Wrong::Memo),
        1 => prop_oneof![Just(-1_i8), Just(1), Just(8)].prop_map(Wrong::Surplus),
    ];
    let other = || proptest::option::weighted(0.25, account());
    prop_oneof![
        30 => (account(), other(), other(), sends, prop::bool::ANY, prop::bool::ANY, wrong).prop_map(
            |(by, also, payer, sends, amino, terse, wrong)| Step::Tx { by, also, payer, sends, amino, terse, wrong },
        ),
        4 => (0..60_usize).prop_map(Step::Again),
        1 => (1..=SIGNATURES_MAX as u64, 1..=200_u64).prop_map(|(keys, memo)| Step::Rules { keys, memo }),
        4 => (1..3_u64).prop_map(Step::Blocks),
    ]
}

/// The keys of an account: one, or several of which some sign.
fn keys_of(n: u8) -> PublicKey {
    match MULTI.iter().find(|(account, ..)| *account == n) {
        Some((_, threshold, keys)) => {
            PublicKey::Multi { threshold: *threshold as u32, keys: keys.iter().map(|n| key(*n).public_key()).collect() }
        }
        None => PublicKey::Single(key(n).public_key()),
    }
}

pub fn address(n: u8) -> Address {
    keys_of(n).address()
}

/// `n - s`, of the order of the curve.
fn high(signature: &mut [u8]) {
    let order = hex::decode("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141").unwrap();
    let mut borrow = 0;
    for at in (0..32).rev() {
        let digit = i32::from(order[at]) - i32::from(signature[32 + at]) - borrow;
        borrow = i32::from(digit < 0);
        signature[32 + at] = (digit + 256 * borrow) as u8;
    }
}

/// The transaction's bytes.
fn encode(tx: &Sent) -> Vec<u8> {
    let message = |(from, to, amount): &(u8, u8, u128)| {
        let (from_address, to_address) = (address(*from).account(), address(*to).account());
        any(&MsgSend { from_address, to_address, amount: vec![coin(*amount)] })
    };
    let body = TxBody {
        messages: tx.sends.iter().map(message).collect(),
        memo: "m".repeat(tx.memo),
        timeout_height: tx.timeout,
        ..Default::default()
    };
    let single = |mode: i32| ModeInfo { sum: Some(Sum::Single(Single { mode })) };
    let several = |signing: &Signing| MULTI.iter().find(|(account, ..)| *account == signing.account);
    let info = |signing: &Signing| {
        let mode_info = match several(signing) {
            None => single(signing.mode),
            Some((.., keys)) => {
                let bits = signing.parts.iter().fold(0, |bits, part| bits | 0x80_u8 >> part);
                let bitarray = Some(CompactBitArray { extra_bits_stored: keys.len() as u32, elems: vec![bits] });
                let mode_infos = signing.parts.iter().map(|_| single(signing.mode)).collect();
                ModeInfo { sum: Some(Sum::Multi(Multi { bitarray, mode_infos })) }
            }
        };
        let public_key = match signing.key {
            Said::Own => Some(keys_of(signing.account).to_any()),
            Said::Other => Some(PublicKey::Single(key(99).public_key()).to_any()),
            Said::Nothing => None,
        };
        SignerInfo { public_key, mode_info: Some(mode_info), sequence: signing.sequence }
    };
    let amount = if tx.fee == 0 { vec![] } else { vec![coin(tx.fee)] };
    let payer = tx.payer.map(|n| address(n).account()).unwrap_or_default();
    let fee = Fee { amount, gas_limit: tx.gas_limit, payer, ..Default::default() };
    let signer_infos = tx.signers.iter().map(info).collect();
    let auth_info_bytes = AuthInfo { signer_infos, fee: Some(fee.clone()), ..Default::default() }.encode_to_vec();
    let body_bytes = body.encode_to_vec();
    let sign = |signing: &Signing| {
        let chain_id = if signing.flaw == Flaw::Chain { "other-1" } else { CHAIN_ID };
        let document = if signing.mode == 127 {
            amino::SignDoc {
                chain_id,
                account_number: signing.number,
                sequence: signing.sequence,
                fee: &fee,
                messages: &body.messages,
                memo: &body.memo,
                timeout_height: tx.timeout,
            }
            .to_bytes()
            .unwrap()
        } else {
            let (body_bytes, auth_info_bytes) = (body_bytes.clone(), auth_info_bytes.clone());
            SignDoc { body_bytes, auth_info_bytes, chain_id: chain_id.into(), account_number: signing.number }
                .encode_to_vec()
        };
        let by = |n: u8| {
            let mut signature = key(if signing.flaw == Flaw::Key { 98 } else { n }).sign(&document).to_vec();
            match signing.flaw {
                Flaw::Bit => signature[40] ^= 4,
                Flaw::HighS => high(&mut signature),
                _ => {}
            }
            signature
        };
        match several(signing) {
            None => by(signing.account),
            Some((.., keys)) => {
                MultiSignature { signatures: signing.parts.iter().map(|part| by(keys[*part])).collect() }
                    .encode_to_vec()
            }
        }
    };
    let mut signatures: Vec<Vec<u8>> = tx.signers.iter().map(sign).collect();
    match tx.surplus {
        0 => {}
        -1 => drop(signatures.pop()),
        more => (0..more).for_each(|_| signatures.push(vec![7; 64])),
    }
    TxRaw { body_bytes, auth_info_bytes, signatures }.encode_to_vec()
}

struct Run {
    state: MemoryState,
    ctx: Context,
    model: Model,
    sent: Vec<Sent>,
    seen: BTreeMap<String, usize>,
}

fn block(height: u64, state: &MemoryState) -> Context {
    let time = BlockTime { seconds: GENESIS_SECONDS.saturating_add_unsigned(height), nanos: 0 };
    Context::new(CHAIN_ID, height, time, 1_000).under_rules_of(state)
}

impl Run {
    fn new() -> Self {
        let mut genesis = genesis(0);
        let model = Model::new();
        for n in &model.people {
            genesis = genesis.with_account(&address(*n), Amount(model.held[n]));
        }
        let begin = BlockTime { seconds: GENESIS_SECONDS, nanos: 0 };
        let (changes, _) = chain::genesis(CHAIN_ID, begin, &genesis).unwrap();
        let mut state = MemoryState::default();
        state.apply(&changes);
        let ctx = block(1, &state);
        Run { state, ctx, model, sent: Vec::new(), seen: BTreeMap::new() }
    }

    /// On a layer of its own; `keep` applies what is to be kept.
    fn execute(&mut self, tx: &Sent, mode: Mode, keep: bool) -> Outcome {
        let mut layer = Overlay::new(&self.state as &dyn StateRead);
        let outcome = execute(&self.ctx, &mut layer, &encode(tx), mode);
        let changes = layer.into_changes();
        if keep {
            self.state.apply(&changes);
        }
        outcome
    }

    /// The transaction of a step, as things stand.
    fn made(&mut self, step: &Step) -> Sent {
        let Step::Tx { by, also, payer, sends, amino, terse, wrong } = step else { unreachable!("no transaction") };
        let from = |second: &bool| if *second { also.unwrap_or(*by) } else { *by };
        let sends: Vec<(u8, u8, u128)> =
            sends.iter().map(|(second, to, amount)| (from(second), *to, *amount)).collect();
        let signers: Vec<Signing> = signers(&sends, *payer)
            .into_iter()
            .map(|account| {
                let known = self.model.accounts.get(&account);
                let several = MULTI.iter().find(|(n, ..)| *n == account);
                Signing {
                    account,
                    number: self.model.number(account).unwrap_or(77),
                    sequence: known.map_or(0, |account| account.sequence),
                    key: if *terse && known.is_some_and(|known| known.key) { Said::Nothing } else { Said::Own },
                    parts: several.map_or(vec![], |(_, threshold, _)| (0..*threshold).collect()),
                    mode: if *amino { 127 } else { 1 },
                    flaw: Flaw::None,
                }
            })
            .collect();
        let mut tx = Sent {
            signers,
            sends,
            payer: *payer,
            fee: FEE,
            gas: Gas::Ample,
            gas_limit: GAS,
            timeout: 0,
            memo: 0,
            surplus: 0,
        };
        let of = |who: usize| who % tx.signers.len();
        match wrong.clone() {
            Wrong::Nothing => {}
            Wrong::Sequence { who, by } => {
                let at = of(who);
                tx.signers[at].sequence = tx.signers[at].sequence.saturating_add_signed(by);
            }
            Wrong::Number { who } => {
                let at = of(who);
                tx.signers[at].number += 1;
            }
            Wrong::Flaw { who, flaw } => {
                let at = of(who);
                tx.signers[at].flaw = flaw;
            }
            Wrong::Key { who, said } => {
                let at = of(who);
                tx.signers[at].key = said;
            }
            Wrong::Parts { who, mut parts } => {
                let at = of(who);
                if let Some((.., keys)) = MULTI.iter().find(|(n, ..)| *n == tx.signers[at].account) {
                    // Each once, and in the order of their bits: another number of them than must sign.
                    parts.retain(|part| *part < keys.len());
                    parts.sort_unstable();
                    parts.dedup();
                    tx.signers[at].parts = parts;
                }
            }
            Wrong::Fee(fee) => tx.fee = fee,
            Wrong::Gas(gas) => tx.gas = gas,
            Wrong::Timeout => tx.timeout = (self.ctx.height - 1).max(1),
            Wrong::Memo(memo) => tx.memo = memo,
            Wrong::Surplus(surplus) => tx.surplus = surplus,
        }
        match tx.gas {
            Gas::Ample => {}
            Gas::Tiny => tx.gas_limit = 900,
            Gas::Huge => tx.gas_limit = GAS_MAX + 1,
            Gas::Mid => {
                let whole = self.execute(&tx, Mode::Deliver, false);
                let ante = self.execute(&tx, Mode::Check, false).gas_used;
                if whole.result.is_ok() {
                    assert!(whole.gas_used > ante + 2_000, "{ante} of {}", whole.gas_used);
                    tx.gas_limit = (whole.gas_used + ante) / 2;
                } else {
                    tx.gas = Gas::Ample;
                }
            }
        }
        tx
    }

    fn deliver(&mut self, tx: &Sent) -> Result<(), TestCaseError> {
        let expected = self.model.judge(tx, self.ctx.height);
        let code = |outcome: &Outcome| outcome.result.as_ref().map(|_| ()).map_err(|error| error.code().1);
        let checked = self.execute(tx, Mode::Check, false);
        let before = expected.err().filter(|refused| !refused.paid).map_or(Ok(()), |refused| Err(refused.code));
        prop_assert_eq!(code(&checked), before, "checked {:?}: {:?}; {:?}", tx, checked.result, self.model);
        let done = self.execute(tx, Mode::Deliver, true);
        prop_assert_eq!(code(&done), expected.map_err(|refused| refused.code), "{:?}: {:?}", tx, done.result);
        let kind = match expected {
            Ok(()) => "done".to_owned(),
            Err(Refused { code, paid: true }) => format!("{code} after"),
            Err(Refused { code, paid: false }) => format!("{code} before"),
        };
        *self.seen.entry(kind).or_default() += 1;
        self.model.apply(tx, expected);
        self.compare()
    }

    fn apply(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Tx { .. } => {
                let tx = self.made(step);
                self.sent.push(tx.clone());
                self.deliver(&tx)
            }
            Step::Again(back) => match self.sent.iter().nth_back(*back).cloned() {
                Some(tx) => self.deliver(&tx),
                None => Ok(()),
            },
            Step::Rules { keys, memo } => {
                let params = auth::params(&self.state);
                let params = Some(polylink_protocol::cosmos::cosmos::auth::v1beta1::Params {
                    max_memo_characters: *memo,
                    tx_sig_limit: *keys,
                    ..params
                });
                let message = MsgUpdateParams { authority: authority().account(), params };
                message.check().and_then(|()| message.execute(&mut self.ctx, &mut self.state).map(|_| ())).unwrap();
                self.model.next_rules = (*keys, *memo);
                Ok(())
            }
            Step::Blocks(blocks) => {
                self.ctx = block(self.ctx.height + blocks, &self.state);
                self.model.rules = self.model.next_rules;
                Ok(())
            }
        }
    }

    fn compare(&self) -> Result<(), TestCaseError> {
        for n in 1..=ALL {
            let found = auth::account(&self.state, &address(n));
            let expected = self.model.accounts.get(&n);
            let found = found.map(|found| (Some(found.number), found.sequence, found.public_key));
            let key = |known: &Known| known.key.then(|| keys_of(n));
            let expected = expected.map(|known| (self.model.number(n), known.sequence, key(known)));
            prop_assert_eq!(found, expected, "account {}", n);
            let held = self.model.held.get(&n).copied().unwrap_or(0);
            prop_assert_eq!(bank::balance(&self.state, address(n)).0, held, "balance of {}", n);
        }
        prop_assert_eq!(bank::balance(&self.state, Pool::FeeCollector).0, self.model.fees);
        Ok(())
    }
}

fn sequences() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 500)
}

fn run(steps: &[Step]) -> Result<Run, TestCaseError> {
    let mut run = Run::new();
    steps.iter().try_for_each(|step| run.apply(step))?;
    Ok(run)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, max_shrink_iters: 300, ..ProptestConfig::default() })]

    /// Random sequences of 500 steps are taken and refused as the model says, and cost what it says.
    #[test]
    fn accounts_agree_with_the_model(steps in sequences()) {
        println!("{:?}", run(&steps)?.seen);
    }
}

#[test]
fn sequences_do_some_of_everything() {
    let before = [4, 5, 8, 9, 11, 12, 13, 14, 30, 32, 41].map(|code| format!("{code} before"));
    let kinds: Vec<&str> = before.iter().map(String::as_str).chain(["done", "5 after", "11 after"]).collect();
    drawn::all_of(&kinds, 3, sequences(), |steps| run(steps).map(|run| run.seen));
}
