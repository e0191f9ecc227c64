//! The OpenAI endpoints over an [`Answerer`].

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use prometheus::proto::MetricFamily;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::answer::{AnswerEvent, Chunks, Shape, Whole};
use super::echo::Echo;
use super::error::ApiError;
use super::local::TextModel;
use super::metrics::HttpMetrics;
use super::request::{AnswerRequest, Kind, Prompt};
use super::tools::ToolReader;
use super::{metrics, openapi, server, sse, texts};
use crate::model::Tokenizer;

/// The header that names ignored fields.
const IGNORED_FIELDS: HeaderName = HeaderName::from_static("x-polylink-ignored-fields");
/// Longest value of that header.
const IGNORED_BYTES_MAX: usize = 1_024;

/// Who asks.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// The bearer token, if there is one.
    pub api_key: Option<String>,
}

impl Caller {
    fn of(headers: &HeaderMap) -> Self {
        let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let api_key =
            value.and_then(|v| v.strip_prefix("Bearer ").or(v.strip_prefix("bearer "))).map(|k| k.trim().into());
        Self { api_key }
    }
}

/// An entry of `/v1/models`.
#[derive(Clone, Debug)]
pub struct ModelCard {
    /// What requests name it.
    pub id: String,
    /// Unix time.
    pub created: u64,
    /// Whose it is.
    pub owned_by: String,
    /// Prompt and completion together.
    pub context_length: u32,
    /// Digest, prices, workers…
    pub polylink: Value,
}

/// An answer that has begun.
pub struct Answer {
    /// Such as `chatcmpl-…`.
    pub id: String,
    /// The model's name, as in `/v1/models`.
    pub model: String,
    /// For logprobs.
    pub tokenizer: Arc<Tokenizer>,
    /// The prompt as the model sees it.
    pub prompt_token_ids: Vec<u32>,
    /// Reads calls of tools in a choice's text; `None`: there are none.
    pub tools: Option<ToolReader>,
    /// What happens; dropping it stops the generation.
    pub events: BoxStream<'static, AnswerEvent>,
}

/// What answers: a gateway, or an engine.
pub trait Answerer: Send + Sync + 'static {
    /// Refuses a caller before anything else is looked at.
    fn authorise(&self, caller: &Caller) -> Result<(), ApiError>;
    /// Models that can be asked now.
    fn models(&self) -> BoxFuture<'_, Result<Vec<ModelCard>, ApiError>>;
    /// Begins an answer: when it returns, the answer has begun to arrive.
    fn answer(&self, caller: Caller, request: AnswerRequest) -> BoxFuture<'_, Result<Answer, ApiError>>;
    /// Whether a request would be answered now; else why not.
    fn ready(&self) -> BoxFuture<'_, Result<(), String>>;
    /// The text side of a model by its name.
    fn text_model(&self, name: &str) -> Result<TextModel, ApiError>;
    /// Whether a request's `priority` means anything here.
    fn takes_priority(&self) -> bool {
        false
    }
    /// Further metrics.
    fn families(&self) -> Vec<MetricFamily>;
}

/// What is bounded.
#[derive(Clone, Debug)]
pub struct FrontLimits {
    /// Answers under way at once; more get 429.
    pub answers_max: usize,
    /// Bytes of a body; more get 413.
    pub body_bytes_max: usize,
}

impl Default for FrontLimits {
    fn default() -> Self {
        Self { answers_max: 256, body_bytes_max: server::BODY_BYTES_MAX }
    }
}

/// The endpoints' state.
pub struct Front<A> {
    answerer: Arc<A>,
    limits: FrontLimits,
    places: Arc<Semaphore>,
    metrics: HttpMetrics,
}

/// The router of the OpenAI endpoints, to which a service may add its own.
pub fn router<A: Answerer>(answerer: Arc<A>, limits: FrontLimits, metrics: HttpMetrics) -> Router {
    let places = Arc::new(Semaphore::new(limits.answers_max));
    let front = Arc::new(Front { answerer, limits, places, metrics });
    Router::new()
        .route("/v1/chat/completions", post(chat::<A>))
        .route("/v1/completions", post(completion::<A>))
        .route("/tokenize", post(tokenize::<A>))
        .route("/detokenize", post(detokenize::<A>))
        .route("/v1/models", get(models::<A>))
        .route("/v1/models/{*id}", get(model::<A>))
        .route("/ready", get(ready::<A>))
        .route("/metrics", get(metrics_text::<A>))
        .with_state(front)
        .route("/health", get(health))
        .route("/version", get(version))
        .route("/openapi.json", get(openapi::openapi))
        .fallback(server::not_found)
        .method_not_allowed_fallback(server::wrong_method)
}

pub(crate) async fn health() -> Response {
    axum::Json(json!({"status": "ok"})).into_response()
}

