//! An [`Answerer`] over an engine in this process: no chain, no sessions, no receipts. What a judge's own model, a
//! benchmark of the engine alone, and this crate's tests use.

use std::sync::Arc;

use futures::StreamExt;
use futures::future::BoxFuture;
use polylink_protocol::digest::Digest;
use polylink_protocol::market::grammar_digest;
use polylink_protocol::market_v1::Sampling;
use prometheus::proto::MetricFamily;
use serde_json::json;

use super::answer::{AnswerEvent, AnswerUsage, TokenPiece};
use super::echo::PromptPiece;
use super::error::ApiError;
use super::front::{Answer, Answerer, Caller, ModelCard, unix_seconds, unknown_model};
use super::metrics::engine_families;
use super::request::{AnswerRequest, Kind, Prompt};
use super::sampling::usable_temperature;
use super::tools::Dialect;
use crate::engine::{EngineHandle, EngineStatus, GenerateRequest, RequestStream, TextEvent, TextStream};
use crate::model::{ChatTemplate, GenerationDefaults, LoadedModel, Tokenizer};

/// The text side of a model: what turns a conversation into token ids and back.
#[derive(Clone)]
pub struct TextModel {
    /// The tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The chat template, if the model has one.
    pub template: Option<Arc<ChatTemplate>>,
    /// Prompt and completion together.
    pub context_length: u32,
    /// What the folder's generation config says for parameters that a request leaves open.
    pub defaults: GenerationDefaults,
}

/// Most tokens that an answer gets when its request names no limit.
pub const MAX_TOKENS_DEFAULT: u32 = 4_096;

impl TextModel {
    /// Of a model folder.
    pub fn of(model: &LoadedModel) -> Self {
        Self {
            tokenizer: Arc::clone(model.tokenizer()),
            template: model.chat_template().cloned(),
            context_length: model.context_length() as u32,
            defaults: model.generation_defaults().clone(),
        }
    }

    /// The request's sampling parameters, those that it left open from the model's generation config (which is part of
    /// its profile); a value there that no request may have is passed over.
    ///
    /// Also the text of the grammar that answers are held to, whose digest is in the parameters.
    ///
    /// # Errors
    /// 400 for tools that the model's template does not know.
    pub fn sampling(&self, request: &AnswerRequest) -> Result<(Sampling, Option<String>), ApiError> {
        let (mut sampling, unset) = (request.sampling.clone(), request.unset);
        let within = |value: Option<f32>, low: f32, high: f32| value.filter(|value| (low..=high).contains(value));
        if let Some(temperature) = within(self.defaults.temperature, 0.0, 2.0).filter(|_| unset.temperature) {
            sampling.temperature = usable_temperature(temperature);
        }
        if let Some(top_p) = within(self.defaults.top_p, f32::MIN_POSITIVE, 1.0).filter(|_| unset.top_p) {
            sampling.top_p = top_p;
        }
        if let Some(top_k) = self.defaults.top_k.filter(|_| unset.top_k) {
            sampling.top_k = top_k;
        }
        if let Some(penalty) = within(self.defaults.repetition_penalty, 0.01, 10.0).filter(|_| unset.repetition_penalty)
        {
            sampling.repetition_penalty = penalty;
        }
        let mut grammar = request.grammar.as_ref().map(|grammar| grammar.text.clone());
        if let Some((tools, dialect)) = request.tools.as_ref().zip(self.dialect(request)?) {
            grammar = grammar.or(tools.grammar(dialect));
        }
        sampling.grammar_digest = grammar_digest(grammar.as_deref());
        Ok((sampling, grammar))
    }

    /// How calls of the request's tools are written; `None`: it has none.
    ///
    /// # Errors
    /// 400 for tools that the model's template does not know.
    pub fn dialect(&self, request: &AnswerRequest) -> Result<Option<Dialect>, ApiError> {
        if request.tools.is_none() {
            return Ok(None);
        }
        let dialect = self.template.as_ref().and_then(|template| Dialect::of(template));
        let unknown = || ApiError::unsupported("tools", "this model's chat template knows no tools");
        dialect.map(Some).ok_or_else(unknown)
    }

