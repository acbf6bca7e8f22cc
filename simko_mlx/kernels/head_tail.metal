  // exp(z - shift) x slope of every token but the special ones, which get 0.
  //
  // in:  logits (N, V) float, half or bfloat; special (N, J) int; shift (N,) float; head (3,) float
  // out: mass (N, V) of type O
  constexpr int RUN = 4;
  const int V = logits_shape[1];
  const int row = int(threadgroup_position_in_grid.x);
  const int thread_id = int(thread_position_in_threadgroup.x);
  const size_t start = size_t(row) * size_t(V);
  const float below = shift[row];
  SimkoHead settings;
  settings.scale = head[0];
  settings.cap = head[1];
  settings.inverse_temperature = head[2];
  int skip[J];
  for (int j = 0; j < J; j++) {
    skip[j] = special[row * J + j];
  }

  for (int first = thread_id * RUN; first < V; first += THREADS * RUN) {
    for (int i = 0; i < RUN; i++) {
      const int column = first + i;
      if (column < V) {
        bool skipped = false;
        for (int j = 0; j < J; j++) {
          skipped = skipped || skip[j] == column;
        }
        const float raw = float(logits[start + size_t(column)]);
        const float z = simko_logit(raw, settings);
        const float e = metal::precise::exp(simko_cut(z - below)) * simko_slope(raw, settings);
        mass[start + size_t(column)] = O(skipped ? 0.0f : e);
      }
    }
  }
