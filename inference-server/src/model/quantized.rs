//! Quantised folders: fp8 with scales, handed on in blocks; and 4-bit integers as GPTQ and AWQ lay them out, expanded to f32
//! when read.
//!
//! `quantization_config` of `config.json` names the method. What a matrix `[n, k]` is stored as:
//!
//! * **fp8** (`fp8`, `compressed-tensors` of floats): `weight` in E4M3, its scale `weight_scale` (one, or one per output)
//!   or `weight_scale_inv` (one per tile, 128 × 128 unless `weight_block_size` says otherwise): `w = fp8 × scale`;
//! * **GPTQ**: `qweight` `[k / 8, n]`, eight inputs a word, the first lowest; `qzeros` `[groups, n / 8]`, eight outputs a
//!   word, each less by one (not in `gptq_v2`); `scales` `[groups, n]`; `g_idx` `[k]`, an input's group (without it, equal
//!   runs): `w = (q − zero) × scale`;
//! * **AWQ** (`gemm`): `qweight` `[k, n / 8]`, `qzeros` `[groups, n / 8]`, the outputs of a word in the order 0 2 4 6 1 3 5
//!   7; `scales` `[groups, n]`; groups are equal runs of inputs: `w = (q − zero) × scale`.
//!
//! Tensors that are not quantised lie beside them as in any folder. Products are computed with the expanded values, all the same
//! bits; scales of activations are not used. fp8 whose inputs, and whose tiles', are multiples of 128 is read as [`Dtype::Fp8`]
//! (an embedding is not: it is no product's); all else takes 4 bytes a value in f32 and 2 in bf16.

use std::collections::BTreeMap;

use polylink_kernels::Dtype;
use polylink_protocol::exact_math::{bf16_to_f32, e4m3_to_f32, f16_to_f32};
use safetensors::Dtype as Stored;
use serde_json::Value;

use super::error::ModelError;
use super::safetensors::RawTensor;
use super::weights::{Reading, TensorPlace};

/// Outputs of the nibbles of a word, lowest first.
const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
/// Values of a word.
const WORD: usize = 8;

/// How a folder is quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    /// Sizes of a tile that has a scale of its own, outputs × inputs.
    Fp8 {
        tile: [usize; 2],
    },
    /// What is added to the zeros.
    Gptq {
        zero_offset: i32,
        group: Option<usize>,
    },
    Awq,
}

/// One tensor's parts, and how they make a matrix.
#[derive(Clone, Debug)]
pub(super) struct Expansion {
    scheme: Scheme,
    /// fp8: weight, scale; else qweight, qzeros, scales and perhaps g_idx.
    pub(super) parts: Vec<RawTensor>,
}

fn wrong(field: &str, reason: String) -> ModelError {
    ModelError::Config { field: format!("quantization_config.{field}"), reason }
}

impl Scheme {
    /// What `config.json` says; None for a folder that is not quantised.
    pub(super) fn parse(config: &Value) -> Result<Option<Self>, ModelError> {
        let config = &config["quantization_config"];
        if config.is_null() {
            return Ok(None);
        }
        let bits = || match config["bits"].as_u64() {
            Some(4) => Ok(()),
            _ => Err(wrong("bits", format!("4 are built, {} was found", config["bits"]))),
        };
        match config["quant_method"].as_str().unwrap_or("(none named)") {
            "gptq" => {
                bits()?;
                let second = matches!(config["checkpoint_format"].as_str(), Some("gptq_v2"));
                let group = config["group_size"].as_u64().filter(|size| *size > 0).map(|size| size as usize);
                Ok(Some(Scheme::Gptq { zero_offset: if second { 0 } else { 1 }, group }))
            }
            "awq" => {
                bits()?;
                match config["version"].as_str().unwrap_or("gemm") {
                    version if version.eq_ignore_ascii_case("gemm") => Ok(Some(Scheme::Awq)),
                    other => Err(wrong("version", format!("gemm is built, {other} was found"))),
                }
            }
            "fp8" => {
                let tile = &config["weight_block_size"];
                let side =
                    |i: usize| tile[i].as_u64().filter(|side| (1..=65_536).contains(side)).map(|side| side as usize);
                match (tile.is_null(), side(0), side(1)) {
                    (true, ..) => Ok(Some(Scheme::Fp8 { tile: [128, 128] })),
                    (false, Some(n), Some(k)) => Ok(Some(Scheme::Fp8 { tile: [n, k] })),
                    _ => Err(wrong("weight_block_size", format!("two sizes are expected, {tile} was found"))),
                }
            }
            "compressed-tensors" if config["format"] == "float-quantized" => Ok(Some(Scheme::Fp8 { tile: [128, 128] })),
            other => {
                let known = "fp8, gptq, awq and compressed-tensors of float-quantized are built";
                Err(wrong("quant_method", format!("{known}, {other} was found")))
            }
        }
    }

