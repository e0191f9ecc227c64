//! `polylink chat`: one question or a conversation, through the gateway, or with a worker directly: then this program
//! renders, tokenises, signs, verifies and pays as a gateway would.

use clap::Args;
use futures::StreamExt;
use serde_json::{Value, json};
use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use polylink_inference_server::chain::ChainClock;
use polylink_inference_server::client::text::ChoiceText;
use polylink_inference_server::client::{Ask, Payer, PayerConfig, UpstreamEvent, WorkerRef};
use polylink_inference_server::model::{ChatMessage, Precision};
use polylink_protocol::client::ChainClient;
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market::profile_digest;
use polylink_protocol::market_v1::Sampling;
use polylink_protocol::transcript::{AnswerRecord, WorkerInfo};
use polylink_protocol::{Address, Amount, Digest};

use crate::chain::{RpcArgs, parse_amount};
use crate::error::CliError;
use crate::files;
use crate::home::Home;
use crate::keys::{Keyring, Kind, random_bytes};
use crate::models;

/// Turns of one conversation.
const TURNS_MAX: usize = 200;

/// `polylink chat`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  polylink chat 'How many days are in a week?'
  polylink chat                                       a conversation; an empty line ends it
  polylink chat --worker http://127.0.0.1:8101 --key user --receipt r.json 'What is 2 plus 3?'
                                                      no gateway: opens a session, signs, verifies, pays")]
pub struct ChatArgs {
    /// The question; without it a conversation is read from standard input
    question: Option<String>,
    /// Base URL up to /v1 [default: the local gateway]
    #[arg(long, env = "POLYLINK_ENDPOINT")]
    endpoint: Option<String>,
    /// Bearer key [default: the local network's]
    #[arg(long, env = "POLYLINK_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Model's name [default: the local network's]
    #[arg(long)]
    model: Option<String>,
    /// Completion tokens at most
    #[arg(long, default_value_t = 128)]
    max_tokens: u32,
    /// 0 is greedy
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Integer seed
    #[arg(long)]
    seed: Option<u64>,
    /// Ask this worker directly
    #[arg(long, conflicts_with_all = ["endpoint", "api_key"])]
    worker: Option<String>,
    /// With --worker: account of the keyring that opens the session
    #[arg(long, default_value = "user", requires = "worker")]
    key: String,
    /// With --worker: deposit of the session
    #[arg(long, value_parser = parse_amount, default_value = "10plk")]
    deposit: Amount,
    /// With --worker: in a private session, which no judge sees and none audits
    #[arg(long, requires = "worker")]
    private: bool,
    /// With --worker: folder of the model's tokenizer and template, or the name of one in ./models
    #[arg(long, default_value = "nano")]
    tokenizer: String,
    /// With --worker: where the receipt of the last answer is stored
    #[arg(long, requires = "worker")]
    receipt: Option<std::path::PathBuf>,
    #[command(flatten)]
    rpc: RpcArgs,
}

/// Who answers.
enum Answerer {
    Gateway { http: reqwest::Client, endpoint: String, api_key: String, model: String },
    Worker(Box<Direct>),
}

struct Direct {
    payer: Arc<Payer>,
    chain: ChainClient,
    operator: Address,
    profile: Digest,
    url: String,
    model: polylink_inference_server::model::LoadedModel,
}

fn show(text: &str) {
    print!("{text}");
    // A closed standard output shows itself with the next print.
    let _shown = std::io::stdout().flush();
}

/// Runs `polylink chat`.
pub async fn run(args: &ChatArgs, home: &Path) -> Result<(), CliError> {
    let answerer = answerer(args, home).await?;
    let mut messages = Vec::new();
    if let Some(question) = &args.question {
        messages.push(ChatMessage::new("user", question.clone()));
        answer(&answerer, args, &messages).await?;
    } else {
        let mut lines = std::io::stdin().lock().lines();
        for _ in 0..TURNS_MAX {
            show("> ");
            let Some(Ok(line)) = lines.next() else { break };
            if line.trim().is_empty() {
                break;
            }
            messages.push(ChatMessage::new("user", line));
            let content = answer(&answerer, args, &messages).await?;
            messages.push(ChatMessage::new("assistant", content));
        }
    }
    Ok(())
}

