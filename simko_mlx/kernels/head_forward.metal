  // One threadgroup of THREADS per row reads its logits once.
  //
  // in:  logits (N, V) float, half or bfloat; tokens (N,) int; head (3,) float
  // out: values and ids (N, L), the L largest logits; chosen, tail, weighted (N,), see RowSums
  constexpr int RUN = 4;  // consecutive logits per thread and round
  constexpr int GROUPS = THREADS / 32;
  threadgroup float group_m[GROUPS];
  threadgroup float group_tail[GROUPS];
  threadgroup float group_weighted[GROUPS];
  threadgroup int group_broken[GROUPS];
  threadgroup float group_values[GROUPS * L];
  threadgroup int group_ids[GROUPS * L];

  const int V = logits_shape[1];
  const int row = int(threadgroup_position_in_grid.x);
  const int thread_id = int(thread_position_in_threadgroup.x);
  const int lane = int(thread_index_in_simdgroup);
  const int group = int(simdgroup_index_in_threadgroup);
  const size_t start = size_t(row) * size_t(V);
  SimkoHead settings;
  settings.scale = head[0];
  settings.cap = head[1];
  settings.inverse_temperature = head[2];

  SimkoSums sums;
  sums.m = SIMKO_LOWEST;
  sums.tail = 0.0f;
  sums.weighted = 0.0f;
  float best[L];
  int best_at[L];
  for (int k = 0; k < L; k++) {
    best[k] = -INFINITY;
    best_at[k] = SIMKO_NO_TOKEN;
  }
  int broken = 0;

  // The same number of rounds for every thread: simd operations need all lanes.
  const int rounds = (V + THREADS * RUN - 1) / (THREADS * RUN);
  for (int round = 0; round < rounds; round++) {
    const int first = (round * THREADS + thread_id) * RUN;
    // No lane's candidate can matter that is below another lane's last one.
    const float bar = simd_max(best[L - 1]);
    for (int i = 0; i < RUN; i++) {
      const int column = first + i;
      if (column < V) {
        const float raw = float(logits[start + size_t(column)]);
        const float z = simko_logit(raw, settings);
        broken |= int(simko_is_broken(z));
        sums = simko_add(sums, z);
        // Ranked by raw logits, before a cap or a temperature rounds them into ties.
        if (raw >= bar && simko_before(raw, column, best[L - 1], best_at[L - 1])) {
          simko_insert<L>(best, best_at, raw, column);
        }
      }
    }
  }

  sums = simko_merge_lanes(sums);
  broken = simd_max(broken);
  simko_merge_lists<L>(best, best_at);
  if (lane == 0) {
    group_m[group] = sums.m;
    group_tail[group] = sums.tail;
    group_weighted[group] = sums.weighted;
    group_broken[group] = broken;
    for (int k = 0; k < L; k++) {
      group_values[group * L + k] = best[k];
      group_ids[group * L + k] = best_at[k];
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  if (group == 0) {
    const bool used = lane < GROUPS;
    sums.m = used ? group_m[lane] : SIMKO_LOWEST;
    sums.tail = used ? group_tail[lane] : 0.0f;
    sums.weighted = used ? group_weighted[lane] : 0.0f;
    broken = used ? group_broken[lane] : 0;
    for (int k = 0; k < L; k++) {
      best[k] = used ? group_values[lane * L + k] : -INFINITY;
      best_at[k] = used ? group_ids[lane * L + k] : SIMKO_NO_TOKEN;
    }
    sums = simko_merge_lanes(sums);
    broken = simd_max(broken);
    simko_merge_lists<L>(best, best_at);
    if (lane == 0) {
      const int token = tokens[row];
      chosen[row] = simko_logit(float(logits[start + size_t(token)]), settings);
      tail[row] = broken ? NAN : sums.tail;
      weighted[row] = broken ? NAN : sums.weighted;
      for (int k = 0; k < L; k++) {
        values[row * L + k] = simko_logit(best[k], settings);
        ids[row * L + k] = best_at[k] == SIMKO_NO_TOKEN ? 0 : best_at[k];
      }
    }
  }
