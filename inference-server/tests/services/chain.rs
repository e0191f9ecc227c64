//! The ledger in this process as a [`Chain`]: each transaction in a block of its own, and empty blocks as time passes.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::future::BoxFuture;
use polylink_abci_app::testing::{self, CHAIN_ID, TestChain};
use polylink_inference_server::chain::{Chain, ChainError};
use polylink_protocol::cosmos::Any;
use polylink_protocol::keys::AccountKey;
use tendermint_abci::Application;
use tendermint_proto::v0_38::abci as pb;

/// Funded accounts of the tests' genesis.
pub const ACCOUNTS: u8 = 8;
const BLOCK_TIME: Duration = Duration::from_millis(150);

pub struct LocalChain {
    inner: Arc<Mutex<TestChain>>,
    blocks: std::thread::JoinHandle<()>,
}

impl LocalChain {
    pub fn start() -> Arc<Self> {
        let mut genesis = testing::genesis(ACCOUNTS);
        // Tests wait for it.
        genesis.market.params.report_answer_epochs = 2;
        let inner = Arc::new(Mutex::new(TestChain::start(&genesis)));
        let weak = Arc::downgrade(&inner);
        let blocks = std::thread::spawn(move || {
            while let Some(chain) = weak.upgrade() {
                chain.lock().unwrap().advance(1);
                drop(chain);
                std::thread::sleep(BLOCK_TIME);
            }
        });
        Arc::new(Self { inner, blocks })
    }

    pub fn lock(&self) -> MutexGuard<'_, TestChain> {
        assert!(!self.blocks.is_finished(), "the chain has stopped");
        self.inner.lock().unwrap()
    }
}

impl Chain for LocalChain {
    fn chain_id(&self) -> BoxFuture<'_, Result<String, ChainError>> {
        Box::pin(async { Ok(CHAIN_ID.into()) })
    }

    fn query(&self, path: &'static str, request: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, ChainError>> {
        Box::pin(async move {
            let request = pb::RequestQuery { data: request.into(), path: path.into(), ..Default::default() };
            let answer = self.lock().app().query(request);
            match answer.code {
                0 => Ok(answer.value.to_vec()),
                _ if answer.log.contains("NotFound") || answer.log.contains("not found") => {
                    Err(ChainError::NotFound(answer.log))
                }
                _ => Err(ChainError::Refused(format!("{path}: {}", answer.log))),
            }
        })
    }

    fn broadcast<'a>(&'a self, key: &'a AccountKey, messages: Vec<Any>) -> BoxFuture<'a, Result<u64, ChainError>> {
        Box::pin(async move {
            let number = (1..=ACCOUNTS).find(|n| testing::key(*n).address() == key.address());
            let number = number.ok_or_else(|| ChainError::NotFound("only the test accounts send".into()))?;
            let mut chain = self.lock();
            let result = chain.send(number, messages);
            match result.code {
                0 => Ok(chain.height()),
                code => Err(ChainError::Refused(format!("{} {code}: {}", result.codespace, result.log))),
            }
        })
    }
}
