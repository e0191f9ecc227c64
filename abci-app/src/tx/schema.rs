//! The fields of the messages that a transaction may contain: what is *known*, and how it looks in amino JSON.
//!
//! `prost` skips unknown fields silently, while a ledger must refuse them: a signer would sign bytes that mean nothing
//! today and something tomorrow. The Cosmos SDK's messages stand in a table here (checked in a test against the
//! generated types); those of PolyLink come from the compiled proto files.

mod governed;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use polylink_protocol::{FILE_DESCRIPTOR_SET, Message};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FileDescriptorSet};

pub use governed::GOVERNED;

/// What a field holds. The names say how amino JSON writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text,
    /// A `cosmos.Dec`: atomics on the wire, a decimal with 18 digits in JSON.
    Dec,
    /// Bytes: base64.
    Bytes,
    /// A 64-bit integer: a string.
    Long,
    /// A signed 64-bit integer in zigzag: a string.
    ZigZagLong,
    /// A 32-bit integer or enumeration: a number.
    Int,
    /// A boolean.
    Bool,
    /// A 32-bit float. Amino JSON has none: a message with one set cannot be signed that way.
    Float,
    /// `google.protobuf.Any`: the amino type and value of what it holds.
    Any,
    /// A message: an object.
    Message(&'static str),
}

/// A field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its number on the wire.
    pub number: u32,
    /// Its name in JSON.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// A list.
    pub repeated: bool,
    /// Written in amino JSON even when empty (the proto option `amino.dont_omitempty`).
    pub keep_empty: bool,
}

const fn f(number: u32, name: &'static str, kind: Kind) -> Field {
    Field { number, name, kind, repeated: false, keep_empty: false }
}
const fn many(number: u32, name: &'static str, kind: Kind) -> Field {
    Field { repeated: true, ..f(number, name, kind) }
}
const fn keep(field: Field) -> Field {
    Field { keep_empty: true, ..field }
}
const fn m(name: &'static str) -> Kind {
    Kind::Message(name)
}

const COIN: Kind = m("cosmos.base.v1beta1.Coin");
/// A point in time.
pub const TIMESTAMP: &str = "google.protobuf.Timestamp";
/// A length of time.
pub const DURATION: &str = "google.protobuf.Duration";