    /// As profiles name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Scheme::Fp8 { .. } => "fp8",
            Scheme::Gptq { .. } => "gptq",
            Scheme::Awq => "awq",
        }
    }

    /// Takes the quantised tensors out of a folder's and gives the matrices that they make.
    pub(super) fn matrices(
        self,
        tensors: &mut BTreeMap<String, RawTensor>,
    ) -> Result<BTreeMap<String, TensorPlace>, ModelError> {
        let ending = if matches!(self, Scheme::Fp8 { .. }) { ".weight" } else { ".qweight" };
        let is_quantised = |tensor: &RawTensor| ending == ".qweight" || tensor.dtype == Stored::F8_E4M3;
        let names: Vec<String> = tensors
            .iter()
            .filter(|(name, tensor)| name.ends_with(ending) && is_quantised(tensor))
            .filter_map(|(name, _)| name.strip_suffix(ending).map(str::to_owned))
            .collect();
        let mut matrices = BTreeMap::new();
        for name in names {
            let place = self.matrix(&name, tensors)?;
            matrices.insert(format!("{name}.weight"), place);
        }
        // Static scales of activations: products here take the activations as they are.
        tensors.retain(|name, _| !name.ends_with(".input_scale"));
        Ok(matrices)
    }

    fn matrix(self, name: &str, tensors: &mut BTreeMap<String, RawTensor>) -> Result<TensorPlace, ModelError> {
        let mut take = |part: &str| tensors.remove(&format!("{name}.{part}"));
        let missing =
            |part: &str| refuse(&format!("{name}.{part}"), "it is missing beside the quantised weight".into());
        let (parts, [n, k]) = match self {
            Scheme::Fp8 { .. } => {
                let weight = take("weight").ok_or_else(|| missing("weight"))?;
                let scale = take("weight_scale_inv").or_else(|| take("weight_scale"));
                let shape = two(&format!("{name}.weight"), &weight.shape)?;
                (vec![weight, scale.ok_or_else(|| missing("weight_scale"))?], shape)
            }
            _ => {
                let own = ["qweight", "qzeros", "scales"].map(|part| take(part).ok_or_else(|| missing(part)));
                let mut parts = own.into_iter().collect::<Result<Vec<_>, _>>()?;
                parts.extend(take("g_idx"));
                let [a, b] = two(&format!("{name}.qweight"), &parts[0].shape)?;
                let sizes =
                    if self == Scheme::Awq { [b.checked_mul(WORD), Some(a)] } else { [Some(b), a.checked_mul(WORD)] };
                let [Some(n), Some(k)] = sizes else {
                    return Err(refuse(name, "its sizes overflow".into()));
                };
                (parts, [n, k])
            }
        };
        let expansion = Expansion { scheme: self, parts };
        expansion.check(name, n, k)?;
        let dtype = if expansion.in_blocks(k) && !name.ends_with("embed_tokens") { Dtype::Fp8 } else { Dtype::F32 };
        let bytes = dtype.bytes(&[n, k]).ok_or_else(|| refuse(name, "its sizes overflow".into()))?;
        Ok(TensorPlace {
            shard: expansion.parts[0].shard,
            offset: expansion.parts[0].offset,
            bytes,
            shape: vec![n, k],
            dtype,
            reading: Reading::Expanded(Box::new(expansion)),
        })
    }
}

fn refuse(tensor: &str, reason: String) -> ModelError {
    ModelError::Tensor { tensor: tensor.into(), reason }
}

fn two(tensor: &str, shape: &[usize]) -> Result<[usize; 2], ModelError> {
    <[usize; 2]>::try_from(shape).map_err(|_| refuse(tensor, format!("it has shape {shape:?}, a matrix is expected")))
}

