//! [`Tiles`] in software: what Intel's manual (SDM, volume 2) says that each instruction does, step by step.
//!
//! It is slow and only there to hold the code over tiles to its bits where there are none. What the processor would
//! answer with a fault (shapes that do not fit, registers that were not configured) fails an assertion.

use super::{REGISTERS, ROW_BYTES, ROWS, Shape, Tiles};
use crate::operations::{flush, fma_flushed};

type Register = [[u8; ROW_BYTES]; ROWS];

/// The registers and their shapes.
pub(super) struct Emulated {
    shapes: [Shape; REGISTERS],
    registers: [Register; REGISTERS],
}

impl Default for Emulated {
    fn default() -> Self {
        Self { shapes: [Shape::default(); REGISTERS], registers: [[[0; ROW_BYTES]; ROWS]; REGISTERS] }
    }
}

/// Word `index` of a row.
fn word(row: &[u8; ROW_BYTES], index: usize) -> u32 {
    u32::from_le_bytes([row[4 * index], row[4 * index + 1], row[4 * index + 2], row[4 * index + 3]])
}

fn set_word(row: &mut [u8; ROW_BYTES], index: usize, word: u32) {
    row[4 * index..][..4].copy_from_slice(&word.to_le_bytes());
}

/// The two bf16 of a word, even one first, denormals as zeros.
fn pair(word: u32) -> [f32; 2] {
    [flush(f32::from_bits(word << 16)), flush(f32::from_bits(word & 0xffff_0000))]
}

impl Emulated {
    /// Shape of a configured register.
    fn shape(&self, register: u8) -> Shape {
        let shape = self.shapes[register as usize];
        assert!(shape.rows > 0 && shape.bytes > 0, "register {register} is not configured");
        shape
    }

    /// Rows, columns and words of K of a dot product, after the checks that the processor makes.
    fn dot_shape(&self, [c, a, b]: [u8; 3]) -> (usize, usize, usize) {
        assert!(c != a && c != b && a != b, "registers {c}, {a}, {b} are not three");
        let [c, a, b] = [c, a, b].map(|register| self.shape(register));
        assert!([c, a, b].iter().all(|shape| shape.bytes % 4 == 0), "rows are no whole words");
        assert!(c.rows == a.rows && c.bytes == b.bytes && a.bytes / 4 == b.rows, "{c:?}, {a:?}, {b:?} do not fit");
        (c.rows, c.bytes / 4, b.rows)
    }

    /// Writes a result: what lies beyond its rows and columns becomes 0.
    fn write(&mut self, register: u8, rows: usize, columns: usize, value: impl Fn(&Self, usize, usize) -> u32) {
        let mut result = [[0; ROW_BYTES]; ROWS];
        for (m, row) in result.iter_mut().enumerate().take(rows) {
            for n in 0..columns {
                set_word(row, n, value(self, m, n));
            }
        }
        self.registers[register as usize] = result;
    }
}

impl Tiles for Emulated {
    unsafe fn configure(&mut self, shapes: &[Shape; REGISTERS]) {
        for shape in shapes {
            assert!(shape.rows <= ROWS && shape.bytes <= ROW_BYTES, "{shape:?} is larger than a tile");
            assert!((shape.rows == 0) == (shape.bytes == 0), "{shape:?} is half a shape");
        }
        *self = Self { shapes: *shapes, ..Self::default() };
    }

    unsafe fn release(&mut self) {
        *self = Self::default();
    }

    unsafe fn zero<const T: u8>(&mut self) {
        self.shape(T);
        self.registers[T as usize] = [[0; ROW_BYTES]; ROWS];
    }

    unsafe fn load<const T: u8>(&mut self, from: *const u8, stride: usize) {
        let shape = self.shape(T);
        let mut loaded = [[0; ROW_BYTES]; ROWS];
        for (row, to) in loaded.iter_mut().enumerate().take(shape.rows) {
            // SAFETY: the caller's pointer is good for every row of the tile.
            to[..shape.bytes]
                .copy_from_slice(unsafe { std::slice::from_raw_parts(from.add(row * stride), shape.bytes) });
        }
        self.registers[T as usize] = loaded;
    }

    unsafe fn store<const T: u8>(&self, to: *mut u8, stride: usize) {
        let shape = self.shape(T);
        for (row, from) in self.registers[T as usize].iter().enumerate().take(shape.rows) {
            // SAFETY: the caller's pointer is good for every row of the tile, and nobody else uses them now.
            unsafe { to.add(row * stride).copy_from_nonoverlapping(from.as_ptr(), shape.bytes) };
        }
    }

