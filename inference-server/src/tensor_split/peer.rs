//! Ranks 1 and up of a device group: listen, load the shard that a leader asks for, run its steps.
//!
//! A peer serves one leader at a time; when the leader goes (or breaks the protocol), its shard is dropped and the peer
//! listens again.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use polylink_kernels::{BackendError, ForwardStep, Step, StepOutput};

use super::collective::TcpCollective;
use super::error::SplitError;
use super::handshake::{Channel, HANDSHAKE_TIMEOUT, Proof, answer};
use super::wire::{FRAME_BYTES_MAX, Plan, ReceivedStep, kind, receive_frame, send_frame};
use crate::engine::BackendKind;
use crate::engine::start::{empty_backend, kv_spec};
use crate::model::{LoadedModel, SplitPlan};

/// Settings of a peer.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The same as the leader's.
    pub secret: String,
    /// Compute threads; 0: one per core.
    pub threads: usize,
    /// Which implementation computes.
    pub backend: BackendKind,
}

/// Runs a peer until the process ends.
///
/// # Errors
/// [`SplitError::Listen`] if the address cannot be had.
pub fn run_peer(config: PeerConfig, model: LoadedModel) -> Result<(), SplitError> {
    Peer::bind(config, model)?.serve()
}

/// A listening peer.
#[derive(Debug)]
pub struct Peer {
    listener: TcpListener,
    config: PeerConfig,
    model: LoadedModel,
}

impl Peer {
    /// Listens.
    ///
    /// # Errors
    /// [`SplitError::Listen`] if the address cannot be had.
    pub fn bind(config: PeerConfig, model: LoadedModel) -> Result<Self, SplitError> {
        let listener = TcpListener::bind(config.listen).map_err(|error| listen_error(config.listen, &error))?;
        Ok(Self { listener, config, model })
    }

    /// The address, with the port that was given.
    ///
    /// # Errors
    /// [`SplitError::Listen`] if the system does not say.
    pub fn local_addr(&self) -> Result<SocketAddr, SplitError> {
        self.listener.local_addr().map_err(|error| listen_error(self.config.listen, &error))
    }

    /// Serves one leader after the other; does not return while the socket lives.
    ///
    /// # Errors
    /// [`SplitError::Listen`] if the socket breaks.
    pub fn serve(&self) -> Result<(), SplitError> {
        loop {
            let (stream, leader) = self.listener.accept().map_err(|error| listen_error(self.config.listen, &error))?;
            match self.serve_leader(stream) {
                Ok(()) => tracing::info!(%leader, "the leader has gone"),
                Err(reason) => tracing::warn!(%leader, reason, "the leader was dropped"),
            }
        }
    }

    /// From the greeting to the leader's end; the reason if it was not an orderly one.
    fn serve_leader(&self, mut control: TcpStream) -> Result<(), String> {
        let secret = &self.config.secret;
        let text = |error: io::Error| error.to_string();
        let group = answer(&mut control, Channel::Control, secret, &[0; 32]).map_err(text)?;
        let mut payload = Vec::new();
        let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
        let found = receive_frame(&mut control, &mut payload, Some(deadline), 64 << 10).map_err(text)?;
        if found != kind::PLAN {
            return Err(format!("frame {found} came where a plan was expected"));
        }
        match self.join(&mut control, &payload, &group) {
            Ok((backend, plan)) => {
                let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
                send_frame(&mut control, kind::READY, &[], deadline).map_err(text)?;
                self.run_steps(&mut control, backend, &plan)
            }
            Err(reason) => {
                let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
                // The leader may be gone; the reason is told here too.
                let _ = send_frame(&mut control, kind::REFUSED, reason.as_bytes(), deadline);
                Err(reason)
            }
        }
    }

