//! Which path is which method: the SDK's paths in one table, and for every query of the descriptors a path made from its
//! name, `/<package>/<method in snake case>`, so that a new one is there by itself.

use prost_reflect::MethodDescriptor;

use crate::descriptors::{self, POOL};

/// The SDK's paths; what stands in braces is a field of the request.
pub const TABLE: &[(&str, &str)] = &[
    ("/cosmos/auth/v1beta1/accounts", "cosmos.auth.v1beta1.Query/Accounts"),
    ("/cosmos/auth/v1beta1/accounts/{address}", "cosmos.auth.v1beta1.Query/Account"),
    ("/cosmos/auth/v1beta1/account_info/{address}", "cosmos.auth.v1beta1.Query/AccountInfo"),
    ("/cosmos/auth/v1beta1/module_accounts/{name}", "cosmos.auth.v1beta1.Query/ModuleAccountByName"),
    ("/cosmos/base/node/v1beta1/config", "cosmos.base.node.v1beta1.Service/Config"),
    ("/cosmos/base/tendermint/v1beta1/node_info", "cosmos.base.tendermint.v1beta1.Service/GetNodeInfo"),
    ("/cosmos/base/tendermint/v1beta1/syncing", "cosmos.base.tendermint.v1beta1.Service/GetSyncing"),
    ("/cosmos/base/tendermint/v1beta1/blocks/latest", "cosmos.base.tendermint.v1beta1.Service/GetLatestBlock"),
    ("/cosmos/base/tendermint/v1beta1/blocks/{height}", "cosmos.base.tendermint.v1beta1.Service/GetBlockByHeight"),
    (
        "/cosmos/base/tendermint/v1beta1/validatorsets/latest",
        "cosmos.base.tendermint.v1beta1.Service/GetLatestValidatorSet",
    ),
    (
        "/cosmos/base/tendermint/v1beta1/validatorsets/{height}",
        "cosmos.base.tendermint.v1beta1.Service/GetValidatorSetByHeight",
    ),
    ("/cosmos/bank/v1beta1/balances/{address}", "cosmos.bank.v1beta1.Query/AllBalances"),
    ("/cosmos/bank/v1beta1/balances/{address}/by_denom", "cosmos.bank.v1beta1.Query/Balance"),
    ("/cosmos/bank/v1beta1/spendable_balances/{address}", "cosmos.bank.v1beta1.Query/SpendableBalances"),
    ("/cosmos/bank/v1beta1/spendable_balances/{address}/by_denom", "cosmos.bank.v1beta1.Query/SpendableBalanceByDenom"),
    ("/cosmos/bank/v1beta1/supply", "cosmos.bank.v1beta1.Query/TotalSupply"),
    ("/cosmos/bank/v1beta1/supply/by_denom", "cosmos.bank.v1beta1.Query/SupplyOf"),
    ("/cosmos/bank/v1beta1/denoms_metadata/{denom}", "cosmos.bank.v1beta1.Query/DenomMetadata"),
    ("/cosmos/bank/v1beta1/denom_owners/{denom}", "cosmos.bank.v1beta1.Query/DenomOwners"),
    (
        "/cosmos/distribution/v1beta1/validators/{validator_address}",
        "cosmos.distribution.v1beta1.Query/ValidatorDistributionInfo",
    ),
    (
        "/cosmos/distribution/v1beta1/validators/{validator_address}/outstanding_rewards",
        "cosmos.distribution.v1beta1.Query/ValidatorOutstandingRewards",
    ),
    (
        "/cosmos/distribution/v1beta1/validators/{validator_address}/commission",
        "cosmos.distribution.v1beta1.Query/ValidatorCommission",
    ),
    (
        "/cosmos/distribution/v1beta1/validators/{validator_address}/slashes",
        "cosmos.distribution.v1beta1.Query/ValidatorSlashes",
    ),
    (
        "/cosmos/distribution/v1beta1/delegators/{delegator_address}/rewards",
        "cosmos.distribution.v1beta1.Query/DelegationTotalRewards",
    ),
    (
        "/cosmos/distribution/v1beta1/delegators/{delegator_address}/rewards/{validator_address}",
        "cosmos.distribution.v1beta1.Query/DelegationRewards",
    ),
    (
        "/cosmos/distribution/v1beta1/delegators/{delegator_address}/validators",
        "cosmos.distribution.v1beta1.Query/DelegatorValidators",
    ),
    (
        "/cosmos/distribution/v1beta1/delegators/{delegator_address}/withdraw_address",
        "cosmos.distribution.v1beta1.Query/DelegatorWithdrawAddress",
    ),
    ("/cosmos/evidence/v1beta1/evidence", "cosmos.evidence.v1beta1.Query/AllEvidence"),
    ("/cosmos/evidence/v1beta1/evidence/{hash}", "cosmos.evidence.v1beta1.Query/Evidence"),
    ("/cosmos/feegrant/v1beta1/allowance/{granter}/{grantee}", "cosmos.feegrant.v1beta1.Query/Allowance"),
    ("/cosmos/feegrant/v1beta1/allowances/{grantee}", "cosmos.feegrant.v1beta1.Query/Allowances"),
    ("/cosmos/feegrant/v1beta1/issued/{granter}", "cosmos.feegrant.v1beta1.Query/AllowancesByGranter"),
    ("/cosmos/gov/v1/params/{params_type}", "cosmos.gov.v1.Query/Params"),
    ("/cosmos/gov/v1/proposals/{proposal_id}", "cosmos.gov.v1.Query/Proposal"),
    ("/cosmos/gov/v1/proposals/{proposal_id}/votes", "cosmos.gov.v1.Query/Votes"),
    ("/cosmos/gov/v1/proposals/{proposal_id}/votes/{voter}", "cosmos.gov.v1.Query/Vote"),
    ("/cosmos/gov/v1/proposals/{proposal_id}/deposits", "cosmos.gov.v1.Query/Deposits"),
    ("/cosmos/gov/v1/proposals/{proposal_id}/deposits/{depositor}", "cosmos.gov.v1.Query/Deposit"),
    ("/cosmos/gov/v1/proposals/{proposal_id}/tally", "cosmos.gov.v1.Query/TallyResult"),
    ("/cosmos/gov/v1beta1/params/{params_type}", "cosmos.gov.v1beta1.Query/Params"),
    ("/cosmos/gov/v1beta1/proposals/{proposal_id}", "cosmos.gov.v1beta1.Query/Proposal"),
    ("/cosmos/gov/v1beta1/proposals/{proposal_id}/votes", "cosmos.gov.v1beta1.Query/Votes"),
    ("/cosmos/gov/v1beta1/proposals/{proposal_id}/votes/{voter}", "cosmos.gov.v1beta1.Query/Vote"),
    ("/cosmos/gov/v1beta1/proposals/{proposal_id}/deposits", "cosmos.gov.v1beta1.Query/Deposits"),
    ("/cosmos/gov/v1beta1/proposals/{proposal_id}/deposits/{depositor}", "cosmos.gov.v1beta1.Query/Deposit"),
    ("/cosmos/gov/v1beta1/proposals/{proposal_id}/tally", "cosmos.gov.v1beta1.Query/TallyResult"),
    ("/cosmos/slashing/v1beta1/signing_infos/{cons_address}", "cosmos.slashing.v1beta1.Query/SigningInfo"),
    ("/cosmos/staking/v1beta1/validators/{validator_addr}", "cosmos.staking.v1beta1.Query/Validator"),
    (
        "/cosmos/staking/v1beta1/validators/{validator_addr}/delegations",
        "cosmos.staking.v1beta1.Query/ValidatorDelegations",
    ),
    (
        "/cosmos/staking/v1beta1/validators/{validator_addr}/unbonding_delegations",
        "cosmos.staking.v1beta1.Query/ValidatorUnbondingDelegations",
    ),
    (
        "/cosmos/staking/v1beta1/validators/{validator_addr}/delegations/{delegator_addr}",
        "cosmos.staking.v1beta1.Query/Delegation",
    ),
    (
        "/cosmos/staking/v1beta1/validators/{validator_addr}/delegations/{delegator_addr}/unbonding_delegation",
        "cosmos.staking.v1beta1.Query/UnbondingDelegation",
    ),
    ("/cosmos/staking/v1beta1/delegations/{delegator_addr}", "cosmos.staking.v1beta1.Query/DelegatorDelegations"),
    (
        "/cosmos/staking/v1beta1/delegators/{delegator_addr}/unbonding_delegations",
        "cosmos.staking.v1beta1.Query/DelegatorUnbondingDelegations",
    ),
    ("/cosmos/staking/v1beta1/delegators/{delegator_addr}/redelegations", "cosmos.staking.v1beta1.Query/Redelegations"),
    (
        "/cosmos/staking/v1beta1/delegators/{delegator_addr}/validators",
        "cosmos.staking.v1beta1.Query/DelegatorValidators",
    ),
    (
        "/cosmos/staking/v1beta1/delegators/{delegator_addr}/validators/{validator_addr}",
        "cosmos.staking.v1beta1.Query/DelegatorValidator",
    ),
    ("/cosmos/staking/v1beta1/historical_info/{height}", "cosmos.staking.v1beta1.Query/HistoricalInfo"),
    ("/cosmos/tx/v1beta1/txs", "cosmos.tx.v1beta1.Service/GetTxsEvent"),
    ("/cosmos/tx/v1beta1/txs/{hash}", "cosmos.tx.v1beta1.Service/GetTx"),
    ("/cosmos/upgrade/v1beta1/applied_plan/{name}", "cosmos.upgrade.v1beta1.Query/AppliedPlan"),
    ("/feemarket/v1/gas_prices", "feemarket.feemarket.v1.Query/GasPrices"),
    ("/feemarket/v1/gas_price/{denom}", "feemarket.feemarket.v1.Query/GasPrice"),
];