pub(crate) async fn version() -> Response {
    axum::Json(json!({"version": env!("CARGO_PKG_VERSION")})).into_response()
}

/// 200 or 503 with the reason.
pub(crate) fn ready_response(state: Result<(), String>) -> Response {
    match state {
        Ok(()) => axum::Json(json!({"status": "ready"})).into_response(),
        Err(reason) => ApiError::unavailable("not_ready", reason).into_response(),
    }
}

async fn ready<A: Answerer>(State(front): State<Arc<Front<A>>>) -> Response {
    ready_response(front.answerer.ready().await)
}

async fn metrics_text<A: Answerer>(State(front): State<Arc<Front<A>>>) -> Response {
    metrics::text(front.metrics.registry(), front.answerer.families())
}

fn card(model: &ModelCard) -> Value {
    json!({
        "id": model.id, "object": "model", "created": model.created, "owned_by": model.owned_by,
        "max_model_len": model.context_length, "polylink": model.polylink,
    })
}

async fn models<A: Answerer>(State(front): State<Arc<Front<A>>>, headers: HeaderMap) -> Result<Response, ApiError> {
    front.answerer.authorise(&Caller::of(&headers))?;
    let data: Vec<Value> = front.answerer.models().await?.iter().map(card).collect();
    Ok(axum::Json(json!({"object": "list", "data": data})).into_response())
}

async fn model<A: Answerer>(
    State(front): State<Arc<Front<A>>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    front.answerer.authorise(&Caller::of(&headers))?;
    let models = front.answerer.models().await?;
    let found = models.iter().find(|model| model.id == id).ok_or_else(|| unknown_model(&id, &models))?;
    Ok(axum::Json(card(found)).into_response())
}

/// 404 that names the models there are.
pub(crate) fn unknown_model(id: &str, models: &[ModelCard]) -> ApiError {
    let shown: String = id.chars().take(100).collect();
    let known: Vec<&str> = models.iter().take(20).map(|model| model.id.as_str()).collect();
    let message = match known.as_slice() {
        [] => format!("the model `{shown}` is not served, and no other one is at the moment: is a worker running?"),
        known => format!("the model `{shown}` is not served; there are: {}", known.join(", ")),
    };
    let mut error = ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message);
    error.param = Some("model".into());
    error
}

async fn chat<A: Answerer>(State(front): State<Arc<Front<A>>>, headers: HeaderMap, body: Body) -> Response {
    complete(&front, Kind::Chat, &headers, body).await
}

async fn completion<A: Answerer>(State(front): State<Arc<Front<A>>>, headers: HeaderMap, body: Body) -> Response {
    complete(&front, Kind::Completion, &headers, body).await
}

async fn tokenize<A: Answerer>(State(front): State<Arc<Front<A>>>, headers: HeaderMap, body: Body) -> Response {
    text_call(&front, false, &headers, body).await.unwrap_or_else(ApiError::into_response)
}

async fn detokenize<A: Answerer>(State(front): State<Arc<Front<A>>>, headers: HeaderMap, body: Body) -> Response {
    text_call(&front, true, &headers, body).await.unwrap_or_else(ApiError::into_response)
}

async fn text_call<A: Answerer>(
    front: &Front<A>,
    decode: bool,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    front.answerer.authorise(&Caller::of(headers))?;
    let body = server::read_body(body, front.limits.body_bytes_max).await?;
    let (name, call) = texts::read(decode, &body)?;
    let name = match name {
        Some(name) => name,
        None => match front.answerer.models().await?.as_slice() {
            [only] => only.id.clone(),
            _ => return Err(ApiError::field("model", "`model` is missing: name one of GET /v1/models")),
        },
    };
    let text = front.answerer.text_model(&name)?;
    let answered = tokio::task::spawn_blocking(move || texts::answer(&call, &text)).await;
    let object = answered.map_err(|e| ApiError::internal(format!("the tokenizer's task ended: {e}")))??;
    Ok(axum::Json(object).into_response())
}

async fn complete<A: Answerer>(front: &Front<A>, kind: Kind, headers: &HeaderMap, body: Body) -> Response {
    let endpoint = if kind == Kind::Chat { "/v1/chat/completions" } else { "/v1/completions" };
    let response = try_complete(front, kind, headers, body).await.unwrap_or_else(ApiError::into_response);
    front.metrics.count(endpoint, response.status().as_u16());
    response
}

/// A place among the answers under way, given back when it is dropped.
struct Place {
    _permit: OwnedSemaphorePermit,
    active: prometheus::IntGauge,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.active.dec();
    }
}

