//! Convolutions by cuDNN: NHWC, f32 accumulation, tensor cores; of each shape and pass the fastest deterministic algorithm
//! within the planned workspace, measured once in a process.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{c_int, c_void};
use std::ptr::{self, NonNull};

use cudarc::cudnn::sys;
use cudarc::driver;

use super::context;
use crate::device::gpu::driver::Pass;
use crate::device::gpu::launch::Operand;
use crate::device::scope;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// A convolution: x `[n,h,w,c]`, weights `[o,kh,kw,c]`.
#[allow(missing_docs, reason = "the letters of docs/conventions.md")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv {
    pub pass: Pass,
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub o: usize,
    pub kh: usize,
    pub kw: usize,
    pub stride: usize,
    pub pad: usize,
}

impl Conv {
    fn out(&self, size: usize, kernel: usize) -> usize {
        (size + 2 * self.pad - kernel) / self.stride + 1
    }
}

/// Descriptors of one problem and its algorithm.
struct Plan {
    x: sys::cudnnTensorDescriptor_t,
    y: sys::cudnnTensorDescriptor_t,
    w: sys::cudnnFilterDescriptor_t,
    conv: sys::cudnnConvolutionDescriptor_t,
    algorithm: u32,
    /// Where the planned one is too small. Never freed: recorded steps hold its address.
    own_workspace: Option<(NonNull<u8>, usize)>,
}

/// cuDNN on one stream, with a plan for each convolution that it has met.
pub struct Dnn {
    handle: sys::cudnnHandle_t,
    plans: RefCell<HashMap<(Conv, DType), Plan>>,
}

fn check(call: &str, status: sys::cudnnStatus_t) -> Result<()> {
    if status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS {
        return Ok(());
    }
    Err(Error::Kernel { op: scope::current(), message: format!("{call}: {status:?}") })
}

fn type_of(dtype: DType) -> sys::cudnnDataType_t {
    match dtype {
        DType::F16 => sys::cudnnDataType_t::CUDNN_DATA_HALF,
        DType::BF16 => sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16,
        _ => sys::cudnnDataType_t::CUDNN_DATA_FLOAT,
    }
}

/// Results of cuDNN's measurements, as one type for the three passes.
struct Measured {
    algorithm: u32,
    math: sys::cudnnMathType_t,
    ok: bool,
    memory: usize,
    deterministic: bool,
    ms: f32,
}

macro_rules! measured {
    ($results:expr) => {
        $results
            .iter()
            .map(|r| Measured {
                algorithm: r.algo as u32,
                math: r.mathType,
                ok: r.status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS,
                memory: r.memory,
                deterministic: r.determinism == sys::cudnnDeterminism_t::CUDNN_DETERMINISTIC,
                ms: r.time,
            })
            .collect::<Vec<_>>()
    };
}

/// Results asked for: each algorithm in two arithmetics.
const MOST: usize = 16;

impl Dnn {
    pub(super) fn new(stream: driver::sys::CUstream) -> Result<Dnn> {
        let mut handle = ptr::null_mut();
        // SAFETY: writes one handle; the stream is of the current context.
        unsafe {
            check("cudnnCreate", sys::cudnnCreate(&mut handle))?;
            check("cudnnSetStream", sys::cudnnSetStream(handle, stream.cast()))?;
        }
        Ok(Dnn { handle, plans: RefCell::default() })
    }

    fn describe(&self, s: &Conv, dtype: DType) -> Result<Plan> {
        let int =
            |n: usize| c_int::try_from(n).map_err(|_| Error::value("conv2d", format!("a size of {n} is beyond cuDNN")));
        let [n, h, w, c, o, kh, kw] = [s.n, s.h, s.w, s.c, s.o, s.kh, s.kw].map(int);
        let (n, h, w, c, o, kh, kw) = (n?, h?, w?, c?, o?, kh?, kw?);
        let (oh, ow, stride, pad) = (int(s.out(s.h, s.kh))?, int(s.out(s.w, s.kw))?, int(s.stride)?, int(s.pad)?);
        let (nhwc, kind) = (sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC, type_of(dtype));
        let math = match dtype {
            // TF32 on Ampere and newer, as torch has it for convolutions.
            DType::F32 => sys::cudnnMathType_t::CUDNN_DEFAULT_MATH,
            _ => sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
        };
        let mut plan = Plan {
            x: ptr::null_mut(),
            y: ptr::null_mut(),
            w: ptr::null_mut(),
            conv: ptr::null_mut(),
            algorithm: 0,
            own_workspace: None,
        };
        // SAFETY: each descriptor is made on one line and filled on the next; those made are destroyed with the plan.
        unsafe {
            check("cudnnCreateTensorDescriptor", sys::cudnnCreateTensorDescriptor(&mut plan.x))?;
            check("cudnnSetTensor4dDescriptor", sys::cudnnSetTensor4dDescriptor(plan.x, nhwc, kind, n, c, h, w))?;
            check("cudnnCreateTensorDescriptor", sys::cudnnCreateTensorDescriptor(&mut plan.y))?;
            check("cudnnSetTensor4dDescriptor", sys::cudnnSetTensor4dDescriptor(plan.y, nhwc, kind, n, o, oh, ow))?;
            check("cudnnCreateFilterDescriptor", sys::cudnnCreateFilterDescriptor(&mut plan.w))?;
            check("cudnnSetFilter4dDescriptor", sys::cudnnSetFilter4dDescriptor(plan.w, kind, nhwc, o, c, kh, kw))?;
            check("cudnnCreateConvolutionDescriptor", sys::cudnnCreateConvolutionDescriptor(&mut plan.conv))?;
            let mode = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
            let float = sys::cudnnDataType_t::CUDNN_DATA_FLOAT;
            let set = sys::cudnnSetConvolution2dDescriptor(plan.conv, pad, pad, stride, stride, 1, 1, mode, float);
            check("cudnnSetConvolution2dDescriptor", set)?;
            check("cudnnSetConvolutionMathType", sys::cudnnSetConvolutionMathType(plan.conv, math))?;
        }
        Ok(plan)
    }

