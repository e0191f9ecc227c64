//! Blocks of quantised weights as model files hold them (ggml's layouts), taken apart into integers and scales.
//!
//! Nothing is rounded here: what a file says is what the products compute with. Superblocks are 256 values along K in
//! eight blocks of 32; the layouts are those of ggml's `block_q4_K`, `block_q5_K` and `block_q6_K`:
//!
//! * Q4_K: d, dmin (f16) ‖ 12 bytes of eight scales and eight minima, 6 bits each ‖ 128 bytes of nibbles: the blocks 2c and
//!   2c + 1 in the low and high halves of bytes 32c … 32c + 31;
//! * Q5_K: d, dmin ‖ 12 bytes as above ‖ 32 bytes of fifth bits (bit j of byte i: value i of block j) ‖ nibbles as above;
//! * Q6_K: 128 bytes of low nibbles ‖ 64 bytes of upper bit pairs ‖ 16 scales (i8, one per 16 values) ‖ d.

use polylink_protocol::exact_math::f16_to_f32;

use crate::backend::Dtype;
use crate::quantise::BLOCK;

/// Values of a superblock.
pub(crate) const SUPER: usize = 256;
/// Blocks of a superblock.
pub(crate) const SUPER_BLOCKS: usize = SUPER / BLOCK;

/// Which superblocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KKind {
    Q4,
    Q5,
    Q6,
}

impl KKind {
    /// Of a tensor's type, if it is one of superblocks.
    pub fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::Q4K => Some(KKind::Q4),
            Dtype::Q5K => Some(KKind::Q5),
            Dtype::Q6K => Some(KKind::Q6),
            _ => None,
        }
    }

    pub fn dtype(self) -> Dtype {
        match self {
            KKind::Q4 => Dtype::Q4K,
            KKind::Q5 => Dtype::Q5K,
            KKind::Q6 => Dtype::Q6K,
        }
    }

    /// What is to be taken off each integer.
    pub fn offset(self) -> i32 {
        if self == KKind::Q6 { 32 } else { 0 }
    }
}

/// 32 weights of a superblock: `(d × scale) × q − dmin × min` with Q4 and Q5, `d × (scale × (q − 32))` with Q6.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KBlock {
    /// As stored: not negative.
    pub quants: [u8; BLOCK],
    /// Of the first and of the last 16 values; Q4 and Q5: twice the same.
    pub scales: [i8; 2],
    /// Q6: 0.
    pub min: u8,
    /// f16 values of the superblock, widened.
    pub d: f32,
    pub dmin: f32,
}

impl KBlock {
    /// Value `i` as f32: rounded once at most, as all products in it are exact.
    pub fn value(&self, kind: KKind, i: usize) -> f32 {
        let (quant, scale) = (i32::from(self.quants[i]), i32::from(self.scales[i / (BLOCK / 2)]));
        match kind {
            KKind::Q6 => self.d * (scale * (quant - 32)) as f32,
            _ => self.d * scale as f32 * quant as f32 - self.dmin * f32::from(self.min),
        }
    }
}

fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// Scale and minimum `j` of the 12 bytes: the first four are the low 6 bits of bytes 0 … 3 and 4 … 7; of the last four,
/// the low 4 bits lie in bytes 8 … 11, the upper 2 at the top of the first four's bytes.
fn scale_and_min(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        return (packed[j] & 63, packed[j + 4] & 63);
    }
    (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
}

/// Block `j` of a superblock's bytes.
pub(crate) fn k_block(kind: KKind, bytes: &[u8], j: usize) -> KBlock {
    let mut quants = [0; BLOCK];
    if kind == KKind::Q6 {
        let (half, group) = (j / 4, j % 4);
        for (i, quant) in quants.iter_mut().enumerate() {
            let low = bytes[64 * half + 32 * (group % 2) + i] >> (group / 2 * 4) & 15;
            *quant = low | (bytes[128 + 32 * half + i] >> (2 * group) & 3) << 4;
        }
        let scale = |g: usize| bytes[192 + 2 * j + g] as i8;
        return KBlock { quants, scales: [scale(0), scale(1)], min: 0, d: f16_at(bytes, 208), dmin: 0.0 };
    }
    let (fifths, nibbles) = match kind {
        KKind::Q5 => (Some(&bytes[16..48]), &bytes[48..]),
        _ => (None, &bytes[16..]),
    };
    for (i, quant) in quants.iter_mut().enumerate() {
        let low = nibbles[j / 2 * BLOCK + i] >> (j % 2 * 4) & 15;
        *quant = low | fifths.map_or(0, |fifths| (fifths[i] >> j & 1) << 4);
    }
    let (scale, min) = scale_and_min(&bytes[4..16], j);
    KBlock { quants, scales: [scale as i8; 2], min, d: f16_at(bytes, 0), dmin: f16_at(bytes, 2) }
}

/// A block of Q8_0 or Q4_0 (`nibbles`): integers with their sign, and the scale.
pub(crate) fn plain_block(nibbles: bool, bytes: &[u8], quants: &mut [i8]) -> f32 {
    let (scale, data) = bytes.split_at(2);
    if nibbles {
        let (low, high) = quants.split_at_mut(BLOCK / 2);
        for ((low, high), byte) in low.iter_mut().zip(high).zip(data) {
            (*low, *high) = ((byte & 15) as i8 - 8, (byte >> 4) as i8 - 8);
        }
    } else {
        quants.iter_mut().zip(data).for_each(|(quant, byte)| *quant = *byte as i8);
    }
    f16_at(scale, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each field of a superblock, set alone, shows where it belongs and nowhere else.
    #[test]
    fn every_bit_of_a_superblock_belongs_to_one_value_or_scale() {
        for kind in [KKind::Q4, KKind::Q5, KKind::Q6] {
            let size = kind.dtype().block().1;
            let mut seen = 0;
            for bit in 0..8 * size {
                let mut bytes = vec![0u8; size];
                bytes[bit / 8] = 1 << (bit % 8);
                let mut found = 0;
                for j in 0..SUPER_BLOCKS {
                    let block = k_block(kind, &bytes, j);
                    found += block.quants.iter().map(|quant| quant.count_ones()).sum::<u32>();
                    let scales = if kind == KKind::Q6 { &block.scales[..] } else { &block.scales[..1] };
                    found += scales.iter().map(|scale| scale.count_ones()).sum::<u32>() + block.min.count_ones();
                    found += u32::from(block.d != 0.0 && j == 0) + u32::from(block.dmin != 0.0 && j == 0);
                }
                // The sign bits of d and dmin alone make −0.
                seen += found;
                assert!(found <= 1, "{kind:?}: bit {bit} is used {found} times");
            }
            let signs = if kind == KKind::Q6 { 1 } else { 2 };
            assert_eq!(seen as usize, 8 * size - signs, "{kind:?}");
        }
    }

    #[test]
    fn plain_blocks_keep_their_integers() {
        let mut quants = [0i8; BLOCK];
        let mut bytes = vec![0u8; 18];
        bytes[..2].copy_from_slice(&0x3800u16.to_le_bytes());
        bytes[2] = 0xf1;
        assert_eq!(plain_block(true, &bytes, &mut quants), 0.5);
        assert_eq!((quants[0], quants[16], quants[1], quants[17]), (-7, 7, -8, -8));
        let bytes: Vec<u8> = (0..34u8).map(|i| if i < 2 { 0 } else { i.wrapping_neg() }).collect();
        assert_eq!(plain_block(false, &bytes, &mut quants), 0.0);
        assert_eq!((quants[0], quants[31]), (-2, -33));
    }
}
