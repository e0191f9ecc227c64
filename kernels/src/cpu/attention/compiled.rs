//! A function of attention for each instruction set and each type of the cache.
#![allow(unsafe_code)] // functions compiled for an instruction set

use super::{Queries, SHARED, Scratch};
use crate::backend::KvDtype;
use crate::cpu::cache::{E4m3, Element};
use crate::cpu::isa::{InstructionSet, multiversioned};
use crate::cpu::lanes::Lanes;
use crate::cpu::pool::SharedSlice;

#[inline(always)]
unsafe fn attend_all<L: Lanes, E: Element>(
    queries: &Queries<'_>,
    scratch: &mut Scratch,
    output: &SharedSlice<'_, f32>,
    offset: usize,
    stride: usize,
) {
    let (dim, group) = (queries.kv.head_dim, queries.group);
    let count = queries.rows * group;
    // SAFETY (below): as the caller's; each query writes its own head of its own row.
    let mut to = |index: usize| {
        let at = offset + index / group * stride + index % group * dim;
        unsafe { output.part(at, dim) }.as_mut_ptr()
    };
    let mut first = 0;
    while first < count {
        // SAFETY: as the caller's.
        unsafe {
            first += match count - first {
                SHARED.. => (queries.attend::<L, E, SHARED>(first, scratch, &mut to), SHARED).1,
                2.. => (queries.attend::<L, E, 2>(first, scratch, &mut to), 2).1,
                _ => (queries.attend::<L, E, 1>(first, scratch, &mut to), 1).1,
            };
        }
    }
}

/// Attention of all query heads of a run of rows that read one KV head. Row r's part of `output` starts at
/// `offset + r × stride` with the group's first head.
///
/// # Safety
/// The machine has `set`; no other worker writes these rows' heads.
pub(crate) unsafe fn attend(
    set: InstructionSet,
    queries: &Queries<'_>,
    scratch: &mut Scratch,
    output: &SharedSlice<'_, f32>,
    (offset, stride): (usize, usize),
) {
    // SAFETY: as the caller's.
    unsafe {
        match queries.kv.dtype {
            KvDtype::F32 => over_f32::attend(set, queries, scratch, output, offset, stride),
            KvDtype::Bf16 => over_bf16::attend(set, queries, scratch, output, offset, stride),
            KvDtype::Int8 => over_int8::attend(set, queries, scratch, output, offset, stride),
            KvDtype::Fp8 => over_e4m3::attend(set, queries, scratch, output, offset, stride),
        }
    }
}

/// A function for each: the compiler gives up on keeping sums in registers where one has them all.
macro_rules! over {
    ($name:ident, $element:ty) => {
        mod $name {
            use super::*;

            #[inline(always)]
            unsafe fn body<L: Lanes>(
                queries: &Queries<'_>,
                scratch: &mut Scratch,
                output: &SharedSlice<'_, f32>,
                offset: usize,
                stride: usize,
            ) {
                // SAFETY: as the caller's.
                unsafe { attend_all::<L, $element>(queries, scratch, output, offset, stride) }
            }

            multiversioned! {
                /// [`super::attend`] over a cache of this type.
                ///
                /// # Safety
                /// As there.
                pub(super) unsafe fn attend(
                    queries: &Queries<'_>,
                    scratch: &mut Scratch,
                    output: &SharedSlice<'_, f32>,
                    offset: usize,
                    stride: usize,
                ) = body
            }
        }
    };
}

over!(over_f32, f32);
over!(over_bf16, u16);
over!(over_int8, i8);
over!(over_e4m3, E4m3);
