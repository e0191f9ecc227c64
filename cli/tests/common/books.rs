//! The chain's books read at one height, and the laws that they must obey to the micro-unit.

use polylink_abci_app::bank::Pool;
use polylink_cli::keys::Keyring;
use polylink_protocol::client::{ChainClient, ClientError};
use polylink_protocol::cosmos::cosmos::bank::v1beta1::{
    QueryBalanceRequest, QueryBalanceResponse, QuerySupplyOfRequest, QuerySupplyOfResponse,
};
use polylink_protocol::market_v1::*;
use polylink_protocol::{Address, DENOM, Message};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::{Net, PATIENCE};

/// What the genesis of `polylink up` puts into the accounts, in uplk.
pub const GENESIS_SUPPLY: u128 = 2_071_000_000_000;
/// Every account that the genesis funds.
const ACCOUNTS: [&str; 10] =
    ["user", "gateway", "worker", "worker-2", "worker-3", "provider", "validator", "judge-1", "judge-2", "judge-3"];
/// Accounts that hold something where a test has made them.
const STRANGERS: [&str; 2] = ["one", "two"];
/// Pots of so many epochs may be unsettled.
const UNSETTLED_EPOCHS: u64 = 12;

/// Where the books are read.
pub struct Books {
    chain: ChainClient,
    accounts: BTreeMap<&'static str, Address>,
    /// What past epochs minted and burned, which nothing changes any more.
    sealed: BTreeMap<u64, (u128, u128)>,
}

/// The books at one height.
#[derive(Debug)]
pub struct Page {
    pub height: u64,
    pub epoch: u64,
    pub supply: u128,
    pub minted: u128,
    pub burned: u128,
    pub accounts: BTreeMap<&'static str, u128>,
    pub pools: BTreeMap<&'static str, u128>,
    pub sessions: Vec<Session>,
    pub workers: Vec<QueryWorkerResponse>,
    /// Of the newest epochs.
    pub pots: Vec<Pot>,
}

pub fn uplk(text: &str) -> u128 {
    if text.is_empty() { 0 } else { text.parse().unwrap_or_else(|e| panic!("{text}: {e}")) }
}

/// The node does not answer now: it may be on its way back.
struct Away;

/// Answers, and the heights that they were read at.
struct Reader<'a> {
    chain: &'a ChainClient,
    heights: BTreeSet<u64>,
}

impl Reader<'_> {
    /// `None`: the ledger has no such thing.
    async fn ask<Req: Message, Res: Message + Default>(
        &mut self,
        method: &str,
        request: &Req,
    ) -> Result<Option<Res>, Away> {
        let path =
            if method.starts_with('/') { method.to_owned() } else { format!("/polylink.market.v1.Query/{method}") };
        match self.chain.query_raw(&path, request.encode_to_vec(), 0, false).await {
            Ok(answer) => {
                self.heights.insert(answer.height);
                Ok(Some(Res::decode(answer.value.as_slice()).unwrap()))
            }
            Err(error) if error.is_not_found() => Ok(None),
            Err(ClientError::Unreachable { .. }) => Err(Away),
            Err(error) => panic!("{method}: {error}"),
        }
    }

    async fn balance(&mut self, of: &Address) -> Result<u128, Away> {
        let request = QueryBalanceRequest { address: of.account(), denom: DENOM.into() };
        let answer: Option<QueryBalanceResponse> = self.ask("/cosmos.bank.v1beta1.Query/Balance", &request).await?;
        Ok(answer.and_then(|a| a.balance).map_or(0, |coin| uplk(&coin.amount)))
    }
}

impl Books {
    pub fn of(net: &Net) -> Self {
        let ring = Keyring::new(net.home.path());
        let mut accounts: BTreeMap<_, _> =
            ACCOUNTS.iter().map(|name| (*name, ring.account(name).unwrap().address())).collect();
        accounts.extend(STRANGERS.iter().filter_map(|name| Some((*name, ring.account(name).ok()?.address()))));
        Self { chain: ChainClient::new(&net.rpc).unwrap(), accounts, sealed: BTreeMap::new() }
    }

