//! Signing, sending and awaiting transactions, one account at a time.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message;
use tendermint_rpc::Client as _;
use tokio::time::{Instant, sleep};

use super::{ChainClient, ClientError};
use crate::cosmos::Any;
use crate::cosmos::cosmos::tx::v1beta1::{SimulateRequest, SimulateResponse, TxRaw};
use crate::keys::AccountKey;
use crate::tx::{self, SignContext};
use crate::{Address, Amount};

/// The `sdk` codespace's code for a wrong sequence.
const WRONG_SEQUENCE: u32 = 32;
/// How long a sent transaction is waited for.
const INCLUSION_TIMEOUT: Duration = Duration::from_secs(30);
/// How often it is looked for.
const INCLUSION_POLL: Duration = Duration::from_millis(150);
/// Gas limit over what the simulation used, in percent, and a constant for what may change in between.
const GAS_MARGIN_PERCENT: u64 = 130;
const GAS_MARGIN: u64 = 20_000;

/// What a transaction pays.
#[derive(Clone, Debug, Default)]
pub struct TxTerms {
    /// None: simulated, with a margin.
    pub gas_limit: Option<u64>,
    /// None: gas × the chain's gas price, rounded up.
    pub fee: Option<Amount>,
    /// Free text.
    pub memo: String,
}

/// A transaction in a block.
#[derive(Clone, Debug)]
pub struct TxOutcome {
    /// Upper-case hexadecimal.
    pub hash: String,
    /// Its block.
    pub height: u64,
    /// Gas that it used.
    pub gas_used: u64,
    /// Encoded `TxMsgData`.
    pub data: Vec<u8>,
}

/// Next sequence and number by account, each behind a lock that is held while a transaction is signed and sent.
#[derive(Clone, Default)]
pub(super) struct Senders(Arc<Mutex<BTreeMap<Address, Sender>>>);

/// Number and next sequence of an account, unknown until asked for.
type Sender = Arc<tokio::sync::Mutex<Option<(u64, u64)>>>;

impl Senders {
    fn of(&self, address: &Address) -> Sender {
        let mut map = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        map.entry(*address).or_default().clone()
    }
}

impl ChainClient {
    /// Signs, sends and waits until the messages are in a block. All of them take effect or none.
    pub async fn broadcast(&self, key: &AccountKey, messages: Vec<Any>) -> Result<TxOutcome, ClientError> {
        self.broadcast_with(key, messages, TxTerms::default()).await
    }

    /// The same on given terms.
    pub async fn broadcast_with(
        &self,
        key: &AccountKey,
        messages: Vec<Any>,
        terms: TxTerms,
    ) -> Result<TxOutcome, ClientError> {
        let hash = self.send(key, messages, &terms).await?;
        self.wait_for(&hash).await
    }

    /// Sends signed bytes; returns the hash once the mempool has them.
    pub async fn broadcast_bytes(&self, bytes: Vec<u8>) -> Result<String, ClientError> {
        let hash = tx::hash(&bytes);
        let answer = self.http.broadcast_tx_sync(bytes).await.map_err(|e| self.unreachable("broadcast_tx_sync", e))?;
        if answer.code.is_err() {
            let code = answer.code.value();
            return Err(ClientError::Refused { hash, codespace: answer.codespace, code, log: answer.log });
        }
        Ok(hash)
    }

    /// Waits until a transaction is in a block; a failed one is an error.
    pub async fn wait_for(&self, hash: &str) -> Result<TxOutcome, ClientError> {
        let wrong = |reason: String| ClientError::Decode { call: "tx".into(), reason };
        let parsed: tendermint::Hash = hash.parse().map_err(|e: tendermint::Error| wrong(e.to_string()))?;
        let deadline = Instant::now() + INCLUSION_TIMEOUT;
        loop {
            // CometBFT answers a hash that it does not have yet with an error; so only the deadline ends the wait.
            match self.http.tx(parsed, false).await {
                Ok(found) if found.tx_result.code.is_err() => {
                    return Err(ClientError::Refused {
                        hash: hash.into(),
                        codespace: found.tx_result.codespace,
                        code: found.tx_result.code.value(),
                        log: found.tx_result.log,
                    });
                }
                Ok(found) => {
                    return Ok(TxOutcome {
                        hash: hash.into(),
                        height: found.height.value(),
                        gas_used: found.tx_result.gas_used.max(0) as u64,
                        // The RPC client leaves the JSON's base64 as it is.
                        data: BASE64.decode(&found.tx_result.data).map_err(|error| wrong(error.to_string()))?,
                    });
                }
                Err(_) if Instant::now() < deadline => sleep(INCLUSION_POLL).await,
                Err(_) => {
                    return Err(ClientError::Timeout { hash: hash.into(), seconds: INCLUSION_TIMEOUT.as_secs() });
                }
            }
        }
    }

