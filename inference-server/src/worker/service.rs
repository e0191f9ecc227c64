//! The worker's HTTP endpoints.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use polylink_protocol::market::request_digest;
use polylink_protocol::transcript::{DisclosureCall, GenerateCall, ReceiptProof, VoucherAck, VoucherCall, WorkerInfo};
use polylink_protocol::{Address, Digest};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Worker;
use super::book::{BeginError, Running, VoucherError};
use super::checks::{Here, ask_in_force, check_call, check_price, check_session, limits};
use super::serving::{Reservation, Serving};
use super::store::StoreError;
use crate::chain::ChainError;
use crate::engine::{GenerateRequest, TextStream};
use crate::http::local::{engine_ready, random_bytes, submit};
use crate::http::metrics::{self, engine_families};
use crate::http::server::{not_found, read_body, wrong_method};
use crate::http::{ApiError, sse};
use crate::journal::JournalError;

/// Bytes of a call: a prompt of half a million tokens in JSON.
const CALL_BYTES_MAX: usize = 4 << 20;

pub(super) fn router(worker: Arc<Worker>) -> Router {
    Router::new()
        .route("/polylink/v1/generate", post(generate))
        .route("/polylink/v1/vouchers", post(voucher))
        .route("/polylink/v1/disclose", post(disclose))
        .route("/polylink/v1/info", get(info))
        .route("/polylink/v1/receipts/{session}/{index}", get(receipt))
        .route("/polylink/v1/proof", get(proof))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics_text))
        .with_state(worker)
        .route("/health", get(crate::http::front::health))
        .route("/version", get(crate::http::front::version))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
}

async fn read<T: DeserializeOwned>(body: Body) -> Result<T, ApiError> {
    let bytes = read_body(body, CALL_BYTES_MAX).await?;
    serde_json::from_slice(&bytes).map_err(|e| {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            "invalid_json",
            format!("the body is not the call that is expected: {e}"),
        )
    })
}

pub(super) fn chain_error(error: ChainError) -> ApiError {
    ApiError::unavailable("chain_unavailable", format!("the worker cannot ask the chain: {error}"))
}

pub(super) fn store_error(error: StoreError) -> ApiError {
    let message = error.to_string();
    let (status, code) = match &error {
        StoreError::Begin(BeginError::IndexUsed(_)) => (StatusCode::CONFLICT, "index_used"),
        StoreError::Begin(BeginError::WindowFull { .. }) => (StatusCode::PAYMENT_REQUIRED, "window_full"),
        StoreError::Begin(BeginError::Funds { .. }) => (StatusCode::PAYMENT_REQUIRED, "insufficient_funds"),
        StoreError::Voucher(VoucherError::Funds { .. }) => (StatusCode::PAYMENT_REQUIRED, "insufficient_funds"),
        StoreError::Voucher(VoucherError::NotUnpaid(_)) => (StatusCode::CONFLICT, "not_unpaid"),
        StoreError::Voucher(_) => (StatusCode::BAD_REQUEST, "invalid_voucher"),
        StoreError::EpochClosed(_) => (StatusCode::CONFLICT, "epoch_closed"),
        StoreError::Journal(JournalError::Busy) => (StatusCode::SERVICE_UNAVAILABLE, "disk_busy"),
        StoreError::Journal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "journal_failed"),
        StoreError::Tree { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "internal_error"),
    };
    ApiError::new(status, code, message)
}

async fn generate(State(worker): State<Arc<Worker>>, body: Body) -> Response {
    let response = match try_generate(&worker, body).await {
        Ok(serving) => sse::response(serving.events()),
        Err(error) => error.into_response(),
    };
    worker.metrics.count("/polylink/v1/generate", response.status().as_u16());
    response
}

