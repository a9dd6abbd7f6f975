/**
 * EMBED: ids -> rows of a table in any weight format, so that a tied head and the embedding share bytes.
 * ids [ROWS] -> y f32 [ROWS, K] * MULTIPLY. value = (code - zero) * scale in f32, codes of W3 and W2 doubled, as LINEAR's scales.
 */
import {
  C4,
  EMBED_BLOCK,
  EMBED_CODEBOOK,
  EMBED_FORMAT,
  EMBED_GROUPBLOCKS,
  EMBED_IDS,
  EMBED_IDTYPE,
  EMBED_K,
  EMBED_MULTIPLY,
  EMBED_N,
  EMBED_ROWS,
  EMBED_W,
  EMBED_Y,
  EMBED_ZEROS,
  F16,
  F32,
  PLAIN16,
  PLAIN32,
  TYPE_I64,
  W2,
  W3,
  W4,
  W8,
} from './abi.ts';
import { address, float, shareStart, word } from './core.ts';
import { SCALE_BYTES, blockBytes, headBytes, middleZero, stepShift } from './tile-common.ts';

/** Row of an id: negative ones count from the end, others outside are clamped. */
export function rowOf(ids: usize, type: i32, i: i32, rows: i32): i32 {
  let id: i64 = type == TYPE_I64 ? load<i64>(ids + (i << 3)) : <i64>load<i32>(ids + (i << 2));
  if (id < 0) id += rows;
  return <i32>max<i64>(0, min<i64>(id, rows - 1));
}

export function embed(step: usize, _scratch: usize, thread: i32, threads: i32): void {
  const K = word(step, EMBED_K);
  const format = word(step, EMBED_FORMAT);
  const multiply = float(step, EMBED_MULTIPLY);
  const rows = word(step, EMBED_ROWS);
  const end = shareStart(rows, thread + 1, threads);
  for (let i = shareStart(rows, thread, threads); i < end; i++) {
    const id = rowOf(address(step, EMBED_IDS), word(step, EMBED_IDTYPE), i, word(step, EMBED_N));
    const y = address(step, EMBED_Y) + i * (K << 2);
    if (format == F32 || format == F16 || format == PLAIN32 || format == PLAIN16) {
      floatRow(step, format, id, K, y, multiply);
    } else {
      integerRow(step, format, id, K, y, multiply);
    }
  }
}

function floatRow(step: usize, format: i32, id: i32, K: i32, y: usize, multiply: f32): void {
  const plain = format == PLAIN32 || format == PLAIN16;
  const half = format == F16 || format == PLAIN16;
  const shift: usize = half ? 1 : 2;
  const stride: usize = plain ? 1 : 16;
  const first: usize = plain ? <usize>id * K : <usize>(id >> 4) * 16 * K + (id & 15);
  let at = address(step, EMBED_W) + (first << shift);
  for (let k = 0; k < K; k++) {
    const value = half ? half1(at) : load<f32>(at);
    store<f32>(y + (k << 2), value * multiply);
    at += stride << shift;
  }
}

/** One f16; `halves` would read past the end of a table. */
@inline
export function half1(at: usize): f32 {
  const bits = <i32>load<u16>(at);
  const magnitude = reinterpret<f32>((bits & 0x7fff) << 13) * reinterpret<f32>(0x77800000);
  return bits & 0x8000 ? -magnitude : magnitude;
}

function integerRow(step: usize, format: i32, id: i32, K: i32, y: usize, multiply: f32): void {
  const block = word(step, EMBED_BLOCK);
  const groupBlocks = word(step, EMBED_GROUPBLOCKS);
  const asymmetric = word(step, EMBED_ZEROS);
  const codebook = address(step, EMBED_CODEBOOK);
  const blocks = (K + block - 1) / block;
  const groups = (blocks + groupBlocks - 1) / groupBlocks;
  const head = headBytes(asymmetric);
  const codeBytes = blockBytes(format, block);
  const tile = id >> 4;
  const row = id & 15;
  const w = address(step, EMBED_W) + <usize>tile * (groups * head + blocks * codeBytes);
  const middle = middleZero(format);
  const shift = stepShift(format);
  for (let b = 0; b < blocks; b++) {
    const group = b / groupBlocks;
    const scales = w + group * head + group * groupBlocks * codeBytes;
    const scale = half1(scales + (row << 1));
    const zero = asymmetric ? <i32>load<u8>(scales + SCALE_BYTES + row) : middle;
    const codes = w + (group + 1) * head + b * codeBytes;
    const at = codes + (row >> 2) * 16 + (row & 3) * 4;
    const count = min(block, K - b * block);
    for (let kb = 0; kb < count; kb++) {
      let code = codeAt(format, at + (kb & 3), kb >> 2);
      if (format == C4) code = <i32>load<u8>(codebook + (tile << 4) + code);
      store<f32>(y + ((b * block + kb) << 2), <f32>((code << shift) - zero) * scale * multiply);
    }
  }
}

/** The code in quad `j` of inputs; `at` is the lane's byte in the block's first 64 bytes. */
@inline
function codeAt(format: i32, at: usize, j: i32): i32 {
  if (format == W8) return load<u8>(at + (j << 6));
  if (format == W4 || format == C4) {
    return (<i32>load<u8>(at + ((j >> 1) << 6)) >> ((j & 1) << 2)) & 15;
  }
  const low = (<i32>load<u8>(at + ((j >> 2) << 6)) >> ((j & 3) << 1)) & 3;
  if (format != W3) return low;
  return low | (((<i32>load<u8>(at + 128) >> j) & 1) << 2);
}
