//! Tiny models with made-up weights, written to a folder as a checkpoint of their architecture lies there.
//!
//! The weights come from the generator of `models/make_architecture_goldens.py`, which computed the goldens with the same
//! ones: only names, shapes and recipes are committed.

use std::fs;
use std::path::Path;

use polylink_inference_server::model::{Computation, LoadedModel};
use polylink_protocol::exact_math::{f32_to_bf16, f32_to_f16_saturating};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::support::folder;

/// Type of the tensors in the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FileType {
    F32,
    Bf16,
    F16,
}

/// A golden: a tiny model, and what transformers makes of it.
pub struct Golden {
    pub name: String,
    pub value: Value,
}

/// All goldens, by name.
pub fn goldens() -> Vec<Golden> {
    let mut all: Vec<Golden> = fs::read_dir(folder("goldens/architectures"))
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            Golden { name: path.file_stem().unwrap().to_string_lossy().into_owned(), value }
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// −255..=255 from splitmix64, `index` steps from FNV-1a of the name.
fn integer(name: &str, index: u64) -> i64 {
    let seed = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let mut x = seed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^= x >> 31;
    ((x >> 32) % 511) as i64 - 255
}

impl Golden {
    /// The tokens under a name: `prompt` or `greedy`.
    pub fn tokens(&self, name: &str) -> Vec<u32> {
        self.value[name].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    }

    /// Names and shapes of all tensors, with their recipes (base, bits dropped, exponent).
    fn tensors(&self) -> Vec<(String, Vec<usize>, [i64; 3])> {
        let config = &self.value["config"];
        let count = |field: &str| config[field].as_u64().unwrap_or(1);
        let experts = count("num_experts").max(count("num_local_experts"));
        let mut all = Vec::new();
        for row in self.value["tensors"].as_array().unwrap() {
            let pattern = row[0].as_str().unwrap();
            let shape: Vec<usize> =
                row[1].as_array().unwrap().iter().map(|size| size.as_u64().unwrap() as usize).collect();
            let recipe = [2, 3, 4].map(|i| row[i].as_i64().unwrap());
            for layer in 0..if pattern.contains('*') { count("num_hidden_layers") } else { 1 } {
                for expert in 0..if pattern.contains('@') { experts } else { 1 } {
                    let name = pattern.replace('*', &layer.to_string()).replace('@', &expert.to_string());
                    all.push((name, shape.clone(), recipe));
                }
            }
        }
        all
    }

    /// The model's folder: config, weights of this type, and a tokenizer that knows one word.
    pub fn write(&self, file_type: FileType) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, value: &Value| fs::write(folder.path().join(name), value.to_string()).unwrap();
        write("config.json", &self.value["config"]);
        write("tokenizer_config.json", &json!({}));
        write(
            "tokenizer.json",
            &json!({"version": "1.0", "added_tokens": [],
                "model": {"type": "WordLevel", "vocab": {"word": 0}, "unk_token": "word"}}),
        );
        let (mut header, mut data) = (Map::new(), Vec::new());
        for (name, shape, [base, drop, exponent]) in self.tensors() {
            let start = data.len();
            for index in 0..shape.iter().product::<usize>() as u64 {
                let value = base as f32 + (integer(&name, index) >> drop) as f32 * 2f32.powi(exponent as i32);
                match file_type {
                    FileType::F32 => data.extend(value.to_le_bytes()),
                    FileType::Bf16 => data.extend(f32_to_bf16(value).to_le_bytes()),
                    FileType::F16 => data.extend(f32_to_f16_saturating(value).to_le_bytes()),
                }
            }
            let dtype = format!("{file_type:?}").to_uppercase();
            header.insert(name, json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]}));
        }
        let header = Value::from(header).to_string();
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
        fs::write(folder.path().join("model.safetensors"), file).unwrap();
        folder
    }

    /// Writes and opens it.
    pub fn open(&self, file_type: FileType, computation: impl Into<Computation>) -> LoadedModel {
        // An open model reads its weights when it is loaded: the folder stays until the process ends.
        let folder = self.write(file_type).keep();
        open(&self.name, &folder, computation)
    }
}

/// Opens a folder.
pub fn open(name: &str, folder: &Path, computation: impl Into<Computation>) -> LoadedModel {
    LoadedModel::open(folder, computation).unwrap_or_else(|error| panic!("{name}: {error}"))
}
