//! Random messages, valid and not, against an obvious model of each account's money; after every block the books of all
//! pools are checked by the test bed.

use std::collections::BTreeMap;

use polylink_protocol::market_v1::*;
use polylink_protocol::tiqe_v1::MsgUnbondJudge;
use polylink_protocol::{Address, Amount};
use proptest::prelude::*;

use crate::market::testbed::*;

#[derive(Clone, Debug)]
enum Step {
    Open { deposit: u128 },
    TopUp { session: u64, amount: u128 },
    Redeem { session: u64, back: u64, amount: u128, count: u64 },
    Close { session: u64, by_payer: bool },
    Commit { count: u64, amount: u128 },
    Unbond { amount: u128 },
    Bond { amount: u128 },
    Beacon { judge: u8 },
    Update { key: u8 },
    Leave { judge: u8 },
    Blocks { number: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let amount = || prop_oneof![0_u128..10, 0_u128..100_000, Just(FUNDS + 1)];
    prop_oneof![
        amount().prop_map(|deposit| Step::Open { deposit }),
        (0_u64..6, amount()).prop_map(|(session, amount)| Step::TopUp { session, amount }),
        (0_u64..6, 0_u64..3, amount(), 0_u64..40).prop_map(|(session, back, amount, count)| Step::Redeem {
            session,
            back,
            amount,
            count
        }),
        (0_u64..6, any::<bool>()).prop_map(|(session, by_payer)| Step::Close { session, by_payer }),
        (0_u64..4, 0_u128..50_000).prop_map(|(count, amount)| Step::Commit { count, amount }),
        amount().prop_map(|amount| Step::Unbond { amount }),
        Just(Step::Unbond { amount: 100_000_000 }),
        Just(Step::Bond { amount: 100_000_000 }),
        amount().prop_map(|amount| Step::Bond { amount }),
        (0_u8..3).prop_map(|judge| Step::Beacon { judge }),
        (20_u8..24).prop_map(|key| Step::Update { key }),
        (0_u8..9).prop_map(|judge| Step::Leave { judge }),
        (1_u64..9).prop_map(|number| Step::Blocks { number }),
    ]
}

/// The model: what each session has in escrow and has paid.
#[derive(Default)]
struct Model {
    /// id → (deposit, redeemed, open).
    sessions: BTreeMap<u64, (u128, u128, bool)>,
    /// What the payer has given away for good.
    spent: u128,
}

impl Model {
    fn payer(&self) -> u128 {
        let held: u128 = self.sessions.values().filter(|s| s.2).map(|(deposit, redeemed, _)| deposit - redeemed).sum();
        FUNDS - self.spent - held
    }
    fn redeem(&mut self, session: u64, amount: u128) -> u128 {
        let entry = self.sessions.get_mut(&session).unwrap();
        let increase = amount - entry.1;
        entry.1 = amount;
        self.spent += increase;
        increase
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn money_follows_the_model(steps in prop::collection::vec(step(), 1..60)) {
        let mut bed = Bed::with(3, |genesis| genesis.market.params.unbonding_epochs = 1);
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Open { deposit } => {
                    let message = MsgOpenSession {
                        payer: PAYER.account(), payee: WORKER.account(), spend_key: spend_key().public_key().to_vec(),
                        deposit: deposit.to_string(), window: 8, expiry_epoch: bed.ctx.epoch + 1,
                        profile_digest: bed.profile.to_vec(), ..Default::default()
                    };
                    if let Ok(response) = bed.send(&message) {
                        prop_assert!(deposit > 0);
                        model.sessions.insert(response.session, (deposit, 0, true));
                    }
                }
                Step::TopUp { session, amount } => {
                    let message = MsgTopUp { payer: PAYER.account(), session, amount: amount.to_string(), cap: "".into() };
                    if bed.send(&message).is_ok() {
                        model.sessions.get_mut(&session).unwrap().0 += amount;
                    }
                }
                Step::Redeem { session, back, amount, count } => {
                    let epoch = bed.ctx.epoch.saturating_sub(back);
                    if let Ok(increase) = bed.redeem(session, epoch, amount, count) {
                        prop_assert!(model.sessions[&session].2 && amount <= model.sessions[&session].0);
                        prop_assert_eq!(increase, Amount(model.redeem(session, amount)));
                    }
                }
                Step::Close { session, by_payer } => {
                    let signer: Address = if by_payer { PAYER } else { WORKER };
                    let message = MsgCloseSession { signer: signer.account(), session, voucher: None };
                    if let Ok(response) = bed.send(&message) {
                        let entry = model.sessions.get_mut(&session).unwrap();
                        prop_assert_eq!(response.refund, (entry.0 - entry.1).to_string());
                        entry.2 = false;
                    }
                }
                Step::Commit { count, amount } => {
                    if let Some(epoch) = bed.ctx.epoch.checked_sub(1) {
                        let _ = bed.commit(epoch, root(count, amount));
                    }
                }
                Step::Unbond { amount } => {
                    let _ = bed.send(&MsgUnbond { operator: WORKER.account(), amount: amount.to_string() });
                }
                Step::Bond { amount } => {
                    let _ = bed.send(&MsgBond { operator: WORKER.account(), amount: amount.to_string() });
                }
                Step::Beacon { judge } => {
                    if bed.ctx.epoch > 0 {
                        let _ = bed.submit_beacon(judge, bed.ctx.epoch - 1);
                    }
                }
                Step::Update { key } => {
                    let receipt_key = polylink_protocol::keys::ServiceKey::from_bytes(&[key; 32]).public_key().to_vec();
                    let offers = register_worker(WORKER).offers;
                    let _ = bed.send(&MsgUpdateWorker { operator: WORKER.account(), receipt_key, offers, ..Default::default() });
                }
                Step::Leave { judge: number } => {
                    let _ = bed.send(&MsgUnbondJudge { operator: judge(number).account() });
                }
                Step::Blocks { number } => (0..number).for_each(|_| drop(bed.block())),
            }
            prop_assert_eq!(bed.balance(PAYER), model.payer());
        }
        // Everything comes to rest: the pools of pots and vesting empty themselves.
        (0..20 * 14).for_each(|_| drop(bed.block()));
        prop_assert_eq!(bed.balance(crate::bank::Pool::MarketPots), 0);
        prop_assert_eq!(bed.balance(crate::bank::Pool::MarketVesting), 0);
    }
}