    /// Measures the algorithms. `out` is overwritten.
    ///
    /// # Safety
    /// The addresses are those of tensors of the shapes in `s`; `ws` has `ws_bytes`.
    unsafe fn measure(
        &self,
        s: &Conv,
        plan: &Plan,
        out: *mut c_void,
        a: *const c_void,
        b: *const c_void,
        ws: *mut c_void,
        ws_bytes: usize,
    ) -> Result<Vec<Measured>> {
        let mut found: c_int = 0;
        let (handle, most) = (self.handle, MOST as c_int);
        // SAFETY: the caller's promise; each call writes at most `most` results, and how many into `found`.
        unsafe {
            Ok(match s.pass {
                Pass::Forward => {
                    let mut results: [sys::cudnnConvolutionFwdAlgoPerf_t; MOST] = std::mem::zeroed();
                    let status = sys::cudnnFindConvolutionForwardAlgorithmEx(
                        handle,
                        plan.x,
                        a,
                        plan.w,
                        b,
                        plan.conv,
                        plan.y,
                        out,
                        most,
                        &mut found,
                        results.as_mut_ptr(),
                        ws,
                        ws_bytes,
                    );
                    check("cudnnFindConvolutionForwardAlgorithmEx", status)?;
                    measured!(results[..found as usize])
                }
                Pass::Data => {
                    let mut results: [sys::cudnnConvolutionBwdDataAlgoPerf_t; MOST] = std::mem::zeroed();
                    let status = sys::cudnnFindConvolutionBackwardDataAlgorithmEx(
                        handle,
                        plan.w,
                        b,
                        plan.y,
                        a,
                        plan.conv,
                        plan.x,
                        out,
                        most,
                        &mut found,
                        results.as_mut_ptr(),
                        ws,
                        ws_bytes,
                    );
                    check("cudnnFindConvolutionBackwardDataAlgorithmEx", status)?;
                    measured!(results[..found as usize])
                }
                Pass::Weights => {
                    let mut results: [sys::cudnnConvolutionBwdFilterAlgoPerf_t; MOST] = std::mem::zeroed();
                    let status = sys::cudnnFindConvolutionBackwardFilterAlgorithmEx(
                        handle,
                        plan.x,
                        a,
                        plan.y,
                        b,
                        plan.conv,
                        plan.w,
                        out,
                        most,
                        &mut found,
                        results.as_mut_ptr(),
                        ws,
                        ws_bytes,
                    );
                    check("cudnnFindConvolutionBackwardFilterAlgorithmEx", status)?;
                    measured!(results[..found as usize])
                }
            })
        }
    }
}

impl Dnn {
    /// Descriptors, and the fastest deterministic algorithm within the workspace; where there is none (cuDNN turns large maps into
    /// another layout first, on old devices), within one of the device's own, which stays.
    ///
    /// # Safety
    /// As [`Dnn::measure`].
    unsafe fn choose(
        &self,
        s: &Conv,
        dtype: DType,
        out: *mut c_void,
        a: *const c_void,
        b: *const c_void,
        ws: *mut c_void,
        ws_bytes: usize,
    ) -> Result<Plan> {
        let mut plan = self.describe(s, dtype)?;
        for bytes in [ws_bytes, 512 << 20, 4 << 30] {
            let own = if bytes == ws_bytes { None } else { Some(context::alloc(bytes)?) };
            let at = own.map_or(ws, |p| p.as_ptr().cast());
            // SAFETY: the caller's promise, and `at` has `bytes`.
            let results = unsafe { self.measure(s, &plan, out, a, b, at, bytes) };
            if let Some(ptr) = own {
                // SAFETY: allocated above, and cuMemFree waits for what uses it.
                unsafe { context::free(ptr) };
            }
            let results = results?;
            let fit = results.iter().filter(|r| r.ok && r.deterministic && r.memory <= bytes);
            if let Some(best) = fit.min_by(|a, b| a.ms.total_cmp(&b.ms)) {
                plan.algorithm = best.algorithm;
                // SAFETY: the descriptor is the plan's; the measurement was of this arithmetic.
                let set = unsafe { sys::cudnnSetConvolutionMathType(plan.conv, best.math) };
                check("cudnnSetConvolutionMathType", set)?;
                if own.is_some() {
                    plan.own_workspace = Some((context::alloc(best.memory)?, best.memory));
                }
                return Ok(plan);
            }
        }
        Err(Error::Kernel {
            op: scope::current(),
            message: format!("cuDNN has no deterministic algorithm for {s:?}, {}", dtype.name()),
        })
    }

