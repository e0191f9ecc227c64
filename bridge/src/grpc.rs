//! gRPC with reflection, as the SDK serves it: every method of the descriptors, its bytes passed on as they are.
//!
//! Messages are not decoded here, so that one handler serves all methods; what a call is, tonic knows.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderValue, Response};
use bytes::{Buf, BufMut, Bytes};
use prost_reflect::MethodDescriptor;
use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataValue;
use tonic::server::{Grpc, UnaryService};
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Status};
use tonic_reflection::pb::{v1, v1alpha};
use tonic_reflection::server::Builder;

use crate::{ApiError, BODY_BYTES_MAX, Bridge, REQUESTS_MAX, descriptors, height_of};

/// From a call's begin to its answer at most, the reading of its message included.
const CALL_MAX: Duration = Duration::from_secs(30);
/// Bytes of a message at most: of what a body of REST holds in base64.
const MESSAGE_BYTES_MAX: usize = BODY_BYTES_MAX / 4 * 3;
/// Streams of a connection at a time.
const STREAMS_MAX: u32 = REQUESTS_MAX as u32;
/// Bytes of a call's metadata at most.
const METADATA_BYTES_MAX: u32 = 16 * 1024;
/// Bytes of what is asked of reflection: a name.
const NAME_BYTES_MAX: usize = 16 * 1024;
/// Characters of a status' message: clients take metadata of 8 KiB.
const REASON_CHARS_MAX: usize = 1_024;
/// A silent connection is asked after so long whether somebody is there.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// How the ledger's log begins with the code that the status has besides.
const PREFIX: &str = "rpc error: code = ";

/// Serves it until it is dropped.
pub async fn serve(bridge: Bridge, listener: TcpListener) -> std::io::Result<()> {
    let reflection = || {
        let of_itself = Builder::configure().include_reflection_service(false);
        [descriptors::ENCODED, v1::FILE_DESCRIPTOR_SET, v1alpha::FILE_DESCRIPTOR_SET]
            .into_iter()
            .fold(of_itself, Builder::register_encoded_file_descriptor_set)
    };
    let newer = reflection().build_v1().map_err(std::io::Error::other)?;
    let older = reflection().build_v1alpha().map_err(std::io::Error::other)?;
    let router = Routes::new(newer.max_decoding_message_size(NAME_BYTES_MAX))
        .add_service(older.max_decoding_message_size(NAME_BYTES_MAX))
        .into_axum_router()
        .fallback(move |request: Request| handle(bridge.clone(), request));
    Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(METADATA_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .add_routes(Routes::from(router))
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
        .await
        .map_err(std::io::Error::other)
}

async fn handle(bridge: Bridge, request: Request) -> Response<Body> {
    let path = request.uri().path().trim_start_matches('/');
    let found = descriptors::method(path).ok_or_else(|| unknown(path));
    let asked = found.and_then(|method| Ok((method, height_of(request.headers()).map_err(Status::from)?)));
    let (method, height) = match asked {
        Ok(asked) => asked,
        Err(status) => return status.into_http(),
    };
    let mut grpc = Grpc::new(Raw).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let answer = grpc.unary(Call { bridge, method, height }, request);
    let Ok(mut response) = tokio::time::timeout(CALL_MAX, answer).await else {
        return Status::deadline_exceeded(format!("no answer within {} s", CALL_MAX.as_secs())).into_http();
    };
    // tonic says so of a message that is too large; other servers of gRPC, the SDK's too, say that it exhausts them.
    let status = response.headers_mut().get_mut(Status::GRPC_STATUS);
    if let Some(code) = status.filter(|code| Code::from_bytes(code.as_bytes()) == Code::OutOfRange) {
        *code = HeaderValue::from(Code::ResourceExhausted as i32);
    }
    response
}

/// As the SDK's server says it.
fn unknown(path: &str) -> Status {
    let (service, method) = path.split_once('/').unwrap_or((path, ""));
    let known = descriptors::POOL.get_service_by_name(service).is_some();
    let shown = |name: &str| name.chars().take(256).collect::<String>();
    Status::unimplemented(match known {
        true => format!("unknown method {} for service {service}", shown(method)),
        false => format!("unknown service {}", shown(service)),
    })
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let reason = error.message.strip_prefix(PREFIX).and_then(|rest| rest.split_once(" desc = "));
        let reason = reason.map_or(error.message.as_str(), |(_, reason)| reason);
        let code = i32::try_from(error.code).map_or(Code::Unknown, Code::from_i32);
        Status::new(code, reason.chars().take(REASON_CHARS_MAX).collect::<String>())
    }
}

/// One call of a method.
struct Call {
    bridge: Bridge,
    method: MethodDescriptor,
    height: u64,
}

impl UnaryService<Bytes> for Call {
    type Response = Bytes;
    type Future = Pin<Box<dyn Future<Output = Result<tonic::Response<Bytes>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        let (bridge, method, height) = (self.bridge.clone(), self.method.clone(), self.height);
        Box::pin(async move {
            let answered = bridge.answer(&method, request.get_ref(), height).await?;
            let mut response = tonic::Response::new(Bytes::from(answered.value));
            if let Some(height) = answered.height {
                response.metadata_mut().insert(crate::HEIGHT.as_str(), MetadataValue::from(height));
            }
            Ok(response)
        })
    }
}

/// Messages as bytes.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{INVALID_ARGUMENT, NOT_FOUND};

    #[test]
    fn a_status_says_its_code_once_and_not_at_any_length() {
        let status =
            Status::from(ApiError::new(NOT_FOUND, "rpc error: code = NotFound desc = session 9: key not found"));
        assert_eq!((status.code(), status.message()), (Code::NotFound, "session 9: key not found"));
        let status = Status::from(ApiError::new(INVALID_ARGUMENT, "é".repeat(5_000)));
        assert_eq!((status.code(), status.message().chars().count()), (Code::InvalidArgument, REASON_CHARS_MAX));
    }

    #[test]
    fn what_there_is_not_is_named() {
        for (path, said) in [
            ("no.Such/Method", "unknown service no.Such"),
            ("cosmos.bank.v1beta1.Query/Nothing", "unknown method Nothing for service cosmos.bank.v1beta1.Query"),
            ("", "unknown service "),
        ] {
            let status = unknown(path);
            assert_eq!((status.code(), status.message()), (Code::Unimplemented, said));
        }
    }
}
