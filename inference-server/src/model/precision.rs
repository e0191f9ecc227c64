//! How weights are held and computed with, by the names that profiles and the command line use.

use polylink_kernels::{KvDtype, WeightForm};

/// How a model is held and computed with: its weights, and its cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Computation {
    /// Weights and products.
    pub precision: Precision,
    /// Keys and values.
    pub kv_dtype: KvDtype,
}

impl From<Precision> for Computation {
    fn from(precision: Precision) -> Self {
        Self { precision, kv_dtype: KvDtype::F32 }
    }
}

/// Type of the cache as profiles name it: `f32`, `bf16`, `int8` or `fp8`.
pub fn kv_dtype_name(dtype: KvDtype) -> &'static str {
    match dtype {
        KvDtype::F32 => "f32",
        KvDtype::Bf16 => "bf16",
        KvDtype::Int8 => "int8",
        KvDtype::Fp8 => "fp8",
    }
}

/// How a model's weights are held and computed with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// As they are, exact: floats in f32, a GGUF's blocks in int8.
    #[default]
    F32,
    /// In bf16, products in pairs: bit-equal on every CPU (`vdp-bf16`), judged by margins elsewhere.
    Bf16,
    /// In bf16, products summed as AMX tiles do: bit-equal on every CPU (`amx-bf16`), fast where there are tiles.
    AmxBf16,
    /// In bf16, products on the tensor cores of a GPU (`sm90-bf16`), judged by margins; a CPU replays it as [`Precision::Bf16`].
    TensorBf16,
    /// 8-bit integers, a scale per 32 inputs, made while loading; exact int8.
    Q8_0,
    /// 4-bit integers, a scale per 32 inputs, made while loading; exact int8.
    Q4_0,
    /// 4-bit integers in blocks of 256, made while loading; exact int8.
    Q4K,
    /// 5-bit integers in blocks of 256, made while loading; exact int8.
    Q5K,
    /// 6-bit integers in blocks of 256, made while loading; exact int8.
    Q6K,
}

impl Precision {
    /// All there are.
    pub const ALL: [Precision; 9] = [
        Precision::F32,
        Precision::Bf16,
        Precision::AmxBf16,
        Precision::TensorBf16,
        Precision::Q8_0,
        Precision::Q4_0,
        Precision::Q4K,
        Precision::Q5K,
        Precision::Q6K,
    ];

    /// Quantisation of the weights as profiles name it: `none`, `q8_0`, `q4_0`, `q4_k`, `q5_k` or `q6_k`.
    pub fn weight_quantization(self) -> &'static str {
        match self {
            Precision::F32 | Precision::Bf16 | Precision::AmxBf16 | Precision::TensorBf16 => "none",
            Precision::Q8_0 => "q8_0",
            Precision::Q4_0 => "q4_0",
            Precision::Q4K => "q4_k",
            Precision::Q5K => "q5_k",
            Precision::Q6K => "q6_k",
        }
    }

    /// Type that products are computed in, as profiles name it: `f32`, `bf16` or `int8`.
    pub fn compute_dtype(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 | Precision::AmxBf16 | Precision::TensorBf16 => "bf16",
            Precision::Q8_0 | Precision::Q4_0 | Precision::Q4K | Precision::Q5K | Precision::Q6K => "int8",
        }
    }

    /// Numerics version, as profiles name it.
    pub fn numerics(self) -> &'static str {
        match self {
            Precision::Bf16 => "vdp-bf16",
            Precision::AmxBf16 => "amx-bf16",
            Precision::TensorBf16 => "sm90-bf16",
            _ => super::NUMERICS,
        }
    }

    pub(super) fn form(self) -> WeightForm {
        match self {
            Precision::F32 => WeightForm::Stored,
            Precision::Bf16 => WeightForm::Bf16,
            Precision::AmxBf16 => WeightForm::AmxBf16,
            Precision::TensorBf16 => WeightForm::TensorBf16,
            Precision::Q8_0 => WeightForm::Q8_0,
            Precision::Q4_0 => WeightForm::Q4_0,
            Precision::Q4K => WeightForm::Q4K,
            Precision::Q5K => WeightForm::Q5K,
            Precision::Q6K => WeightForm::Q6K,
        }
    }
}
