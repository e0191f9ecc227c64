//! `polylink rest`: the bridge that wallets, explorers and relayers ask by REST and gRPC, in front of a node.

use clap::Args;
use std::net::SocketAddr;
use std::path::Path;
use tokio::net::TcpListener;

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
/polylink/market/v1/models. gRPC has the same methods, and reflection.

Example: polylink rest --rpc http://127.0.0.1:26657 --listen 127.0.0.1:1317 --grpc 127.0.0.1:9090
         curl http://127.0.0.1:1317/cosmos/bank/v1beta1/supply
         grpcurl -plaintext 127.0.0.1:9090 cosmos.bank.v1beta1.Query/TotalSupply")]
pub struct RestArgs {
    /// Where to listen for REST
    #[arg(long, env = "POLYLINK_REST_LISTEN", default_value = "127.0.0.1:1317")]
    listen: SocketAddr,
    /// Where to listen for gRPC
    #[arg(long, env = "POLYLINK_GRPC_LISTEN", default_value = "127.0.0.1:9090")]
    grpc: SocketAddr,
    #[command(flatten)]
    rpc: RpcArgs,
}

/// The bridge as a child of a node's supervisor.
pub fn role(home: &Home, rpc: &str, rest_port: u16, grpc_port: u16) -> Result<Role, CliError> {
    let (listen, grpc) = (format!("127.0.0.1:{rest_port}"), format!("127.0.0.1:{grpc_port}"));
    let path = home.path().display().to_string();
    Ok(Role {
        name: "rest".into(),
        program: std::env::current_exe().map_err(|e| CliError::value("this program's path", e))?,
        args: ["rest", "--home", &path, "--rpc", rpc, "--listen", &listen, "--grpc", &grpc].map(str::to_owned).to_vec(),
        env: vec![],
        log: home.log("rest"),
        stop_deadline: STOP_DEADLINE,
    })
}

/// A listener and where it is.
async fn listen(flag: &str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), CliError> {
    let bound = async {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    bound.await.map_err(|e: std::io::Error| CliError::value(format!("{flag} {address}"), e))
}

/// Runs `polylink rest`.
pub async fn run(args: &RestArgs, home: &Path) -> Result<(), CliError> {
    let rpc = args.rpc.url(home)?;
    let (rest, grpc) = (listen("--listen", args.listen).await?, listen("--grpc", args.grpc).await?);
    println!("REST: http://{}, gRPC: {} (of {rpc})", rest.1, grpc.1);
    let wrong = |e| CliError::role("rest", e);
    let bridge = polylink_bridge::Bridge::new(&rpc).map_err(wrong)?;
    tokio::select! {
        served = bridge.serve_rest(rest.0) => served.map_err(wrong),
        served = bridge.serve_grpc(grpc.0) => served.map_err(wrong),
        reason = shutdown::requested() => reason.map(|_| ()),
    }
}
