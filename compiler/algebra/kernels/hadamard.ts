/** Fast Walsh-Hadamard transform: d log d additions for each vector. */

/**
 * Multiplies blocks of `size` values by the natural-order Hadamard matrix times `scale`, in place.
 *
 * @param values - `blocks` blocks of size * `inner` f32: [size][inner], transformed along the first axis
 * @param size - a power of two
 * @param inner - values that one index of the transform stands for
 */
export function hadamard(values: usize, blocks: i32, size: i32, inner: i32, scale: f32): void {
  const step: usize = inner << 2;
  for (let block = 0; block < blocks; block++) {
    for (let half = 1; half < size; half <<= 1) {
      for (let i = 0; i < size; i += half << 1) {
        for (let j = i; j < i + half; j++) butterfly(values + <usize>j * step, <usize>half * step, inner);
      }
    }
    const end = values + <usize>size * step;
    for (; values < end; values += 4) store<f32>(values, load<f32>(values) * scale);
  }
}

function butterfly(a: usize, distance: usize, count: i32): void {
  let i = 0;
  for (; i + 4 <= count; i += 4) {
    const x = v128.load(a);
    const y = v128.load(a + distance);
    v128.store(a, f32x4.add(x, y));
    v128.store(a + distance, f32x4.sub(x, y));
    a += 16;
  }
  for (; i < count; i++) {
    const x = load<f32>(a);
    const y = load<f32>(a + distance);
    store<f32>(a, x + y);
    store<f32>(a + distance, x - y);
    a += 4;
  }
}
