//! The engine as everybody else sees it: submit, watch, drain.
//!
//! Everything that can be refused is refused here, on the caller's thread, and everything that a request will ever need
//! (token and block lists, its event queue) is reserved here too, so that the engine's thread allocates nothing for it.

use std::collections::HashMap;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Instant;

use polylink_kernels::{SampleParams, TEMPERATURE_MIN, TOP_LOGPROBS_MAX};
use polylink_protocol::market::grammar_digest;
use tokio::sync::watch;

use super::api::{AdmissionError, CHOICES_MAX, GenerateRequest, end_tokens, sample_params};
use super::config::EngineInfo;
use super::grammar::{GrammarState, Grammars};
use super::metrics::{EngineMetrics, add};
use super::outbox::{Outbox, RequestStream, Room, Signals, outbox};
use super::scheduler::PRIORITY_MAX;
use crate::model::LoadedModel;

/// Whether the engine takes requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineStatus {
    /// Yes.
    Ready,
    /// No: it cannot compute now; the text says why. It tries again by itself.
    Unavailable(String),
    /// No: it finishes what it has and then stops.
    Draining,
    /// No: its thread has ended.
    Stopped,
}

/// An admitted request on its way to the engine's thread.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) prompt: Vec<u32>,
    /// Tokens of one choice at most, prompt included.
    pub(crate) tokens_max: usize,
    pub(crate) min_tokens: usize,
    pub(crate) params: Vec<SampleParams>,
    pub(crate) end_tokens: Vec<u32>,
    pub(crate) logit_bias: Vec<(u32, f32)>,
    pub(crate) logprobs: Option<u32>,
    /// Of every prompt token but the first the logprob, and so many likeliest ones; `None`: of none.
    pub(crate) prompt_logprobs: Option<u32>,
    /// By choice; empty: no grammar.
    pub(crate) grammars: Vec<GrammarState>,
    pub(crate) tenant: [u8; 32],
    pub(crate) priority: i32,
    pub(crate) submitted: Instant,
    pub(crate) outbox: Outbox,
    /// Gives the choices' places back when the job is dropped.
    _places: Places,
}

/// Choices that run or wait, in all and by tenant.
#[derive(Debug, Default)]
struct Live {
    total: usize,
    by_tenant: HashMap<[u8; 32], usize>,
}

/// Places of a request's choices among those that run or wait.
#[derive(Debug)]
struct Places {
    shared: Arc<Shared>,
    tenant: [u8; 32],
    choices: usize,
}

impl Places {
    /// Takes places. When three quarters of all are taken, nobody gets more than an equal part of them: a tenant that
    /// floods the queue leaves others their places in it.
    fn take(shared: &Arc<Shared>, tenant: [u8; 32], choices: usize) -> Result<Self, AdmissionError> {
        let (running, waiting) = (shared.info.max_running, shared.info.max_waiting);
        let places = running + waiting;
        let mut live = shared.live();
        let held = live.by_tenant.get(&tenant).copied().unwrap_or(0);
        let (total, tenants) = (live.total + choices, live.by_tenant.len() + usize::from(held == 0));
        if total > places {
            return Err(AdmissionError::QueueFull { waiting: live.total.saturating_sub(running), limit: waiting });
        }
        let part = places.div_ceil(tenants);
        if 4 * total > 3 * places && held + choices > part {
            return Err(AdmissionError::ShareFull { held, part, tenants });
        }
        live.total = total;
        live.by_tenant.insert(tenant, held + choices);
        Ok(Self { shared: Arc::clone(shared), tenant, choices })
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        let mut live = self.shared.live();
        live.total -= self.choices;
        if let Some(held) = live.by_tenant.get_mut(&self.tenant) {
            *held -= self.choices;
            if *held == 0 {
                live.by_tenant.remove(&self.tenant);
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) info: EngineInfo,
    pub(crate) metrics: EngineMetrics,
    model_end_tokens: Vec<u32>,
    vocabulary: usize,
    grammars: Grammars,
    live: Mutex<Live>,
    /// Requests that are to be looked at.
    pub(crate) signals: Arc<Signals>,
    /// The engine's thread tells its state here.
    pub(crate) status: watch::Sender<EngineStatus>,
}

impl Shared {
    pub(crate) fn new(info: EngineInfo, model: &LoadedModel) -> Self {
        Self {
            info,
            metrics: EngineMetrics::default(),
            model_end_tokens: model.end_tokens().to_vec(),
            vocabulary: model.config().vocab_size,
            grammars: Grammars::of(model),
            live: Mutex::default(),
            signals: Arc::default(),
            status: watch::Sender::new(EngineStatus::Ready),
        }
    }
}

impl Shared {
    fn live(&self) -> MutexGuard<'_, Live> {
        // No code that holds the lock can panic half-way through a change.
        self.live.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// What the engine's thread is told.
#[derive(Debug)]
pub(crate) enum Command {
    Run(Box<Job>),
    /// Finish what there is, then stop.
    Drain,
    /// Stop after this step; what is unfinished fails.
    Stop,
}

/// A running engine. Clones are handles to the same one; it stops when the last one is dropped.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    owner: Arc<Owner>,
}

#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
    commands: SyncSender<Command>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.stop_and_join();
    }
}

