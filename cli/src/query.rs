//! `polylink query`: what the ledger's state holds, for people and for scripts.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::path::Path;
use tendermint_rpc::Client as _;

use polylink_abci_app::query::GasPricesResponse;
use polylink_protocol::client::ChainClient;
use polylink_protocol::cosmos::cosmos::bank::v1beta1::{
    QueryBalanceRequest, QuerySupplyOfRequest, QuerySupplyOfResponse,
};
use polylink_protocol::cosmos::cosmos::distribution::v1beta1::{
    QueryDelegationTotalRewardsRequest, QueryDelegationTotalRewardsResponse,
};
use polylink_protocol::cosmos::cosmos::gov::v1 as gov;
use polylink_protocol::cosmos::cosmos::staking::v1beta1::{
    QueryDelegatorDelegationsRequest, QueryDelegatorDelegationsResponse, QueryDelegatorUnbondingDelegationsRequest,
    QueryDelegatorUnbondingDelegationsResponse, QueryValidatorsRequest, QueryValidatorsResponse,
};
use polylink_protocol::{Address, DENOM, Dec, Digest, market_v1 as market, tiqe_v1 as tiqe};

use crate::chain::{RpcArgs, parse_digest, resolve_address};
use crate::error::CliError;
use crate::home::Home;
use crate::output::Output;
use crate::suggest;
use crate::tx::default_profile;
use crate::verify;

/// `polylink query`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  polylink query balance user
  polylink query pot 3                  what the local worker earned for epoch 3
  polylink query round 3 --json         beacon, seats, commitments, reveals and medians of epoch 3's audit
  polylink query header --json > trusted.json

The same is had from CometBFT's RPC: method abci_query, path /package.Query/Method (see the proto files).")]
pub struct QueryArgs {
    #[command(flatten)]
    rpc: RpcArgs,
    #[command(subcommand)]
    what: What,
}

#[derive(Args, Debug)]
struct ProfileArg {
    /// Profile digest [default: the local network's]
    #[arg(long, value_parser = parse_digest)]
    profile: Option<Digest>,
}

impl ProfileArg {
    fn get(&self, home: &Path) -> Result<Digest, CliError> {
        self.profile.map_or_else(|| default_profile(home), Ok)
    }
}

#[derive(Args, Debug)]
struct WorkerArg {
    /// The worker: poly1… or the name of a key
    #[arg(long, default_value = "worker")]
    worker: String,
}

