// Gathers rows by index. x [B,N,C] or [N,C], y, dy [B,S,C], dx [B,N,C] f32; idx [B,S], links [B,S] i32.
// Forward: one pass. An index outside 0 .. N - 1 gives a row of zeros.
// Backward: rows with the same index add up in order of S. The first kernel writes zeros to dx and links each row of
// idx to the next row with an equal index (S comparisons a row, from shared memory). In the second kernel the first row
// of each chain adds up the chain and writes the sum. Deterministic, no atomics.
#include "common/kernel.cuh"

struct GatherRowsParams {
    uint32_t b, n, s, c;
    uint32_t x_rows;  // from one image's x to the next's: 0 if all images share it
};
static_assert(sizeof(GatherRowsParams) == 20, "mirror of src/ops/gather_rows/cuda.rs");

__device__ __forceinline__ bool names_row(int64_t i, uint32_t n) { return i >= 0 && i < int64_t(n); }

// thread i   row = i / (C / V), V columns from (i % (C / V)) V on; then i + grid threads
//            V = 4 (16 bytes) if C is a multiple of 4, else 1: neighbouring threads copy neighbouring columns
//            one thread owns each output vector: nothing is shared
template <int V> __device__ void gather_rows_fwd(float* y, const float* x, const int32_t* idx, GatherRowsParams p) {
    const uint32_t vectors = p.c / V;
    const int64_t count = int64_t(p.b) * p.s * vectors;
    for (int64_t i = global_thread(); i < count; i += global_threads()) {
        const int64_t row = i / vectors, column = (i - row * vectors) * V;
        const int64_t from = idx[row];
        Pack<float, V> v = {};
        if (names_row(from, p.n)) v = load_pack<V>(x + (row / p.s * p.x_rows + from) * p.c + column);
        store_pack(y + row * p.c + column, v);
    }
}

KERNEL(256, gather_rows_fwd_f32, (float* y, const float* x, const int32_t* idx, GatherRowsParams p)) {
    if (p.c % 4 == 0) gather_rows_fwd<4>(y, x, idx, p);
    else gather_rows_fwd<1>(y, x, idx, p);
}

// A link has two parts. NEXT: 1 + the image's next row with the same index, 0 if there is none. NOT_FIRST: set if the
// row is not the first of its chain, or if its index is outside 0 .. N - 1.
constexpr uint32_t NEXT = 0x7fffffffu, NOT_FIRST = 0x80000000u;
constexpr int BLOCK = 256;
constexpr int TILE = 1024;

// first part    thread i writes zeros to vectors i, i + grid threads, ... of dx; the next launch fills used rows
// second part   block = 256 rows of idx of one image, thread t owns one row and writes one link
//               the block walks over the image's idx in tiles of 1024; each tile is loaded once for all 256 rows
KERNEL(256, gather_rows_bwd_links_f32, (float* dx, uint32_t* links, const int32_t* idx, GatherRowsParams p)) {
    SHARED(int32_t, tile, TILE);
    const int64_t elements = int64_t(p.b) * p.n * p.c, vectors = elements / 4;
    const Pack<float, 4> zeros = {};
    for (int64_t i = global_thread(); i < vectors; i += global_threads()) store_pack(dx + 4 * i, zeros);
    for (int64_t i = 4 * vectors + global_thread(); i < elements; i += global_threads()) dx[i] = 0.0f;

    const uint32_t blocks = (p.s + BLOCK - 1) / BLOCK;
    for (int64_t block = blockIdx.x; block < int64_t(p.b) * blocks; block += gridDim.x) {
        const int64_t image = block / blocks;
        const int32_t* own = idx + image * p.s;
        const uint32_t row = uint32_t(block - image * blocks) * BLOCK + threadIdx.x;
        const int32_t mine = row < p.s ? own[row] : -1;
        bool first = names_row(mine, p.n);
        uint32_t next = 0;
        for (uint32_t from = 0; from < p.s; from += TILE) {
            const uint32_t len = min(uint32_t(TILE), p.s - from);
            __syncthreads();  // the previous tile has been read
            for (uint32_t j = threadIdx.x; j < len; j += BLOCK) tile[j] = own[from + j];
            __syncthreads();
            for (uint32_t j = 0; j < len; j++) {
                if (tile[j] != mine) continue;
                if (from + j < row) first = false;
                if (from + j > row && next == 0) next = from + j + 1;
            }
        }
        if (row < p.s) links[image * p.s + row] = next | (first ? 0 : NOT_FIRST);
    }
}

// thread i   row = i / (C / V) of idx, V columns from (i % (C / V)) V on, as in the forward pass
//            threads of a row that is not the first of its chain stop here; the others follow the links through dy
//            one thread owns each vector of dx, and links ascend: no atomics, sums in order of S
template <int V>
__device__ void gather_rows_bwd(float* dx, const uint32_t* links, const float* dy, const int32_t* idx, GatherRowsParams p) {
    const uint32_t vectors = p.c / V;
    const int64_t count = int64_t(p.b) * p.s * vectors;
    for (int64_t i = global_thread(); i < count; i += global_threads()) {
        const int64_t row = i / vectors, column = (i - row * vectors) * V;
        uint32_t link = links[row];
        if (link & NOT_FIRST) continue;
        const int64_t image = row / p.s;
        float sum[V] = {};
        for (int64_t r = row;; link = links[r]) {
            const Pack<float, V> g = load_pack<V>(dy + r * p.c + column);
#pragma unroll
            for (int k = 0; k < V; k++) sum[k] += g.v[k];
            if ((link & NEXT) == 0) break;
            r = image * p.s + (link & NEXT) - 1;
        }
        Pack<float, V> out;
#pragma unroll
        for (int k = 0; k < V; k++) out.v[k] = sum[k];
        store_pack(dx + (image * p.n + idx[row]) * p.c + column, out);
    }
}

KERNEL(256, gather_rows_bwd_f32, (float* dx, const uint32_t* links, const float* dy, const int32_t* idx, GatherRowsParams p)) {
    if (p.c % 4 == 0) gather_rows_bwd<4>(dx, links, dy, idx, p);
    else gather_rows_bwd<1>(dx, links, dy, idx, p);
}
