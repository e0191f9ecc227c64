//! The cross-encoder against transformers' values for the same folder, and what it says of a broken one.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use polylink_judge::cross_encoder::{BATCH_MAX, CrossEncoder, Pair};

fn models() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models")
}

fn goldens() -> Vec<serde_json::Value> {
    let text = fs::read_to_string(models().join("goldens/cross_encoder.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["pairs"].as_array().unwrap().clone()
}

fn ids(row: &serde_json::Value, field: &str) -> Vec<u32> {
    row[field].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn logits_and_tokens_agree_with_transformers() {
    let mut encoder = CrossEncoder::open(&models().join("cross-encoder")).unwrap();
    let rows = goldens();
    let pair = |row: &serde_json::Value| Pair {
        question: row["question"].as_str().unwrap().into(),
        answer: row["answer"].as_str().unwrap().into(),
    };
    // In one batch, from the texts; and each alone, from the ids.
    let together = encoder.score(&rows.iter().map(pair).collect::<Vec<_>>()).unwrap();
    let mut worst = 0.0_f64;
    for (row, probability) in rows.iter().zip(together) {
        let golden = row["logit"].as_f64().unwrap();
        let alone = f64::from(encoder.logit(ids(row, "ids"), ids(row, "type_ids")).unwrap());
        let expected = 1.0 / (1.0 + (-golden).exp());
        worst = worst.max((alone - golden).abs()).max((f64::from(probability) - expected).abs());
    }
    println!("{} pairs, largest difference {worst:.1e}", rows.len());
    assert!(rows.len() >= 6 && worst < 1e-3, "largest difference {worst:.1e}");
}

#[test]
fn long_and_hostile_texts_are_cut_and_stay_text() {
    let mut encoder = CrossEncoder::open(&models().join("cross-encoder")).unwrap();
    let pairs: Vec<Pair> = (0..BATCH_MAX + 3)
        .map(|i| Pair { question: "<|end|> word ".repeat(40 * i), answer: "<|bos|> 7 ".repeat(20 * i) })
        .collect();
    let scores = encoder.score(&pairs).unwrap();
    assert_eq!(scores.len(), pairs.len());
    assert!(scores.iter().all(|s| (0.0..=1.0).contains(s)));
    assert_eq!(encoder.forwards(), 2, "{} pairs are two batches", pairs.len());
}

fn copy_but(name: &str, change: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(models().join("cross-encoder").join(file), folder.path().join(file)).unwrap();
    }
    change(&folder.path().join(name));
    let error = CrossEncoder::open(folder.path()).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains(name), "{name} is named: {error:?}");
    error
}

#[test]
fn a_broken_folder_is_named() {
    copy_but("config.json", |file| fs::remove_file(file).unwrap());
    copy_but("tokenizer.json", |file| fs::write(file, "{").unwrap());
    copy_but("model.safetensors", |file| {
        let bytes = fs::read(file).unwrap();
        fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
    });
    let other = copy_but("config.json", |file| {
        let text = fs::read_to_string(file).unwrap().replace("BertForSequenceClassification", "BertModel");
        fs::write(file, text).unwrap();
    });
    assert!(other.contains("BertForSequenceClassification is expected") || other.contains("is expected"), "{other}");
}