async fn try_generate(worker: &Arc<Worker>, body: Body) -> Result<Serving, ApiError> {
    let mut call: GenerateCall = read(body).await?;
    if let Some(voucher) = call.voucher.take() {
        take_voucher(worker, &voucher).await?;
    }
    let context_length = worker.engine.info().context_length;
    let here = Here {
        chain_id: worker.clock.chain_id(),
        operator: &worker.operator,
        profile: &worker.profile_digest,
        context_length,
        private: worker.config.private,
    };
    let request = check_call(&call, &here)?.clone();
    let mut epoch = worker.clock.now().map_err(chain_error)?.epoch;
    if request.epoch > epoch {
        epoch = worker.clock.ask().await.map_err(chain_error)?.epoch;
    }
    // The receipt names the request's epoch of admission, and its pot that epoch's price.
    let epoch_price = worker.sessions.price(&worker.profile_digest, epoch, request.epoch).await.map_err(chain_error)?;
    let epoch_price = epoch_price.ok_or_else(|| store_error(StoreError::EpochClosed(request.epoch)))?;
    let receipt_key = worker.config.receipt_key.public_key();
    let record = worker.record.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    let ask = ask_in_force(&record, request.epoch, &worker.profile_digest, &receipt_key)?;
    let prompt_tokens = call.prompt_token_ids.len();
    let (price, worst) = check_price(&request, &epoch_price, &ask, prompt_tokens, context_length)?;
    let running = Running { request: request_digest(&request), epoch: request.epoch, worst };
    let private = reserve(worker, &call, &request, &here, epoch, running).await?;
    let (session, index) = (request.session, request.index);
    let reservation = Reservation { worker: Arc::clone(worker), session, index, private, kept: false };
    let sampling = request.sampling.clone().unwrap_or_default();
    let seed =
        request.seed.as_slice().try_into().map_err(|_| ApiError::field("request.seed", "32 bytes are expected"))?;
    let (n, stop) = (sampling.n, sampling.stop.clone());
    let generate = GenerateRequest {
        prompt_ids: call.prompt_token_ids.clone(),
        sampling,
        seed,
        tenant: Digest::of(&request.session.to_be_bytes()).0,
        priority: 0,
        logprobs: (call.logprobs > 0).then_some(call.logprobs),
        prompt_logprobs: call.prompt_logprobs,
        grammar: call.grammar.clone(),
    };
    let stream = submit(&worker.engine, generate).await?;
    let text = TextStream::new(stream, Arc::clone(&worker.tokenizer), n, stop);
    Ok(Serving::new(text, call, request, price, random_bytes()?, reservation))
}

