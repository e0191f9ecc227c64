//! Which instruction set the loops run in: chosen when the backend is made, or forced (tests hold them all to the same
//! golden bits).

use std::fmt;

/// An instruction set that the CPU operations were compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstructionSet {
    /// As [`InstructionSet::Avx512Bf16`], and AMX tiles of bytes and of bf16 pairs.
    Amx,
    /// AVX-512 F, BW, DQ, VL with FMA, VNNI: byte dot products, and BF16: dot products of bf16 pairs.
    Avx512Bf16,
    /// AVX-512 F, BW, DQ, VL with FMA, and VNNI: byte dot products.
    Avx512Vnni,
    /// AVX-512 F, BW, DQ, VL with FMA.
    Avx512,
    /// AVX2 with FMA and F16C, and AVX-VNNI: byte dot products of 256 bits.
    AvxVnni,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// NEON with byte dot products (aarch64 with DotProd).
    NeonDot,
    /// What the compiler's target has: NEON on aarch64, SSE2 on x86-64 (there fused multiply-adds are library calls:
    /// right, and slow).
    Baseline,
    /// For tests, never detected: the code over AMX tiles on tiles in software, slow, on any machine.
    AmxEmulated,
}

impl InstructionSet {
    /// All that processors have, best first.
    pub const ALL: [InstructionSet; 8] = [
        InstructionSet::Amx,
        InstructionSet::Avx512Bf16,
        InstructionSet::Avx512Vnni,
        InstructionSet::Avx512,
        InstructionSet::AvxVnni,
        InstructionSet::Avx2,
        InstructionSet::NeonDot,
        InstructionSet::Baseline,
    ];

    /// Whether this machine has it.
    pub fn available(self) -> bool {
        match self {
            InstructionSet::Baseline | InstructionSet::AmxEmulated => true,
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Amx => super::tiles::granted(),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512Bf16 => {
                InstructionSet::Avx512Vnni.available() && is_x86_feature_detected!("avx512bf16")
            }
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512Vnni => InstructionSet::Avx512.available() && is_x86_feature_detected!("avx512vnni"),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::AvxVnni => InstructionSet::Avx2.available() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && InstructionSet::Avx2.available()
            }
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "aarch64")]
            InstructionSet::NeonDot => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::NeonDot => false,
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The best one that this machine has.
    pub fn detect() -> Self {
        Self::ALL.into_iter().find(|set| set.available()).unwrap_or(InstructionSet::Baseline)
    }

    /// Whether it has tiles.
    pub(crate) fn has_tiles(self) -> bool {
        matches!(self, InstructionSet::Amx | InstructionSet::AmxEmulated)
    }

    /// Whether products take 8-bit weights with their sign, not with 128 added.
    pub(crate) fn takes_signs(self) -> bool {
        cfg!(target_arch = "aarch64") && matches!(self.lanes(), InstructionSet::NeonDot | InstructionSet::Baseline)
    }

    /// What runs everything but tiles; with tiles, a set that takes activations by four bytes.
    #[inline(always)]
    pub(crate) fn lanes(self) -> Self {
        match self {
            InstructionSet::Amx => InstructionSet::Avx512Bf16,
            InstructionSet::AmxEmulated if InstructionSet::Avx512Vnni.available() => InstructionSet::Avx512Vnni,
            InstructionSet::AmxEmulated => InstructionSet::Baseline,
            set => set,
        }
    }

    /// Bytes that four activations of an integer product take.
    pub(crate) fn quad_bytes(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 | InstructionSet::Avx2 => 8,
            _ => 4,
        }
    }

    /// Name of a backend that uses it.
    pub(crate) fn backend_name(self) -> &'static str {
        match self {
            InstructionSet::Amx => "cpu-amx",
            InstructionSet::AmxEmulated => "cpu-amx-emulated",
            InstructionSet::Avx512Bf16 => "cpu-avx512-bf16",
            InstructionSet::Avx512Vnni => "cpu-avx512-vnni",
            InstructionSet::Avx512 => "cpu-avx512",
            InstructionSet::AvxVnni => "cpu-avx-vnni",
            InstructionSet::Avx2 => "cpu-avx2",
            InstructionSet::NeonDot => "cpu-neon-dot",
            InstructionSet::Baseline if cfg!(target_arch = "aarch64") => "cpu-neon",
            InstructionSet::Baseline => "cpu-baseline",
        }
    }
}

impl fmt::Display for InstructionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.backend_name().trim_start_matches("cpu-"))
    }
}

/// Defines a function `name(set, arguments…)` whose body, generic over `L: Lanes`, is compiled once per instruction set.
/// `body` must be `#[inline(always)]`; the caller must have checked that the machine has `set`.
macro_rules! multiversioned {
    ($(#[$meta:meta])* $vis:vis unsafe fn $name:ident($($arg:ident: $type:ty),* $(,)?) = $body:ident) => {
        $(#[$meta])*
        $vis unsafe fn $name(set: $crate::cpu::isa::InstructionSet, $($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,avx512vnni,avx512bf16")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx512_bf16($($arg: $type),*) {
                // SAFETY: as the caller's; this function has the instructions.
                unsafe { $body::<$crate::cpu::lanes::Avx512<true, true>>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,avx512vnni")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx512_vnni($($arg: $type),*) {
                // SAFETY: as the caller's; this function has the instructions.
                unsafe { $body::<$crate::cpu::lanes::Avx512<true, false>>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx512($($arg: $type),*) {
                // SAFETY: as the caller's; this function has the instructions.
                unsafe { $body::<$crate::cpu::lanes::Avx512<false, false>>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx_vnni($($arg: $type),*) {
                // SAFETY: as the caller's; this function has the instructions.
                unsafe { $body::<$crate::cpu::lanes::Avx2<true>>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx2($($arg: $type),*) {
                // SAFETY: as the caller's; this function has the instructions.
                unsafe { $body::<$crate::cpu::lanes::Avx2<false>>($($arg),*) }
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon,dotprod")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn neon_dot($($arg: $type),*) {
                // SAFETY: as the caller's; this function has the instructions.
                unsafe { $body::<$crate::cpu::lanes::Neon<true>>($($arg),*) }
            }
            // SAFETY: the backend checked at its making that the machine has `set`; the rest is the caller's promise.
            unsafe {
                match set.lanes() {
                    #[cfg(target_arch = "x86_64")]
                    $crate::cpu::isa::InstructionSet::Avx512Bf16 => avx512_bf16($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::cpu::isa::InstructionSet::Avx512Vnni => avx512_vnni($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::cpu::isa::InstructionSet::AvxVnni => avx_vnni($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::cpu::isa::InstructionSet::Avx512 => avx512($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::cpu::isa::InstructionSet::Avx2 => avx2($($arg),*),
                    #[cfg(target_arch = "aarch64")]
                    $crate::cpu::isa::InstructionSet::NeonDot => neon_dot($($arg),*),
                    _ => $body::<$crate::cpu::lanes::Baseline>($($arg),*),
                }
            }
        }
    };
}
pub(crate) use multiversioned;
