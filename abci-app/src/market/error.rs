//! Why the market refuses a message. Codes of codespace `market`, listed in `docs/market-and-tiqe.md`.

use polylink_protocol::{Amount, Digest};

use crate::error::TxError;

/// The codespace of these refusals.
pub const CODESPACE: &str = "market";

/// A refusal: what is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MarketError {
    /// No model of this profile.
    #[error("no model has the profile {0}; register it with MsgRegisterModel")]
    UnknownModel(Digest),
    /// The profile is registered.
    #[error("the profile {0} is registered already; another answer needs another profile")]
    ModelExists(Digest),
    /// A profile that names nothing a worker could run.
    #[error("the model's profile: {0}")]
    Profile(String),
    /// A price of nothing, or a cached token dearer than a computed one.
    #[error("the price: {0}")]
    Price(&'static str),
    /// A royalty beyond the limit.
    #[error("a royalty of {found} basis points; at most {max} are allowed")]
    Royalty {
        /// Asked for.
        found: u32,
        /// The limit.
        max: u32,
    },
    /// A context length out of range.
    #[error("a context length of {found} tokens; 1 to {max} are expected")]
    ContextLength {
        /// Asked for.
        found: u32,
        /// The limit.
        max: u32,
    },
    /// No worker of this operator.
    #[error("{0} is not registered as a worker; send MsgRegisterWorker first")]
    UnknownWorker(String),
    /// The operator has a worker.
    #[error("{0} is registered as a worker already; change it with MsgUpdateWorker")]
    WorkerExists(String),
    /// An endpoint that nobody could call.
    #[error("the endpoint: {0}")]
    Endpoint(&'static str),
    /// A key that is none.
    #[error("the {name}: {reason}")]
    Key {
        /// Which key.
        name: &'static str,
        /// What is expected.
        reason: &'static str,
    },
    /// Offers that contradict themselves.
    #[error("the offers: {0}")]
    Offers(String),
    /// A bond below the minimum.
    #[error("a bond of {found} uplk; at least {min} uplk are needed")]
    BondTooSmall {
        /// What there would be.
        found: Amount,
        /// The least.
        min: Amount,
    },
    /// Convicted.
    #[error("the worker {0} was convicted and is jailed: it takes no sessions, receipts or vouchers any more")]
    Jailed(String),
    /// The profile's places are taken.
    #[error("{max} workers offer the profile {profile} already, none with less bond; bond more to take a place")]
    TooManyWorkers {
        /// Which profile.
        profile: Digest,
        /// The limit.
        max: usize,
    },
    /// More than is bonded, or too many at once.
    #[error("the unbonding: {0}")]
    Unbonding(String),
    /// No such session.
    #[error("there is no session {0}")]
    UnknownSession(u64),
    /// The payee cannot be one.
    #[error("the payee: {0}")]
    Payee(String),
    /// The session's profile does not go with its payee.
    #[error("the session's profile: {0}")]
    SessionProfile(String),
    /// A deposit, cap or top-up out of the rules.
    #[error("the session's deposit or cap: {0}")]
    Deposit(String),
    /// A window out of range.
    #[error("a window of {found} unpaid answers; 1 to {max} are expected")]
    Window {
        /// Asked for.
        found: u32,
        /// The limit.
        max: u32,
    },
    /// An expiry in the past or too far away.
    #[error("expiry in epoch {found}; an epoch after {now} and at most {max} is expected")]
    Expiry {
        /// Asked for.
        found: u64,
        /// The current epoch.
        now: u64,
        /// The last one allowed.
        max: u64,
    },
    /// Only what workers serve is audited.
    #[error("a private session pays a worker: name the profile, or leave `private` unset; nobody audits a gateway")]
    PrivateGateway,
    /// Somebody else's session.
    #[error("session {session}: {reason}")]
    NotParty {
        /// Which session.
        session: u64,
        /// Who may, and when.
        reason: String,
    },
    /// It is over.
    #[error("session {0} is closed; open another one")]
    Closed(u64),
    /// Receipts of the wrong epoch, or at the wrong time.
    #[error("receipts of epoch {found} at height {height}: {reason}")]
    CommitWindow {
        /// The epoch named.
        found: u64,
        /// The block.
        height: u64,
        /// When it would have been right.
        reason: String,
    },
    /// Two roots for one epoch.
    #[error("another root is committed for epoch {0} already; a worker has one root per epoch and profile")]
    OtherRoot(u64),
    /// A root that is none.
    #[error("the receipts' root: {0}")]
    Root(String),
    /// More than anybody could owe.
    #[error(
        "receipts over {amount} uplk, but the open sessions that pay this worker for this profile hold deposits of {deposits} uplk; commit only to receipts that a session covers"
    )]
    AboveDeposits {
        /// The root's.
        amount: Amount,
        /// The sum over the sessions.
        deposits: Amount,
    },
    /// The message has none.
    #[error("the message has no voucher")]
    NoVoucher,
    /// A voucher of another chain.
    #[error("the voucher is of the chain `{found}`, this one is `{expected}`")]
    OtherChain {
        /// The voucher's, cut to 64 characters.
        found: String,
        /// This one.
        expected: String,
    },
    /// A voucher of another session than the message's.
    #[error("the voucher is of session {found}, {expected} is expected")]
    OtherSession {
        /// The voucher's.
        found: u64,
        /// The message's.
        expected: u64,
    },
    /// Not signed by the session's spend key, or malformed.
    #[error("{0}; the session's spend key must sign it")]
    VoucherSignature(String),
    /// Above what the payer allowed.
    #[error("the voucher is over {amount} uplk, beyond the session's {limit} uplk (the lesser of deposit and cap)")]
    AboveCap {
        /// The voucher's.
        amount: Amount,
        /// The lesser of deposit and cap.
        limit: Amount,
    },
    /// Nothing to gain.
    #[error(
        "the voucher does not increase: {amount} uplk for {count} receipts, {redeemed} uplk for {paid} are redeemed"
    )]
    NotIncreasing {
        /// The voucher's amount.
        amount: Amount,
        /// The voucher's count.
        count: u64,
        /// Redeemed so far.
        redeemed: Amount,
        /// Receipts paid so far.
        paid: u64,
    },
    /// Past the dispute window.
    #[error("vouchers of session {session} were taken until epoch {until}, now is epoch {now}")]
    Expired {
        /// Which session.
        session: u64,
        /// The last epoch.
        until: u64,
        /// The current one.
        now: u64,
    },
    /// The payer took the spend key back.
    #[error("the spend key of session {0} was revoked; open another session with another key")]
    Revoked(u64),
    /// Somebody else's model.
    #[error("the model of profile {profile} is changed by its provider {provider} alone")]
    NotProvider {
        /// Which profile.
        profile: Digest,
        /// Who may.
        provider: String,
    },
    /// A report that accuses nobody.
    #[error("the report: {0}")]
    Report(String),
    /// No such report, or it is decided.
    #[error("there is no open report {0}")]
    UnknownReport(u64),
    /// The path does not lead from the reported receipt to the root.
    #[error("the receipt is not shown: {0}")]
    NotShown(String),
    /// An epoch that has not begun, or that the session does not reach.
    #[error("the voucher's epoch {found}: {reason}")]
    VoucherEpoch {
        /// The voucher's.
        found: u64,
        /// What is expected.
        reason: String,
    },
}

