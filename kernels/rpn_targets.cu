// Targets of sampled anchors: gt, idx, target, label [n] i32. One thread an element, one pass. Deterministic.
#include "common/kernel.cuh"

KERNEL(256, rpn_targets_i32, (int32_t* target, int32_t* label, const int32_t* gt, const int32_t* idx, int64_t n)) {
    for (int64_t i = global_thread(); i < n; i += global_threads()) {
        const bool sampled = idx[i] >= 0, positive = gt[i] >= 0;
        target[i] = sampled ? int32_t(positive) : -1;
        label[i] = sampled && positive ? 0 : -1;
    }
}
