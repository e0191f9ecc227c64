//! Messages as the SDK's gateway prints them: proto3 JSON with the field names of the proto files, 64-bit integers as
//! strings, bytes in base64, every field present, `Any` opened under `@type`, and decimals with a point.
//!
//! Decimals are strings or bytes of atomics (10^-18) on the wire; which fields are such is not in their types, so that
//! [`DECIMALS`] names them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage as _, Value as Field};
use serde_json::{Map, Value, json};

use crate::descriptors;

/// Fields that hold decimals, by their full names (`Dec` in the SDK's types).
const DECIMALS: &[&str] = &[
    "cosmos.base.v1beta1.DecCoin.amount",
    "cosmos.base.v1beta1.DecProto.dec",
    "cosmos.distribution.v1beta1.Params.community_tax",
    "cosmos.distribution.v1beta1.Params.base_proposer_reward",
    "cosmos.distribution.v1beta1.Params.bonus_proposer_reward",
    "cosmos.distribution.v1beta1.ValidatorSlashEvent.fraction",
    "cosmos.gov.v1beta1.TallyParams.quorum",
    "cosmos.gov.v1beta1.TallyParams.threshold",
    "cosmos.gov.v1beta1.TallyParams.veto_threshold",
    "cosmos.gov.v1beta1.WeightedVoteOption.weight",
    "cosmos.mint.v1beta1.Params.inflation_rate_change",
    "cosmos.mint.v1beta1.Params.inflation_max",
    "cosmos.mint.v1beta1.Params.inflation_min",
    "cosmos.mint.v1beta1.Params.goal_bonded",
    "cosmos.mint.v1beta1.QueryInflationResponse.inflation",
    "cosmos.mint.v1beta1.QueryAnnualProvisionsResponse.annual_provisions",
    "cosmos.slashing.v1beta1.Params.min_signed_per_window",
    "cosmos.slashing.v1beta1.Params.slash_fraction_double_sign",
    "cosmos.slashing.v1beta1.Params.slash_fraction_downtime",
    "cosmos.staking.v1beta1.CommissionRates.rate",
    "cosmos.staking.v1beta1.CommissionRates.max_rate",
    "cosmos.staking.v1beta1.CommissionRates.max_change_rate",
    "cosmos.staking.v1beta1.Delegation.shares",
    "cosmos.staking.v1beta1.MsgEditValidator.commission_rate",
    "cosmos.staking.v1beta1.Params.min_commission_rate",
    "cosmos.staking.v1beta1.RedelegationEntry.shares_dst",
    "cosmos.staking.v1beta1.Validator.delegator_shares",
];
/// Digits after the point.
const PLACES: usize = 18;
/// How deep messages are opened; deeper ones are left out. A transaction's are six deep.
const DEPTH_MAX: usize = 64;

/// Atomics with a point: `25000000000000000` is `0.025000000000000000`. What is no number stays as it is.
fn decimal(atomics: &str) -> String {
    let (sign, digits) = atomics.strip_prefix('-').map_or(("", atomics), |digits| ("-", digits));
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return atomics.to_owned();
    }
    let padded = format!("{digits:0>width$}", width = PLACES + 1);
    let (whole, part) = padded.split_at(padded.len() - PLACES);
    format!("{sign}{whole}.{part}")
}

/// A message as JSON.
pub fn of(message: &DynamicMessage) -> Value {
    of_message(message, 0)
}

fn of_message(message: &DynamicMessage, depth: usize) -> Value {
    let descriptor = message.descriptor();
    match descriptor.full_name() {
        _ if depth > DEPTH_MAX => return Value::Null,
        "google.protobuf.Any" => return any(message, depth),
        "google.protobuf.Timestamp" => return timestamp(message),
        "google.protobuf.Duration" => return duration(message),
        _ => {}
    }
    let mut object = Map::new();
    for field in descriptor.fields() {
        if message.has_field(&field) {
            object.insert(field.name().into(), of_field(&field, &message.get_field(&field), depth));
        } else if field.containing_oneof().is_none() {
            let unset = match field.kind() {
                Kind::Message(_) if !field.is_list() && !field.is_map() => Value::Null,
                _ => of_field(&field, &Field::default_value_for_field(&field), depth),
            };
            object.insert(field.name().into(), unset);
        }
    }
    Value::Object(object)
}

