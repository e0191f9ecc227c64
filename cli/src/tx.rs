//! `polylink tx`: transactions signed by an account of the keyring and awaited until they are in a block.

mod cosmos;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

use polylink_protocol::client::TxTerms;
use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::bank::v1beta1::MsgSend;
use polylink_protocol::cosmos::cosmos::base::abci::v1beta1::TxMsgData;
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::distribution::v1beta1::{
    MsgSetWithdrawAddress, MsgWithdrawDelegatorReward, MsgWithdrawDelegatorRewardResponse,
    MsgWithdrawValidatorCommission, MsgWithdrawValidatorCommissionResponse,
};
use polylink_protocol::cosmos::cosmos::gov::v1::MsgSubmitProposalResponse;
use polylink_protocol::cosmos::cosmos::slashing::v1beta1::MsgUnjail;
use polylink_protocol::cosmos::cosmos::staking::v1beta1::{
    MsgBeginRedelegate, MsgCancelUnbondingDelegation, MsgDelegate, MsgUndelegate,
};
use polylink_protocol::keys::{AccountKey, ServiceKey};
use polylink_protocol::market_v1 as market;
use polylink_protocol::tiqe_v1 as tiqe;
use polylink_protocol::tx::any;
use polylink_protocol::{Address, Amount, DENOM, Digest, Message};

use crate::chain::{RpcArgs, parse_amount, parse_digest, resolve_address};
use crate::error::CliError;
use crate::home::Home;
use crate::keys::{Keyring, Kind};
use crate::output::Output;
use crate::verify;

/// `polylink tx`.
#[derive(Args, Debug)]
#[command(after_help = "\
Amounts: 250000, 250000uplk or 1.5plk (1 plk = 1,000,000 uplk). Addresses: poly1… or the name of a key.

Examples:
  polylink tx send worker 1.5plk                       from the account `user`
  polylink tx --from worker bond 10plk
  polylink tx propose Faster 'Blocks in half the time'   then: polylink tx vote 1 yes
  polylink tx open-session worker 5plk --spend-key mine   then: polylink chat --worker URL")]
