//! A query's request from texts: fields of the path, then parameters such as `pagination.limit=10`.
//!
//! Parameters that no field has are ignored, as by the SDK's gateway; one that does not fit its field is refused by name.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage as _, Value};

use crate::error::ApiError;

/// Parameters of a request at most.
const PARAMETERS_MAX: usize = 64;

/// Makes the request.
pub fn make<'a>(
    descriptor: MessageDescriptor,
    texts: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<DynamicMessage, ApiError> {
    let mut message = DynamicMessage::new(descriptor);
    for (count, (path, text)) in texts.into_iter().enumerate() {
        if count >= PARAMETERS_MAX {
            return Err(ApiError::invalid(format!("more than {PARAMETERS_MAX} parameters")));
        }
        set(&mut message, path, text).map_err(|reason| {
            let shown: String = text.chars().take(64).flat_map(char::escape_debug).collect();
            ApiError::invalid(format!("parsing field \"{path}\": \"{shown}\" {reason}"))
        })?;
    }
    Ok(message)
}

fn set(message: &mut DynamicMessage, path: &str, text: &str) -> Result<(), &'static str> {
    let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
    let Some(field) = message.descriptor().get_field_by_name(name) else { return Ok(()) };
    match (rest, field.kind()) {
        (Some(rest), Kind::Message(_)) if !field.is_list() && !field.is_map() => match message.get_field_mut(&field) {
            Value::Message(inner) => set(inner, rest, text),
            _ => Ok(()),
        },
        (None, Kind::Message(_)) => Err("is not a message"),
        (Some(_), _) => Ok(()),
        (None, _) => {
            let value = scalar(&field, text)?;
            if field.is_list() {
                if let Value::List(list) = message.get_field_mut(&field) {
                    list.push(value);
                }
            } else {
                message.set_field(&field, value);
            }
            Ok(())
        }
    }
}

fn scalar(field: &FieldDescriptor, text: &str) -> Result<Value, &'static str> {
    let number = "is not a number of its type";
    Ok(match field.kind() {
        Kind::String => Value::String(text.to_owned()),
        Kind::Bool => Value::Bool(text.parse().map_err(|_| "is not true or false")?),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(text.parse().map_err(|_| number)?),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(text.parse().map_err(|_| number)?),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(text.parse().map_err(|_| number)?),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(text.parse().map_err(|_| number)?),
        Kind::Bytes => {
            // A plus of a query string is a space.
            let text = text.replace(' ', "+");
            let bytes = STANDARD.decode(&text).or_else(|_| URL_SAFE.decode(&text));
            Value::Bytes(bytes.map_err(|_| "is not base64")?.into())
        }
        Kind::Enum(kind) => {
            let named = kind.get_value_by_name(text).map(|value| value.number());
            Value::EnumNumber(named.or_else(|| text.parse().ok()).ok_or("is none of its names")?)
        }
        Kind::Double | Kind::Float | Kind::Message(_) => return Err("has a type that no query takes"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptors;
    use polylink_protocol::Message;
    use polylink_protocol::cosmos::cosmos::base::query::v1beta1::PageRequest;
    use polylink_protocol::cosmos::cosmos::staking::v1beta1::QueryValidatorsRequest;

    fn validators(texts: &[(&str, &str)]) -> Result<QueryValidatorsRequest, String> {
        let descriptor = descriptors::message("cosmos.staking.v1beta1.QueryValidatorsRequest").unwrap();
        let made = make(descriptor, texts.iter().copied()).map_err(|error| error.message)?;
        Ok(QueryValidatorsRequest::decode(prost::Message::encode_to_vec(&made).as_slice()).unwrap())
    }

    #[test]
    fn texts_become_fields() {
        let texts = [
            ("status", "BOND_STATUS_BONDED"),
            ("pagination.limit", "7"),
            ("pagination.key", "/w=="),
            ("pagination.count_total", "true"),
            ("no.such", "x"),
            ("other", "y"),
        ];
        let pagination = Some(PageRequest { key: vec![0xff], limit: 7, count_total: true, ..Default::default() });
        let expected = QueryValidatorsRequest { status: "BOND_STATUS_BONDED".into(), pagination };
        assert_eq!(validators(&texts), Ok(expected));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for (name, text) in [
            ("pagination.limit", "-1"),
            ("pagination.limit", "99999999999999999999"),
            ("pagination.count_total", "yes"),
            ("pagination.key", "%"),
            ("pagination", "x"),
        ] {
            let error = validators(&[(name, text)]).unwrap_err();
            assert!(error.contains(name) && error.contains(text), "{error}");
        }
        assert!(validators(&[("status", "x"); 65]).unwrap_err().contains("64"));
    }
}