impl Owner {
    fn stop_and_join(&self) {
        // The engine's thread may have ended already; then there is nobody to tell.
        let _ = self.commands.send(Command::Stop);
        let thread = self.thread.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the engine's thread panicked");
        }
    }
}

impl EngineHandle {
    pub(crate) fn new(shared: Arc<Shared>, commands: SyncSender<Command>, thread: JoinHandle<()>) -> Self {
        Self { owner: Arc::new(Owner { shared, commands, thread: Mutex::new(Some(thread)) }) }
    }

    /// Takes a request. Never waits; the events come on the stream, and dropping the stream cancels the request. A
    /// request with a grammar takes the milliseconds of compiling it: submit it from a thread that may block.
    ///
    /// # Errors
    /// Why the request is refused; see [`AdmissionError::http_status`].
    pub fn submit(&self, request: GenerateRequest) -> Result<RequestStream, AdmissionError> {
        let shared = &self.owner.shared;
        let result = self.admit(request);
        let counter = if result.is_ok() { &shared.metrics.requests_accepted } else { &shared.metrics.requests_refused };
        add(counter, 1);
        result
    }

    fn admit(&self, request: GenerateRequest) -> Result<RequestStream, AdmissionError> {
        let shared = &self.owner.shared;
        match &*shared.status.borrow() {
            EngineStatus::Ready => {}
            EngineStatus::Unavailable(reason) => return Err(AdmissionError::Unavailable { reason: reason.clone() }),
            EngineStatus::Draining => return Err(AdmissionError::Draining),
            EngineStatus::Stopped => return Err(stopped()),
        }
        check_parameters(&request, shared.vocabulary)?;
        let tokens_max = check_length(&request, &shared.info)?;
        let sampling = &request.sampling;
        let choices = sampling.n.max(1);
        let places = Places::take(shared, request.tenant, choices as usize)?;
        let grammars = self.grammars(&request, choices)?;
        let prompt_tokens = request.prompt_ids.len();
        let room = Room {
            choices: choices as usize,
            tokens: (tokens_max - prompt_tokens, request.logprobs.unwrap_or(0) as usize),
            prompt: request.prompt_logprobs.map_or((0, 0), |top| (prompt_tokens - 1, top as usize)),
        };
        let (outbox, stream) = outbox(room, Arc::clone(&shared.signals));
        let job = Job {
            tokens_max,
            min_tokens: sampling.min_tokens as usize,
            params: (0..choices).map(|choice| sample_params(sampling, &request.seed, choice)).collect(),
            end_tokens: end_tokens(sampling, &shared.model_end_tokens),
            logit_bias: sampling.logit_bias.iter().map(|bias| (bias.token, bias.bias)).collect(),
            logprobs: request.logprobs,
            prompt_logprobs: request.prompt_logprobs,
            grammars,
            tenant: request.tenant,
            priority: request.priority,
            submitted: Instant::now(),
            outbox,
            prompt: request.prompt_ids,
            _places: places,
        };
        match self.owner.commands.try_send(Command::Run(Box::new(job))) {
            Ok(()) => Ok(stream),
            Err(TrySendError::Full(_)) => {
                let (waiting, limit) = (shared.live().total, shared.info.max_waiting);
                Err(AdmissionError::QueueFull { waiting, limit })
            }
            Err(TrySendError::Disconnected(_)) => Err(stopped()),
        }
    }

    /// A grammar's state for each choice.
    fn grammars(&self, request: &GenerateRequest, choices: u32) -> Result<Vec<GrammarState>, AdmissionError> {
        let Some(text) = &request.grammar else { return Ok(vec![]) };
        let compiled = self.owner.shared.grammars.compile(text);
        let first =
            compiled.map_err(|error| AdmissionError::Parameter { field: "grammar", reason: error.to_string() })?;
        let mut states: Vec<GrammarState> = (1..choices).map(|_| first.separate()).collect();
        states.push(first);
        Ok(states)
    }

    /// Sizes and limits.
    pub fn info(&self) -> &EngineInfo {
        &self.owner.shared.info
    }

    /// Live figures.
    pub fn metrics(&self) -> &EngineMetrics {
        &self.owner.shared.metrics
    }

    /// Whether it takes requests now.
    pub fn status(&self) -> EngineStatus {
        self.owner.shared.status.borrow().clone()
    }

