// Sampling. assigned [B,N], idx, gt [B,S], counts [B,2] i32; chosen [B,2,W] with W = ceil(N/32): a bit for each candidate, of the
// positives and of the negatives.
// One block of 1024 threads an image. One pass counts both classes and marks their candidates. A class of too many is narrowed
// down: a histogram of the first 11 bits of the keys (random number, index) finds the bin that holds the last one chosen, the next
// pass marks what lies in lower bins and lists the keys of that bin, which are then ranked; a bin of more than 1024 keys is split
// by the next 11 bits first. Marks become a list in ascending order by one scan over words of 32. A Philox block serves the four
// candidates of a thread, twice. Deterministic: the list's order (that of integer atomics) does not show.
#include "common/philox.cuh"
#include "common/reduce.cuh"

struct SampleParams {
    uint32_t b, n, num, quota;  // quota: positives at most
    int32_t purpose;            // of the random numbers; -1: strided
};
static_assert(sizeof(SampleParams) == 20, "mirror of src/ops/sample/cuda.rs");

constexpr int THREADS = 1024;
constexpr int DIGIT_BITS = 11;
constexpr int BINS = 1 << DIGIT_BITS;
constexpr uint32_t LIST = THREADS;

enum Class { POSITIVE = 0, NEGATIVE = 1 };

__device__ __forceinline__ bool is_of(Class c, int32_t assigned) { return c == POSITIVE ? assigned > 0 : assigned == 0; }

// What the steps of one image share.
struct Image {
    const int32_t* assigned;
    const int32_t* key;
    uint32_t image, n, purpose;

    __device__ __forceinline__ uint32_t groups() const { return (n + 3) / 4; }

    // Bits of those of group `g`, candidates 4 g to 4 g + 3, that are of the class.
    __device__ __forceinline__ uint32_t members(uint32_t g, Class c) const {
        uint32_t bits = 0;
#pragma unroll
        for (uint32_t k = 0; k < 4; k++) {
            if (4 * g + k < n && is_of(c, assigned[4 * g + k])) bits |= 1u << k;
        }
        return bits;
    }

    // Calls `each(k, key)` for the members of group `g`: their sort keys are (random number, index).
    template <typename F> __device__ __forceinline__ void keys(uint32_t g, uint32_t members, F each) const {
        if (members == 0) return;
        const uint4 random = philox_block(key, image, purpose, g);
        const uint32_t words[4] = {random.x, random.y, random.z, random.w};
#pragma unroll
        for (uint32_t k = 0; k < 4; k++) {
            if (members >> k & 1) each(k, uint64_t(words[k]) << 32 | (4 * g + k));
        }
    }
};

// Writes 4 bits of each lane to `words`: a warp's 32 groups are 4 words. All lanes call it.
__device__ __forceinline__ void mark(uint32_t* words, uint32_t group, uint32_t count, uint32_t bits) {
    bits <<= 4 * (group % 8);
    for (int d = 1; d < 8; d *= 2) bits |= __shfl_xor_sync(FULL_WARP, bits, d);
    if (group % 8 == 0 && group / 8 < count) words[group / 8] = bits;
}

// Leaves marked the `need` members with the smallest keys, 0 < need < number of members. The whole block calls it.
__device__ void choose(uint32_t* words, uint32_t count, const Image& image, Class c, uint32_t members, uint32_t need) {
    SHARED(uint32_t, bins, BINS);
    SHARED(uint64_t, list, LIST);
    SHARED(uint32_t, scratch, 33);
    SHARED(uint64_t, found, 1);
    SHARED(uint32_t, found_counts, 2);
    const uint32_t groups = image.groups();
    // Keys whose bits from `shift` on are below `prefix` are chosen; `need` of the `members` that have these very bits are, too.
    uint64_t prefix = 0;
    int shift = 64;
    while (members > LIST) {
        const int next = max(shift - DIGIT_BITS, 0);
        const uint32_t mask = (1u << (shift - next)) - 1;
        for (int i = threadIdx.x; i < BINS; i += THREADS) bins[i] = 0;
        __syncthreads();
        for (uint32_t g = threadIdx.x; g < groups; g += THREADS) {
            image.keys(g, image.members(g, c), [&](uint32_t, uint64_t key) {
                if (shift == 64 || key >> shift == prefix) atomicAdd(&bins[uint32_t(key >> next) & mask], 1u);
            });
        }
        __syncthreads();
        const uint32_t first = bins[2 * threadIdx.x], second = bins[2 * threadIdx.x + 1];
        uint32_t total;
        const uint32_t below = block_exclusive_sum(first + second, total, scratch);
        if (below < need && need <= below + first + second) {  // one thread's: the bin of the last one chosen
            const bool in_first = need <= below + first;
            found[0] = 2 * threadIdx.x + (in_first ? 0 : 1);
            found_counts[0] = below + (in_first ? 0 : first);
            found_counts[1] = in_first ? first : second;
        }
        __syncthreads();
        prefix = prefix << (shift - next) | found[0];
        need -= found_counts[0];
        members = found_counts[1];
        shift = next;
        __syncthreads();  // the next turn overwrites
    }
    if (threadIdx.x == 0) found_counts[0] = 0;
    __syncthreads();
    for (uint32_t from = WARP * warp_id(); from < groups; from += THREADS) {
        const uint32_t g = from + lane_id();
        uint32_t bits = 0;
        image.keys(g, g < groups ? image.members(g, c) : 0, [&](uint32_t k, uint64_t key) {
            const uint64_t head = shift == 64 ? 0 : key >> shift;
            if (head < prefix) bits |= 1u << k;
            if (head == prefix) list[atomicAdd(&found_counts[0], 1u)] = key;
        });
        mark(words, g, count, bits);
    }
    __syncthreads();
    if (threadIdx.x < members) {
        const uint64_t mine = list[threadIdx.x];
        uint32_t rank = 0;
        for (uint32_t j = 0; j < members; j++) rank += list[j] < mine ? 1u : 0u;
        const uint32_t i = uint32_t(mine);
        if (rank < need) atomicOr(&words[i / 32], 1u << (i % 32));
    }
    __syncthreads();
}

