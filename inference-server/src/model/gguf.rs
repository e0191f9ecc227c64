//! GGUF files: metadata and where the tensors lie, every count and length checked against a bound and against the file.
//!
//! Layout (the `gguf.md` of the ggml project), little-endian: `GGUF` ‖ version (2 or 3) ‖ number of tensors ‖ number of
//! pairs ‖ pairs (key, type, value) ‖ tensors (name, dimensions, innermost first, type, offset) ‖ padding ‖ data. A text
//! is a length and UTF-8. Offsets count from the start of the data, in whole alignments (`general.alignment`, else 32).
//!
//! *Invariant*: what this reader gives lies within the file, and no two tensors overlap.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use polylink_kernels::Dtype;
use polylink_protocol::Digest;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::error::ModelError;

/// What a file starts with.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";

const PAIRS_MAX: u64 = 65_536;
const TENSORS_MAX: u64 = 262_144;
const TEXT_BYTES_MAX: u64 = 16 << 20;
const ARRAY_MAX: u64 = 16 << 20;
const DIMENSIONS_MAX: u32 = 4;
const ALIGNMENT_MAX: u64 = 1 << 20;

/// A tensor as the file names it.
#[derive(Clone, Debug)]
pub(super) struct GgufTensor {
    pub name: String,
    /// Outermost first, as in `torch`.
    pub shape: Vec<usize>,
    pub dtype: Dtype,
    /// From the start of the file.
    pub offset: u64,
    pub bytes: usize,
}

/// What stands before the data.
#[derive(Debug)]
pub(super) struct Gguf {
    /// Pairs; numbers, texts, flags and lists of them.
    pub metadata: BTreeMap<String, Value>,
    pub tensors: Vec<GgufTensor>,
    /// SHA-256 over the bytes of the pairs whose keys start with `tokenizer.`, in the file's order, and over all others.
    pub tokenizer_digest: Digest,
    pub config_digest: Digest,
}

impl Gguf {
    /// Reads what stands before the data.
    ///
    /// # Errors
    /// [`ModelError::File`], [`ModelError::Damaged`] with the key, [`ModelError::Tensor`].
    pub fn open(file: &Path) -> Result<Self, ModelError> {
        let unreadable = |e: std::io::Error| ModelError::File { file: file.to_owned(), reason: e.to_string() };
        let source = File::open(file).map_err(unreadable)?;
        let file_bytes = source.metadata().map_err(unreadable)?.len();
        let reader = BufReader::with_capacity(1 << 20, source);
        let mut source = Source { reader, file, position: 0, file_bytes, taken: Vec::new() };
        source.gguf()
    }
}

/// The file being read.
struct Source<'a> {
    reader: BufReader<File>,
    file: &'a Path,
    position: u64,
    file_bytes: u64,
    /// Bytes of the pair being read.
    taken: Vec<u8>,
}

