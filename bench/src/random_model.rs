//! `polylink bench model`: a Hugging Face folder of any Llama shape with random weights, for figures that need no trained
//! model. The same seed gives the same bytes.
//!
//! Speed does not depend on what the weights are, so a model of any size can be made where it is measured, and nothing
//! large travels. The tokenizer is borrowed from another folder; ids beyond its vocabulary have no text.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::BenchError;

/// Sizes of a Llama model, in `config.json`'s terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// `num_hidden_layers`.
    pub layers: usize,
    /// `hidden_size`.
    pub hidden: usize,
    /// `num_attention_heads`.
    pub heads: usize,
    /// `num_key_value_heads`.
    pub kv_heads: usize,
    /// `head_dim`.
    pub head_dim: usize,
    /// `intermediate_size`.
    pub mlp: usize,
    /// `vocab_size`.
    pub vocabulary: usize,
    /// `tie_word_embeddings`.
    pub tied: bool,
    /// `max_position_embeddings`.
    pub positions: usize,
}

/// Shapes by name: sizes of Qwen2.5-0.5B, Llama 3.2 1B and 8B, and a small one whose steps are short.
pub const SHAPES: [(&str, Shape); 4] = [
    ("17m", shape(8, 384, 6, 6, 64, 1024, 4096, false)),
    ("0.5b", shape(24, 896, 14, 2, 64, 4864, 151_936, true)),
    ("1b", shape(16, 2048, 32, 8, 64, 8192, 128_256, true)),
    ("8b", shape(32, 4096, 32, 8, 128, 14_336, 128_256, false)),
];

#[allow(clippy::too_many_arguments)] // a table's row
const fn shape(
    layers: usize,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    mlp: usize,
    vocabulary: usize,
    tied: bool,
) -> Shape {
    Shape { layers, hidden, heads, kv_heads, head_dim, mlp, vocabulary, tied, positions: 32_768 }
}

impl Shape {
    /// The shape of that name.
    ///
    /// # Errors
    /// [`BenchError::Option`] with the names there are.
    pub fn named(name: &str) -> Result<Self, BenchError> {
        SHAPES.iter().find(|(known, _)| *known == name).map(|(_, shape)| *shape).ok_or_else(|| BenchError::Option {
            option: "--shape",
            reason: format!("`{name}` is unknown: {} are there", SHAPES.map(|(known, _)| known).join(", ")),
        })
    }

    /// The sizes in a folder's `config.json`.
    ///
    /// # Errors
    /// [`BenchError::Option`] for a folder without it, or a config without one of the sizes.
    pub fn read(folder: &Path) -> Result<Self, BenchError> {
        let path = folder.join("config.json");
        let wrong = |reason: String| {
            let reason = format!("{}: {reason}", path.display());
            BenchError::Option { option: "--model", reason }
        };
        let text = fs::read(&path).map_err(|e| wrong(e.to_string()))?;
        let config: Value = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
        let size = |name: &str| {
            let found = config[name].as_u64().map(|n| n as usize).filter(|n| *n > 0);
            found.ok_or_else(|| wrong(format!("`{name}` is not a positive number")))
        };
        let (hidden, heads) = (size("hidden_size")?, size("num_attention_heads")?);
        Ok(Self {
            layers: size("num_hidden_layers")?,
            hidden,
            heads,
            kv_heads: size("num_key_value_heads").unwrap_or(heads),
            head_dim: size("head_dim").unwrap_or(hidden / heads),
            mlp: size("intermediate_size")?,
            vocabulary: size("vocab_size")?,
            tied: config["tie_word_embeddings"] == true,
            positions: size("max_position_embeddings")?,
        })
    }

    /// Whether a Llama model can have these sizes.
    ///
    /// # Errors
    /// [`BenchError::Option`] that names the size and what is expected.
    pub fn check(&self) -> Result<(), BenchError> {
        let wrong = |option, reason: &str| Err(BenchError::Option { option, reason: reason.into() });
        let sizes = [self.layers, self.hidden, self.heads, self.kv_heads, self.mlp, self.positions];
        if sizes.iter().any(|size| !(1..=1 << 20).contains(size)) || !(1..=1 << 24).contains(&self.vocabulary) {
            return wrong("--shape", "sizes of at least 1 and at most 2^20 are expected, 2^24 for the vocabulary");
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return wrong("--kv-heads", "a divisor of --heads is expected");
        }
        if !self.head_dim.is_multiple_of(2) || !(2..=512).contains(&self.head_dim) {
            return wrong("--head-dim", "an even number up to 512 is expected");
        }
        Ok(())
    }

    /// Names and shapes of all tensors, in the file's order.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocabulary, self.hidden])];
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: &[usize]| {
                all.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
            };
            add("input_layernorm", &[self.hidden]);
            add("self_attn.q_proj", &[q, self.hidden]);
            add("self_attn.k_proj", &[kv, self.hidden]);
            add("self_attn.v_proj", &[kv, self.hidden]);
            add("self_attn.o_proj", &[self.hidden, q]);
            add("post_attention_layernorm", &[self.hidden]);
            add("mlp.gate_proj", &[self.mlp, self.hidden]);
            add("mlp.up_proj", &[self.mlp, self.hidden]);
            add("mlp.down_proj", &[self.hidden, self.mlp]);
        }
        all.push(("model.norm.weight".into(), vec![self.hidden]));
        if !self.tied {
            all.push(("lm_head.weight".into(), vec![self.vocabulary, self.hidden]));
        }
        all
    }

    /// All parameters.
    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// Parameters that a token is multiplied with: all but an embedding that is only looked up, and the norms.
    pub fn multiplied(&self) -> usize {
        let matrices = self
            .tensors()
            .into_iter()
            .filter(|(name, shape)| shape.len() == 2 && (self.tied || name != "model.embed_tokens.weight"));
        matrices.map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    fn config(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.positions,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10_000.0,
            "tie_word_embeddings": self.tied,
            "hidden_act": "silu",
            "attention_bias": false,
            "mlp_bias": false,
            "torch_dtype": "bfloat16",
            "bos_token_id": 0,
            "eos_token_id": 1,
        })
    }
}

