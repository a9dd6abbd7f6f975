/**
 * In how many parts threads share a step, and which queue (claims.ts) has which. More parts than threads even
 * out what cores lose to other work; each must take longer than claiming it does.
 */
import {
  APPEND,
  APPEND_BATCH,
  APPEND_TOKENS,
  ATTENTION,
  ATTENTION_BATCH,
  ATTENTION_QUERIES,
  DENSE,
  DENSE_K,
  DENSE_N,
  DENSE_ROWS,
  DENSE_W2,
  EMBED,
  EMBED_ROWS,
  LINEAR,
  LINEAR_K,
  LINEAR_N,
  LINEAR_ROWS,
  LINEAR_W2,
  MATMUL,
  MATMUL_BATCH,
  MATMUL_HEADS,
  MATMUL_K,
  MATMUL_M,
  MATMUL_N,
  NORM,
  NORM_ROWS,
  QUANTIZE,
  QUANTIZE_K,
  QUANTIZE_ROWS,
  ROTARY,
  ROTARY_ROWS,
} from './abi.ts';
import { word } from './core.ts';

/** Multiply-accumulates of a part, of integers and of f32: some 5 microseconds. */
const INTEGERS: i64 = 1 << 18;
const FLOATS: i64 = 1 << 16;

/** Parts of a step that comes after a step of kernel `before`. */
export function partsOf(step: usize, before: i32, threads: i32): i32 {
  switch (word(step, 0)) {
    case LINEAR: {
      const matrices = word(step, LINEAR_W2) ? 32 : 16;
      const work = <i64>word(step, LINEAR_ROWS) * <i64>word(step, LINEAR_K) * matrices;
      return evenly((word(step, LINEAR_N) + 15) >> 4, work, INTEGERS, threads);
    }
    case DENSE: {
      const matrices = word(step, DENSE_W2) ? 32 : 16;
      const work = <i64>word(step, DENSE_ROWS) * <i64>word(step, DENSE_K) * matrices;
      return evenly((word(step, DENSE_N) + 15) >> 4, work, FLOATS, threads);
    }
    case MATMUL: {
      const items = word(step, MATMUL_BATCH) * word(step, MATMUL_HEADS) * ((word(step, MATMUL_M) + 3) >> 2);
      const work = <i64>word(step, MATMUL_K) * <i64>word(step, MATMUL_N) * 4;
      return evenly(items, work, FLOATS, threads);
    }
    case ATTENTION: {
      const queries = word(step, ATTENTION_BATCH) * word(step, ATTENTION_QUERIES);
      return max(threads, (queries + 3) >> 2);
    }
    case QUANTIZE: {
      const rows = word(step, QUANTIZE_ROWS);
      if (before == LINEAR || before == DENSE) return rows * threads;
      if (before == ATTENTION) return max(threads, (rows + 3) >> 2);
    }
  }
  return threads;
}

/** Parts for items of `work` each: as many as are worth claiming, the same number for every thread where items allow. */
function evenly(items: i32, work: i64, unit: i64, threads: i32): i32 {
  const each = max<i64>(1, (<i64>items * work) / (unit * <i64>threads));
  return <i32>max<i64>(threads, min<i64>(items, each * <i64>threads));
}

/**
 * Whether queues have every so many-th part instead of a run of them. A line that another core has written
 * costs ten times what quantizing computes from it, so QUANTIZE takes what its thread has written before:
 * the columns of a product, the queries of ATTENTION. Those go in turn, four at a time, because causal ones see
 * more and more keys.
 */
export function inTurn(step: usize, before: i32): bool {
  const kernel = word(step, 0);
  if (kernel == QUANTIZE) return before == LINEAR || before == DENSE || before == ATTENTION;
  return kernel == ATTENTION;
}

/** Rows of a step of which a single one takes less than meeting the other threads does; 0 for other steps. */
export function rowsOf(step: usize): i32 {
  switch (word(step, 0)) {
    case QUANTIZE:
      // a long row is for the threads that have written it
      return word(step, QUANTIZE_K) < 1024 ? word(step, QUANTIZE_ROWS) : 0;
    case EMBED:
      return word(step, EMBED_ROWS);
    case NORM:
      return word(step, NORM_ROWS);
    case ROTARY:
      return word(step, ROTARY_ROWS);
    case APPEND:
      return word(step, APPEND_BATCH) * word(step, APPEND_TOKENS);
    default:
      return 0;
  }
}
