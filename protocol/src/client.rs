//! The chain client: the one way by which services and the command line reach the ledger, over CometBFT's RPC.
//!
//! Always holds: an account's transactions are signed and sent one after another, so that their sequences follow each
//! other; every wait has a deadline; an error says which call failed and what the node answered.

mod sender;

use std::time::Duration;

use prost::{Message, Name};
use tendermint_rpc::client::CompatMode;
use tendermint_rpc::{Client as _, HttpClient};

use crate::cosmos::cosmos::auth::v1beta1::{BaseAccount, QueryAccountRequest, QueryAccountResponse};
use crate::cosmos::cosmos::bank::v1beta1::{QueryBalanceRequest, QueryBalanceResponse};
use crate::{Address, Amount, DENOM, Digest, market_v1 as market, tiqe_v1 as tiqe};

pub use sender::{TxOutcome, TxTerms};

/// The longest a single RPC call may take.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the chain did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address cannot be used.
    #[error("`{url}` is not an RPC address such as http://127.0.0.1:26657: {reason}")]
    Url {
        /// As given.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// No answer from the node.
    #[error("the node at {url} did not answer `{call}`: {reason}; is it running?")]
    Unreachable {
        /// The node.
        url: String,
        /// The RPC method or query path.
        call: String,
        /// What the transport said.
        reason: String,
    },
    /// The thing asked for does not exist.
    #[error("{path}: {log}")]
    NotFound {
        /// Query path.
        path: String,
        /// The ledger's words.
        log: String,
    },
    /// The ledger refused a query.
    #[error("query {path} failed with code {code}: {log}")]
    Query {
        /// Query path.
        path: String,
        /// Its code.
        code: u32,
        /// The ledger's words.
        log: String,
    },
    /// An answer of another shape than expected: the node runs another version.
    #[error("the answer of {call} cannot be read: {reason}")]
    Decode {
        /// The call.
        call: String,
        /// What is wrong.
        reason: String,
    },
    /// The ledger refused a transaction, before or after it was in a block.
    #[error("transaction {hash} refused (codespace {codespace}, code {code}): {log}")]
    Refused {
        /// Its hash.
        hash: String,
        /// Module that refused it.
        codespace: String,
        /// Its code there.
        code: u32,
        /// The ledger's words.
        log: String,
    },
    /// Sent, and not seen in a block in time. It may still be included.
    #[error("transaction {hash} was not in a block after {seconds} s; it may still be included")]
    Timeout {
        /// Its hash.
        hash: String,
        /// Waited.
        seconds: u64,
    },
}

impl ClientError {
    /// True where the ledger says that the thing does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

/// What a node says of itself.
#[derive(Clone, Debug)]
pub struct ChainStatus {
    /// The chain.
    pub chain_id: String,
    /// Newest committed height.
    pub height: u64,
    /// Still replaying old blocks.
    pub catching_up: bool,
    /// Application hash in the newest header.
    pub app_hash: Vec<u8>,
    /// CometBFT's version.
    pub version: String,
}

/// A raw answer of the application.
#[derive(Clone, Debug)]
pub struct RawAnswer {
    /// The value.
    pub value: Vec<u8>,
    /// Height of the state that it was read from; its root stands in the header of the next height.
    pub height: u64,
    /// Proof operations (type, key, data) when asked for.
    pub proof: Vec<(String, Vec<u8>, Vec<u8>)>,
}

/// A handle on one node; cheap to clone, clones share the account sequences.
#[derive(Clone)]
pub struct ChainClient {
    url: String,
    http: HttpClient,
    senders: sender::Senders,
}

impl ChainClient {
    /// For the node at an RPC address. Does not connect yet.
    pub fn new(url: &str) -> Result<Self, ClientError> {
        let wrong = |reason: String| ClientError::Url { url: url.into(), reason };
        let parsed: tendermint_rpc::HttpClientUrl =
            url.parse().map_err(|e: tendermint_rpc::Error| wrong(e.to_string()))?;
        let http = HttpClient::builder(parsed)
            .compat_mode(CompatMode::V0_38)
            .timeout(CALL_TIMEOUT)
            .build()
            .map_err(|e| wrong(e.to_string()))?;
        Ok(Self { url: url.into(), http, senders: sender::Senders::default() })
    }