    /// Gas that the messages would use now.
    pub async fn simulate(&self, key: &AccountKey, messages: Vec<Any>, sequence: u64) -> Result<u64, ClientError> {
        let path = "/cosmos.tx.v1beta1.Service/Simulate";
        let context = SignContext {
            chain_id: String::new(),
            account_number: 0,
            sequence,
            gas_limit: 0,
            fee: Amount::ZERO,
            memo: String::new(),
        };
        let signed = tx::sign_direct(messages, &context, key);
        let mut raw = TxRaw::decode(signed.as_slice())
            .map_err(|e| ClientError::Decode { call: path.into(), reason: e.to_string() })?;
        raw.signatures = vec![vec![]];
        #[allow(deprecated)]
        let request = SimulateRequest { tx: None, tx_bytes: raw.encode_to_vec() };
        let answer: SimulateResponse = self.query(path, &request).await?;
        Ok(answer.gas_info.map(|g| g.gas_used).unwrap_or_default())
    }

    async fn send(&self, key: &AccountKey, messages: Vec<Any>, terms: &TxTerms) -> Result<String, ClientError> {
        let address = key.address();
        let sender = self.senders.of(&address);
        let mut known = sender.lock().await;
        let mut retried = false;
        loop {
            let (account_number, sequence) = match *known {
                Some(pair) => pair,
                None => self.account(&address).await?.ok_or_else(|| ClientError::NotFound {
                    path: "account".into(),
                    log: format!("{address} does not exist on the chain: send it some uplk first"),
                })?,
            };
            let sent = self.sign_and_send(key, messages.clone(), terms, account_number, sequence).await;
            match sent {
                Ok(hash) => {
                    *known = Some((account_number, sequence + 1));
                    return Ok(hash);
                }
                Err(ClientError::Refused { codespace, code: WRONG_SEQUENCE, .. }) if codespace == "sdk" && !retried => {
                    (*known, retried) = (None, true);
                }
                Err(error) => {
                    *known = None;
                    return Err(error);
                }
            }
        }
    }

    async fn sign_and_send(
        &self,
        key: &AccountKey,
        messages: Vec<Any>,
        terms: &TxTerms,
        account_number: u64,
        sequence: u64,
    ) -> Result<String, ClientError> {
        let gas_limit = match terms.gas_limit {
            Some(limit) => limit,
            None => {
                // A simulation runs on the newest block, which may not hold the account's last transactions yet.
                let committed = self.account(&key.address()).await?.map_or(sequence, |(_, committed)| committed);
                self.simulate(key, messages.clone(), committed).await? * GAS_MARGIN_PERCENT / 100 + GAS_MARGIN
            }
        };
        let fee = match terms.fee {
            Some(fee) => fee,
            None => self.gas_fee(gas_limit).await?,
        };
        let chain_id = self.status().await?.chain_id;
        let context = SignContext { chain_id, account_number, sequence, gas_limit, fee, memo: terms.memo.clone() };
        self.broadcast_bytes(tx::sign_direct(messages, &context, key)).await
    }

    async fn gas_fee(&self, gas_limit: u64) -> Result<Amount, ClientError> {
        let path = "/feemarket.feemarket.v1.Query/GasPrices";
        let answer: GasPrices = self.query(path, &GasPricesRequest {}).await?;
        let atomics = answer.prices.iter().find(|p| p.denom == crate::DENOM).map_or("0", |p| p.amount.as_str());
        let price: Amount = Amount::parse_or_zero(atomics)
            .map_err(|e| ClientError::Decode { call: path.into(), reason: e.to_string() })?;
        // Price is in 10^-18 uplk per gas; rounded up, else the fee falls short by a fraction.
        const SCALE: u128 = 1_000_000_000_000_000_000;
        Ok(Amount((u128::from(gas_limit) * price.0).div_ceil(SCALE)))
    }
}

/// `feemarket.feemarket.v1.GasPricesRequest`.
#[derive(Clone, PartialEq, Message)]
struct GasPricesRequest {}

/// `feemarket.feemarket.v1.GasPricesResponse`.
#[derive(Clone, PartialEq, Message)]
struct GasPrices {
    /// Per denom, atomics of 10^-18.
    #[prost(message, repeated, tag = "1")]
    prices: Vec<crate::cosmos::cosmos::base::v1beta1::DecCoin>,
}
