//! Protobuf's wire format, read without a schema: a flat list of fields. Ground of the unknown-field check and of amino
//! JSON, which both must see what `prost` drops.

use crate::error::TxError;

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1.
    Fixed64([u8; 8]),
    /// Wire type 2.
    Bytes(&'a [u8]),
    /// Wire type 5.
    Fixed32([u8; 4]),
}

impl Value<'_> {
    /// Its wire type.
    pub fn wire_type(&self) -> u8 {
        match self {
            Value::Varint(_) => 0,
            Value::Fixed64(_) => 1,
            Value::Bytes(_) => 2,
            Value::Fixed32(_) => 5,
        }
    }
}

fn malformed(what: &str) -> TxError {
    TxError::Decode(format!("malformed protobuf: {what}"))
}

/// Splits a message into its fields, in the order of the bytes. Groups (wire types 3 and 4) are refused.
pub fn fields(mut bytes: &[u8]) -> Result<Vec<(u32, Value<'_>)>, TxError> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let number = u32::try_from(key >> 3).ok().filter(|n| (1..1 << 29).contains(n));
        let number = number.ok_or_else(|| malformed("a field number out of range"))?;
        let value = match key & 7 {
            0 => Value::Varint(varint(&mut bytes)?),
            1 => Value::Fixed64(take(&mut bytes, 8)?.try_into().map_err(|_| malformed("a short field"))?),
            2 => {
                let length = varint(&mut bytes)?;
                let length = usize::try_from(length).map_err(|_| malformed("a length beyond the message"))?;
                Value::Bytes(take(&mut bytes, length)?)
            }
            5 => Value::Fixed32(take(&mut bytes, 4)?.try_into().map_err(|_| malformed("a short field"))?),
            other => return Err(malformed(&format!("wire type {other} of field {number}"))),
        };
        out.push((number, value));
    }
    Ok(out)
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8], TxError> {
    if bytes.len() < length {
        return Err(malformed("it ends within a field"));
    }
    let (head, tail) = bytes.split_at(length);
    *bytes = tail;
    Ok(head)
}

/// One varint, at most ten bytes.
pub fn varint(bytes: &mut &[u8]) -> Result<u64, TxError> {
    let mut value = 0_u64;
    for shift in (0..70).step_by(7) {
        let (&byte, tail) = bytes.split_first().ok_or_else(|| malformed("it ends within a varint"))?;
        *bytes = tail;
        if shift == 63 && byte > 1 {
            break;
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(malformed("a varint over 64 bits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_and_refuses() {
        assert_eq!(
            fields(&[0x08, 0x96, 0x01, 0x12, 0x01, 0xff, 0x1d, 1, 0, 0, 0]).unwrap(),
            vec![(1, Value::Varint(150)), (2, Value::Bytes(&[0xff])), (3, Value::Fixed32([1, 0, 0, 0]))]
        );
        for (what, bytes) in [
            ("truncated varint", &[0x08, 0x80][..]),
            ("truncated bytes", &[0x12, 5, 1]),
            ("field 0", &[0x00, 1]),
            ("group", &[0x0b]),
            ("eleven-byte varint", &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]),
            ("length beyond", &[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
        ] {
            assert!(fields(bytes).is_err(), "{what}");
        }
    }
}
