/**
 * LINEAR: quantized activations x packed integer weights (layouts in abi.ts), with its epilogue.
 *
 * Fours of tokens go through panels of weights (linear-rows.ts), also a last four that lacks one. What remains
 * goes here, one token at a time and, as with those, split between threads by rows of the matrix.
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
import { linearRows } from './linear-rows.ts';
import { recordBytes } from './quantize.ts';
import { fitsDifferences, tile1Apart } from './tile-apart.ts';
import { blockBytes, headBytes } from './tile-common.ts';
import { tile1Narrow } from './tile-narrow.ts';
import { tile1Nibble } from './tile-nibble.ts';
import { tile1Wide } from './tile-wide.ts';

/** Tiles that one token takes at a time: enough that what surrounds them does not count. */
const TILES = 32;
/** Bytes of their results in scratch. */
const OUT_BYTES = TILES * 64;

export function linear(step: usize, scratch: usize, thread: i32, threads: i32): void {
  const block = word(step, LINEAR_BLOCK);
  const blocks = (word(step, LINEAR_K) + block - 1) / block;
  const groupBlocks = word(step, LINEAR_GROUPBLOCKS);
  const groups = (blocks + groupBlocks - 1) / groupBlocks;
  const format = word(step, LINEAR_FORMAT);
  const rows = word(step, LINEAR_ROWS);
  const fours = rows > 4 && (rows & 3) == 3 ? rows : rows & ~3;
  if (fours) linearRows(step, fours, scratch, thread, threads);
  if (fours == rows) return;
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
  const multiply = unchecked(tiles1[format - W8]);
  const tile2 = w2 ? scratch + OUT_BYTES : 0;
  const tiles = (columns + 15) >> 4;
  const end = shareStart(tiles, thread + 1, threads);
  for (let tile = shareStart(tiles, thread, threads); tile < end; tile += TILES) {
    const count = min(TILES, end - tile);
    let x = address(step, LINEAR_X) + fours * record;
    let y = address(step, LINEAR_Y) + fours * yRow;
    let residual = address(step, LINEAR_RESIDUAL);
    if (residual) residual += fours * residualRow;
    for (let row = fours; row < rows; row++) {
      const book = codebook ? codebook + (tile << 4) : 0;
      multiply(w + tile * tileBytes, head, book, x, scratch, count, blocks, block, groupBlocks);
      if (w2) {
        const book2 = codebook2 ? codebook2 + (tile << 4) : 0;
        multiply(w2 + tile * tileBytes2, head2, book2, x, tile2, count, blocks, block, groupBlocks);
      }
      finishTile(
        scratch,
        tile2,
        1,
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
      x += record;
      y += yRow;
      if (residual) residual += residualRow;
    }
  }
}

// Called through tables, which also keeps the compiler from merging these into one huge function whose
// registers no engine can allocate well.

/** Tiles of 16 rows of weights times 1 token -> out f32 [count * 16]. */
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

/** One token, formats from W8 on. */
const tiles1: StaticArray<Tile1> = [
  (w, head, codebook, x, out, count, blocks, block, groupBlocks) => {
    tile1Wide(W8, w, head, 0, x, out, count, blocks, block, groupBlocks);
  },
  (w, head, codebook, x, out, count, blocks, block, groupBlocks) => {
    const taken = OUT_BYTES * 3;
    if (RELAXED) tile1Nibble(W4, w, head, 0, x, out, count, blocks, block, groupBlocks);
    else if (fitsDifferences(blocks, block, taken)) {
      // behind what two matrices have in scratch
      tile1Apart(w, head, x, out + OUT_BYTES * 2, out, count, blocks, block, groupBlocks);
    } else tile1Wide(W4, w, head, 0, x, out, count, blocks, block, groupBlocks);
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