    /// The node's address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The underlying RPC client, for calls that have no wrapper here (headers, validators).
    pub fn rpc(&self) -> &HttpClient {
        &self.http
    }

    fn unreachable(&self, call: &str, error: tendermint_rpc::Error) -> ClientError {
        let reason = error.to_string();
        let reason = reason.split("Location:").next().unwrap_or_default().trim().to_string();
        ClientError::Unreachable { url: self.url.clone(), call: call.into(), reason }
    }

    /// Chain id, height and whether the node has caught up.
    pub async fn status(&self) -> Result<ChainStatus, ClientError> {
        let status = self.http.status().await.map_err(|e| self.unreachable("status", e))?;
        Ok(ChainStatus {
            chain_id: status.node_info.network.to_string(),
            height: status.sync_info.latest_block_height.value(),
            catching_up: status.sync_info.catching_up,
            app_hash: status.sync_info.latest_app_hash.as_bytes().to_vec(),
            version: status.node_info.version.to_string(),
        })
    }

    /// One ABCI query. `height` 0 is the newest.
    pub async fn query_raw(
        &self,
        path: &str,
        data: Vec<u8>,
        height: u64,
        prove: bool,
    ) -> Result<RawAnswer, ClientError> {
        let at = (height > 0)
            .then(|| tendermint::block::Height::try_from(height))
            .transpose()
            .map_err(|e| ClientError::Decode { call: path.into(), reason: e.to_string() })?;
        let answer = self
            .http
            .abci_query(Some(path.to_string()), data, at, prove)
            .await
            .map_err(|e| self.unreachable(path, e))?;
        if answer.code.is_err() {
            let (path, log) = (path.to_string(), answer.log);
            return Err(match log.contains("NotFound") || log.contains("key not found") {
                true => ClientError::NotFound { path, log },
                false => ClientError::Query { path, code: answer.code.value(), log },
            });
        }
        let ops = answer.proof.map(|p| p.ops).unwrap_or_default();
        Ok(RawAnswer {
            value: answer.value,
            height: answer.height.value(),
            proof: ops.into_iter().map(|op| (op.field_type, op.key, op.data)).collect(),
        })
    }

    /// One typed query: `path` is `/package.Query/Method`.
    pub async fn query<Req: Message, Res: Message + Default>(
        &self,
        path: &str,
        request: &Req,
    ) -> Result<Res, ClientError> {
        let answer = self.query_raw(path, request.encode_to_vec(), 0, false).await?;
        Res::decode(answer.value.as_slice())
            .map_err(|e| ClientError::Decode { call: path.into(), reason: e.to_string() })
    }

    /// Account number and sequence; None for an address that never had a coin.
    pub async fn account(&self, address: &Address) -> Result<Option<(u64, u64)>, ClientError> {
        let path = "/cosmos.auth.v1beta1.Query/Account";
        let answer =
            self.query::<_, QueryAccountResponse>(path, &QueryAccountRequest { address: address.account() }).await;
        let packed = match answer {
            Err(ClientError::NotFound { .. }) => return Ok(None),
            other => other?.account,
        };
        let wrong = |reason: String| ClientError::Decode { call: path.into(), reason };
        let packed = packed.ok_or_else(|| wrong("no account in the answer".into()))?;
        if packed.type_url != BaseAccount::type_url() {
            return Err(wrong(format!("{} cannot sign transactions", packed.type_url)));
        }
        let account = BaseAccount::decode(packed.value.as_slice()).map_err(|e| wrong(e.to_string()))?;
        Ok(Some((account.account_number, account.sequence)))
    }

