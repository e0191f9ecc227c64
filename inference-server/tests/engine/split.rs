//! One model over two processes, through real TCP: the same bits, and what happens when one of them dies.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use polylink_inference_server::engine::{
    BackendKind, Engine, EngineConfig, EngineHandle, EngineStatus, Event, FailureCode, GenerateRequest, SplitConfig,
};
use polylink_inference_server::model::{Computation, KvDtype, LoadedModel, Precision};
use polylink_inference_server::tensor_split::{Peer, PeerConfig};
use polylink_protocol::market_v1::Sampling;

use crate::support::*;
use crate::tiny::{FileType, goldens};

const SECRET: &str = "a secret of the test";

fn peer_config(listen: SocketAddr) -> PeerConfig {
    PeerConfig { listen, secret: SECRET.into(), threads: 1, backend: BackendKind::Cpu }
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A peer on a thread of this process, which ends with it.
pub fn peer_thread(model: LoadedModel) -> SocketAddr {
    let peer = Peer::bind(peer_config(any_port()), model).unwrap();
    let address = peer.local_addr().unwrap();
    std::thread::spawn(move || peer.serve());
    address
}

pub fn split_over(shares: &[u32], peers: &[SocketAddr]) -> EngineConfig {
    let split = SplitConfig {
        shares: shares.to_vec(),
        peers: peers.to_vec(),
        secret: SECRET.into(),
        timeout: Duration::from_secs(4),
    };
    EngineConfig { split: Some(split), ..small() }
}

/// Tokens, logprobs and sketches of an answer.
pub fn bits(engine: &EngineHandle, prompt: Vec<u32>) -> Vec<(u32, u32, [u8; 16])> {
    let answer = run(engine, request(prompt, noisy(), 5));
    answer.choices[0].tokens.iter().map(|token| (token.id, token.logprob.to_bits(), token.sketch)).collect()
}

#[test]
fn two_and_three_devices_give_the_bits_of_one() {
    let eight_bit_cache = Computation { precision: Precision::Q8_0, kv_dtype: KvDtype::Int8 };
    for quantization in [Precision::F32.into(), eight_bit_cache] {
        let alone = Engine::start(quantized("nano", quantization), small()).unwrap();
        let peer = || peer_thread(quantized("nano", quantization));
        for (shares, peers) in
            [(&[2, 1][..], vec![peer()]), (&[1, 2], vec![peer()]), (&[1, 1, 1], vec![peer(), peer()])]
        {
            let split = Engine::start(quantized("nano", quantization), split_over(shares, &peers)).unwrap();
            for salt in 1..4 {
                assert_eq!(
                    bits(&split, prompt(salt, 60)),
                    bits(&alone, prompt(salt, 60)),
                    "{quantization:?} {shares:?}"
                );
            }
        }
    }
}

/// LongRoPE: what outgrows the border has other keys from its first token on, on every device; also where it starts beyond
/// it, finds a prefix of that side, or is scored.
#[test]
fn a_sequence_that_outgrows_the_long_border_has_the_same_bits_split() {
    let goldens = goldens();
    let golden = goldens.iter().find(|golden| golden.name == "phi3_long").unwrap();
    let model = golden.open(FileType::Bf16, Precision::F32);
    let start = |split: EngineConfig| {
        Engine::start(model.clone(), EngineConfig { token_budget: 24, max_running: 4, ..split }).unwrap()
    };
    let (alone, split) = (start(small()), start(split_over(&[1, 1], &[peer_thread(model.clone())])));
    let border = alone.info().long_beyond.unwrap();
    let within = golden.tokens("prompt");
    let sampling = Sampling { max_tokens: 48, ..noisy() };
    assert!(within.len() < border && border + 8 < within.len() + 48, "it crosses the border on its way");
    let beyond = [within.clone(), within.clone()].concat();
    for (prompt_ids, prompt_logprobs) in
        [(within.clone(), None), (within, Some(3)), (beyond.clone(), None), (beyond, Some(3))]
    {
        let asked = || GenerateRequest {
            prompt_logprobs,
            logprobs: Some(3),
            ..request(prompt_ids.clone(), sampling.clone(), 5)
        };
        let expected = run(&alone, asked());
        assert_eq!(expected.choices[0].tokens.len(), 48);
        for when in ["fresh", "again"] {
            let found = run(&split, asked());
            assert!(
                (&found.prompt, &found.choices) == (&expected.prompt, &expected.choices),
                "{when}, {prompt_logprobs:?}"
            );
        }
    }
}

/// Runs only as a child process of the tests below: a peer that prints its address and serves until it is killed.
#[test]
fn peer_process() {
    let Ok(listen) = std::env::var("POLYLINK_TEST_PEER_LISTEN") else { return };
    let peer = Peer::bind(peer_config(listen.parse().unwrap()), model("nano")).unwrap();
    println!("\nlistening {}", peer.local_addr().unwrap());
    peer.serve().unwrap();
}

struct PeerProcess {
    child: Child,
    address: SocketAddr,
}

impl PeerProcess {
    fn start(listen: SocketAddr) -> Self {
        use std::io::BufRead;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "split::peer_process", "--nocapture"])
            .env("POLYLINK_TEST_PEER_LISTEN", listen.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let address =
            lines.find_map(|line| line.unwrap().strip_prefix("listening ").map(|a| a.parse().unwrap())).unwrap();
        // Whatever else it prints must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for PeerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_peer_process_that_is_killed_fails_its_requests_in_time_and_the_engine_recovers() {
    let mut peer = PeerProcess::start(any_port());
    let engine = Engine::start(model("nano"), split_over(&[2, 1], &[peer.address])).unwrap();
    let alone = start("nano", small());
    assert_eq!(bits(&engine, prompt(1, 60)), bits(&alone, prompt(1, 60)));

    let sampling = Sampling { max_tokens: 900, ..sampling() };
    let mut stream = engine.submit(request(prompt(2, 50), sampling, 0)).unwrap();
    for _ in 0..3 {
        assert!(matches!(stream.blocking_next(), Some(Event::Token(_))));
    }
    let killed = Instant::now();
    peer.kill();
    let last = std::iter::from_fn(|| stream.blocking_next()).last().unwrap();
    assert!(matches!(last, Event::Failed { code: FailureCode::PeerLost, .. }), "{last:?}");
    let took = killed.elapsed();
    println!("a killed peer failed its request after {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    let refused = engine.submit(request(prompt(2, 50), noisy(), 0));
    if let Err(error) = refused {
        assert_eq!(error.http_status(), 503, "{error}");
    }

    // The same address again: the engine finds it by itself.
    let _peer = PeerProcess::start(peer.address);
    let deadline = Instant::now() + Duration::from_secs(20);
    while engine.status() != EngineStatus::Ready {
        assert!(Instant::now() < deadline, "{:?}", engine.status());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(bits(&engine, prompt(3, 60)), bits(&alone, prompt(3, 60)));
}

#[test]
fn a_peer_that_falls_silent_fails_its_requests_within_the_timeout() {
    // A relay in between, which stops passing anything on.
    let peer = peer_thread(model("pico"));
    let relay = Relay::start(peer);
    let mut config = split_over(&[2, 1], &[relay.address]);
    config.split.as_mut().unwrap().timeout = Duration::from_millis(800);
    let engine = Engine::start(model("pico"), config).unwrap();
    let mut stream = engine.submit(request(prompt(2, 50), Sampling { max_tokens: 900, ..sampling() }, 0)).unwrap();
    assert!(matches!(stream.blocking_next(), Some(Event::Token(_))));
    relay.silence();
    let silent = Instant::now();
    let last = std::iter::from_fn(|| stream.blocking_next()).last().unwrap();
    assert!(matches!(last, Event::Failed { code: FailureCode::PeerLost, .. }), "{last:?}");
    assert!(silent.elapsed() < Duration::from_secs(3), "{:?}", silent.elapsed());
}

struct Relay {
    address: SocketAddr,
    silent: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl Relay {
    fn start(to: SocketAddr) -> Self {
        use std::io::{Read, Write};
        use std::sync::atomic::Ordering;
        let listener = std::net::TcpListener::bind(any_port()).unwrap();
        let address = listener.local_addr().unwrap();
        let silent = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let flag = silent.clone();
        std::thread::spawn(move || {
            for inbound in listener.incoming() {
                let inbound = inbound.unwrap();
                let outbound = std::net::TcpStream::connect(to).unwrap();
                for (mut from, mut to) in
                    [(inbound.try_clone().unwrap(), outbound.try_clone().unwrap()), (outbound, inbound)]
                {
                    to.set_nodelay(true).unwrap();
                    let flag = flag.clone();
                    std::thread::spawn(move || {
                        let mut buffer = [0; 65_536];
                        while let Ok(length @ 1..) = from.read(&mut buffer) {
                            while flag.load(Ordering::Relaxed) {
                                std::thread::sleep(Duration::from_millis(20));
                            }
                            if to.write_all(&buffer[..length]).is_err() {
                                return;
                            }
                        }
                        let _ = to.shutdown(std::net::Shutdown::Both);
                    });
                }
            }
        });
        Self { address, silent }
    }

    fn silence(&self) {
        self.silent.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

#[test]
fn groups_that_do_not_fit_are_refused_by_name() {
    let peer = peer_thread(model("pico"));
    let refusal = |name: &str, quantization, change: &dyn Fn(&mut SplitConfig)| {
        let mut config = split_over(&[2, 1], &[peer]);
        change(config.split.as_mut().unwrap());
        Engine::start(quantized(name, quantization), config).unwrap_err().to_string()
    };
    let none = |_: &mut SplitConfig| {};
    let other_model = refusal("nano", Precision::F32, &none);
    assert!(other_model.contains("same folder"), "{other_model}");
    let other_weights = refusal("pico", Precision::Q8_0, &none);
    assert!(other_weights.contains("same folder and quantisation"), "{other_weights}");
    let stranger = refusal("pico", Precision::F32, &|split| split.secret = "guessed".into());
    assert!(stranger.contains("secret"), "{stranger}");
    let nobody = refusal("pico", Precision::F32, &|split| split.peers = vec![closed_port()]);
    assert!(nobody.contains("polylink serve --join"), "{nobody}");
    let too_many = refusal("pico", Precision::F32, &|split| split.peers.push(peer));
    assert!(too_many.contains("split"), "{too_many}");
    // After all of these the peer still serves.
    let engine = Engine::start(model("pico"), split_over(&[2, 1], &[peer])).unwrap();
    assert_eq!(bits(&engine, prompt(1, 60)), bits(&start("pico", small()), prompt(1, 60)));
}

fn closed_port() -> SocketAddr {
    std::net::TcpListener::bind(any_port()).unwrap().local_addr().unwrap()
}
