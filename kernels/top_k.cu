// The k best of each segment. scores [B,N] f32; out [B, sum of k] i32. Keys as in common/order.cuh: all differ, so the result does
// not depend on the order in which threads find the winners. Deterministic.
//
// Segments of at most DIRECT scores are sorted whole by top_k_finish, in one pass. Longer ones take three launches and two passes:
// top_k_histogram counts the upper 11 bits of the ranks (one block a CHUNK), top_k_split finds the bin of the k-th best and writes
// the keys before it to the front and those in it to the back of the segment's workspace (one block a CHUNK), top_k_finish (one
// block a segment and image) narrows the bin down by radix passes over its keys and sorts the winners in shared memory, or in the
// workspace if they are more than DIRECT.
#include "common/order.cuh"
#include "common/reduce.cuh"

constexpr uint32_t DIRECT = 4096;
constexpr uint32_t CHUNK = 8192;
constexpr uint32_t BINS = 2048;
constexpr uint32_t BIN_BITS = 11;
constexpr uint32_t COUNTS = BINS + 4;  // of a long segment and image: bins, keys in front, keys at the back, nothing, nothing
constexpr int SPLIT_THREADS = 512;
constexpr int EACH = int(CHUNK) / SPLIT_THREADS;
constexpr uint32_t SEGMENTS = 16;

// `column`: first of the result. Of long segments: `chunk`: first block; `slot`: number; `key`: first key.
struct TopKSegment {
    uint32_t start, len, k, column, chunk, slot, key;
};
// `slots`, `keys`: long segments and their scores in a row.
struct TopKParams {
    uint32_t n, columns, slots, keys, segments;
    TopKSegment s[SEGMENTS];
};
static_assert(sizeof(TopKParams) == 468, "mirror of src/ops/top_k/cuda.rs");

// The long segment of this block.
__device__ __forceinline__ uint32_t segment_of_chunk(const TopKParams& p) {
    uint32_t of = 0;
    for (uint32_t i = 0; i < p.segments; i++)
        if (p.s[i].len > DIRECT && p.s[i].chunk <= blockIdx.x) of = i;
    return of;
}

// Where the k-th (from 1) of the counted keys lies, for all threads: its bin, and the keys before it. At least k are counted.
struct Found {
    uint32_t bin, before, count;
};
template <int THREADS> __device__ __forceinline__ Found find_bin(const uint32_t* counts, uint32_t k, uint32_t* found, uint32_t* scratch) {
    constexpr int OWN = int(BINS) / THREADS;
    uint32_t c[OWN], sum = 0, total;
#pragma unroll
    for (int i = 0; i < OWN; i++) sum += c[i] = counts[threadIdx.x * OWN + i];
    uint32_t before = block_exclusive_sum(sum, total, scratch);
    if (before < k && k <= before + sum) {
        bool done = false;
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            if (!done && k <= before + c[i]) {
                found[0] = threadIdx.x * OWN + i;
                found[1] = before;
                found[2] = c[i];
                done = true;
            }
            before += c[i];
        }
    }
    __syncthreads();
    const Found f = {found[0], found[1], found[2]};
    __syncthreads();  // the next call overwrites found
    return f;
}

KERNEL(SPLIT_THREADS, top_k_histogram_f32, (uint32_t* counts, const float* scores, TopKParams p)) {
    SHARED(uint32_t, bins, BINS);
    const TopKSegment& s = p.s[segment_of_chunk(p)];
    if (s.len <= s.k) return;  // the whole block: all are winners
    for (uint32_t i = threadIdx.x; i < BINS; i += SPLIT_THREADS) bins[i] = 0;
    __syncthreads();
    const uint32_t from = (blockIdx.x - s.chunk) * CHUNK + threadIdx.x;
    const float* row = scores + int64_t(blockIdx.y) * p.n + s.start;
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        const uint32_t i = from + uint32_t(j) * SPLIT_THREADS;
        if (i < s.len) atomicAdd(&bins[descending_rank(row[i]) >> (32 - BIN_BITS)], 1u);
    }
    __syncthreads();
    counts += (int64_t(blockIdx.y) * p.slots + s.slot) * COUNTS;
    for (uint32_t i = threadIdx.x; i < BINS; i += SPLIT_THREADS)
        if (bins[i] != 0) atomicAdd(&counts[i], bins[i]);
}