    /// Checks the plan, takes the data connection, loads the shard.
    fn join(
        &self,
        control: &mut TcpStream,
        plan: &[u8],
        group: &Proof,
    ) -> Result<(Box<dyn polylink_kernels::Backend>, Plan), String> {
        let plan: Plan = serde_json::from_slice(plan).map_err(|error| format!("the plan is malformed: {error}"))?;
        let digest = self.model.split_digest().map_err(|error| error.to_string())?;
        if plan.model_digest != digest.to_string() {
            return Err(format!(
                "the leader serves model {}, this peer has {digest} ({}): use the same folder and quantisation",
                plan.model_digest,
                self.model.folder().display()
            ));
        }
        let split = SplitPlan::new(self.model.config(), &plan.shares).map_err(|error| error.to_string())?;
        if plan.rank == 0 || plan.rank >= split.world() || plan.positions > self.model.context_length() {
            return Err(format!(
                "rank {} of {} with {} positions is no plan",
                plan.rank,
                split.world(),
                plan.positions
            ));
        }
        if [plan.rows, plan.wanted_rows, plan.slots].iter().any(|&limit| limit == 0 || limit > 65_536) {
            return Err("the plan's limits are out of range (1 to 65,536)".into());
        }
        let mut backend = empty_backend(self.config.backend, self.config.threads).map_err(|error| error.to_string())?;
        let layout = backend.kv_layout(&kv_spec(&self.model, &split, plan.rank));
        if layout.block_tokens != plan.block_tokens {
            return Err(format!(
                "blocks of {} positions here, {} at the leader",
                layout.block_tokens, plan.block_tokens
            ));
        }
        send_frame(control, kind::ACCEPTED, &[], Instant::now() + HANDSHAKE_TIMEOUT)
            .map_err(|error| error.to_string())?;
        let mut data = self.accept_data()?;
        answer(&mut data, Channel::Data, &self.config.secret, group).map_err(|error| error.to_string())?;
        let program = self.model.load(&split, plan.rank, &mut *backend).map_err(|error| error.to_string())?;
        let timeout = Duration::from_millis(plan.timeout_ms.clamp(10, 600_000));
        let collective = TcpCollective::new(plan.rank, split.world(), vec![data], timeout);
        backend.build(program, plan.limits(), Box::new(collective)).map_err(|error| error.to_string())?;
        Ok((backend, plan))
    }

    /// The leader's second connection, which comes at once or not at all.
    fn accept_data(&self) -> Result<TcpStream, String> {
        let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
        self.listener.set_nonblocking(true).map_err(|error| error.to_string())?;
        let accepted = loop {
            match self.listener.accept() {
                Ok((stream, _)) => break Ok(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(error) => break Err(format!("the leader's data connection did not come: {error}")),
            }
        };
        self.listener.set_nonblocking(false).map_err(|error| error.to_string())?;
        let stream = accepted?;
        stream.set_nonblocking(false).map_err(|error| error.to_string())?;
        Ok(stream)
    }

    fn run_steps(
        &self,
        control: &mut TcpStream,
        mut backend: Box<dyn polylink_kernels::Backend>,
        plan: &Plan,
    ) -> Result<(), String> {
        let mut payload = Vec::new();
        let mut step = ReceivedStep::default();
        let mut output = StepOutput::with_limits(&plan.limits(), self.model.config().vocab_size, false);
        loop {
            // No deadline: an idle leader sends nothing. A dead one is noticed by the connection's keep-alive.
            match receive_frame(control, &mut payload, None, FRAME_BYTES_MAX) {
                Ok(kind::STEP) => {}
                Ok(found) => return Err(format!("frame {found} came where a step was expected")),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
            step.decode(&payload)?;
            let ReceivedStep { sequences, tokens, block_tables } = &step;
            let forward = Step::Forward(ForwardStep { sequences, tokens, block_tables, logits_out: false });
            let result = backend.submit(&forward).and_then(|ticket| backend.wait(ticket, &mut output));
            match result {
                // The leader finds the same in its own logits, and says so to whoever asked.
                Ok(()) | Err(BackendError::NotFinite { .. }) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

fn listen_error(address: SocketAddr, error: &io::Error) -> SplitError {
    SplitError::Listen { address: address.to_string(), reason: error.to_string() }
}
