//! Matrix products by cuBLASLt, row-major, with the bias added in the epilogue. f32 storage multiplies in full f32 (no TF32), as torch
//! does by default; 16-bit storage on tensor cores; sums in f32.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::ptr;

use cudarc::cublaslt::{result, result::CublasError, sys};
use cudarc::driver::sys::CUstream;

use crate::cpu::ALIGN_BYTES;
use crate::device::gpu::launch::Operand;
use crate::device::scope;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// How a factor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// As it is written: `[rows, columns]`.
    Rows,
    /// Transposed.
    Columns,
}

/// `C [m,n] = A [m,k] B [k,n]`.
#[allow(missing_docs, reason = "the formula above")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Matmul {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: Side,
    pub b: Side,
}

/// Where cuBLASLt's workspace must begin.
const WORKSPACE_ALIGN: usize = 256;

/// cuBLASLt on one stream, with a plan for each problem that it has met.
pub struct Blas {
    handle: sys::cublasLtHandle_t,
    stream: CUstream,
    plans: RefCell<HashMap<(Matmul, DType, bool), Plan>>,
}

/// Descriptors of one problem and its algorithm.
struct Plan {
    desc: sys::cublasLtMatmulDesc_t,
    /// Of cuBLASLt's first and second factor, and of C, all column-major: B^T, A^T, C^T.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

fn failed(call: &str) -> impl Fn(CublasError) -> Error {
    move |error| Error::Kernel { op: scope::current(), message: format!("{call}: {:?}", error.0) }
}

fn type_of(dtype: DType) -> sys::cudaDataType {
    match dtype {
        DType::F16 => sys::cudaDataType::CUDA_R_16F,
        DType::BF16 => sys::cudaDataType::CUDA_R_16BF,
        _ => sys::cudaDataType::CUDA_R_32F,
    }
}

impl Plan {
    fn new(
        handle: sys::cublasLtHandle_t,
        p: &Matmul,
        dtype: DType,
        bias: Option<u64>,
        ws_bytes: usize,
    ) -> Result<Plan> {
        use sys::cublasLtMatmulDescAttributes_t::*;
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        let kind = type_of(dtype);
        let desc =
            result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F)
                .map_err(failed("cublasLtMatmulDescCreate"))?;
        // Row-major [r,c] is column-major [c,r]: the product becomes C^T = B^T A^T.
        let layout = |rows: usize, columns: usize| {
            result::create_matrix_layout(kind, columns as u64, rows as u64, columns as i64)
                .map_err(failed("cublasLtMatrixLayoutCreate"))
        };
        let b = if p.b == Side::Rows { layout(p.k, p.n)? } else { layout(p.n, p.k)? };
        let a = if p.a == Side::Rows { layout(p.m, p.k)? } else { layout(p.k, p.m)? };
        let mut plan = Plan {
            desc,
            layouts: [b, a, layout(p.m, p.n)?],
            // SAFETY: plain numbers, overwritten below.
            algorithm: unsafe { std::mem::zeroed() },
        };
        let operation = |side| match side {
            Side::Rows => 0i32, // CUBLAS_OP_N
            Side::Columns => 1, // CUBLAS_OP_T
        };
        let epilogue = if bias.is_some() {
            sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS
        } else {
            sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT
        };
        plan.set(CUBLASLT_MATMUL_DESC_TRANSA, &operation(p.b))?;
        plan.set(CUBLASLT_MATMUL_DESC_TRANSB, &operation(p.a))?;
        plan.set(CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        if let Some(address) = bias {
            plan.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, &address)?; // else no algorithm may be found
        }
        let preference = result::create_matmul_pref().map_err(failed("cublasLtMatmulPreferenceCreate"))?;
        // Tensors begin at a multiple of ALIGN_BYTES; what is assumed unless told is 256.
        let align = ALIGN_BYTES as u32;
        // SAFETY: descriptors made above; the workspace is a size_t, the alignments are u32.
        let found = unsafe {
            let set = |attribute, value: *const c_void, bytes| {
                result::set_matmul_pref_attribute(preference, attribute, value, bytes)
            };
            let most = Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            let mut set_all = set(most, ptr::from_ref(&ws_bytes).cast(), size_of::<usize>());
            for attribute in [
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
            ] {
                set_all = set_all.and_then(|()| set(attribute, ptr::from_ref(&align).cast(), size_of::<u32>()));
            }
            let [b, a, c] = plan.layouts;
            let found =
                set_all.and_then(|()| result::get_matmul_algo_heuristic(handle, plan.desc, b, a, c, c, preference));
            let _ = result::destroy_matmul_pref(preference);
            found
        };
        plan.algorithm = found.map_err(failed("cublasLtMatmulAlgoGetHeuristic"))?.algo;
        Ok(plan)
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
        // SAFETY: the descriptor is made; callers pass the type that the attribute has.
        unsafe { result::set_matmul_desc_attribute(self.desc, attribute, ptr::from_ref(value).cast(), size_of::<T>()) }
            .map_err(failed("cublasLtMatmulDescSetAttribute"))
    }
}

