//! The weights of a model under Hugging Face's names, whatever file they lie in: safetensors shards or a GGUF.
//!
//! Opening reads headers only and checks them against the files' lengths; tensors are read one at a time into a buffer of
//! the caller, so that loading needs little more memory than the backend's own packed copy. Large ones are read by several
//! threads. (No memory map: a file that shrinks under one would end the process.)

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use polylink_kernels::Dtype;
use sha2::{Digest as _, Sha256};

use super::error::ModelError;
use super::quantized::{Expansion, Scheme};
use super::safetensors::{self, RawTensor};

/// Bytes of a tensor that one thread reads.
const PIECE_BYTES: usize = 8 << 20;

/// What is done to a tensor's bytes after they are read.
#[derive(Clone, Debug)]
pub(super) enum Reading {
    /// Nothing.
    Plain,
    /// Rows of each head come as pairs of neighbours and are wanted as halves: output `half × j + i` of a head of `head_dim`
    /// lies at `2 i + j`.
    Interleaved {
        /// Rows of a head.
        head_dim: usize,
    },
    /// Of f32: the file holds 1 + weight.
    PlusOne,
    /// The place is that of the first of several parts, which make a matrix of f32, or of blocks of e4m3.
    Expanded(Box<Expansion>),
}

/// Where a tensor lies.
#[derive(Clone, Debug)]
pub(crate) struct TensorPlace {
    pub(super) shard: usize,
    pub(super) offset: u64,
    pub(super) bytes: usize,
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: Dtype,
    pub(super) reading: Reading,
}

/// All tensors of a model.
#[derive(Debug)]
pub(crate) struct Weights {
    /// In order of their names.
    files: Vec<PathBuf>,
    tensors: BTreeMap<String, TensorPlace>,
    has_blocks: bool,
    quantization: Option<&'static str>,
    progress: Progress,
}

impl Weights {
    /// Those of a folder, quantised or not.
    pub(super) fn open(folder: &Path, scheme: Option<Scheme>) -> Result<Self, ModelError> {
        let (shards, tensors) = safetensors::open(folder, scheme)?;
        Ok(Self { quantization: scheme.map(Scheme::name), ..Self::of(shards, tensors) })
    }

    pub(super) fn of(files: Vec<PathBuf>, tensors: BTreeMap<String, TensorPlace>) -> Self {
        let total = tensors.values().map(|place| place.bytes as u64).sum();
        let has_blocks = tensors.values().any(|place| place.dtype.is_integers());
        let progress = Progress { total, ..Progress::default() };
        Self { files, tensors, has_blocks, quantization: has_blocks.then_some("gguf"), progress }
    }

    /// Whether a tensor is of blocks, which are computed with as they are.
    pub(crate) fn has_blocks(&self) -> bool {
        self.has_blocks
    }

    /// How the files are quantised, as profiles name it; None if they are not.
    pub(crate) fn quantization(&self) -> Option<&'static str> {
        self.quantization
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

