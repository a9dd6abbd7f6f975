/**
 * LINEAR: quantized activations x packed integer weights (layouts in abi.ts), with its epilogue.
 *
 * Tiles of 16 rows are split between threads; the weights of a tile (a few KB, so they stay in the first
 * cache) meet all tokens before the next tile is read, so the matrix is read once per call. Tokens go
 * four at a time, the rest one at a time.
 *
 * Every result is the same f32 sum over blocks in the same order, whatever the tile and the variant.
 */
import {
  C4,
  LINEAR_ACTIVATION,
  LINEAR_ALPHA,
  LINEAR_BETA,
  LINEAR_BIAS,
  LINEAR_BIAS2,
  LINEAR_BLOCK,
  LINEAR_CODEBOOK,
  LINEAR_CODEBOOK2,
  LINEAR_FORMAT,
  LINEAR_GROUPBLOCKS,
  LINEAR_K,
  LINEAR_N,
  LINEAR_RESIDUAL,
  LINEAR_RESIDUALROW,
  LINEAR_ROWS,
  LINEAR_W,
  LINEAR_W2,
  LINEAR_X,
  LINEAR_Y,
  LINEAR_YROW,
  LINEAR_ZEROS,
  LINEAR_ZEROS2,
  W2,
  W3,
  W4,
  W8,
} from './abi.ts';
import { RELAXED, address, float, shareStart, word } from './core.ts';
import { finishTile } from './epilogue.ts';
import { recordBytes } from './quantize.ts';
import { SCALE_BYTES, blockBytes, headBytes } from './tile-common.ts';
import { half4Narrow, tile1Narrow } from './tile-narrow.ts';
import { half4Nibble, tile1Nibble } from './tile-nibble.ts';
import { half4Wide, tile1Wide } from './tile-wide.ts';

/** Tiles that one token takes at a time: enough that what surrounds them does not count. */
const TILES = 32;

/** Zero points of symmetric weights, 16 for each format from W8 on. */
const middles: usize = memory.data<u8>([
  128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, // W8
  8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, // W4
  4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, // W3
  2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, // W2
  64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, // C4
]);

export function linear(step: usize, scratch: usize, thread: i32, threads: i32): void {
  const block = word(step, LINEAR_BLOCK);
  const blocks = (word(step, LINEAR_K) + block - 1) / block;
  const groupBlocks = word(step, LINEAR_GROUPBLOCKS);
  const groups = (blocks + groupBlocks - 1) / groupBlocks;
  const format = word(step, LINEAR_FORMAT);
  const rows = word(step, LINEAR_ROWS);
  const columns = word(step, LINEAR_N);
  const record = recordBytes(blocks, block);
  const yRow = word(step, LINEAR_YROW);
  const residualRow = word(step, LINEAR_RESIDUALROW);
  const w = address(step, LINEAR_W);
  const w2 = address(step, LINEAR_W2);
  const head = headBytes(word(step, LINEAR_ZEROS));
  const head2 = headBytes(word(step, LINEAR_ZEROS2));
  const codeBytes = blocks * blockBytes(format, block);
  const tileBytes = groups * head + codeBytes;
  const tileBytes2 = groups * head2 + codeBytes;
  const codebook = address(step, LINEAR_CODEBOOK);
  const codebook2 = address(step, LINEAR_CODEBOOK2);
  const tile2 = w2 ? scratch + TILES * 64 : 0;
  // a single token takes several tiles at a time
  const span = rows < 4 ? TILES : 1;

  const tiles = (columns + 15) >> 4;
  const end = shareStart(tiles, thread + 1, threads);
  for (let tile = shareStart(tiles, thread, threads); tile < end; tile += span) {
    const count = min(span, end - tile);
    let x = address(step, LINEAR_X);
    let y = address(step, LINEAR_Y);
    let residual = address(step, LINEAR_RESIDUAL);
    for (let row = 0; row < rows; ) {
      const tokens = rows - row >= 4 ? 4 : 1;
      multiply(
        format,
        tokens,
        w + tile * tileBytes,
        head,
        codebook ? codebook + (tile << 4) : 0,
        x,
        record,
        scratch,
        count,
        blocks,
        block,
        groupBlocks,
      );
      if (w2) {
        multiply(
          format,
          tokens,
          w2 + tile * tileBytes2,
          head2,
          codebook2 ? codebook2 + (tile << 4) : 0,
          x,
          record,
          tile2,
          count,
          blocks,
          block,
          groupBlocks,
        );
      }
      finishTile(
        scratch,
        tile2,
        tokens,
        count << 4,
        tile << 4,
        columns,
        y,
        yRow,
        address(step, LINEAR_BIAS),
        address(step, LINEAR_BIAS2),
        word(step, LINEAR_ACTIVATION),
        float(step, LINEAR_ALPHA),
        float(step, LINEAR_BETA),
        residual,
        residualRow,
      );
      row += tokens;
      x += tokens * record;
      y += tokens * yRow;
      if (residual) residual += tokens * residualRow;
    }
  }
}