impl Blas {
    pub(super) fn new(stream: CUstream) -> Result<Blas> {
        let handle = result::create_handle().map_err(failed("cublasLtCreate"))?;
        Ok(Blas { handle, stream, plans: RefCell::default() })
    }

    /// `c (+)= a b + bias`, the bias `[n]` on every row; all of one type.
    ///
    /// Errors: `Kernel` with cuBLASLt's status.
    pub fn matmul(
        &self,
        p: &Matmul,
        c: &mut dyn Operand,
        add: bool,
        a: &dyn Operand,
        b: &dyn Operand,
        bias: Option<&dyn Operand>,
        ws: &mut dyn Operand,
    ) -> Result<()> {
        let dtype = c.dtype();
        assert!(
            [a, b].into_iter().chain(bias).all(|t| t.dtype() == dtype),
            "matmul: one type for all: {a:?} {b:?} {c:?}"
        );
        // cuBLASLt wants its workspace at a multiple of 256; what is lost to that does not depend on the address.
        let at = ws.address().next_multiple_of(WORKSPACE_ALIGN);
        let ws_bytes = ws.bytes().saturating_sub(WORKSPACE_ALIGN) / WORKSPACE_ALIGN * WORKSPACE_ALIGN;
        let bias = bias.map(|b| b.address() as u64);
        let key = (*p, dtype, bias.is_some());
        let mut plans = self.plans.borrow_mut();
        let plan = match plans.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Plan::new(self.handle, p, dtype, bias, ws_bytes)?),
        };
        if let Some(bias) = bias {
            plan.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        let (one, beta) = (1.0f32, if add { 1.0f32 } else { 0.0 });
        let out = c.address() as *mut c_void;
        let [layout_b, layout_a, layout_c] = plan.layouts;
        // SAFETY: the tensors have the shapes in `p` (ops/linear/mod.rs), the workspace its bytes; all are of this device.
        let ran = unsafe {
            result::matmul(
                self.handle,
                plan.desc,
                ptr::from_ref(&one).cast(),
                ptr::from_ref(&beta).cast(),
                b.address() as *const c_void,
                layout_b,
                a.address() as *const c_void,
                layout_a,
                out,
                layout_c,
                out,
                layout_c,
                &plan.algorithm,
                at as *mut c_void,
                ws_bytes,
                self.stream.cast(),
            )
        };
        ran.map_err(failed("cublasLtMatmul"))
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        unsafe {
            for layout in self.layouts {
                let _ = result::destroy_matrix_layout(layout);
            }
            let _ = result::destroy_matmul_desc(self.desc);
        }
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        self.plans.borrow_mut().clear();
        // SAFETY: made in `new`, destroyed once.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}