    /// An account's balance in uplk.
    pub async fn balance(&self, address: &Address) -> Result<Amount, ClientError> {
        let path = "/cosmos.bank.v1beta1.Query/Balance";
        let request = QueryBalanceRequest { address: address.account(), denom: DENOM.into() };
        let answer: QueryBalanceResponse = self.query(path, &request).await?;
        let text = answer.balance.map(|c| c.amount).unwrap_or_default();
        Amount::parse_or_zero(&text).map_err(|e| ClientError::Decode { call: path.into(), reason: e.to_string() })
    }

    /// The newest height and the epoch that it belongs to.
    pub async fn epoch(&self) -> Result<(u64, u64), ClientError> {
        let request = market::QueryEpochRequest { number: 0, current: true };
        let answer: market::QueryEpochResponse = self.query("/polylink.market.v1.Query/Epoch", &request).await?;
        Ok((answer.epoch.map(|e| e.number).unwrap_or_default(), answer.height.max(0) as u64))
    }

    /// The market's parameters in force.
    pub async fn market_params(&self) -> Result<market::Params, ClientError> {
        let path = "/polylink.market.v1.Query/Params";
        let answer: market::QueryParamsResponse = self.query(path, &market::QueryParamsRequest {}).await?;
        answer.params.ok_or_else(|| ClientError::Decode { call: path.into(), reason: "no params".into() })
    }

    /// The audit's parameters in force.
    pub async fn tiqe_params(&self) -> Result<tiqe::Params, ClientError> {
        let path = "/polylink.tiqe.v1.Query/Params";
        let answer: tiqe::QueryParamsResponse = self.query(path, &tiqe::QueryParamsRequest {}).await?;
        answer.params.ok_or_else(|| ClientError::Decode { call: path.into(), reason: "no params".into() })
    }

    /// A session; None where there is none of this id.
    pub async fn session(&self, session: u64) -> Result<Option<market::Session>, ClientError> {
        let request = market::QuerySessionRequest { session };
        found(self.query("/polylink.market.v1.Query/Session", &request).await, |a: market::QuerySessionResponse| {
            a.session
        })
    }

    /// A worker; None where the account has none.
    pub async fn worker(&self, operator: &Address) -> Result<Option<market::Worker>, ClientError> {
        let request = market::QueryWorkerRequest { operator: operator.account() };
        found(self.query("/polylink.market.v1.Query/Worker", &request).await, |a: market::QueryWorkerResponse| a.worker)
    }

    /// A model; None where the profile is not registered.
    pub async fn model(&self, profile: &Digest) -> Result<Option<market::Model>, ClientError> {
        let request = market::QueryModelRequest { profile_digest: profile.to_vec() };
        found(self.query("/polylink.market.v1.Query/Model", &request).await, |a: market::QueryModelResponse| a.model)
    }

    /// What a worker earned and committed in an epoch, private sessions apart; None where nothing.
    pub async fn pot(&self, epoch: u64, worker: &str, profile: &Digest) -> Result<Option<market::Pot>, ClientError> {
        let (worker, profile_digest) = (worker.into(), profile.to_vec());
        let request = market::QueryPotRequest { epoch, worker, profile_digest, private: false };
        found(self.query("/polylink.market.v1.Query/Pot", &request).await, |a: market::QueryPotResponse| a.pot)
    }

    /// The audit round of an epoch and profile; None before it opens.
    pub async fn round(&self, epoch: u64, profile: &Digest) -> Result<Option<tiqe::Round>, ClientError> {
        let request = tiqe::QueryRoundRequest { epoch, profile_digest: profile.to_vec() };
        found(self.query("/polylink.tiqe.v1.Query/Round", &request).await, |a: tiqe::QueryRoundResponse| a.round)
    }

    /// All judges.
    pub async fn judges(&self) -> Result<Vec<tiqe::Judge>, ClientError> {
        let answer: tiqe::QueryJudgesResponse =
            self.query("/polylink.tiqe.v1.Query/Judges", &tiqe::QueryJudgesRequest {}).await?;
        Ok(answer.judges)
    }
}

fn found<A, T>(answer: Result<A, ClientError>, take: impl FnOnce(A) -> Option<T>) -> Result<Option<T>, ClientError> {
    match answer {
        Err(ClientError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
        Ok(answer) => Ok(take(answer)),
    }
}
