//! The libraries that NVIDIA's driver back end loads when it starts, and what to say if one is missing or of another version.

use std::ffi::c_int;

use cudarc::{cublaslt, cudnn, driver};

use crate::error::{Error, Result};

/// The major version of CUDA that this build asks for.
#[cfg(feature = "cuda")]
pub(super) const CUDA_MAJOR: usize = 13;
#[cfg(not(feature = "cuda"))]
pub(super) const CUDA_MAJOR: usize = 12;
/// The major version of cuDNN whose interface this build knows.
const CUDNN_MAJOR: usize = 9;

/// One library.
#[derive(Clone, Copy)]
pub(super) struct Library {
    pub name: &'static str,
    /// The file that is looked for, among others.
    file: &'static str,
    /// Where to get it.
    from: &'static str,
    present: unsafe fn() -> bool,
}

pub(super) const DRIVER: Library = Library {
    name: "NVIDIA's driver",
    file: "libcuda.so",
    from: "install NVIDIA's driver",
    present: driver::sys::is_culib_present,
};

/// What every GPU run needs, in the order of asking.
pub(super) const LIBRARIES: [Library; 3] = [
    DRIVER,
    Library {
        name: "cuBLASLt",
        file: "libcublasLt.so",
        from: "install CUDA's libraries (PyPI: nvidia-cublas)",
        present: cublaslt::sys::is_culib_present,
    },
    Library {
        name: "cuDNN",
        file: "libcudnn.so",
        from: "install cuDNN 9 (PyPI: nvidia-cudnn-cu13, or -cu12)",
        present: cudnn::sys::is_culib_present,
    },
];

impl Library {
    /// Err that says what was looked for and where, if it cannot be loaded.
    pub(super) fn check(&self) -> Result<()> {
        // SAFETY: loads the library and forgets it: its initialisers run, which is what using it would do too.
        if unsafe { (self.present)() } {
            return Ok(());
        }
        let paths = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
        let major = if self.name == "cuDNN" { CUDNN_MAJOR } else { CUDA_MAJOR };
        let soname = if self.name == DRIVER.name { String::new() } else { format!(" and {}.{major}", self.file) };
        Err(Error::Device {
            what: "cuda".into(),
            message: format!(
                "{} is not there: looked for {}{soname} in LD_LIBRARY_PATH ({}) and where the system's loader looks: \
                 {}, put its folder into LD_LIBRARY_PATH, or train with --device cpu",
                self.name,
                self.file,
                if paths.is_empty() { "not set" } else { &paths },
                self.from,
            ),
        })
    }
}

/// The driver's CUDA version, as major * 1000 + minor * 10.
pub(super) fn driver_version() -> Result<usize> {
    DRIVER.check()?;
    let mut version: c_int = 0;
    // SAFETY: the library is there (line above); writes one int.
    let status = unsafe { driver::sys::cuDriverGetVersion(&mut version) };
    super::context::check("cuDriverGetVersion", status)?;
    Ok(version as usize)
}

/// Err if a library is missing, or its major version is not the one that this build knows.
pub(super) fn check_all() -> Result<()> {
    let version = driver_version()?;
    if version / 1000 < CUDA_MAJOR {
        return Err(Error::Device {
            what: "cuda".into(),
            message: format!(
                "the driver knows CUDA {}.{}, this build needs {CUDA_MAJOR}.0 or newer: update the driver{}",
                version / 1000,
                version % 1000 / 10,
                if CUDA_MAJOR > 12 { ", or build with --features cuda12" } else { "" }
            ),
        });
    }
    LIBRARIES.iter().try_for_each(Library::check)?;
    let cudnn = cudnn::result::get_version();
    if cudnn / 10_000 != CUDNN_MAJOR {
        return Err(Error::Device {
            what: "cuda".into(),
            message: format!(
                "the cuDNN found is version {cudnn}, this build needs {CUDNN_MAJOR}.x: a libcudnn.so without a number is taken \
                 first, so put a folder with a link of that name to libcudnn.so.{CUDNN_MAJOR} first into LD_LIBRARY_PATH"
            ),
        });
    }
    // SAFETY: the library is there (checked above); returns a number.
    let cublaslt = unsafe { cublaslt::sys::cublasLtGetVersion() } / 10_000;
    if cublaslt != CUDA_MAJOR {
        return Err(Error::Device {
            what: "cuda".into(),
            message: format!(
                "the cuBLASLt found is version {cublaslt}, this build needs {CUDA_MAJOR}: a libcublasLt.so without a number is \
                 taken first, so put a folder with a link of that name to libcublasLt.so.{CUDA_MAJOR} first into LD_LIBRARY_PATH"
            ),
        });
    }
    Ok(())
}

/// One line for each library: there, or what is wrong.
pub(super) fn report() -> Vec<String> {
    let line = |l: &Library| match l.check() {
        Ok(()) => format!("{}: found", l.name),
        Err(error) => error.to_string(),
    };
    let mut lines: Vec<String> = LIBRARIES.iter().map(line).collect();
    if let Ok(version) = driver_version() {
        lines.push(format!("the driver knows CUDA {}.{}", version / 1000, version % 1000 / 10));
    }
    // SAFETY: as in `check`.
    if unsafe { (LIBRARIES[2].present)() } {
        lines.push(format!("cuDNN is version {}", cudnn::result::get_version()));
    }
    lines
}
