//! What commands that talk to the chain share: which node, whose key, amounts as people write them.

use clap::Args;
use std::path::Path;

use polylink_protocol::client::ChainClient;
use polylink_protocol::{Address, Amount, Digest};

use crate::error::CliError;
use crate::home::Home;
use crate::keys::Keyring;

/// Which node.
#[derive(Args, Debug, Clone)]
pub struct RpcArgs {
    /// CometBFT RPC, such as http://127.0.0.1:26657 [default: the local network's]
    #[arg(long, env = "POLYLINK_RPC")]
    pub rpc: Option<String>,
}

impl RpcArgs {
    /// Of the named node, else of the local network's.
    pub fn url(&self, home: &Path) -> Result<String, CliError> {
        match &self.rpc {
            Some(url) => Ok(url.clone()),
            None => Home::new(home)?.require_network()?.url("rpc"),
        }
    }

    /// A client of the named node, else of the local network's.
    pub fn client(&self, home: &Path) -> Result<ChainClient, CliError> {
        Ok(ChainClient::new(&self.url(home)?)?)
    }
}

/// An amount: `250000`, `250000uplk` or `1.5plk`.
pub fn parse_amount(text: &str) -> Result<Amount, String> {
    let wrong = || format!("`{text}` is not an amount; write 250000uplk or 1.5plk");
    let Some(plk) = text.strip_suffix("plk").filter(|t| !t.ends_with('u')) else {
        return text.strip_suffix("uplk").unwrap_or(text).parse().map_err(|_| wrong());
    };
    let (whole, part) = plk.split_once('.').unwrap_or((plk, ""));
    if part.len() > 6 || !part.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let whole: Amount = whole.parse().map_err(|_| wrong())?;
    let part: u128 = format!("{part:0<6}").parse().map_err(|_| wrong())?;
    whole.0.checked_mul(1_000_000).and_then(|u| u.checked_add(part)).map(Amount).ok_or_else(wrong)
}

/// A profile digest in hexadecimal.
pub fn parse_digest(text: &str) -> Result<Digest, String> {
    let bytes = hex::decode(text).map_err(|e| format!("`{text}` is not hexadecimal: {e}"))?;
    Digest::from_slice(&bytes).ok_or_else(|| format!("`{text}` has {} bytes, 32 are expected", bytes.len()))
}

/// An address, or the name of an account in the keyring.
pub fn resolve_address(text: &str, home: &Path) -> Result<Address, CliError> {
    match text.parse() {
        Ok(address) => Ok(address),
        Err(_) if !text.contains('1') || text.len() < 30 => Ok(Keyring::new(home).account(text)?.address()),
        Err(error) => Err(CliError::value("address", error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_as_people_write_them() {
        for (text, uplk) in [("7", 7), ("7uplk", 7), ("1plk", 1_000_000), ("1.5plk", 1_500_000), ("0.000001plk", 1)] {
            assert_eq!(parse_amount(text), Ok(Amount(uplk)), "{text}");
        }
        for text in [
            "",
            "plk",
            "-1",
            "1.5",
            "1.5uplk",
            "1.0000001plk",
            "x",
            "1.-5plk",
            "99999999999999999999999999999999999999plk",
        ] {
            assert!(parse_amount(text).is_err(), "{text}");
        }
    }
}
