/**
 * ELEMENTS, POINTS: reading and writing where indices say. Reading splits between threads; writing goes one
 * after the other on one thread, so that the last of several wins, as ONNX says, whatever the threads.
 */
import {
  ELEMENTS_AXISSTRIDE,
  ELEMENTS_D0,
  ELEMENTS_DATA,
  ELEMENTS_IDS,
  ELEMENTS_MODE,
  ELEMENTS_SIZE,
  ELEMENTS_STRIDE0,
  ELEMENTS_VALUES,
  POINTS_BATCH,
  POINTS_BATCHSTRIDE,
  POINTS_COUNT,
  POINTS_DATA,
  POINTS_DEPTH,
  POINTS_IDS,
  POINTS_INNER,
  POINTS_MODE,
  POINTS_TABLE,
  POINTS_VALUES,
  TYPE_I32,
} from './abi.ts';
import { address, shareStart, word } from './core.ts';
import { rowOf } from './embed.ts';

const GATHER: i32 = 0;
const SET: i32 = 1;
const ADD: i32 = 2;
const MULTIPLY: i32 = 3;
const MAX: i32 = 4;

export function elements(step: usize, _scratch: usize, thread: i32, threads: i32): void {
  const mode = word(step, ELEMENTS_MODE);
  if (mode != GATHER && thread != 0) return;
  const share = mode == GATHER ? threads : 1;
  let count = 1;
  for (let d = 0; d < 6; d++) count *= word(step, ELEMENTS_D0 + d);
  const end = shareStart(count, thread + 1, share);
  for (let i = shareStart(count, thread, share); i < end; i++) {
    const id = rowOf(address(step, ELEMENTS_IDS), TYPE_I32, i, word(step, ELEMENTS_SIZE));
    let offset = id * word(step, ELEMENTS_AXISSTRIDE);
    let rest = i;
    for (let d = 5; d >= 0; d--) {
      const size = word(step, ELEMENTS_D0 + d);
      const next = rest / size;
      offset += (rest - next * size) * word(step, ELEMENTS_STRIDE0 + d);
      rest = next;
    }
    const value = address(step, ELEMENTS_VALUES) + (i << 2);
    combine(mode, address(step, ELEMENTS_DATA) + (offset << 2), value);
  }
}

export function points(step: usize, _scratch: usize, thread: i32, threads: i32): void {
  const mode = word(step, POINTS_MODE);
  if (mode != GATHER && thread != 0) return;
  const share = mode == GATHER ? threads : 1;
  const count = word(step, POINTS_COUNT);
  const depth = word(step, POINTS_DEPTH);
  const inner = word(step, POINTS_INNER);
  const table = address(step, POINTS_TABLE);
  const items = word(step, POINTS_BATCH) * count;
  const end = shareStart(items, thread + 1, share);
  for (let i = shareStart(items, thread, share); i < end; i++) {
    const ids = address(step, POINTS_IDS) + ((i * depth) << 2);
    let offset = (i / count) * word(step, POINTS_BATCHSTRIDE);
    for (let j = 0; j < depth; j++) {
      offset += rowOf(ids, TYPE_I32, j, word(table, 2 * j)) * word(table, 2 * j + 1);
    }
    const data = address(step, POINTS_DATA) + (offset << 2);
    const values = address(step, POINTS_VALUES) + ((i * inner) << 2);
    for (let k = 0; k < inner; k++) combine(mode, data + (k << 2), values + (k << 2));
  }
}

@inline
function combine(mode: i32, data: usize, value: usize): void {
  if (mode == GATHER) store<i32>(value, load<i32>(data));
  else if (mode == SET) store<i32>(data, load<i32>(value));
  else store<f32>(data, combined(mode, load<f32>(data), load<f32>(value)));
}

function combined(mode: i32, a: f32, b: f32): f32 {
  if (mode == ADD) return a + b;
  if (mode == MULTIPLY) return a * b;
  return mode == MAX ? max<f32>(a, b) : min<f32>(a, b);
}