/// The Cosmos SDK's messages that the ledger decodes, with the options of their proto files.
pub const COSMOS: &[(&str, &[Field])] = &[
    (
        "cosmos.tx.v1beta1.TxBody",
        &[
            many(1, "messages", Kind::Any),
            f(2, "memo", Kind::Text),
            f(3, "timeout_height", Kind::Long),
            many(1023, "extension_options", Kind::Any),
            many(2047, "non_critical_extension_options", Kind::Any),
        ],
    ),
    (
        "cosmos.tx.v1beta1.AuthInfo",
        &[
            many(1, "signer_infos", m("cosmos.tx.v1beta1.SignerInfo")),
            f(2, "fee", m("cosmos.tx.v1beta1.Fee")),
            f(3, "tip", m("cosmos.tx.v1beta1.Tip")),
        ],
    ),
    (
        "cosmos.tx.v1beta1.SignerInfo",
        &[
            f(1, "public_key", Kind::Any),
            f(2, "mode_info", m("cosmos.tx.v1beta1.ModeInfo")),
            f(3, "sequence", Kind::Long),
        ],
    ),
    (
        "cosmos.tx.v1beta1.ModeInfo",
        &[f(1, "single", m("cosmos.tx.v1beta1.ModeInfo.Single")), f(2, "multi", m("cosmos.tx.v1beta1.ModeInfo.Multi"))],
    ),
    ("cosmos.tx.v1beta1.ModeInfo.Single", &[f(1, "mode", Kind::Int)]),
    (
        "cosmos.tx.v1beta1.ModeInfo.Multi",
        &[
            f(1, "bitarray", m("cosmos.crypto.multisig.v1beta1.CompactBitArray")),
            many(2, "mode_infos", m("cosmos.tx.v1beta1.ModeInfo")),
        ],
    ),
    (
        "cosmos.crypto.multisig.v1beta1.CompactBitArray",
        &[f(1, "extra_bits_stored", Kind::Int), f(2, "elems", Kind::Bytes)],
    ),
    (
        "cosmos.tx.v1beta1.Fee",
        &[
            keep(many(1, "amount", COIN)),
            f(2, "gas_limit", Kind::Long),
            f(3, "payer", Kind::Text),
            f(4, "granter", Kind::Text),
        ],
    ),
    ("cosmos.tx.v1beta1.Tip", &[many(1, "amount", COIN), f(2, "tipper", Kind::Text)]),
    ("cosmos.base.v1beta1.Coin", &[f(1, "denom", Kind::Text), keep(f(2, "amount", Kind::Text))]),
    ("cosmos.crypto.secp256k1.PubKey", &[f(1, "key", Kind::Bytes)]),
    ("cosmos.crypto.ed25519.PubKey", &[f(1, "key", Kind::Bytes)]),
    ("cosmos.crypto.multisig.LegacyAminoPubKey", &[f(1, "threshold", Kind::Int), many(2, "public_keys", Kind::Any)]),
    (
        "cosmos.bank.v1beta1.MsgSend",
        &[f(1, "from_address", Kind::Text), f(2, "to_address", Kind::Text), keep(many(3, "amount", COIN))],
    ),
    (
        "cosmos.bank.v1beta1.MsgMultiSend",
        &[
            keep(many(1, "inputs", m("cosmos.bank.v1beta1.Input"))),
            keep(many(2, "outputs", m("cosmos.bank.v1beta1.Output"))),
        ],
    ),
    ("cosmos.bank.v1beta1.Input", &[f(1, "address", Kind::Text), keep(many(2, "coins", COIN))]),
    ("cosmos.bank.v1beta1.Output", &[f(1, "address", Kind::Text), keep(many(2, "coins", COIN))]),
    // Amino JSON has texts for these two.
    (TIMESTAMP, &[f(1, "seconds", Kind::Long), f(2, "nanos", Kind::Int)]),
    (DURATION, &[f(1, "seconds", Kind::Long), f(2, "nanos", Kind::Int)]),
    (
        "cosmos.feegrant.v1beta1.MsgGrantAllowance",
        &[f(1, "granter", Kind::Text), f(2, "grantee", Kind::Text), f(3, "allowance", Kind::Any)],
    ),
    ("cosmos.feegrant.v1beta1.MsgRevokeAllowance", &[f(1, "granter", Kind::Text), f(2, "grantee", Kind::Text)]),
    ("cosmos.feegrant.v1beta1.MsgPruneAllowances", &[f(1, "pruner", Kind::Text)]),
    ("cosmos.feegrant.v1beta1.BasicAllowance", &[keep(many(1, "spend_limit", COIN)), f(2, "expiration", m(TIMESTAMP))]),
    (
        "cosmos.feegrant.v1beta1.PeriodicAllowance",
        &[
            keep(f(1, "basic", m("cosmos.feegrant.v1beta1.BasicAllowance"))),
            keep(f(2, "period", m(DURATION))),
            keep(many(3, "period_spend_limit", COIN)),
            keep(many(4, "period_can_spend", COIN)),
            keep(f(5, "period_reset", m(TIMESTAMP))),
        ],
    ),
    (
        "cosmos.feegrant.v1beta1.AllowedMsgAllowance",
        &[f(1, "allowance", Kind::Any), many(2, "allowed_messages", Kind::Text)],
    ),
    (
        "cosmos.staking.v1beta1.MsgCreateValidator",
        &[
            keep(f(1, "description", m("cosmos.staking.v1beta1.Description"))),
            keep(f(2, "commission", m("cosmos.staking.v1beta1.CommissionRates"))),
            keep(f(3, "min_self_delegation", Kind::Text)),
            f(4, "delegator_address", Kind::Text),
            f(5, "validator_address", Kind::Text),
            f(6, "pubkey", Kind::Any),
            keep(f(7, "value", COIN)),
        ],
    ),
    (
        "cosmos.staking.v1beta1.Description",
        &[
            f(1, "moniker", Kind::Text),
            f(2, "identity", Kind::Text),
            f(3, "website", Kind::Text),
            f(4, "security_contact", Kind::Text),
            f(5, "details", Kind::Text),
        ],
    ),
    (
        "cosmos.staking.v1beta1.CommissionRates",
        &[keep(f(1, "rate", Kind::Dec)), keep(f(2, "max_rate", Kind::Dec)), keep(f(3, "max_change_rate", Kind::Dec))],
    ),
    (
        "cosmos.staking.v1beta1.MsgDelegate",
        &[f(1, "delegator_address", Kind::Text), f(2, "validator_address", Kind::Text), keep(f(3, "amount", COIN))],
    ),
    (
        "cosmos.staking.v1beta1.MsgUndelegate",
        &[f(1, "delegator_address", Kind::Text), f(2, "validator_address", Kind::Text), keep(f(3, "amount", COIN))],
    ),
    (
        "cosmos.staking.v1beta1.MsgEditValidator",
        &[
            keep(f(1, "description", m("cosmos.staking.v1beta1.Description"))),
            f(2, "validator_address", Kind::Text),
            f(3, "commission_rate", Kind::Dec),
            f(4, "min_self_delegation", Kind::Text),
        ],
    ),
    (
        "cosmos.staking.v1beta1.MsgBeginRedelegate",
        &[
            f(1, "delegator_address", Kind::Text),
            f(2, "validator_src_address", Kind::Text),
            f(3, "validator_dst_address", Kind::Text),
            keep(f(4, "amount", COIN)),
        ],
    ),
    (
        "cosmos.staking.v1beta1.MsgCancelUnbondingDelegation",
        &[
            f(1, "delegator_address", Kind::Text),
            f(2, "validator_address", Kind::Text),
            keep(f(3, "amount", COIN)),
            f(4, "creation_height", Kind::Long),
        ],
    ),
    (
        "cosmos.distribution.v1beta1.MsgWithdrawDelegatorReward",
        &[f(1, "delegator_address", Kind::Text), f(2, "validator_address", Kind::Text)],
    ),
    ("cosmos.distribution.v1beta1.MsgWithdrawValidatorCommission", &[f(1, "validator_address", Kind::Text)]),
    (
        "cosmos.distribution.v1beta1.MsgSetWithdrawAddress",
        &[f(1, "delegator_address", Kind::Text), f(2, "withdraw_address", Kind::Text)],
    ),
    (
        "cosmos.distribution.v1beta1.MsgFundCommunityPool",
        &[keep(many(1, "amount", COIN)), f(2, "depositor", Kind::Text)],
    ),
    // The proto file gives it this name in amino JSON.
    ("cosmos.slashing.v1beta1.MsgUnjail", &[keep(f(1, "address", Kind::Text))]),
];