    /// Takes no new requests, finishes those there are, and returns when the engine has stopped.
    pub async fn drain(&self) {
        let mut status = self.owner.shared.status.subscribe();
        // Told without waiting; a full queue empties at the next step.
        while let Err(TrySendError::Full(_)) = self.owner.commands.try_send(Command::Drain) {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        // The sender lives in this handle, so the only way to end is the state that is waited for.
        let _ = status.wait_for(|status| *status == EngineStatus::Stopped).await;
    }

    /// Stops after the step under way and waits for the thread; unfinished requests fail with `engine_stopped`.
    pub fn shutdown(&self) {
        self.owner.stop_and_join();
    }
}

fn stopped() -> AdmissionError {
    AdmissionError::Unavailable { reason: "it has stopped: start it again".into() }
}

fn check_parameters(request: &GenerateRequest, vocabulary: usize) -> Result<(), AdmissionError> {
    let wrong = |field, reason: String| Err(AdmissionError::Parameter { field, reason });
    let sampling = &request.sampling;
    if request.prompt_ids.is_empty() {
        return Err(AdmissionError::EmptyPrompt);
    }
    let known = |token: u32| (token as usize) < vocabulary;
    if let Some(token) = request.prompt_ids.iter().find(|token| !known(**token)) {
        return wrong("prompt_ids", format!("token {token} is not in the vocabulary of {vocabulary}"));
    }
    if let Some(bias) = sampling.logit_bias.iter().find(|bias| !known(bias.token)) {
        return wrong("logit_bias", format!("token {} is not in the vocabulary of {vocabulary}", bias.token));
    }
    // Before `min_tokens` a step suppresses them: one that the vocabulary lacks would fail it for everybody.
    if let Some(token) = sampling.stop_token_ids.iter().find(|token| !known(**token)) {
        return wrong("stop_token_ids", format!("token {token} is not in the vocabulary of {vocabulary}"));
    }
    if sampling.logit_bias.iter().any(|bias| !bias.bias.is_finite()) {
        return wrong("logit_bias", "finite values are expected".into());
    }
    if sampling.n > CHOICES_MAX {
        return wrong("n", format!("1 to {CHOICES_MAX} is expected"));
    }
    if !(-PRIORITY_MAX..=PRIORITY_MAX).contains(&request.priority) {
        return wrong("priority", format!("{} to {PRIORITY_MAX} is expected", -PRIORITY_MAX));
    }
    for (field, count) in
        [("logprobs", request.logprobs.unwrap_or(0)), ("prompt_logprobs", request.prompt_logprobs.unwrap_or(0))]
    {
        if count as usize > TOP_LOGPROBS_MAX {
            return wrong(field, format!("0 to {TOP_LOGPROBS_MAX} is expected"));
        }
    }
    let in_range = |x: f32, low: f32, high: f32| x.is_finite() && (low..=high).contains(&x);
    for (field, value, low, high) in [
        ("temperature", sampling.temperature, 0.0, 2.0),
        ("top_p", sampling.top_p, f32::MIN_POSITIVE, 1.0),
        ("min_p", sampling.min_p, 0.0, 1.0),
        ("repetition_penalty", sampling.repetition_penalty, 0.01, 10.0),
        ("presence_penalty", sampling.presence_penalty, -2.0, 2.0),
        ("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0),
    ] {
        if !in_range(value, low, high) {
            return wrong(field, format!("{low} to {high} is expected, {value} was given"));
        }
    }
    if sampling.temperature != 0.0 && sampling.temperature < TEMPERATURE_MIN {
        let reason = format!("0, or {TEMPERATURE_MIN} and more is expected, {} was given", sampling.temperature);
        return wrong("temperature", reason);
    }
    if sampling.grammar_digest != grammar_digest(request.grammar.as_deref()) {
        return wrong("grammar", "the sampling parameters name another grammar by its digest".into());
    }
    Ok(())
}

/// Tokens that one choice may have at most, prompt included.
fn check_length(request: &GenerateRequest, info: &EngineInfo) -> Result<usize, AdmissionError> {
    let prompt_tokens = request.prompt_ids.len();
    let context_length = info.context_length;
    // Where no token is drawn, the prompt may fill the context.
    if prompt_tokens + usize::from(request.sampling.max_tokens > 0) > context_length {
        return Err(AdmissionError::PromptTooLong { prompt_tokens, context_length });
    }
    let tokens_max = prompt_tokens.saturating_add(request.sampling.max_tokens as usize).min(context_length);
    // The last token is given out and never computed, unless it is the prompt's.
    let needed_blocks = (tokens_max - 1).max(prompt_tokens).div_ceil(info.block_tokens);
    if needed_blocks > info.kv_blocks {
        return Err(AdmissionError::NeverFits {
            prompt_tokens,
            max_tokens: tokens_max - prompt_tokens,
            needed_blocks,
            block_tokens: info.block_tokens,
            kv_blocks: info.kv_blocks,
        });
    }
    Ok(tokens_max)
}
