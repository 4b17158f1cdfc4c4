//! Handles: boxes the caller holds by pointer, known by address until they are freed, so that a
//! pointer freed twice or of another kind is refused instead of followed.

use std::any::TypeId;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_char;
use std::sync::{Mutex, PoisonError, RwLock};

use super::guard::{Fault, put};
use crate::error::Error;

/// A type that handles refer to.
pub trait Handle: Send + Sync + 'static {
    /// The name of the C type.
    const NAME: &'static str;
}

/// Every live handle. Addresses are kept inverted: a leak checker that searches memory for
/// pointers must not take this for the owner of what a caller forgot to free.
static LIVE: RwLock<BTreeMap<usize, TypeId>> = RwLock::new(BTreeMap::new());

fn key<T>(handle: *const T) -> usize {
    !(handle as usize)
}

/// Gives the caller a handle.
pub(super) unsafe fn give<T: Handle>(value: T, out: *mut *mut T) -> Result<(), Fault> {
    let handle = Box::into_raw(Box::new(value));
    let mut live = LIVE.write().unwrap_or_else(PoisonError::into_inner);
    live.insert(key(handle), TypeId::of::<T>());
    // SAFETY: by the header's conventions; the caller of this has checked it before the work.
    unsafe { put(out, handle, T::NAME) }
}

fn check<T: Handle>(handle: *const T) -> Result<(), Fault> {
    if handle.is_null() {
        return Err(Error::Argument(format!("{} is NULL", T::NAME)).into());
    }
    let live = LIVE.read().unwrap_or_else(PoisonError::into_inner);
    match live.get(&key(handle)) {
        Some(&kind) if kind == TypeId::of::<T>() => Ok(()),
        Some(_) => Err(Error::Argument(format!("not an {}, but another handle", T::NAME)).into()),
        None => Err(Error::Argument(format!("not an {}, or freed already", T::NAME)).into()),
    }
}

/// Borrows what a handle refers to.
pub(super) unsafe fn borrow<'a, T: Handle>(handle: *const T) -> Result<&'a T, Fault> {
    check(handle)?;
    // SAFETY: it was made by `give` and is not freed; by the header's conventions nobody frees
    // or changes it meanwhile.
    Ok(unsafe { &*handle })
}

/// Borrows what a handle refers to, to change it.
pub(super) unsafe fn borrow_mut<'a, T: Handle>(handle: *mut T) -> Result<&'a mut T, Fault> {
    check(handle)?;
    // SAFETY: as in `borrow`; by the header's conventions no other thread uses it.
    Ok(unsafe { &mut *handle })
}

/// Borrows what a handle refers to; `None` for NULL.
pub(super) unsafe fn borrow_or<'a, T: Handle>(handle: *const T) -> Result<Option<&'a T>, Fault> {
    match handle.is_null() {
        true => Ok(None),
        // SAFETY: as the caller's.
        false => unsafe { borrow(handle).map(Some) },
    }
}

/// Frees a handle. Does nothing for NULL, and for anything but a live handle of this kind.
pub(super) unsafe fn free<T: Handle>(handle: *mut T) -> Result<(), Fault> {
    let mut live = LIVE.write().unwrap_or_else(PoisonError::into_inner);
    if live.get(&key(handle)) == Some(&TypeId::of::<T>()) {
        live.remove(&key(handle));
        // What is behind it may call the caller, who may call the library.
        drop(live);
        // SAFETY: made by `give`, and only whoever removed the address gets here.
        drop(unsafe { Box::from_raw(handle) });
    }
    Ok(())
}

/// Strings lent to the caller, each ending in NUL; equal ones are lent once.
#[derive(Debug, Default)]
pub struct Strings(Mutex<BTreeSet<Box<[u8]>>>);

impl Strings {
    /// Lends a copy for as long as the strings are kept.
    pub(super) fn lend(&self, text: &str) -> *const c_char {
        let mut strings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Box<[u8]> = text.bytes().chain([0]).collect();
        if let Some(lent) = strings.get(&bytes) {
            return lent.as_ptr().cast();
        }
        let lent = bytes.as_ptr().cast();
        strings.insert(bytes);
        lent
    }

    /// Takes all back.
    pub(super) fn clear(&mut self) {
        let strings = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        strings.clear();
    }
}
