//! NVIDIA's driver: one context, one stream for the work, one for copies, kernels from the images that build.rs made.
//!
//! Everything here is asynchronous but [`Driver::download`] and [`Driver::synchronize`]. A step is recorded by stream
//! capture and run again as one CUDA graph. Main type: [`Cuda`].

mod blas;
mod context;
mod dnn;
mod library;
mod staging;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CString, c_int};
use std::ptr::{self, NonNull};
use std::rc::Rc;

use cudarc::driver::{result, sys};

pub use blas::{Matmul, Side};
pub use dnn::Conv;

use context::{SYNC, address, check, describe, device_error, error_of};
use staging::Staging;

use super::driver::{Args, Driver, Graph, Grid, Later, Target};
use crate::error::{Error, Result};

/// `IMAGES`: name and contents of each file of kernels/; `KERNELS`: name of each kernel and its file's index.
mod images {
    include!(concat!(env!("OUT_DIR"), "/cuda_images.rs"));
}

/// Dynamic shared memory that needs no opting in.
const SHARED_WITHOUT_OPT_IN: u32 = 48 * 1024;
/// Oldest compute capability with an image; build.rs lists them.
const OLDEST: (c_int, c_int) = images::OLDEST;

/// A device of NVIDIA's driver.
pub struct Cuda {
    name: String,
    /// Of the compute capability.
    major: c_int,
    stream: sys::CUstream,
    staging: Staging,
    modules: RefCell<HashMap<usize, sys::CUmodule>>,
    functions: RefCell<HashMap<String, sys::CUfunction>>,
    recording: Cell<bool>,
    dnn: dnn::Dnn,
    blas: blas::Blas,
}

/// What `train --doctor` says of libraries and devices.
pub fn doctor() -> Vec<String> {
    let mut lines = library::report();
    if library::DRIVER.check().is_err() {
        return lines;
    }
    match count() {
        Ok(n) => lines.extend((0..n).map(|i| match describe_device(i) {
            Ok(line) => format!("cuda:{i}: {line}"),
            Err(error) => format!("cuda:{i}: {error}"),
        })),
        Err(error) => lines.push(error.to_string()),
    }
    lines
}

/// Why the first GPU cannot be used, if it cannot.
pub fn unusable() -> Option<String> {
    let capable = || {
        library::check_all()?;
        count()?;
        let device = result::device::get(0).map_err(|e| error_of("cuDeviceGet", e))?;
        check_capability(0, capability(device)?)
    };
    capable().err().map(|error| error.to_string())
}

/// Err if there are no kernels for a device this old.
fn check_capability(index: usize, (major, minor): (c_int, c_int)) -> Result<()> {
    if (major, minor) >= OLDEST {
        return Ok(());
    }
    Err(device_error(format!(
        "cuda:{index} has compute capability {major}.{minor}, this build has kernels from {}.{} on: build with --features cuda12 and \
         nvcc 12 for older ones",
        OLDEST.0, OLDEST.1
    )))
}

/// Number of devices.
///
/// Errors: `Device` if there is no driver, or it finds none.
pub fn count() -> Result<usize> {
    library::DRIVER.check()?;
    result::init().map_err(|error| no_device(describe(error)))?;
    let n = result::device::get_count().map_err(|error| no_device(describe(error)))?;
    if n == 0 { Err(no_device("it lists none".into())) } else { Ok(n as usize) }
}

fn no_device(why: String) -> Error {
    let message = format!("NVIDIA's driver finds no GPU ({why}): check `nvidia-smi`, or train with --device cpu");
    Error::Device { what: "cuda".into(), message }
}

fn attribute(device: sys::CUdevice, attribute: sys::CUdevice_attribute) -> Result<c_int> {
    // SAFETY: the device came from cuDeviceGet.
    unsafe { result::device::get_attribute(device, attribute) }.map_err(|e| error_of("cuDeviceGetAttribute", e))
}

fn capability(device: sys::CUdevice) -> Result<(c_int, c_int)> {
    use sys::CUdevice_attribute::*;
    let major = attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    Ok((major, attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?))
}