/** Tiles of 16 rows of weights times 1 token -> out f32 [count * 16], or one tile times 4 tokens -> out f32 [4][16]. */
function multiply(
  format: i32,
  tokens: i32,
  w: usize,
  head: i32,
  codebook: usize,
  x: usize,
  record: i32,
  out: usize,
  count: i32,
  blocks: i32,
  block: i32,
  groupBlocks: i32,
): void {
  const row = format - W8;
  if (tokens == 1) {
    const tile = unchecked(tiles1[row]);
    tile(w, head, codebook, x, out, count, blocks, block, groupBlocks);
    return;
  }
  const tile = unchecked(tiles4[row]);
  const groupBytes = head + groupBlocks * blockBytes(format, block);
  const zeroStep: usize = head == SCALE_BYTES ? 0 : groupBytes;
  let scales = w;
  let zeros = zeroStep ? w + SCALE_BYTES : middles + (row << 4);
  w += head;
  for (let half = 0; half < 2; half++) {
    tile(w, head, scales, groupBytes, zeros, zeroStep, codebook, x, record, out, blocks, block, groupBlocks);
    w += 32;
    scales += 16;
    zeros += 8;
    out += 32;
  }
}

// Called through tables, which also keeps the compiler from merging these into one huge function whose
// registers no engine can allocate well.
type Tile1 = (
  w: usize,
  head: i32,
  codebook: usize,
  x: usize,
  out: usize,
  count: i32,
  blocks: i32,
  block: i32,
  groupBlocks: i32,
) => void;
type Tile4 = (
  w: usize,
  head: usize,
  scales: usize,
  groupBytes: usize,
  zeros: usize,
  zeroStep: usize,
  codebook: usize,
  x: usize,
  record: i32,
  out: usize,
  blocks: i32,
  block: i32,
  groupBlocks: i32,
) => void;

/** One token, formats from W8 on. */
const tiles1: StaticArray<Tile1> = [
  (w, head, codebook, x, out, count, blocks, block, groupBlocks) => {
    tile1Wide(W8, w, head, 0, x, out, count, blocks, block, groupBlocks);
  },
  (w, head, codebook, x, out, count, blocks, block, groupBlocks) => {
    if (RELAXED) tile1Nibble(W4, w, head, 0, x, out, count, blocks, block, groupBlocks);
    else tile1Wide(W4, w, head, 0, x, out, count, blocks, block, groupBlocks);
  },
  (w, head, codebook, x, out, count, blocks, block, groupBlocks) => {
    if (RELAXED) tile1Narrow(W3, w, head, x, out, count, blocks, block, groupBlocks);
    else tile1Wide(W3, w, head, 0, x, out, count, blocks, block, groupBlocks);
  },
  (w, head, codebook, x, out, count, blocks, block, groupBlocks) => {
    if (RELAXED) tile1Narrow(W2, w, head, x, out, count, blocks, block, groupBlocks);
    else tile1Wide(W2, w, head, 0, x, out, count, blocks, block, groupBlocks);
  },
  (w, head, codebook, x, out, count, blocks, block, groupBlocks) => {
    if (RELAXED) tile1Nibble(C4, w, head, codebook, x, out, count, blocks, block, groupBlocks);
    else tile1Wide(C4, w, head, codebook, x, out, count, blocks, block, groupBlocks);
  },
];

/** Four tokens, formats from W8 on. */
const tiles4: StaticArray<Tile4> = [
  (w, head, scales, group, zeros, step, codebook, x, record, out, blocks, block, groupBlocks) => {
    half4Wide(W8, w, head, scales, group, zeros, step, 0, x, record, out, blocks, block, groupBlocks);
  },
  (w, head, scales, group, zeros, step, codebook, x, record, out, blocks, block, groupBlocks) => {
    if (RELAXED) half4Nibble(W4, w, head, scales, group, zeros, step, 0, x, record, out, blocks, block, groupBlocks);
    else half4Wide(W4, w, head, scales, group, zeros, step, 0, x, record, out, blocks, block, groupBlocks);
  },
  (w, head, scales, group, zeros, step, codebook, x, record, out, blocks, block, groupBlocks) => {
    if (RELAXED) half4Narrow(W3, w, head, scales, group, zeros, step, x, record, out, blocks, block, groupBlocks);
    else half4Wide(W3, w, head, scales, group, zeros, step, 0, x, record, out, blocks, block, groupBlocks);
  },
  (w, head, scales, group, zeros, step, codebook, x, record, out, blocks, block, groupBlocks) => {
    if (RELAXED) half4Narrow(W2, w, head, scales, group, zeros, step, x, record, out, blocks, block, groupBlocks);
    else half4Wide(W2, w, head, scales, group, zeros, step, 0, x, record, out, blocks, block, groupBlocks);
  },
  (w, head, scales, group, zeros, step, codebook, x, record, out, blocks, block, groupBlocks) => {
    if (RELAXED) {
      half4Nibble(C4, w, head, scales, group, zeros, step, codebook, x, record, out, blocks, block, groupBlocks);
    } else {
      half4Wide(C4, w, head, scales, group, zeros, step, codebook, x, record, out, blocks, block, groupBlocks);
    }
  },
];