#[derive(Subcommand, Debug)]
enum What {
    /// An account's coins
    Balance {
        /// poly1… or the name of a key
        account: String,
    },
    /// An account's number and sequence
    Account {
        /// poly1… or the name of a key
        account: String,
    },
    /// An epoch: what was minted and burned
    Epoch {
        /// Its number [default: the current one]
        number: Option<u64>,
    },
    /// An audit round: beacon, seats, commitments, reveals, medians
    Round {
        /// The audited epoch
        epoch: u64,
        #[command(flatten)]
        profile: ProfileArg,
    },
    /// What a worker earned and committed in an epoch
    Pot {
        /// The epoch
        epoch: u64,
        #[command(flatten)]
        worker: WorkerArg,
        #[command(flatten)]
        profile: ProfileArg,
        /// That of private sessions
        #[arg(long)]
        private: bool,
    },
    /// All pots of an epoch
    Pots {
        /// The epoch
        epoch: u64,
        /// Those of private sessions
        #[arg(long)]
        private: bool,
    },
    /// A worker's running quality and evidence
    Quality {
        #[command(flatten)]
        worker: WorkerArg,
        #[command(flatten)]
        profile: ProfileArg,
    },
    /// The workers of a profile
    Workers {
        #[command(flatten)]
        profile: ProfileArg,
    },
    /// One worker, with its vesting
    Worker {
        /// poly1… or the name of a key
        #[arg(default_value = "worker")]
        operator: String,
    },
    /// The registered models
    Models,
    /// The price of 1,000 tokens of a profile in an epoch, and what it came from
    Price {
        /// The epoch [default: the current one]
        epoch: Option<u64>,
        #[command(flatten)]
        profile: ProfileArg,
    },
    /// The prices of a profile that are kept, oldest first
    PriceHistory {
        #[command(flatten)]
        profile: ProfileArg,
        /// Epochs at most
        #[arg(long, default_value_t = 1_000)]
        limit: u64,
    },
    /// Open reports of receipts that a worker is said to have omitted
    Reports {
        #[command(flatten)]
        worker: WorkerArg,
    },
    /// What convictions of workers gave back to a payer
    Refunds {
        /// poly1… or the name of a key
        #[arg(default_value = "user")]
        payer: String,
    },
    /// Sessions of a payer or payee
    Sessions {
        /// poly1… or the name of a key
        #[arg(long)]
        payer: Option<String>,
        /// poly1… or the name of a key
        #[arg(long)]
        payee: Option<String>,
    },
    /// One session
    Session {
        /// Its id
        id: u64,
    },
    /// The judges
    Judges,
    /// Trials of a worker
    Trials {
        #[command(flatten)]
        worker: WorkerArg,
    },
    /// The validators
    Validators,
    /// An account's stake: what is delegated, with its rewards, and what is being unbonded
    Stake {
        /// poly1… or the name of a key
        account: String,
    },
    /// Proposals, or one of them, with the votes so far
    Proposals {
        /// Its number [default: all]
        id: Option<u64>,
    },
    /// All coins there are
    Supply,
    /// A transaction by its hash
    Tx {
        /// 64 hexadecimal digits
        hash: String,
    },
    /// The parameters in force
    Params,
    /// What Keplr's experimentalSuggestChain takes
    SuggestChain {
        /// The REST that wallets shall ask [default: the local network's]
        #[arg(long)]
        rest: Option<String>,
    },
    /// A header with its signatures: what `polylink verify --trusted-header` takes
    Header {
        /// Its height [default: the newest]
        #[arg(long, default_value_t = 0)]
        height: u64,
    },
}

/// Runs `polylink query`.
pub async fn run(args: &QueryArgs, home: &Path, output: &Output) -> Result<(), CliError> {
    let value = match &args.what {
        // Header and signatures are JSON of CometBFT's own, which only a script reads.
        What::Header { height } => {
            let value = serde_json::to_value(verify::header(&args.rpc, *height, home).await?).unwrap_or_default();
            Output { json: true }.value(&value);
            return Ok(());
        }
        What::SuggestChain { rest } => {
            let rest = match rest {
                Some(url) => url.clone(),
                None => Home::new(home)?.require_network()?.url("rest")?,
            };
            // For a script of a page too.
            Output { json: true }.value(&suggest_chain(args, home, &rest).await?);
            return Ok(());
        }
        what => answer(&args.rpc.client(home)?, what, home).await?,
    };
    output.value(&value);
    Ok(())
}

async fn suggest_chain(args: &QueryArgs, home: &Path, rest: &str) -> Result<Value, CliError> {
    let (url, chain) = (args.rpc.url(home)?, args.rpc.client(home)?);
    let path = "/feemarket.feemarket.v1.Query/GasPrices";
    let prices: GasPricesResponse = chain.query(path, &QueryBalanceRequest::default()).await?;
    let atomics = prices.prices.first().and_then(|price| price.amount.parse::<f64>().ok()).unwrap_or_default();
    Ok(suggest::chain_info(&chain.status().await?.chain_id, &url, rest, atomics / 1e18))
}