/// Waits until the worker has acknowledged the voucher; what is late is paid at the next start.
async fn pay(payer: &Payer, session: u64) {
    for _ in 0..100 {
        if payer.store().book(session).is_settled() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    eprintln!("[the worker has not acknowledged the voucher yet; it is sent again with the next question]");
}

async fn answerer(args: &ChatArgs, home: &Path) -> Result<Answerer, CliError> {
    if let Some(url) = &args.worker {
        return direct(args, url, home).await.map(|d| Answerer::Worker(Box::new(d)));
    }
    let network = Home::new(home)?.read_network()?;
    let missing = |what: &str| CliError::value(what, "give it, or start a local network with `polylink up`");
    let endpoint = match (&args.endpoint, &network) {
        (Some(endpoint), _) => endpoint.clone(),
        (None, Some(network)) => network.endpoint()?,
        (None, None) => return Err(missing("--endpoint")),
    };
    let local = |pick: fn(&crate::home::Network) -> String| network.as_ref().map(pick);
    let api_key = args.api_key.clone().or_else(|| local(|n| n.api_key.clone())).unwrap_or_default();
    let model = args.model.clone().or_else(|| local(|n| n.model.clone())).ok_or_else(|| missing("--model"))?;
    Ok(Answerer::Gateway { http: reqwest::Client::new(), endpoint, api_key, model })
}

async fn direct(args: &ChatArgs, url: &str, home: &Path) -> Result<Direct, CliError> {
    let wrong = |e: &dyn std::fmt::Display| CliError::role("chat", e);
    let url = url.trim_end_matches('/');
    let chain = args.rpc.client(home)?;
    let ring = Keyring::new(home);
    let spend = format!("{}-chat-spend", args.key);
    ring.ensure(&spend, Kind::Service)?;
    let config = PayerConfig {
        account: ring.account(&args.key)?,
        spend_key: ServiceKey::from_bytes(&ring.service_secret(&spend)?),
        deposit: args.deposit,
        window: 8,
        expiry_epochs: 1_000,
        private: args.private,
        journal: Home::new(home)?.service(&format!("chat-{}", args.key)),
    };
    let clock = ChainClock::start(Arc::new(chain.clone())).await;
    let payer = Payer::open(config, clock).map_err(|e| wrong(&e))?;
    // What an earlier conversation has left: an interrupted answer is owed as far as it was sent.
    payer.settle_older().await.map_err(|e| wrong(&e))?;
    let info: WorkerInfo = payer.http().get(&format!("{url}/polylink/v1/info")).await.map_err(|e| wrong(&e))?;
    let profile = profile_digest(&info.profile);
    // What a worker says of itself counts for nothing: keys and prices are the chain's.
    let operator = info.operator.parse().map_err(|e| CliError::value("the worker's operator", e))?;
    let (model, _) = models::open(&models::resolve(&args.tokenizer), Precision::F32, None)?;
    let direct = Direct { payer, chain, operator, profile, url: url.to_owned(), model };
    // Said now, not after the first question.
    worker(&direct).await?;
    Ok(direct)
}

/// The worker by its records on chain as they stand: key and price hold by epoch.
async fn worker(direct: &Direct) -> Result<WorkerRef, CliError> {
    let record = direct.chain.worker(&direct.operator).await?;
    let missing = || CliError::role("chat", format!("{} is no worker of this chain", direct.operator));
    let model = direct.chain.model(&direct.profile).await?.unwrap_or_default();
    let worker = WorkerRef::new(&record.ok_or_else(missing)?, &direct.profile, &model);
    Ok(WorkerRef { endpoint: direct.url.clone(), ..worker })
}

async fn answer(answerer: &Answerer, args: &ChatArgs, messages: &[ChatMessage]) -> Result<String, CliError> {
    match answerer {
        Answerer::Gateway { http, endpoint, api_key, model } => {
            let url = format!("{}/chat/completions", endpoint.trim_end_matches('/'));
            let mut body = json!({"model": model, "messages": messages, "stream": true, "temperature": args.temperature,
                                  "max_completion_tokens": args.max_tokens});
            if let Some(seed) = args.seed {
                body["seed"] = seed.into();
            }
            let request = http.post(&url).bearer_auth(api_key).json(&body).timeout(Duration::from_secs(300));
            stream(&url, request).await
        }
        Answerer::Worker(direct) => ask_worker(direct, args, messages).await,
    }
}

async fn stream(url: &str, request: reqwest::RequestBuilder) -> Result<String, CliError> {
    let wrong = |e: reqwest::Error| CliError::http(url, e);
    let response = request.send().await.map_err(wrong)?;
    let status = response.status();
    if !status.is_success() {
        return Err(CliError::http(url, format!("HTTP {status}: {}", response.text().await.unwrap_or_default())));
    }
    let (mut bytes, mut buffer, mut whole) = (response.bytes_stream(), Vec::new(), String::new());
    while let Some(chunk) = bytes.next().await {
        buffer.extend_from_slice(&chunk.map_err(wrong)?);
        while let Some(end) = buffer.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let Some(data) = line.trim().strip_prefix("data:").map(str::trim).filter(|d| *d != "[DONE]") else {
                continue;
            };
            let event: Value = serde_json::from_str(data).map_err(|e| CliError::http(url, e))?;
            if let Some(message) = event["error"]["message"].as_str() {
                return Err(CliError::http(url, message));
            }
            let text = event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
            show(text);
            whole.push_str(text);
        }
    }
    println!();
    Ok(whole)
}

