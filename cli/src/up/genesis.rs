//! The genesis of a local network: keys, funded accounts, one validator, the model, three judges.

use std::path::Path;

use polylink_abci_app::Genesis;
use polylink_abci_app::staking::GenesisValidator;
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market_v1::{ModelProfile, MsgRegisterModel, TokenPrices};
use polylink_protocol::tiqe::VrfKey;
use polylink_protocol::tiqe_v1::MsgRegisterJudge;
use polylink_protocol::{Amount, market};

use crate::error::CliError;
use crate::keys::{Keyring, Kind};

/// Judges of a local network.
pub const JUDGES: usize = 3;
/// Accounts with coins from the start, and how many PLK each has.
const FUNDED: [(&str, u128); 10] = [
    ("user", 1_000_000),
    ("gateway", 1_000_000),
    ("worker", 10_000),
    ("worker-2", 10_000),
    ("worker-3", 10_000),
    ("provider", 1_000),
    ("validator", 10_000),
    ("judge-1", 10_000),
    ("judge-2", 10_000),
    ("judge-3", 10_000),
];
const SELF_DELEGATION_PLK: u128 = 5_000;
const TICKETS: u32 = 10;
/// How long a proposal of a local network is voted on.
const VOTING_SECONDS: u64 = 30;

fn plk(amount: u128) -> Amount {
    Amount(amount * 1_000_000)
}

/// What the network is to be like.
pub struct Plan<'a> {
    /// The model that is served.
    pub profile: &'a ModelProfile,
    /// Prompt and completion together.
    pub context_length: u32,
    /// Its price.
    pub price: TokenPrices,
    /// Royalty of the model's provider.
    pub royalty_bps: u32,
    /// Blocks of an epoch.
    pub epoch_blocks: u64,
    /// The validator's consensus key.
    pub consensus_key: [u8; 32],
}

/// Makes the keys that are not there and returns the ledger's genesis state.
pub fn build(ring: &Keyring, plan: &Plan<'_>) -> Result<Genesis, CliError> {
    let mut genesis = Genesis::default();
    for (name, amount) in FUNDED {
        ring.ensure(name, Kind::Account)?;
        genesis = genesis.with_account(&ring.account(name)?.address(), plk(amount));
    }
    let validator = ring.account("validator")?.address();
    genesis.staking.validators = vec![GenesisValidator::new(&validator, &plan.consensus_key, plk(SELF_DELEGATION_PLK))];
    // Whoever tries it out wants to see it decided.
    (genesis.gov.voting_seconds, genesis.gov.expedited_voting_seconds) = (VOTING_SECONDS, VOTING_SECONDS / 2);
    genesis.market.params = epoch_params(genesis.market.params, plan.epoch_blocks)?;
    genesis.market.models = vec![MsgRegisterModel {
        provider: ring.account("provider")?.address().account(),
        profile: Some(plan.profile.clone()),
        context_length: plan.context_length,
        royalty_bps: plan.royalty_bps,
        price: Some(plan.price),
    }];
    let profile = market::profile_digest(plan.profile);
    for number in 1..=JUDGES {
        let name = format!("judge-{number}");
        let secret = |kind: &str| -> Result<[u8; 32], CliError> {
            let name = format!("{name}-{kind}");
            ring.ensure(&name, Kind::Service)?;
            ring.service_secret(&name)
        };
        let x25519 = x25519_dalek::StaticSecret::from(secret("x25519")?);
        genesis.tiqe.judges.push(MsgRegisterJudge {
            operator: ring.account(&name)?.address().account(),
            vrf_key: VrfKey::from_bytes(&secret("vrf")?).public_key().to_vec(),
            x25519_key: x25519_dalek::PublicKey::from(&x25519).as_bytes().to_vec(),
            disclosure_key: ServiceKey::from_bytes(&secret("disclosure")?).public_key().to_vec(),
            tickets: TICKETS,
            profiles: vec![profile.to_vec()],
        });
    }
    Ok(genesis)
}

type Params = polylink_protocol::market_v1::Params;

/// The windows of an epoch of another length: shares as in one of 20 blocks (5, 4, 5, 4, and 2 to settle).
fn epoch_params(mut params: Params, epoch_blocks: u64) -> Result<Params, CliError> {
    if !(10..=100_000).contains(&epoch_blocks) {
        return Err(CliError::value("--epoch-blocks", format!("{epoch_blocks}: 10 to 100,000 blocks are expected")));
    }
    params.epoch_blocks = epoch_blocks;
    params.receipts_window_blocks = epoch_blocks * 5 / 20;
    params.beacon_window_blocks = epoch_blocks * 4 / 20;
    params.commit_window_blocks = epoch_blocks * 5 / 20;
    params.reveal_window_blocks = epoch_blocks * 4 / 20;
    Ok(params)
}

/// The time of a genesis document: now, as RFC 3339 with nanoseconds.
pub fn now() -> String {
    tendermint::Time::now().to_rfc3339()
}

/// A chain id that no other network of this machine has.
pub fn chain_id() -> Result<String, CliError> {
    Ok(format!("polylink-local-{}", hex::encode(crate::keys::random_bytes::<4>()?)))
}

/// True where a home has a chain already.
pub fn exists(node: &Path) -> bool {
    node.join("config/genesis.json").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_leave_blocks_for_the_settlement() {
        for blocks in [10, 12, 15, 20, 33, 100] {
            let p = epoch_params(Params::default(), blocks).unwrap();
            let windows =
                [p.receipts_window_blocks, p.beacon_window_blocks, p.commit_window_blocks, p.reveal_window_blocks];
            assert!(windows.iter().all(|w| *w >= 2), "{blocks}: {windows:?}");
            assert!(windows.iter().sum::<u64>() < blocks, "{blocks}: {windows:?}");
        }
        assert!(epoch_params(Params::default(), 9).is_err());
    }
}
