//! The market: models, workers, sessions, receipts, pots and their settlement (`docs/market-and-tiqe.md`).
//!
//! A payer's deposit lies in escrow; a voucher moves what was served into the pot of (worker, profile, epoch); the
//! worker commits to the receipts of the epoch, the audit (`tiqe`) scores samples of them, and the settlement shares
//! the pot out: royalty, judges, the worker's vesting pay, and what is withheld and burned.
//!
//! Invariants: escrow = Σ (deposit − redeemed) of open sessions + Σ deposits of open reports and appeals + Σ refunds to be paid; pots
//! = Σ (redeemed + carried in) of pots that are not settled; what was redeemed into a pot = Σ of its payers until they are refunded; vesting = Σ buckets; worker bonds = Σ (bond + unbonding). What is paid is at most what was committed.

pub mod bonds;
pub mod error;
mod genesis;
mod governed;
pub mod keys;
pub mod models;
pub mod params;
mod places;
pub mod price;
pub mod prices;
mod query;
pub mod receipts;
pub(crate) mod records;
pub mod redeem;
pub mod refunds;
pub mod reports;
pub mod revoke;
pub mod schedule;
pub mod sessions;
pub(crate) mod settle;
pub mod settlement;
#[cfg(test)]
pub(crate) mod testbed;
#[cfg(test)]
mod tests;
pub mod vesting;
pub mod workers;

use polylink_protocol::market_v1::*;

use crate::modules::{MessageRoute, Module, QueryRoute};

pub use error::MarketError;
pub use genesis::MarketGenesis;
pub(crate) use genesis::run as run_genesis_message;
pub use records::{Kind, committed, model, pot, pots, session, worker};

/// Models at most.
pub const MODELS_MAX: u64 = 10_000;
/// The highest royalty.
pub const ROYALTY_BPS_MAX: u32 = 5_000;
/// Offers of one worker at most.
pub const OFFERS_PER_WORKER_MAX: usize = 16;
/// Workers that offer one profile at most, so that one round can sample all of them.
pub const WORKERS_PER_PROFILE_MAX: usize = 64;
/// Unbonding entries of one worker at most.
pub const UNBONDING_ENTRIES_MAX: usize = 16;
/// The longest session, in epochs.
pub const SESSION_EPOCHS_MAX: u64 = 100_000;
/// Pots, rounds and what belongs to them are kept for so many epochs.
pub const POT_RETENTION_EPOCHS: u64 = 512;
/// Vesting buckets, unbonding entries and dropped records of one block at most, of each kind.
pub const RELEASES_PER_BLOCK: usize = 256;

/// The market's tables.
pub const MODULE: Module = Module {
    name: "market",
    messages: &[
        MessageRoute::of::<MsgRegisterModel>(),
        MessageRoute::of::<MsgUpdateModel>(),
        MessageRoute::of::<MsgRegisterWorker>(),
        MessageRoute::of::<MsgUpdateWorker>(),
        MessageRoute::of::<MsgBond>(),
        MessageRoute::of::<MsgUnbond>(),
        MessageRoute::of::<MsgOpenSession>(),
        MessageRoute::of::<MsgTopUp>(),
        MessageRoute::of::<MsgRevokeSpendKey>(),
        MessageRoute::of::<MsgCommitReceipts>(),
        MessageRoute::of::<MsgRedeem>(),
        MessageRoute::of::<MsgCloseSession>(),
        MessageRoute::of::<MsgReportOmitted>(),
        MessageRoute::of::<MsgShowReceipt>(),
        MessageRoute::of::<MsgUpdateParams>(),
    ],
    refused: &[],
    queries: &[
        QueryRoute::of::<QueryModelsRequest>(),
        QueryRoute::of::<QueryModelRequest>(),
        QueryRoute::of::<QueryWorkersRequest>(),
        QueryRoute::of::<QueryWorkerRequest>(),
        QueryRoute::of::<QuerySessionsRequest>(),
        QueryRoute::of::<QuerySessionRequest>(),
        QueryRoute::of::<QueryPriceRequest>(),
        QueryRoute::of::<QueryPriceHistoryRequest>(),
        QueryRoute::of::<QueryPotRequest>(),
        QueryRoute::of::<QueryPotsRequest>(),
        QueryRoute::of::<QueryEpochRequest>(),
        QueryRoute::of::<QueryReportRequest>(),
        QueryRoute::of::<QueryReportsRequest>(),
        QueryRoute::of::<QueryRefundsRequest>(),
        QueryRoute::of::<QueryParamsRequest>(),
    ],
    begin_block: settle::begin_block,
    end_block: settle::end_block,
    genesis: genesis::start,
};