    /// `out (+)= pass(a, b)`: forward y from x, w; data dx from dy, w; weights dw from x, dy.
    ///
    /// The first call for a shape measures cuDNN's algorithms and must not be recorded. Neither factor is empty.
    ///
    /// Errors: `Kernel` with cuDNN's status, or if no deterministic algorithm fits the workspace.
    pub fn conv(
        &self,
        s: &Conv,
        out: &mut dyn Operand,
        add: bool,
        a: &dyn Operand,
        b: &dyn Operand,
        ws: &mut dyn Operand,
    ) -> Result<()> {
        let dtype = a.dtype();
        assert!(b.dtype() == dtype && out.dtype() == dtype, "conv: one type for all: {a:?} {b:?} {out:?}");
        let (pa, pb, pout) = (a.address() as *const c_void, b.address() as *const c_void, out.address() as *mut c_void);
        let (pws, ws_bytes) = (ws.address() as *mut c_void, ws.bytes());
        let mut plans = self.plans.borrow_mut();
        let plan = match plans.entry((*s, dtype)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                // Gradients of weights may hold a sum already: measure into memory of its own.
                let scratch = if add { Some(context::alloc(out.bytes())?) } else { None };
                let target = scratch.map_or(pout, |p| p.as_ptr().cast());
                // SAFETY: tensors of the shapes in `s` (checked in ops/conv2d/mod.rs).
                let plan = unsafe { self.choose(s, dtype, target, pa, pb, pws, ws_bytes) };
                if let Some(ptr) = scratch {
                    // SAFETY: allocated above, and cuMemFree waits for what uses it.
                    unsafe { context::free(ptr) };
                }
                new.insert(plan?)
            }
        };
        let (pws, ws_bytes) = plan.own_workspace.map_or((pws, ws_bytes), |(ptr, bytes)| (ptr.as_ptr().cast(), bytes));
        let (one, beta) = (1.0f32, if add { 1.0f32 } else { 0.0 });
        let (one, beta) = (ptr::from_ref(&one).cast::<c_void>(), ptr::from_ref(&beta).cast::<c_void>());
        let handle = self.handle;
        // SAFETY: tensors of the shapes in `s`; the algorithm is one that cuDNN gave for this pass, whose number is of its enum.
        unsafe {
            match s.pass {
                Pass::Forward => {
                    let algorithm = std::mem::transmute::<u32, sys::cudnnConvolutionFwdAlgo_t>(plan.algorithm);
                    let status = sys::cudnnConvolutionForward(
                        handle, one, plan.x, pa, plan.w, pb, plan.conv, algorithm, pws, ws_bytes, beta, plan.y, pout,
                    );
                    check("cudnnConvolutionForward", status)
                }
                Pass::Data => {
                    let algorithm = std::mem::transmute::<u32, sys::cudnnConvolutionBwdDataAlgo_t>(plan.algorithm);
                    let status = sys::cudnnConvolutionBackwardData(
                        handle, one, plan.w, pb, plan.y, pa, plan.conv, algorithm, pws, ws_bytes, beta, plan.x, pout,
                    );
                    check("cudnnConvolutionBackwardData", status)
                }
                Pass::Weights => {
                    let algorithm = std::mem::transmute::<u32, sys::cudnnConvolutionBwdFilterAlgo_t>(plan.algorithm);
                    let status = sys::cudnnConvolutionBackwardFilter(
                        handle, one, plan.x, pa, plan.y, pb, plan.conv, algorithm, pws, ws_bytes, beta, plan.w, pout,
                    );
                    check("cudnnConvolutionBackwardFilter", status)
                }
            }
        }
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: each was made by cudnnCreate* or is null, which these calls refuse without harm.
        unsafe {
            sys::cudnnDestroyConvolutionDescriptor(self.conv);
            sys::cudnnDestroyFilterDescriptor(self.w);
            sys::cudnnDestroyTensorDescriptor(self.y);
            sys::cudnnDestroyTensorDescriptor(self.x);
        }
    }
}

impl Drop for Dnn {
    fn drop(&mut self) {
        self.plans.borrow_mut().clear();
        // SAFETY: from cudnnCreate, destroyed once.
        unsafe { sys::cudnnDestroy(self.handle) };
    }
}