impl MarketError {
    /// Its code. Codes never change their meaning.
    pub fn code(&self) -> u32 {
        use MarketError::*;
        match self {
            UnknownModel(_) => 2,
            ModelExists(_) => 3,
            Profile(_) => 4,
            Price(_) => 5,
            Royalty { .. } => 6,
            ContextLength { .. } => 7,
            UnknownWorker(_) => 8,
            WorkerExists(_) => 9,
            Endpoint(_) => 10,
            Key { .. } => 11,
            Offers(_) => 12,
            BondTooSmall { .. } => 13,
            Jailed(_) => 14,
            TooManyWorkers { .. } => 15,
            Unbonding(_) => 16,
            UnknownSession(_) => 17,
            Payee(_) => 18,
            SessionProfile(_) => 19,
            Deposit(_) => 20,
            Window { .. } => 21,
            Expiry { .. } => 22,
            PrivateGateway => 23,
            NotParty { .. } => 24,
            Closed(_) => 25,
            CommitWindow { .. } => 26,
            OtherRoot(_) => 27,
            Root(_) => 28,
            NoVoucher => 29,
            OtherChain { .. } => 30,
            OtherSession { .. } => 31,
            VoucherSignature(_) => 32,
            AboveCap { .. } => 33,
            NotIncreasing { .. } => 34,
            Expired { .. } => 35,
            VoucherEpoch { .. } => 36,
            AboveDeposits { .. } => 37,
            Revoked(_) => 38,
            NotProvider { .. } => 39,
            Report(_) => 40,
            UnknownReport(_) => 41,
            NotShown(_) => 42,
        }
    }
}

impl From<MarketError> for TxError {
    fn from(error: MarketError) -> Self {
        TxError::Module { codespace: CODESPACE, code: error.code(), log: error.to_string() }
    }
}