pub struct TxArgs {
    /// Account of the keyring that signs and pays
    #[arg(long, global = true, env = "POLYLINK_FROM", default_value = "user")]
    from: String,
    /// Gas limit [default: simulated, with a margin]
    #[arg(long, global = true)]
    gas: Option<u64>,
    /// Fee [default: gas times the chain's gas price]
    #[arg(long, global = true, value_parser = parse_amount)]
    fee: Option<Amount>,
    /// Free text in the transaction
    #[arg(long, global = true, default_value = "")]
    memo: String,
    #[command(flatten)]
    rpc: RpcArgs,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Send coins
    Send {
        /// Who receives
        to: String,
        /// How much
        #[arg(value_parser = parse_amount)]
        amount: Amount,
    },
    /// Stake behind a validator
    Delegate {
        /// `polyvaloper1…`
        validator: String,
        /// How much
        #[arg(value_parser = parse_amount)]
        amount: Amount,
    },
    /// Take stake back; it is paid out after the unbonding time
    Undelegate {
        /// `polyvaloper1…`
        validator: String,
        /// How much
        #[arg(value_parser = parse_amount)]
        amount: Amount,
    },
    /// Move stake to another validator
    Redelegate {
        /// `polyvaloper1…`: from
        from_validator: String,
        /// `polyvaloper1…`: to
        to_validator: String,
        /// How much
        #[arg(value_parser = parse_amount)]
        amount: Amount,
    },
    /// Put stake back that is being unbonded
    CancelUnbonding {
        /// `polyvaloper1…`
        validator: String,
        /// How much
        #[arg(value_parser = parse_amount)]
        amount: Amount,
        /// The height at which it was undelegated
        height: i64,
    },
    /// Have the rewards of a delegation paid
    WithdrawRewards {
        /// `polyvaloper1…`
        validator: String,
    },
    /// Have the account's own validator's commission paid
    WithdrawCommission,
    /// Have rewards paid to another account
    SetWithdrawAddress {
        /// Who receives
        to: String,
    },
    /// Let the account's own validator out of jail
    Unjail,
    /// Open a session: a deposit that a spend key may sign away to one payee
    OpenSession {
        /// Worker or gateway
        payee: String,
        /// What goes into escrow
        #[arg(value_parser = parse_amount)]
        deposit: Amount,
        /// Service key of the keyring that signs requests and vouchers; made if it is not there
        #[arg(long, default_value = "spend")]
        spend_key: String,
        /// The most that the spend key may sign away [default: the deposit]
        #[arg(long, value_parser = parse_amount)]
        cap: Option<Amount>,
        /// The most answers that may be unpaid at any time
        #[arg(long, default_value_t = 16)]
        window: u32,
        /// Epochs from now until it expires
        #[arg(long, default_value_t = 1_000)]
        epochs: u64,
        /// Profile digest of the model; none for a gateway [default: the local network's]
        #[arg(long, value_parser = parse_digest)]
        profile: Option<Digest>,
        /// The payee is a gateway, so the session names no profile
        #[arg(long, conflicts_with = "profile")]
        gateway: bool,
        /// Judges do not see what is asked and answered in it, so that nobody audits it
        #[arg(long, conflicts_with = "gateway")]
        private: bool,
    },
    /// Put more into a session
    TopUp {
        /// Session id
        session: u64,
        /// How much
        #[arg(value_parser = parse_amount)]
        amount: Amount,
    },
    /// Take a session's spend key back, because somebody else has it: no request any more, the rest back after the dispute window
    RevokeSpendKey {
        /// Session id
        session: u64,
    },
    /// Change the royalty of the account's own model, from the epoch after the next one on
    UpdateModel {
        /// In basis points
        royalty_bps: u32,
        /// Profile digest of the model [default: the local network's]
        #[arg(long, value_parser = parse_digest)]
        profile: Option<Digest>,
    },
    /// Say that a worker left a receipt out of what it committed: it shows the receipt, or is slashed
    ReportOmitted {
        /// The stored answer, as `polylink verify` takes it
        record: PathBuf,
    },
    /// Appeal against the account's own worker's conviction, once: it is tried anew by fresh samples, for a deposit
    Appeal {
        /// Trial id, as `polylink query trials` and the worker's log name it
        trial: u64,
    },
    /// Close a session: the payee at any time, the payer after expiry and dispute window
    CloseSession {
        /// Session id
        session: u64,
    },
    /// Raise a worker's bond
    Bond {
        /// How much
        #[arg(value_parser = parse_amount)]
        amount: Amount,
    },
    /// Lower a worker's bond; slashable until it is released
    Unbond {
        /// How much
        #[arg(value_parser = parse_amount)]
        amount: Amount,
    },
    /// Leave as a judge: no tickets from now on, the bond back after the unbonding
    UnbondJudge,
    #[command(flatten)]
    Cosmos(cosmos::Action),
}

fn coin(amount: Amount) -> Coin {
    Coin { denom: DENOM.into(), amount: amount.to_string() }
}

fn valoper(text: &str) -> Result<String, CliError> {
    Address::from_valoper(text).map(|a| a.valoper()).map_err(|e| CliError::value("validator", e))
}

