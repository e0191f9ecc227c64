//! Tokens to rows (`embed.cu`), out of a table in any form that weights are packed in.

use super::super::driver::{CudaError, DevicePtr, Function, Launch};
use super::super::exact::packing::Form;
use super::super::exact::products::ExactMatrix;
use super::{Load, RowKernels, THREADS};

/// A table of embeddings as it lies on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EmbedTable {
    /// `[vocabulary][width]` f32.
    F32,
    /// A packed weight of bf16, in tiles of 64 × 64.
    Tiles,
    /// The exact products' forms: strips of floats, records of integers.
    StripsF32,
    StripsBf16,
    Q8_0,
    Q4_0,
    Q4K,
    Q5K,
    Q6K,
}

impl EmbedTable {
    pub(super) const ALL: [(Self, &'static str); 9] = [
        (Self::F32, "embed_f32"),
        (Self::Tiles, "embed_tiles"),
        (Self::StripsF32, "embed_strips_f32"),
        (Self::StripsBf16, "embed_strips_bf16"),
        (Self::Q8_0, "embed_q8_0"),
        (Self::Q4_0, "embed_q4_0"),
        (Self::Q4K, "embed_q4_k"),
        (Self::Q5K, "embed_q5_k"),
        (Self::Q6K, "embed_q6_k"),
    ];

    /// Form and address of a packed matrix of the exact products; `None` for a stack of several.
    pub fn of_exact(matrix: &ExactMatrix) -> Option<(Self, DevicePtr)> {
        let [section] = matrix.sections.as_slice() else { return None };
        Some((Self::of_form(section.form), section.weights))
    }

    /// Of a form of the exact products.
    pub(super) fn of_form(form: Form) -> Self {
        match form {
            Form::F32 => Self::StripsF32,
            Form::Bf16 => Self::StripsBf16,
            Form::Q8_0 => Self::Q8_0,
            Form::Q4_0 => Self::Q4_0,
            Form::Q4K => Self::Q4K,
            Form::Q5K => Self::Q5K,
            Form::Q6K => Self::Q6K,
        }
    }

    /// Columns that a thread takes at a time, and to what multiple the inputs of the packed table are padded.
    const fn geometry(self) -> (usize, usize) {
        match self {
            Self::F32 => (4, 4),
            Self::Tiles => (8, 64),
            Self::StripsF32 | Self::StripsBf16 => (1, 32),
            _ => (8, 256),
        }
    }
}

/// `output[r] = table[token(r)] × scale`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Embed {
    pub kind: EmbedTable,
    pub table: DevicePtr,
    /// `[rows]`: ids, or bit 31 and a slot.
    pub tokens: DevicePtr,
    /// `[slots]`.
    pub last_sample: DevicePtr,
    /// `[rows][width]` f32.
    pub output: DevicePtr,
    pub count: DevicePtr,
    pub width: usize,
    pub vocabulary: usize,
    pub scale: f32,
}

/// `EmbedParams`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct EmbedParams {
    table: DevicePtr,
    tokens: DevicePtr,
    last_sample: DevicePtr,
    output: DevicePtr,
    count: DevicePtr,
    width: u32,
    vocabulary: u32,
    inputs_padded: u32,
    scale: f32,
}

/// In the order of [`EmbedTable`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Functions([Function; EmbedTable::ALL.len()]);

impl Functions {
    pub fn load(from: Load<'_>) -> Result<Self, CudaError> {
        let mut functions = [from("embed", EmbedTable::ALL[0].1)?; EmbedTable::ALL.len()];
        for (kind, name) in EmbedTable::ALL {
            functions[kind as usize] = from("embed", name)?;
        }
        Ok(Self(functions))
    }
}

impl RowKernels {
    /// Embeds so many rows.
    pub fn embed(&self, rows: usize, embed: &Embed) -> Launch {
        let Embed { kind, table, tokens, last_sample, output, count, width, vocabulary, scale } = *embed;
        let (each, padding) = kind.geometry();
        let params = EmbedParams {
            table,
            tokens,
            last_sample,
            output,
            count,
            width: width as u32,
            vocabulary: vocabulary as u32,
            inputs_padded: width.next_multiple_of(padding) as u32,
            scale,
        };
        let threads = (width.div_ceil(each) as u32).next_multiple_of(32).min(THREADS);
        Launch::new(&self.embed.0[kind as usize], [rows as u32, 1, 1], threads, 0, params)
    }
}
