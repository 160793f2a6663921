// Focal loss from logits. x, dx [M,K] f32; labels [M] i32; avg, dy, loss [1] f32; sums [blocks] f64. One pass; logits
// of ignored rows are not read. The terms of a thread's vector are added in f32, all further sums are in f64. One block
// folds the blocks' sums, unless there is only one block. Deterministic.
#include "common/loss.cuh"

struct SigmoidFocalParams {
    uint32_t m, k;
    float alpha, gamma, weight;
};
static_assert(sizeof(SigmoidFocalParams) == 20, "mirror of src/ops/sigmoid_focal/cuda.rs");

// The functions of one logit s that loss and gradient use. `log1p` is ln(1 + e^-|s|). `rest` is 1 - sigmoid, without
// cancellation.
struct Parts {
    float s, log1p, softplus, sigmoid, rest;
};

// Starts from e^-|s|, which does not overflow and loses no digits of small results. One division serves all three
// quotients.
__device__ __forceinline__ Parts parts_of(float s) {
    const float e = expf(-fabsf(s));
    const float one = 1.0f + e, two = 2.0f + e, inverse = 1.0f / (one * two);
    const float large = two * inverse, small = e * large;  // 1 / (1 + e), e / (1 + e)
    // ln(1 + e) = 2 artanh(z), z = e / (2 + e) at most 1/3; polynomial within 2e-8 of artanh(z).
    const float z = e * (one * inverse), w = z * z, z2 = z + z;
    const float p = fmaf(w, fmaf(w, fmaf(w, 0.13432588f, 0.14117208f), 0.20003822f), 0.3333332f);
    const float log1p = fmaf(z2 * w, p, z2);
    const bool positive = s > 0.0f;
    return {s, log1p, positive ? s + log1p : log1p, positive ? large : small, positive ? small : large};
}

// sigmoid(s)^gamma = e^(-gamma softplus(-s)).
template <bool SQUARE> __device__ __forceinline__ float factor(const Parts& p, float gamma) {
    return SQUARE ? p.sigmoid * p.sigmoid : expf(-gamma * (p.s < 0.0f ? p.log1p - p.s : p.log1p));
}

// Calls `each(row, first class, label)` for each of this thread's vectors of V classes.
// thread i   vector i of x, then i + grid threads: neighbouring threads read neighbouring addresses
//            V = 4 (16 bytes) if K is a multiple of 4, else 1; backward, one thread owns each vector of dx
//            row and column advance by the grid's rows and columns: one division at the start, none in the loop
template <int V, typename F> __device__ __forceinline__ void over(const int32_t* labels, const SigmoidFocalParams& p, F each) {
    const uint32_t vectors = p.k / V, first = uint32_t(global_thread()), step = uint32_t(global_threads());
    const uint32_t rows = step / vectors, columns = step - rows * vectors;
    int64_t row = first / vectors;
    uint32_t column = first - uint32_t(row) * vectors;
    while (row < int64_t(p.m)) {
        each(row, column * V, labels[row]);
        row += rows;
        column += columns;
        if (column >= vectors) {
            column -= vectors;
            row++;
        }
    }
}

__device__ __forceinline__ bool counts(int32_t label, uint32_t k) { return label >= 0 && uint32_t(label) <= k; }

template <int V, bool SQUARE>
__device__ __forceinline__ double focal_sum(const float* x, const int32_t* labels, const SigmoidFocalParams& p) {
    double sum = 0.0;
    over<V>(labels, p, [&](int64_t row, uint32_t column, int32_t label) {
        if (!counts(label, p.k)) return;
        const Pack<float, V> v = load_pack<V>(x + row * p.k + column);
        float terms = 0.0f;
#pragma unroll
        for (int j = 0; j < V; j++) {
            const bool own = uint32_t(label) == column + j;
            const Parts q = parts_of(own ? -v.v[j] : v.v[j]);
            terms += (own ? p.alpha : 1.0f - p.alpha) * (q.softplus * factor<SQUARE>(q, p.gamma));
        }
        sum += double(terms);
    });
    return sum;
}

template <int V, bool SQUARE>
__device__ __forceinline__ void focal_slopes(float* dx, float scale, const float* x, const int32_t* labels, const SigmoidFocalParams& p) {
    over<V>(labels, p, [&](int64_t row, uint32_t column, int32_t label) {
        Pack<float, V> out = {};
        if (counts(label, p.k)) {
            const Pack<float, V> v = load_pack<V>(x + row * p.k + column);
#pragma unroll
            for (int j = 0; j < V; j++) {
                const bool own = uint32_t(label) == column + j;
                const Parts q = parts_of(own ? -v.v[j] : v.v[j]);
                const float a = own ? -scale * p.alpha : scale * (1.0f - p.alpha);
                out.v[j] = a * (factor<SQUARE>(q, p.gamma) * fmaf(p.gamma * q.softplus, q.rest, q.sigmoid));
            }
        }
        store_pack(dx + row * p.k + column, out);
    });
}

KERNEL(256, sigmoid_focal_fwd_f32,
       (float* loss, double* sums, const float* x, const int32_t* labels, const float* avg, SigmoidFocalParams p)) {
    SHARED(double, scratch, 32);
    double sum;
    if (p.k % 4 == 0) sum = p.gamma == 2.0f ? focal_sum<4, true>(x, labels, p) : focal_sum<4, false>(x, labels, p);
    else sum = p.gamma == 2.0f ? focal_sum<1, true>(x, labels, p) : focal_sum<1, false>(x, labels, p);
    put_loss(loss, sums, sum, avg, p.weight, scratch);
}

KERNEL(1024, sigmoid_focal_fold_f32, (float* loss, const double* sums, const float* avg, FoldParams p)) {
    SHARED(double, scratch, 32);
    fold_loss(loss, sums, avg, p.n, p.weight, scratch);
}

KERNEL(256, sigmoid_focal_bwd_f32,
       (float* dx, const float* dy, const float* x, const int32_t* labels, const float* avg, SigmoidFocalParams p)) {
    const float scale = dy[0] * p.weight / avg[0];
    if (p.k % 4 == 0) {
        if (p.gamma == 2.0f) focal_slopes<4, true>(dx, scale, x, labels, p);
        else focal_slopes<4, false>(dx, scale, x, labels, p);
    } else {
        if (p.gamma == 2.0f) focal_slopes<1, true>(dx, scale, x, labels, p);
        else focal_slopes<1, false>(dx, scale, x, labels, p);
    }
}
