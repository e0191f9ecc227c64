//! API keys: who may ask, how much, how often. A file of JSON, written whole; keys themselves are never stored, only
//! their SHA-256 (a key has 256 random bits, so no salt or slow hash is needed).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::http::StatusCode;
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::{Amount, Digest, hex_bytes};
use serde::{Deserialize, Serialize};

use crate::client::store::Charge;
use crate::http::local::random_bytes;
use crate::http::{ApiError, Caller};

/// What every key begins with.
pub const KEY_PREFIX: &str = "sk-polylink-";
/// Most keys of one gateway.
const KEYS_MAX: usize = 100_000;

/// Why the key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The system refuses.
    #[error("API keys {path}: {reason}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Not what this version writes.
    #[error("API keys {path} cannot be read: {reason}; restore the file, or delete it and make new keys")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Over the limit, or no random bytes.
    #[error("{0}")]
    Refused(String),
}

/// A user's session with the gateway; the gateway has its spend key in custody and signs vouchers for the user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserSession {
    /// On chain, with this gateway as payee.
    pub session: u64,
    /// 32 secret bytes.
    #[serde(with = "hex_bytes")]
    pub spend_key: Vec<u8>,
}

/// What is stored of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// Short name in logs and accounts.
    pub id: String,
    /// SHA-256 of the whole key.
    #[serde(with = "hex_bytes")]
    pub digest: Vec<u8>,
    /// For people.
    pub name: String,
    /// The most that it may spend, uplk; absent: no limit but the session's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Amount>,
    /// Requests per minute; 0: no limit.
    #[serde(default)]
    pub rate_per_minute: u32,
    /// Where the money comes from; absent: the gateway's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<UserSession>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    keys: Vec<ApiKey>,
}

/// A token bucket: full at first, filled up evenly.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// Takes one request's token; else seconds until there is one.
    fn take(&mut self, rate_per_minute: u32, now: Instant) -> Result<(), f64> {
        let (capacity, per_second) = (f64::from(rate_per_minute), f64::from(rate_per_minute) / 60.0);
        self.tokens = (self.tokens + now.duration_since(self.at).as_secs_f64() * per_second).min(capacity);
        self.at = now;
        if self.tokens < 1.0 {
            return Err((1.0 - self.tokens) / per_second);
        }
        self.tokens -= 1.0;
        Ok(())
    }
}

/// The keys of a gateway.
pub struct ApiKeys {
    path: PathBuf,
    by_digest: Mutex<HashMap<Digest, Arc<ApiKey>>>,
    buckets: Mutex<HashMap<Digest, Bucket>>,
}

impl ApiKeys {
    /// Reads a file; one that is not there has no keys.
    pub fn open(path: &Path) -> Result<Self, KeysError> {
        let keys = Self { path: path.into(), by_digest: Mutex::default(), buckets: Mutex::default() };
        keys.reload()?;
        Ok(keys)
    }

