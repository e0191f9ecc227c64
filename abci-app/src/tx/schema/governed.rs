//! The schemas of governance, proposals and what they may hold, and of vesting accounts.

use super::{COIN, DURATION, Field, Kind, TIMESTAMP, f, keep, m, many};

const AUTHORITY: Field = f(1, "authority", Kind::Text);

const fn params(name: &'static str) -> Field {
    keep(f(2, "params", m(name)))
}

const GOV_PARAMS: &str = "cosmos.gov.v1.Params";
const STAKING_PARAMS: &str = "cosmos.staking.v1beta1.Params";
const DISTRIBUTION_PARAMS: &str = "cosmos.distribution.v1beta1.Params";
const SLASHING_PARAMS: &str = "cosmos.slashing.v1beta1.Params";
const AUTH_PARAMS: &str = "cosmos.auth.v1beta1.Params";
const BANK_PARAMS: &str = "cosmos.bank.v1beta1.Params";
const SEND_ENABLED: &str = "cosmos.bank.v1beta1.SendEnabled";
const MINT_PARAMS: &str = "cosmos.mint.v1beta1.Params";

/// As [`COSMOS`](super::COSMOS).
pub const GOVERNED: &[(&str, &[Field])] = &[
    (
        "cosmos.gov.v1.MsgSubmitProposal",
        &[
            many(1, "messages", Kind::Any),
            keep(many(2, "initial_deposit", COIN)),
            f(3, "proposer", Kind::Text),
            f(4, "metadata", Kind::Text),
            f(5, "title", Kind::Text),
            f(6, "summary", Kind::Text),
            f(7, "expedited", Kind::Bool),
        ],
    ),
    (
        "cosmos.gov.v1.MsgDeposit",
        &[keep(f(1, "proposal_id", Kind::Long)), f(2, "depositor", Kind::Text), keep(many(3, "amount", COIN))],
    ),
    (
        "cosmos.gov.v1.MsgVote",
        &[
            keep(f(1, "proposal_id", Kind::Long)),
            f(2, "voter", Kind::Text),
            f(3, "option", Kind::Int),
            f(4, "metadata", Kind::Text),
        ],
    ),
    (
        "cosmos.gov.v1.MsgVoteWeighted",
        &[
            keep(f(1, "proposal_id", Kind::Long)),
            f(2, "voter", Kind::Text),
            many(3, "options", m("cosmos.gov.v1.WeightedVoteOption")),
            f(4, "metadata", Kind::Text),
        ],
    ),
    ("cosmos.gov.v1.WeightedVoteOption", &[f(1, "option", Kind::Int), f(2, "weight", Kind::Text)]),
    ("cosmos.gov.v1.MsgCancelProposal", &[keep(f(1, "proposal_id", Kind::Long)), f(2, "proposer", Kind::Text)]),
    ("cosmos.gov.v1.MsgExecLegacyContent", &[f(1, "content", Kind::Any), f(2, "authority", Kind::Text)]),
    ("cosmos.gov.v1.MsgUpdateParams", &[AUTHORITY, params(GOV_PARAMS)]),
    (
        GOV_PARAMS,
        &[
            keep(many(1, "min_deposit", COIN)),
            f(2, "max_deposit_period", m(DURATION)),
            f(3, "voting_period", m(DURATION)),
            f(4, "quorum", Kind::Text),
            f(5, "threshold", Kind::Text),
            f(6, "veto_threshold", Kind::Text),
            f(7, "min_initial_deposit_ratio", Kind::Text),
            f(8, "proposal_cancel_ratio", Kind::Text),
            f(9, "proposal_cancel_dest", Kind::Text),
            f(10, "expedited_voting_period", m(DURATION)),
            f(11, "expedited_threshold", Kind::Text),
            keep(many(12, "expedited_min_deposit", COIN)),
            f(13, "burn_vote_quorum", Kind::Bool),
            f(14, "burn_proposal_deposit_prevote", Kind::Bool),
            f(15, "burn_vote_veto", Kind::Bool),
            f(16, "min_deposit_ratio", Kind::Text),
        ],
    ),
    (
        "cosmos.gov.v1beta1.MsgSubmitProposal",
        &[f(1, "content", Kind::Any), keep(many(2, "initial_deposit", COIN)), f(3, "proposer", Kind::Text)],
    ),
    (
        "cosmos.gov.v1beta1.MsgDeposit",
        &[keep(f(1, "proposal_id", Kind::Long)), f(2, "depositor", Kind::Text), keep(many(3, "amount", COIN))],
    ),
    (
        "cosmos.gov.v1beta1.MsgVote",
        &[f(1, "proposal_id", Kind::Long), f(2, "voter", Kind::Text), f(3, "option", Kind::Int)],
    ),
    (
        "cosmos.gov.v1beta1.MsgVoteWeighted",
        &[
            keep(f(1, "proposal_id", Kind::Long)),
            f(2, "voter", Kind::Text),
            keep(many(3, "options", m("cosmos.gov.v1beta1.WeightedVoteOption"))),
        ],
    ),
    ("cosmos.gov.v1beta1.WeightedVoteOption", &[f(1, "option", Kind::Int), keep(f(2, "weight", Kind::Dec))]),
    ("cosmos.gov.v1beta1.TextProposal", &[f(1, "title", Kind::Text), f(2, "description", Kind::Text)]),
    ("cosmos.staking.v1beta1.MsgUpdateParams", &[AUTHORITY, params(STAKING_PARAMS)]),
    (
        STAKING_PARAMS,
        &[
            keep(f(1, "unbonding_time", m(DURATION))),
            f(2, "max_validators", Kind::Int),
            f(3, "max_entries", Kind::Int),
            f(4, "historical_entries", Kind::Int),
            f(5, "bond_denom", Kind::Text),
            keep(f(6, "min_commission_rate", Kind::Dec)),
        ],
    ),
    ("cosmos.distribution.v1beta1.MsgUpdateParams", &[AUTHORITY, params(DISTRIBUTION_PARAMS)]),
    (
        DISTRIBUTION_PARAMS,
        &[
            keep(f(1, "community_tax", Kind::Dec)),
            keep(f(2, "base_proposer_reward", Kind::Dec)),
            keep(f(3, "bonus_proposer_reward", Kind::Dec)),
            f(4, "withdraw_addr_enabled", Kind::Bool),
        ],
    ),
    (
        "cosmos.distribution.v1beta1.MsgCommunityPoolSpend",
        &[AUTHORITY, f(2, "recipient", Kind::Text), keep(many(3, "amount", COIN))],
    ),
    ("cosmos.slashing.v1beta1.MsgUpdateParams", &[AUTHORITY, params(SLASHING_PARAMS)]),
    (
        SLASHING_PARAMS,
        &[
            f(1, "signed_blocks_window", Kind::Long),
            keep(f(2, "min_signed_per_window", Kind::Dec)),
            keep(f(3, "downtime_jail_duration", m(DURATION))),
            keep(f(4, "slash_fraction_double_sign", Kind::Dec)),
            keep(f(5, "slash_fraction_downtime", Kind::Dec)),
        ],
    ),
    ("cosmos.mint.v1beta1.MsgUpdateParams", &[AUTHORITY, params(MINT_PARAMS)]),
    (
        MINT_PARAMS,
        &[
            f(1, "mint_denom", Kind::Text),
            keep(f(2, "inflation_rate_change", Kind::Dec)),
            keep(f(3, "inflation_max", Kind::Dec)),
            keep(f(4, "inflation_min", Kind::Dec)),
            keep(f(5, "goal_bonded", Kind::Dec)),
            f(6, "blocks_per_year", Kind::Long),
        ],
    ),
    ("cosmos.auth.v1beta1.MsgUpdateParams", &[AUTHORITY, params(AUTH_PARAMS)]),
    (
        AUTH_PARAMS,
        &[
            f(1, "max_memo_characters", Kind::Long),
            f(2, "tx_sig_limit", Kind::Long),
            f(3, "tx_size_cost_per_byte", Kind::Long),
            f(4, "sig_verify_cost_ed25519", Kind::Long),
            f(5, "sig_verify_cost_secp256k1", Kind::Long),
        ],
    ),
    ("cosmos.bank.v1beta1.MsgUpdateParams", &[AUTHORITY, params(BANK_PARAMS)]),
    (BANK_PARAMS, &[many(1, "send_enabled", m(SEND_ENABLED)), f(2, "default_send_enabled", Kind::Bool)]),
    (SEND_ENABLED, &[f(1, "denom", Kind::Text), f(2, "enabled", Kind::Bool)]),
    (
        "cosmos.bank.v1beta1.MsgSetSendEnabled",
        &[AUTHORITY, many(2, "send_enabled", m(SEND_ENABLED)), many(3, "use_default_for", Kind::Text)],
    ),
    (
        "cosmos.consensus.v1.MsgUpdateParams",
        &[
            AUTHORITY,
            f(2, "block", m("tendermint.types.BlockParams")),
            f(3, "evidence", m("tendermint.types.EvidenceParams")),
            f(4, "validator", m("tendermint.types.ValidatorParams")),
            f(5, "abci", m("tendermint.types.AbciParams")),
        ],
    ),
    ("tendermint.types.BlockParams", &[f(1, "max_bytes", Kind::Long), f(2, "max_gas", Kind::Long)]),
    (
        "tendermint.types.EvidenceParams",
        &[
            f(1, "max_age_num_blocks", Kind::Long),
            keep(f(2, "max_age_duration", m(DURATION))),
            f(3, "max_bytes", Kind::Long),
        ],
    ),
    ("tendermint.types.ValidatorParams", &[many(1, "pub_key_types", Kind::Text)]),
    ("tendermint.types.AbciParams", &[f(1, "vote_extensions_enable_height", Kind::Long)]),
    ("cosmos.upgrade.v1beta1.MsgSoftwareUpgrade", &[AUTHORITY, keep(f(2, "plan", m("cosmos.upgrade.v1beta1.Plan")))]),
    ("cosmos.upgrade.v1beta1.MsgCancelUpgrade", &[AUTHORITY]),
    (
        "cosmos.upgrade.v1beta1.Plan",
        &[
            f(1, "name", Kind::Text),
            keep(f(2, "time", m(TIMESTAMP))),
            f(3, "height", Kind::Long),
            f(4, "info", Kind::Text),
            f(5, "upgraded_client_state", Kind::Any),
        ],
    ),
    (
        "cosmos.vesting.v1beta1.MsgCreateVestingAccount",
        &[
            f(1, "from_address", Kind::Text),
            f(2, "to_address", Kind::Text),
            keep(many(3, "amount", COIN)),
            f(4, "end_time", Kind::Long),
            f(5, "delayed", Kind::Bool),
        ],
    ),
    (
        "cosmos.vesting.v1beta1.MsgCreatePermanentLockedAccount",
        &[f(1, "from_address", Kind::Text), f(2, "to_address", Kind::Text), keep(many(3, "amount", COIN))],
    ),
    (
        "cosmos.vesting.v1beta1.MsgCreatePeriodicVestingAccount",
        &[
            f(1, "from_address", Kind::Text),
            f(2, "to_address", Kind::Text),
            f(3, "start_time", Kind::Long),
            keep(many(4, "vesting_periods", m("cosmos.vesting.v1beta1.Period"))),
        ],
    ),
    ("cosmos.vesting.v1beta1.Period", &[f(1, "length", Kind::Long), keep(many(2, "amount", COIN))]),
];