/// Messages that have no route in the ledger and stand inside others as `Any`, with their amino names.
pub const AMINO_KEYS: &[(&str, &str)] = &[
    ("cosmos.crypto.secp256k1.PubKey", "tendermint/PubKeySecp256k1"),
    ("cosmos.crypto.ed25519.PubKey", "tendermint/PubKeyEd25519"),
];

/// Messages without a route that stand inside others as `Any` and are objects in amino JSON, with their amino names.
pub const AMINO_NESTED: &[(&str, &str)] = &[
    ("cosmos.feegrant.v1beta1.BasicAllowance", "cosmos-sdk/BasicAllowance"),
    ("cosmos.feegrant.v1beta1.PeriodicAllowance", "cosmos-sdk/PeriodicAllowance"),
    ("cosmos.feegrant.v1beta1.AllowedMsgAllowance", "cosmos-sdk/AllowedMsgAllowance"),
    ("cosmos.gov.v1beta1.TextProposal", "cosmos-sdk/TextProposal"),
];

static SCHEMAS: LazyLock<BTreeMap<String, Vec<Field>>> = LazyLock::new(|| {
    let mut all: BTreeMap<String, Vec<Field>> =
        COSMOS.iter().chain(GOVERNED).map(|(name, fields)| ((*name).to_owned(), fields.to_vec())).collect();
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("the descriptors are compiled into the binary");
    for file in &set.file {
        for message in &file.message_type {
            all.insert(format!("{}.{}", file.package(), message.name()), fields_of(message));
        }
    }
    all
});

/// Names of the compiled descriptors live as long as the process: they are read once.
fn leak(name: &str) -> &'static str {
    Box::leak(name.to_owned().into_boxed_str())
}

fn fields_of(message: &DescriptorProto) -> Vec<Field> {
    let kind = |field: &prost_types::FieldDescriptorProto| match field.r#type() {
        Type::String => Kind::Text,
        Type::Bytes => Kind::Bytes,
        Type::Uint64 | Type::Int64 => Kind::Long,
        Type::Sint64 => Kind::ZigZagLong,
        Type::Uint32 | Type::Int32 | Type::Enum => Kind::Int,
        Type::Bool => Kind::Bool,
        Type::Float => Kind::Float,
        Type::Message => Kind::Message(leak(field.type_name().trim_start_matches('.'))),
        other => unreachable!("the project's proto files use no {other:?}; a test walks all of them"),
    };
    let field = |field: &prost_types::FieldDescriptorProto| Field {
        number: u32::try_from(field.number()).expect("field numbers are positive"),
        name: leak(field.name()),
        kind: kind(field),
        repeated: field.label() == Label::Repeated,
        keep_empty: false,
    };
    message.field.iter().map(field).collect()
}

