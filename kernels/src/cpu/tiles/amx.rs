//! [`Tiles`] of the processor: Intel AMX (AMX-TILE, AMX-INT8, AMX-BF16).
//!
//! Rust has no stable intrinsics for it: each instruction is one `asm!`. All of them are volatile (none is `pure`), so the
//! compiler keeps their order, and none is `nomem`: it takes each to read and write memory.
//! The compiler itself never uses tile registers; they are named as clobbered all the same. Nothing outlives a call of
//! [`super::tile`]: it takes the registers with `LDTILECFG` and gives them back with `TILERELEASE`, on the thread that
//! it runs on; the system saves them with the thread's other registers.

use std::arch::asm;
use std::sync::OnceLock;

use super::{REGISTERS, Shape, Tiles};
use crate::cpu::isa::InstructionSet;

/// The processor's tile registers.
#[derive(Default)]
pub(super) struct Amx;

/// What `LDTILECFG` reads (SDM, volume 1, "Tile configuration"): palette, start row, bytes per row of 16 registers, rows of
/// 16 registers. Palette 1 has 8 registers; what lies beyond must be 0.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

impl Configuration {
    fn new(shapes: &[Shape; REGISTERS]) -> Self {
        let (mut bytes, mut rows) = ([0; 16], [0; 16]);
        for (register, shape) in shapes.iter().enumerate() {
            assert!(shape.rows <= super::ROWS && shape.bytes <= super::ROW_BYTES, "a tile is of 16 rows of 64 bytes");
            (bytes[register], rows[register]) = (shape.bytes as u16, shape.rows as u8);
        }
        Self { palette: 1, start_row: 0, reserved: [0; 14], bytes, rows }
    }
}

/// An instruction, its operands, and that all tile registers are clobbered.
macro_rules! instruction {
    ($template:literal $($operands:tt)*) => {
        asm!(
            $template
            $($operands)*,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, preserves_flags)
        )
    };
}