/// Reserves the answer in the session's account; what is cached of the session is asked for again before a refusal. Returns
/// whether the session is private.
async fn reserve(
    worker: &Worker,
    call: &GenerateCall,
    request: &polylink_protocol::market_v1::Request,
    here: &Here<'_>,
    epoch: u64,
    running: Running,
) -> Result<bool, ApiError> {
    let mut refused = None;
    for fresh in [false, true] {
        let session = worker.sessions.get(request.session, epoch, fresh).await.map_err(chain_error)?;
        let begun = check_session(call, request, session.as_ref(), here, epoch).and_then(|limits| {
            worker.store.begin(request.session, request.index, running.clone(), limits).map_err(store_error)
        });
        match begun {
            Ok(()) => return Ok(session.is_some_and(|session| session.private)),
            Err(error) if error.status == StatusCode::PAYMENT_REQUIRED => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(refused.unwrap_or_else(|| ApiError::internal("a session is neither refused nor accepted")))
}

async fn voucher(State(worker): State<Arc<Worker>>, body: Body) -> Result<axum::Json<VoucherAck>, ApiError> {
    let call: VoucherCall = read(body).await?;
    Ok(axum::Json(take_voucher(&worker, &call).await?))
}

async fn take_voucher(worker: &Worker, call: &VoucherCall) -> Result<VoucherAck, ApiError> {
    let voucher =
        call.voucher.voucher.as_ref().ok_or_else(|| ApiError::field("voucher", "the signed voucher is missing"))?;
    let id = voucher.session;
    let mut refused = None;
    for fresh in [false, true] {
        let session = worker.sessions.get(id, 0, fresh).await.map_err(chain_error)?;
        let Some(session) = session.filter(|s| s.payee == worker.operator) else {
            let message = format!("there is no session {id} that pays this worker {}", worker.operator);
            return Err(ApiError::new(StatusCode::PAYMENT_REQUIRED, "no_session", message));
        };
        let limits = limits(&session).map_err(|e| ApiError::internal(format!("session {id} on chain: {e}")))?;
        match worker.store.pay(worker.clock.chain_id(), id, &session.spend_key, limits, call).await {
            Ok((amount, count)) => return Ok(VoucherAck { session: id, amount, count }),
            Err(error @ StoreError::Voucher(VoucherError::Funds { .. })) => refused = Some(store_error(error)),
            Err(error) => return Err(store_error(error)),
        }
    }
    Err(refused.unwrap_or_else(|| ApiError::internal("a voucher is neither refused nor accepted")))
}

async fn disclose(State(worker): State<Arc<Worker>>, body: Body) -> Response {
    let disclosed = async { super::disclose::disclose(&worker, &read::<DisclosureCall>(body).await?).await };
    let response = disclosed.await.map_or_else(ApiError::into_response, |d| axum::Json(d).into_response());
    worker.metrics.count("/polylink/v1/disclose", response.status().as_u16());
    response
}

async fn info(State(worker): State<Arc<Worker>>) -> axum::Json<WorkerInfo> {
    let figures = worker.engine.metrics();
    axum::Json(WorkerInfo {
        operator: worker.operator.clone(),
        receipt_key: worker.config.receipt_key.public_key().to_vec(),
        profile: worker.config.profile.clone(),
        ask: worker.config.ask,
        context_length: worker.engine.info().context_length as u32,
        running: figures.running.load(Ordering::Relaxed),
        waiting: figures.waiting.load(Ordering::Relaxed),
        slots: worker.engine.info().max_running as u64,
    })
}

fn digest(name: &str, text: &str) -> Result<Digest, ApiError> {
    let bytes = hex::decode(text).ok().and_then(|bytes| Digest::from_slice(&bytes));
    bytes.ok_or_else(|| ApiError::field(name, format!("`{name}` is a digest of 64 hexadecimal digits")))
}

#[derive(Deserialize)]
struct ReceiptQuery {
    request: String,
}

async fn receipt(
    State(worker): State<Arc<Worker>>,
    Path((session, index)): Path<(u64, u64)>,
    Query(query): Query<ReceiptQuery>,
) -> Result<Response, ApiError> {
    let request = digest("request", &query.request)?;
    let status = blocking(move || worker.store.status(session, index, &request)).await?;
    Ok(axum::Json(status).into_response())
}

#[derive(Deserialize)]
struct ProofQuery {
    session: u64,
    index: u64,
    receipt: String,
}

async fn proof(State(worker): State<Arc<Worker>>, Query(query): Query<ProofQuery>) -> Result<Response, ApiError> {
    let receipt = digest("receipt", &query.receipt)?;
    let proven = blocking(move || worker.store.proof(query.session, query.index, &receipt)).await?;
    let proven = proven.ok_or_else(|| {
        let message = "the receipt is not in a committed tree of this worker: its epoch's receipts are committed early in the next epoch";
        ApiError::new(StatusCode::NOT_FOUND, "not_committed", message)
    })?;
    Ok(axum::Json(ReceiptProof { path: proven.path, root: proven.root.to_proto() }).into_response())
}

/// Runs something that reads the disk or hashes much away from the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(store_error),
        Err(error) => Err(ApiError::internal(format!("a task of the worker ended: {error}"))),
    }
}

async fn ready(State(worker): State<Arc<Worker>>) -> Response {
    let registered = match &*worker.not_ready.lock().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some(reason) => Err(reason.clone()),
        None => Ok(()),
    };
    let state = registered
        .and_then(|()| engine_ready(&worker.engine))
        .and_then(|()| worker.clock.now().map(drop).map_err(|e| e.to_string()));
    crate::http::front::ready_response(state)
}

async fn metrics_text(State(worker): State<Arc<Worker>>) -> Response {
    metrics::text(worker.metrics.registry(), engine_families(&worker.engine, &worker.config.profile.id))
}

/// An address, or 400 that names the field.
pub(super) fn address(name: &str, text: &str) -> Result<Address, ApiError> {
    text.parse().map_err(|e: polylink_protocol::address::AddressError| ApiError::field(name, e.to_string()))
}