/// The fields of a message by its full name, if the ledger knows it.
pub fn of(full_name: &str) -> Option<&'static [Field]> {
    SCHEMAS.get(full_name).map(Vec::as_slice)
}

/// All full names.
pub fn names() -> impl Iterator<Item = &'static str> {
    SCHEMAS.keys().map(String::as_str)
}

/// The full name in a type URL: what stands behind its last slash.
pub fn full_name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or(type_url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use polylink_protocol::cosmos::cosmos as sdk;

    /// Whether `M` knows field `number`: prost fails on a known field in an impossible wire type and skips an unknown.
    fn knows<M: Message + Default>(number: u32) -> bool {
        // Fixed 64 bits: no message in the table has such a field.
        let mut bytes = Vec::new();
        prost::encoding::encode_key(number, prost::encoding::WireType::SixtyFourBit, &mut bytes);
        bytes.extend_from_slice(&[0; 8]);
        M::decode(bytes.as_slice()).is_err()
    }

    pub(super) fn check<M: Message + Default + prost::Name>() -> String {
        check_named::<M>(&M::full_name())
    }

    pub(super) fn check_named<M: Message + Default>(name: &str) -> String {
        let fields = of(name).unwrap_or_else(|| panic!("{name} has no schema"));
        for number in 1..2_100 {
            assert_eq!(fields.iter().any(|field| field.number == number), knows::<M>(number), "{name}: field {number}");
        }
        name.to_owned()
    }

    #[test]
    fn the_table_agrees_with_the_generated_types() {
        use sdk::distribution::v1beta1 as distribution;
        use sdk::feegrant::v1beta1 as feegrant;
        use sdk::staking::v1beta1 as staking;
        use sdk::tx::v1beta1 as tx;
        let checked = [
            check::<tx::TxBody>(),
            check::<tx::AuthInfo>(),
            check::<tx::SignerInfo>(),
            check::<tx::ModeInfo>(),
            check::<tx::mode_info::Single>(),
            check::<tx::mode_info::Multi>(),
            check::<sdk::crypto::multisig::v1beta1::CompactBitArray>(),
            check::<tx::Fee>(),
            check::<tx::Tip>(),
            check::<sdk::base::v1beta1::Coin>(),
            check::<sdk::crypto::secp256k1::PubKey>(),
            check::<sdk::crypto::ed25519::PubKey>(),
            check::<sdk::crypto::multisig::LegacyAminoPubKey>(),
            check::<sdk::bank::v1beta1::MsgSend>(),
            check::<sdk::bank::v1beta1::MsgMultiSend>(),
            check::<sdk::bank::v1beta1::Input>(),
            check::<sdk::bank::v1beta1::Output>(),
            check_named::<polylink_protocol::cosmos::Timestamp>(TIMESTAMP),
            check_named::<polylink_protocol::cosmos::tendermint::google::protobuf::Duration>(DURATION),
            check::<feegrant::MsgGrantAllowance>(),
            check::<feegrant::MsgRevokeAllowance>(),
            check::<feegrant::MsgPruneAllowances>(),
            check::<feegrant::BasicAllowance>(),
            check::<feegrant::PeriodicAllowance>(),
            check::<feegrant::AllowedMsgAllowance>(),
            check::<staking::MsgCreateValidator>(),
            check::<staking::Description>(),
            check::<staking::CommissionRates>(),
            check::<staking::MsgDelegate>(),
            check::<staking::MsgUndelegate>(),
            check::<staking::MsgEditValidator>(),
            check::<staking::MsgBeginRedelegate>(),
            check::<staking::MsgCancelUnbondingDelegation>(),
            check::<distribution::MsgWithdrawDelegatorReward>(),
            check::<distribution::MsgWithdrawValidatorCommission>(),
            check::<distribution::MsgSetWithdrawAddress>(),
            check::<distribution::MsgFundCommunityPool>(),
            check::<sdk::slashing::v1beta1::MsgUnjail>(),
        ];
        for (name, _) in COSMOS {
            assert!(checked.iter().any(|checked| checked == name), "{name} is not checked");
        }
    }

    #[test]
    fn every_message_named_by_a_field_is_there() {
        for name in names() {
            for field in of(name).unwrap() {
                if let Kind::Message(inner) = field.kind {
                    assert!(of(inner).is_some(), "{name}.{} is a {inner}, which has no schema", field.name);
                }
            }
        }
        assert!(of("polylink.market.v1.MsgOpenSession").is_some());
    }
}