// SAFETY of every block below: the trait's callers promise that the machine has the instructions (and that the system has
// granted them), that pointers are good for the tile's rows, and that shapes fit. None of them touches the stack or flags.
impl Tiles for Amx {
    #[inline(always)]
    unsafe fn configure(&mut self, shapes: &[Shape; REGISTERS]) {
        let configuration = Configuration::new(shapes);
        unsafe { instruction!("ldtilecfg [{from}]", from = in(reg) &raw const configuration) }
    }
    #[inline(always)]
    unsafe fn release(&mut self) {
        unsafe { instruction!("tilerelease") }
    }
    #[inline(always)]
    unsafe fn zero<const T: u8>(&mut self) {
        unsafe { instruction!("tilezero tmm{t}", t = const T) }
    }
    #[inline(always)]
    unsafe fn load<const T: u8>(&mut self, from: *const u8, stride: usize) {
        unsafe {
            instruction!("tileloadd tmm{t}, [{from} + {stride}*1]", t = const T, from = in(reg) from, stride = in(reg) stride);
        }
    }
    #[inline(always)]
    unsafe fn store<const T: u8>(&self, to: *mut u8, stride: usize) {
        unsafe {
            instruction!("tilestored [{to} + {stride}*1], tmm{t}", t = const T, to = in(reg) to, stride = in(reg) stride);
        }
    }
    #[inline(always)]
    unsafe fn dot_bytes<const C: u8, const A: u8, const B: u8>(&mut self) {
        unsafe { instruction!("tdpbssd tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B) }
    }
    #[inline(always)]
    unsafe fn dot_pairs<const C: u8, const A: u8, const B: u8>(&mut self) {
        unsafe { instruction!("tdpbf16ps tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B) }
    }
}

/// Whether the processor has tiles, and the system lets this process use them (asked once: the grant is the process's).
pub(crate) fn granted() -> bool {
    static GRANTED: OnceLock<bool> = OnceLock::new();
    *GRANTED.get_or_init(|| InstructionSet::Avx512Bf16.available() && present() && ask())
}

/// CPUID leaf 7: AMX-BF16 (EDX bit 22), AMX-TILE (24), AMX-INT8 (25); and XCR0: the system saves their state (bits 17, 18).
fn present() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const AMX: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    const STATE: u64 = 1 << 17 | 1 << 18;
    #[target_feature(enable = "xsave")]
    fn enabled() -> u64 {
        // SAFETY: the caller saw OSXSAVE: the instruction exists and the system allows it; register 0 always exists.
        unsafe { std::arch::x86_64::_xgetbv(0) }
    }
    let leaf = |number| std::arch::x86_64::__cpuid_count(number, 0);
    if leaf(0).eax < 7 || leaf(1).ecx & OSXSAVE == 0 || leaf(7).edx & AMX != AMX {
        return false;
    }
    // SAFETY: OSXSAVE was seen, so the processor has XSAVE.
    unsafe { enabled() & STATE == STATE }
}

/// Linux gives a process the tiles' large state on demand (`arch_prctl`, Documentation/arch/x86/xstate.rst).
fn ask() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_ulong = 18;
        // SAFETY: the call takes two numbers and changes what the process may use, nothing else.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    false
}

#[cfg(test)]
mod tests {
    use super::super::emulated::Emulated;
    use super::*;

    /// The bytes that the instruction reads, against the manual's table: palette at 0, row widths from 16, rows from 48.
    #[test]
    fn the_configuration_lies_in_memory_as_the_manual_says() {
        let mut shapes = [Shape::default(); REGISTERS];
        (shapes[1], shapes[7]) = (Shape { rows: 16, bytes: 64 }, Shape { rows: 8, bytes: 32 });
        let configuration = Configuration::new(&shapes);
        // SAFETY: 64 bytes without padding.
        let bytes = unsafe { std::mem::transmute::<Configuration, [u8; 64]>(configuration) };
        let mut expected = [0; 64];
        (expected[0], expected[16 + 2], expected[16 + 14], expected[48 + 1], expected[48 + 7]) = (1, 64, 32, 16, 8);
        assert_eq!(bytes, expected);
    }

    /// A product by tiles: everything that [`Tiles`] has, over awkward shapes.
    unsafe fn exercise<T: Tiles>(rows: usize, quads: usize, seed: u32) -> Vec<u8> {
        let mut state = seed;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let (a, b): (Vec<u8>, Vec<u8>) = (0..2 * 16 * 64).map(|_| (byte(), byte())).unzip();
        // bf16 of moderate size: random exponents would mostly be infinite or denormal sums.
        let small = |bytes: &[u8]| -> Vec<u8> {
            bytes.chunks_exact(2).flat_map(|pair| [pair[0], pair[1] & 0x80 | 0x3e | pair[1] & 1]).collect()
        };
        let mut out = vec![0xa5u8; 4 * 16 * 80];
        let mut tiles = T::default();
        let shape = |rows, bytes| Shape { rows, bytes };
        let unused = Shape::default();
        let shapes = [
            shape(rows, 64),
            shape(rows, 64),
            shape(rows, 4 * quads),
            shape(quads, 64),
            shape(rows, 4 * quads),
            shape(quads, 64),
            unused,
            unused,
        ];
        // SAFETY: the caller's machine has T; the shapes fit, and the buffers are larger than the tiles.
        unsafe {
            tiles.configure(&shapes);
            tiles.zero::<0>();
            tiles.load::<1>(small(&a).as_ptr(), 64);
            tiles.load::<2>(a.as_ptr(), 72);
            tiles.load::<3>(b.as_ptr(), 64);
            tiles.dot_bytes::<0, 2, 3>();
            tiles.dot_bytes::<0, 2, 3>();
            tiles.load::<4>(small(&a).as_ptr(), 64);
            tiles.load::<5>(small(&b).as_ptr(), 96);
            tiles.dot_pairs::<1, 4, 5>();
            tiles.store::<0>(out.as_mut_ptr(), 80);
            tiles.store::<1>(out.as_mut_ptr().add(2 * 16 * 80), 64);
            tiles.release();
        }
        out
    }

    #[test]
    fn the_processor_computes_what_the_emulation_does() {
        if !granted() {
            println!("skipped: this machine has no AMX, or the system does not grant it");
            return;
        }
        for (seed, (rows, quads)) in [(16, 16), (16, 8), (1, 8), (7, 4), (16, 4), (3, 16)].into_iter().enumerate() {
            // SAFETY: the machine has AMX.
            let (expected, found) =
                unsafe { (exercise::<Emulated>(rows, quads, seed as u32), exercise::<Amx>(rows, quads, seed as u32)) };
            assert!(expected == found, "{rows} rows, {quads} quads");
        }
    }
}
