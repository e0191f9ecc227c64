//! Model folders and files: where the project's own lie, and what a served model is called.

use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

use polylink_inference_server::model::{Computation, KvDtype, LoadedModel, Precision, kv_dtype_name};
use polylink_protocol::market_v1::ModelProfile;

use crate::error::CliError;

/// How weights are held in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Quantize {
    /// As they are
    #[default]
    #[value(name = "none")]
    None,
    /// 8-bit: exact int8
    #[value(name = "q8_0")]
    Q8_0,
    /// 4-bit: exact int8
    #[value(name = "q4_0")]
    Q4_0,
    /// 4-bit, a scale and a minimum per 32: exact int8
    #[value(name = "q4_k")]
    Q4K,
    /// 5-bit, as q4_k: exact int8
    #[value(name = "q5_k")]
    Q5K,
    /// 6-bit, a scale per 16: exact int8
    #[value(name = "q6_k")]
    Q6K,
}

/// What weights that are not quantised are computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// Exact: the same bits on every machine
    #[default]
    F32,
    /// Faster on processors with bf16 products; a profile of its own, judged by margins
    Bf16,
    /// As bf16, in the order of AMX tiles: fast on processors that have them; a profile of its own, judged by margins
    AmxBf16,
    /// On the tensor cores of a GPU (`--backend cuda`); a profile of its own, judged by margins
    #[value(name = "sm90-bf16")]
    Sm90Bf16,
}

/// What keys and values are kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Cache {
    /// As they are computed
    #[default]
    F32,
    /// Rounded to bf16: half of the memory; exact, a profile of its own
    Bf16,
    /// 8-bit integers: a quarter of the memory; exact, a profile of its own
    Int8,
    /// 8-bit floats (e4m3): a quarter of the memory; exact, a profile of its own
    Fp8,
}

/// How a model is held and computed with.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct PrecisionArgs {
    /// How weights are held
    #[arg(long, value_enum, default_value = "none")]
    quantize: Quantize,
    /// What weights that are not quantised are computed in
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Dtype,
    /// What keys and values are kept in
    #[arg(long, value_enum, default_value = "f32")]
    kv_dtype: Cache,
}

impl PrecisionArgs {
    /// All together.
    ///
    /// # Errors
    /// [`CliError`] for bf16 products of quantised weights, which are computed in integers.
    pub fn computation(self) -> Result<Computation, CliError> {
        let precision = match (self.quantize, self.dtype) {
            (Quantize::None, Dtype::F32) => Precision::F32,
            (Quantize::None, Dtype::Bf16) => Precision::Bf16,
            (Quantize::None, Dtype::AmxBf16) => Precision::AmxBf16,
            (Quantize::None, Dtype::Sm90Bf16) => Precision::TensorBf16,
            (Quantize::Q8_0, Dtype::F32) => Precision::Q8_0,
            (Quantize::Q4_0, Dtype::F32) => Precision::Q4_0,
            (Quantize::Q4K, Dtype::F32) => Precision::Q4K,
            (Quantize::Q5K, Dtype::F32) => Precision::Q5K,
            (Quantize::Q6K, Dtype::F32) => Precision::Q6K,
            (_, Dtype::Bf16 | Dtype::AmxBf16 | Dtype::Sm90Bf16) => {
                let reason = "quantised weights are computed in exact integers: leave out --dtype or --quantize";
                return Err(CliError::value("dtype", reason));
            }
        };
        let kv_dtype = match self.kv_dtype {
            Cache::F32 => KvDtype::F32,
            Cache::Bf16 => KvDtype::Bf16,
            Cache::Int8 => KvDtype::Int8,
            Cache::Fp8 => KvDtype::Fp8,
        };
        Ok(Computation { precision, kv_dtype })
    }

    /// As flags of another `polylink`.
    pub fn flags(self) -> [String; 6] {
        let name = |value: Option<clap::builder::PossibleValue>| value.map(|v| v.get_name().to_owned());
        [
            "--quantize".into(),
            name(self.quantize.to_possible_value()).unwrap_or_default(),
            "--dtype".into(),
            name(self.dtype.to_possible_value()).unwrap_or_default(),
            "--kv-dtype".into(),
            name(self.kv_dtype.to_possible_value()).unwrap_or_default(),
        ]
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

/// A folder or GGUF file as given, or one of the project's models by its name.
pub fn resolve(model: &str) -> PathBuf {
    let given = PathBuf::from(model);
    if given.exists() || model.contains('/') { given } else { models_folder().join(model) }
}

/// `org/name@revision` of a model: the name of its folder or file, marked where it is not computed as it is.
pub fn profile_id(folder: &Path, computation: impl Into<Computation>) -> String {
    let name = if folder.is_file() { folder.file_stem() } else { folder.file_name() };
    let name = name.map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned());
    let clean: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "-._".contains(c) { c } else { '-' }).collect();
    let Computation { precision, kv_dtype } = computation.into();
    let weights = match precision {
        Precision::F32 => String::new(),
        Precision::Bf16 => "-bf16".into(),
        Precision::AmxBf16 => "-amx-bf16".into(),
        Precision::TensorBf16 => "-sm90-bf16".into(),
        quantised => format!("-{}", quantised.weight_quantization()),
    };
    let cache = match kv_dtype {
        KvDtype::F32 => String::new(),
        reduced => format!("-kv-{}", kv_dtype_name(reduced)),
    };
    format!("polylink/{clean}{weights}{cache}@1")
}

/// Opens a folder or a GGUF file and computes its profile, reading all weights.
pub fn open(
    folder: &Path,
    computation: impl Into<Computation>,
    id: Option<&str>,
) -> Result<(LoadedModel, ModelProfile), CliError> {
    let wrong = |e: polylink_inference_server::model::ModelError| CliError::value("model", e);
    let computation = computation.into();
    let model = LoadedModel::open(folder, computation).map_err(wrong)?;
    let id = id.map_or_else(|| profile_id(folder, computation), str::to_owned);
    let profile = model.profile(&id).map_err(wrong)?;
    polylink_protocol::market::check_profile(&profile).map_err(|e| CliError::value("profile", e))?;
    Ok((model, profile))
}
