/**
 * MOVE, FILL, GATHER, CONVERT: bytes from here to there.
 */
import {
  CONVERT_COUNT,
  CONVERT_FROM,
  CONVERT_TO,
  CONVERT_X,
  CONVERT_Y,
  FILL_COUNT,
  FILL_ELEMENT,
  FILL_HIGH,
  FILL_VALUE,
  FILL_Y,
  GATHER_COUNT,
  GATHER_IDS,
  GATHER_IDTYPE,
  GATHER_INNER,
  GATHER_LENGTH,
  GATHER_OUTER,
  GATHER_X,
  GATHER_Y,
  MOVE_D0,
  MOVE_D5,
  MOVE_ELEMENT,
  MOVE_X,
  MOVE_XSTRIDE0,
  MOVE_XSTRIDE5,
  MOVE_Y,
  MOVE_YSTRIDE0,
  MOVE_YSTRIDE5,
  TYPE_F16,
  TYPE_F32,
  TYPE_I32,
  TYPE_I64,
  TYPE_U8,
} from './abi.ts';
import { address, shareStart, toHalves, word } from './core.ts';
import { rowOf } from './embed.ts';
import { storeHalfRow } from './rotary.ts';

export function move(step: usize, _scratch: usize, thread: i32, threads: i32): void {
  const inner = word(step, MOVE_D5);
  const element = word(step, MOVE_ELEMENT);
  const xStride = word(step, MOVE_XSTRIDE5);
  const yStride = word(step, MOVE_YSTRIDE5);
  let rows = 1;
  for (let d = 0; d < 5; d++) rows *= word(step, MOVE_D0 + d);
  // one long row splits too
  const parts = rows < threads ? threads : 1;
  const start = shareStart(rows * parts, thread, threads);
  const end = shareStart(rows * parts, thread + 1, threads);
  if (parts == 1) {
    moveRows(step, start, end, inner, element, xStride, yStride);
    return;
  }
  for (let i = start; i < end; i++) {
    const row = i / parts;
    const first = shareStart(inner, i - row * parts, parts);
    const count = shareStart(inner, i - row * parts + 1, parts) - first;
    const x = address(step, MOVE_X) + offsetOf(step, row, MOVE_XSTRIDE0) + first * xStride;
    const y = address(step, MOVE_Y) + offsetOf(step, row, MOVE_YSTRIDE0) + first * yStride;
    moveSome(x, y, element, xStride, yStride, count);
  }
}

/** Bytes from the first row to row `row`, whose strides are at word `strides`. */
function offsetOf(step: usize, row: i32, strides: i32): i32 {
  let offset = 0;
  for (let d = 4; d >= 0; d--) {
    const size = word(step, MOVE_D0 + d);
    const next = row / size;
    offset += (row - next * size) * word(step, strides + d);
    row = next;
  }
  return offset;
}

/** Rows `row` to `end` - 1, those of one D4 after the other without a division for each. */
function moveRows(
  step: usize,
  row: i32,
  end: i32,
  inner: i32,
  element: i32,
  xStride: i32,
  yStride: i32,
): void {
  const size = word(step, MOVE_D0 + 4);
  const xStep = word(step, MOVE_XSTRIDE0 + 4);
  const yStep = word(step, MOVE_YSTRIDE0 + 4);
  while (row < end) {
    let x = address(step, MOVE_X) + offsetOf(step, row, MOVE_XSTRIDE0);
    let y = address(step, MOVE_Y) + offsetOf(step, row, MOVE_YSTRIDE0);
    const stop = min(end, row - (row % size) + size);
    if (element == 4 && inner < 4) {
      // pixels that repeat, pairs and triples
      for (; row < stop; row++) {
        for (let i = 0; i < inner; i++) store<u32>(y + i * yStride, load<u32>(x + i * xStride));
        x += xStep;
        y += yStep;
      }
    } else {
      for (; row < stop; row++) {
        moveSome(x, y, element, xStride, yStride, inner);
        x += xStep;
        y += yStep;
      }
    }
  }
}

function moveSome(
  x: usize,
  y: usize,
  element: i32,
  xStride: i32,
  yStride: i32,
  count: i32,
): void {
  const whole = xStride == element && yStride == element;
  // memory.copy is a call out of the module, dear for a few bytes
  if (whole && count * element >= 64) memory.copy(y, x, count * element);
  else if (element == 4) moveRow<u32>(x, y, xStride, yStride, count);
  else if (element == 8) moveRow<u64>(x, y, xStride, yStride, count);
  else if (element == 2) moveRow<u16>(x, y, xStride, yStride, count);
  else moveRow<u8>(x, y, xStride, yStride, count);
}

