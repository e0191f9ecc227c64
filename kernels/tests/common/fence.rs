//! An allocator for tests: whatever is allocated ends (as exactly as its alignment allows) where a page begins that nobody
//! may touch, and cannot be touched once it is freed. What reads or writes beyond a buffer ends the test.
//! Linux only; elsewhere, and while very many allocations live, the system's allocator.
#![allow(unsafe_code)] // opens and closes pages

use std::alloc::{GlobalAlloc, Layout, System};

pub struct Fence;

#[cfg(not(target_os = "linux"))]
mod pages {
    pub fn take(_: std::alloc::Layout) -> Option<*mut u8> {
        None
    }

    pub unsafe fn give(_: *mut u8, _: std::alloc::Layout) -> bool {
        false
    }
}

#[cfg(target_os = "linux")]
mod pages {
    use std::alloc::Layout;
    use std::ptr::null_mut;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    const PAGE: usize = 4096;

    /// Addresses that are never used twice. They take no memory until they are opened.
    const SPACE: usize = 16 << 40;

    /// What is smaller is no buffer of a kernel.
    const LEAST: usize = 16;

    /// A process has 65,530 mappings; an open one splits two closed ones.
    const LIVE: usize = 25_000;

    /// The space's first address; 0 until it is there.
    static SPACE_START: AtomicUsize = AtomicUsize::new(0);
    /// Bytes of it that were handed out.
    static TAKEN: AtomicUsize = AtomicUsize::new(0);
    static OPEN: AtomicUsize = AtomicUsize::new(0);

    fn space() -> Option<usize> {
        let start = SPACE_START.load(Relaxed);
        if start != 0 {
            return Some(start);
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping.
        let map = unsafe { libc::mmap(null_mut(), SPACE, libc::PROT_NONE, flags, -1, 0) };
        if map == libc::MAP_FAILED {
            return None;
        }
        match SPACE_START.compare_exchange(0, map.addr(), Relaxed, Relaxed) {
            Ok(_) => Some(map.addr()),
            Err(first) => {
                // SAFETY: this thread's own, and nobody has seen it.
                unsafe { libc::munmap(map, SPACE) };
                Some(first)
            }
        }
    }

    /// Zeros, a closed page behind them.
    pub fn take(layout: Layout) -> Option<*mut u8> {
        // A panic's backtrace keeps tens of thousands.
        if layout.size() < LEAST || layout.align() > PAGE || OPEN.load(Relaxed) >= LIVE || std::thread::panicking() {
            return None;
        }
        let pages = layout.size().checked_next_multiple_of(PAGE)?;
        let space = space()?;
        let at = TAKEN.fetch_add(pages + PAGE, Relaxed);
        if at + pages + PAGE > SPACE {
            return None;
        }
        let first = std::ptr::with_exposed_provenance_mut::<u8>(space + at);
        // SAFETY: pages of the space that nobody else has.
        if unsafe { libc::mprotect(first.cast(), pages, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
            return None;
        }
        OPEN.fetch_add(1, Relaxed);
        let start = (pages - layout.size()) / layout.align() * layout.align();
        // SAFETY: within these pages.
        Some(unsafe { first.add(start) })
    }

    /// False if it was not taken here.
    ///
    /// # Safety
    /// If it was, then with this layout, and nothing refers to it any more.
    pub unsafe fn give(pointer: *mut u8, layout: Layout) -> bool {
        let space = SPACE_START.load(Relaxed);
        if space == 0 || !(space..space + SPACE).contains(&pointer.addr()) {
            return false;
        }
        let pages = layout.size().next_multiple_of(PAGE);
        let first = pointer.map_addr(|address| address & !(PAGE - 1));
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: the pages that `take` opened, closed for good: their memory goes back.
        unsafe { libc::mmap(first.cast(), pages, libc::PROT_NONE, flags, -1, 0) };
        OPEN.fetch_sub(1, Relaxed);
        true
    }
}

// SAFETY: what `pages` gives is as large and aligned as asked for, and its own; the rest is the system's.
unsafe impl GlobalAlloc for Fence {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller's.
        pages::take(layout).unwrap_or_else(|| unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller's.
        pages::take(layout).unwrap_or_else(|| unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller's.
        unsafe {
            if !pages::give(pointer, layout) {
                System.dealloc(pointer, layout);
            }
        }
    }
}