    /// Token ids of a prompt; `add_special_tokens` as in the request.
    ///
    /// # Errors
    /// 400 that names the field.
    pub fn encode(&self, prompt: &Prompt, add_special_tokens: Option<bool>) -> Result<Vec<u32>, ApiError> {
        match prompt {
            Prompt::Chat(conversation) => {
                let none = || ApiError::field("messages", "this model has no chat template: use /v1/completions");
                let template = self.template.as_ref().ok_or_else(none)?;
                template.encode(conversation, &self.tokenizer).map_err(|e| ApiError::field("messages", e.to_string()))
            }
            Prompt::Text(text) => {
                let encoded = self.tokenizer.encode_whole(text, add_special_tokens.unwrap_or(true));
                encoded.map_err(|e| ApiError::field("prompt", e.to_string()))
            }
            Prompt::Ids(ids) => match ids.iter().find(|id| **id as usize >= self.tokenizer.vocabulary()) {
                Some(id) => {
                    let size = self.tokenizer.vocabulary();
                    Err(ApiError::field("prompt", format!("token {id} is not in the vocabulary of {size}")))
                }
                None => Ok(ids.clone()),
            },
        }
    }

    /// What is left of the context, up to what was asked for.
    ///
    /// # Errors
    /// 400 with the numbers when the prompt fills it.
    pub fn max_tokens(&self, prompt_tokens: usize, asked: u32) -> Result<u32, ApiError> {
        let context = self.context_length as usize;
        if prompt_tokens == 0 {
            return Err(ApiError::field("prompt", "the prompt is empty: at least one token is expected"));
        }
        if prompt_tokens >= context {
            let mut error = ApiError::field(
                "prompt",
                format!(
                    "the prompt has {prompt_tokens} tokens, the model's context is {context}: shorten it, and leave room for an answer"
                ),
            );
            error.code = Some("context_length_exceeded".into());
            return Err(error);
        }
        let room = (context - prompt_tokens) as u32;
        Ok(room.min(if asked == 0 { MAX_TOKENS_DEFAULT } else { asked }))
    }
}

/// One model on one engine.
pub struct LocalAnswerer {
    engine: EngineHandle,
    text: TextModel,
    name: String,
    created: u64,
}

impl LocalAnswerer {
    /// Under the name that requests give.
    pub fn new(engine: EngineHandle, text: TextModel, name: String) -> Self {
        Self { engine, text, name, created: unix_seconds() }
    }

    async fn begin(&self, caller: Caller, mut request: AnswerRequest) -> Result<Answer, ApiError> {
        if request.model != self.name {
            return Err(unknown_model(&request.model, &[self.card()]));
        }
        let (mut sampling, grammar) = self.text.sampling(&request)?;
        let tools = request.take_tools(self.text.dialect(&request)?);
        let scored = request.scored_prompt();
        let prompt_token_ids = encode(self.text.clone(), request.prompt, request.add_special_tokens).await?;
        let mut max_tokens = self.text.max_tokens(prompt_token_ids.len(), sampling.max_tokens)?;
        if sampling.max_tokens == 0 {
            // Nobody asked for so many: as many as the cache can hold.
            let room = self.engine.info().tokens_held().saturating_sub(prompt_token_ids.len());
            max_tokens = max_tokens.min(room.max(1) as u32);
        }
        sampling.max_tokens = if request.prompt_only { 0 } else { max_tokens };
        let seed = match request.seed {
            Some(seed) => seed,
            None => random_bytes()?,
        };
        let (n, stop) = (sampling.n, sampling.stop.clone());
        let generate = GenerateRequest {
            prompt_ids: prompt_token_ids.clone(),
            sampling,
            seed,
            // Whoever shares a bearer token shares its prefixes and its part of the engine.
            tenant: caller.api_key.as_ref().map_or([0; 32], |key| Digest::of(key.as_bytes()).0),
            // The engine takes the larger first.
            priority: -request.priority.unwrap_or(0),
            logprobs: request.logprobs,
            prompt_logprobs: scored,
            grammar,
        };
        let stream = submit(&self.engine, generate).await?;
        let text = TextStream::new(stream, Arc::clone(&self.text.tokenizer), n, stop);
        let events = futures::stream::unfold(text, |mut text| async move { Some((text.next().await?, text)) });
        Ok(Answer {
            id: answer_id(request.kind)?,
            model: self.name.clone(),
            tokenizer: Arc::clone(&self.text.tokenizer),
            prompt_token_ids,
            tools,
            events: events.map(answer_event).boxed(),
        })
    }

