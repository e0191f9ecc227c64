//! Memory for packed weights, activations and the KV cache: zeroed, aligned for whole vector registers, in huge pages
//! where the system gives them (a model read from start to end for every token otherwise misses the TLB once a page).
#![allow(unsafe_code)] // owns an allocation of its own

use std::alloc::Layout;
#[cfg(not(all(test, target_os = "linux")))]
use std::alloc::{alloc, dealloc};
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
        let align = if bytes >= HUGE { HUGE } else { LINE };
        let layout = Layout::from_size_align(bytes, align).ok()?;
        let start = take(layout)?;
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

#[cfg(not(all(test, target_os = "linux")))]
fn take(layout: Layout) -> Option<NonNull<u8>> {
    // SAFETY: the layout has a size above 0.
    let start = NonNull::new(unsafe { alloc(layout) })?;
    if layout.align() == HUGE {
        advise_huge(start, layout.size()); // before the first touch, which takes the pages
    }
    Some(start)
}

/// # Safety
/// `start` was taken with this layout, and nothing refers to it any more.
#[cfg(not(all(test, target_os = "linux")))]
unsafe fn give(start: NonNull<u8>, layout: Layout) {
    // SAFETY: as the caller's.
    unsafe { dealloc(start.as_ptr(), layout) };
}

#[cfg(all(test, target_os = "linux"))]
use guarded::{give, take};

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
            unsafe { give(self.start.cast(), layout) };
        }
    }
}

/// In this crate's own tests, memory ends (within its last cache line) where a page begins that nobody may touch: what
/// reads or writes beyond a buffer ends the test.
#[cfg(all(test, target_os = "linux"))]
mod guarded {
    use super::{LINE, Layout, NonNull, advise_huge};

    fn page() -> usize {
        // SAFETY: asks for a constant of the system.
        usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
    }

    /// Bytes from the buffer's start to the forbidden page, and from the first page's start to it.
    fn sizes(layout: Layout) -> Option<(usize, usize)> {
        let size = layout.size().checked_next_multiple_of(LINE)?;
        Some((size, size.checked_next_multiple_of(page())?))
    }

    pub fn take(layout: Layout) -> Option<NonNull<u8>> {
        let (size, pages) = sizes(layout)?;
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping of whole pages, of which the last is then closed.
        unsafe {
            let map = libc::mmap(std::ptr::null_mut(), pages.checked_add(page())?, access, flags, -1, 0);
            if map == libc::MAP_FAILED {
                return None;
            }
            let map = map.cast::<u8>();
            assert_eq!(libc::mprotect(map.add(pages).cast(), page(), libc::PROT_NONE), 0, "a page can be closed");
            advise_huge(NonNull::new(map)?, pages);
            NonNull::new(map.add(pages - size))
        }
    }

    /// # Safety
    /// `start` was taken with this layout, and nothing refers to it any more.
    pub unsafe fn give(start: NonNull<u8>, layout: Layout) {
        if let Some((size, pages)) = sizes(layout) {
            // SAFETY: as the caller's: this is the whole mapping.
            unsafe { libc::munmap(start.as_ptr().add(size).sub(pages).cast(), pages + page()) };
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
}
