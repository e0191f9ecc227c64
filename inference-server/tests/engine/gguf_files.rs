//! GGUF files for the tests, byte for byte those of `models/make_gguf_goldens.py`.

use std::path::Path;

use polylink_kernels::Dtype;
use sha2::{Digest, Sha256};

/// ggml's number and name of a type.
pub const TYPES: [(&str, u32, Dtype); 8] = [
    ("F32", 0, Dtype::F32),
    ("F16", 1, Dtype::F16),
    ("Q4_0", 2, Dtype::Q4_0),
    ("Q8_0", 8, Dtype::Q8_0),
    ("Q4_K", 12, Dtype::Q4K),
    ("Q5_K", 13, Dtype::Q5K),
    ("Q6_K", 14, Dtype::Q6K),
    ("BF16", 30, Dtype::Bf16),
];

fn kind(name: &str) -> (u32, Dtype) {
    let (_, number, dtype) = TYPES.iter().find(|(own, ..)| *own == name).unwrap();
    (*number, *dtype)
}

/// A value of the metadata.
#[derive(Clone)]
pub enum Value {
    Flag(bool),
    Number(u32),
    Float(f32),
    Text(String),
    Numbers(Vec<i32>),
    Floats(Vec<f32>),
    Texts(Vec<String>),
}

/// `(name, type, shape)`.
pub type Tensors = Vec<(String, &'static str, Vec<usize>)>;
pub type Pairs = Vec<(String, Value)>;

/// splitmix64 from the FNV-1a of the name; its words, little-endian, one after the other.
fn random_bytes(name: &str, count: usize) -> Vec<u8> {
    let fnv = |state: u64, byte: u8| (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let mut state = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    });
    words.flat_map(u64::to_le_bytes).take(count).collect()
}

/// Random values of about a sixteenth; norms lie in 1 to 1.125, RoPE factors in 2 to 4.
fn tensor(name: &str, dtype: Dtype, shape: &[usize]) -> Vec<u8> {
    let mut data = random_bytes(name, dtype.bytes(shape).unwrap());
    let pairs = |data: &mut Vec<u8>, mask: u16, set: u16| {
        for word in data.as_chunks_mut::<2>().0 {
            *word = (u16::from_le_bytes(*word) & mask | set).to_le_bytes();
        }
    };
    let scales: &[(usize, u16)] = match dtype {
        Dtype::F32 => {
            let (mask, set) = match name {
                _ if name.contains("norm") => (0xf_ffff, 127 << 23),
                _ if name.contains("rope") => (0x7f_ffff, 128 << 23),
                _ => (0x807f_ffff, 122 << 23),
            };
            for word in data.as_chunks_mut::<4>().0 {
                *word = (u32::from_le_bytes(*word) & mask | set).to_le_bytes();
            }
            &[]
        }
        Dtype::F16 => {
            pairs(&mut data, 0x83ff, 10 << 10);
            &[]
        }
        Dtype::Bf16 => {
            pairs(&mut data, 0x807f, 122 << 7);
            &[]
        }
        Dtype::Q8_0 => {
            data.iter_mut().filter(|byte| **byte == 0x80).for_each(|byte| *byte = 0);
            &[(0, 10)]
        }
        Dtype::Q4_0 => &[(0, 6)],
        Dtype::Q4K => &[(0, 12), (2, 9)],
        Dtype::Q5K => &[(0, 13), (2, 9)],
        Dtype::Q6K => &[(208, 14)],
        Dtype::Fp8 => unreachable!("no type of a GGUF"),
    };
    for block in data.chunks_exact_mut(dtype.block().1) {
        for &(at, power) in scales {
            let bits = (15 - power) << 10 | u16::from(block[at]) << 2;
            block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
        }
    }
    data
}

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes()[..], value.as_bytes()].concat()
}

fn list<T>(kind: u32, values: &[T], one: impl Fn(&T) -> Vec<u8>) -> Vec<u8> {
    let head = [&9u32.to_le_bytes()[..], &kind.to_le_bytes(), &(values.len() as u64).to_le_bytes()].concat();
    values.iter().fold(head, |bytes, value| [bytes, one(value)].concat())
}

fn value(value: &Value) -> Vec<u8> {
    let one = |kind: u32, bytes: &[u8]| [&kind.to_le_bytes()[..], bytes].concat();
    match value {
        Value::Flag(flag) => one(7, &[u8::from(*flag)]),
        Value::Number(number) => one(4, &number.to_le_bytes()),
        Value::Float(number) => one(6, &number.to_le_bytes()),
        Value::Text(value) => one(8, &text(value)),
        Value::Numbers(values) => list(5, values, |value| value.to_le_bytes().to_vec()),
        Value::Floats(values) => list(6, values, |value| value.to_le_bytes().to_vec()),
        Value::Texts(values) => list(8, values, |value| text(value)),
    }
}