/// Runs `polylink tx`.
pub async fn run(args: &TxArgs, home: &Path, output: &Output) -> Result<(), CliError> {
    let ring = Keyring::new(home);
    let key = ring.account(&args.from)?;
    let chain = args.rpc.client(home)?;
    let epoch = match &args.action {
        Action::OpenSession { .. } => chain.epoch().await?.0,
        _ => 0,
    };
    let message = match &args.action {
        // The key that stands on chain, whether or not this keyring has it.
        Action::RevokeSpendKey { session } => {
            let request = market::QuerySessionRequest { session: *session };
            let path = "/polylink.market.v1.Query/Session";
            let found: market::QuerySessionResponse = chain.query(path, &request).await?;
            let spend_key = found.session.unwrap_or_default().spend_key;
            any(&market::MsgRevokeSpendKey { payer: key.address().account(), session: *session, spend_key })
        }
        _ => message(args, &key, &ring, home, epoch)?,
    };
    let terms = TxTerms { gas_limit: args.gas, fee: args.fee, memo: args.memo.clone() };
    let outcome = chain.broadcast_with(&key, vec![message], terms).await?;
    let mut value = json!({"hash": outcome.hash, "height": outcome.height, "gas_used": outcome.gas_used});
    if let Value::Object(map) = response(&outcome.data) {
        value.as_object_mut().into_iter().for_each(|v| v.extend(map.clone()));
    }
    output.value(&value);
    Ok(())
}

fn message(args: &TxArgs, key: &AccountKey, ring: &Keyring, home: &Path, epoch: u64) -> Result<Any, CliError> {
    let me = key.address().account();
    Ok(match &args.action {
        Action::Send { to, amount } => {
            let to_address = resolve_address(to, home)?.account();
            any(&MsgSend { from_address: me, to_address, amount: vec![coin(*amount)] })
        }
        Action::Delegate { validator, amount } => any(&MsgDelegate {
            delegator_address: me,
            validator_address: valoper(validator)?,
            amount: Some(coin(*amount)),
        }),
        Action::Undelegate { validator, amount } => any(&MsgUndelegate {
            delegator_address: me,
            validator_address: valoper(validator)?,
            amount: Some(coin(*amount)),
        }),
        Action::Redelegate { from_validator, to_validator, amount } => any(&MsgBeginRedelegate {
            delegator_address: me,
            validator_src_address: valoper(from_validator)?,
            validator_dst_address: valoper(to_validator)?,
            amount: Some(coin(*amount)),
        }),
        Action::CancelUnbonding { validator, amount, height } => any(&MsgCancelUnbondingDelegation {
            delegator_address: me,
            validator_address: valoper(validator)?,
            amount: Some(coin(*amount)),
            creation_height: *height,
        }),
        Action::WithdrawRewards { validator } => {
            any(&MsgWithdrawDelegatorReward { delegator_address: me, validator_address: valoper(validator)? })
        }
        Action::WithdrawCommission => {
            any(&MsgWithdrawValidatorCommission { validator_address: key.address().valoper() })
        }
        Action::SetWithdrawAddress { to } => any(&MsgSetWithdrawAddress {
            delegator_address: me,
            withdraw_address: resolve_address(to, home)?.account(),
        }),
        Action::Unjail => any(&MsgUnjail { validator_addr: key.address().valoper() }),
        Action::OpenSession { payee, deposit, spend_key, cap, window, epochs, profile, gateway, private } => {
            ring.ensure(spend_key, Kind::Service)?;
            let profile_digest = match (profile, gateway) {
                (_, true) => Vec::new(),
                (Some(profile), _) => profile.to_vec(),
                (None, _) => default_profile(home)?.to_vec(),
            };
            any(&market::MsgOpenSession {
                payer: me,
                payee: resolve_address(payee, home)?.account(),
                spend_key: ServiceKey::from_bytes(&ring.service_secret(spend_key)?).public_key().to_vec(),
                deposit: deposit.to_string(),
                cap: cap.unwrap_or(*deposit).to_string(),
                window: *window,
                expiry_epoch: epoch.saturating_add(*epochs),
                private: *private,
                profile_digest,
            })
        }
        Action::TopUp { session, amount } => {
            any(&market::MsgTopUp { payer: me, session: *session, amount: amount.to_string(), cap: String::new() })
        }
        Action::Appeal { trial } => any(&tiqe::MsgAppeal { worker: me, trial: *trial }),
        Action::RevokeSpendKey { session } => {
            any(&market::MsgRevokeSpendKey { payer: me, session: *session, spend_key: vec![] })
        }
        Action::UpdateModel { royalty_bps, profile } => {
            let profile = profile.map_or_else(|| default_profile(home), Ok)?;
            any(&market::MsgUpdateModel { provider: me, profile_digest: profile.to_vec(), royalty_bps: *royalty_bps })
        }
        Action::ReportOmitted { record } => {
            let receipt = Some(verify::read(record)?.answer.receipt);
            any(&market::MsgReportOmitted { payer: me, receipt })
        }
        Action::CloseSession { session } => {
            any(&market::MsgCloseSession { signer: me, session: *session, voucher: None })
        }
        Action::Bond { amount } => any(&market::MsgBond { operator: me, amount: amount.to_string() }),
        Action::Unbond { amount } => any(&market::MsgUnbond { operator: me, amount: amount.to_string() }),
        Action::UnbondJudge => any(&tiqe::MsgUnbondJudge { operator: me }),
        Action::Cosmos(action) => cosmos::message(action, &key.address(), home)?,
    })
}

