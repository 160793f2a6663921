//! What every part of the CUDA back end calls: errors of the driver, and memory of the current context.

use std::ffi::CStr;
use std::ptr::NonNull;
use std::sync::LazyLock;

use cudarc::driver::{DriverError, result, sys};

use crate::device::scope;
use crate::error::{Error, Result};

/// `UPRES_SYNC=1`: wait after each launch, so that a fault is blamed on its kernel.
pub(super) static SYNC: LazyLock<bool> = LazyLock::new(|| std::env::var_os("UPRES_SYNC").is_some_and(|v| v != "0"));

/// The error of a driver call.
pub(super) fn error_of(call: &str, error: DriverError) -> Error {
    use sys::cudaError_enum::*;
    let late = [
        CUDA_ERROR_ILLEGAL_ADDRESS,
        CUDA_ERROR_LAUNCH_FAILED,
        CUDA_ERROR_MISALIGNED_ADDRESS,
        CUDA_ERROR_ILLEGAL_INSTRUCTION,
    ];
    let hint = if late.contains(&error.0) && !*SYNC {
        " (a kernel before this failed: UPRES_SYNC=1 says which, with its op and tensors)"
    } else {
        ""
    };
    Error::Kernel { op: scope::current(), message: format!("{call}: {}{hint}", describe(error)) }
}

pub(super) fn describe(error: DriverError) -> String {
    let text = |s: Result<&CStr, DriverError>| s.map_or_else(|_| String::new(), |s| s.to_string_lossy().into_owned());
    let (name, words) = (text(error.error_name()), text(error.error_string()));
    if name.is_empty() { format!("error {}", error.0 as u32) } else { format!("{name}: {words}") }
}

pub(super) fn check(call: &str, status: sys::CUresult) -> Result<()> {
    status.result().map_err(|error| error_of(call, error))
}

pub(super) fn device_error(message: String) -> Error {
    Error::Device { what: "cuda".into(), message }
}

/// An address as the driver takes it.
pub(super) fn address(ptr: NonNull<u8>) -> sys::CUdeviceptr {
    ptr.as_ptr() as sys::CUdeviceptr
}

/// Free and total bytes of the device.
pub(super) fn memory() -> Result<(usize, usize)> {
    result::mem_get_info().map_err(|e| error_of("cuMemGetInfo", e))
}

/// Device memory whose contents are not set.
///
/// Errors: `Device` if there is none, with what is free.
pub(super) fn alloc(bytes: usize) -> Result<NonNull<u8>> {
    // SAFETY: a plain allocation of at least one byte.
    match unsafe { result::malloc_sync(bytes.max(1)) } {
        Ok(ptr) => NonNull::new(ptr as *mut u8).ok_or_else(|| device_error("an allocation at address 0".into())),
        Err(error) => {
            let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
            let (free, total) = memory().unwrap_or((0, 0));
            Err(device_error(format!(
                "no memory for {:.2} GiB: {:.2} of the device's {:.2} GiB are free ({}); lower the stage's micro_batch or its \
                 image size",
                gib(bytes),
                gib(free),
                gib(total),
                describe(error),
            )))
        }
    }
}

/// Gives memory of [`alloc`] back. An error here (a context that a fault has ended) leaves nothing to be done.
///
/// # Safety
/// `ptr` came from [`alloc`] and is freed once; cuMemFree waits for the work that uses it.
pub(super) unsafe fn free(ptr: NonNull<u8>) {
    // SAFETY: the caller's promise.
    let _ = unsafe { result::free_sync(address(ptr)) };
}
