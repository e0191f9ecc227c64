//! Memory for packed weights, activations and the KV cache: zeroed, aligned for whole vector registers, in huge pages
//! where the system gives them (a model read from start to end for every token otherwise misses the TLB once a page).
#![allow(unsafe_code)] // owns an allocation of its own

use std::alloc::{Layout, alloc, dealloc};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// A cache line: no 64-byte load crosses two.
const LINE: usize = 64;
/// A huge page on x86-64 and (with 4 KiB pages) aarch64.
const HUGE: usize = 2 << 20;

/// Types whose every bit pattern is a value.
pub(crate) trait Plain: Copy + Send + Sync + 'static {}
impl Plain for u8 {}
impl Plain for i8 {}
impl Plain for u16 {}
impl Plain for i32 {}
impl Plain for f32 {}

/// A boxed slice that starts on a cache line.
pub(crate) struct Aligned<T: Plain> {
    start: NonNull<T>,
    length: usize,
    layout: Option<Layout>,
}

// SAFETY: it owns its memory like a `Box<[T]>`, and T is Send and Sync.
unsafe impl<T: Plain> Send for Aligned<T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for Aligned<T> {}

impl<T: Plain> Aligned<T> {
    /// `length` zeros; None if the system has not that much memory.
    pub fn try_zeroed(length: usize) -> Option<Self> {
        if length == 0 {
            return Some(Self { start: NonNull::dangling(), length, layout: None });
        }
        let bytes = length.checked_mul(size_of::<T>())?;
        // In this crate's own tests every buffer ends at a forbidden page (see `fence`), which huge pages do not allow.
        let align = if bytes >= HUGE && !cfg!(test) { HUGE } else { LINE };
        let layout = Layout::from_size_align(bytes, align).ok()?;
        // SAFETY: the layout has a size above 0.
        let start = NonNull::new(unsafe { alloc(layout) })?;
        if align == HUGE {
            advise_huge(start, bytes); // before the first touch, which takes the pages
        }
        // SAFETY: the allocation has `bytes` bytes.
        unsafe { start.write_bytes(0, bytes) };
        Some(Self { start: start.cast(), length, layout: Some(layout) })
    }

    /// `length` zeros.
    pub fn zeroed(length: usize) -> Self {
        Self::try_zeroed(length).unwrap_or_else(|| {
            let bytes = length.saturating_mul(size_of::<T>());
            std::alloc::handle_alloc_error(Layout::from_size_align(bytes, 1).unwrap_or(Layout::new::<T>()))
        })
    }
}

impl<T: Plain> Default for Aligned<T> {
    fn default() -> Self {
        Self::zeroed(0)
    }
}

/// Asks for huge pages; a system that has none just gives small ones.
fn advise_huge(start: NonNull<u8>, bytes: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: the range is this allocation's, and the advice changes no contents.
    unsafe {
        libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, bytes);
}

impl<T: Plain> Deref for Aligned<T> {
    type Target = [T];
    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `length` initialised values lie there, owned by self.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl<T: Plain> DerefMut for Aligned<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and self is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl<T: Plain> Drop for Aligned<T> {
    fn drop(&mut self) {
        if let Some(layout) = self.layout {
            // SAFETY: taken in `try_zeroed` with this layout.
            unsafe { dealloc(self.start.as_ptr().cast(), layout) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_zeroed_aligned_and_writable() {
        for length in [0usize, 1, 63, 64, 1000, HUGE / 4 + 3] {
            let mut values = Aligned::<f32>::zeroed(length);
            assert_eq!(values.len(), length);
            assert!(values.iter().all(|value| value.to_bits() == 0));
            assert!(length == 0 || values.as_ptr().addr().is_multiple_of(LINE));
            values.iter_mut().enumerate().for_each(|(i, value)| *value = i as f32);
            assert!(values.iter().enumerate().all(|(i, value)| *value == i as f32));
        }
        assert!(Aligned::<f32>::try_zeroed(usize::MAX / 2).is_none());
    }

    /// Whether the system may read the byte there (it says so without a signal).
    #[cfg(target_os = "linux")]
    fn readable(at: *const u8) -> bool {
        let mut pipe = [0; 2];
        // SAFETY: a pipe of its own; an address that cannot be read is an error of `write`.
        unsafe {
            assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
            let written = libc::write(pipe[1], at.cast(), 1);
            pipe.into_iter().for_each(|end| assert_eq!(libc::close(end), 0));
            written == 1
        }
    }

    /// What all tests of this crate rest on.
    #[test]
    #[cfg(target_os = "linux")]
    fn buffers_of_tests_end_where_nobody_may_read() {
        for length in [5usize, 64, 1000, 4096, HUGE + 3] {
            let exact = vec![1f32; length];
            let lines = Aligned::<f32>::zeroed(length);
            for (values, end) in [(&exact[..], 4 * length), (&lines, (4 * length).next_multiple_of(LINE))] {
                let start = values.as_ptr().cast::<u8>();
                assert!(readable(start) && readable(start.wrapping_add(4 * length - 1)), "{length}");
                assert!(!readable(start.wrapping_add(end)), "{length}");
            }
            let gone = exact.as_ptr();
            drop(exact);
            assert!(!readable(gone.cast()), "{length}");
        }
    }
}
