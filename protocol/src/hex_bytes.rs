//! Serde for byte fields: lower-case hexadecimal in JSON, so that a person can compare digests by eye.

use serde::{Deserialize, Deserializer, Serializer, de::Error};

/// Writes bytes as hexadecimal.
pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(bytes))
}

/// Reads hexadecimal of either case.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    hex::decode(&text).map_err(|e| D::Error::custom(format!("not hexadecimal: {e}")))
}

/// The same for a list of byte strings.
pub mod list {
    use serde::{Deserialize, Deserializer, Serializer, de::Error, ser::SerializeSeq};

    /// Writes each as hexadecimal.
    pub fn serialize<S: Serializer>(list: &[Vec<u8>], serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_seq(Some(list.len()))?;
        for bytes in list {
            out.serialize_element(&hex::encode(bytes))?;
        }
        out.end()
    }

    /// Reads each from hexadecimal.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<u8>>, D::Error> {
        Vec::<String>::deserialize(deserializer)?
            .iter()
            .map(|text| hex::decode(text).map_err(|e| D::Error::custom(format!("not hexadecimal: {e}"))))
            .collect()
    }
}
