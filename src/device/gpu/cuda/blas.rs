//! Matrix products by cuBLASLt, row-major, with the bias added in the epilogue. f32 storage multiplies in full f32 (no TF32), as torch
//! does by default; 16-bit storage on tensor cores; sums in f32.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::ptr;

use cudarc::cublaslt::{result, result::CublasError, sys};

use super::Cuda;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

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

pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
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
    move |error| Error::Kernel { op: crate::device::current_scope(), message: format!("{call}: {:?}", error.0) }
}

fn type_of(dtype: DType) -> sys::cudaDataType {
    match dtype {
        DType::F16 => sys::cudaDataType::CUDA_R_16F,
        DType::BF16 => sys::cudaDataType::CUDA_R_16BF,
        _ => sys::cudaDataType::CUDA_R_32F,
    }
}

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, p: &Matmul, dtype: DType, bias: bool, ws_bytes: usize) -> Result<Plan> {
        use sys::cublasLtMatmulDescAttributes_t::*;
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
        let epilogue = if bias {
            sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS
        } else {
            sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT
        };
        plan.set(CUBLASLT_MATMUL_DESC_TRANSA, &operation(p.b))?;
        plan.set(CUBLASLT_MATMUL_DESC_TRANSB, &operation(p.a))?;
        plan.set(CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        let preference = result::create_matmul_pref().map_err(failed("cublasLtMatmulPreferenceCreate"))?;
        let attribute = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        // SAFETY: descriptors made above; the attribute is a size_t.
        let found = unsafe {
            let set = result::set_matmul_pref_attribute(
                preference,
                attribute,
                ptr::from_ref(&ws_bytes).cast(),
                size_of::<usize>(),
            );
            let [b, a, c] = plan.layouts;
            let found = set.and_then(|()| result::get_matmul_algo_heuristic(handle, plan.desc, b, a, c, c, preference));
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
    pub(super) fn new() -> Result<Blas> {
        let handle = result::create_handle().map_err(failed("cublasLtCreate"))?;
        Ok(Blas { handle, plans: RefCell::default() })
    }
}

impl Cuda {
    /// `c (+)= a b + bias`, the bias `[n]` on every row; all of one type.
    ///
    /// Errors: `Kernel` with cuBLASLt's status.
    pub fn matmul(
        &self,
        p: &Matmul,
        c: &mut Tensor,
        add: bool,
        a: &Tensor,
        b: &Tensor,
        bias: Option<&Tensor>,
        ws: &mut Tensor,
    ) -> Result<()> {
        let key = (*p, c.dtype(), bias.is_some());
        let mut plans = self.blas.plans.borrow_mut();
        let plan = match plans.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Plan::new(self.blas.handle, p, c.dtype(), bias.is_some(), ws.bytes())?),
        };
        if let Some(bias) = bias {
            plan.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &(bias.address() as u64))?;
        }
        let (one, beta) = (1.0f32, if add { 1.0f32 } else { 0.0 });
        let out = c.address() as *mut c_void;
        let [layout_b, layout_a, layout_c] = plan.layouts;
        // SAFETY: the tensors have the shapes in `p` (ops/linear/mod.rs), the workspace its bytes; all are of this device.
        let ran = unsafe {
            result::matmul(
                self.blas.handle,
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
                ws.address() as *mut c_void,
                ws.bytes(),
                self.stream().cast(),
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
