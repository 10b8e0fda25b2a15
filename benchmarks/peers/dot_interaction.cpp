// The dot interaction as a C++ extension would do it: a contender of kernels_cpu.py, which builds it. A row at a time in
// float32 registers; layouts as recsys/kernels/dot_interaction.py. Not used by the project: decision 0038.
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EACH_CPU
#endif

namespace {

struct bf16 { uint16_t bits; };
inline float wide(bf16 v) { uint32_t b = uint32_t(v.bits) << 16; float f; std::memcpy(&f, &b, 4); return f; }
inline float wide(float v) { return v; }
inline void narrow(float f, float* to) { *to = f; }
inline void narrow(float f, bf16* to) {
  uint32_t b; std::memcpy(&b, &f, 4);
  uint32_t r = (b + 0x7FFF + ((b >> 16) & 1)) >> 16;
  to->bits = (b & 0x7FFFFFFF) > 0x7F800000 ? uint16_t(0x7FC0) : uint16_t(r);
}


typedef float V __attribute__((vector_size(64), aligned(4)));
inline __attribute__((always_inline)) V at(const float* p) { V v; __builtin_memcpy(&v, p, 64); return v; }

template <class T>
inline __attribute__((always_inline)) void forward_rows(const T* x, T* out, int64_t from, int64_t to, int64_t F, int64_t D,
    int64_t first, int64_t count, int64_t stride) {
  const int64_t P = (F + 15) / 16 * 16, I = (F + 3) / 4 * 4, half = F / 2, width = count * D + F * (F - 1) / 2;
  std::vector<float> xf(I * D, 0.f), xt(D * P, 0.f), product(I * F + 64);
  float* __restrict X = xf.data(); float* __restrict Y = xt.data(); float* __restrict M = product.data();
  for (int64_t b = from; b < to; ++b) {
    const T* row = x + b * stride;
    T* o = out + b * width;
    for (int64_t i = 0; i < F * D; ++i) X[i] = wide(row[i]);
    for (int64_t i = 0; i < F; ++i) for (int64_t d = 0; d < D; ++d) Y[d * P + i] = X[i * D + d];
    for (int64_t i = 0; i < I; i += 4) {
      for (int64_t j = 0; j < P; j += 16) {
        V a0{}, a1{}, a2{}, a3{};
        const float* u = X + i * D;
        for (int64_t d = 0; d < D; ++d) {
          const V t = at(Y + d * P + j);
          a0 += u[d] * t; a1 += u[D + d] * t; a2 += u[2 * D + d] * t; a3 += u[3 * D + d] * t;
        }
        float* p = M + i * F + j;
        if (j + 16 <= F) { __builtin_memcpy(p, &a0, 64); __builtin_memcpy(p + F, &a1, 64); __builtin_memcpy(p + 2 * F, &a2, 64); __builtin_memcpy(p + 3 * F, &a3, 64); }
        else { const size_t n = (F - j) * 4; __builtin_memcpy(p, &a0, n); __builtin_memcpy(p + F, &a1, n); __builtin_memcpy(p + 2 * F, &a2, n); __builtin_memcpy(p + 3 * F, &a3, n); }
      }
    }
    std::memcpy(o, row + first * D, count * D * sizeof(T));
    o += count * D;
    for (int64_t i = 0; i < F - 1; ++i) {
      const float* p = M + i * (F + 1) + 1;
      T* __restrict q = o + i * half;
      for (int64_t k = 0; k < half; ++k) narrow(p[k], q + k);
    }
    if (F % 2) for (int64_t i = 0; i < half; ++i) narrow(M[i * (F + 1) + half + 1], o + (F - 1) * half + i);
  }
}

template <class T>
inline __attribute__((always_inline)) void backward_rows(const T* grad, const T* x, T* out, int64_t from, int64_t to, int64_t F,
    int64_t D, int64_t first, int64_t count, int64_t stride) {
  const int64_t E = (D + 15) / 16 * 16;
  const int64_t half = F / 2, pairs = F * (F - 1) / 2, width = count * D + pairs, I = (F + 3) / 4 * 4;
  std::vector<float> xf(F * E, 0.f), dx(I * E), m(I * I + 64, 0.f);
  float* __restrict X = xf.data(); float* __restrict G = dx.data(); float* __restrict M = m.data();
  for (int64_t b = from; b < to; ++b) {
    const T* row = x + b * stride;
    const T* gr = grad + b * width;
    for (int64_t i = 0; i < F; ++i) for (int64_t d = 0; d < D; ++d) X[i * E + d] = wide(row[i * D + d]);
    const T* s = gr + count * D;
    // Symmetric matrix of pitch I
    for (int64_t i = 0; i < F - 1; ++i) {
      const int64_t straight = half < F - 1 - i ? half : F - 1 - i;
      float* p = M + i * I + i + 1; float* q = M + (i + 1) * I + i;
      for (int64_t k = 0; k < straight; ++k) { const float g = wide(s[k]); p[k] = g; q[k * I] = g; }
      p = M + (i + 1) * I; q = M + (i + 1);
      for (int64_t k = straight; k < half; ++k) { const float g = wide(s[k]); p[k - straight] = g; q[(k - straight) * I] = g; }
      s += half;
    }
    if (F % 2) for (int64_t i = 0; i < half; ++i) { const float g = wide(*s++); M[i * I + i + half + 1] = g; M[(i + half + 1) * I + i] = g; }
    for (int64_t i = 0; i < I; i += 4) for (int64_t d = 0; d < E; d += 16) {
      V a0{}, a1{}, a2{}, a3{};
      const float* u = M + i * I;
      for (int64_t j = 0; j < F; ++j) {
        const V t = at(X + j * E + d);
        a0 += u[j] * t; a1 += u[I + j] * t; a2 += u[2 * I + j] * t; a3 += u[3 * I + j] * t;
      }
      float* p = G + i * E + d;
      __builtin_memcpy(p, &a0, 64); __builtin_memcpy(p + E, &a1, 64); __builtin_memcpy(p + 2 * E, &a2, 64); __builtin_memcpy(p + 3 * E, &a3, 64);
    }
    for (int64_t i = 0; i < count; ++i) for (int64_t d = 0; d < D; ++d) G[(first + i) * E + d] += wide(gr[i * D + d]);
    T* __restrict o = out + b * F * D;
    for (int64_t i = 0; i < F; ++i) for (int64_t d = 0; d < D; ++d) narrow(G[i * E + d], o + i * D + d);
  }
}

#define INSTANCE(NAME, T) \
EACH_CPU void forward_##NAME(const T* x, T* out, int64_t from, int64_t to, int64_t F, int64_t D, int64_t first, int64_t count, int64_t stride) \
{ forward_rows<T>(x, out, from, to, F, D, first, count, stride); } \
EACH_CPU void backward_##NAME(const T* grad, const T* x, T* out, int64_t from, int64_t to, int64_t F, int64_t D, int64_t first, int64_t count, int64_t stride) \
{ backward_rows<T>(grad, x, out, from, to, F, D, first, count, stride); }
INSTANCE(float, float)
INSTANCE(bf16, bf16)

template <class F> void shared(int64_t batch, int threads, F run) {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int t = 0; t < threads; ++t) run(batch * t / threads, batch * (t + 1) / threads);
}
}

extern "C" {
void dot_forward(const void* x, void* out, int64_t batch, int64_t F, int64_t D, int64_t first, int64_t count, int64_t stride, int half, int threads) {
  shared(batch, threads, [&](int64_t a, int64_t b) {
    if (half) forward_bf16((const bf16*)x, (bf16*)out, a, b, F, D, first, count, stride);
    else forward_float((const float*)x, (float*)out, a, b, F, D, first, count, stride);
  });
}
void dot_backward(const void* g, const void* x, void* out, int64_t batch, int64_t F, int64_t D, int64_t first, int64_t count, int64_t stride, int half, int threads) {
  shared(batch, threads, [&](int64_t a, int64_t b) {
    if (half) backward_bf16((const bf16*)g, (const bf16*)x, (bf16*)out, a, b, F, D, first, count, stride);
    else backward_float((const float*)g, (const float*)x, (float*)out, a, b, F, D, first, count, stride);
  });
}
}
