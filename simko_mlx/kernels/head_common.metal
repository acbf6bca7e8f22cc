// What both kernels share. Logits are passed by value, never by pointer: MLX puts small inputs into
// the constant address space and others into device memory.

// A logit whose distance to the maximum is at least this has exactly no mass in float32. Differences
// are cut off here, so that exp never meets an infinity and 0 x infinity never happens.
static constant constexpr const float SIMKO_NEGLIGIBLE = -120.0f;
static constant constexpr const float SIMKO_LOWEST = -3.402823466e+38f;
static constant constexpr const int SIMKO_NO_TOKEN = 0x7fffffff;

// By its bits: a compiler that is told that all numbers are finite would drop the comparison.
inline bool simko_is_broken(float x) {  // NaN or +inf; -inf is a masked token
  uint bits = as_type<uint>(x);
  return (bits & 0x7fffffffu) > 0x7f800000u || bits == 0x7f800000u;
}

// scale, softcap (0: none) and 1 / temperature of the head.
struct SimkoHead {
  float scale;
  float cap;
  float inverse_temperature;
};

inline float simko_logit(float raw, SimkoHead head) {
  float z = raw * head.scale;
  if (head.cap > 0.0f) {
    z = head.cap * metal::precise::tanh(z / head.cap);
  }
  return z * head.inverse_temperature;
}

// d capped / d (raw x scale) = 1 - tanh^2, without the cancellation.
inline float simko_slope(float raw, SimkoHead head) {
  if (head.cap <= 0.0f) {
    return 1.0f;
  }
  float e = metal::precise::exp(-2.0f * metal::abs(raw * head.scale / head.cap));
  return 4.0f * e / ((1.0f + e) * (1.0f + e));
}

// A part of a row: its largest logit m and, over all others of the part, the sums of exp(z - m) and
// of exp(z - m) (z - m). The maximum itself stays out: where it has nearly all the mass, what the
// others have would round away beside it.
struct SimkoSums {
  float m;
  float tail;
  float weighted;
};

inline float simko_cut(float difference) {
  return metal::max(difference, SIMKO_NEGLIGIBLE);
}

inline SimkoSums simko_add(SimkoSums a, float z) {
  bool rises = z > a.m;
  float d = simko_cut(rises ? a.m - z : z - a.m);
  float e = metal::precise::exp(d);
  SimkoSums r;
  r.m = rises ? z : a.m;
  // A new maximum: the old one, with exp(0) = 1, joins the others, and all of them move down by d.
  r.tail = rises ? (a.tail + 1.0f) * e : a.tail + e;
  r.weighted = rises ? (a.weighted + d * (a.tail + 1.0f)) * e : a.weighted + d * e;
  return r;
}

inline SimkoSums simko_merge(SimkoSums a, SimkoSums b) {
  bool first = a.m >= b.m;
  SimkoSums high = first ? a : b;
  SimkoSums low = first ? b : a;
  float d = simko_cut(low.m - high.m);
  float e = metal::precise::exp(d);
  high.tail += (low.tail + 1.0f) * e;
  high.weighted += (low.weighted + d * (low.tail + 1.0f)) * e;
  return high;
}

// Larger values first; among equal ones the lower index.
inline bool simko_before(float v, int i, float w, int j) {
  return v > w || (v == w && i < j);
}

// Puts (v, i) into a sorted list of L, the last one falls out.
template <int L>
inline void simko_insert(thread float* values, thread int* ids, float v, int i) {
  for (int j = 0; j < L; j++) {
    bool here = simko_before(v, i, values[j], ids[j]);
    float w = values[j];
    int k = ids[j];
    values[j] = here ? v : w;
    ids[j] = here ? i : k;
    v = here ? w : v;
    i = here ? k : i;
  }
}

// Afterwards each lane holds the L best of all 32 lists: L times, the best head wins and leaves.
template <int L>
inline void simko_merge_lists(thread float* values, thread int* ids) {
  float best_values[L];
  int best_ids[L];
  for (int k = 0; k < L; k++) {
    float v = values[0];
    int i = ids[0];
    for (ushort step = 16; step > 0; step >>= 1) {
      float w = simd_shuffle_xor(v, step);
      int j = simd_shuffle_xor(i, step);
      bool better = simko_before(w, j, v, i);
      v = better ? w : v;
      i = better ? j : i;
    }
    best_values[k] = v;
    best_ids[k] = i;
    bool mine = ids[0] == i;
    for (int j = 0; j + 1 < L; j++) {
      values[j] = mine ? values[j + 1] : values[j];
      ids[j] = mine ? ids[j + 1] : ids[j];
    }
    values[L - 1] = mine ? -INFINITY : values[L - 1];
    ids[L - 1] = mine ? SIMKO_NO_TOKEN : ids[L - 1];
  }
  for (int k = 0; k < L; k++) {
    values[k] = best_values[k];
    ids[k] = best_ids[k];
  }
}

inline SimkoSums simko_merge_lanes(SimkoSums a) {
  for (ushort step = 16; step > 0; step >>= 1) {
    SimkoSums b;
    b.m = simd_shuffle_xor(a.m, step);
    b.tail = simd_shuffle_xor(a.tail, step);
    b.weighted = simd_shuffle_xor(a.weighted, step);
    a = simko_merge(a, b);
  }
  return a;
}