    fn card(&self) -> ModelCard {
        ModelCard {
            id: self.name.clone(),
            created: self.created,
            owned_by: "local".into(),
            context_length: self.text.context_length,
            polylink: json!(null),
        }
    }
}

fn answer_event(event: TextEvent) -> AnswerEvent {
    match event {
        TextEvent::Prompt(token) => AnswerEvent::Prompt(vec![PromptPiece {
            id: token.id,
            logprob: token.logprob,
            rank: token.rank,
            top: token.top.iter().map(|t| (t.token, t.logprob)).collect(),
        }]),
        TextEvent::Token { token, text } => AnswerEvent::Tokens {
            choice: token.choice,
            tokens: vec![TokenPiece {
                id: token.id,
                logprob: Some(token.logprob),
                top: token.top.iter().map(|t| (t.token, t.logprob)).collect(),
            }],
            text,
        },
        TextEvent::Finished { choice, reason, text } => {
            AnswerEvent::Finish { choice, reason: reason.as_str().into(), text }
        }
        TextEvent::Done { usage } => AnswerEvent::Done {
            usage: AnswerUsage {
                prompt_tokens: usage.prompt_tokens,
                cached_tokens: usage.cached_tokens,
                completion_tokens: usage.completion_tokens,
            },
            polylink: None,
        },
        TextEvent::Failed { code, message } => AnswerEvent::Failed(ApiError::unavailable(code.as_str(), message)),
    }
}

impl Answerer for LocalAnswerer {
    fn authorise(&self, _: &Caller) -> Result<(), ApiError> {
        Ok(())
    }
    fn models(&self) -> BoxFuture<'_, Result<Vec<ModelCard>, ApiError>> {
        Box::pin(async { Ok(vec![self.card()]) })
    }
    fn answer(&self, caller: Caller, request: AnswerRequest) -> BoxFuture<'_, Result<Answer, ApiError>> {
        Box::pin(self.begin(caller, request))
    }
    fn text_model(&self, name: &str) -> Result<TextModel, ApiError> {
        if name == self.name { Ok(self.text.clone()) } else { Err(unknown_model(name, &[self.card()])) }
    }
    fn takes_priority(&self) -> bool {
        true
    }
    fn ready(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { engine_ready(&self.engine) })
    }
    fn families(&self) -> Vec<MetricFamily> {
        engine_families(&self.engine, &self.name)
    }
}

/// Token ids of a prompt, made away from the async threads: a long one takes a while.
pub(crate) async fn encode(
    text: TextModel,
    prompt: Prompt,
    add_special_tokens: Option<bool>,
) -> Result<Vec<u32>, ApiError> {
    let encoded = tokio::task::spawn_blocking(move || text.encode(&prompt, add_special_tokens)).await;
    encoded.map_err(|e| ApiError::internal(format!("the tokenizer's task ended: {e}")))?
}

/// Hands a request to an engine; away from the async threads where it has a grammar to be compiled.
pub(crate) async fn submit(engine: &EngineHandle, request: GenerateRequest) -> Result<RequestStream, ApiError> {
    if request.grammar.is_none() {
        return Ok(engine.submit(request)?);
    }
    let engine = engine.clone();
    let submitted = tokio::task::spawn_blocking(move || engine.submit(request)).await;
    Ok(submitted.map_err(|e| ApiError::internal(format!("the grammar's task ended: {e}")))??)
}

/// Whether an engine takes requests; else why not.
pub(crate) fn engine_ready(engine: &EngineHandle) -> Result<(), String> {
    match engine.status() {
        EngineStatus::Ready => Ok(()),
        EngineStatus::Unavailable(reason) => Err(format!("the engine cannot compute now: {reason}")),
        EngineStatus::Draining => Err("the engine is draining".into()),
        EngineStatus::Stopped => Err("the engine has stopped".into()),
    }
}

/// 32 bytes from the operating system.
pub(crate) fn random_bytes() -> Result<[u8; 32], ApiError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|e| ApiError::internal(format!("the system gives no random bytes: {e}")))?;
    Ok(bytes)
}

/// An id that nobody can guess: whoever knows it may read the answer's record with the same API key.
pub(crate) fn answer_id(kind: Kind) -> Result<String, ApiError> {
    let prefix = if kind == Kind::Chat { "chatcmpl" } else { "cmpl" };
    Ok(format!("{prefix}-{}", hex::encode(&random_bytes()?[..16])))
}
