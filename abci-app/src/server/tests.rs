//! The server over real sockets: what a well-behaved client, a broken one and a hostile one see.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use prost_014::Message;
use tendermint_abci::Application;
use tendermint_proto::v0_38::abci::{
    Request, RequestCheckTx, RequestCommit, RequestEcho, RequestFinalizeBlock, RequestFlush, RequestQuery, Response,
    ResponseCheckTx, ResponseCommit, ResponseQuery, request, response,
};

use super::*;

#[derive(Clone)]
struct Toy;

impl Application for Toy {
    fn check_tx(&self, request: RequestCheckTx) -> ResponseCheckTx {
        ResponseCheckTx { code: request.tx.len() as u32, ..Default::default() }
    }
    fn query(&self, request: RequestQuery) -> ResponseQuery {
        assert_ne!(request.path, "/panic", "a query that breaks an invariant");
        // Busy until there is a file of the name that is asked for.
        while request.path == "/wait" && !std::path::Path::new(&*String::from_utf8_lossy(&request.data)).exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        ResponseQuery { value: request.data, ..Default::default() }
    }
    fn commit(&self) -> ResponseCommit {
        panic!("supply is not conserved")
    }
}

fn start(options: Options) -> (tempfile::TempDir, ServerHandle) {
    let dir = tempfile::tempdir().unwrap();
    let handle = serve(&Address::unix(dir.path().join("abci.sock")).unwrap(), Toy, options).unwrap();
    (dir, handle)
}