impl Source<'_> {
    fn damaged(&self, reason: impl Into<String>) -> ModelError {
        ModelError::Damaged { file: self.file.to_owned(), reason: reason.into() }
    }

    /// `length` more bytes, which are appended to those taken.
    fn take(&mut self, length: u64, what: &str) -> Result<&[u8], ModelError> {
        if length > self.file_bytes - self.position {
            let (at, end) = (self.position, self.file_bytes);
            return Err(
                self.damaged(format!("{what}: {length} bytes are expected at byte {at}, the file ends at {end}"))
            );
        }
        let start = self.taken.len();
        self.taken.resize(start + length as usize, 0);
        if let Err(error) = self.reader.read_exact(&mut self.taken[start..]) {
            return Err(self.damaged(format!("{what}: {error}")));
        }
        self.position += length;
        Ok(&self.taken[start..])
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], ModelError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64, what)?);
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32, ModelError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, ModelError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn count(&mut self, max: u64, what: &str) -> Result<u64, ModelError> {
        let count = self.u64(what)?;
        if count > max { Err(self.damaged(format!("{what} is {count}, at most {max} is expected"))) } else { Ok(count) }
    }

    fn text(&mut self, what: &str) -> Result<String, ModelError> {
        let length = self.count(TEXT_BYTES_MAX, what)?;
        let text = std::str::from_utf8(self.take(length, what)?).map(str::to_owned);
        text.map_err(|error| self.damaged(format!("{what}: {error}")))
    }

    /// A value of a type of the format; lists hold no lists.
    fn value(&mut self, kind: u32, what: &str, list: bool) -> Result<Value, ModelError> {
        Ok(match kind {
            0 => u8::from_le_bytes(self.array(what)?).into(),
            1 => i8::from_le_bytes(self.array(what)?).into(),
            2 => u16::from_le_bytes(self.array(what)?).into(),
            3 => i16::from_le_bytes(self.array(what)?).into(),
            4 => self.u32(what)?.into(),
            5 => i32::from_le_bytes(self.array(what)?).into(),
            6 => f64::from(f32::from_le_bytes(self.array(what)?)).into(),
            7 => (self.array::<1>(what)?[0] != 0).into(),
            8 => self.text(what)?.into(),
            10 => self.u64(what)?.into(),
            11 => i64::from_le_bytes(self.array(what)?).into(),
            12 => f64::from_le_bytes(self.array(what)?).into(),
            9 if !list => {
                let kind = self.u32(what)?;
                let count = self.count(ARRAY_MAX, what)?;
                Value::Array((0..count).map(|_| self.value(kind, what, true)).collect::<Result<_, _>>()?)
            }
            _ => return Err(self.damaged(format!("{what} has type {kind}, which is none (or a list of lists)"))),
        })
    }

    fn gguf(&mut self) -> Result<Gguf, ModelError> {
        let magic: [u8; 4] = self.array("the beginning")?;
        let version = self.u32("the version")?;
        if magic != MAGIC || !matches!(version, 2 | 3) {
            return Err(
                self.damaged(format!("it starts with {magic:02x?} and version {version}, GGUF 2 or 3 is expected"))
            );
        }
        let tensors = self.count(TENSORS_MAX, "the number of tensors")?;
        let pairs = self.count(PAIRS_MAX, "the number of keys")?;
        let mut metadata = BTreeMap::new();
        let (mut tokenizer, mut config) = (Sha256::new(), Sha256::new());
        for number in 0..pairs {
            self.taken.clear();
            let key = self.text(&format!("key {number}"))?;
            let kind = self.u32(&key)?;
            let value = self.value(kind, &key, false)?;
            let digest = if key.starts_with("tokenizer.") { &mut tokenizer } else { &mut config };
            digest.update(&self.taken);
            if metadata.insert(key.clone(), value).is_some() {
                return Err(self.damaged(format!("key {key} occurs twice")));
            }
        }
        let mut infos = Vec::new();
        for number in 0..tensors {
            self.taken.clear();
            infos.push(self.tensor(number)?);
        }
        let alignment = metadata.get("general.alignment").map_or(Some(32), Value::as_u64);
        let alignment = alignment.filter(|a| a.is_power_of_two() && *a <= ALIGNMENT_MAX);
        let alignment = alignment.ok_or_else(|| self.damaged("general.alignment is no power of two"))?;
        self.place(&mut infos, alignment)?;
        Ok(Gguf {
            metadata,
            tensors: infos,
            tokenizer_digest: Digest(tokenizer.finalize().into()),
            config_digest: Digest(config.finalize().into()),
        })
    }

    /// One tensor's description, its offset still that of the data.
    fn tensor(&mut self, number: u64) -> Result<GgufTensor, ModelError> {
        let name = self.text(&format!("the name of tensor {number}"))?;
        let dimensions = self.u32(&name)?;
        if dimensions == 0 || dimensions > DIMENSIONS_MAX {
            return Err(
                self.damaged(format!("tensor {name} has {dimensions} dimensions, 1 to {DIMENSIONS_MAX} are expected"))
            );
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.insert(0, usize::try_from(self.u64(&name)?).unwrap_or(usize::MAX));
        }
        let wrong = |reason: String| ModelError::Tensor { tensor: name.clone(), reason };
        let dtype = match self.u32(&name)? {
            0 => Dtype::F32,
            1 => Dtype::F16,
            2 => Dtype::Q4_0,
            8 => Dtype::Q8_0,
            12 => Dtype::Q4K,
            13 => Dtype::Q5K,
            14 => Dtype::Q6K,
            30 => Dtype::Bf16,
            other => {
                let built = "F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q5_K and Q6_K are";
                return Err(wrong(format!(
                    "its type, {other} in ggml's list, is not built: {built}; quantise it anew"
                )));
            }
        };
        let bytes = dtype.bytes(&shape).filter(|bytes| *bytes > 0);
        let bytes = bytes.ok_or_else(|| wrong(format!("shape {shape:?} is not one of whole blocks of {dtype:?}")))?;
        let offset = self.u64(&name)?;
        Ok(GgufTensor { name, shape, dtype, offset, bytes })
    }

    /// Makes offsets those of the file; checks that tensors are aligned, within it and apart.
    fn place(&self, tensors: &mut [GgufTensor], alignment: u64) -> Result<(), ModelError> {
        let start = self.position.next_multiple_of(alignment);
        for tensor in tensors.iter_mut() {
            let wrong = |reason: String| ModelError::Tensor { tensor: tensor.name.clone(), reason };
            if !tensor.offset.is_multiple_of(alignment) {
                return Err(wrong(format!("its offset {} is no multiple of {alignment}", tensor.offset)));
            }
            let end = tensor.offset.checked_add(tensor.bytes as u64).and_then(|end| end.checked_add(start));
            if end.is_none_or(|end| end > self.file_bytes) {
                let (at, bytes, all) = (tensor.offset, tensor.bytes, self.file_bytes);
                return Err(wrong(format!(
                    "{} has {all} bytes, the tensor's {bytes} from {at} of the data on end after it: the file is cut off; download or make it again",
                    self.file.display()
                )));
            }
            tensor.offset += start;
        }
        let mut order: Vec<&GgufTensor> = tensors.iter().collect();
        order.sort_by_key(|tensor| tensor.offset);
        for pair in order.windows(2) {
            if pair[0].offset + pair[0].bytes as u64 > pair[1].offset {
                let reason = format!("it overlaps tensor {}", pair[0].name);
                return Err(ModelError::Tensor { tensor: pair[1].name.clone(), reason });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A little file: one pair and one tensor of 64 f32.
    fn small() -> Vec<u8> {
        let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
        let mut bytes = [&MAGIC[..], &3u32.to_le_bytes(), &1u64.to_le_bytes(), &1u64.to_le_bytes()].concat();
        bytes.extend([text("general.name"), 8u32.to_le_bytes().to_vec(), text("x")].concat());
        bytes.extend(text("w"));
        for word in [2u32.to_le_bytes().to_vec(), 32u64.to_le_bytes().to_vec(), 2u64.to_le_bytes().to_vec()] {
            bytes.extend(word);
        }
        bytes.extend([0u32.to_le_bytes().to_vec(), 0u64.to_le_bytes().to_vec()].concat());
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend((0..64u32).flat_map(|i| (i as f32).to_le_bytes()));
        bytes
    }

    fn open(bytes: &[u8]) -> Result<Gguf, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.gguf");
        std::fs::write(&file, bytes).unwrap();
        Gguf::open(&file).map_err(|error| error.to_string())
    }

    #[test]
    fn a_small_file_is_read_and_every_cut_of_it_refused() {
        let bytes = small();
        let gguf = open(&bytes).unwrap();
        assert_eq!(gguf.metadata["general.name"], "x");
        let tensor = &gguf.tensors[0];
        assert_eq!((tensor.shape.clone(), tensor.offset as usize), (vec![2, 32], bytes.len() - 256));
        for length in 0..bytes.len() {
            let reason = open(&bytes[..length]).unwrap_err();
            assert!(reason.contains("damaged") || reason.contains("cut off"), "{length}: {reason}");
        }
    }

    /// Any byte may be wrong: that gives an error or another file, never a panic or a great allocation.
    #[test]
    fn no_wrong_byte_does_harm() {
        let bytes = small();
        for at in 0..bytes.len() - 256 {
            for value in [0, 1, 0x7f, 0xff] {
                let mut wrong = bytes.clone();
                wrong[at] = value;
                if let Ok(gguf) = open(&wrong) {
                    let end = |tensor: &GgufTensor| tensor.offset as usize + tensor.bytes;
                    assert!(gguf.tensors.iter().all(|tensor| end(tensor) <= bytes.len()));
                }
            }
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let good = small();
        // The type stands before the offset, which stands before the padding and the data.
        let name = good.windows(9).rposition(|bytes| bytes == [1, 0, 0, 0, 0, 0, 0, 0, b'w']).unwrap();
        let kind = name + 9 + 4 + 16;
        let spoil = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            open(&bytes).unwrap_err()
        };
        for (at, value, expected) in [
            (kind, 99, "tensor w: its type, 99"),
            (kind + 4, 1, "no multiple of 32"),
            (kind + 5, 1, "cut off"),
            (name + 9, 9, "9 dimensions"),
            (4, 9, "version 9"),
            (15, 1, "number of tensors"),
            (23, 1, "number of keys"),
        ] {
            let reason = spoil(at, value);
            assert!(reason.contains(expected), "{at}: {reason}");
        }
    }
}
