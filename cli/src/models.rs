//! Model folders: where the project's own lie, and what a served model is called.

use clap::ValueEnum;
use std::path::{Path, PathBuf};

use polylink_inference_server::model::{LoadedModel, Quantization};
use polylink_protocol::market_v1::ModelProfile;

use crate::error::CliError;

/// How weights are held in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Quantize {
    /// As they are: exact f32
    #[default]
    #[value(name = "none")]
    None,
    /// 8-bit: exact int8
    #[value(name = "q8_0")]
    Q8_0,
    /// 4-bit: exact int8
    #[value(name = "q4_0")]
    Q4_0,
}

impl From<Quantize> for Quantization {
    fn from(quantize: Quantize) -> Self {
        match quantize {
            Quantize::None => Self::None,
            Quantize::Q8_0 => Self::Q8_0,
            Quantize::Q4_0 => Self::Q4_0,
        }
    }
}

/// The folder that holds the project's models: `POLYLINK_MODELS`, `./models`, or the one of the checkout that this
/// program was built from.
pub fn models_folder() -> PathBuf {
    let named = std::env::var_os("POLYLINK_MODELS").map(PathBuf::from);
    let here = PathBuf::from("models");
    named.or_else(|| here.join("nano").is_dir().then(|| here.clone())).unwrap_or_else(|| {
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("models");
        if built.is_dir() { built } else { here }
    })
}

/// A folder as given, or one of the project's models by its name.
pub fn resolve(model: &str) -> PathBuf {
    let given = PathBuf::from(model);
    if given.is_dir() || model.contains('/') { given } else { models_folder().join(model) }
}

/// `org/name@revision` of a folder: the folder's name, marked where its weights are quantised.
pub fn profile_id(folder: &Path, quantize: Quantize) -> String {
    let name = folder.file_name().map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned());
    let clean: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "-._".contains(c) { c } else { '-' }).collect();
    match quantize {
        Quantize::None => format!("polylink/{clean}@1"),
        Quantize::Q8_0 => format!("polylink/{clean}-q8_0@1"),
        Quantize::Q4_0 => format!("polylink/{clean}-q4_0@1"),
    }
}

/// Opens a folder and computes its profile, reading all weights.
pub fn open(folder: &Path, quantize: Quantize, id: Option<&str>) -> Result<(LoadedModel, ModelProfile), CliError> {
    let wrong = |e: polylink_inference_server::model::ModelError| CliError::value("model", e);
    let model = LoadedModel::open(folder, quantize.into()).map_err(wrong)?;
    let id = id.map_or_else(|| profile_id(folder, quantize), str::to_owned);
    let profile = model.profile(&id).map_err(wrong)?;
    polylink_protocol::market::check_profile(&profile).map_err(|e| CliError::value("profile", e))?;
    Ok((model, profile))
}