fn describe_device(index: usize) -> Result<String> {
    let device = result::device::get(index as c_int).map_err(|e| error_of("cuDeviceGet", e))?;
    let name = result::device::get_name(device).map_err(|e| error_of("cuDeviceGetName", e))?;
    let (major, minor) = capability(device)?;
    // SAFETY: the device came from cuDeviceGet.
    let bytes = unsafe { result::device::total_mem(device) }.map_err(|e| error_of("cuDeviceTotalMem", e))?;
    Ok(format!("{name}, compute capability {major}.{minor}, {:.1} GiB", bytes as f64 / f64::from(1 << 30)))
}

impl Cuda {
    pub(super) fn new(index: usize) -> Result<Cuda> {
        library::check_all()?;
        let n = count()?;
        if index >= n {
            let has = if n == 1 {
                "there is one GPU, cuda:0".into()
            } else {
                format!("there are {n}, cuda:0 to cuda:{}", n - 1)
            };
            return Err(device_error(format!("no device cuda:{index}: {has}")));
        }
        let device = result::device::get(index as c_int).map_err(|e| error_of("cuDeviceGet", e))?;
        let (major, minor) = capability(device)?;
        check_capability(index, (major, minor))?;
        // SAFETY: the device is valid; the primary context is retained once and released by the driver at exit.
        let stream = unsafe {
            let context = result::primary_ctx::retain(device).map_err(|e| error_of("cuDevicePrimaryCtxRetain", e))?;
            result::ctx::set_current(context).map_err(|e| error_of("cuCtxSetCurrent", e))?;
            let mut stream = ptr::null_mut();
            let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            check("cuStreamCreate", sys::cuStreamCreate(&mut stream, flags))?;
            stream
        };
        Ok(Cuda {
            major,
            name: format!("cuda:{index} ({})", describe_device(index)?),
            stream,
            staging: Staging::new(stream)?,
            modules: RefCell::default(),
            functions: RefCell::default(),
            recording: Cell::new(false),
            dnn: dnn::Dnn::new(stream)?,
            blas: blas::Blas::new(stream)?,
        })
    }

    /// Whether it computes in bf16.
    pub fn has_bf16(&self) -> bool {
        self.major >= 8
    }

    /// Free and total bytes of the device.
    pub fn memory(&self) -> Result<(usize, usize)> {
        context::memory()
    }

    /// Convolutions.
    pub fn dnn(&self) -> &dnn::Dnn {
        &self.dnn
    }

    /// Matrix products.
    pub fn blas(&self) -> &blas::Blas {
        &self.blas
    }

    /// The stream that everything runs on, for timing with events.
    pub fn stream(&self) -> sys::CUstream {
        self.stream
    }

    fn function(&self, name: &str) -> Result<sys::CUfunction> {
        if let Some(f) = self.functions.borrow().get(name) {
            return Ok(*f);
        }
        let fault = |message: String| Error::Kernel { op: name.into(), message };
        let Some(&(_, file)) = images::KERNELS.iter().find(|(k, _)| *k == name) else {
            return Err(fault(format!("no such kernel among the {} compiled", images::KERNELS.len())));
        };
        let (stem, image) = images::IMAGES[file];
        let mut modules = self.modules.borrow_mut();
        let module = match modules.get(&file) {
            Some(module) => *module,
            None => {
                // SAFETY: the image is a fat binary of nvcc's, whole, and lives as long as the program.
                let module = unsafe { result::module::load_data(image.0.as_ptr().cast()) };
                let module = module.map_err(|e| fault(format!("kernels/{stem}.cu does not load: {}", describe(e))))?;
                modules.insert(file, module);
                module
            }
        };
        let c_name = CString::new(name).expect("cuda: a kernel's name has no NUL");
        // SAFETY: the module was loaded above and is never unloaded.
        let f = unsafe { result::module::get_function(module, c_name) };
        let f = f.map_err(|e| fault(format!("not in kernels/{stem}.cu: {}", describe(e))))?;
        self.functions.borrow_mut().insert(name.into(), f);
        Ok(f)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // SAFETY: stream and modules are ours; nothing runs any more after the first line. The context stays: it is the process's,
        // and recorded graphs and buffers may be dropped after this.
        unsafe {
            sys::cuStreamSynchronize(self.stream);
            for module in self.modules.borrow().values() {
                sys::cuModuleUnload(*module);
            }
            sys::cuStreamDestroy_v2(self.stream);
        }
    }
}