// Writes the marked candidates in ascending order; with `stride`, `need` of the `marked`: number floor(k marked / need) is k.
// Returns how many.
__device__ uint32_t write(int32_t* idx, int32_t* gt, const uint32_t* words, uint32_t count, const Image& image, Class c,
                          uint32_t marked, uint32_t need) {
    SHARED(uint32_t, scratch, 33);
    const uint32_t each = (count + THREADS - 1) / THREADS;
    const uint32_t begin = min(count, each * threadIdx.x), end = min(count, begin + each);
    uint32_t mine = 0, total;
    for (uint32_t i = begin; i < end; i++) mine += __popc(words[i]);
    uint32_t rank = block_exclusive_sum(mine, total, scratch);
    const bool stride = marked > need;
    for (uint32_t i = begin; i < end; i++) {
        for (uint32_t bits = words[i]; bits != 0; bits &= bits - 1, rank++) {
            uint32_t slot = rank;
            if (stride) {
                // The first k whose number is this one or a later one.
                slot = uint32_t((uint64_t(rank) * need + marked - 1) / marked);
                if (slot >= need || uint32_t(uint64_t(slot) * marked / need) != rank) continue;
            }
            const uint32_t candidate = 32 * i + __ffs(int(bits)) - 1;
            idx[slot] = int32_t(candidate);
            gt[slot] = c == POSITIVE ? image.assigned[candidate] - 1 : -1;
        }
    }
    return min(marked, need);
}

KERNEL(1024, sample_i32,
       (int32_t * idx, int32_t* gt, int32_t* counts, uint32_t* chosen, const int32_t* assigned, const int32_t* key, SampleParams p)) {
    SHARED(uint64_t, scratch, 33);
    const uint32_t count = (p.n + 31) / 32;
    const Image image = {assigned + int64_t(blockIdx.x) * p.n, key, blockIdx.x, p.n, uint32_t(p.purpose)};
    uint32_t* const words = chosen + int64_t(blockIdx.x) * 2 * count;
    idx += int64_t(blockIdx.x) * p.num;
    gt += int64_t(blockIdx.x) * p.num;

    uint64_t mine = 0;
    const uint32_t groups = image.groups();
    for (uint32_t from = WARP * warp_id(); from < groups; from += THREADS) {
        const uint32_t g = from + lane_id();
        const uint32_t pos = image.members(g, POSITIVE), neg = image.members(g, NEGATIVE);
        mine += uint64_t(__popc(pos)) << 32 | uint32_t(__popc(neg));
        mark(words, g, count, pos);
        mark(words + count, g, count, neg);
    }
    const uint64_t both = block_reduce(mine, Sum(), uint64_t(0), scratch);  // its barriers show the marks to the block

    uint32_t len = 0;
    for (int c = 0; c < 2; c++) {
        const Class which = c == 0 ? POSITIVE : NEGATIVE;
        const uint32_t need = which == POSITIVE ? p.quota : p.num - len;
        uint32_t* const marks = words + (which == POSITIVE ? 0 : count);
        uint32_t members = which == POSITIVE ? uint32_t(both >> 32) : uint32_t(both);
        uint32_t got = 0;
        if (need > 0) {
            if (p.purpose >= 0 && members > need) {
                choose(marks, count, image, which, members, need);
                members = need;
            }
            got = write(idx + len, gt + len, marks, count, image, which, members, need);
        }
        if (threadIdx.x == 0) counts[2 * int64_t(blockIdx.x) + c] = int32_t(got);
        len += got;
    }
    for (uint32_t i = len + threadIdx.x; i < p.num; i += THREADS) idx[i] = gt[i] = -1;
}
