//! SIGN_MODE_LEGACY_AMINO_JSON: what hardware wallets sign.
//!
//! The sign document is JSON with sorted keys, without spaces, with `& < >` and the line separators escaped as Go's
//! encoder does. A message stands in it as `{"type": amino name, "value": {…}}`. Rules of a value (the SDK's
//! `x/tx/signing/aminojson`): fields under their proto names; empty ones left out unless marked; 64-bit integers as
//! strings, 32-bit ones and enumerations as numbers; bytes in base64; `Dec` as a decimal; keys as
//! `{"type": …, "value": base64}`. Floats do not exist in it: a message with one must be signed in direct mode.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use polylink_protocol::Dec;
use polylink_protocol::cosmos::cosmos::tx::v1beta1::Fee;
use polylink_protocol::cosmos::{Any, Timestamp};

use super::schema::{self, AMINO_KEYS, AMINO_NESTED, Field, Kind};
use super::wire::{self, Value};
use crate::context::BlockTime;
use crate::error::TxError;
use crate::router;

/// JSON with the one order of keys that the sign document has.
enum Json {
    Text(String),
    Number(i64),
    Bool(bool),
    List(Vec<Json>),
    Object(BTreeMap<String, Json>),
}

impl Json {
    fn write(&self, out: &mut String) {
        match self {
            Json::Text(text) => write_text(text, out),
            Json::Number(number) => out.push_str(&number.to_string()),
            Json::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Json::List(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    out.push_str(if index > 0 { "," } else { "" });
                    item.write(out);
                }
                out.push(']');
            }
            Json::Object(fields) => {
                out.push('{');
                for (index, (name, value)) in fields.iter().enumerate() {
                    out.push_str(if index > 0 { "," } else { "" });
                    write_text(name, out);
                    out.push(':');
                    value.write(out);
                }
                out.push('}');
            }
        }
    }
}

/// A string as Go's `encoding/json` writes it.
fn write_text(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            _ => out.push(c),
        }
    }
    out.push('"');
}

fn text(value: impl ToString) -> Json {
    Json::Text(value.to_string())
}

fn object<const N: usize>(fields: [(&str, Json); N]) -> Json {
    Json::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// The bytes that an amino JSON signer signs.
pub struct SignDoc<'a> {
    /// Chain id.
    pub chain_id: &'a str,
    /// The signer's account number.
    pub account_number: u64,
    /// The signer's sequence.
    pub sequence: u64,
    /// The transaction's fee.
    pub fee: &'a Fee,
    /// Its messages.
    pub messages: &'a [Any],
    /// Its memo.
    pub memo: &'a str,
    /// Its last height, 0 for none.
    pub timeout_height: u64,
}

impl SignDoc<'_> {
    /// The sign bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>, TxError> {
        let coins =
            self.fee.amount.iter().map(|coin| object([("amount", text(&coin.amount)), ("denom", text(&coin.denom))]));
        let mut fee = vec![("amount", Json::List(coins.collect())), ("gas", text(self.fee.gas_limit))];
        for (name, value) in [("payer", &self.fee.payer), ("granter", &self.fee.granter)] {
            if !value.is_empty() {
                fee.push((name, text(value)));
            }
        }
        let messages: Result<Vec<Json>, TxError> = self.messages.iter().map(any).collect();
        let mut document = vec![
            ("account_number", text(self.account_number)),
            ("chain_id", text(self.chain_id)),
            ("fee", Json::Object(fee.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())),
            ("memo", text(self.memo)),
            ("msgs", Json::List(messages?)),
            ("sequence", text(self.sequence)),
        ];
        if self.timeout_height > 0 {
            document.push(("timeout_height", text(self.timeout_height)));
        }
        let document = Json::Object(document.into_iter().map(|(name, value)| (name.to_owned(), value)).collect());
        let mut out = String::new();
        document.write(&mut out);
        Ok(out.into_bytes())
    }
}

fn amino_name(full_name: &str) -> Option<&'static str> {
    let mut nested = AMINO_KEYS.iter().chain(AMINO_NESTED);
    let nested = nested.find(|(name, _)| *name == full_name).map(|(_, amino)| *amino);
    nested.or_else(|| router::message(&format!("/{full_name}")).map(|route| route.amino_name))
}

/// An `Any` as `{"type", "value"}`.
fn any(any: &Any) -> Result<Json, TxError> {
    packed(&any.type_url, &any.value)
}

fn packed(type_url: &str, value: &[u8]) -> Result<Json, TxError> {
    let full_name = schema::full_name(type_url);
    let name = amino_name(full_name)
        .ok_or_else(|| TxError::NotSupported(format!("{type_url} has no amino JSON form: sign in direct mode")))?;
    let value = if AMINO_KEYS.iter().any(|(key, _)| *key == full_name) {
        // A key is its bytes, not an object.
        let key = wire::fields(value)?.into_iter().find_map(|field| match field {
            (1, Value::Bytes(bytes)) => Some(bytes),
            _ => None,
        });
        Json::Text(BASE64.encode(key.unwrap_or_default()))
    } else {
        message(full_name, value)?
    };
    Ok(object([("type", text(name)), ("value", value)]))
}

