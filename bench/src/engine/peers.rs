//! The peers of a run: given, or found where `bench/peers/install.sh` puts them. One that is not there is named.

use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::precision::Precision;
use crate::BenchError;
use crate::process::failed;

const TO_GGUF: &str = include_str!("../../peers/to_gguf.py");
const INSTALL: &str = "bench/peers/install.sh installs it";

/// A peer that can be measured, or why it cannot.
pub type Found<T> = Result<T, String>;

/// Who is measured beside us.
#[derive(Clone, Debug)]
pub struct Peers {
    /// Folder of llama.cpp's programs, and the Python that converts models for them.
    pub llama_cpp: Found<(PathBuf, PathBuf)>,
    /// A Python that has transformers.
    pub transformers: Found<PathBuf>,
    /// Servers that run already: name and URL without `/v1`.
    pub servers: Vec<(String, String)>,
}

impl Peers {
    /// Nobody, for the stated reason.
    pub fn none(reason: &str) -> Self {
        Self { llama_cpp: Err(reason.into()), transformers: Err(reason.into()), servers: Vec::new() }
    }

    /// Those that are installed under `cache`, then those that are given as `llama.cpp=FOLDER`, `transformers=PYTHON` or
    /// `NAME=http://…`; `none` leaves the installed ones out.
    ///
    /// # Errors
    /// [`BenchError::Option`] for a text of another form, or a path where the peer is not.
    pub fn find(cache: &Path, given: &[String]) -> Result<Self, BenchError> {
        let python = cache.join("peers/bin/python");
        let mut peers = Self {
            llama_cpp: llama_cpp(&cache.join("peers/llama.cpp/bin"), &python),
            transformers: file(python.clone()),
            servers: Vec::new(),
        };
        if given.iter().any(|text| text == "none") {
            peers = Self::none("left out by --peer none");
        }
        for text in given.iter().filter(|text| *text != "none") {
            let wrong = |reason: String| BenchError::Option { option: "--peer", reason };
            let form = "`none`, llama.cpp=FOLDER, transformers=PYTHON or NAME=http://… is expected";
            let (name, place) = text.split_once('=').ok_or_else(|| wrong(format!("`{text}`: {form}")))?;
            match name {
                "llama.cpp" => peers.llama_cpp = Ok(llama_cpp(Path::new(place), &python).map_err(wrong)?),
                "transformers" => peers.transformers = Ok(file(place.into()).map_err(wrong)?),
                _ if place.starts_with("http://") => {
                    let base = place.trim_end_matches('/').trim_end_matches("/v1");
                    peers.servers.push((name.to_owned(), base.to_owned()));
                }
                _ => return Err(wrong(format!("`{text}`: {form}"))),
            }
        }
        Ok(peers)
    }

    /// Names and reasons of those that are not there.
    pub fn absent(&self) -> Vec<(&'static str, &str)> {
        let reasons =
            [("llama.cpp", self.llama_cpp.as_ref().err()), ("transformers", self.transformers.as_ref().err())];
        reasons.into_iter().filter_map(|(name, reason)| Some((name, reason?.as_str()))).collect()
    }
}

fn file(path: PathBuf) -> Found<PathBuf> {
    if path.is_file() { Ok(path) } else { Err(format!("there is no {}: {INSTALL}", path.display())) }
}

fn llama_cpp(folder: &Path, python: &Path) -> Found<(PathBuf, PathBuf)> {
    file(folder.join("llama-server"))?;
    file(folder.join("llama-batched-bench"))?;
    Ok((folder.to_owned(), file(python.to_owned())?))
}

/// The model as a GGUF file of this precision in `cache`; made anew where it is older than the model.
///
/// # Errors
/// [`BenchError::Contestant`] if the conversion fails.
pub async fn gguf(python: &Path, model: &Path, precision: Precision, cache: &Path) -> Result<PathBuf, BenchError> {
    let name = model.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let out = cache.join(format!("{name}-{}.gguf", precision.gguf()));
    let changed = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    if changed(&out).is_some_and(|made| Some(made) >= changed(&model.join("model.safetensors"))) {
        return Ok(out);
    }
    let wrong = |reason: String| failed("llama.cpp", format!("the model could not be converted: {reason}"));
    std::fs::create_dir_all(cache).map_err(|e| wrong(e.to_string()))?;
    let target = format!("{}={}", precision.gguf(), out.display());
    let mut command = Command::new(python);
    command.args(["-c", TO_GGUF]).arg(model).arg(target).kill_on_drop(true);
    let output = command.output().await.map_err(|e| wrong(e.to_string()))?;
    if !output.status.success() {
        return Err(wrong(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_peers_are_named_and_wrong_ones_refused() {
        let nowhere = Path::new("/nowhere");
        let found = Peers::find(nowhere, &["other=http://127.0.0.1:1/v1/".into()]).unwrap();
        assert_eq!(found.servers, [("other".to_owned(), "http://127.0.0.1:1".to_owned())]);
        let absent = found.absent();
        assert_eq!(absent.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["llama.cpp", "transformers"]);
        assert!(absent.iter().all(|(_, reason)| reason.contains("/nowhere/peers") && reason.contains("install.sh")));
        let none = Peers::find(nowhere, &["none".into()]).unwrap();
        assert!(none.absent().iter().all(|(_, reason)| reason.contains("--peer none")));
        for wrong in ["x", "other=127.0.0.1:1", "llama.cpp=/nowhere", "transformers=/nowhere/python"] {
            let error = Peers::find(nowhere, &[wrong.to_owned()]).unwrap_err();
            assert!(matches!(error, BenchError::Option { option: "--peer", .. }), "{wrong}: {error}");
        }
    }
}