async fn try_complete<A: Answerer>(
    front: &Front<A>,
    kind: Kind,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let caller = Caller::of(headers);
    front.answerer.authorise(&caller)?;
    let limit = front.limits.answers_max;
    let permit = Arc::clone(&front.places).try_acquire_owned().map_err(|_| {
        let message = format!("{limit} answers are under way, the limit of this service: try again later");
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message)
    })?;
    front.metrics.active.inc();
    let place = Place { _permit: permit, active: front.metrics.active.clone() };
    let body = server::read_body(body, front.limits.body_bytes_max).await?;
    let mut request = AnswerRequest::parse(kind, &body)?;
    if request.priority.is_some() && !front.answerer.takes_priority() {
        request.ignored.push("priority".into());
    }
    let (n, streamed, include_usage) = (request.sampling.n, request.stream, request.include_usage);
    let (logprobs, token_ids) = (request.logprobs, request.return_token_ids);
    let (echo, prompt_logprobs) = (request.echo, request.prompt_logprobs);
    let sent = match &request.prompt {
        Prompt::Text(text) if echo => Some(text.clone()),
        _ => None,
    };
    let ignored = ignored_header(&request.ignored);
    let grammar_field = request.grammar.as_ref().map_or(request.tools.as_ref().map(|_| "tools"), |g| Some(g.field));
    let answer = front.answerer.answer(caller, request).await.map_err(|error| of_grammar(error, grammar_field))?;
    let echo = if echo { Some(echoed(sent, &answer.prompt_token_ids, &answer.tokenizer).await?) } else { None };
    let shape = Shape {
        kind,
        id: answer.id,
        model: answer.model,
        created: unix_seconds(),
        tokenizer: answer.tokenizer,
        logprobs,
        echo,
        prompt_logprobs,
        token_ids,
        include_usage,
        prompt_token_ids: answer.prompt_token_ids,
        tools: answer.tools,
    };
    let mut response = if streamed {
        streamed_response(Chunks::new(shape, n), answer.events, place)
    } else {
        whole_response(Whole::new(shape, n), answer.events).await?
    };
    if let Some(ignored) = ignored {
        response.headers_mut().insert(IGNORED_FIELDS, ignored);
    }
    Ok(response)
}

/// The prompt as it is shown, made away from the async threads.
async fn echoed(sent: Option<String>, ids: &[u32], tokenizer: &Arc<Tokenizer>) -> Result<Echo, ApiError> {
    let (ids, tokenizer) = (ids.to_vec(), Arc::clone(tokenizer));
    let made = tokio::task::spawn_blocking(move || Echo::new(sent, &ids, &tokenizer)).await;
    made.map_err(|e| ApiError::internal(format!("the tokenizer's task ended: {e}")))
}

/// What an engine says of a grammar, said of the field that asked for it.
fn of_grammar(mut error: ApiError, field: Option<&str>) -> ApiError {
    if let (Some(field), Some("grammar")) = (field, error.param.as_deref()) {
        error.message = format!("`{field}` cannot be enforced: {}", error.message.trim_start_matches("grammar: "));
        error.param = Some(field.into());
    }
    error
}

fn ignored_header(names: &[String]) -> Option<HeaderValue> {
    let printable = |name: &String| name.chars().all(|c| c.is_ascii_graphic() && c != ',');
    let mut value = names.iter().filter(|name| printable(name)).cloned().collect::<Vec<_>>().join(", ");
    value.truncate(IGNORED_BYTES_MAX);
    (!names.is_empty()).then(|| HeaderValue::from_str(&value).unwrap_or(HeaderValue::from_static("?")))
}

fn streamed_response(chunks: Chunks, events: BoxStream<'static, AnswerEvent>, place: Place) -> Response {
    let state = (Some(chunks), events, place);
    let bytes = stream::unfold(state, |(chunks, mut events, place)| async move {
        let mut chunks = chunks?;
        let (event, last) = match events.next().await {
            Some(event) => {
                let last = matches!(event, AnswerEvent::Done { .. } | AnswerEvent::Failed(_));
                (event, last)
            }
            // An answerer that ends without a last event has failed.
            None => (AnswerEvent::Failed(ApiError::internal("the answer broke off: ask again")), true),
        };
        let failed = matches!(event, AnswerEvent::Failed(_));
        let mut out: Vec<_> = chunks.take(event).iter().map(sse::event).collect();
        if last && !failed {
            out.push(sse::done());
        }
        let next = (!last).then_some(chunks);
        Some((stream::iter(out), (next, events, place)))
    });
    sse::response(bytes.flatten())
}

async fn whole_response(mut whole: Whole, mut events: BoxStream<'static, AnswerEvent>) -> Result<Response, ApiError> {
    while let Some(event) = events.next().await {
        if let Some(object) = whole.take(event)? {
            return Ok(axum::Json(object).into_response());
        }
    }
    Err(ApiError::internal("the answer broke off: ask again"))
}

/// Seconds since 1970, for `created`.
pub(crate) fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or_default()
}
