//! Safetensors: the headers of a folder's shards, checked against the files' lengths.
//!
//! Layout of a shard (the format's own page): length of the header (u64, little-endian) ‖ header (JSON) ‖ data.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use polylink_kernels::Dtype;
use safetensors::Dtype as Stored;
use safetensors::tensor::Metadata;

use super::config::read_json;
use super::error::ModelError;
use super::quantized::Scheme;
use super::weights::{Reading, TensorPlace, unreadable};

/// Largest header of a shard.
const HEADER_BYTES_MAX: u64 = 64 << 20;
/// Most shards of a folder.
const SHARDS_MAX: usize = 1_000;

/// A tensor as a shard has it.
#[derive(Clone, Debug)]
pub(super) struct RawTensor {
    pub shard: usize,
    pub offset: u64,
    pub bytes: usize,
    pub shape: Vec<usize>,
    pub dtype: Stored,
}

/// The shards of a folder and all its tensors, those of a quantised folder as the matrices that they make.
pub(super) fn open(
    folder: &Path,
    scheme: Option<Scheme>,
) -> Result<(Vec<PathBuf>, BTreeMap<String, TensorPlace>), ModelError> {
    let shards = shard_files(folder)?;
    let mut raw = BTreeMap::new();
    for (index, file) in shards.iter().enumerate() {
        read_header(file, index, &mut raw)?;
    }
    let mut tensors = scheme.map_or(Ok(BTreeMap::new()), |scheme| scheme.matrices(&mut raw))?;
    for (name, tensor) in raw {
        let RawTensor { shard, offset, bytes, shape, dtype } = tensor;
        let wrong = |reason: String| ModelError::Tensor { tensor: name.clone(), reason };
        let dtype = match dtype {
            Stored::F32 => Dtype::F32,
            Stored::BF16 => Dtype::Bf16,
            Stored::F16 => Dtype::F16,
            other => return Err(wrong(format!("dtype {other:?} is not built: bf16, f16 or f32 is expected"))),
        };
        let place = TensorPlace { shard, offset, bytes, shape, dtype, reading: Reading::Plain };
        if tensors.insert(name.clone(), place).is_some() {
            return Err(wrong("it is there quantised as well".into()));
        }
    }
    Ok((shards, tensors))
}

/// `model.safetensors`, or the shards of the index, in order of their names.
fn shard_files(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let index_file = folder.join("model.safetensors.index.json");
    if !index_file.exists() {
        return Ok(vec![folder.join("model.safetensors")]);
    }
    let (index, _) = read_json(&index_file)?;
    let damaged = |reason: &str| ModelError::Damaged { file: index_file.clone(), reason: reason.into() };
    let map = index["weight_map"].as_object().ok_or_else(|| damaged("it has no weight_map"))?;
    let mut names: Vec<&str> = map.values().filter_map(|name| name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let plain = |name: &&str| !name.is_empty() && !name.contains(['/', '\\']) && !name.starts_with('.');
    if names.is_empty() || names.len() > SHARDS_MAX || !names.iter().all(plain) {
        return Err(damaged("its weight_map must name 1 to 1,000 files of the same folder"));
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// A tensor's name within the text model: multimodal files put a prefix before it.
fn text_name(name: &str) -> String {
    // As transformers writes them since 4.52, and as it did before.
    match (name.strip_prefix("model.language_model."), name.strip_prefix("language_model.")) {
        (Some(rest), _) => format!("model.{rest}"),
        (None, Some(rest)) => rest.into(),
        (None, None) => name.into(),
    }
}

fn read_header(file: &Path, shard: usize, tensors: &mut BTreeMap<String, RawTensor>) -> Result<(), ModelError> {
    let damaged = |reason: String| ModelError::Damaged { file: file.to_owned(), reason };
    let mut source = File::open(file).map_err(|error| unreadable(file, &error))?;
    let file_bytes = source.metadata().map_err(|error| unreadable(file, &error))?.len();
    let mut length = [0; 8];
    source.read_exact(&mut length).map_err(|_| damaged(format!("it has only {file_bytes} bytes")))?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > HEADER_BYTES_MAX || header_bytes + 8 > file_bytes {
        return Err(damaged(format!("its header is said to have {header_bytes} bytes, the file has {file_bytes}")));
    }
    let mut header = vec![0; header_bytes as usize];
    source.read_exact(&mut header).map_err(|error| unreadable(file, &error))?;
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|error| damaged(format!("its header is not one of safetensors: {error}")))?;
    let data_start = 8 + header_bytes;
    for (name, info) in metadata.tensors() {
        let wrong = |reason: String| ModelError::Tensor { tensor: name.clone(), reason };
        let (start, end) = info.data_offsets;
        let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |bits, &n| bits.checked_mul(n));
        if end < start || bits != (end - start).checked_mul(8) {
            return Err(wrong(format!(
                "shape {:?} of {:?} does not fit its bytes {start}..{end}",
                info.shape, info.dtype
            )));
        }
        if data_start + end as u64 > file_bytes {
            return Err(wrong(format!(
                "{} ends at byte {file_bytes}, the tensor at {}: the file is cut off; download or export it again",
                file.display(),
                data_start + end as u64
            )));
        }
        let tensor = RawTensor {
            shard,
            offset: data_start + start as u64,
            bytes: end - start,
            shape: info.shape.clone(),
            dtype: info.dtype,
        };
        if tensors.insert(text_name(&name), tensor).is_some() {
            return Err(wrong("it occurs in two shards".into()));
        }
    }
    Ok(())
}
