//! The keyring: one file per key under `HOME/keys`, readable by its owner only, and `polylink keys`.
//!
//! Kinds: `account` (secp256k1, signs transactions, has an address) and `service` (ed25519 seed, also the secret of a
//! VRF or X25519 key: spend, receipt, disclosure). Randomness comes from the operating system.

use clap::{Args, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::{Path, PathBuf};

use polylink_protocol::keys::{AccountKey, ServiceKey};

use crate::error::CliError;
use crate::files;
use crate::output::Output;

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// secp256k1: an account.
    Account,
    /// ed25519: spend, receipt or disclosure key.
    Service,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    name: String,
    kind: Kind,
    secret: String,
}

/// Keys by name in one directory.
#[derive(Clone, Debug)]
pub struct Keyring {
    directory: PathBuf,
}

impl Keyring {
    /// In `home/keys`; nothing is read yet.
    pub fn new(home: &Path) -> Self {
        Self { directory: home.join("keys") }
    }

    fn path(&self, name: &str) -> Result<PathBuf, CliError> {
        let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 64 || !name.chars().all(good) {
            return Err(CliError::value(
                "key name",
                format!("`{name}`: letters, digits, - and _ are expected, at most 64"),
            ));
        }
        Ok(self.directory.join(format!("{name}.json")))
    }

    /// Stores a secret under a new name.
    pub fn add(&self, name: &str, kind: Kind, secret: &[u8; 32]) -> Result<(), CliError> {
        let path = self.path(name)?;
        if path.exists() {
            return Err(CliError::file(
                &path,
                format!("a key `{name}` exists; choose another name or remove the file"),
            ));
        }
        if kind == Kind::Account {
            AccountKey::from_bytes(secret).map_err(|e| CliError::value("secret", e))?;
        }
        files::create_dir(&self.directory)?;
        files::write_secret_json(&path, &KeyFile { name: name.into(), kind, secret: hex::encode(secret) })
    }

    fn read(&self, name: &str) -> Result<(Kind, [u8; 32]), CliError> {
        let path = self.path(name)?;
        if !path.exists() {
            let known = self.names()?.join(", ");
            return Err(CliError::value(
                "key",
                format!("no key `{name}`; there are: {known}. Make one with `polylink keys new {name}`"),
            ));
        }
        let file: KeyFile = files::read_json(&path)?;
        let mut secret = [0; 32];
        hex::decode_to_slice(&file.secret, &mut secret).map_err(|e| CliError::file(&path, format!("secret: {e}")))?;
        Ok((file.kind, secret))
    }

    /// An account's key.
    pub fn account(&self, name: &str) -> Result<AccountKey, CliError> {
        match self.read(name)? {
            (Kind::Account, secret) => AccountKey::from_bytes(&secret).map_err(|e| CliError::value("key", e)),
            _ => Err(CliError::value("key", format!("`{name}` is a service key, an account's is needed"))),
        }
    }

    /// A service's secret.
    pub fn service_secret(&self, name: &str) -> Result<[u8; 32], CliError> {
        match self.read(name)? {
            (Kind::Service, secret) => Ok(secret),
            _ => Err(CliError::value("key", format!("`{name}` is an account's key, a service key is needed"))),
        }
    }

    /// Makes the key if it is not there.
    pub fn ensure(&self, name: &str, kind: Kind) -> Result<(), CliError> {
        if self.path(name)?.exists() { Ok(()) } else { self.add(name, kind, &random_bytes()?) }
    }

    /// Names in order.
    pub fn names(&self) -> Result<Vec<String>, CliError> {
        if !self.directory.exists() {
            return Ok(Vec::new());
        }
        let entries = std::fs::read_dir(&self.directory).map_err(|e| CliError::file(&self.directory, e))?;
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".json").map(str::to_owned))
            .collect();
        names.sort();
        Ok(names)
    }

    fn describe(&self, name: &str) -> Result<serde_json::Value, CliError> {
        Ok(match self.read(name)?.0 {
            Kind::Account => {
                let key = self.account(name)?;
                let address = key.address();
                json!({"name": name, "kind": "account", "address": address.account(), "validator": address.valoper(),
                       "public_key": hex::encode(key.public_key())})
            }
            Kind::Service => {
                let key = ServiceKey::from_bytes(&self.service_secret(name)?);
                json!({"name": name, "kind": "service", "public_key": hex::encode(key.public_key())})
            }
        })
    }
}

/// Bytes of the operating system's generator.
pub fn random_bytes<const N: usize>() -> Result<[u8; N], CliError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|e| CliError::value("randomness", format!("the operating system gave none: {e}")))?;
    Ok(bytes)
}

/// `polylink keys`.
#[derive(Args, Debug)]
pub struct KeysArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Make a key
    New {
        /// Its name: letters, digits, - and _
        name: String,
        /// What it is for
        #[arg(long, value_enum, default_value = "account")]
        kind: Kind,
    },
    /// List all keys
    List,
    /// Show one key (never its secret, unless asked)
    Show {
        /// Its name
        name: String,
        /// Show the secret too: whoever sees it owns what the key owns
        #[arg(long)]
        secret: bool,
    },
    /// Store a secret of 32 bytes in hexadecimal, read from standard input
    Import {
        /// Its name
        name: String,
        /// What it is for
        #[arg(long, value_enum, default_value = "account")]
        kind: Kind,
    },
}

/// Runs `polylink keys`.
pub fn run(args: &KeysArgs, home: &Path, output: &Output) -> Result<(), CliError> {
    let ring = Keyring::new(home);
    match &args.action {
        Action::New { name, kind } => {
            ring.add(name, *kind, &random_bytes()?)?;
            output.value(&ring.describe(name)?);
        }
        Action::List => {
            let all: Result<Vec<_>, _> = ring.names()?.iter().map(|n| ring.describe(n)).collect();
            output.value(&serde_json::Value::Array(all?));
        }
        Action::Show { name, secret } => {
            let mut value = ring.describe(name)?;
            if *secret {
                value["secret"] = hex::encode(ring.read(name)?.1).into();
            }
            output.value(&value);
        }
        Action::Import { name, kind } => {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).map_err(|e| CliError::value("standard input", e))?;
            let mut secret = [0; 32];
            hex::decode_to_slice(line.trim(), &mut secret).map_err(|e| {
                CliError::value("secret", format!("64 hexadecimal digits are expected on standard input: {e}"))
            })?;
            ring.add(name, *kind, &secret)?;
            output.value(&ring.describe(name)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_are_private_and_never_overwritten() {
        let home = tempfile::tempdir().unwrap();
        let ring = Keyring::new(home.path());
        ring.add("user", Kind::Account, &[7; 32]).unwrap();
        let mode = std::fs::metadata(home.path().join("keys/user.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(ring.add("user", Kind::Account, &[8; 32]).unwrap_err().to_string().contains("exists"));
        assert_eq!(ring.account("user").unwrap().secret_bytes(), [7; 32]);
        ring.ensure("user", Kind::Account).unwrap();
        assert_eq!(ring.account("user").unwrap().secret_bytes(), [7; 32]);
        ring.ensure("spend", Kind::Service).unwrap();
        assert_eq!(ring.names().unwrap(), ["spend", "user"]);
        assert!(ring.account("spend").err().unwrap().to_string().contains("service key"));
        assert!(ring.account("nobody").err().unwrap().to_string().contains("there are: spend, user"));
        assert!(ring.add("../x", Kind::Account, &[7; 32]).is_err());
        assert!(ring.add("zero", Kind::Account, &[0; 32]).is_err());
    }
}
