// The k best scores of each segment. scores [B,N] f32; out [B, sum of k] i32, indices into N, -1 where a segment has
// fewer than k scores. Keys are those of common/order.cuh. No two keys are equal, so the result does not depend on the
// order in which threads find the winners: deterministic.
//
// A segment of at most DIRECT scores is sorted whole by top_k_finish, in one pass over memory. A longer one takes three
// launches and two passes over its scores:
//   top_k_histogram  counts the upper 11 bits of the ranks; one block per CHUNK of scores and image
//   top_k_split      finds the bin of the k-th best, writes the keys before that bin to the front of the segment's
//                    workspace and the keys in it to the back; one block per CHUNK and image
//   top_k_finish     narrows the bin down by radix passes over its keys and sorts the winners in shared memory, or in
//                    the workspace if there are more than DIRECT; one block per segment and image
#include "common/order.cuh"
#include "common/reduce.cuh"

constexpr uint32_t DIRECT = 4096;
constexpr uint32_t CHUNK = 8192;
constexpr uint32_t BINS = 2048;
constexpr uint32_t BIN_BITS = 11;
// Words per long segment and image: the bins, the number of keys at the front, the number at the back, two unused
// words.
constexpr uint32_t COUNTS = BINS + 4;
constexpr int SPLIT_THREADS = 512;
constexpr int EACH = int(CHUNK) / SPLIT_THREADS;
constexpr uint32_t SEGMENTS = 16;

// `column`: the segment's first column of the result. For long segments only: `chunk`: its first block along x; `slot`:
// its number among the long ones; `key`: its first key in an image's workspace.
struct TopKSegment {
    uint32_t start, len, k, column, chunk, slot, key;
};
// `slots`, `keys`: number of long segments, and of their scores, per image.
struct TopKParams {
    uint32_t n, columns, slots, keys, segments;
    TopKSegment s[SEGMENTS];
};
static_assert(sizeof(TopKParams) == 468, "mirror of src/ops/top_k/cuda.rs");

// Index of the long segment that this block works on.
__device__ __forceinline__ uint32_t segment_of_chunk(const TopKParams& p) {
    uint32_t of = 0;
    for (uint32_t i = 0; i < p.segments; i++)
        if (p.s[i].len > DIRECT && p.s[i].chunk <= blockIdx.x) of = i;
    return of;
}

// A bin, the number of keys in the bins before it, and the number of keys in it.
struct Found {
    uint32_t bin, before, count;
};
// Finds the bin of the k-th counted key; k counts from 1, and at least k keys are counted. All threads get the result.
// thread t   bins t * OWN .. t * OWN + OWN       a prefix sum over the block gives the number of keys before them
//            exactly one thread owns the bin of the k-th key; it writes the result to shared memory
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

// block (x, y)   one CHUNK of one long segment; image y
// thread t       scores t, t + 512, ... of the chunk: 16 of them        neighbouring lanes read neighbouring scores
//                counts in shared memory, then adds bins t, t + 512, ... to the segment's: one global atomic a used bin
KERNEL(SPLIT_THREADS, top_k_histogram_f32, (uint32_t* counts, const float* scores, TopKParams p)) {
    SHARED(uint32_t, bins, BINS);
    const TopKSegment& s = p.s[segment_of_chunk(p)];
    if (s.len <= s.k) return;  // the whole block returns: all scores are winners
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

// block (x, y), thread t   the same scores as in top_k_histogram        their 16 ranks stay in registers
//                          a prefix sum gives each thread its places among the block's front and back keys
//                          threads 0 and 1 reserve room for the block: two global atomics a block, not one a key
KERNEL(SPLIT_THREADS, top_k_split_f32, (uint64_t* keys, uint32_t* counts, const float* scores, TopKParams p)) {
    SHARED(uint32_t, scratch, 33);
    SHARED(uint32_t, found, 3);
    SHARED(uint32_t, base, 2);
    const TopKSegment& s = p.s[segment_of_chunk(p)];
    counts += (int64_t(blockIdx.y) * p.slots + s.slot) * COUNTS;
    const uint32_t bin = s.len <= s.k ? BINS : s.k == 0 ? 0 : find_bin<SPLIT_THREADS>(counts, s.k, found, scratch).bin;
    const uint32_t from = (blockIdx.x - s.chunk) * CHUNK + threadIdx.x;
    const float* row = scores + int64_t(blockIdx.y) * p.n + s.start;
    uint32_t rank[EACH], front = 0, back = 0;  // bit j is set if rank[j] goes there
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        const uint32_t i = from + uint32_t(j) * SPLIT_THREADS;
        rank[j] = i < s.len ? descending_rank(row[i]) : 0;
        const uint32_t mine = rank[j] >> (32 - BIN_BITS);
        if (i < s.len && mine < bin) front |= 1u << j;
        if (i < s.len && mine == bin) back |= 1u << j;
    }
    // One prefix sum for both counts: front in the low 16 bits, back in the high ones. A block has fewer than 2^16
    // keys.
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

// Returns a limit such that exactly `need` of keys[0..n) are at most the limit; 0 < need <= n. The upper BIN_BITS of
// all keys are `prefix`. Each radix pass histograms the next up to 11 bits of the keys that still match the prefix and
// extends the prefix by the bin that holds the need-th of them; it stops early once all keys of a bin are needed.
__device__ __forceinline__ uint64_t select_limit(const uint64_t* keys, uint32_t n, uint32_t need, uint64_t prefix, uint32_t index_bits,
                                                 uint32_t* bins, uint32_t* found, uint32_t* scratch) {
    uint32_t low = 64 - BIN_BITS, count = n;  // low: number of bits below the prefix; count: keys that match it
    while (low > 0 && need < count) {
        if (low == 32) {  // below the rank: the upper bits of every index are 0, so skip them
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

// block (x, y)   segment x of image y, whole: the final sort needs a barrier over all its keys
// thread t       scores or keys t, t + 1024, ...                        neighbouring lanes read neighbouring addresses
//                the place of a winner before the sort depends on atomics, its place after the sort does not
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
    if (want == 0) return;  // the whole block returns
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
    // Keys up to the next power of two cost the sort no further step: only if there are more, the bin is narrowed down.
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
