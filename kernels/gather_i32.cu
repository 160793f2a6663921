// Numbers by index: x [B,N], idx, y [B,S] i32. One thread an element, one pass. Deterministic.
#include "common/kernel.cuh"

struct GatherI32Params {
    uint32_t b, n, s;
    int32_t missing;
};
static_assert(sizeof(GatherI32Params) == 16, "mirror of src/ops/gather_i32/cuda.rs");

KERNEL(256, gather_i32, (int32_t * y, const int32_t* x, const int32_t* idx, GatherI32Params p)) {
    const int64_t count = int64_t(p.b) * p.s;
    for (int64_t r = global_thread(); r < count; r += global_threads()) {
        const int64_t i = idx[r];
        y[r] = (i >= 0 && i < int64_t(p.n)) ? x[r / p.s * p.n + i] : p.missing;
    }
}
