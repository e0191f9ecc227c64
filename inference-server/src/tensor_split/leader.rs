//! Rank 0 of a device group: brings the peers together, and sends them every forward step before it computes its own.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use polylink_kernels::{
    Backend, BackendError, Collective, CollectiveError, KRanges, KvLayout, KvSpec, Limits, Part, Program, Step,
    StepOutput, Ticket, WeightForm, WeightId,
};

use super::collective::TcpCollective;
use super::error::SplitError;
use super::handshake::{Channel, HANDSHAKE_TIMEOUT, greet};
use super::wire::{Plan, encode_step, kind, receive_frame, send_frame, write_by};
use crate::engine::{EngineError, SplitConfig};
use crate::model::{LoadedModel, SplitPlan};

/// Longest wait for a peer to load its weights.
const LOAD_TIMEOUT: Duration = Duration::from_secs(300);
/// Longest frame that a peer sends.
const REPLY_BYTES_MAX: usize = 64 << 10;

/// Connects the peers, loads the own shard while they load theirs, and returns a backend that runs all of them.
///
/// # Errors
/// A peer that cannot be reached or refuses; the model; the arena.
pub(crate) fn lead(
    model: &LoadedModel,
    split: &SplitPlan,
    settings: &SplitConfig,
    limits: Limits,
    block_tokens: usize,
    mut backend: Box<dyn Backend>,
) -> Result<Box<dyn Backend>, EngineError> {
    let digest = model.split_digest()?;
    let mut controls = Vec::new();
    let mut data = Vec::new();
    for (index, &peer) in settings.peers.iter().enumerate() {
        let plan = Plan {
            shares: settings.shares.clone(),
            rank: index + 1,
            model_digest: digest.to_string(),
            rows: limits.rows,
            wanted_rows: limits.wanted_rows,
            slots: limits.slots,
            kv_blocks: limits.kv_blocks,
            positions: limits.positions,
            block_tokens,
            timeout_ms: settings.timeout.as_millis() as u64,
        };
        let (control, stream) = join(peer, &plan, &settings.secret)?;
        controls.push((peer, control));
        data.push(stream);
    }
    let program = model.load(split, 0, &mut *backend)?;
    let collective = TcpCollective::new(0, split.world(), data, settings.timeout);
    backend.build(program, limits, Box::new(collective))?;
    for (peer, control) in &mut controls {
        expect(*peer, control, kind::READY, LOAD_TIMEOUT)?;
    }
    let controls = controls.into_iter().map(|(_, control)| control).collect();
    Ok(Box::new(SplitBackend { inner: backend, controls, timeout: settings.timeout, frame: Vec::new() }))
}

/// Control and data connection of one peer, which has accepted the plan.
fn join(peer: SocketAddr, plan: &Plan, secret: &str) -> Result<(TcpStream, TcpStream), SplitError> {
    let unreachable =
        |error: std::io::Error| SplitError::Unreachable { peer: peer.to_string(), reason: error.to_string() };
    let protocol = |error: std::io::Error| SplitError::Protocol { peer: peer.to_string(), reason: error.to_string() };
    let connect = || TcpStream::connect_timeout(&peer, HANDSHAKE_TIMEOUT).map_err(unreachable);
    let mut control = connect()?;
    let group = greet(&mut control, Channel::Control, secret, &[0; 32]).map_err(protocol)?;
    let text = serde_json::to_vec(plan).map_err(|error| SplitError::Config(error.to_string()))?;
    send_frame(&mut control, kind::PLAN, &text, Instant::now() + HANDSHAKE_TIMEOUT).map_err(unreachable)?;
    // The peer reads its whole model for the digest before it accepts.
    expect(peer, &mut control, kind::ACCEPTED, LOAD_TIMEOUT)?;
    let mut data = connect()?;
    greet(&mut data, Channel::Data, secret, &group).map_err(protocol)?;
    Ok((control, data))
}

/// Waits for one reply of a peer.
fn expect(peer: SocketAddr, control: &mut TcpStream, wanted: u8, timeout: Duration) -> Result<(), SplitError> {
    let peer = peer.to_string();
    let mut payload = Vec::new();
    let found = receive_frame(control, &mut payload, Some(Instant::now() + timeout), REPLY_BYTES_MAX)
        .map_err(|error| SplitError::Unreachable { peer: peer.clone(), reason: error.to_string() })?;
    match found {
        kind::REFUSED => Err(SplitError::Refused { peer, reason: String::from_utf8_lossy(&payload).into_owned() }),
        found if found == wanted => Ok(()),
        found => Err(SplitError::Protocol { peer, reason: format!("frame {found} came where {wanted} was expected") }),
    }
}

/// The backend of a device group, as the engine sees it: one device.
struct SplitBackend {
    inner: Box<dyn Backend>,
    controls: Vec<TcpStream>,
    timeout: Duration,
    frame: Vec<u8>,
}

impl Backend for SplitBackend {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn prepare(&mut self, parts: &[Part<'_>], ranges: KRanges, form: WeightForm) -> Result<WeightId, BackendError> {
        self.inner.prepare(parts, ranges, form)
    }

    fn kv_layout(&self, spec: &KvSpec) -> KvLayout {
        self.inner.kv_layout(spec)
    }

    fn build(&mut self, program: Program, limits: Limits, collective: Box<dyn Collective>) -> Result<(), BackendError> {
        self.inner.build(program, limits, collective)
    }

    /// Only the leader samples: peers are sent forward steps, whose inputs are token ids.
    fn submit(&mut self, step: &Step<'_>) -> Result<Ticket, BackendError> {
        if let Step::Forward(forward) = step {
            encode_step(forward, &mut self.frame);
            let deadline = Instant::now() + self.timeout;
            for (index, control) in self.controls.iter_mut().enumerate() {
                write_by(control, &self.frame, deadline).map_err(|error| {
                    BackendError::Lost(CollectiveError::PeerLost { rank: index + 1, reason: error.to_string() })
                })?;
            }
        }
        self.inner.submit(step)
    }

    fn wait(&mut self, ticket: Ticket, output: &mut StepOutput) -> Result<(), BackendError> {
        self.inner.wait(ticket, output)
    }
}
