// The part of Metal's standard library that this project's kernels use, for g++.
//
// Stricter than Metal in doubt: no `double`, nothing from libc or std, no implicit float -> bfloat,
// and both arguments of max and min of one type. More lenient in one way: address spaces (device,
// constant, thread, threadgroup) of pointers aren't told apart.
#pragma once
#include "runtime.h"

#define device
#define constant
#define thread
#define threadgroup  // of pointers; variables are EMULATOR_THREADGROUP by now

// Static, so that the threads share it. Metal only allows such a declaration in the kernel itself.
#define EMULATOR_THREADGROUP(type, name, dimensions)                                             \
  static type name dimensions;                                                                   \
  {                                                                                              \
    static unsigned emulator_last_threadgroup = 0;                                               \
    emulator::enter_threadgroup_variable((void*)&name, sizeof(name), emulator_last_threadgroup); \
  }

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define FLT_MAX __FLT_MAX__
#define FLT_MIN __FLT_MIN__
#define FLT_EPSILON __FLT_EPSILON__
#define INT_MAX __INT_MAX__
#define INT_MIN (-__INT_MAX__ - 1)
#define UINT_MAX (__INT_MAX__ * 2u + 1u)

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef _Float16 half;
typedef _Float16 float16_t;

template <class To, class From>
To as_type(From value) {
  static_assert(sizeof(To) == sizeof(From), "as_type needs types of one size");
  To result;
  __builtin_memcpy(&result, &value, sizeof result);
  return result;
}

// From float only by an explicit conversion, as in Metal. Metal rounds the sum of two bfloats to a
// bfloat, which is hardly ever meant; a kernel shall say float(x).
struct bfloat16_t {
  uint16_t bits;

  bfloat16_t() = default;
  explicit bfloat16_t(float value) : bits(rounded(as_type<uint>(value))) {}
  operator float() const { return as_type<float>(uint(bits) << 16); }

  friend void operator+(bfloat16_t, bfloat16_t) = delete;
  friend void operator-(bfloat16_t, bfloat16_t) = delete;
  friend void operator*(bfloat16_t, bfloat16_t) = delete;
  friend void operator/(bfloat16_t, bfloat16_t) = delete;

 private:
  static uint16_t rounded(uint word) {  // to nearest, ties to even; NaN stays NaN
    const bool nan = (word & 0x7fffffffu) > 0x7f800000u;
    return uint16_t((nan ? word | 0x400000u : word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
  }
};
typedef bfloat16_t bfloat;

namespace metal {

// ---- numbers

#define EMULATOR_UNARY(name, builtin)                                        \
  inline float name(float x) { return builtin(x); }                          \
  inline half name(half x) { return half(builtin(float(x))); }               \
  inline bfloat16_t name(bfloat16_t x) { return bfloat16_t(builtin(float(x))); }

#define EMULATOR_TRANSCENDENTALS       \
  EMULATOR_UNARY(exp, __builtin_expf)  \
  EMULATOR_UNARY(exp2, __builtin_exp2f) \
  EMULATOR_UNARY(log, __builtin_logf)  \
  EMULATOR_UNARY(log2, __builtin_log2f) \
  EMULATOR_UNARY(tanh, __builtin_tanhf) \
  EMULATOR_UNARY(sqrt, __builtin_sqrtf)

EMULATOR_TRANSCENDENTALS
namespace precise {
EMULATOR_TRANSCENDENTALS
}
namespace fast {
EMULATOR_TRANSCENDENTALS
}
EMULATOR_UNARY(abs, __builtin_fabsf)
EMULATOR_UNARY(fabs, __builtin_fabsf)
EMULATOR_UNARY(floor, __builtin_floorf)
EMULATOR_UNARY(ceil, __builtin_ceilf)
EMULATOR_UNARY(rint, __builtin_rintf)
#undef EMULATOR_TRANSCENDENTALS
#undef EMULATOR_UNARY

inline int abs(int x) { return x < 0 ? -x : x; }
inline float rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
inline float pow(float x, float y) { return __builtin_powf(x, y); }
inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

inline bool isnan(float x) { return __builtin_isnan(x); }
inline bool isinf(float x) { return __builtin_isinf(x); }
inline bool isfinite(float x) { return __builtin_isfinite(x); }

// Of a number and NaN, the number, as fmax and fmin.
template <class T>
T max(T a, T b) {
  return a != a || a < b ? b : a;
}
template <class T>
T min(T a, T b) {
  return a != a || b < a ? b : a;
}
template <class T>
T clamp(T x, T low, T high) {
  return min(max(x, low), high);
}
template <class T>
T select(T if_false, T if_true, bool condition) {
  return condition ? if_true : if_false;
}
inline float fmax(float a, float b) { return max(a, b); }
inline float fmin(float a, float b) { return min(a, b); }

// ---- threads that act together; `line` is that of the call in the kernel's text

enum class mem_flags { mem_none, mem_device, mem_threadgroup };

inline void threadgroup_barrier(mem_flags, uint line = __builtin_LINE()) {
  emulator::threadgroup_rendezvous({"threadgroup_barrier", line});
}
inline void simdgroup_barrier(mem_flags, uint line = __builtin_LINE()) {
  emulator::simdgroup_rendezvous({"simdgroup_barrier", line});
}

}  // namespace metal

namespace emulator {

template <class T>
const uint64_t* publish(T value, Site site) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "simd operations take scalars");
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof value);
  return exchange(bits, site);
}

