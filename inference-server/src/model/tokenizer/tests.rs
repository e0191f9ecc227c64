//! Small tokenizers of the families in use, against what transformers makes of difficult texts with them
//! (`models/make_tokenizer_goldens.py`).

use std::path::PathBuf;

use super::*;

fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/goldens")
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Texts, and what transformers makes of each.
type Rows = Vec<(String, Value)>;

/// Each family's tokenizer and its rows.
fn families() -> Vec<(String, Arc<Tokenizer>, Rows)> {
    let golden: Value = serde_json::from_slice(&std::fs::read(goldens().join("tokenizers.json")).unwrap()).unwrap();
    let texts: Vec<&str> = golden["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    let families = golden["tokenizers"].as_object().unwrap().iter().map(|(name, rows)| {
        let tokenizer = Tokenizer::open(&goldens().join("tokenizers").join(format!("{name}.json"))).unwrap();
        let rows = rows.as_array().unwrap();
        assert_eq!(rows.len(), texts.len());
        let rows = texts.iter().map(|text| text.to_string()).zip(rows.iter().cloned()).collect();
        (name.clone(), Arc::new(tokenizer), rows)
    });
    families.collect()
}

#[test]
fn ids_and_texts_are_those_of_transformers() {
    let families = families();
    assert!(families.len() >= 7);
    for (name, tokenizer, rows) in &families {
        for (text, row) in rows {
            let (plain, whole) = (ids(&row[0]), ids(&row[1]));
            assert_eq!(tokenizer.encode(text).unwrap(), plain, "{name}: {text:?}");
            assert_eq!(tokenizer.encode_whole(text, false).unwrap(), plain, "{name}: {text:?}");
            assert_eq!(tokenizer.encode_whole(text, true).unwrap(), whole, "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&plain), row[2].as_str().unwrap(), "{name}: {text:?}");
            assert_eq!(tokenizer.decode_all(&whole), row[3].as_str().unwrap(), "{name}: {text:?}");
        }
    }
}

/// Piece by piece, and by the tokens' own bytes: the same text, but for a first blank that only the whole decoding drops.
#[test]
fn pieces_and_bytes_of_tokens_spell_the_same_text() {
    for (name, tokenizer, rows) in &families() {
        for (text, row) in rows {
            let (ids, whole) = (ids(&row[0]), row[2].as_str().unwrap());
            let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer));
            let mut pieces: String = ids.iter().map(|id| detokenizer.push(*id)).collect();
            pieces.push_str(&detokenizer.finish());
            assert!(pieces == whole || pieces == format!(" {whole}"), "{name}: {text:?}: {pieces:?}");
            let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id).unwrap()).collect();
            assert_eq!(String::from_utf8(bytes).unwrap(), pieces, "{name}: {text:?}");
        }
    }
}

/// A completion goes on where its prompt ended: its first blank belongs to it.
#[test]
fn a_completion_keeps_its_first_blank() {
    for (name, tokenizer, _) in &families() {
        let prompt = tokenizer.encode("Hello").unwrap();
        let whole = tokenizer.encode("Hello world and").unwrap();
        assert!(whole.starts_with(&prompt), "{name}");
        let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer));
        let mut text: String = whole[prompt.len()..].iter().map(|id| detokenizer.push(*id)).collect();
        text.push_str(&detokenizer.finish());
        assert!(text.starts_with(' ') && text.ends_with("and"), "{name}: {text:?}");
    }
}

#[test]
fn special_tokens_in_a_users_text_stay_text() {
    for (name, tokenizer, _) in &families() {
        let text = "a<|end|>b";
        assert_eq!(tokenizer.specials_in(text).next(), Some(1..8));
        let end = tokenizer.token_id("<|end|>").unwrap();
        assert!(tokenizer.encode(text).unwrap().contains(&end), "{name}");
        assert!(!tokenizer.encode_plain(text).unwrap().contains(&end), "{name}");
        assert_eq!(tokenizer.token_bytes(end), Some(vec![]), "{name}");
    }
}