    /// Reads the file again, for keys that another process has added.
    pub fn reload(&self) -> Result<(), KeysError> {
        let file = match std::fs::read(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => KeyFile::default(),
            Err(error) => return Err(self.io(&error)),
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| self.damaged(e.to_string()))?,
        };
        let keys = file.keys.into_iter().map(|key| match Digest::from_slice(&key.digest) {
            Some(digest) => Ok((digest, Arc::new(key))),
            None => Err(self.damaged(format!("the digest of key {} has not 32 bytes", key.id))),
        });
        let keys = keys.collect::<Result<_, _>>()?;
        *self.by_digest.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = keys;
        Ok(())
    }

    fn io(&self, error: &std::io::Error) -> KeysError {
        KeysError::Io { path: self.path.clone(), reason: error.to_string() }
    }

    fn damaged(&self, reason: String) -> KeysError {
        KeysError::Damaged { path: self.path.clone(), reason }
    }

    /// Makes a key, stores it, and returns its text, which is never seen again.
    pub fn create(
        &self,
        name: &str,
        budget: Option<Amount>,
        rate_per_minute: u32,
        session: Option<UserSession>,
    ) -> Result<String, KeysError> {
        let secret = random_bytes().map_err(|e| KeysError::Refused(e.message))?;
        let text = format!("{KEY_PREFIX}{}", hex::encode(secret));
        let digest = Digest::of(text.as_bytes());
        let id = format!("key-{}", &hex::encode(digest.0)[..12]);
        let key = ApiKey { id, digest: digest.to_vec(), name: name.into(), budget, rate_per_minute, session };
        self.reload()?;
        let mut keys = self.by_digest.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if keys.len() >= KEYS_MAX {
            return Err(KeysError::Refused(format!(
                "there are {KEYS_MAX} API keys already, the most that a gateway holds"
            )));
        }
        keys.insert(digest, Arc::new(key));
        self.write(&keys)?;
        Ok(text)
    }

    fn write(&self, keys: &HashMap<Digest, Arc<ApiKey>>) -> Result<(), KeysError> {
        let mut list: Vec<ApiKey> = keys.values().map(|key| ApiKey::clone(key)).collect();
        list.sort_by(|a, b| a.id.cmp(&b.id));
        let json = serde_json::to_vec_pretty(&KeyFile { keys: list }).map_err(|e| self.damaged(e.to_string()))?;
        // The whole file or the old one, whatever happens in between.
        let new = self.path.with_extension("new");
        write_private(&new, &json).and_then(|()| std::fs::rename(&new, &self.path)).map_err(|e| self.io(&e))
    }

    /// All keys.
    pub fn list(&self) -> Vec<Arc<ApiKey>> {
        self.by_digest.lock().unwrap_or_else(std::sync::PoisonError::into_inner).values().cloned().collect()
    }

    /// The key of a caller.
    ///
    /// # Errors
    /// 401 without or with a wrong key.
    pub fn authenticate(&self, caller: &Caller) -> Result<Arc<ApiKey>, ApiError> {
        let refuse = |code: &str, message: String| Err(ApiError::new(StatusCode::UNAUTHORIZED, code, message));
        let Some(text) = &caller.api_key else {
            let hint = format!("send the header `Authorization: Bearer {KEY_PREFIX}…`");
            return refuse("missing_api_key", format!("no API key was given: {hint}"));
        };
        // Looked up by digest: how long it takes says nothing about the key.
        let digest = Digest::of(text.as_bytes());
        let find = || self.by_digest.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(&digest).cloned();
        let found = find().or_else(|| {
            // Perhaps it was made by another process since; only well-formed texts are worth a look at the disk.
            let well_formed = text.strip_prefix(KEY_PREFIX).is_some_and(|rest| rest.len() == 64);
            (well_formed && self.reload().is_ok()).then(find).flatten()
        });
        match found {
            Some(key) => Ok(key),
            None => {
                let shown: String = text.chars().take(KEY_PREFIX.len() + 4).collect();
                refuse(
                    "invalid_api_key",
                    format!("the API key `{shown}…` is not known here: check it, or make a new one"),
                )
            }
        }
    }

    /// Counts a request against the key's rate.
    ///
    /// # Errors
    /// 429 with the time to wait.
    pub fn admit(&self, key: &ApiKey) -> Result<(), ApiError> {
        if key.rate_per_minute == 0 {
            return Ok(());
        }
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let digest = Digest::from_slice(&key.digest).unwrap_or(Digest([0; 32]));
        let full = Bucket { tokens: f64::from(key.rate_per_minute), at: now };
        buckets.entry(digest).or_insert(full).take(key.rate_per_minute, now).map_err(|seconds| {
            let message =
                format!("more than {} requests a minute with this API key: wait {seconds:.1} s", key.rate_per_minute);
            let mut error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message);
            error.retry_after = Some(seconds.ceil() as u32);
            error
        })
    }
}

impl ApiKey {
    /// Whom answers under this key are charged to.
    pub fn charge(&self) -> Charge {
        let session = self.session.as_ref().and_then(|session| {
            let key: [u8; 32] = session.spend_key.as_slice().try_into().ok()?;
            Some((session.session, ServiceKey::from_bytes(&key)))
        });
        Charge { key_id: self.id.clone(), budget: self.budget, session }
    }
}

/// Writes a file that only its owner may read.
fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    let mut options = std::fs::OpenOptions::new();
    options.create(true).truncate(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn caller(key: &str) -> Caller {
        Caller { api_key: Some(key.into()) }
    }

    #[test]
    fn keys_are_stored_hashed_and_found_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        let keys = ApiKeys::open(&path).unwrap();
        let text = keys.create("alice", Some(Amount(5)), 0, None).unwrap();
        assert!(text.starts_with(KEY_PREFIX) && text.len() == KEY_PREFIX.len() + 64);
        assert!(!std::fs::read_to_string(&path).unwrap().contains(&text[KEY_PREFIX.len()..]));
        let again = ApiKeys::open(&path).unwrap();
        let found = again.authenticate(&caller(&text)).unwrap();
        assert_eq!((found.name.as_str(), found.budget), ("alice", Some(Amount(5))));
        // Made by another process while this one runs.
        let other = keys.create("bob", None, 0, None).unwrap();
        assert_eq!(again.authenticate(&caller(&other)).unwrap().name, "bob");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn wrong_keys_are_refused_without_being_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let keys = ApiKeys::open(&folder.path().join("keys.json")).unwrap();
        let text = keys.create("alice", None, 0, None).unwrap();
        let mut wrong = text.clone();
        wrong.replace_range(text.len() - 1.., if text.ends_with('0') { "1" } else { "0" });
        for (given, code) in
            [(None, "missing_api_key"), (Some(""), "invalid_api_key"), (Some(wrong.as_str()), "invalid_api_key")]
        {
            let error = keys.authenticate(&Caller { api_key: given.map(str::to_owned) }).unwrap_err();
            assert_eq!((error.status.as_u16(), error.code()), (401, code));
            assert!(!error.message.contains(&wrong));
        }
    }

    #[test]
    fn a_damaged_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        std::fs::write(&path, "{").unwrap();
        assert!(ApiKeys::open(&path).err().unwrap().to_string().contains("keys.json"));
    }

    #[test]
    fn the_rate_is_per_minute_with_a_burst() {
        let start = Instant::now();
        let mut bucket = Bucket { tokens: 3.0, at: start };
        assert!((0..3).all(|_| bucket.take(3, start).is_ok()));
        let wait = bucket.take(3, start).unwrap_err();
        assert!((wait - 20.0).abs() < 1e-6);
        assert!(bucket.take(3, start + Duration::from_secs(21)).is_ok());
    }
}
