//! Workers that stall, drip, flood or lie, beside an honest one, over real sockets.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::service::pace::Plan;
use crate::transcript::tests::{case, check};

/// What a worker's endpoint does with a call.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    Honest,
    /// Says nothing.
    Stall,
    /// Answers well, a byte at a time.
    Drip,
    /// Sends without end.
    Flood,
    /// Breaks off in the middle.
    Cut,
    /// Sends JSON of another shape, nested deeply.
    Nonsense,
    /// Names another address.
    Redirect,
    /// Is ready at the second call.
    Late,
}

const MANNERS: [Manner; 8] = [
    Manner::Honest,
    Manner::Stall,
    Manner::Drip,
    Manner::Flood,
    Manner::Cut,
    Manner::Nonsense,
    Manner::Redirect,
    Manner::Late,
];

async fn answer(mut socket: TcpStream, manner: Manner, first: bool) -> std::io::Result<()> {
    let mut request = Vec::new();
    // The whole call, so that closing the socket does not reset it: its body ends with the JSON object's brace.
    while !request.ends_with(b"}") {
        let mut part = [0; 4_096];
        let read = socket.read(&mut part).await?;
        if read == 0 {
            return Ok(());
        }
        request.extend_from_slice(&part[..read]);
    }
    let body = serde_json::to_vec(&case().disclosure)?;
    let head = |length: usize| format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").into_bytes();
    match manner {
        Manner::Honest => socket.write_all(&[head(body.len()), body].concat()).await?,
        Manner::Late if first => socket.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").await?,
        Manner::Late => socket.write_all(&[head(body.len()), body].concat()).await?,
        Manner::Stall => std::future::pending().await,
        Manner::Drip => {
            socket.write_all(&head(body.len())).await?;
            for byte in body {
                socket.write_all(&[byte]).await?;
                tokio::time::sleep(Duration::from_millis(40)).await;
            }
        }
        Manner::Flood => {
            socket.write_all(&head(usize::MAX >> 1)).await?;
            loop {
                socket.write_all(&[b' '; 4_096]).await?;
            }
        }
        Manner::Cut => socket.write_all(&[head(body.len()), body[..body.len() / 2].to_vec()].concat()).await?,
        Manner::Nonsense => socket.write_all(&[head(9_000), vec![b'['; 9_000]].concat()).await?,
        Manner::Redirect => {
            let location =
                "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
            socket.write_all(location.as_bytes()).await?;
        }
    }
    Ok(())
}

async fn endpoint(manner: Manner) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for count in 0.. {
            let (socket, _) = listener.accept().await.unwrap();
            // A client that hangs up ends its answer with an error.
            tokio::spawn(answer(socket, manner, count == 0));
        }
    });
    address
}

fn call_of(name: &str, address: SocketAddr) -> Option<Call> {
    let body = DisclosureCall {
        judge: "judge".into(),
        epoch: 4,
        profile_digest: vec![7; 32],
        point: polylink_protocol::Amount(4),
        signature: vec![0; 64],
    };
    Some(Call { worker: name.into(), endpoint: format!("http://{address}/"), body, sample: 0, bytes_max: 64 << 10 })
}

#[tokio::test(flavor = "multi_thread")]
async fn no_worker_costs_a_judge_its_window() {
    // Two samples of each worker; the hostile ones are asked first.
    let mut calls = Vec::new();
    for manner in MANNERS.iter().rev() {
        let address = endpoint(*manner).await;
        for _ in 0..2 {
            calls.push((*manner, call_of(&format!("{manner:?}"), address)));
        }
    }
    // A window of five blocks of a second.
    let start = Instant::now();
    let plan = Plan::new(start, Duration::from_secs(1), 5).unwrap();
    let (manners, calls): (Vec<Manner>, Vec<Option<Call>>) = calls.into_iter().unzip();
    let disclosed = Client::new().unwrap().gather(calls, plan.disclosed_by).await;
    assert!(Instant::now() < plan.evaluated_by, "what is left is there to evaluate and commit");
    let honest = case();
    for (manner, disclosure) in manners.into_iter().zip(disclosed) {
        let transcript = disclosure.map(|d| check(&honest, d, 4).unwrap());
        let shows = matches!(manner, Manner::Honest | Manner::Late);
        assert_eq!(transcript.is_some(), shows, "{manner:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stalling_workers_take_no_place_of_an_honest_one() {
    // More stalling workers than calls may be under way, four samples of each, all before the honest ones.
    let (stalling, honest) = (endpoint(Manner::Stall).await, endpoint(Manner::Honest).await);
    let mut calls: Vec<Option<Call>> =
        (0..4 * CALLS_MAX).map(|i| call_of(&format!("stalling {}", i % CALLS_MAX), stalling)).collect();
    calls.extend((0..4).map(|_| call_of("honest", honest)));
    let until = Instant::now() + Duration::from_secs(3);
    let disclosed = Client::new().unwrap().gather(calls, until).await;
    let shown: Vec<bool> = disclosed.iter().map(Option::is_some).collect();
    assert_eq!(shown.iter().filter(|shown| **shown).count(), 4);
    assert!(shown.ends_with(&[true; 4]), "all of the honest worker's samples");
}
