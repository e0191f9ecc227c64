//! The shape of a ledger module, and the list of them.
//!
//! A module is functions over the state (no object owns a part of it): handlers of its messages ([`Handle`]), answers
//! to its queries ([`Answer`]), hooks at the block's begin and end, and its part of genesis. A [`Module`] is the table
//! of those; [`MODULES`] is the only place where they are listed, and the router knows nothing else.
//!
//! A message is handled in three phases: decoding by `tx`; [`Handle::check`], stateless, so that it may run in
//! parallel and before anything is paid; [`Handle::execute`], on a layer of the state that is dropped on `Err`, with
//! the events it emitted.

use polylink_protocol::{Address, Message, Name};

use crate::context::Context;
use crate::error::{GenesisError, QueryError, TxError};
use crate::genesis::Genesis;
use crate::store::{StateRead, StateWrite};

/// A message that the ledger executes. Implemented for the generated type.
pub trait Handle: Message + Name + Default {
    /// The type in amino JSON sign documents: `cosmos-sdk/MsgSend`, `polylink/market/OpenSession`.
    const AMINO_NAME: &'static str;
    /// Whether it acts in the name of governance: only a proposal may hold it. Such a message spends nothing of the account
    /// `gov`, whose coins are the deposits of others.
    const GOVERNED: bool = false;
    /// What a success answers, in `TxMsgData.msg_responses`.
    type Response: Message + Name;

    /// Whose signature it needs.
    fn signer(&self) -> Result<Address, TxError>;

    /// All that can be said against it without the state.
    fn check(&self) -> Result<(), TxError>;

    /// Applies it. `Err` rolls back what it wrote and emitted. It must do a bounded amount of work, and must not panic
    /// on anything that [`Self::check`] lets through.
    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<Self::Response, TxError>;
}

/// A query. Implemented for the generated request type `Query<Method>Request` of package `<p>`, its ABCI path is
/// `/<p>.Query/<Method>`.
pub trait Answer: Message + Name + Default {
    /// The answer.
    type Response: Message;

    /// Answers from a committed state.
    fn answer(&self, ctx: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError>;
}

/// What a query knows besides the state.
#[derive(Clone, Debug)]
pub struct QueryContext {
    /// From the genesis document.
    pub chain_id: String,
    /// The height whose state is read.
    pub height: u64,
    /// The epoch of that height.
    pub epoch: u64,
    /// Blocks of an epoch.
    pub epoch_blocks: u64,
}

type CheckFn = fn(&[u8]) -> Result<Address, TxError>;
type ExecuteFn = fn(&[u8], &mut Context, &mut dyn StateWrite) -> Result<Vec<u8>, TxError>;

/// A row of the message table.
#[derive(Clone, Copy)]
pub struct MessageRoute {
    /// The protobuf package.
    pub package: &'static str,
    /// The message's name in it.
    pub name: &'static str,
    /// The response's package and name.
    pub response: (&'static str, &'static str),
    /// Its name in amino JSON.
    pub amino_name: &'static str,
    /// Whether only a proposal may hold it.
    pub governed: bool,
    /// Decodes, checks without state, and returns the signer.
    pub check: CheckFn,
    /// Decodes, executes, and returns the encoded response.
    pub execute: ExecuteFn,
}

impl MessageRoute {
    /// The route of a message type.
    pub const fn of<M: Handle>() -> Self {
        MessageRoute {
            package: M::PACKAGE,
            name: M::NAME,
            response: (<M::Response as Name>::PACKAGE, <M::Response as Name>::NAME),
            amino_name: M::AMINO_NAME,
            governed: M::GOVERNED,
            check: |bytes| {
                let message = decode::<M>(bytes)?;
                let signer = message.signer()?;
                message.check()?;
                Ok(signer)
            },
            execute: |bytes, ctx, state| Ok(decode::<M>(bytes)?.execute(ctx, state)?.encode_to_vec()),
        }
    }

    /// `/package.Name`.
    pub fn type_url(&self) -> String {
        format!("/{}.{}", self.package, self.name)
    }

    /// The response's `/package.Name`.
    pub fn response_url(&self) -> String {
        format!("/{}.{}", self.response.0, self.response.1)
    }
}

fn decode<M: Handle>(bytes: &[u8]) -> Result<M, TxError> {
    M::decode(bytes).map_err(|error| TxError::Decode(format!("{}: {error}", M::NAME)))
}

type QueryFn = fn(&[u8], &QueryContext, &dyn StateRead) -> Result<Vec<u8>, QueryError>;

/// A row of the query table.
#[derive(Clone, Copy)]
pub struct QueryRoute {
    /// The protobuf package.
    pub package: &'static str,
    /// The request's name, `Query<Method>Request`.
    pub request: &'static str,
    /// Decodes, answers, encodes.
    pub answer: QueryFn,
}

impl QueryRoute {
    /// The route of a request type.
    pub const fn of<Q: Answer>() -> Self {
        QueryRoute {
            package: Q::PACKAGE,
            request: Q::NAME,
            answer: |bytes, ctx, state| {
                let request =
                    Q::decode(bytes).map_err(|error| QueryError::InvalidArgument(format!("{}: {error}", Q::NAME)))?;
                Ok(request.answer(ctx, state)?.encode_to_vec())
            },
        }
    }

    /// `/package.Query/Method`.
    pub fn path(&self) -> String {
        let method = self.request.strip_prefix("Query").unwrap_or(self.request);
        format!("/{}.Query/{}", self.package, method.strip_suffix("Request").unwrap_or(method))
    }
}

/// A hook of the block. `Err` is a breach of an invariant, not a refusal: it stops the process before the block is
/// committed. What can go wrong in the ordinary way is dealt with by the hook itself.
pub type BlockHook = fn(&mut Context, &mut dyn StateWrite) -> Result<(), TxError>;

/// A module's part of the start of the chain.
pub type GenesisHook = fn(&mut Context, &mut dyn StateWrite, &Genesis) -> Result<(), GenesisError>;

/// A module: its tables and hooks.
#[derive(Clone, Copy)]
pub struct Module {
    /// Its name.
    pub name: &'static str,
    /// The messages it executes.
    pub messages: &'static [MessageRoute],
    /// Type URLs it knows and has not built: refused by name.
    pub refused: &'static [&'static str],
    /// The queries it answers.
    pub queries: &'static [QueryRoute],
    /// Run before the block's transactions, in the order of [`MODULES`].
    pub begin_block: BlockHook,
    /// Run after them, in the same order.
    pub end_block: BlockHook,
    /// Run once, in the same order.
    pub genesis: GenesisHook,
}

/// A hook that does nothing.
pub fn no_hook(_: &mut Context, _: &mut dyn StateWrite) -> Result<(), TxError> {
    Ok(())
}

/// All modules, in the order of their hooks: the audit before the market, since settlement uses the audit's results; then
/// in the SDK's order: what is minted is distributed, those who signed are paid before they are slashed, proposals are
/// decided by the stake of the last block, and the set of validators is what all of it has left.
pub const MODULES: &[Module] = &[
    crate::auth::MODULE,
    crate::bank::MODULE,
    crate::vesting::MODULE,
    crate::feegrant::MODULE,
    crate::tiqe::MODULE,
    crate::market::MODULE,
    crate::mint::MODULE,
    crate::distribution::MODULE,
    crate::slashing::MODULE,
    crate::upgrade::MODULE,
    crate::consensus::MODULE,
    crate::gov::MODULE,
    crate::staking::MODULE,
];