/// bf16 values around 0 with a standard deviation of about 0.02, from a generator of 64 bits (splitmix64).
struct Weights(u64);

impl Weights {
    fn next(&mut self) -> [u8; 2] {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        // The sum of four uniform 16-bit numbers is near enough to normal.
        let sum = (x & 0xffff) + (x >> 16 & 0xffff) + (x >> 32 & 0xffff) + (x >> 48);
        let value = (sum as f32 / 65_536.0 - 2.0) * 0.035;
        ((value.to_bits() >> 16) as u16).to_le_bytes()
    }
}

/// Writes the folder: config, weights (bf16), and the tokenizer's files of `tokenizer`.
///
/// # Errors
/// [`BenchError::Write`] for a file that cannot be written, [`BenchError::Option`] for a folder without tokenizer and
/// for sizes that no model has.
pub fn write(shape: &Shape, seed: u64, tokenizer: &Path, folder: &Path) -> Result<(), BenchError> {
    shape.check()?;
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |source| BenchError::Write { path, source }
    };
    fs::create_dir_all(folder).map_err(failed(folder))?;
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        if !tokenizer.join(name).is_file() {
            let reason = format!("{} has no {name}: a model's folder is expected", tokenizer.display());
            return Err(BenchError::Option { option: "--tokenizer", reason });
        }
        let to = folder.join(name);
        fs::copy(tokenizer.join(name), &to).map_err(failed(&to))?;
    }
    let path = folder.join("model.safetensors");
    let mut file = BufWriter::with_capacity(1 << 20, File::create(&path).map_err(failed(&path))?);
    let mut weights = Weights(seed);
    write_safetensors(&shape.tensors(), &mut weights, &mut file).map_err(failed(&path))?;
    // Last, so that a folder with a config is whole.
    let config = folder.join("config.json");
    let text = serde_json::to_string_pretty(&shape.config()).expect("a config is plain JSON");
    fs::write(&config, text + "\n").map_err(failed(&config))
}

/// The safetensors format: length of the header (u64, little-endian), header (JSON), data.
fn write_safetensors(
    tensors: &[(String, Vec<usize>)],
    weights: &mut Weights,
    file: &mut impl Write,
) -> std::io::Result<()> {
    let mut header = Map::new();
    let mut at = 0;
    for (name, shape) in tensors {
        let bytes = 2 * shape.iter().product::<usize>();
        let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, at + bytes]});
        header.insert(name.clone(), entry);
        at += bytes;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for (_, shape) in tensors {
        let norm = shape.len() == 1;
        for _ in 0..shape.iter().product::<usize>() {
            let value = weights.next();
            // Norms scale by 1, as in a model before training.
            file.write_all(&if norm { [0x80, 0x3f] } else { value })?;
        }
    }
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shapes_have_their_models_sizes() {
        let parameters = |name: &str| Shape::named(name).unwrap().parameters() as f64 / 1e6;
        assert!((parameters("0.5b") - 494.0).abs() < 1.0, "{}", parameters("0.5b"));
        assert!((parameters("8b") - 8030.0).abs() < 5.0, "{}", parameters("8b"));
        assert!((parameters("17m") - 17.0).abs() < 1.0, "{}", parameters("17m"));
        assert!(Shape::named("7b").unwrap_err().to_string().contains("17m, 0.5b"));
    }

    #[test]
    fn a_folder_says_its_sizes_and_wrong_ones_are_named() {
        let folder = std::env::temp_dir().join(format!("polylink-bench-shape-{}", std::process::id()));
        let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("models").join("nano");
        let shape = Shape { positions: 77, ..shape(1, 32, 2, 1, 16, 64, 100, false) };
        write(&shape, 1, &tokenizer, &folder).unwrap();
        assert_eq!(Shape::read(&folder).unwrap(), shape);
        fs::remove_dir_all(&folder).unwrap();
        assert!(Shape::read(&folder).unwrap_err().to_string().contains("config.json"));
        let error = |shape: Shape| shape.check().unwrap_err().to_string();
        assert!(error(Shape { kv_heads: 3, ..shape }).contains("--kv-heads"));
        assert!(error(Shape { head_dim: 15, ..shape }).contains("--head-dim"));
        assert!(error(Shape { layers: 0, ..shape }).contains("--shape"));
    }

    #[test]
    fn a_seed_gives_the_same_bytes_of_the_stated_size() {
        let shape = shape(1, 32, 2, 1, 16, 64, 100, false);
        let file = |seed| {
            let mut bytes = Vec::new();
            write_safetensors(&shape.tensors(), &mut Weights(seed), &mut bytes).unwrap();
            bytes
        };
        let (bytes, header) = (file(1), u64::from_le_bytes(file(1)[..8].try_into().unwrap()) as usize);
        assert_eq!(bytes, file(1));
        assert_ne!(bytes, file(2));
        assert_eq!(bytes.len(), 8 + header + 2 * shape.parameters());
        let parsed: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        assert_eq!(parsed["lm_head.weight"]["shape"], json!([100, 32]));
    }
}