function moveRow<T>(x: usize, y: usize, xStride: i32, yStride: i32, count: i32): void {
  for (let i = 0; i < count; i++) {
    store<T>(y, load<T>(x));
    x += xStride;
    y += yStride;
  }
}

export function fill(step: usize, _scratch: usize, thread: i32, threads: i32): void {
  const element = word(step, FILL_ELEMENT);
  const value = word(step, FILL_VALUE);
  const count = word(step, FILL_COUNT);
  const y = address(step, FILL_Y);
  const end = shareStart(count, thread + 1, threads);
  for (let i = shareStart(count, thread, threads); i < end; i++) {
    if (element == 4) store<i32>(y + (i << 2), value);
    else if (element == 1) store<u8>(y + i, <u8>value);
    else if (element == 2) store<u16>(y + (i << 1), <u16>value);
    else {
      store<i32>(y + (i << 3), value);
      store<i32>(y + (i << 3), word(step, FILL_HIGH), 4);
    }
  }
}

export function gather(step: usize, _scratch: usize, thread: i32, threads: i32): void {
  const length = word(step, GATHER_LENGTH);
  const inner = word(step, GATHER_INNER);
  const count = word(step, GATHER_COUNT);
  const items = word(step, GATHER_OUTER) * count;
  const end = shareStart(items, thread + 1, threads);
  for (let i = shareStart(items, thread, threads); i < end; i++) {
    const outer = i / count;
    const id = rowOf(address(step, GATHER_IDS), word(step, GATHER_IDTYPE), i - outer * count, length);
    const x = address(step, GATHER_X) + (outer * length + id) * inner;
    memory.copy(address(step, GATHER_Y) + i * inner, x, inner);
  }
}

export function convert(step: usize, scratch: usize, thread: i32, threads: i32): void {
  const from = word(step, CONVERT_FROM);
  const to = word(step, CONVERT_TO);
  const x = address(step, CONVERT_X);
  const y = address(step, CONVERT_Y);
  const count = word(step, CONVERT_COUNT);
  const start = shareStart(count, thread, threads);
  const end = shareStart(count, thread + 1, threads);
  if (from == TYPE_F32 && to == TYPE_F16) {
    storeHalfRow(x + (start << 2), y + (start << 1), end - start, scratch);
    return;
  }
  const floats = from == TYPE_F32 || from == TYPE_F16;
  for (let i = start; i < end; i++) {
    if (floats) storeFloat(y, i, to, loadFloat(x, i, from));
    else storeInteger(y, i, to, loadInteger(x, i, from));
  }
}

function loadFloat(x: usize, i: i32, type: i32): f32 {
  if (type == TYPE_F32) return load<f32>(x + (i << 2));
  const bits = <i32>load<u16>(x + (i << 1));
  const exponent = (bits >> 10) & 31;
  const magnitude =
    exponent == 31
      ? reinterpret<f32>(0x7f800000 | ((bits & 0x3ff) << 13))
      : reinterpret<f32>((bits & 0x7fff) << 13) * reinterpret<f32>(0x77800000);
  return bits & 0x8000 ? -magnitude : magnitude;
}

function storeFloat(y: usize, i: i32, type: i32, value: f32): void {
  if (type == TYPE_F32) store<f32>(y + (i << 2), value);
  else if (type == TYPE_F16) {
    store<u16>(y + (i << 1), <u16>i32x4.extract_lane(toHalves(f32x4.splat(value)), 0));
  } else if (type == TYPE_I64) store<i64>(y + (i << 3), <i64>value);
  else if (type == TYPE_I32) store<i32>(y + (i << 2), <i32>value);
  else if (type == TYPE_U8) store<u8>(y + i, <u8>max(0, min(255, <i32>value)));
  else store<i8>(y + i, <i8>max(-128, min(127, <i32>value)));
}

function loadInteger(x: usize, i: i32, type: i32): i64 {
  if (type == TYPE_I64) return load<i64>(x + (i << 3));
  if (type == TYPE_I32) return load<i32>(x + (i << 2));
  return type == TYPE_U8 ? <i64>load<u8>(x + i) : <i64>load<i8>(x + i);
}

function storeInteger(y: usize, i: i32, type: i32, value: i64): void {
  if (type == TYPE_I64) store<i64>(y + (i << 3), value);
  else if (type == TYPE_I32) store<i32>(y + (i << 2), <i32>value);
  else if (type == TYPE_F32 || type == TYPE_F16) storeFloat(y, i, type, <f32>value);
  else store<u8>(y + i, <u8>value);
}
