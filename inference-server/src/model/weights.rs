//! The weights of a folder: `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
//!
//! Opening reads the headers only and checks them against the files' lengths; tensors are read one at a time into a
//! buffer of the caller, so that loading needs little more memory than the backend's own packed copy. (No memory map:
//! a file that shrinks under one would end the process.)

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use polylink_kernels::Dtype;
use safetensors::tensor::Metadata;
use sha2::{Digest as _, Sha256};

use super::config::read_json;
use super::error::ModelError;

/// Largest header of a shard.
const HEADER_BYTES_MAX: u64 = 64 << 20;
/// Most shards of a folder.
const SHARDS_MAX: usize = 1_000;

/// Where a tensor lies.
#[derive(Clone, Debug)]
pub(crate) struct TensorPlace {
    shard: usize,
    offset: u64,
    bytes: usize,
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: Dtype,
}

/// All tensors of a folder.
#[derive(Debug)]
pub(crate) struct Weights {
    /// In order of their names.
    shards: Vec<PathBuf>,
    tensors: BTreeMap<String, TensorPlace>,
}

impl Weights {
    pub(crate) fn open(folder: &Path) -> Result<Self, ModelError> {
        let shards = shard_files(folder)?;
        let mut tensors = BTreeMap::new();
        for (index, file) in shards.iter().enumerate() {
            read_header(file, index, &mut tensors)?;
        }
        Ok(Self { shards, tensors })
    }

    /// A tensor that must be there with this shape.
    pub(crate) fn expect(&self, name: &str, shape: &[usize]) -> Result<&TensorPlace, ModelError> {
        let wrong = |reason: String| ModelError::Tensor { tensor: name.into(), reason };
        let place = self
            .tensors
            .get(name)
            .ok_or_else(|| wrong(format!("it is missing; shape {shape:?} is expected by config.json")))?;
        if place.shape != shape {
            return Err(wrong(format!("it has shape {:?}, config.json asks for {shape:?}", place.shape)));
        }
        Ok(place)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Reads a tensor's bytes into `buffer`, which is made as long as they are.
    pub(crate) fn read(&self, name: &str, place: &TensorPlace, buffer: &mut Vec<u8>) -> Result<(), ModelError> {
        buffer.resize(place.bytes, 0);
        let file = &self.shards[place.shard];
        let mut read = || {
            let mut source = File::open(file)?;
            source.seek(SeekFrom::Start(place.offset))?;
            source.read_exact(buffer)
        };
        read().map_err(|error| ModelError::Tensor {
            tensor: name.into(),
            reason: format!("{} bytes could not be read from {}: {error}", place.bytes, file.display()),
        })
    }

    /// SHA-256 over the SHA-256 of every shard, in order of their names.
    pub(crate) fn digest(&self) -> Result<[u8; 32], ModelError> {
        let mut all = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        for file in &self.shards {
            let mut hasher = Sha256::new();
            let mut source = File::open(file).map_err(|error| unreadable(file, &error))?;
            loop {
                match source.read(&mut buffer).map_err(|error| unreadable(file, &error))? {
                    0 => break,
                    length => hasher.update(&buffer[..length]),
                }
            }
            all.update(hasher.finalize());
        }
        Ok(all.finalize().into())
    }
}

fn unreadable(file: &Path, error: &std::io::Error) -> ModelError {
    ModelError::File { file: file.to_owned(), reason: error.to_string() }
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

/// Layout: length of the header (u64 little-endian) ‖ header (JSON) ‖ data.
fn read_header(file: &Path, shard: usize, tensors: &mut BTreeMap<String, TensorPlace>) -> Result<(), ModelError> {
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
        let dtype = match info.dtype {
            safetensors::Dtype::F32 => Dtype::F32,
            safetensors::Dtype::BF16 => Dtype::Bf16,
            safetensors::Dtype::F16 => Dtype::F16,
            other => return Err(wrong(format!("dtype {other:?} is not built: bf16, f16 or f32 is expected"))),
        };
        let expected = dtype.bytes(&info.shape);
        if end < start || expected != Some(end - start) {
            return Err(wrong(format!("shape {:?} of {dtype:?} does not fit its bytes {start}..{end}", info.shape)));
        }
        if data_start + end as u64 > file_bytes {
            return Err(wrong(format!(
                "{} ends at byte {file_bytes}, the tensor at {}: the file is cut off; download or export it again",
                file.display(),
                data_start + end as u64
            )));
        }
        let place = TensorPlace {
            shard,
            offset: data_start + start as u64,
            bytes: end - start,
            shape: info.shape.clone(),
            dtype,
        };
        if tensors.insert(name.clone(), place).is_some() {
            return Err(wrong("it occurs in two shards".into()));
        }
    }
    Ok(())
}