fn of_field(field: &FieldDescriptor, value: &Field, depth: usize) -> Value {
    match value {
        Field::List(list) => list.iter().map(|value| scalar(field, value, depth)).collect(),
        Field::Map(map) => {
            let pairs = map.iter().map(|(key, value)| (key_text(key), scalar(field, value, depth)));
            let sorted: std::collections::BTreeMap<_, _> = pairs.collect();
            Value::Object(sorted.into_iter().collect())
        }
        value => scalar(field, value, depth),
    }
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key.clone(),
    }
}

fn scalar(field: &FieldDescriptor, value: &Field, depth: usize) -> Value {
    let is_decimal = || DECIMALS.contains(&field.full_name());
    match value {
        Field::Bool(value) => json!(value),
        Field::I32(value) => json!(value),
        Field::U32(value) => json!(value),
        Field::I64(value) => json!(value.to_string()),
        Field::U64(value) => json!(value.to_string()),
        Field::F32(value) => json!(value),
        Field::F64(value) => json!(value),
        Field::String(text) if is_decimal() => json!(decimal(text)),
        Field::String(text) => json!(text),
        Field::Bytes(bytes) if is_decimal() => json!(decimal(&String::from_utf8_lossy(bytes))),
        Field::Bytes(bytes) => json!(STANDARD.encode(bytes)),
        Field::EnumNumber(number) => match field.kind() {
            Kind::Enum(kind) => kind.get_value(*number).map_or_else(|| json!(number), |value| json!(value.name())),
            _ => json!(number),
        },
        Field::Message(message) => of_message(message, depth + 1),
        Field::List(_) | Field::Map(_) => Value::Null,
    }
}

fn number(message: &DynamicMessage, name: &str) -> i64 {
    match message.get_field_by_name(name).as_deref() {
        Some(Field::I64(number)) => *number,
        Some(Field::I32(number)) => i64::from(*number),
        _ => 0,
    }
}

/// The message inside under `@type`; one of an unknown type as its bytes.
fn any(message: &DynamicMessage, depth: usize) -> Value {
    let text = |name: &str| match message.get_field_by_name(name).as_deref() {
        Some(Field::String(text)) => text.clone(),
        _ => String::new(),
    };
    let url = text("type_url");
    let bytes = match message.get_field_by_name("value").as_deref() {
        Some(Field::Bytes(bytes)) => bytes.clone(),
        _ => Default::default(),
    };
    let mut object = Map::new();
    object.insert("@type".into(), json!(url));
    let known = descriptors::message(url.rsplit('/').next().unwrap_or_default());
    match known.and_then(|descriptor| DynamicMessage::decode(descriptor, bytes.clone()).ok()) {
        Some(inner) => match of_message(&inner, depth + 1) {
            Value::Object(fields) => object.extend(fields),
            other => {
                object.insert("value".into(), other);
            }
        },
        None => {
            object.insert("value".into(), json!(STANDARD.encode(&bytes)));
        }
    }
    Value::Object(object)
}

/// Seconds with up to nine digits after the point, without zeros at the end.
fn fraction(nanos: i64) -> String {
    let digits = format!("{:09}", nanos.abs());
    match digits.trim_end_matches('0') {
        "" => String::new(),
        digits => format!(".{digits}"),
    }
}

fn duration(message: &DynamicMessage) -> Value {
    let (seconds, nanos) = (number(message, "seconds"), number(message, "nanos"));
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    json!(format!("{sign}{}{}s", seconds.unsigned_abs(), fraction(nanos)))
}

