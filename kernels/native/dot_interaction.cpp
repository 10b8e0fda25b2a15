// The dot interaction on a CPU: layouts as in kernels/dot_interaction.py, sums in float32, a row at a time.
//
// A row's vectors fit in the first cache, so they are read once and its products never leave it; PyTorch's batched
// product writes all F x F of them, and reads them back for half. Products are made four vectors by sixteen at a time
// in registers. No headers of PyTorch or Python: tensors come as pointers, threads are those of the OpenMP runtime that
// PyTorch has loaded (this file is linked without one of its own, as two would fight for the cores).
//
// Shapes: B rows, F vectors of D numbers, `count` vectors from `first` on stand before the F (F - 1) / 2 pairs.
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EACH_CPU
#endif
#define INLINE inline __attribute__((always_inline))  // into each clone, so that it is compiled for that processor

namespace {

struct bf16 { uint16_t bits; };

INLINE float wide(float v) { return v; }
INLINE float wide(bf16 v) {
  const uint32_t bits = uint32_t(v.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

INLINE void narrow(float f, float* to) { *to = f; }
INLINE void narrow(float f, bf16* to) {  // to the nearest, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  to->bits = (bits & 0x7FFFFFFF) > 0x7F800000 ? uint16_t(0x7FC0) : uint16_t(rounded);
}

typedef float V __attribute__((vector_size(64), aligned(4)));
INLINE V load(const float* p) {
  V v;
  std::memcpy(&v, p, 64);
  return v;
}
INLINE void store(float* p, V v, size_t bytes) { std::memcpy(p, &v, bytes); }

INLINE int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Four rows of `left` (pitch `ln`) times `steps` rows of sixteen columns of `right` (pitch `rn`), into four rows of
// `out` (pitch `on`), of which only `columns` may be written.
INLINE void block(const float* left, int64_t ln, int64_t step, const float* right, int64_t rn, int64_t steps, float* out,
                  int64_t on, int64_t columns) {
  V a{}, b{}, c{}, d{};
  for (int64_t k = 0; k < steps; ++k) {
    const V t = load(right + k * rn);
    const float* u = left + k * step;
    a += u[0] * t;
    b += u[ln] * t;
    c += u[2 * ln] * t;
    d += u[3 * ln] * t;
  }
  const size_t bytes = 4 * size_t(columns < 16 ? columns : 16);
  if (bytes == 64) {
    store(out, a, 64), store(out + on, b, 64), store(out + 2 * on, c, 64), store(out + 3 * on, d, 64);
  } else {
    store(out, a, bytes), store(out + on, b, bytes), store(out + 2 * on, c, bytes), store(out + 3 * on, d, bytes);
  }
}

template <class T>
INLINE void forward_rows(const T* x, T* out, int64_t from, int64_t to, int64_t F, int64_t D, int64_t first,
                         int64_t count, int64_t stride) {
  const int64_t P = up(F, 16), I = up(F, 4), half = F / 2, width = count * D + F * (F - 1) / 2;
  std::vector<float> rows(I * D, 0.f), columns(D * P, 0.f), products(I * F + 64);
  float* __restrict X = rows.data();
  float* __restrict Y = columns.data();
  float* __restrict M = products.data();
  for (int64_t b = from; b < to; ++b) {
    const T* row = x + b * stride;
    T* o = out + b * width;
    for (int64_t i = 0; i < F * D; ++i) X[i] = wide(row[i]);
    for (int64_t i = 0; i < F; ++i)
      for (int64_t d = 0; d < D; ++d) Y[d * P + i] = X[i * D + d];
    for (int64_t i = 0; i < I; i += 4)
      for (int64_t j = 0; j < F; j += 16) block(X + i * D, D, 1, Y + j, P, D, M + i * F + j, F, F - j);
    std::memcpy(o, row + first * D, count * D * sizeof(T));
    o += count * D;
    for (int64_t i = 0; i < F - 1; ++i) {
      const float* p = M + i * (F + 1) + 1;
      T* __restrict q = o + i * half;
      for (int64_t k = 0; k < half; ++k) narrow(p[k], q + k);
    }
    if (F % 2)
      for (int64_t i = 0; i < half; ++i) narrow(M[i * (F + 1) + half + 1], o + (F - 1) * half + i);
  }
}

template <class T>
INLINE void backward_rows(const T* grad, const T* x, T* out, int64_t from, int64_t to, int64_t F, int64_t D,
                          int64_t first, int64_t count, int64_t stride) {
  const int64_t E = up(D, 16), I = up(F, 4), half = F / 2, width = count * D + F * (F - 1) / 2;
  std::vector<float> rows(F * E, 0.f), gradient(I * E), pairs(I * I + 64, 0.f);
  float* __restrict X = rows.data();
  float* __restrict G = gradient.data();
  float* __restrict M = pairs.data();  // symmetric, pitch I; its diagonal stays zero
  for (int64_t b = from; b < to; ++b) {
    const T* row = x + b * stride;
    const T* own = grad + b * width;
    for (int64_t i = 0; i < F; ++i)
      for (int64_t d = 0; d < D; ++d) X[i * E + d] = wide(row[i * D + d]);
    const T* s = own + count * D;
    for (int64_t i = 0; i < F - 1; ++i) {  // a run of pairs goes on in the next row where it leaves its own
      const int64_t straight = half < F - 1 - i ? half : F - 1 - i;
      float* p = M + i * I + i + 1;
      float* q = M + (i + 1) * I + i;
      for (int64_t k = 0; k < straight; ++k) p[k] = q[k * I] = wide(s[k]);
      p = M + (i + 1) * I;
      q = M + (i + 1);
      for (int64_t k = straight; k < half; ++k) p[k - straight] = q[(k - straight) * I] = wide(s[k]);
      s += half;
    }
    if (F % 2)
      for (int64_t i = 0; i < half; ++i) M[i * I + i + half + 1] = M[(i + half + 1) * I + i] = wide(*s++);
    for (int64_t i = 0; i < I; i += 4)
      for (int64_t d = 0; d < E; d += 16) block(M + i * I, I, 1, X + d, E, F, G + i * E + d, E, 16);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t d = 0; d < D; ++d) G[(first + i) * E + d] += wide(own[i * D + d]);
    T* __restrict o = out + b * F * D;
    for (int64_t i = 0; i < F; ++i)
      for (int64_t d = 0; d < D; ++d) narrow(G[i * E + d], o + i * D + d);
  }
}

#define INSTANCE(NAME, T)                                                                                           \
  EACH_CPU void forward_##NAME(const T* x, T* out, int64_t from, int64_t to, int64_t F, int64_t D, int64_t first,   \
                               int64_t count, int64_t stride) {                                                     \
    forward_rows<T>(x, out, from, to, F, D, first, count, stride);                                                  \
  }                                                                                                                 \
  EACH_CPU void backward_##NAME(const T* grad, const T* x, T* out, int64_t from, int64_t to, int64_t F, int64_t D,  \
                                int64_t first, int64_t count, int64_t stride) {                                     \
    backward_rows<T>(grad, x, out, from, to, F, D, first, count, stride);                                           \
  }
