/**
 * Inner tile of LINEAR for one token and W4 on plain SIMD128, with fewer masks than tile-wide.ts.
 *
 * A 16-bit lane of packed weights is y0 + 16 y1 + 256 y2 + 4096 y3, four codes of one row. Shifted by 4, 8 and 12
 * bits it still holds the codes above, so that
 *
 *   x0 y0 + x1 y1 + x2 y2 + x3 y3  =  x0 (lane & 15) + x1 (lane >> 4) + (x2 - 16 x1) (lane >> 8) + (x3 - 16 x2) (lane >> 12)
 *
 * takes one mask where the left side takes three. Activations are turned into these differences once for many
 * tiles. Integers below 2^29: results equal those of the other tiles bit for bit.
 */
import { SCRATCH_BYTES, W4 } from './abi.ts';
import { HALF_FACTOR, NIBBLES16, constant } from './core.ts';
import { SCALE_BYTES, scaled, smallScales, start32, startMiddle, zeroPairs } from './tile-common.ts';

/** Bytes that `differences` writes for a block. */
@inline
function differenceBytes(block: i32): i32 {
  return 2 * block + 8;
}

/** Whether the differences of a row fit scratch of which `used` bytes are taken. */
export function fitsDifferences(blocks: i32, block: i32, used: i32): bool {
  return blocks * differenceBytes(block) <= SCRATCH_BYTES - used;
}

/**
 * The second half of a record -> for each 8 inputs the pairs (0, 2), (4, 6), (1, 3) - 16 (4, 6), (5, 7) - 16 (1, 3) as
 * i16, then scale and sums as there.
 */
function differences(x: usize, to: usize, blocks: i32, block: i32): void {
  const none = i32x4.splat(0);
  for (let b = 0; b < blocks; b++) {
    for (let i = 0; i < block; i += 8) {
      const pairs = v128.load(x);
      const lower = v128.shuffle<i32>(pairs, none, 4, 4, 2, 1);
      const upper = v128.shuffle<i32>(pairs, pairs, 0, 2, 1, 3);
      v128.store(to, i16x8.sub(upper, i16x8.shl(lower, 4)));
      x += 16;
      to += 16;
    }
    store<u64>(to, load<u64>(x));
    x += 8;
    to += 8;
  }
}

@inline
function mac(sum: v128, x: v128, w: v128): v128 {
  return i32x4.add(sum, i32x4.dot_i16x8_s(x, w));
}

/** 8 inputs of four rows. */
@inline
function eight(sum: v128, p: v128, x0: v128, x1: v128, x2: v128, x3: v128, mask: v128): v128 {
  sum = mac(sum, x0, v128.and(p, mask));
  sum = mac(sum, x1, i16x8.shr_u(p, 4));
  sum = mac(sum, x2, i16x8.shr_u(p, 8));
  return mac(sum, x3, i16x8.shr_u(p, 12));
}

/** 1 token x `count` tiles of 16 rows; `work` is where the differences go. */
export function tile1Apart(
  w: usize,
  head: i32,
  record: usize,
  work: usize,
  out: usize,
  count: i32,
  blocks: i32,
  block: i32,
  groupBlocks: i32,
): void {
  differences(record + blocks * (block + 8), work, blocks, block);
  const mask = constant(NIBBLES16);
  for (let tile = 0; tile < count; tile++) {
    let x = work;
    let f0 = f32x4.splat(0), f1 = f0, f2 = f0, f3 = f0;
    let left = 0;
    let scales = w;
    for (let b = 0; b < blocks; b++) {
      if (left == 0) {
        left = groupBlocks;
        scales = w;
        w += head;
      }
      left--;
      const pair = v128.load32_splat(x + 2 * block, 4);
      let c0: v128, c1: v128, c2: v128, c3: v128;
      if (head == SCALE_BYTES) {
        c0 = startMiddle(W4, true, pair);
        c1 = c0;
        c2 = c0;
        c3 = c0;
      } else {
        c0 = start32(zeroPairs(scales + 32), pair);
        c1 = start32(zeroPairs(scales + 36), pair);
        c2 = start32(zeroPairs(scales + 40), pair);
        c3 = start32(zeroPairs(scales + 44), pair);
      }
      for (let i = 0; i < block; i += 8) {
        const x0 = v128.load32_splat(x, 0);
        const x1 = v128.load32_splat(x, 4);
        const x2 = v128.load32_splat(x, 8);
        const x3 = v128.load32_splat(x, 12);
        c0 = eight(c0, v128.load(w, 0), x0, x1, x2, x3, mask);
        c1 = eight(c1, v128.load(w, 16), x0, x1, x2, x3, mask);
        c2 = eight(c2, v128.load(w, 32), x0, x1, x2, x3, mask);
        c3 = eight(c3, v128.load(w, 48), x0, x1, x2, x3, mask);
        w += 64;
        x += 16;
      }
      const s = f32x4.mul(v128.load32_splat(x), constant(HALF_FACTOR));
      f0 = scaled(f0, c0, smallScales(v128.load16x4_u(scales, 0)), s);
      f1 = scaled(f1, c1, smallScales(v128.load16x4_u(scales, 8)), s);
      f2 = scaled(f2, c2, smallScales(v128.load16x4_u(scales, 16)), s);
      f3 = scaled(f3, c3, smallScales(v128.load16x4_u(scales, 24)), s);
      x += 8;
    }
    v128.store(out, f0, 0);
    v128.store(out, f1, 16);
    v128.store(out, f2, 32);
    v128.store(out, f3, 48);
    out += 64;
  }
}
