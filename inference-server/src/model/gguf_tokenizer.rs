//! A GGUF's tokenizer as the `tokenizer.json` that says the same, its template and its named tokens.
//!
//! Two kinds: byte-level BPE (`gpt2`) with merges and a pre-tokenizer that goes by its name (`tokenizer.ggml.pre`), and
//! SentencePiece's BPE (`llama`) with scores and byte tokens. What is built agrees with llama.cpp on token ids
//! (`models/make_gguf_goldens.py`); a pre-tokenizer that is not known is refused by its name, never guessed.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use super::error::ModelError;
use super::gguf::Gguf;

/// What `tokenizer.ggml.token_type` calls a token.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const BYTE: i64 = 6;

/// Control tokens that end an answer whatever `eos` is, as llama.cpp knows them by their texts.
const END_TEXTS: [&str; 7] =
    ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>"];

const CONTRACTIONS: &str = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])";
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";

/// How a named pre-tokenizer cuts texts: one pattern after the other, each within the pieces of those before.
struct Cuts {
    patterns: Vec<String>,
    /// Pieces that are tokens are taken whole.
    ignore_merges: bool,
    /// The sequence begins with BOS unless the file says otherwise.
    bos: bool,
}

fn cuts(name: &str) -> Option<Cuts> {
    // Words, then up to `digits` digits, then the rest.
    let words = |digits: &str| {
        format!(
            r"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
    // Words by their capitals, then digits, then the rest.
    let cased = |suffix: &str, digits: &str| {
        let (upper, lower) = (r"((?=[\p{L}])([^a-z]))", r"((?=[\p{L}])([^A-Z]))");
        format!(
            r"[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+{suffix}|[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*{suffix}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
    let plain = |patterns: Vec<String>| Some(Cuts { patterns, ignore_merges: false, bos: false });
    let whole = |pattern: String| Some(Cuts { patterns: vec![pattern], ignore_merges: true, bos: true });
    match name {
        "llama3" | "llama-v3" | "llama-bpe" => whole(words(r"\p{N}{1,3}")),
        "tekken" => whole(cased("", r"\p{N}")),
        "qwen2" | "deepseek-r1-qwen" | "stablelm2" => plain(vec![words(r"\p{N}")]),
        "dbrx" | "smaug-bpe" => plain(vec![words(r"\p{N}{1,3}")]),
        "gpt-4o" | "llama4" => plain(vec![cased(&format!("{CONTRACTIONS}?"), r"\p{N}{1,3}")]),
        "gpt-2" | "phi-2" | "olmo" => plain(vec![GPT2.into()]),
        "smollm" | "starcoder" | "refact" | "command-r" => plain(vec![r"\p{N}".into(), GPT2.into()]),
        "default" => {
            plain(vec![r"[\p{P}\$\+<=>\^~\|]+".into(), GPT2.into(), r"\p{N}+".into(), "[0-9][0-9][0-9]".into()])
        }
        _ => None,
    }
}

/// What a file says of texts and tokens.
pub(super) struct GgufTokenizer {
    /// As `tokenizer.json`.
    pub json: Value,
    pub chat_template: Option<String>,
    /// Texts of BOS and EOS, for the template.
    pub bos: String,
    pub eos: String,
    /// Tokens that end an answer.
    pub end_tokens: Vec<u32>,
}

fn wrong(key: &str, reason: impl Into<String>) -> ModelError {
    ModelError::Metadata { key: format!("tokenizer.{key}"), reason: reason.into() }
}

impl GgufTokenizer {
    pub(super) fn parse(gguf: &Gguf) -> Result<Self, ModelError> {
        Metadata(&gguf.metadata).tokenizer()
    }
}

/// The pairs, by keys that start with `tokenizer.`.
struct Metadata<'a>(&'a BTreeMap<String, Value>);

impl<'a> Metadata<'a> {
    fn get(&self, key: &str) -> &'a Value {
        static NONE: Value = Value::Null;
        self.0.get(&format!("tokenizer.{key}")).unwrap_or(&NONE)
    }

    fn flag(&self, key: &str, missing: bool) -> Result<bool, ModelError> {
        let value = self.get(key);
        if value.is_null() {
            Ok(missing)
        } else {
            value.as_bool().ok_or_else(|| wrong(key, "true or false is expected"))
        }
    }

    /// A token that is named by its id.
    fn token(&self, key: &str, count: usize) -> Result<Option<u32>, ModelError> {
        let value = self.get(key);
        if value.is_null() {
            return Ok(None);
        }
        let id = value.as_u64().filter(|id| (*id as usize) < count).and_then(|id| u32::try_from(id).ok());
        id.map(Some).ok_or_else(|| wrong(key, format!("{value} is none of {count} tokens")))
    }

    /// One value per token.
    fn list<T>(&self, key: &str, of: impl Fn(&'a Value) -> Option<T>) -> Result<Option<Vec<T>>, ModelError> {
        match self.get(key) {
            Value::Null => Ok(None),
            value => {
                let values = value.as_array().and_then(|values| values.iter().map(of).collect());
                values.map(Some).ok_or_else(|| wrong(key, "a list is expected, of texts or numbers"))
            }
        }
    }

    fn tokenizer(&self) -> Result<GgufTokenizer, ModelError> {
        let tokens = self.list("ggml.tokens", Value::as_str)?.ok_or_else(|| wrong("ggml.tokens", "it is missing"))?;
        let types = self.list("ggml.token_type", Value::as_i64)?.unwrap_or_else(|| vec![NORMAL; tokens.len()]);
        if types.len() != tokens.len() {
            return Err(wrong("ggml.token_type", format!("{} types for {} tokens", types.len(), tokens.len())));
        }
        let vocabulary = Vocabulary::new(&tokens, &types)?;
        let (bos, eos) =
            (self.token("ggml.bos_token_id", tokens.len())?, self.token("ggml.eos_token_id", tokens.len())?);
        let (mut json, add_bos) = match self.get("ggml.model").as_str() {
            Some("gpt2") => self.byte_level(&vocabulary)?,
            Some("llama") => (self.sentence_piece(&vocabulary)?, true),
            other => {
                let found = other.unwrap_or("nothing");
                return Err(wrong("ggml.model", format!("gpt2 and llama are built, {found} was found")));
            }
        };
        json["version"] = "1.0".into();
        json["added_tokens"] = vocabulary.added();
        let add_bos = self.flag("ggml.add_bos_token", add_bos)?;
        if let Some(bos) = bos.filter(|_| add_bos) {
            json["post_processor"] = starting_with(bos, tokens[bos as usize]);
        }
        let named = |id: Option<u32>| id.map_or(String::new(), |id| tokens[id as usize].to_owned());
        let mut end_tokens: Vec<u32> =
            [eos, self.token("ggml.eot_token_id", tokens.len())?].into_iter().flatten().collect();
        end_tokens.extend(END_TEXTS.iter().filter_map(|text| vocabulary.special(text)));
        end_tokens.sort_unstable();
        end_tokens.dedup();
        Ok(GgufTokenizer {
            json,
            chat_template: self.get("chat_template").as_str().map(str::to_owned),
            bos: named(bos),
            eos: named(eos),
            end_tokens,
        })
    }

    /// GPT-2's kind, and whether it begins with BOS by itself.
    fn byte_level(&self, vocabulary: &Vocabulary<'_>) -> Result<(Value, bool), ModelError> {
        let name = self.get("ggml.pre").as_str().unwrap_or("default");
        let cuts = cuts(name).ok_or_else(|| wrong("ggml.pre", format!("pre-tokenizer {name} is not built")))?;
        let merges = self.list("ggml.merges", Value::as_str)?.ok_or_else(|| wrong("ggml.merges", "it is missing"))?;
        let pairs: Option<Vec<[&str; 2]>> =
            merges.iter().map(|merge| merge.split_once(' ').map(|(left, right)| [left, right])).collect();
        let pairs = pairs.ok_or_else(|| wrong("ggml.merges", "two tokens with a space between are expected"))?;
        let split = |pattern: &String| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
        let mut steps: Vec<Value> = cuts.patterns.iter().map(split).collect();
        let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
        steps.push(bytes.clone());
        let json = json!({
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": steps },
            "decoder": bytes,
            "model": {
                "type": "BPE",
                "vocab": vocabulary.ids(),
                "merges": pairs,
                "ignore_merges": cuts.ignore_merges,
            },
        });
        Ok((json, cuts.bos))
    }

    /// SentencePiece's kind: merges are all ways to put a token together of two, by its score.
    fn sentence_piece(&self, vocabulary: &Vocabulary<'_>) -> Result<Value, ModelError> {
        let tokens = &vocabulary.tokens;
        let scores = self.list("ggml.scores", Value::as_f64)?.ok_or_else(|| wrong("ggml.scores", "it is missing"))?;
        if scores.len() != tokens.len() {
            return Err(wrong("ggml.scores", format!("{} scores for {} tokens", scores.len(), tokens.len())));
        }
        let normal = |id: u32| matches!(vocabulary.types[id as usize], NORMAL | USER_DEFINED);
        let ids: HashMap<&str, u32> =
            tokens.iter().zip(0u32..).filter(|(_, id)| normal(*id)).map(|(token, id)| (*token, id)).collect();
        let mut merges = Vec::new();
        for (token, id) in tokens.iter().zip(0u32..).filter(|(_, id)| normal(*id)) {
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                if let (Some(&first), Some(&second)) = (ids.get(left), ids.get(right)) {
                    merges.push((scores[id as usize], first, second, [left, right]));
                }
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let merges: Vec<[&str; 2]> = merges.into_iter().map(|(.., pair)| pair).collect();
        let prefix = self.flag("ggml.add_space_prefix", true)?;
        let replace = |from: &str, to: &str| json!({ "type": "Replace", "pattern": { "String": from }, "content": to });
        let mut normalizers = vec![replace(" ", "▁")];
        let mut decoders = vec![replace("▁", " "), json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })];
        if prefix {
            normalizers.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        let unknown = vocabulary.types.iter().position(|kind| *kind == UNKNOWN).map(|id| tokens[id]);
        Ok(json!({
            "normalizer": { "type": "Sequence", "normalizers": normalizers },
            "decoder": { "type": "Sequence", "decoders": decoders },
            "model": {
                "type": "BPE",
                "vocab": vocabulary.ids(),
                "merges": merges,
                "byte_fallback": vocabulary.types.contains(&BYTE),
                "fuse_unk": true,
                "unk_token": unknown,
            },
        }))
    }
}

/// Texts and types of all tokens; their ids are their places.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    types: &'a [i64],
}

impl<'a> Vocabulary<'a> {
    fn new(tokens: &[&'a str], types: &'a [i64]) -> Result<Self, ModelError> {
        let mut seen = HashMap::new();
        for (token, id) in tokens.iter().zip(0u32..) {
            if let Some(first) = seen.insert(*token, id) {
                return Err(wrong("ggml.tokens", format!("tokens {first} and {id} have the same text {token:?}")));
            }
        }
        Ok(Self { tokens: tokens.to_vec(), types })
    }

    fn ids(&self) -> BTreeMap<&str, u32> {
        self.tokens.iter().copied().zip(0..).collect()
    }

    /// A control token of this text.
    fn special(&self, text: &str) -> Option<u32> {
        let at = self.tokens.iter().position(|token| *token == text)?;
        (self.types[at] == CONTROL).then_some(at as u32)
    }

    /// Tokens that are found in texts as they are: control tokens where special texts count, those of the user anywhere.
    fn added(&self) -> Value {
        let all = self.tokens.iter().zip(self.types).zip(0u32..);
        let added =
            all.filter(|((token, kind), _)| matches!(**kind, UNKNOWN | CONTROL | USER_DEFINED) && !token.is_empty());
        added
            .map(|((token, kind), id)| {
                json!({
                    "id": id, "content": token, "special": *kind != USER_DEFINED,
                    "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                })
            })
            .collect()
    }
}

/// A post-processor that puts one token before the text.
fn starting_with(id: u32, token: &str) -> Value {
    let (own, text) =
        (json!({ "SpecialToken": { "id": token, "type_id": 0 } }), json!({ "Sequence": { "id": "A", "type_id": 0 } }));
    json!({
        "type": "TemplateProcessing",
        "single": [own, text],
        "pair": [own, text, { "Sequence": { "id": "B", "type_id": 1 } }],
        "special_tokens": { token: { "id": token, "ids": [id], "tokens": [token] } },
    })
}