fn connect(handle: &ServerHandle) -> UnixStream {
    let Address::Unix(path) = handle.address() else { panic!("a unix socket") };
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

fn frame(value: request::Value) -> Vec<u8> {
    Request { value: Some(value) }.encode_length_delimited_to_vec()
}

fn echo(message: &str) -> Vec<u8> {
    frame(request::Value::Echo(RequestEcho { message: message.into() }))
}

fn flush() -> Vec<u8> {
    frame(request::Value::Flush(RequestFlush {}))
}

fn responses(stream: impl Read) -> impl FnMut() -> Option<response::Value> {
    let mut frames = FrameReader::new(stream, 1 << 20);
    move || Some(Response::decode(frames.next_frame().unwrap()?).unwrap().value.unwrap())
}

fn echoed(value: Option<response::Value>) -> String {
    match value {
        Some(response::Value::Echo(echo)) => echo.message,
        other => panic!("no echo: {other:?}"),
    }
}

/// The connection must answer with `Exception` saying `why`, then end.
fn expect_exception(stream: &UnixStream, handle: &ServerHandle, why: &str) {
    let mut next = responses(stream);
    match next() {
        Some(response::Value::Exception(exception)) => assert!(exception.error.contains(why), "{}", exception.error),
        other => panic!("no exception: {other:?}"),
    }
    assert_eq!(next(), None, "the connection must be closed");
    wait_until(|| handle.failures().iter().any(|failure| failure.contains(why)));
    // And only that connection.
    let mut other = connect(handle);
    other.write_all(&[echo("still here"), flush()].concat()).unwrap();
    assert_eq!(echoed(responses(&other)()), "still here");
}

fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "waited 10 s in vain");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn answers_pipelined_requests_in_order_and_only_on_flush() {
    let log = RequestLog::new(3);
    let (_dir, handle) = start(Options { observer: Some(log.observer()), ..Options::default() });
    let mut stream = connect(&handle);
    stream.write_all(&echo("first")).unwrap();
    wait_until(|| handle.requests() == 1);
    stream.set_read_timeout(Some(Duration::from_millis(30))).unwrap();
    assert!(stream.read(&mut [0; 8]).is_err(), "nothing may be written before a flush");
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();

    let mut batch = Vec::new();
    for length in 0..500 {
        batch.extend(frame(request::Value::CheckTx(RequestCheckTx { tx: vec![7; length].into(), r#type: 0 })));
    }
    stream.write_all(&[batch, flush()].concat()).unwrap();
    let mut next = responses(&stream);
    assert_eq!(echoed(next()), "first");
    for length in 0..500 {
        match next() {
            Some(response::Value::CheckTx(response)) => assert_eq!(response.code, length),
            other => panic!("no CheckTx: {other:?}"),
        }
    }
    assert!(matches!(next(), Some(response::Value::Flush(_))));
    assert_eq!(log.entries(), [LogEntry { connection: 0, name: "CheckTx", height: None }; 3]);
    assert_eq!(log.left_out(), 497);
    assert_eq!(handle.requests(), 502);
}

#[test]
fn takes_frames_that_arrive_byte_by_byte() {
    let (_dir, handle) = start(Options::default());
    let mut stream = connect(&handle);
    for byte in [echo(&"long enough for two bytes of length ".repeat(8)), flush()].concat() {
        stream.write_all(&[byte]).unwrap();
    }
    assert!(echoed(responses(&stream)()).starts_with("long enough"));
}

#[test]
fn garbage_is_answered_with_an_exception() {
    let (_dir, handle) = start(Options { frame_bytes_max: 1000, ..Options::default() });
    let mut bad_tag = vec![3];
    bad_tag.extend([0xff, 0xff, 0xff]);
    // Field 99 of Request: a message kind from the future.
    let unknown = vec![3, 0x9a, 0x06, 0x00];
    let cases: [(&[u8], &str); 6] = [
        (&bad_tag, "does not decode"),
        (&unknown, "unknown kind"),
        (&[0], "unknown kind"),
        (&[0xff; 11], "not a varint"),
        (&[0xe9, 0x07], "1001 bytes is over the limit of 1000"),
        (b"GET / HTTP/1.1\r\n\r\n", "does not decode"),
    ];
    for (bytes, why) in cases {
        let mut stream = connect(&handle);
        stream.write_all(bytes).unwrap();
        if why == "does not decode" {
            // Enough bytes to fill the frame that the first byte announces.
            stream.write_all(&[0xff; 128]).unwrap();
        }
        expect_exception(&stream, &handle, why);
    }
}

#[test]
fn a_peer_that_leaves_within_a_frame_is_an_error_and_between_frames_is_none() {
    let (_dir, handle) = start(Options::default());
    let stream = connect(&handle);
    (&stream).write_all(&echo("cut short")[..5]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    expect_exception(&stream, &handle, "within a frame, 5 bytes into it");
    let count = handle.failures().len();
    let mut stream = connect(&handle);
    stream.write_all(&[echo("whole"), flush()].concat()).unwrap();
    assert_eq!(echoed(responses(&stream)()), "whole");
    drop(stream);
    wait_until(|| handle.connections() == 0);
    assert_eq!(handle.failures().len(), count);
}

#[test]
fn announced_lengths_allocate_nothing() {
    // 64 MiB announced, nothing sent: the reader may hold one read's worth.
    let mut reader = FrameReader::new(&[0x80, 0x80, 0x80, 0x20][..], 64 << 20);
    assert!(matches!(reader.next_frame(), Err(FrameError::Truncated { have: 4 })));
}

#[test]
fn a_peer_never_waits_for_a_request_in_execution() {
    let (dir, handle) = start(Options::default());
    let mut stream = connect(&handle);
    let done = dir.path().join("done");
    let data = done.display().to_string().into_bytes().into();
    let busy = frame(request::Value::Query(RequestQuery { path: "/wait".into(), data, ..Default::default() }));
    stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
    let texts: Vec<String> = (0..64).map(|n| format!("{n} {}", "x".repeat(64 << 10))).collect();
    let echoes = texts.iter().flat_map(|text| [echo(text), flush()]).flatten();
    // More than a socket holds.
    stream.write_all(&busy.into_iter().chain(echoes).collect::<Vec<u8>>()).unwrap();
    std::fs::write(done, "").unwrap();
    let mut next = responses(&stream);
    assert!(matches!(next(), Some(response::Value::Query(_))));
    for text in texts {
        assert_eq!(echoed(next()), text);
        assert!(matches!(next(), Some(response::Value::Flush(_))));
    }
}

#[test]
fn one_connection_too_many_is_told_so() {
    let (_dir, handle) = start(Options { connections_max: 2, ..Options::default() });
    let held: Vec<UnixStream> = (0..2).map(|_| connect(&handle)).collect();
    wait_until(|| handle.connections() == 2);
    match responses(connect(&handle))() {
        Some(response::Value::Exception(exception)) => assert!(exception.error.contains("2 connections")),
        other => panic!("no exception: {other:?}"),
    }
    drop(held);
    wait_until(|| handle.connections() == 0);
    let mut stream = connect(&handle);
    stream.write_all(&[echo("room again"), flush()].concat()).unwrap();
    assert_eq!(echoed(responses(&stream)()), "room again");
}

#[test]
fn shutdown_joins_idle_connections_and_removes_the_socket() {
    let (dir, handle) = start(Options::default());
    let mut streams: Vec<UnixStream> = (0..4).map(|_| connect(&handle)).collect();
    wait_until(|| handle.connections() == 4);
    let path = dir.path().join("abci.sock");
    assert!(path.exists());
    let begin = Instant::now();
    handle.shutdown();
    assert!(begin.elapsed() < Duration::from_secs(5), "shutdown took {:?}", begin.elapsed());
    assert!(!path.exists());
    for stream in &mut streams {
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0, "the connection must be closed");
    }
    // The address is free again, and shutdown works even where the socket's folder is gone.
    let again = serve(&Address::unix(&path).unwrap(), Toy, Options::default()).unwrap();
    drop(dir);
    again.shutdown();
}

#[test]
fn addresses_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("abci.sock");
    let address = Address::unix(&path).unwrap();
    assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
    for text in ["", "/tmp/x", "http://a:1", "tcp://", "tcp://host", "tcp://:1", "tcp://host:70000", "unix://"] {
        assert!(matches!(text.parse::<Address>(), Err(ServerError::Address { .. })), "{text:?}");
    }
    let long = format!("/tmp/{}", "x".repeat(103));
    let error = Address::unix(&long).unwrap_err().to_string();
    assert!(error.contains("has 108 bytes") && error.contains("107"), "{error}");
    Address::unix(&long[..107]).unwrap();

    // What a killed process left behind is replaced.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let running = serve(&address, Toy, Options::default()).unwrap();
    // One that answers is not, and its file stays.
    assert!(matches!(serve(&address, Toy, Options::default()), Err(ServerError::InUse { .. })));
    running.shutdown();
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(serve(&address, Toy, Options::default()), Err(ServerError::NotASocket { .. })));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn tcp_works_and_has_no_delay() {
    let handle = serve(&"tcp://127.0.0.1:0".parse().unwrap(), Toy, Options::default()).unwrap();
    let Address::Tcp(host_port) = handle.address() else { panic!("TCP") };
    let mut stream = TcpStream::connect(host_port).unwrap();
    stream.set_nodelay(true).unwrap();
    latency("tcp", &mut stream.try_clone().unwrap(), &mut stream);
    assert!(matches!(serve(handle.address(), Toy, Options::default()), Err(ServerError::InUse { .. })));
    handle.shutdown();
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn unix_latency() {
    let (_dir, handle) = start(Options::default());
    let mut stream = connect(&handle);
    latency("unix", &mut stream.try_clone().unwrap(), &mut stream);
}

/// Prints the time of one synchronous call (request, flush, both answers).
fn latency(kind: &str, source: &mut impl Read, sink: &mut impl Write) {
    let calls = 2000;
    let request = [echo("ping"), flush()].concat();
    let mut next = responses(source);
    let begin = Instant::now();
    for _ in 0..calls {
        sink.write_all(&request).unwrap();
        assert_eq!(echoed(next()), "ping");
        assert!(matches!(next(), Some(response::Value::Flush(_))));
    }
    println!("ABCI over {kind}: {:.1} µs a call", begin.elapsed().as_secs_f64() * 1e6 / f64::from(calls));
}

#[test]
fn a_panicking_query_is_an_error_code() {
    let (_dir, handle) = start(Options::default());
    let mut stream = connect(&handle);
    let query = RequestQuery { path: "/panic".into(), ..Default::default() };
    stream.write_all(&[frame(request::Value::Query(query)), echo("alive"), flush()].concat()).unwrap();
    let mut next = responses(&stream);
    match next() {
        Some(response::Value::Query(response)) => {
            assert_eq!((response.code, response.codespace.as_str()), (111_222, "sdk"));
            assert!(response.log.contains("breaks an invariant"), "{}", response.log);
        }
        other => panic!("no query response: {other:?}"),
    }
    assert_eq!(echoed(next()), "alive");
}

/// The process that [`a_panic_in_the_state_machine_stops_the_process`] starts: this test again.
const CHILD: &str = "POLYLINK_TEST_ABCI_SOCKET";

#[test]
fn a_panic_in_the_state_machine_stops_the_process() {
    if let Ok(path) = std::env::var(CHILD) {
        let _handle = serve(&Address::unix(path).unwrap(), Toy, Options::default()).unwrap();
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("abci.sock");
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "server::tests::a_panic_in_the_state_machine_stops_the_process", "--nocapture"])
        .env(CHILD, &path)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until(|| UnixStream::connect(&path).is_ok());
    let mut stream = UnixStream::connect(&path).unwrap();
    let block = RequestFinalizeBlock { height: 1, ..Default::default() };
    stream
        .write_all(
            &[frame(request::Value::FinalizeBlock(block)), frame(request::Value::Commit(RequestCommit {})), flush()]
                .concat(),
        )
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(EXIT_CODE_PANIC));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("Commit broke an invariant: supply is not conserved"), "{message}");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "no answer after the invariant broke");
}