#[cfg(test)]
mod tests {
    use super::super::tests::{check, check_named};
    use super::GOVERNED;
    use polylink_protocol::cosmos::cosmos as sdk;
    use polylink_protocol::cosmos::tendermint::types;

    #[test]
    fn the_table_agrees_with_the_generated_types() {
        use sdk::gov::{v1, v1beta1};
        let checked = [
            check::<v1::MsgSubmitProposal>(),
            check::<v1::MsgDeposit>(),
            check::<v1::MsgVote>(),
            check::<v1::MsgVoteWeighted>(),
            check::<v1::WeightedVoteOption>(),
            check::<v1::MsgCancelProposal>(),
            check::<v1::MsgExecLegacyContent>(),
            check::<v1::MsgUpdateParams>(),
            check::<v1::Params>(),
            check::<v1beta1::MsgSubmitProposal>(),
            check::<v1beta1::MsgDeposit>(),
            check::<v1beta1::MsgVote>(),
            check::<v1beta1::MsgVoteWeighted>(),
            check::<v1beta1::WeightedVoteOption>(),
            check::<v1beta1::TextProposal>(),
            check::<sdk::staking::v1beta1::MsgUpdateParams>(),
            check::<sdk::staking::v1beta1::Params>(),
            check::<sdk::distribution::v1beta1::MsgUpdateParams>(),
            check::<sdk::distribution::v1beta1::Params>(),
            check::<sdk::distribution::v1beta1::MsgCommunityPoolSpend>(),
            check::<sdk::slashing::v1beta1::MsgUpdateParams>(),
            check::<sdk::slashing::v1beta1::Params>(),
            check::<sdk::mint::v1beta1::MsgUpdateParams>(),
            check::<sdk::mint::v1beta1::Params>(),
            check::<sdk::upgrade::v1beta1::MsgSoftwareUpgrade>(),
            check::<sdk::upgrade::v1beta1::MsgCancelUpgrade>(),
            check::<sdk::upgrade::v1beta1::Plan>(),
            check::<sdk::vesting::v1beta1::MsgCreateVestingAccount>(),
            check::<sdk::vesting::v1beta1::MsgCreatePermanentLockedAccount>(),
            check::<sdk::vesting::v1beta1::MsgCreatePeriodicVestingAccount>(),
            check::<sdk::vesting::v1beta1::Period>(),
            check::<sdk::auth::v1beta1::MsgUpdateParams>(),
            check::<sdk::auth::v1beta1::Params>(),
            check::<sdk::bank::v1beta1::MsgUpdateParams>(),
            check::<sdk::bank::v1beta1::Params>(),
            check::<sdk::bank::v1beta1::SendEnabled>(),
            check::<sdk::bank::v1beta1::MsgSetSendEnabled>(),
            check::<crate::consensus::proto::MsgUpdateParams>(),
            check_named::<types::BlockParams>("tendermint.types.BlockParams"),
            check_named::<types::EvidenceParams>("tendermint.types.EvidenceParams"),
            check_named::<types::ValidatorParams>("tendermint.types.ValidatorParams"),
            check_named::<types::AbciParams>("tendermint.types.AbciParams"),
        ];
        for (name, _) in GOVERNED {
            assert!(checked.iter().any(|checked| checked == name), "{name} is not checked");
        }
    }
}
