//! How weights are held and multiplied: what contestants have in common, and the machine's limits for it.

use polylink_kernels::limits::{self, Unit};

use crate::random_model::Shape;

/// A profile of ours, and what a peer runs beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// bf16 weights, exact f32 products; peers run bf16.
    F32,
    /// bf16 weights and products.
    Bf16,
    /// bf16 weights on the tensor cores of a GPU, with a cache of bf16.
    Sm90Bf16,
    /// 8-bit weights and products of integers.
    Q8_0,
    /// 4-bit weights and products of integers.
    Q4_0,
}

impl Precision {
    /// As rows and GGUF files are named.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::Sm90Bf16 => "sm90-bf16",
            Precision::Q8_0 => "q8_0",
            Precision::Q4_0 => "q4_0",
        }
    }

    /// Flags of `polylink serve`.
    pub fn flags(self) -> &'static [&'static str] {
        match self {
            Precision::F32 => &["--dtype", "f32"],
            Precision::Bf16 => &["--dtype", "bf16"],
            Precision::Sm90Bf16 => &["--dtype", "sm90-bf16", "--kv-dtype", "bf16", "--backend", "cuda"],
            Precision::Q8_0 => &["--quantize", "q8_0"],
            Precision::Q4_0 => &["--quantize", "q4_0"],
        }
    }

    /// The type of a peer's file.
    pub fn gguf(self) -> &'static str {
        if matches!(self, Precision::F32 | Precision::Sm90Bf16) { "bf16" } else { self.name() }
    }

    /// The most bytes of a key's or value's number in our cache.
    pub fn kv_bytes(self) -> usize {
        if self == Precision::Sm90Bf16 { 2 } else { 4 }
    }

    /// Whether transformers has it.
    pub fn in_transformers(self) -> bool {
        matches!(self, Precision::F32 | Precision::Bf16 | Precision::Sm90Bf16)
    }

    /// Bytes of a weight: blocks of 32 values have a scale of two bytes.
    pub fn bytes_per_weight(self) -> f64 {
        match self {
            Precision::F32 | Precision::Bf16 | Precision::Sm90Bf16 => 2.0,
            Precision::Q8_0 => 34.0 / 32.0,
            Precision::Q4_0 => 18.0 / 32.0,
        }
    }

    /// What the processor multiplies in.
    pub fn unit(self) -> Unit {
        match self {
            Precision::F32 => Unit::F32,
            Precision::Bf16 | Precision::Sm90Bf16 => Unit::Bf16,
            Precision::Q8_0 | Precision::Q4_0 => Unit::Int8,
        }
    }
}

/// What the machine does at most, measured between the contestants' turns: the best of all times.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Bytes per second from a buffer as large as the weights.
    pub read: f64,
    /// Operations per second of products, registers only.
    pub products: f64,
    /// Times measured.
    pub runs: usize,
}

impl Limits {
    /// Measures once more.
    pub fn measure(&mut self, shape: &Shape, precision: Precision, threads: usize) {
        let bytes = shape.multiplied() as f64 * precision.bytes_per_weight();
        self.read = limits::read_bandwidth(bytes as usize, threads).unwrap_or(0.0).max(self.read);
        self.products = limits::product_peak(precision.unit(), threads).max(self.products);
        self.runs += 1;
    }

    /// Tokens per second at which reading the weights alone bounds a single stream.
    pub fn decode(&self, shape: &Shape, precision: Precision) -> f64 {
        self.read / (shape.multiplied() as f64 * precision.bytes_per_weight())
    }

    /// Tokens per second at which the products of the layers alone bound a long prompt.
    pub fn prefill(&self, shape: &Shape) -> f64 {
        let head = shape.vocabulary * shape.hidden;
        self.products / (2.0 * (shape.multiplied() - head) as f64)
    }
}