async fn ask_worker(direct: &Direct, args: &ChatArgs, messages: &[ChatMessage]) -> Result<String, CliError> {
    let wrong = |e: &dyn std::fmt::Display| CliError::role("chat", e);
    let prompt_token_ids = direct.model.encode_chat(messages).map_err(|e| CliError::value("question", e))?;
    let room = direct.model.context_length().saturating_sub(prompt_token_ids.len());
    if room == 0 {
        return Err(CliError::value(
            "question",
            format!("{} tokens do not fit the model's context", prompt_token_ids.len()),
        ));
    }
    let sampling = Sampling {
        temperature: args.temperature,
        top_p: 1.0,
        repetition_penalty: 1.0,
        max_tokens: args.max_tokens.min(room as u32),
        n: 1,
        ..Default::default()
    };
    let seed = match args.seed {
        Some(seed) => polylink_inference_server::http::client_seed(seed as i64),
        None => random_bytes()?,
    };
    let session = direct.payer.session(&worker(direct).await?).await.map_err(|e| wrong(&e))?;
    let ask = Ask {
        prompt_token_ids,
        sampling,
        grammar: None,
        seed,
        logprobs: None,
        prompt_logprobs: None,
        answer_id: format!("chat-{}", hex::encode(random_bytes::<8>()?)),
    };
    let mut upstream = direct.payer.ask(&session, &ask, None).await.map_err(|e| wrong(&e))?;
    let mut text = ChoiceText::new(Arc::clone(direct.model.tokenizer()), Arc::from([]));
    let mut whole = String::new();
    let mut record = None;
    while let Some(event) = upstream.next().await {
        let piece = match event.map_err(|e| wrong(&e))? {
            UpstreamEvent::Tokens { token_ids, .. } => token_ids.iter().map(|id| text.push(*id)).collect(),
            UpstreamEvent::Prompt { .. } => String::new(),
            UpstreamEvent::Finish { .. } => text.finish(),
            UpstreamEvent::Verified(found) => {
                record = Some(found);
                continue;
            }
        };
        show(&piece);
        whole.push_str(&piece);
    }
    println!();
    let record: AnswerRecord = *record.ok_or_else(|| wrong(&"the answer ended without a receipt"))?;
    if let Some(path) = &args.receipt {
        files::write_json(path, &record)?;
    }
    let receipt = record.receipt.receipt.unwrap_or_default();
    pay(&direct.payer, session.id()).await;
    eprintln!("[session {}, index {}: {} uplk, receipt verified]", receipt.session, receipt.index, receipt.amount);
    Ok(whole)
}