    unsafe fn dot_bytes<const C: u8, const A: u8, const B: u8>(&mut self) {
        let (rows, columns, words) = self.dot_shape([C, A, B]);
        self.write(C, rows, columns, |tiles, m, n| {
            let [c, a, b] = [C, A, B].map(|register| &tiles.registers[register as usize]);
            let mut sum = word(&c[m], n) as i32;
            for (k, b) in b.iter().enumerate().take(words) {
                for i in 0..4 {
                    sum = sum.wrapping_add(i32::from(a[m][4 * k + i] as i8) * i32::from(b[4 * n + i] as i8));
                }
            }
            sum as u32
        });
    }

    unsafe fn dot_pairs<const C: u8, const A: u8, const B: u8>(&mut self) {
        let (rows, columns, words) = self.dot_shape([C, A, B]);
        self.write(C, rows, columns, |tiles, m, n| {
            let [c, a, b] = [C, A, B].map(|register| &tiles.registers[register as usize]);
            let mut sums = [0f32; 2];
            for (k, b) in b.iter().enumerate().take(words) {
                let (x, w) = (pair(word(&a[m], k)), pair(word(b, n)));
                sums = [fma_flushed(x[0], w[0], sums[0]), fma_flushed(x[1], w[1], sums[1])];
            }
            let before = flush(f32::from_bits(word(&c[m], n)));
            flush(before + flush(sums[0] + sums[1])).to_bits()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two rows, two outputs, eight inputs, by hand.
    #[test]
    fn a_product_by_hand() {
        let shape = |rows, bytes| Shape { rows, bytes };
        let mut shapes = [Shape::default(); REGISTERS];
        (shapes[0], shapes[1], shapes[2]) = (shape(2, 8), shape(2, 8), shape(2, 8));
        // Rows of A; B in quads: byte 4n + i of row k is input 4k + i of output n.
        let a: [[i8; 8]; 2] = [[1, 2, 3, 4, 5, 6, 7, 8], [-128, 0, 0, 0, 0, 0, 0, 127]];
        let b: [[i8; 8]; 2] = [[1, 0, 0, 0, -1, -1, -1, -1], [0, 0, 0, 2, 1, 1, 1, -128]];
        let mut out = [[7i32; 2]; 2];
        let mut tiles = Emulated::default();
        // SAFETY: three buffers of two rows of 8 bytes.
        unsafe {
            tiles.configure(&shapes);
            tiles.load::<1>(a.as_ptr().cast(), 8);
            tiles.load::<2>(b.as_ptr().cast(), 8);
            tiles.dot_bytes::<0, 1, 2>();
            tiles.store::<0>(out.as_mut_ptr().cast(), 8);
        }
        assert_eq!(out, [[1 + 16, -10 + 5 + 6 + 7 - 8 * 128], [-128 + 254, 128 - 127 * 128]]);
    }

    /// Even and odd products are summed apart, then together, then onto what was there (a denormal is nothing): numbers
    /// whose sum shows the order.
    #[test]
    fn even_and_odd_pairs_are_summed_apart() {
        let mut shapes = [Shape::default(); REGISTERS];
        (shapes[0], shapes[1], shapes[2]) =
            (Shape { rows: 1, bytes: 4 }, Shape { rows: 1, bytes: 8 }, Shape { rows: 2, bytes: 4 });
        let bf16 = |x: f32| (x.to_bits() >> 16) as u16;
        let (large, unit) = (2f32.powi(30), 2f32.powi(24));
        for (before, a, expected) in [
            (f32::from_bits(5), [large, 1.0, -large, 1.0], 2.0), // one chain over all four loses the first 1
            (unit, [1.0, 1.0, 0.0, 0.0], unit + 2.0),            // one after the other is lost
        ] {
            let (a, b, mut out) = (a.map(bf16), [bf16(1.0); 4], [f32::NAN]);
            let mut tiles = Emulated::default();
            // SAFETY: buffers of the tiles' sizes.
            unsafe {
                tiles.configure(&shapes);
                tiles.load::<0>((&raw const before).cast(), 4);
                tiles.load::<1>(a.as_ptr().cast(), 8);
                tiles.load::<2>(b.as_ptr().cast(), 4);
                tiles.dot_pairs::<0, 1, 2>();
                tiles.store::<0>(out.as_mut_ptr().cast(), 4);
            }
            assert_eq!(out, [expected]);
        }
    }

    #[test]
    #[should_panic(expected = "do not fit")]
    fn shapes_that_do_not_fit_are_refused() {
        let mut shapes = [Shape { rows: 16, bytes: 64 }; REGISTERS];
        shapes[2] = Shape { rows: 8, bytes: 64 };
        let mut tiles = Emulated::default();
        // SAFETY: no memory is touched.
        unsafe {
            tiles.configure(&shapes);
            tiles.dot_bytes::<0, 1, 2>();
        }
    }
}