/// What was paid out, in uplk.
fn paid(coins: &[Coin]) -> Value {
    json!({"amount": coins.first().map_or("0", |coin| coin.amount.as_str())})
}

/// The profile of the local network.
pub fn default_profile(home: &Path) -> Result<Digest, CliError> {
    let network = Home::new(home)?.require_network()?;
    parse_digest(&network.profile).map_err(|e| CliError::value("network.json: profile", e))
}

/// What the first message answered, where it says more than that it was done.
fn response(data: &[u8]) -> Value {
    let Some(first) = TxMsgData::decode(data).ok().and_then(|d| d.msg_responses.into_iter().next()) else {
        return Value::Null;
    };
    let value = first.value.as_slice();
    match first.type_url.as_str() {
        "/cosmos.distribution.v1beta1.MsgWithdrawDelegatorRewardResponse" => {
            MsgWithdrawDelegatorRewardResponse::decode(value).map_or(Value::Null, |r| paid(&r.amount))
        }
        "/cosmos.distribution.v1beta1.MsgWithdrawValidatorCommissionResponse" => {
            MsgWithdrawValidatorCommissionResponse::decode(value).map_or(Value::Null, |r| paid(&r.amount))
        }
        "/cosmos.gov.v1.MsgSubmitProposalResponse" => {
            MsgSubmitProposalResponse::decode(value).map_or(Value::Null, |r| json!({"proposal": r.proposal_id}))
        }
        "/polylink.market.v1.MsgOpenSessionResponse" => {
            market::MsgOpenSessionResponse::decode(value).map_or(Value::Null, |r| json!(r))
        }
        "/polylink.market.v1.MsgUnbondResponse" => {
            market::MsgUnbondResponse::decode(value).map_or(Value::Null, |r| json!(r))
        }
        "/polylink.tiqe.v1.MsgUnbondJudgeResponse" => {
            tiqe::MsgUnbondJudgeResponse::decode(value).map_or(Value::Null, |r| json!(r))
        }
        "/polylink.market.v1.MsgUpdateModelResponse" => {
            market::MsgUpdateModelResponse::decode(value).map_or(Value::Null, |r| json!(r))
        }
        "/polylink.market.v1.MsgRevokeSpendKeyResponse" => {
            market::MsgRevokeSpendKeyResponse::decode(value).map_or(Value::Null, |r| json!(r))
        }
        "/polylink.market.v1.MsgReportOmittedResponse" => {
            market::MsgReportOmittedResponse::decode(value).map_or(Value::Null, |r| json!(r))
        }
        "/polylink.market.v1.MsgCloseSessionResponse" => {
            market::MsgCloseSessionResponse::decode(value).map_or(Value::Null, |r| json!(r))
        }
        _ => Value::Null,
    }
}
