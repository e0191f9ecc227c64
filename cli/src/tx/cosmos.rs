//! The messages of the Cosmos SDK that stand beside sending and delegating: validators, several receivers, fee grants,
//! vesting accounts, governance.

use clap::{Args, Subcommand, ValueEnum};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use serde_json::Value;

use polylink_abci_app::gov::authority;
use polylink_protocol::cosmos::cosmos::bank::v1beta1::{Input, MsgMultiSend, Output};
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::crypto::ed25519::PubKey;
use polylink_protocol::cosmos::cosmos::feegrant::v1beta1::{BasicAllowance, MsgGrantAllowance, MsgRevokeAllowance};
use polylink_protocol::cosmos::cosmos::gov::v1::{
    MsgCancelProposal, MsgDeposit, MsgSubmitProposal, MsgVoteWeighted, VoteOption, WeightedVoteOption,
};
use polylink_protocol::cosmos::cosmos::staking::v1beta1::{
    CommissionRates, Description, MsgCreateValidator, MsgEditValidator,
};
use polylink_protocol::cosmos::cosmos::upgrade::v1beta1::{MsgSoftwareUpgrade, Plan};
use polylink_protocol::cosmos::cosmos::vesting::v1beta1::MsgCreateVestingAccount;
use polylink_protocol::cosmos::{Any, Timestamp};
use polylink_protocol::tx::any;
use polylink_protocol::{Address, Amount, DENOM, Dec, market_v1, tiqe_v1};

use crate::chain::{parse_amount, resolve_address};
use crate::error::CliError;
use crate::files;

/// Further `polylink tx` actions.
#[derive(Subcommand, Debug)]
pub enum Action {
    /// Send the same amount to several accounts at once
    MultiSend {
        /// How much each receives
        #[arg(value_parser = parse_amount)]
        amount: Amount,
        /// Who receives
        #[arg(required = true)]
        to: Vec<String>,
    },
    /// Make the account's own validator
    CreateValidator(CreateValidator),
    /// Change what the account's own validator shows, or its commission
    EditValidator(EditValidator),
    /// Pay fees for another account
    GrantFees {
        /// Whose fees
        grantee: String,
        /// How much in all [default: without limit]
        #[arg(long, value_parser = parse_amount)]
        limit: Option<Amount>,
        /// For how long
        #[arg(long, value_name = "SECONDS")]
        seconds: Option<u64>,
    },
    /// Pay fees for another account no longer
    RevokeFees {
        /// Whose fees
        grantee: String,
    },
    /// Make an account whose coins become its own in time
    CreateVesting {
        /// The new account
        to: String,
        /// How much
        #[arg(value_parser = parse_amount)]
        amount: Amount,
        /// Until all of it is its own
        seconds: u64,
        /// Nothing before the end, rather than evenly
        #[arg(long)]
        delayed: bool,
    },
    /// Propose something to those who stake
    Propose(Propose),
    /// Put down coins for a proposal; they come back unless it is vetoed
    Deposit {
        /// The proposal's number
        proposal: u64,
        /// How much
        #[arg(value_parser = parse_amount)]
        amount: Amount,
    },
    /// Vote on a proposal with the account's stake
    Vote {
        /// The proposal's number
        proposal: u64,
        /// `yes`, `no`, `abstain`, `no-with-veto`, or weights that make one: `yes=0.7,abstain=0.3`
        #[arg(value_parser = parse_options)]
        options: Options,
    },
    /// Withdraw a proposal of the account's own; that costs a part of its deposits
    CancelProposal {
        /// The proposal's number
        proposal: u64,
    },
}

/// `polylink tx create-validator`.
#[derive(Args, Debug)]
pub struct CreateValidator {
    /// Its own stake
    #[arg(value_parser = parse_amount)]
    amount: Amount,
    /// Its name
    #[arg(long)]
    moniker: String,
    /// CometBFT's priv_validator_key.json, or the base64 of its `pub_key.value`
    #[arg(long)]
    key: String,
    /// Commission, as in 0.1 for 10 %
    #[arg(long, default_value = "0.1", value_parser = parse_ratio)]
    commission: Dec,
    /// The highest commission it will ever take
    #[arg(long, default_value = "1", value_parser = parse_ratio)]
    max_commission: Dec,
    /// The most by which it will raise it in a day
    #[arg(long, default_value = "0.01", value_parser = parse_ratio)]
    max_change: Dec,
}

/// `polylink tx edit-validator`.
#[derive(Args, Debug)]
pub struct EditValidator {
    /// Its name
    #[arg(long)]
    moniker: Option<String>,
    /// Where to read of it
    #[arg(long)]
    website: Option<String>,
    /// What it is
    #[arg(long)]
    details: Option<String>,
    /// Commission, as in 0.1 for 10 %
    #[arg(long, value_parser = parse_ratio)]
    commission: Option<Dec>,
}

/// Whose parameters.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Module {
    Market,
    Tiqe,
}