/// Floats of a small tensor.
fn floats(dtype: Stored, bytes: &[u8]) -> Vec<f32> {
    let half = |b: &[u8; 2]| u16::from_le_bytes(*b);
    match dtype {
        Stored::F16 => bytes.as_chunks().0.iter().map(|b| f16_to_f32(half(b))).collect(),
        Stored::BF16 => bytes.as_chunks().0.iter().map(|b| bf16_to_f32(half(b))).collect(),
        _ => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    }
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

impl Expansion {
    /// Checks the parts' shapes and types.
    fn check(&self, name: &str, n: usize, k: usize) -> Result<(), ModelError> {
        let part_names: &[&str] = match self.scheme {
            Scheme::Fp8 { .. } => &["weight", "weight_scale"],
            _ => &["qweight", "qzeros", "scales", "g_idx"],
        };
        let is_float = |dtype| matches!(dtype, Stored::F32 | Stored::F16 | Stored::BF16);
        for (part, part_name) in self.parts.iter().zip(part_names) {
            let (shape, dtype) = (&part.shape[..], part.dtype);
            let groups = self.parts.get(2).and_then(|scales| scales.shape.first().copied()).unwrap_or(0);
            let good = match (self.scheme, *part_name) {
                (Scheme::Fp8 { .. }, "weight") => dtype == Stored::F8_E4M3,
                (Scheme::Fp8 { tile }, _) => {
                    let tiles = [n.div_ceil(tile[0]), k.div_ceil(tile[1])];
                    is_float(dtype)
                        && (shape.is_empty() || shape == [1] || shape == [n] || shape == [n, 1] || shape == tiles)
                }
                (_, "scales") => is_float(dtype) && shape == [groups, n] && groups > 0 && groups <= k,
                (_, "qzeros") => dtype == Stored::I32 && n.is_multiple_of(WORD) && shape == [groups, n / WORD],
                (_, "g_idx") => dtype == Stored::I32 && shape == [k],
                _ => dtype == Stored::I32,
            };
            if !good {
                let reason = format!("shape {shape:?} of {dtype:?} does not fit a matrix {:?}", [n, k]);
                return Err(refuse(&format!("{name}.{part_name}"), reason));
            }
        }
        let groups = self.parts.get(2).map_or(1, |scales| scales.shape[0]);
        match self.scheme {
            Scheme::Gptq { group: Some(group), .. } if self.parts.len() == 3 && k.div_ceil(group) != groups => {
                Err(refuse(name, format!("{groups} groups of {group} inputs do not make {k}")))
            }
            Scheme::Awq if !k.is_multiple_of(groups) => {
                Err(refuse(name, format!("{k} inputs are not {groups} equal groups")))
            }
            _ => Ok(()),
        }
    }

    /// The matrix `[n, k]`, f32, from the bytes of the parts.
    ///
    /// # Errors
    /// [`ModelError::Tensor`] for an input of a group that is not there.
    pub(super) fn expand(&self, name: &str, k: usize, parts: &[Vec<u8>], out: &mut [u8]) -> Result<(), ModelError> {
        let matrix = match self.scheme {
            Scheme::Fp8 { tile } => self.fp8(tile, k, parts),
            Scheme::Gptq { zero_offset, group } => self.gptq(name, zero_offset, group, k, parts)?,
            Scheme::Awq => self.awq(k, parts),
        };
        let rows = out.len() / (4 * k).max(1);
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(rows.div_ceil(64)).max(1);
        let share = rows.div_ceil(threads).max(1);
        std::thread::scope(|scope| {
            for (number, rows) in out.chunks_mut(share * 4 * k).enumerate() {
                let matrix = &matrix;
                scope.spawn(move || {
                    for (row, values) in rows.chunks_exact_mut(4 * k).enumerate() {
                        for (i, value) in values.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                            *value = matrix(number * share + row, i).to_le_bytes();
                        }
                    }
                });
            }
        });
        Ok(())
    }

    /// Of fp8: outputs and inputs that have a scale in common, and scales of an output.
    fn fp8_tiles(&self, tile: [usize; 2], k: usize) -> (usize, usize, usize) {
        let (shape, outputs) = (&self.parts[1].shape, self.parts[0].shape[0]);
        match shape.iter().product::<usize>() {
            1 => (usize::MAX, usize::MAX, 0),
            count if count == outputs && (shape.len() == 1 || shape[1] == 1) => (1, usize::MAX, 1),
            _ => (tile[0], tile[1], k.div_ceil(tile[1])),
        }
    }

    fn fp8<'a>(&self, tile: [usize; 2], k: usize, parts: &'a [Vec<u8>]) -> Element<'a> {
        let scales = floats(self.parts[1].dtype, &parts[1]);
        let table: Vec<f32> = (0..=255).map(e4m3_to_f32).collect();
        let (high, wide, row) = self.fp8_tiles(tile, k);
        Box::new(move |n, i| table[usize::from(parts[0][n * k + i])] * scales[n / high * row + i / wide])
    }

    /// Whether [`Expansion::blocks`] can be made of it.
    fn in_blocks(&self, k: usize) -> bool {
        let Scheme::Fp8 { tile } = self.scheme else { return false };
        let (_, wide, _) = self.fp8_tiles(tile, k);
        let block = Dtype::Fp8.block().0;
        k.is_multiple_of(block) && (wide == usize::MAX || wide.is_multiple_of(block))
    }

    /// The matrix `[n, k]` in blocks of e4m3, from the bytes of the parts; [`Expansion::in_blocks`].
    pub(super) fn blocks(&self, k: usize, parts: &[Vec<u8>], out: &mut [u8]) -> Result<(), ModelError> {
        let Scheme::Fp8 { tile } = self.scheme else { return Err(refuse("weight", "it is not of fp8".into())) };
        let (scales, (high, wide, row)) = (floats(self.parts[1].dtype, &parts[1]), self.fp8_tiles(tile, k));
        let (block, bytes) = Dtype::Fp8.block();
        for (index, (out, numbers)) in out.chunks_exact_mut(bytes).zip(parts[0].chunks_exact(block)).enumerate() {
            let (n, i) = (index / (k / block), index % (k / block) * block);
            out[..block].copy_from_slice(numbers);
            out[block..].copy_from_slice(&scales[n / high * row + i / wide].to_le_bytes());
        }
        Ok(())
    }

    fn gptq<'a>(
        &self,
        name: &str,
        zero_offset: i32,
        group: Option<usize>,
        k: usize,
        parts: &'a [Vec<u8>],
    ) -> Result<Element<'a>, ModelError> {
        let (quants, zeros, scales) = (words(&parts[0]), words(&parts[1]), floats(self.parts[2].dtype, &parts[2]));
        let [groups, outputs] = two(name, &self.parts[2].shape)?;
        let group_of: Vec<usize> = match parts.get(3) {
            Some(indices) => words(indices).into_iter().map(|group| group as usize).collect(),
            None => (0..k).map(|i| i / group.unwrap_or(k.div_ceil(groups))).collect(),
        };
        if let Some(bad) = group_of.iter().position(|&group| group >= groups) {
            let reason = format!("input {bad} is of group {}, there are {groups}", group_of[bad]);
            return Err(refuse(&format!("{name}.g_idx"), reason));
        }
        Ok(Box::new(move |n, i| {
            let group = group_of[i];
            let quant = quants[i / WORD * outputs + n] >> (4 * (i % WORD)) & 15;
            let zero = zeros[group * (outputs / WORD) + n / WORD] >> (4 * (n % WORD)) & 15;
            (quant as i32 - (zero as i32 + zero_offset)) as f32 * scales[group * outputs + n]
        }))
    }

    fn awq<'a>(&self, k: usize, parts: &'a [Vec<u8>]) -> Element<'a> {
        let (quants, zeros, scales) = (words(&parts[0]), words(&parts[1]), floats(self.parts[2].dtype, &parts[2]));
        let (groups, outputs) = (self.parts[2].shape[0], self.parts[2].shape[1]);
        let mut shifts = [0; WORD];
        AWQ_ORDER.iter().enumerate().for_each(|(place, &output)| shifts[output] = 4 * place);
        let nibble = move |words: &[u32], row: usize, n: usize| {
            (words[row * (outputs / WORD) + n / WORD] >> shifts[n % WORD] & 15) as i32
        };
        Box::new(move |n, i| {
            let group = i / (k / groups);
            (nibble(&quants, i, n) - nibble(&zeros, group, n)) as f32 * scales[group * outputs + n]
        })
    }
}

/// Element (n, k) of a matrix.
type Element<'a> = Box<dyn Fn(usize, usize) -> f32 + Sync + 'a>;

#[cfg(test)]
mod tests;