/// Writes a GGUF; returns its SHA-256.
pub fn write(file: &Path, pairs: &Pairs, tensors: &Tensors) -> String {
    let mut out = [&b"GGUF"[..], &3u32.to_le_bytes()].concat();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((pairs.len() as u64).to_le_bytes());
    for (key, own) in pairs {
        out.extend(text(key));
        out.extend(value(own));
    }
    let mut data = Vec::new();
    for (name, own, shape) in tensors {
        let (number, dtype) = kind(own);
        out.extend(text(name));
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&n| out.extend((n as u64).to_le_bytes()));
        out.extend(number.to_le_bytes());
        out.extend((data.len() as u64).to_le_bytes());
        data.extend(tensor(name, dtype, shape));
        data.resize(data.len().next_multiple_of(32), 0);
    }
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    std::fs::write(file, &out).unwrap();
    hex::encode(Sha256::digest(&out))
}

/// GPT-2's characters for the 256 bytes.
pub fn byte_texts() -> Vec<String> {
    let plain = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut next = 255;
    let texts = (0..256).map(|byte| {
        next += u32::from(!plain(byte));
        char::from_u32(if plain(byte) { byte } else { next }).unwrap().to_string()
    });
    texts.collect()
}

pub const HIDDEN: usize = 256;
pub const LAYERS: usize = 2;
pub const HEADS: usize = 4;
pub const KV_HEADS: usize = 2;
pub const HEAD_DIM: usize = 64;
pub const MLP: usize = 512;
pub const VOCABULARY: usize = 272;

/// The metadata of the goldens' model.
pub fn llama_pairs(arch: &str) -> Pairs {
    let number = |value: usize| Value::Number(value as u32);
    let own = std::iter::once("ab".into()).chain((0..15).map(|i| format!("<|{i}|>")));
    let tokens = byte_texts().into_iter().chain(own).collect();
    let types = (0..VOCABULARY).map(|id| if id < 257 { 1 } else { 3 }).collect();
    [
        ("general.architecture".to_owned(), Value::Text(arch.into())),
        (format!("{arch}.context_length"), number(128)),
        (format!("{arch}.embedding_length"), number(HIDDEN)),
        (format!("{arch}.block_count"), number(LAYERS)),
        (format!("{arch}.feed_forward_length"), number(MLP)),
        (format!("{arch}.attention.head_count"), number(HEADS)),
        (format!("{arch}.attention.head_count_kv"), number(KV_HEADS)),
        (format!("{arch}.attention.layer_norm_rms_epsilon"), Value::Float(1e-5)),
        (format!("{arch}.rope.freq_base"), Value::Float(10_000.0)),
        ("tokenizer.ggml.model".into(), Value::Text("gpt2".into())),
        ("tokenizer.ggml.pre".into(), Value::Text("gpt-2".into())),
        ("tokenizer.ggml.tokens".into(), Value::Texts(tokens)),
        ("tokenizer.ggml.token_type".into(), Value::Numbers(types)),
        ("tokenizer.ggml.merges".into(), Value::Texts(vec!["a b".into()])),
        ("tokenizer.ggml.eos_token_id".into(), number(258)),
        ("tokenizer.ggml.bos_token_id".into(), number(257)),
    ]
    .into()
}

/// Its tensors, of one type, or (`mixed`) some of them finer.
pub fn llama_tensors(kind: &'static str, mixed: bool) -> Tensors {
    let finer = if mixed { "Q6_K" } else { kind };
    let mut all: Tensors = vec![
        ("token_embd.weight".into(), kind, vec![VOCABULARY, HIDDEN]),
        ("output.weight".into(), finer, vec![VOCABULARY, HIDDEN]),
        ("output_norm.weight".into(), "F32", vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        let own = [
            ("attn_norm", "F32", vec![HIDDEN]),
            ("attn_q", kind, vec![HEADS * HEAD_DIM, HIDDEN]),
            ("attn_k", kind, vec![KV_HEADS * HEAD_DIM, HIDDEN]),
            ("attn_v", finer, vec![KV_HEADS * HEAD_DIM, HIDDEN]),
            ("attn_output", kind, vec![HIDDEN, HEADS * HEAD_DIM]),
            ("ffn_norm", "F32", vec![HIDDEN]),
            ("ffn_gate", kind, vec![MLP, HIDDEN]),
            ("ffn_up", kind, vec![MLP, HIDDEN]),
            ("ffn_down", finer, vec![HIDDEN, MLP]),
        ];
        all.extend(own.map(|(name, kind, shape)| (format!("blk.{layer}.{name}.weight"), kind, shape)));
    }
    all
}