/// `polylink tx propose`.
#[derive(Args, Debug)]
pub struct Propose {
    /// What it is called
    title: String,
    /// What it says
    summary: String,
    /// Put down with it; the voting begins when enough is
    #[arg(long, default_value = "10plk", value_parser = parse_amount)]
    deposit: Amount,
    /// Vote in less time, with more coins and more votes
    #[arg(long)]
    expedited: bool,
    /// A next version of the parameters of a module, in --file: JSON, as `polylink query params` shows them
    #[arg(long, value_enum, requires = "file", conflicts_with = "upgrade")]
    params: Option<Module>,
    /// The parameters
    #[arg(long, requires = "params")]
    file: Option<PathBuf>,
    /// An upgrade of the program: its name
    #[arg(long, requires = "height")]
    upgrade: Option<String>,
    /// The first height of the next program
    #[arg(long, requires = "upgrade")]
    height: Option<u64>,
    /// Where the next program is found
    #[arg(long, default_value = "", requires = "upgrade")]
    info: String,
}

/// Options with their weights.
pub type Options = Vec<WeightedVoteOption>;

fn parse_ratio(text: &str) -> Result<Dec, String> {
    let ratio = Dec::from_decimal_str(text).filter(|ratio| *ratio <= Dec::one());
    ratio.ok_or_else(|| format!("`{text}` is not a ratio; write a decimal from 0 to 1, such as 0.1"))
}

fn parse_options(text: &str) -> Result<Options, String> {
    let mut total = Dec::ZERO;
    let options = text.split(',').map(|part| {
        let (name, weight) = part.split_once('=').unwrap_or((part, "1"));
        let option = match name.trim() {
            "yes" => VoteOption::Yes,
            "no" => VoteOption::No,
            "abstain" => VoteOption::Abstain,
            "no-with-veto" => VoteOption::NoWithVeto,
            other => return Err(format!("`{other}` is no option; write yes, no, abstain or no-with-veto")),
        };
        let weight = parse_ratio(weight.trim())?;
        total = total.checked_add(weight).unwrap_or(total);
        Ok(WeightedVoteOption { option: option.into(), weight: weight.to_string() })
    });
    let options = options.collect::<Result<Options, String>>()?;
    if total == Dec::one() { Ok(options) } else { Err(format!("the weights of `{text}` make {total}, not one")) }
}

fn coin(amount: Amount) -> Coin {
    Coin { denom: DENOM.into(), amount: amount.to_string() }
}

/// Unix time in so many seconds.
fn after(seconds: u64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(now.saturating_add(seconds)).unwrap_or(i64::MAX)
}

/// A consensus key from CometBFT's file or its base64.
fn consensus_key(text: &str) -> Result<Vec<u8>, CliError> {
    let encoded = if Path::new(text).exists() {
        let file: Value = files::read_json(Path::new(text))?;
        let value = file["pub_key"]["value"].as_str().map(str::to_owned);
        value.ok_or_else(|| CliError::value("--key", format!("{text} has no pub_key.value")))?
    } else {
        text.to_owned()
    };
    let key = base64::engine::general_purpose::STANDARD.decode(&encoded).ok().filter(|key| key.len() == 32);
    key.ok_or_else(|| {
        CliError::value("--key", format!("`{text}` is neither a file nor the base64 of an ed25519 key of 32 bytes"))
    })
}

