//! The mint beside an obvious model, in random blocks between which stake comes and goes, coins are burned, and governance
//! changes the parameters: inflation and provisions to the last decimal, what is minted to the micro-unit.

use polylink_protocol::DENOM;
use polylink_protocol::cosmos::cosmos::mint::v1beta1::{
    MsgUpdateParams, Params, QueryAnnualProvisionsRequest, QueryInflationRequest,
};
use polylink_protocol::{Address, Amount};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use crate::bank::{self, Pool};
use crate::context::{BlockTime, Context};
use crate::gov;
use crate::modules::{Answer, Handle, QueryContext};
use crate::store::MemoryState;
use crate::tests::number::{Number, ONE, over, over_even, places, times_even, whole};

const HOLDER: Address = Address([1; 20]);
const FUNDS: u128 = 1_000_000_000_000_000;

#[derive(Clone, Debug)]
enum Step {
    /// So many percent of what is free are bonded.
    Bond(u128),
    /// So many percent of what is bonded are free again.
    Free(u128),
    Burn(u128),
    /// All but the blocks in basis points.
    Params {
        change: u128,
        least: u128,
        most: u128,
        goal: u128,
        blocks: u64,
    },
    Blocks(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let bps = || prop_oneof![Just(0_u128), 1..=2_000_u128, 1..=100_u128];
    prop_oneof![
        3 => (0..=100_u128).prop_map(Step::Bond),
        2 => (0..=100_u128).prop_map(Step::Free),
        1 => (0..=90_u128).prop_map(Step::Burn),
        1 => (bps(), bps(), bps(), 0..=10_000_u128, prop_oneof![Just(0_u64), 200..1_000_u64, Just(6_311_520)])
            .prop_map(|(change, least, most, goal, blocks)| Step::Params { change, least, most, goal, blocks }),
        6 => (1..6_u64).prop_map(Step::Blocks),
    ]
}

/// A ratio in basis points.
fn bps(bps: u128) -> Number {
    over(places(bps), places(10_000))
}

struct Rules {
    change: u128,
    least: u128,
    most: u128,
    goal: u128,
    blocks: u64,
}

struct Run {
    state: MemoryState,
    ctx: Context,
    rules: Rules,
    inflation: Number,
    /// What the inflation of the last block would mint in a year.
    annual: Number,
    free: u128,
    bonded: u128,
    /// What was minted, in all.
    minted: u128,
    burned: u128,
}

impl Run {
    fn new() -> Self {
        let mut genesis = crate::Genesis::default().with_account(&HOLDER, Amount(FUNDS));
        (genesis.mint.inflation_bps, genesis.mint.inflation_max_bps) = (1_300, 2_000);
        genesis.mint.inflation_min_bps = 700;
        genesis.mint.blocks_per_year = 100;
        let (mut state, mut ctx) = (MemoryState::default(), Context::new("mint-1", 0, BlockTime::default(), 20));
        for module in [crate::bank::MODULE, super::super::MODULE] {
            (module.genesis)(&mut ctx, &mut state, &genesis).unwrap();
        }
        let rules = Rules { change: 1_300, least: 700, most: 2_000, goal: 6_700, blocks: 100 };
        let (inflation, annual) = (bps(1_300), places(0));
        Run { state, ctx, rules, inflation, annual, free: FUNDS, bonded: 0, minted: 0, burned: 0 }
    }

    fn block(&mut self) -> Result<(), TestCaseError> {
        let height = self.ctx.height + 1;
        self.ctx = Context::new("mint-1", height, BlockTime::default(), 20);
        (super::super::MODULE.begin_block)(&mut self.ctx, &mut self.state).unwrap();
        let supply = FUNDS + self.minted - self.burned;
        if self.rules.most == 0 {
            prop_assert!(self.ctx.events.is_empty(), "{:?}", self.ctx.events);
            return self.compare();
        }
        // What is bonded, as a part of the goal: a year moves the inflation by the distance to it.
        let ratio = if supply == 0 { places(0) } else { places(self.bonded) * places(ONE) / places(supply) };
        let reached = over_even(ratio, bps(self.rules.goal));
        let below = reached <= whole(1);
        let distance = if below { whole(1) - reached } else { reached - whole(1) };
        let step = over_even(times_even(distance, bps(self.rules.change)), whole(self.rules.blocks.into()));
        let moved = if below { self.inflation + step } else { self.inflation.saturating_sub(step) };
        self.inflation = moved.min(bps(self.rules.most)).max(bps(self.rules.least));
        self.annual = self.inflation * places(supply);
        let fresh = self.annual / places(self.rules.blocks.into()) / places(ONE);
        let fresh = u128::try_from(fresh).unwrap();
        self.minted += fresh;
        let event = self.ctx.events.iter().find(|event| event.kind == "mint").unwrap();
        prop_assert_eq!(&event.attributes.last().unwrap().1, &fresh.to_string());
        // The fees are spent, as the distribution does it.
        let all = bank::balance(&self.state, Pool::FeeCollector);
        prop_assert_eq!(all, Amount(fresh), "in the fee collector");
        bank::transfer(&mut self.ctx, &mut self.state, Pool::FeeCollector, HOLDER, all).unwrap();
        self.free += fresh;
        self.compare()
    }