async fn answer(chain: &ChainClient, what: &What, home: &Path) -> Result<Value, CliError> {
    let account = |text: &str| resolve_address(text, home);
    let market_path = |method: &str| format!("/polylink.market.v1.Query/{method}");
    let tiqe_path = |method: &str| format!("/polylink.tiqe.v1.Query/{method}");
    Ok(match what {
        What::Balance { account: text } => {
            let address = account(text)?;
            json!({"address": address.account(), "denom": DENOM, "amount": chain.balance(&address).await?})
        }
        What::Account { account: text } => {
            let address = account(text)?;
            let found = chain.account(&address).await?;
            let (number, sequence) = found.ok_or_else(|| {
                CliError::value("account", format!("{} is not on the chain: it never held a coin", address.account()))
            })?;
            json!({"address": address.account(), "account_number": number, "sequence": sequence})
        }
        What::Epoch { number } => {
            let request = market::QueryEpochRequest { number: number.unwrap_or(0), current: number.is_none() };
            json!(chain.query::<_, market::QueryEpochResponse>(&market_path("Epoch"), &request).await?)
        }
        What::Round { epoch, profile } => {
            let request = tiqe::QueryRoundRequest { epoch: *epoch, profile_digest: profile.get(home)?.to_vec() };
            json!(chain.query::<_, tiqe::QueryRoundResponse>(&tiqe_path("Round"), &request).await?)
        }
        What::Pot { epoch, worker, profile, private } => {
            let (worker, profile_digest) = (account(&worker.worker)?.account(), profile.get(home)?.to_vec());
            let request = market::QueryPotRequest { epoch: *epoch, worker, profile_digest, private: *private };
            json!(chain.query::<_, market::QueryPotResponse>(&market_path("Pot"), &request).await?)
        }
        What::Pots { epoch, private } => {
            let request = market::QueryPotsRequest { epoch: *epoch, pagination: None, private: *private };
            json!(chain.query::<_, market::QueryPotsResponse>(&market_path("Pots"), &request).await?)
        }
        What::Price { epoch, profile } => {
            let (profile_digest, epoch) = (profile.get(home)?.to_vec(), epoch.unwrap_or(0));
            let request = market::QueryPriceRequest { profile_digest, epoch };
            json!(chain.query::<_, market::QueryPriceResponse>(&market_path("Price"), &request).await?)
        }
        What::PriceHistory { profile, limit } => {
            let pagination = Some(market::PageRequest { key: vec![], limit: *limit });
            let request = market::QueryPriceHistoryRequest { profile_digest: profile.get(home)?.to_vec(), pagination };
            json!(chain.query::<_, market::QueryPriceHistoryResponse>(&market_path("PriceHistory"), &request).await?)
        }
        What::Reports { worker } => {
            let request = market::QueryReportsRequest { worker: account(&worker.worker)?.account(), pagination: None };
            json!(chain.query::<_, market::QueryReportsResponse>(&market_path("Reports"), &request).await?)
        }
        What::Refunds { payer } => {
            let request = market::QueryRefundsRequest { payer: account(payer)?.account(), pagination: None };
            json!(chain.query::<_, market::QueryRefundsResponse>(&market_path("Refunds"), &request).await?)
        }
        What::Quality { worker, profile } => {
            let (worker, profile_digest) = (account(&worker.worker)?.account(), profile.get(home)?.to_vec());
            let request = tiqe::QueryQualityRequest { worker, profile_digest };
            json!(chain.query::<_, tiqe::QueryQualityResponse>(&tiqe_path("Quality"), &request).await?)
        }
        What::Workers { profile } => {
            let request = market::QueryWorkersRequest { profile_digest: profile.get(home)?.to_vec(), pagination: None };
            json!(chain.query::<_, market::QueryWorkersResponse>(&market_path("Workers"), &request).await?)
        }
        What::Worker { operator } => {
            let request = market::QueryWorkerRequest { operator: account(operator)?.account() };
            json!(chain.query::<_, market::QueryWorkerResponse>(&market_path("Worker"), &request).await?)
        }
        What::Models => {
            let request = market::QueryModelsRequest { pagination: None };
            json!(chain.query::<_, market::QueryModelsResponse>(&market_path("Models"), &request).await?)
        }
        What::Sessions { payer, payee } => {
            let text = |who: &Option<String>| who.as_deref().map(|w| account(w).map(|a| a.account())).transpose();
            let (payer, payee) = (text(payer)?, text(payee)?);
            if payer.is_none() && payee.is_none() {
                return Err(CliError::value("sessions", "give --payer or --payee"));
            }
            let request = market::QuerySessionsRequest {
                payer: payer.unwrap_or_default(),
                payee: payee.unwrap_or_default(),
                pagination: None,
            };
            json!(chain.query::<_, market::QuerySessionsResponse>(&market_path("Sessions"), &request).await?)
        }
        What::Session { id } => {
            let request = market::QuerySessionRequest { session: *id };
            json!(chain.query::<_, market::QuerySessionResponse>(&market_path("Session"), &request).await?)
        }
        What::Judges => json!({"judges": chain.judges().await?}),
        What::Trials { worker } => {
            let request = tiqe::QueryTrialsRequest { worker: account(&worker.worker)?.account() };
            json!(chain.query::<_, tiqe::QueryTrialsResponse>(&tiqe_path("Trials"), &request).await?)
        }
        What::Validators => validators(chain).await?,
        What::Stake { account: text } => stake(chain, &account(text)?).await?,
        What::Proposals { id } => proposals(chain, *id).await?,
        What::Supply => {
            let request = QuerySupplyOfRequest { denom: DENOM.into() };
            let path = "/cosmos.bank.v1beta1.Query/SupplyOf";
            let supply: QuerySupplyOfResponse = chain.query(path, &request).await?;
            json!({"denom": DENOM, "amount": supply.amount.map(|c| c.amount).unwrap_or_else(|| "0".into())})
        }
        What::Tx { hash } => transaction(chain, hash).await?,
        What::Params => json!({"market": chain.market_params().await?, "tiqe": chain.tiqe_params().await?}),
        What::Header { .. } | What::SuggestChain { .. } => Value::Null,
    })
}

