//! Every message that the chain speaks, by its full name, and every method.

use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor};

use crate::error::ApiError;

/// As reflection hands them out, file by file.
pub const ENCODED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// All of them.
pub static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(ENCODED).expect("the build has compiled these descriptors"));

/// A message by its full name.
pub fn message(name: &str) -> Option<MessageDescriptor> {
    POOL.get_message_by_name(name)
}

/// A method by `package.Service/Method`.
pub fn method(path: &str) -> Option<MethodDescriptor> {
    let (service, method) = path.split_once('/')?;
    POOL.get_service_by_name(service)?.methods().find(|found| found.name() == method)
}

/// The ABCI path of a method.
pub fn abci_path(method: &MethodDescriptor) -> String {
    format!("/{}/{}", method.parent_service().full_name(), method.name())
}

/// Decodes what the node sent.
pub fn decode(descriptor: MessageDescriptor, bytes: &[u8]) -> Result<DynamicMessage, ApiError> {
    let name = descriptor.full_name().to_owned();
    DynamicMessage::decode(descriptor, bytes).map_err(|error| ApiError::unavailable(format!("{name}: {error}")))
}