INSTANCE(float, float)
INSTANCE(bf16, bf16)

template <class Run>
void shared(int64_t batch, int threads, Run run) {  // rows do not touch each other: any number gives the same bits
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
  for (int t = 0; t < threads; ++t) run(batch * t / threads, batch * (t + 1) / threads);
}

}  // namespace

extern "C" {

void dot_forward(const void* x, void* out, int64_t batch, int64_t F, int64_t D, int64_t first, int64_t count,
                 int64_t stride, int is_bf16, int threads) {
  shared(batch, threads, [&](int64_t from, int64_t to) {
    if (is_bf16) forward_bf16((const bf16*)x, (bf16*)out, from, to, F, D, first, count, stride);
    else forward_float((const float*)x, (float*)out, from, to, F, D, first, count, stride);
  });
}

void dot_backward(const void* grad, const void* x, void* out, int64_t batch, int64_t F, int64_t D, int64_t first,
                  int64_t count, int64_t stride, int is_bf16, int threads) {
  shared(batch, threads, [&](int64_t from, int64_t to) {
    if (is_bf16) backward_bf16((const bf16*)grad, (const bf16*)x, (bf16*)out, from, to, F, D, first, count, stride);
    else backward_float((const float*)grad, (const float*)x, (float*)out, from, to, F, D, first, count, stride);
  });
}

}