async fn validators(chain: &ChainClient) -> Result<Value, CliError> {
    let path = "/cosmos.staking.v1beta1.Query/Validators";
    let answer: QueryValidatorsResponse = chain.query(path, &QueryValidatorsRequest::default()).await?;
    let list: Vec<Value> = answer
        .validators
        .iter()
        .map(|v| {
            json!({"operator": v.operator_address, "tokens": v.tokens, "jailed": v.jailed, "status": v.status,
                   "moniker": v.description.as_ref().map(|d| d.moniker.clone())})
        })
        .collect();
    Ok(json!({"validators": list}))
}

async fn proposals(chain: &ChainClient, id: Option<u64>) -> Result<Value, CliError> {
    let path = |method: &str| format!("/cosmos.gov.v1.Query/{method}");
    let found = match id {
        Some(proposal_id) => {
            let request = gov::QueryProposalRequest { proposal_id };
            let answer: gov::QueryProposalResponse = chain.query(&path("Proposal"), &request).await?;
            answer.proposal.into_iter().collect()
        }
        None => {
            let request = gov::QueryProposalsRequest::default();
            let answer: gov::QueryProposalsResponse = chain.query(&path("Proposals"), &request).await?;
            answer.proposals
        }
    };
    let mut list = Vec::new();
    for proposal in found {
        let request = gov::QueryTallyResultRequest { proposal_id: proposal.id };
        let answer: gov::QueryTallyResultResponse = chain.query(&path("TallyResult"), &request).await?;
        let tally = answer.tally.unwrap_or_default();
        list.push(json!({
            "id": proposal.id,
            "title": proposal.title,
            "summary": proposal.summary,
            "status": proposal.status().as_str_name(),
            "failed_reason": proposal.failed_reason,
            "messages": proposal.messages.iter().map(|any| any.type_url.clone()).collect::<Vec<_>>(),
            "deposit": proposal.total_deposit.first().map_or("0", |coin| coin.amount.as_str()),
            "voting_end_seconds": proposal.voting_end_time.as_ref().map(|time| time.seconds),
            "tally": {"yes": tally.yes_count, "no": tally.no_count, "abstain": tally.abstain_count,
                      "no_with_veto": tally.no_with_veto_count},
        }));
    }
    Ok(json!({"proposals": list}))
}