template <class T>
T read_slot(uint64_t bits) {
  T value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

// The value that lane `source` published.
template <class T>
T from_lane(T value, uint source, Site site) {
  const uint64_t* slots = publish(value, site);
  if (source >= lanes_in_simdgroup())
    fail("%s, line %u: lane %u reads from lane %u of %u", site.operation, site.line, lane(), source,
         lanes_in_simdgroup());
  return read_slot<T>(slots[source]);
}

// As a tree whose shape doesn't depend on the schedule. Metal's own order is unspecified.
template <class T, class Combine>
T reduce(T value, Combine combine, Site site) {
  const uint64_t* slots = publish(value, site);
  const uint lanes = lanes_in_simdgroup();
  T values[SIMD_WIDTH];
  for (uint i = 0; i < lanes; i++) values[i] = read_slot<T>(slots[i]);
  for (uint step = SIMD_WIDTH / 2; step > 0; step /= 2)
    for (uint i = 0; i < step && i + step < lanes; i++)
      values[i] = combine(values[i], values[i + step]);
  return values[0];
}

}  // namespace emulator

namespace metal {

template <class T>
T simd_shuffle(T value, ushort source, uint line = __builtin_LINE()) {
  return emulator::from_lane(value, source, {"simd_shuffle", line});
}
template <class T>
T simd_broadcast(T value, ushort source, uint line = __builtin_LINE()) {
  return emulator::from_lane(value, source, {"simd_broadcast", line});
}
template <class T>
T simd_broadcast_first(T value, uint line = __builtin_LINE()) {
  return emulator::from_lane(value, 0, {"simd_broadcast_first", line});
}
template <class T>
T simd_shuffle_xor(T value, ushort mask, uint line = __builtin_LINE()) {
  return emulator::from_lane(value, emulator::lane() ^ mask, {"simd_shuffle_xor", line});
}
// Down and up don't wrap around: a lane without a partner keeps its own value.
template <class T>
T simd_shuffle_down(T value, ushort delta, uint line = __builtin_LINE()) {
  const uint me = emulator::lane(), source = me + delta;
  return emulator::from_lane(value, source < emulator::lanes_in_simdgroup() ? source : me,
                             {"simd_shuffle_down", line});
}
template <class T>
T simd_shuffle_up(T value, ushort delta, uint line = __builtin_LINE()) {
  const uint me = emulator::lane();
  return emulator::from_lane(value, me >= delta ? me - delta : me, {"simd_shuffle_up", line});
}
template <class T>
T simd_sum(T value, uint line = __builtin_LINE()) {
  return emulator::reduce(value, [](T a, T b) { return T(a + b); }, {"simd_sum", line});
}
template <class T>
T simd_max(T value, uint line = __builtin_LINE()) {
  return emulator::reduce(value, [](T a, T b) { return max(a, b); }, {"simd_max", line});
}
template <class T>
T simd_min(T value, uint line = __builtin_LINE()) {
  return emulator::reduce(value, [](T a, T b) { return min(a, b); }, {"simd_min", line});
}
inline bool simd_any(bool value, uint line = __builtin_LINE()) {
  return emulator::reduce(value, [](bool a, bool b) { return a || b; }, {"simd_any", line});
}
inline bool simd_all(bool value, uint line = __builtin_LINE()) {
  return emulator::reduce(value, [](bool a, bool b) { return a && b; }, {"simd_all", line});
}

}  // namespace metal

using namespace metal;

// Not Metal's, but MLX puts one in front of every kernel, with this formula and its limits.
inline float log1p(float x) {
  const float total = 1.0f + x;
  return total == 1.0f ? x : x * (metal::log(total) / (total - 1.0f));
}

#define double METAL_HAS_NO_DOUBLE
