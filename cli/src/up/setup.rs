//! What a network needs before it starts, made at the first start only: keys, ports, genesis, API key.

use polylink_protocol::client::ChainClient;
use polylink_protocol::{Amount, market};

use super::{Progress, UpArgs, genesis};
use crate::error::CliError;
use crate::files;
use crate::gateway::{NewKey, new_api_key};
use crate::home::{Home, Network, choose_ports};
use crate::keys::Keyring;
use crate::models;
use crate::node::{ensure_keys, write_genesis};

/// Royalty of the model's provider, in basis points.
const ROYALTY_BPS: u32 = 500;
/// Deposit of the user's session with the gateway, in uplk: 1,000 PLK.
const USER_DEPOSIT: u128 = 1_000_000_000;

/// The network of a home, made if there is none yet.
pub(super) fn prepare(args: &UpArgs, home: &Home, progress: &Progress) -> Result<Network, CliError> {
    let wanted = [
        ("rpc", args.rpc_port),
        ("p2p", args.p2p_port),
        ("rest", args.rest_port),
        ("grpc", args.grpc_port),
        ("gateway", args.gateway_port),
        ("worker", args.worker_port),
    ];
    let (model, profile) = models::open(&models::resolve(&args.model), args.precision.computation()?, None)?;
    let digest = market::profile_digest(&profile).to_string();
    if let Some(mut network) = home.read_network()?
        && genesis::exists(&home.node())
    {
        if network.profile != digest {
            let reason = format!(
                "this home's chain serves {} ({}); give its model, or another --home",
                network.model, network.profile
            );
            return Err(CliError::value("--model", reason));
        }
        for (name, port) in wanted {
            if let Some(port) = port {
                network.ports.insert(name.into(), port);
            }
        }
        // A home from before there was one.
        let missing = ["rest", "grpc"].into_iter().filter(|name| !network.ports.contains_key(*name));
        let missing: Vec<_> = missing.map(|name| (name, None)).collect();
        network.ports.extend(choose_ports(&missing)?);
        network.block_time_ms = args.block_time_ms;
        files::write_secret_json(&home.network(), &network)?;
        progress.say(format_args!("continuing chain {}", network.chain_id));
        return Ok(network);
    }
    let consensus_key = ensure_keys(&home.node())?;
    let plan = genesis::Plan {
        profile: &profile,
        context_length: model.context_length() as u32,
        price: args.prices.prices(),
        royalty_bps: ROYALTY_BPS,
        epoch_blocks: args.epoch_blocks,
        consensus_key,
    };
    let state = genesis::build(&Keyring::new(home.path()), &plan)?;
    let network = Network {
        chain_id: genesis::chain_id()?,
        ports: choose_ports(&wanted)?,
        api_key: String::new(),
        model: profile.id.clone(),
        profile: digest,
        epoch_blocks: args.epoch_blocks,
        block_time_ms: args.block_time_ms,
    };
    write_genesis(&home.node(), &network.chain_id, &genesis::now(), state.to_json())?;
    files::write_secret_json(&home.network(), &network)?;
    progress.say(format_args!("new chain {} with {}", network.chain_id, profile.id));
    Ok(network)
}

/// Opens the user's session with the gateway and makes the API key that is charged to it, if there is none yet.
pub(super) async fn ensure_api_key(
    home: &Home,
    mut network: Network,
    chain: &ChainClient,
) -> Result<Network, CliError> {
    if !network.api_key.is_empty() {
        return Ok(network);
    }
    let deposit = Amount(USER_DEPOSIT);
    let new = NewKey { name: "user", from: "user", gateway: "gateway", deposit, budget: None, rate: 0 };
    network.api_key = new_api_key(home, chain, &new).await?;
    files::write_secret_json(&home.network(), &network)?;
    Ok(network)
}