KERNEL(SPLIT_THREADS, top_k_split_f32, (uint64_t* keys, uint32_t* counts, const float* scores, TopKParams p)) {
    SHARED(uint32_t, scratch, 33);
    SHARED(uint32_t, found, 3);
    SHARED(uint32_t, base, 2);
    const TopKSegment& s = p.s[segment_of_chunk(p)];
    counts += (int64_t(blockIdx.y) * p.slots + s.slot) * COUNTS;
    const uint32_t bin = s.len <= s.k ? BINS : s.k == 0 ? 0 : find_bin<SPLIT_THREADS>(counts, s.k, found, scratch).bin;
    const uint32_t from = (blockIdx.x - s.chunk) * CHUNK + threadIdx.x;
    const float* row = scores + int64_t(blockIdx.y) * p.n + s.start;
    uint32_t rank[EACH], front = 0, back = 0;  // a bit for each rank
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        const uint32_t i = from + uint32_t(j) * SPLIT_THREADS;
        rank[j] = i < s.len ? descending_rank(row[i]) : 0;
        const uint32_t mine = rank[j] >> (32 - BIN_BITS);
        if (i < s.len && mine < bin) front |= 1u << j;
        if (i < s.len && mine == bin) back |= 1u << j;
    }
    // Both counts in one sum: a block has fewer than 2^16 keys.
    uint32_t total;
    const uint32_t before = block_exclusive_sum(uint32_t(__popc(front) | __popc(back) << 16), total, scratch);
    if (threadIdx.x < 2) {
        const uint32_t found_here = threadIdx.x == 0 ? total & 0xffffu : total >> 16;
        base[threadIdx.x] = found_here == 0 ? 0 : atomicAdd(&counts[BINS + threadIdx.x], found_here);
    }
    __syncthreads();
    keys += int64_t(blockIdx.y) * p.keys + s.key;
    uint32_t to_front = base[0] + (before & 0xffffu), to_back = base[1] + (before >> 16);
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        const uint64_t key = uint64_t(rank[j]) << 32 | (from + uint32_t(j) * SPLIT_THREADS);
        if (front >> j & 1) keys[to_front++] = key;
        if (back >> j & 1) keys[s.len - 1 - to_back++] = key;
    }
}

constexpr int FINISH_THREADS = 1024;

// The largest key of the `need` smallest of keys[0..n), whose upper BIN_BITS all are `prefix`; 0 < need <= n. By radix passes.
__device__ __forceinline__ uint64_t select_limit(const uint64_t* keys, uint32_t n, uint32_t need, uint64_t prefix, uint32_t index_bits,
                                                 uint32_t* bins, uint32_t* found, uint32_t* scratch) {
    uint32_t low = 64 - BIN_BITS, count = n;  // bits below the prefix; keys with this prefix
    while (low > 0 && need < count) {
        if (low == 32) {  // the upper bits of an index are 0
            prefix <<= 32 - index_bits;
            low = index_bits;
        }
        const uint32_t width = min(BIN_BITS, low > 32 ? low - 32 : low), shift = low - width;
        for (uint32_t i = threadIdx.x; i < BINS; i += FINISH_THREADS) bins[i] = 0;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < n; i += FINISH_THREADS) {
            const uint64_t key = keys[i];
            if (key >> low == prefix) atomicAdd(&bins[uint32_t(key >> shift) & ((1u << width) - 1)], 1u);
        }
        __syncthreads();
        const Found f = find_bin<FINISH_THREADS>(bins, need, found, scratch);
        need -= f.before;
        count = f.count;
        prefix = prefix << width | f.bin;
        low = shift;
    }
    return prefix << low | ((uint64_t(1) << low) - 1);
}

KERNEL(FINISH_THREADS, top_k_finish_f32, (int32_t * out, uint64_t* keys, const uint32_t* counts, const float* scores, TopKParams p)) {
    SHARED(uint64_t, best, DIRECT);
    SHARED(uint32_t, bins, BINS);
    SHARED(uint32_t, scratch, 33);
    SHARED(uint32_t, found, 3);
    SHARED(uint32_t, taken, 1);
    const TopKSegment& s = p.s[blockIdx.x];
    const uint32_t t = threadIdx.x, want = min(s.k, s.len);
    const int64_t image = blockIdx.y;
    out += image * p.columns + s.column;
    for (uint32_t i = want + t; i < s.k; i += FINISH_THREADS) out[i] = -1;
    if (want == 0) return;  // the whole block
    if (s.len <= DIRECT) {
        const float* row = scores + image * p.n + s.start;
        for (uint32_t i = t; i < s.len; i += FINISH_THREADS) best[i] = descending_key(row[i], i);
        __syncthreads();
        block_sort([&](uint32_t i) -> uint64_t& { return best[i]; }, s.len);
        for (uint32_t i = t; i < want; i += FINISH_THREADS) out[i] = int32_t(s.start + uint32_t(best[i]));
        return;
    }
    keys += image * p.keys + s.key;
    counts += (image * p.slots + s.slot) * COUNTS;
    const uint32_t front = counts[BINS], back = counts[BINS + 1], all = front + back;
    if (want > DIRECT) {
        const auto at = [&](uint32_t i) -> uint64_t& { return keys[i < front ? i : s.len - all + i]; };
        block_sort(at, all);
        for (uint32_t i = t; i < want; i += FINISH_THREADS) out[i] = int32_t(s.start + uint32_t(at(i)));
        return;
    }
    // Sorting a few more than wanted costs nothing up to the next power of two.
    uint32_t room = 1;
    while (room < want) room *= 2;
    const uint64_t* last = keys + (s.len - back);
    uint64_t limit = ~uint64_t(0);
    if (all > room) {
        const uint64_t prefix = last[0] >> (64 - BIN_BITS);
        limit = select_limit(last, back, want - front, prefix, bits_of(s.len), bins, found, scratch);
    }
    if (t == 0) taken[0] = front;
    for (uint32_t i = t; i < front; i += FINISH_THREADS) best[i] = keys[i];
    __syncthreads();
    for (uint32_t i = t; i < back; i += FINISH_THREADS) {
        const uint64_t key = last[i];
        if (key <= limit) best[atomicAdd(&taken[0], 1u)] = key;
    }
    __syncthreads();
    block_sort([&](uint32_t i) -> uint64_t& { return best[i]; }, taken[0]);
    for (uint32_t i = t; i < want; i += FINISH_THREADS) out[i] = int32_t(s.start + uint32_t(best[i]));
}