impl Driver for Cuda {
    fn target(&self) -> Target {
        Target::Cuda
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn alloc(&self, bytes: usize) -> Result<NonNull<u8>> {
        context::alloc(bytes)
    }

    unsafe fn free(&self, ptr: NonNull<u8>, _bytes: usize) {
        // SAFETY: the caller's promise.
        unsafe { context::free(ptr) }
    }

    unsafe fn fill(&self, ptr: NonNull<u8>, byte: u8, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the range is this driver's (the caller's promise).
        check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(address(ptr), byte, bytes, self.stream) })
    }

    unsafe fn upload(&self, ptr: NonNull<u8>, data: &[u8]) -> Result<()> {
        // SAFETY: the range is this driver's (the caller's promise).
        unsafe { self.staging.upload(address(ptr), data) }
    }

    unsafe fn download(&self, data: &mut [u8], ptr: NonNull<u8>) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        // SAFETY: the range is this driver's (the caller's promise), and `data` is not touched until the stream is through.
        let copied =
            unsafe { sys::cuMemcpyDtoHAsync_v2(data.as_mut_ptr().cast(), address(ptr), data.len(), self.stream) };
        check("cuMemcpyDtoHAsync", copied)?;
        self.synchronize()
    }

    unsafe fn read_later(&self, ptr: NonNull<u8>, bytes: usize) -> Result<Later> {
        // SAFETY: the range is this driver's (the caller's promise).
        unsafe { self.staging.read_later(address(ptr), bytes) }
    }

    unsafe fn launch(&self, kernel: &str, args: &Args, grid: Grid) -> Result<()> {
        let f = self.function(kernel)?;
        if grid.shared_bytes > SHARED_WITHOUT_OPT_IN {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a function of a loaded module.
            let set = unsafe { sys::cuFuncSetAttribute(f, attribute, grid.shared_bytes as c_int) };
            check("cuFuncSetAttribute", set)?;
        }
        let ([x, y, z], [tx, ty, tz]) = (grid.blocks, grid.threads);
        let mut addresses = args.addresses();
        // SAFETY: the arguments are the kernel's (the caller's promise); the driver copies them during the call.
        let launched = unsafe {
            result::launch_kernel(f, (x, y, z), (tx, ty, tz), grid.shared_bytes, self.stream, &mut addresses)
        };
        launched.map_err(|e| error_of("cuLaunchKernel", e))?;
        if *SYNC && !self.recording.get() { self.synchronize() } else { Ok(()) }
    }

    fn begin_recording(&self) -> Result<()> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is ours and not being captured.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(self.stream, mode) })?;
        self.recording.set(true);
        Ok(())
    }

    fn end_recording(&self) -> Result<Graph> {
        self.recording.set(false);
        let (mut graph, mut exec) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: ends the capture of `begin_recording`; the graph is destroyed once it is instantiated.
        unsafe {
            check("cuStreamEndCapture", sys::cuStreamEndCapture(self.stream, &mut graph))?;
            let made = check("cuGraphInstantiate", sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0));
            sys::cuGraphDestroy(graph);
            made?;
        }
        Ok(Rc::new(CudaGraph(exec)))
    }

    fn replay(&self, graph: &Graph) -> Result<()> {
        let graph = graph.downcast_ref::<CudaGraph>().expect("cuda: a graph of another driver");
        // SAFETY: an instantiated graph on the stream it was captured from.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(graph.0, self.stream) })?;
        if *SYNC { self.synchronize() } else { Ok(()) }
    }

    fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is ours.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.stream) })
    }
}

/// An instantiated graph.
struct CudaGraph(sys::CUgraphExec);

impl Drop for CudaGraph {
    fn drop(&mut self) {
        // SAFETY: made by `end_recording`, destroyed once; the driver keeps what still runs.
        unsafe { sys::cuGraphExecDestroy(self.0) };
    }
}
