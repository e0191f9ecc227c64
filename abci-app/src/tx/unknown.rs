//! Refusal of unknown fields, as the Cosmos SDK's `unknownproto` does it.
//!
//! A field that is not in the schema is refused, at any depth and inside every `Any` whose type is known. In the body of
//! a transaction a field whose number has bit 11 set is *non-critical*: tolerated, and reported, since a signature over
//! amino JSON would not cover it.

use super::schema::{self, Field, Kind};
use super::wire::{self, Value};
use crate::error::TxError;

/// Bit 11 of a field's number marks it as non-critical (ADR-020).
const NON_CRITICAL: u32 = 1 << 11;

/// Messages within messages at most.
const DEPTH_MAX: u32 = 16;

/// Which unknown fields are tolerated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// None (AuthInfo).
    Strict,
    /// Non-critical ones (TxBody).
    NonCritical,
}

/// Walks the message `full_name`. True when it has tolerated unknown fields.
pub fn check(full_name: &str, bytes: &[u8], policy: Policy) -> Result<bool, TxError> {
    walk(full_name, bytes, policy, DEPTH_MAX)
}

fn walk(full_name: &str, bytes: &[u8], policy: Policy, depth: u32) -> Result<bool, TxError> {
    let schema = schema::of(full_name)
        .ok_or_else(|| TxError::Decode(format!("{full_name} is no message that this ledger decodes")))?;
    if depth == 0 {
        return Err(TxError::Decode(format!("messages nested deeper than {DEPTH_MAX}")));
    }
    let mut tolerated = false;
    for (number, value) in wire::fields(bytes)? {
        let Some(field) = schema.iter().find(|field| field.number == number) else {
            if policy == Policy::NonCritical && number & NON_CRITICAL != 0 {
                tolerated = true;
                continue;
            }
            return Err(TxError::Decode(format!(
                "{full_name} has no field {number} (wire type {}): errUnknownField",
                value.wire_type()
            )));
        };
        tolerated |= inner(full_name, field, value, policy, depth)?;
    }
    Ok(tolerated)
}

fn inner(full_name: &str, field: &Field, value: Value<'_>, policy: Policy, depth: u32) -> Result<bool, TxError> {
    match (&field.kind, value) {
        (Kind::Message(name), Value::Bytes(bytes)) => walk(name, bytes, policy, depth - 1),
        (Kind::Any, Value::Bytes(bytes)) => any(bytes, policy, depth - 1),
        (kind, value) if accepts(kind, field.repeated, value.wire_type()) => Ok(false),
        (_, value) => Err(TxError::Decode(format!(
            "{full_name}.{} in wire type {}: mismatched wire type",
            field.name,
            value.wire_type()
        ))),
    }
}

/// The wire types in which a field may come; numbers of a list also packed.
fn accepts(kind: &Kind, repeated: bool, wire_type: u8) -> bool {
    match kind {
        Kind::Text | Kind::Dec | Kind::Bytes => wire_type == 2,
        Kind::Long | Kind::ZigZagLong | Kind::Int | Kind::Bool => wire_type == 0 || (repeated && wire_type == 2),
        Kind::Float => wire_type == 5 || (repeated && wire_type == 2),
        Kind::Any | Kind::Message(_) => false,
    }
}

/// An `Any`: nothing but its two fields, and within it the message of its type. A type that has no schema is left to
/// the router, which refuses it by name.
fn any(bytes: &[u8], policy: Policy, depth: u32) -> Result<bool, TxError> {
    let (mut type_url, mut value) = ("", &[][..]);
    for field in wire::fields(bytes)? {
        match field {
            (1, Value::Bytes(text)) => {
                type_url =
                    std::str::from_utf8(text).map_err(|_| TxError::Decode("a type URL that is not UTF-8".into()))?;
            }
            (2, Value::Bytes(inner)) => value = inner,
            (number, _) => {
                return Err(TxError::Decode(format!("google.protobuf.Any has no field {number}: errUnknownField")));
            }
        }
    }
    let name = schema::full_name(type_url);
    if schema::of(name).is_none() { Ok(false) } else { walk(name, value, policy, depth) }
}