/// A path's method, and the fields that stand in it.
pub struct Found {
    /// The method.
    pub method: MethodDescriptor,
    /// Field and text.
    pub fields: Vec<(String, String)>,
}

fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.trim_matches('/').split('/')
}

fn matches(template: &str, path: &str) -> Option<Vec<(String, String)>> {
    let mut fields = Vec::new();
    let (mut left, mut right) = (segments(template), segments(path));
    loop {
        match (left.next(), right.next()) {
            (None, None) => return Some(fields),
            (Some(name), Some(text)) if name.starts_with('{') && !text.is_empty() => {
                fields.push((name.trim_matches(['{', '}']).to_owned(), text.to_owned()));
            }
            (Some(name), Some(text)) if name == text => {}
            _ => return None,
        }
    }
}

/// `TotalSupply` is `total_supply`.
pub fn snake(name: &str) -> String {
    let mut text = String::new();
    for (at, letter) in name.char_indices() {
        if letter.is_ascii_uppercase() && at > 0 {
            text.push('_');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

/// The path that every query has besides the SDK's.
pub fn general_path(method: &MethodDescriptor) -> String {
    format!("/{}/{}", method.parent_service().parent_file().package_name().replace('.', "/"), snake(method.name()))
}

/// The queries of all services of this name.
pub fn queries() -> impl Iterator<Item = MethodDescriptor> {
    let services = POOL.services().filter(|service| service.name() == "Query");
    services.flat_map(|service| service.methods().collect::<Vec<_>>())
}

/// The method of a path.
pub fn find(path: &str) -> Option<Found> {
    let of_table = TABLE.iter().find_map(|(template, method)| {
        Some(Found { fields: matches(template, path)?, method: descriptors::method(method)? })
    });
    let of_name = || Some(Found { fields: Vec::new(), method: queries().find(|method| general_path(method) == path)? });
    of_table.or_else(of_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_a_method_whose_path_names_its_fields() {
        for (template, name) in TABLE {
            let method = descriptors::method(name).unwrap_or_else(|| panic!("{name}"));
            let path = template.replace(['{', '}'], "");
            let found = find(&path).unwrap_or_else(|| panic!("{path}"));
            assert_eq!(found.method.full_name(), method.full_name(), "{path} is another's");
            for (field, _) in found.fields {
                assert!(method.input().get_field_by_name(&field).is_some(), "{name} has no {field}");
            }
        }
    }

    #[test]
    fn what_has_no_row_is_found_by_its_name() {
        for (path, name) in [
            ("/cosmos/staking/v1beta1/pool", "cosmos.staking.v1beta1.Query.Pool"),
            ("/cosmos/mint/v1beta1/annual_provisions", "cosmos.mint.v1beta1.Query.AnnualProvisions"),
            ("/cosmos/slashing/v1beta1/signing_infos", "cosmos.slashing.v1beta1.Query.SigningInfos"),
            ("/cosmos/distribution/v1beta1/community_pool", "cosmos.distribution.v1beta1.Query.CommunityPool"),
            ("/cosmos/gov/v1/proposals", "cosmos.gov.v1.Query.Proposals"),
            ("/polylink/market/v1/price_history", "polylink.market.v1.Query.PriceHistory"),
        ] {
            match find(path) {
                Some(found) => assert_eq!(found.method.full_name(), name),
                // A query that the ledger has not built yet is in no descriptor.
                None => assert!(name.starts_with("polylink."), "{path}"),
            }
        }
        for path in ["/", "", "/cosmos", "/cosmos/bank/v1beta1/balances/", "/cosmos/bank/v1beta1/balances/a/b", "/x//y"]
        {
            assert!(find(path).is_none(), "{path}");
        }
    }
}