/// Times are RFC 3339 in UTC with as many decimals as they need, lengths of time are nanoseconds.
fn time_text(full_name: &str, bytes: &[u8]) -> Result<Option<Json>, TxError> {
    if full_name != schema::TIMESTAMP && full_name != schema::DURATION {
        return Ok(None);
    }
    // Both have the same two fields.
    let time: Timestamp =
        polylink_protocol::Message::decode(bytes).map_err(|error| TxError::Decode(format!("{full_name}: {error}")))?;
    if full_name == schema::DURATION {
        return Ok(Some(text(i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos))));
    }
    let whole = BlockTime { seconds: time.seconds, nanos: 0 }.rfc3339();
    let decimals = format!(".{:09}", time.nanos.clamp(0, 999_999_999));
    let decimals = decimals.trim_end_matches('0').trim_end_matches('.');
    Ok(Some(text(format!("{}{decimals}Z", whole.trim_end_matches('Z')))))
}

fn message(full_name: &str, bytes: &[u8]) -> Result<Json, TxError> {
    if let Some(json) = time_text(full_name, bytes)? {
        return Ok(json);
    }
    let schema = schema::of(full_name)
        .ok_or_else(|| TxError::NotSupported(format!("{full_name} has no amino JSON form: sign in direct mode")))?;
    let values = wire::fields(bytes)?;
    let mut out = BTreeMap::new();
    for field in schema {
        let found: Vec<Value<'_>> =
            values.iter().filter(|(number, _)| *number == field.number).map(|(_, value)| *value).collect();
        if let Some(json) = field_json(field, &found)? {
            out.insert(field.name.to_owned(), json);
        }
    }
    Ok(Json::Object(out))
}

/// A field's JSON, or `None` where it is left out.
fn field_json(field: &Field, found: &[Value<'_>]) -> Result<Option<Json>, TxError> {
    if field.repeated {
        let mut items = Vec::new();
        for value in found {
            match (&field.kind, *value) {
                (Kind::Long | Kind::Int | Kind::Bool | Kind::ZigZagLong, Value::Bytes(bytes)) => {
                    let mut packed = bytes;
                    while !packed.is_empty() {
                        items.push(scalar(&field.kind, Value::Varint(wire::varint(&mut packed)?))?);
                    }
                }
                (kind, value) => items.push(scalar(kind, value)?),
            }
        }
        let empty = items.is_empty() && !field.keep_empty;
        return Ok((!empty).then_some(Json::List(items)));
    }
    // The last of several wins, as it does for the decoder. Embedded messages merge there: that needs them to be one.
    if matches!(field.kind, Kind::Message(_) | Kind::Any) && found.len() > 1 {
        return Err(TxError::Decode(format!("field {} stands there twice", field.name)));
    }
    match found.last() {
        Some(value) if field.keep_empty || !is_default(&field.kind, *value) => scalar(&field.kind, *value).map(Some),
        None if field.keep_empty => empty(&field.kind).map(Some),
        _ => Ok(None),
    }
}

/// Proto3's default of a scalar. An embedded message that is there is never one.
fn is_default(kind: &Kind, value: Value<'_>) -> bool {
    match value {
        Value::Varint(value) => value == 0,
        Value::Bytes(bytes) => bytes.is_empty() && !matches!(kind, Kind::Message(_) | Kind::Any),
        Value::Fixed32(bytes) => bytes == [0; 4],
        Value::Fixed64(bytes) => bytes == [0; 8],
    }
}

fn empty(kind: &Kind) -> Result<Json, TxError> {
    match kind {
        Kind::Message(name) => message(name, &[]),
        kind => scalar(kind, Value::Bytes(&[])),
    }
}

fn scalar(kind: &Kind, value: Value<'_>) -> Result<Json, TxError> {
    let utf8 = |bytes: &[u8]| {
        String::from_utf8(bytes.to_vec()).map_err(|_| TxError::Decode("a string that is not UTF-8".into()))
    };
    Ok(match (kind, value) {
        (Kind::Text, Value::Bytes(bytes)) => Json::Text(utf8(bytes)?),
        (Kind::Dec, Value::Bytes(bytes)) => {
            let dec = Dec::from_atomics_str(&utf8(bytes)?);
            text(dec.ok_or_else(|| TxError::invalid("a Dec is decimal digits of 10^-18"))?)
        }
        (Kind::Bytes, Value::Bytes(bytes)) => Json::Text(BASE64.encode(bytes)),
        (Kind::Long, Value::Varint(value)) => text(value),
        (Kind::ZigZagLong, Value::Varint(value)) => text((value >> 1) as i64 ^ -((value & 1) as i64)),
        (Kind::Int, Value::Varint(value)) => Json::Number((value as u32).into()),
        (Kind::Bool, Value::Varint(value)) => Json::Bool(value != 0),
        (Kind::Any, Value::Bytes(bytes)) => {
            let any: Any = polylink_protocol::Message::decode(bytes)
                .map_err(|error| TxError::Decode(format!("google.protobuf.Any: {error}")))?;
            packed(&any.type_url, &any.value)?
        }
        (Kind::Message(name), Value::Bytes(bytes)) => message(name, bytes)?,
        (kind, value) => {
            return Err(TxError::NotSupported(format!(
                "a {kind:?} in wire type {} has no amino JSON form: sign in direct mode",
                value.wire_type()
            )));
        }
    })
}
