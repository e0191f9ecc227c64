//! The command: offline against a trusted header, or online with a node.

use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};
use tendermint::Time;

use super::evidence::{LightBlock, check_evidence};
use super::{Fault, ReceiptFile, check_answer, fault, fetch};
use crate::chain::RpcArgs;
use crate::error::CliError;
use crate::files;
use crate::output::Output;

/// `polylink verify`.
#[derive(Args, Debug)]
#[command(after_help = "\
Right after an answer its digests and both signatures can be checked; by the end of the next epoch also that the worker
committed the receipt on chain.

Examples:
  polylink verify receipt.json                              ask the local node for what the file does not hold
  polylink verify receipt.json --save full.json             … and keep it, so that it can be checked offline
  polylink query header --json > trusted.json               a header that you trust (height known from elsewhere)
  polylink verify full.json --trusted-header trusted.json   no network at all")]
pub struct VerifyArgs {
    /// The receipt file: as the gateway gives it at /polylink/v1/receipts/ID, or saved by --save
    file: PathBuf,
    /// Offline: a header from `polylink query header --json` that you trust
    #[arg(long, conflicts_with_all = ["rpc", "save"])]
    trusted_header: Option<PathBuf>,
    /// Store receipt, proofs and header together
    #[arg(long)]
    save: Option<PathBuf>,
    /// Check digests and signatures only: right after the answer
    #[arg(long, conflicts_with_all = ["trusted_header", "save"])]
    signatures_only: bool,
    #[command(flatten)]
    rpc: RpcArgs,
}

/// The largest receipt file that is read: a transcript of a million tokens fits.
const RECEIPT_BYTES_MAX: u64 = 16 << 20;

/// A receipt file.
pub fn read(path: &Path) -> Result<ReceiptFile, CliError> {
    Ok(ReceiptFile::from_json(&files::read_text(path, RECEIPT_BYTES_MAX)?)?)
}

/// Runs `polylink verify`.
pub async fn run(args: &VerifyArgs, home: &Path, output: &Output) -> Result<(), CliError> {
    let mut file = read(&args.file)?;
    check_answer(&file.answer)?;
    if let Some(path) = &args.trusted_header {
        let evidence = file.chain.as_ref().ok_or_else(|| {
            fault("chain", "the file holds no proofs; fetch them with `polylink verify --save` while a node is at hand")
        })?;
        let trusted: LightBlock = files::read_json(path)?;
        check_evidence(&file.answer, evidence, &trusted, Time::now())?;
        return report(output, "full", &file, Some(evidence.height));
    }
    let chain = args.rpc.client(home)?;
    if args.signatures_only {
        fetch::check_signatures_on(&chain, &file.answer).await?;
        return report(output, "signatures", &file, None);
    }
    let evidence = fetch::evidence(&chain, &file.answer).await?;
    // Asked of a node, the node is what is trusted; its proofs and signatures must still hold.
    check_evidence(&file.answer, &evidence, &evidence.block, Time::now())?;
    let height = evidence.height;
    file.chain = Some(evidence);
    if let Some(path) = &args.save {
        files::write_json(path, &file)?;
    }
    report(output, "full", &file, Some(height))
}

fn report(output: &Output, extent: &str, file: &ReceiptFile, height: Option<u64>) -> Result<(), CliError> {
    let (request, receipt) = super::answer::parts(&file.answer).map_err(|f: Fault| CliError::from(f))?;
    output.value(&json!({
        "verified": extent,
        "chain_id": request.chain_id,
        "worker": receipt.worker,
        "session": receipt.session,
        "index": receipt.index,
        "epoch": receipt.epoch,
        "prompt_tokens": receipt.prompt_tokens,
        "completion_tokens": receipt.completion_tokens,
        "amount_uplk": receipt.amount,
        "proved_at_height": height,
    }));
    Ok(())
}

/// `polylink query header`: a header to be trusted later.
pub async fn header(rpc: &RpcArgs, height: u64, home: &Path) -> Result<LightBlock, CliError> {
    fetch::light_block(&rpc.client(home)?, height).await
}