/// The message of an action of account `me`.
pub fn message(action: &Action, me: &Address, home: &Path) -> Result<Any, CliError> {
    let account = me.account();
    Ok(match action {
        Action::MultiSend { amount, to } => {
            let all = amount.0.checked_mul(to.len() as u128).map(Amount);
            let all = all.ok_or_else(|| CliError::value("amount", "more than there can be"))?;
            let outputs = to
                .iter()
                .map(|to| Ok(Output { address: resolve_address(to, home)?.account(), coins: vec![coin(*amount)] }));
            let outputs = outputs.collect::<Result<_, CliError>>()?;
            any(&MsgMultiSend { inputs: vec![Input { address: account, coins: vec![coin(all)] }], outputs })
        }
        Action::CreateValidator(args) => any(&MsgCreateValidator {
            description: Some(Description { moniker: args.moniker.clone(), ..Default::default() }),
            commission: Some(CommissionRates {
                rate: args.commission.to_atomics_string(),
                max_rate: args.max_commission.to_atomics_string(),
                max_change_rate: args.max_change.to_atomics_string(),
            }),
            min_self_delegation: "1".into(),
            validator_address: me.valoper(),
            pubkey: Some(any(&PubKey { key: consensus_key(&args.key)? })),
            value: Some(coin(args.amount)),
            ..Default::default()
        }),
        Action::EditValidator(args) => {
            let nothing = [&args.moniker, &args.website, &args.details].iter().all(|field| field.is_none());
            if nothing && args.commission.is_none() {
                return Err(CliError::value("edit-validator", "give --moniker, --website, --details or --commission"));
            }
            // The SDK's mark for what stays as it is.
            let keep = |field: &Option<String>| field.clone().unwrap_or_else(|| "[do-not-modify]".into());
            any(&MsgEditValidator {
                description: Some(Description {
                    moniker: keep(&args.moniker),
                    identity: keep(&None),
                    website: keep(&args.website),
                    security_contact: keep(&None),
                    details: keep(&args.details),
                }),
                validator_address: me.valoper(),
                commission_rate: args.commission.map(Dec::to_atomics_string).unwrap_or_default(),
                min_self_delegation: String::new(),
            })
        }
        Action::GrantFees { grantee, limit, seconds } => {
            let expiration = seconds.map(|seconds| Timestamp { seconds: after(seconds), nanos: 0 });
            let allowance = BasicAllowance { spend_limit: limit.map(coin).into_iter().collect(), expiration };
            any(&MsgGrantAllowance {
                granter: account,
                grantee: resolve_address(grantee, home)?.account(),
                allowance: Some(any(&allowance)),
            })
        }
        Action::RevokeFees { grantee } => {
            any(&MsgRevokeAllowance { granter: account, grantee: resolve_address(grantee, home)?.account() })
        }
        Action::CreateVesting { to, amount, seconds, delayed } => any(&MsgCreateVestingAccount {
            from_address: account,
            to_address: resolve_address(to, home)?.account(),
            amount: vec![coin(*amount)],
            end_time: after(*seconds),
            delayed: *delayed,
        }),
        Action::Propose(args) => any(&MsgSubmitProposal {
            messages: proposed(args)?.into_iter().collect(),
            initial_deposit: if args.deposit.is_zero() { vec![] } else { vec![coin(args.deposit)] },
            proposer: account,
            metadata: "polylink".into(),
            title: args.title.clone(),
            summary: args.summary.clone(),
            expedited: args.expedited,
        }),
        Action::Deposit { proposal, amount } => {
            any(&MsgDeposit { proposal_id: *proposal, depositor: account, amount: vec![coin(*amount)] })
        }
        Action::Vote { proposal, options } => any(&MsgVoteWeighted {
            proposal_id: *proposal,
            voter: account,
            options: options.clone(),
            metadata: String::new(),
        }),
        Action::CancelProposal { proposal } => any(&MsgCancelProposal { proposal_id: *proposal, proposer: account }),
    })
}

/// What a proposal would do, if it is more than a text.
fn proposed(args: &Propose) -> Result<Option<Any>, CliError> {
    let authority = authority().account();
    if let (Some(module), Some(file)) = (args.params, &args.file) {
        return Ok(Some(match module {
            Module::Market => {
                let params: market_v1::Params = files::read_json(file)?;
                any(&market_v1::MsgUpdateParams { authority, params: Some(params) })
            }
            Module::Tiqe => {
                let params: tiqe_v1::Params = files::read_json(file)?;
                any(&tiqe_v1::MsgUpdateParams { authority, params: Some(params) })
            }
        }));
    }
    let (Some(name), Some(height)) = (&args.upgrade, args.height) else { return Ok(None) };
    let height = i64::try_from(height).map_err(|_| CliError::value("--height", "no chain comes so far"))?;
    let plan = Plan { name: name.clone(), height, info: args.info.clone(), ..Default::default() };
    Ok(Some(any(&MsgSoftwareUpgrade { authority, plan: Some(plan) })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_as_people_write_them() {
        let parsed = |text: &str| {
            parse_options(text).map(|options| options.into_iter().map(|o| (o.option, o.weight)).collect::<Vec<_>>())
        };
        assert_eq!(parsed("yes"), Ok(vec![(1, "1.000000000000000000".to_owned())]));
        let two = vec![(4, "0.700000000000000000".to_owned()), (2, "0.300000000000000000".to_owned())];
        assert_eq!(parsed("no-with-veto=0.7,abstain=0.3"), Ok(two));
        for (text, says) in [
            ("", "no option"),
            ("maybe", "`maybe` is no option"),
            ("yes=0.5", "make 0.5"),
            ("yes=0.5,no=0.6", "make 1.1"),
            ("yes=2", "not a ratio"),
            ("yes=x", "not a ratio"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn consensus_keys_of_a_file_or_in_base64() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("priv_validator_key.json");
        let key = base64::engine::general_purpose::STANDARD.encode([7; 32]);
        std::fs::write(&path, serde_json::json!({"pub_key": {"value": key}}).to_string()).unwrap();
        assert_eq!(consensus_key(&key).unwrap(), vec![7; 32]);
        assert_eq!(consensus_key(path.to_str().unwrap()).unwrap(), vec![7; 32]);
        std::fs::write(&path, "{}").unwrap();
        assert!(consensus_key(path.to_str().unwrap()).unwrap_err().to_string().contains("pub_key.value"));
        for text in ["", "AAAA", "/no/such/file"] {
            assert!(consensus_key(text).unwrap_err().to_string().contains("--key"), "{text}");
        }
    }
}