async fn stake(chain: &ChainClient, account: &Address) -> Result<Value, CliError> {
    let delegator = account.account();
    let path = "/cosmos.staking.v1beta1.Query/DelegatorDelegations";
    let request = QueryDelegatorDelegationsRequest { delegator_addr: delegator.clone(), pagination: None };
    let delegated: QueryDelegatorDelegationsResponse = chain.query(path, &request).await?;
    let path = "/cosmos.staking.v1beta1.Query/DelegatorUnbondingDelegations";
    let request = QueryDelegatorUnbondingDelegationsRequest { delegator_addr: delegator.clone(), pagination: None };
    let unbonding: QueryDelegatorUnbondingDelegationsResponse = chain.query(path, &request).await?;
    let path = "/cosmos.distribution.v1beta1.Query/DelegationTotalRewards";
    let request = QueryDelegationTotalRewardsRequest { delegator_address: delegator };
    let rewards: QueryDelegationTotalRewardsResponse = chain.query(path, &request).await?;
    let delegations: Vec<Value> = delegated
        .delegation_responses
        .iter()
        .filter_map(|row| Some((row.delegation.as_ref()?, row.balance.as_ref()?)))
        .map(|(delegation, balance)| {
            let of = rewards.rewards.iter().find(|reward| reward.validator_address == delegation.validator_address);
            let atomics = of.and_then(|reward| reward.reward.first()).map_or("0", |coin| coin.amount.as_str());
            let rewards = Dec::from_atomics_str(atomics).unwrap_or(Dec::ZERO).to_string();
            json!({"validator": delegation.validator_address, "amount": balance.amount, "rewards": rewards})
        })
        .collect();
    let unbonding: Vec<Value> = unbonding
        .unbonding_responses
        .iter()
        .flat_map(|record| record.entries.iter().map(move |entry| (record, entry)))
        .map(|(record, entry)| {
            json!({"validator": record.validator_address, "amount": entry.balance, "height": entry.creation_height,
                   "completion_seconds": entry.completion_time.as_ref().map(|time| time.seconds)})
        })
        .collect();
    Ok(json!({"delegations": delegations, "unbonding": unbonding}))
}

async fn transaction(chain: &ChainClient, hash: &str) -> Result<Value, CliError> {
    let parsed: tendermint::Hash = hash
        .to_ascii_uppercase()
        .parse()
        .map_err(|e| CliError::value("hash", format!("`{hash}` is not 64 hexadecimal digits: {e}")))?;
    let found = chain.rpc().tx(parsed, false).await;
    let found = found.map_err(|e| CliError::http(chain.url(), format!("no transaction {hash}: {e}")))?;
    let events: Vec<Value> = found
        .tx_result
        .events
        .iter()
        .map(|event| {
            let attributes: serde_json::Map<String, Value> = event
                .attributes
                .iter()
                .filter_map(|a| Some((a.key_str().ok()?.to_owned(), Value::from(a.value_str().ok()?))))
                .collect();
            json!({"type": event.kind, "attributes": attributes})
        })
        .collect();
    Ok(json!({
        "hash": hash.to_ascii_uppercase(),
        "height": found.height.value(),
        "code": found.tx_result.code.value(),
        "codespace": found.tx_result.codespace,
        "log": found.tx_result.log,
        "gas_wanted": found.tx_result.gas_wanted,
        "gas_used": found.tx_result.gas_used,
        "events": events,
    }))
}
