//! `polylink rest`: the bridge that wallets and explorers ask, in front of a node.

use clap::Args;
use std::net::SocketAddr;
use std::path::Path;

use crate::chain::RpcArgs;
use crate::error::CliError;
use crate::home::Home;
use crate::shutdown;
use crate::supervise::Role;

/// From SIGTERM to SIGKILL.
const STOP_DEADLINE: std::time::Duration = std::time::Duration::from_secs(5);

/// `polylink rest`.
#[derive(Args, Debug)]
#[command(after_help = "\
The paths are the Cosmos SDK's; every query of the ledger besides is at /<package>/<method>, such as
/polylink/market/v1/models.

Example: polylink rest --rpc http://127.0.0.1:26657 --listen 127.0.0.1:1317
         curl http://127.0.0.1:1317/cosmos/bank/v1beta1/supply")]
pub struct RestArgs {
    /// Where to listen
    #[arg(long, env = "POLYLINK_REST_LISTEN", default_value = "127.0.0.1:1317")]
    listen: SocketAddr,
    #[command(flatten)]
    rpc: RpcArgs,
}

/// The bridge as a child of a node's supervisor.
pub fn role(home: &Home, rpc: &str, port: u16) -> Result<Role, CliError> {
    let listen = format!("127.0.0.1:{port}");
    let path = home.path().display().to_string();
    Ok(Role {
        name: "rest".into(),
        program: std::env::current_exe().map_err(|e| CliError::value("this program's path", e))?,
        args: ["rest", "--home", &path, "--rpc", rpc, "--listen", &listen].map(str::to_owned).to_vec(),
        env: vec![],
        log: home.log("rest"),
        stop_deadline: STOP_DEADLINE,
    })
}

/// Runs `polylink rest`.
pub async fn run(args: &RestArgs, home: &Path) -> Result<(), CliError> {
    let rpc = args.rpc.url(home)?;
    let wrong = |e: std::io::Error| CliError::value(format!("--listen {}", args.listen), e);
    let listener = tokio::net::TcpListener::bind(args.listen).await.map_err(wrong)?;
    println!("REST: http://{} (of {rpc})", listener.local_addr().map_err(wrong)?);
    tokio::select! {
        served = polylink_bridge::serve(listener, &rpc) => served.map_err(|e| CliError::role("rest", e)),
        reason = shutdown::requested() => reason.map(|_| ()),
    }
}