    fn compare(&self) -> Result<(), TestCaseError> {
        let (ctx, state) = (&self.ctx, &self.state);
        let (height, epoch, epoch_blocks) = (ctx.height, ctx.epoch, ctx.epoch_blocks);
        let query = QueryContext { chain_id: ctx.chain_id.clone(), height, epoch, epoch_blocks };
        let answer = QueryInflationRequest {}.answer(&query, state).unwrap();
        prop_assert_eq!(answer.inflation, self.inflation.to_string().into_bytes());
        let answer = QueryAnnualProvisionsRequest {}.answer(&query, state).unwrap();
        prop_assert_eq!(answer.annual_provisions, self.annual.to_string().into_bytes());
        prop_assert_eq!(bank::flows(state, DENOM), (Amount(self.minted), Amount(self.burned)));
        prop_assert_eq!(bank::supply(state, DENOM), Amount(FUNDS + self.minted - self.burned));
        prop_assert_eq!(bank::balance(state, HOLDER), Amount(self.free));
        prop_assert_eq!(bank::balance(state, Pool::BondedTokens), Amount(self.bonded));
        prop_assert_eq!(bank::balance(state, Pool::Mint), Amount::ZERO);
        bank::scan(state).map_err(|breach| TestCaseError::fail(breach.to_string()))
    }

    fn apply(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let (ctx, state) = (&mut self.ctx, &mut self.state);
        match *step {
            Step::Bond(percent) => {
                let amount = self.free * percent / 100;
                bank::transfer(ctx, state, HOLDER, Pool::BondedTokens, Amount(amount)).unwrap();
                (self.free, self.bonded) = (self.free - amount, self.bonded + amount);
            }
            Step::Free(percent) => {
                let amount = self.bonded * percent / 100;
                bank::transfer(ctx, state, Pool::BondedTokens, HOLDER, Amount(amount)).unwrap();
                (self.free, self.bonded) = (self.free + amount, self.bonded - amount);
            }
            Step::Burn(percent) => {
                let amount = self.free * percent / 100;
                bank::transfer(ctx, state, HOLDER, Pool::Mint, Amount(amount)).unwrap();
                bank::burn(ctx, state, Pool::Mint, Amount(amount)).unwrap();
                (self.free, self.burned) = (self.free - amount, self.burned + amount);
            }
            Step::Params { change, least, most, goal, blocks } => {
                let text = |ratio: u128| bps(ratio).to_string();
                let params = Params {
                    mint_denom: DENOM.into(),
                    inflation_rate_change: text(change),
                    inflation_max: text(most),
                    inflation_min: text(least),
                    goal_bonded: text(goal),
                    blocks_per_year: blocks,
                };
                let message = MsgUpdateParams { authority: gov::authority().account(), params: Some(params) };
                let taken = message.check().and_then(|()| message.execute(ctx, state)).is_ok();
                prop_assert_eq!(taken, least <= most && goal > 0 && blocks > 0, "{:?}", step);
                if taken {
                    self.rules = Rules { change, least, most, goal, blocks };
                }
            }
            Step::Blocks(blocks) => {
                for _ in 0..blocks {
                    self.block()?;
                }
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn inflation_is_that_of_the_model(steps in proptest::collection::vec(step(), 500)) {
        let mut run = Run::new();
        for step in &steps {
            run.apply(step)?;
        }
        prop_assert!(run.minted > 0);
    }
}
