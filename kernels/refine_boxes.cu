// Which rows are proposals, and no ground truth or padding. One thread an element, one pass. Deterministic.
#include "common/kernel.cuh"

// y [n]: 1 where idx [n] is `first` or more, else -1.
KERNEL(256, proposals_from_i32, (int32_t * y, const int32_t* idx, int32_t first, int64_t n)) {
    for (int64_t i = global_thread(); i < n; i += global_threads()) y[i] = idx[i] >= first ? 1 : -1;
}
