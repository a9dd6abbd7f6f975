/**
 * ROTARY: rotates pairs of dimensions by a position's angle, and APPEND: rows into KV state.
 * (a, b) -> (a cos - b sin, b cos + a sin), pairs (i, i + DIMS/2) or (2i, 2i + 1).
 */
import {
  APPEND_BATCH,
  APPEND_HEADS,
  APPEND_POSITION,
  APPEND_SIZE,
  APPEND_TOKENS,
  APPEND_TYPE,
  APPEND_X,
  APPEND_XBATCH,
  APPEND_XTOKEN,
  APPEND_Y,
  APPEND_YBATCH,
  APPEND_YHEAD,
  APPEND_YTOKEN,
  ROTARY_COS,
  ROTARY_DIMS,
  ROTARY_HEADS,
  ROTARY_INTERLEAVED,
  ROTARY_PAST,
  ROTARY_POSITIONS,
  ROTARY_POSITIONTYPE,
  ROTARY_ROWS,
  ROTARY_SEQUENCE,
  ROTARY_SIN,
  ROTARY_SIZE,
  ROTARY_TABLEROWS,
  ROTARY_X,
  ROTARY_XROW,
  ROTARY_Y,
  ROTARY_YROW,
  TYPE_F16,
} from './abi.ts';
import { address, shareStart, storeHalves, toHalves, word } from './core.ts';
import { rowOf } from './embed.ts';

export function rotary(step: usize, _scratch: usize, thread: i32, threads: i32): void {
  const heads = word(step, ROTARY_HEADS);
  const size = word(step, ROTARY_SIZE);
  const dims = word(step, ROTARY_DIMS);
  const half = dims >> 1;
  const table = word(step, ROTARY_TABLEROWS);
  const positions = address(step, ROTARY_POSITIONS);
  const interleaved = word(step, ROTARY_INTERLEAVED) != 0;
  const items = word(step, ROTARY_ROWS) * heads;
  const end = shareStart(items, thread + 1, threads);
  for (let i = shareStart(items, thread, threads); i < end; i++) {
    const row = i / heads;
    const head = (i - row * heads) * (size << 2);
    const position = positions
      ? rowOf(positions, word(step, ROTARY_POSITIONTYPE), row, table)
      : min(word(step, ROTARY_PAST) + (row % word(step, ROTARY_SEQUENCE)), table - 1);
    const x = address(step, ROTARY_X) + row * word(step, ROTARY_XROW) + head;
    const y = address(step, ROTARY_Y) + row * word(step, ROTARY_YROW) + head;
    const angle: usize = position * (half << 2);
    const cos = address(step, ROTARY_COS) + angle;
    const sin = address(step, ROTARY_SIN) + angle;
    if (interleaved) rotate(x, y, cos, sin, half, 8, 4);
    else rotateHalves(x, y, cos, sin, half);
    if (dims < size && x != y) memory.copy(y + (dims << 2), x + (dims << 2), (size - dims) << 2);
  }
}

function rotateHalves(x: usize, y: usize, cos: usize, sin: usize, half: i32): void {
  const second: usize = half << 2;
  let i = 0;
  for (; i + 4 <= half; i += 4) {
    const at: usize = i << 2;
    const a = v128.load(x + at);
    const b = v128.load(x + second + at);
    const c = v128.load(cos + at);
    const s = v128.load(sin + at);
    v128.store(y + at, f32x4.sub(f32x4.mul(a, c), f32x4.mul(b, s)));
    v128.store(y + second + at, f32x4.add(f32x4.mul(b, c), f32x4.mul(a, s)));
  }
  const at: usize = i << 2;
  rotate(x + at, y + at, cos + at, sin + at, half - i, 4, half << 2);
}

/** `count` pairs: the first of pair i at i*stride, the second `second` bytes on. */
function rotate(
  x: usize,
  y: usize,
  cos: usize,
  sin: usize,
  count: i32,
  stride: usize,
  second: usize,
): void {
  for (let i = 0; i < count; i++) {
    const a = load<f32>(x);
    const b = load<f32>(x + second);
    const c = load<f32>(cos);
    const s = load<f32>(sin);
    store<f32>(y, a * c - b * s);
    store<f32>(y + second, b * c + a * s);
    x += stride;
    y += stride;
    cos += 4;
    sin += 4;
  }
}

export function append(step: usize, scratch: usize, thread: i32, threads: i32): void {
  const size = word(step, APPEND_SIZE);
  const heads = word(step, APPEND_HEADS);
  const tokens = word(step, APPEND_TOKENS);
  const half = word(step, APPEND_TYPE) == TYPE_F16;
  const items = word(step, APPEND_BATCH) * tokens * heads;
  const end = shareStart(items, thread + 1, threads);
  for (let i = shareStart(items, thread, threads); i < end; i++) {
    const head = i % heads;
    const token = (i / heads) % tokens;
    const batch = i / heads / tokens;
    const x =
      address(step, APPEND_X) + batch * word(step, APPEND_XBATCH) +
      token * word(step, APPEND_XTOKEN) + head * (size << 2);
    const y =
      address(step, APPEND_Y) + batch * word(step, APPEND_YBATCH) +
      head * word(step, APPEND_YHEAD) +
      (word(step, APPEND_POSITION) + token) * word(step, APPEND_YTOKEN);
    if (half) storeHalfRow(x, y, size, scratch);
    else memory.copy(y, x, size << 2);
  }
}

/** `count` f32 -> f16. */
export function storeHalfRow(x: usize, y: usize, count: i32, scratch: usize): void {
  let i = 0;
  for (; i + 4 <= count; i += 4) storeHalves(y + (i << 1), toHalves(v128.load(x + (i << 2))));
  if (i == count) return;
  memory.copy(scratch, x + (i << 2), (count - i) << 2);
  storeHalves(scratch + 16, toHalves(v128.load(scratch)));
  memory.copy(y + (i << 1), scratch + 16, (count - i) << 1);
}