    /// Reads everything between two blocks, and checks the laws.
    pub async fn checked(&mut self) -> Page {
        let start = Instant::now();
        loop {
            let mut reader = Reader { chain: &self.chain, heights: BTreeSet::new() };
            match Self::page(&mut reader, &self.accounts, &mut self.sealed).await {
                Ok(page) if reader.heights.len() == 1 => {
                    page.check();
                    return page;
                }
                // Overtaken by a block.
                Ok(_) => {}
                Err(Away) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
            assert!(start.elapsed() < PATIENCE, "no look at the books between two blocks succeeds");
        }
    }

    async fn page(
        reader: &mut Reader<'_>,
        accounts: &BTreeMap<&'static str, Address>,
        sealed: &mut BTreeMap<u64, (u128, u128)>,
    ) -> Result<Page, Away> {
        let current = QueryEpochRequest { number: 0, current: true };
        let now: QueryEpochResponse = reader.ask("Epoch", &current).await?.unwrap();
        let (epoch, height) = (now.epoch.as_ref().unwrap().number, now.height as u64);
        let flows = |e: &Epoch| (uplk(&e.minted), uplk(&e.burned));
        for number in 0..epoch {
            if let Entry::Vacant(unknown) = sealed.entry(number) {
                let request = QueryEpochRequest { number, current: false };
                let past: Option<QueryEpochResponse> = reader.ask("Epoch", &request).await?;
                unknown.insert(past.and_then(|p| p.epoch).map_or((0, 0), |e| flows(&e)));
            }
        }
        let (mut minted, mut burned) = flows(now.epoch.as_ref().unwrap());
        for (m, b) in sealed.values() {
            (minted, burned) = (minted + m, burned + b);
        }
        let request = QuerySupplyOfRequest { denom: DENOM.into() };
        let supply: QuerySupplyOfResponse = reader.ask("/cosmos.bank.v1beta1.Query/SupplyOf", &request).await?.unwrap();
        let mut page = Page {
            height,
            epoch,
            supply: uplk(&supply.amount.unwrap().amount),
            minted,
            burned,
            accounts: BTreeMap::new(),
            pools: BTreeMap::new(),
            sessions: Vec::new(),
            workers: Vec::new(),
            pots: Vec::new(),
        };
        for pool in Pool::ALL {
            page.pools.insert(pool.name(), reader.balance(&pool.address()).await?);
        }
        for (name, address) in accounts {
            page.accounts.insert(name, reader.balance(address).await?);
            let pagination = Some(PageRequest { key: vec![], limit: 1_000 });
            let request = QuerySessionsRequest { payer: address.account(), payee: String::new(), pagination };
            let sessions: Option<QuerySessionsResponse> = reader.ask("Sessions", &request).await?;
            page.sessions.extend(sessions.map(|s| s.sessions).unwrap_or_default());
            let request = QueryWorkerRequest { operator: address.account() };
            page.workers.extend(reader.ask::<_, QueryWorkerResponse>("Worker", &request).await?);
        }
        for epoch in epoch.saturating_sub(UNSETTLED_EPOCHS)..=epoch {
            for private in [false, true] {
                let request = QueryPotsRequest { epoch, pagination: None, private };
                let pots: Option<QueryPotsResponse> = reader.ask("Pots", &request).await?;
                page.pots.extend(pots.map(|p| p.pots).unwrap_or_default());
            }
        }
        Ok(page)
    }
}

impl Page {
    /// Supply = genesis + minted − burned = all accounts + all pools; each pool = what the records say is in it.
    fn check(&self) {
        assert_eq!(GENESIS_SUPPLY + self.minted - self.burned, self.supply, "supply: {self:#?}");
        let accounts: u128 = self.accounts.values().sum();
        let pools: u128 = self.pools.values().sum();
        assert_eq!(accounts + pools, self.supply, "accounts and pools: {self:#?}");
        let escrow: u128 =
            self.sessions.iter().filter(|s| !s.closed).map(|s| uplk(&s.deposit) - uplk(&s.redeemed)).sum();
        assert_eq!(self.pools["market_escrow"], escrow, "escrow: {self:#?}");
        let pots: u128 = self.pots.iter().filter(|p| !p.settled).map(|p| uplk(&p.redeemed) + uplk(&p.carried_in)).sum();
        assert_eq!(self.pools["market_pots"], pots, "pots: {self:#?}");
        let vesting: u128 = self.workers.iter().flat_map(|w| &w.vesting).map(|v| uplk(&v.amount)).sum();
        assert_eq!(self.pools["market_vesting"], vesting, "vesting: {self:#?}");
        let workers = self.workers.iter().filter_map(|w| w.worker.as_ref());
        let bonds: u128 =
            workers.map(|w| uplk(&w.bond) + w.unbonding.iter().map(|u| uplk(&u.amount)).sum::<u128>()).sum();
        assert_eq!(self.pools["worker_bonds"], bonds, "workers' bonds: {self:#?}");
    }

    /// All that was redeemed of the sessions between two accounts.
    pub fn redeemed(&self, books: &Books, payer: &str, payee: &str) -> u128 {
        let (payer, payee) = (books.accounts[payer].account(), books.accounts[payee].account());
        let sessions = self.sessions.iter().filter(|s| s.payer == payer && s.payee == payee);
        sessions.map(|s| uplk(&s.redeemed)).sum()
    }
}
