//! Files of the state directory: written whole or not at all, secrets readable by their owner only.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::CliError;

/// Creates a directory with its parents.
pub fn create_dir(path: &Path) -> Result<(), CliError> {
    fs::create_dir_all(path).map_err(|e| CliError::file(path, format!("the directory cannot be made: {e}")))
}

/// Writes beside, flushes to the disk and renames, so that a reader sees the old file or the new one.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CliError> {
    let beside = path.with_extension(format!("tmp{}", std::process::id()));
    let run = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    run().map_err(|e| CliError::file(path, format!("cannot be written: {e}")))
}

/// Writes JSON that anybody may read.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| CliError::file(path, e))?;
    write(path, (text + "\n").as_bytes(), 0o644)
}

/// Writes JSON that only its owner may read.
pub fn write_secret_json<T: Serialize>(path: &Path, value: &T) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| CliError::file(path, e))?;
    write(path, (text + "\n").as_bytes(), 0o600)
}

/// Reads a text of at most so many bytes.
pub fn read_text(path: &Path, bytes_max: u64) -> Result<String, CliError> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|e| CliError::file(path, e))?;
    let read = file.take(bytes_max + 1).read_to_string(&mut text).map_err(|e| CliError::file(path, e))?;
    if read as u64 > bytes_max {
        return Err(CliError::file(path, format!("it has more than {bytes_max} bytes: no receipt is that large")));
    }
    Ok(text)
}

/// Reads JSON.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, CliError> {
    let text = fs::read_to_string(path).map_err(|e| CliError::file(path, e))?;
    serde_json::from_str(&text).map_err(|e| CliError::file(path, format!("not what is expected there: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endless_file_is_refused() {
        let error = read_text(Path::new("/dev/zero"), 1_000).unwrap_err().to_string();
        assert!(error.contains("/dev/zero") && error.contains("more than 1000 bytes"), "{error}");
    }
}