/// RFC 3339 in UTC, by the civil calendar of days since 1970-01-01.
fn timestamp(message: &DynamicMessage) -> Value {
    let (seconds, nanos) = (number(message, "seconds"), number(message, "nanos"));
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Years begin in March here, so that a leap day is a year's last (H. Hinnant, "chrono-compatible date algorithms").
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    json!(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{}Z", fraction(nanos)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use polylink_protocol::Message;
    use polylink_protocol::cosmos::Any;
    use polylink_protocol::cosmos::cosmos::base::v1beta1::{Coin, DecCoin};
    use polylink_protocol::cosmos::cosmos::staking::v1beta1 as staking;
    use polylink_protocol::tx::any as pack;

    fn json_of<M: Message>(name: &str, message: &M) -> Value {
        of(&descriptors::decode(descriptors::message(name).unwrap(), &message.encode_to_vec()).unwrap())
    }

    #[test]
    fn decimals_have_a_point() {
        for (atomics, text) in [
            ("25000000000000000", "0.025000000000000000"),
            ("1000000000000000000", "1.000000000000000000"),
            ("-1500000000000000000", "-1.500000000000000000"),
            ("0", "0.000000000000000000"),
            ("", ""),
            ("x", "x"),
        ] {
            assert_eq!(decimal(atomics), text);
        }
        let coin = DecCoin { denom: "uplk".into(), amount: "1".into() };
        let json = json_of("cosmos.base.v1beta1.DecCoin", &coin);
        assert_eq!(json, json!({"denom": "uplk", "amount": "0.000000000000000001"}));
        for name in DECIMALS {
            let (message, field) = name.rsplit_once('.').unwrap();
            assert!(descriptors::message(message).unwrap().get_field_by_name(field).is_some(), "{name}");
        }
    }

    #[test]
    fn a_validator_is_printed_as_by_the_sdk() {
        let key = polylink_protocol::cosmos::cosmos::crypto::ed25519::PubKey { key: vec![1; 32] };
        let validator = staking::Validator {
            operator_address: "polyvaloper1x".into(),
            consensus_pubkey: Some(pack(&key)),
            status: 3,
            tokens: "5".into(),
            delegator_shares: "5000000000000000000".into(),
            unbonding_height: 7,
            ..Default::default()
        };
        let json = json_of("cosmos.staking.v1beta1.Validator", &validator);
        assert_eq!(json["status"], "BOND_STATUS_BONDED");
        assert_eq!(json["consensus_pubkey"]["@type"], "/cosmos.crypto.ed25519.PubKey");
        assert_eq!(json["consensus_pubkey"]["key"], STANDARD.encode([1; 32]));
        assert_eq!((&json["unbonding_height"], &json["jailed"]), (&json!("7"), &json!(false)));
        assert_eq!(json["delegator_shares"], "5.000000000000000000");
        assert_eq!((&json["description"], &json["unbonding_ids"]), (&Value::Null, &json!([])));
        let unknown = Any { type_url: "/no.such.Type".into(), value: vec![1] };
        let entry = staking::Validator { consensus_pubkey: Some(unknown), ..Default::default() };
        let json = json_of("cosmos.staking.v1beta1.Validator", &entry);
        assert_eq!(json["consensus_pubkey"], json!({"@type": "/no.such.Type", "value": "AQ=="}));
        assert_eq!(json_of("cosmos.base.v1beta1.Coin", &Coin::default()), json!({"denom": "", "amount": ""}));
    }

    #[test]
    fn times_are_rfc_3339_and_durations_are_seconds() {
        let stamp = |seconds: i64, nanos: i32| {
            let mut message = DynamicMessage::new(descriptors::message("google.protobuf.Timestamp").unwrap());
            message.set_field_by_name("seconds", Field::I64(seconds));
            message.set_field_by_name("nanos", Field::I32(nanos));
            of(&message)
        };
        assert_eq!(stamp(0, 0), "1970-01-01T00:00:00Z");
        assert_eq!(stamp(951_782_400, 0), "2000-02-29T00:00:00Z");
        assert_eq!(stamp(1_795_693_530, 120_000_000), "2026-11-26T11:45:30.12Z");
        assert_eq!(stamp(-1, 0), "1969-12-31T23:59:59Z");
        let mut message = DynamicMessage::new(descriptors::message("google.protobuf.Duration").unwrap());
        message.set_field_by_name("seconds", Field::I64(1_814_400));
        assert_eq!(of(&message), "1814400s");
    }
}
