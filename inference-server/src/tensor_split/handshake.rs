//! Who is at the other end: magic, version, and a proof of the shared secret from both sides.
//!
//! ```text
//! leader → peer  "PLKSPLIT" ‖ version u32 ‖ channel u8 ‖ leader's nonce (32)
//! peer → leader  "PLKSPLIT" ‖ version u32 ‖ peer's nonce (32)
//! leader → peer  SHA-256("polylink/split-leader/v1" ‖ 0 ‖ channel ‖ secret ‖ both nonces ‖ group)
//! peer → leader  SHA-256("polylink/split-peer/v1" ‖ …)
//! ```
//! The group is zero on the control connection; on the data connection it is the control connection's leader proof, so
//! that both belong together.

use std::io;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use polylink_protocol::digest::Hasher;
use socket2::{SockRef, TcpKeepalive};

use super::wire::{read_by, write_by};

const MAGIC: &[u8; 8] = b"PLKSPLIT";
const VERSION: u32 = 1;
/// Longest wait in a handshake.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    Control = 0,
    Data = 1,
}

/// The leader's proof of a connection; names the group.
pub(super) type Proof = [u8; 32];

fn proof(tag: &str, channel: Channel, secret: &str, nonces: [&[u8; 32]; 2], group: &Proof) -> Proof {
    let hasher = Hasher::new(tag).u32(channel as u32).bytes(secret.as_bytes());
    hasher.fixed(nonces[0]).fixed(nonces[1]).fixed(group).finish().0
}

fn refuse(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

fn nonce() -> io::Result<[u8; 32]> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(nonce)
}

/// Small frames at once, and a dead other end is noticed even while nothing is sent.
fn set_up(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(2));
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

fn check_head(head: &[u8]) -> io::Result<()> {
    let version = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
    match head.starts_with(MAGIC) {
        false => Err(refuse("it is no device of a split")),
        true if version != VERSION => {
            Err(refuse(format!("it speaks version {version}, this program version {VERSION}: use the same release")))
        }
        true => Ok(()),
    }
}

/// The leader's side.
pub(super) fn greet(stream: &mut TcpStream, channel: Channel, secret: &str, group: &Proof) -> io::Result<Proof> {
    set_up(stream)?;
    let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
    let own = nonce()?;
    let hello = [MAGIC, &VERSION.to_le_bytes()[..], &[channel as u8], &own].concat();
    write_by(stream, &hello, deadline)?;
    let mut reply = [0; 44];
    read_by(stream, &mut reply, Some(deadline))?;
    check_head(&reply)?;
    let mut theirs = [0; 32];
    theirs.copy_from_slice(&reply[12..]);
    let ours = proof("polylink/split-leader/v1", channel, secret, [&own, &theirs], group);
    write_by(stream, &ours, deadline)?;
    let mut answer = [0; 32];
    read_by(stream, &mut answer, Some(deadline)).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => refuse("it hung up at the proof: the secrets differ, or it has another leader"),
        _ => error,
    })?;
    if answer != proof("polylink/split-peer/v1", channel, secret, [&own, &theirs], group) {
        return Err(refuse("its proof is wrong: the secrets differ"));
    }
    Ok(ours)
}

/// The peer's side.
pub(super) fn answer(stream: &mut TcpStream, channel: Channel, secret: &str, group: &Proof) -> io::Result<Proof> {
    set_up(stream)?;
    let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
    let mut hello = [0; 45];
    read_by(stream, &mut hello, Some(deadline))?;
    check_head(&hello)?;
    let own = nonce()?;
    let mut theirs = [0; 32];
    theirs.copy_from_slice(&hello[13..]);
    write_by(stream, &[MAGIC, &VERSION.to_le_bytes()[..], &own].concat(), deadline)?;
    let mut claimed = [0; 32];
    read_by(stream, &mut claimed, Some(deadline))?;
    let expected = proof("polylink/split-leader/v1", channel, secret, [&theirs, &own], group);
    if hello[12] != channel as u8 || claimed != expected {
        return Err(refuse("its proof is wrong: the secrets differ, or it connected out of order"));
    }
    let ours = proof("polylink/split-peer/v1", channel, secret, [&theirs, &own], group);
    write_by(stream, &ours, deadline)?;
    Ok(expected)
}
