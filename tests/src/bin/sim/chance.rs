//! The process' chance, from a seed.
//!
//! Tokio draws the order in which it wakes those who wait for one thing, and the standard library the order of its hash
//! maps, from numbers that the system gives them once. In this program it gives the same ones to each process, if it was
//! told to: so a run that has a process for itself is the same each time. All else that needs chance in a simulation has it
//! from the seed by itself.
//!
//! With `file_disk` the only module of the crate with unsafe code.

#![allow(unsafe_code)]

use std::ffi::{c_uint, c_void};
use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};

/// The state that the next number comes from; 0: real chance.
static STATE: AtomicU64 = AtomicU64::new(0);

/// From now on there is no chance but this.
pub fn fix() {
    STATE.store(0x5eed, Ordering::Relaxed);
}

/// Takes the place of the C library's function in this program.
///
/// # Safety
/// As of the C library's: so many bytes can be written there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, _: c_uint) -> isize {
    // SAFETY: the caller's promise.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    if STATE.load(Ordering::Relaxed) == 0 {
        let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(bytes));
        return if read.is_ok() { length.cast_signed() } else { -1 };
    }
    for byte in bytes {
        let state = STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        *byte = (mixed >> 56) as u8;
    }
    length.cast_signed()
}
