//! What the CPU back end computes with: SIMD lanes, the matrix micro-kernel, strided views, windows, and its threads.
//!
//! It is for loops over slices. It knows no tensor, no device and no op: `device` hands out memory, and the
//! loops of each op are in `ops/*/cpu.rs`. Main types: [`simd::F32x16`], [`microkernel::Isa`], [`view::MatMut`]. Read
//! `simd.rs` first.

pub mod microkernel;
pub mod simd;
pub mod view;
pub mod windows;

use crate::error::{Error, Result};

/// Alignment of every buffer, in bytes: a cache line, which is also the widest vector.
pub const ALIGN_BYTES: usize = 64;

/// Sets up the threads of the CPU back end, once in a process, before anything else runs: `threads` of them, 0 for
/// every core (or `RAYON_NUM_THREADS`). The calling thread becomes one of them: from any other thread each parallel loop
/// would be handed over and waited for asleep, two switches of context for loops of some microseconds.
pub fn use_threads(threads: usize) -> Result<()> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread();
    pool.build_global().map_err(|error| Error::value("threads", error.to_string()))
}

/// The vector instructions in use, for reports: those of the build, and those of the GEMM, which are chosen at run time,
/// where they differ.
pub fn simd_level() -> String {
    let build = if cfg!(target_feature = "avx512f") {
        "AVX-512"
    } else if cfg!(all(target_feature = "avx2", target_feature = "fma")) {
        "AVX2"
    } else {
        "the target's baseline vectors"
    };
    match microkernel::Isa::detect().name() {
        Some(gemm) if gemm != build => format!("{build} ({gemm} in matrix products)"),
        _ => build.into(),
    }
}
