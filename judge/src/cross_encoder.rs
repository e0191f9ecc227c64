//! The cross-encoder: (question, answer) to the probability that the answer is good.
//!
//! Pairs are sorted into buckets of like length and run in batches, whichever worker or round they come from. The
//! default model is the one in `models/cross-encoder`; any BERT-family sequence classifier with one label in a Hugging
//! Face folder serves (the paper's is ms-marco-MiniLM-L6-v2).

pub mod bert;

use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use tokenizers::{Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy};

use self::bert::{Bert, Config};
use crate::JudgeError;

/// Most pairs in one forward pass.
pub const BATCH_MAX: usize = 64;
/// Of the question the last, of the answer the first so many tokens are seen.
const QUESTION_TOKENS: usize = 160;
const ANSWER_TOKENS: usize = 80;

/// A question and its answer, as texts.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The user's last message.
    pub question: String,
    /// The answer.
    pub answer: String,
}

/// A loaded cross-encoder.
pub struct CrossEncoder {
    bert: Bert,
    config: Config,
    questions: Tokenizer,
    answers: Tokenizer,
    /// Joins the two, without cutting again.
    joiner: Tokenizer,
    forwards: u64,
}

/// Token ids and segment of a pair.
struct Encoded {
    row: usize,
    ids: Vec<u32>,
    types: Vec<u32>,
}

impl CrossEncoder {
    /// Loads a Hugging Face folder: `config.json`, `tokenizer.json`, `model.safetensors`.
    pub fn open(folder: &Path) -> Result<Self, JudgeError> {
        let wrong = |file: &str, reason: String| JudgeError::Folder { path: folder.join(file), reason };
        let read = |file: &str| fs::read(folder.join(file)).map_err(|e| wrong(file, format!("cannot be read: {e}")));
        let config: Config =
            serde_json::from_slice(&read("config.json")?).map_err(|e| wrong("config.json", e.to_string()))?;
        if !config.architectures.iter().any(|a| a == "BertForSequenceClassification") || config.hidden_act != "gelu" {
            let reason = format!(
                "a BertForSequenceClassification with hidden_act gelu is expected, not {:?} with {}",
                config.architectures, config.hidden_act
            );
            return Err(wrong("config.json", reason));
        }
        if config.num_attention_heads == 0 || !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            return Err(wrong("config.json", "hidden_size must be a multiple of num_attention_heads".into()));
        }
        if config.max_position_embeddings < QUESTION_TOKENS + ANSWER_TOKENS + 3 {
            let needed = QUESTION_TOKENS + ANSWER_TOKENS + 3;
            return Err(wrong("config.json", format!("max_position_embeddings of at least {needed} is expected")));
        }
        let mut joiner =
            Tokenizer::from_bytes(read("tokenizer.json")?).map_err(|e| wrong("tokenizer.json", e.to_string()))?;
        joiner.with_padding(None);
        joiner.with_truncation(None).map_err(|e| wrong("tokenizer.json", e.to_string()))?;
        let cut = |max_length, direction| {
            let mut part = joiner.clone();
            // The texts are users' and models': what looks like a special token in them stays text.
            part.set_encode_special_tokens(true);
            let truncation =
                TruncationParams { max_length, direction, strategy: TruncationStrategy::LongestFirst, stride: 0 };
            part.with_truncation(Some(truncation)).map_err(|e| wrong("tokenizer.json", e.to_string()))?;
            Ok::<_, JudgeError>(part)
        };
        let vb = VarBuilder::from_buffered_safetensors(read("model.safetensors")?, DType::F32, &Device::Cpu)
            .map_err(|e| wrong("model.safetensors", e.to_string()))?;
        let bert = Bert::load(vb, &config).map_err(|e| wrong("model.safetensors", e.to_string()))?;
        let questions = cut(QUESTION_TOKENS, TruncationDirection::Left)?;
        let answers = cut(ANSWER_TOKENS, TruncationDirection::Right)?;
        Ok(Self { bert, config, questions, answers, joiner, forwards: 0 })
    }

    /// Forward passes so far: what tests and metrics see of the batching.
    pub fn forwards(&self) -> u64 {
        self.forwards
    }

    /// The probability of each pair, in their order.
    pub fn score(&mut self, pairs: &[Pair]) -> Result<Vec<f32>, JudgeError> {
        let mut encoded =
            pairs.iter().enumerate().map(|(row, pair)| self.encode(row, pair)).collect::<Result<Vec<_>, _>>()?;
        encoded.sort_by_key(|e| e.ids.len());
        let mut scores = vec![0.0; pairs.len()];
        for batch in encoded.chunks(BATCH_MAX) {
            let logits = self.forward(batch)?;
            for (e, logit) in batch.iter().zip(logits) {
                scores[e.row] = 1.0 / (1.0 + (-logit).exp());
            }
        }
        Ok(scores)
    }

    /// The raw logits of token ids that are encoded already; for tests against other implementations.
    pub fn logit(&mut self, ids: Vec<u32>, types: Vec<u32>) -> Result<f32, JudgeError> {
        Ok(self.forward(&[Encoded { row: 0, ids, types }])?[0])
    }

    fn encode(&self, row: usize, pair: &Pair) -> Result<Encoded, JudgeError> {
        let failed = |e: tokenizers::Error| JudgeError::Compute(candle_core::Error::Msg(format!("tokenizer: {e}")));
        let question = self.questions.encode_fast(pair.question.as_str(), false).map_err(failed)?;
        let answer = self.answers.encode_fast(pair.answer.as_str(), false).map_err(failed)?;
        // The folder's own template joins the two: begin, question, end, answer, end, with types 0 and 1.
        let joined = self.joiner.post_process(question, Some(answer), true).map_err(failed)?;
        Ok(Encoded { row, ids: joined.get_ids().to_vec(), types: joined.get_type_ids().to_vec() })
    }

    fn forward(&mut self, batch: &[Encoded]) -> Result<Vec<f32>, JudgeError> {
        self.forwards += 1;
        let length = batch.iter().map(|e| e.ids.len()).max().unwrap_or_default();
        let shape = (batch.len(), length);
        let fill = |of: fn(&Encoded) -> &[u32], pad: u32| -> Vec<u32> {
            batch
                .iter()
                .flat_map(|e| of(e).iter().copied().chain(std::iter::repeat_n(pad, length - e.ids.len())))
                .collect()
        };
        let mask: Vec<u32> = batch.iter().flat_map(|e| (0..length).map(|i| u32::from(i < e.ids.len()))).collect();
        let ids = Tensor::from_vec(fill(|e| &e.ids, self.config.pad_token_id), shape, &Device::Cpu)?;
        let types = Tensor::from_vec(fill(|e| &e.types, 0), shape, &Device::Cpu)?;
        let mask = Tensor::from_vec(mask, shape, &Device::Cpu)?;
        Ok(self.bert.forward(&ids, &types, &mask)?.to_vec1()?)
    }
}