    /// Refuses biases below a prefix that nobody asks for: an answer without them would be another model's. Zeros, which some
    /// quantisers write for every matrix, change nothing.
    pub(crate) fn refuse_other_biases(&self, prefix: &str, asked: impl Fn(&str) -> bool) -> Result<(), ModelError> {
        let below = self.tensors.range(prefix.to_owned()..).take_while(|(name, _)| name.starts_with(prefix));
        for (name, place) in below.filter(|(name, _)| name.ends_with(".bias") && !asked(name)) {
            let mut data = Vec::new();
            self.read(name, place, &mut data)?;
            if data.iter().any(|byte| *byte != 0) {
                let reason = "it is there and not zero, and config.json asks for no such bias".into();
                return Err(ModelError::Tensor { tensor: name.clone(), reason });
            }
        }
        Ok(())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Reads a tensor's bytes into `buffer`, which is made as long as they are.
    pub(crate) fn read(&self, name: &str, place: &TensorPlace, buffer: &mut Vec<u8>) -> Result<(), ModelError> {
        buffer.resize(place.bytes, 0);
        self.progress.add(place.bytes as u64);
        if let Reading::Expanded(expansion) = &place.reading {
            let part = |part: &RawTensor| {
                let mut data = vec![0; part.bytes];
                self.fill(name, part.shard, part.offset, &mut data).map(|()| data)
            };
            let parts = expansion.parts.iter().map(part).collect::<Result<Vec<_>, _>>()?;
            return match place.dtype {
                Dtype::Fp8 => expansion.blocks(place.shape[1], &parts, buffer),
                _ => expansion.expand(name, place.shape[1], &parts, buffer),
            };
        }
        self.fill(name, place.shard, place.offset, buffer)?;
        match place.reading {
            Reading::Plain | Reading::Expanded(_) => {}
            Reading::Interleaved { head_dim } => {
                let row_bytes = place.bytes / place.shape[0];
                separate_halves(buffer, row_bytes, head_dim);
            }
            Reading::PlusOne => {
                for value in buffer.as_chunks_mut::<4>().0 {
                    *value = (f32::from_le_bytes(*value) - 1.0).to_le_bytes();
                }
            }
        }
        Ok(())
    }

    fn fill(&self, name: &str, file: usize, offset: u64, buffer: &mut [u8]) -> Result<(), ModelError> {
        let file = &self.files[file];
        read_at(file, offset, buffer).map_err(|error| ModelError::Tensor {
            tensor: name.into(),
            reason: format!("{} bytes could not be read from {}: {error}", buffer.len(), file.display()),
        })
    }

    /// SHA-256 over the SHA-256 of every file, in order of their names.
    pub(crate) fn digest(&self) -> Result<[u8; 32], ModelError> {
        let mut all = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        for file in &self.files {
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

pub(super) fn unreadable(file: &Path, error: &std::io::Error) -> ModelError {
    ModelError::File { file: file.to_owned(), reason: error.to_string() }
}

/// Fills the buffer from an offset of a file, by several threads if it is large.
fn read_at(file: &Path, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
    let piece = |offset: u64, buffer: &mut [u8]| {
        let mut source = File::open(file)?;
        source.seek(SeekFrom::Start(offset))?;
        source.read_exact(buffer)
    };
    if buffer.len() <= PIECE_BYTES {
        return piece(offset, buffer);
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(buffer.len().div_ceil(PIECE_BYTES));
    let length = buffer.len().div_ceil(threads);
    std::thread::scope(|scope| {
        let pieces = buffer.chunks_mut(length).enumerate();
        let readers: Vec<_> =
            pieces.map(|(number, part)| scope.spawn(move || piece(offset + (number * length) as u64, part))).collect();
        readers.into_iter().try_for_each(|reader| {
            reader.join().unwrap_or_else(|_| Err(std::io::Error::other("a reading thread panicked")))
        })
    })
}

/// See [`Reading::Interleaved`].
fn separate_halves(rows: &mut [u8], row_bytes: usize, head_dim: usize) {
    let mut head = vec![0; head_dim * row_bytes];
    for rows in rows.chunks_exact_mut(head.len()) {
        head.copy_from_slice(rows);
        for (number, row) in rows.chunks_exact_mut(row_bytes).enumerate() {
            let (j, i) = (number / (head_dim / 2), number % (head_dim / 2));
            row.copy_from_slice(&head[(2 * i + j) * row_bytes..][..row_bytes]);
        }
    }
}

/// Says how far loading is, each time another tenth was read.
#[derive(Debug, Default)]
struct Progress {
    total: u64,
    read: AtomicU64,
}

impl Progress {
    fn add(&self, bytes: u64) {
        let before = self.read.fetch_add(bytes, Ordering::Relaxed);
        let tenths = |read: u64| read.saturating_mul(10).checked_div(self.total).unwrap_or(0);
        let now = tenths(before + bytes);
        if now > tenths(before) && now <= 10 {
            tracing::info!(percent = now * 10, megabytes = self.total / 1_000_000, "weights are being read");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_heads_come_back_as_halves() {
        // Two heads of four rows of two bytes; row r of a head is 10 × head + r.
        let mut rows: Vec<u8> = [0, 1, 2, 3, 10, 11, 12, 13].into_iter().flat_map(|row| [row, row]).collect();
        separate_halves(&mut rows, 2, 4);
        let found: Vec<u8> = rows.chunks(2).map(|row| row[0]).collect();
        assert_eq!(found, [0, 2, 1, 3, 10, 12, 11, 13]);
    }

    #[test]
    fn several_threads_read_what_one_does() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("data");
        let data: Vec<u8> = (0..2 * PIECE_BYTES + 77).map(|i| (i * 7 % 251) as u8).collect();
        std::fs::write(&file, &data).unwrap();
        let mut found = vec![0; data.len() - 5];
        read_at(&file, 5, &mut found).unwrap();
        assert!(found == data[5..]);
        assert!(read_at(&file, 6, &mut found).is_err(), "beyond the end");
    }
}
