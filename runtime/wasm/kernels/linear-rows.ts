/**
 * LINEAR for several tokens. The weights of 8 rows are taken apart into a panel in working memory (panel.ts),
 * which then meets the tokens four at a time (tile-panel.ts), so that taking apart is shared by up to 64 tokens.
 *
 * Threads share the panels. Long rows go in pieces, whose sums add up in working memory; tokens in
 * runs of at most 64, between which the packed weights stay in the caches: the matrix is read once per
 * call. Every result is the same f32 sum over blocks in the same order as a single token's.
 *
 * Working memory: sums f32 [64][8] of each matrix at 0, the panel at 4096.
 */
import {
  ACT_GELU,
  ACT_SILU,
  C4,
  LINEAR_ACTIVATION,
  LINEAR_ALPHA,
  LINEAR_BETA,
  LINEAR_BIAS,
  LINEAR_BIAS2,
  LINEAR_BLOCK,
  LINEAR_CODEBOOK,
  LINEAR_FORMAT,
  LINEAR_GROUPBLOCKS,
  LINEAR_K,
  LINEAR_N,
  LINEAR_RESIDUAL,
  LINEAR_RESIDUALROW,
  LINEAR_W,
  LINEAR_W2,
  LINEAR_X,
  LINEAR_Y,
  LINEAR_YROW,
  LINEAR_ZEROS,
  SCRATCH_BYTES,
  W2,
  W3,
  W4,
  W8,
} from './abi.ts';
import { RELAXED, address, float, shareStart, word } from './core.ts';
import { loadUpTo, storeUpTo } from './epilogue.ts';
import { activate, gelu, silu } from './math.ts';
import { panelBytes, unpackPanel } from './panel.ts';
import { recordBytes } from './quantize.ts';
import { SCALE_BYTES, blockBytes, headBytes } from './tile-common.ts';
import { NARROW, SEVEN, WIDE, tilePanel } from './tile-panel.ts';

/** Tokens that share a panel. */
const RUN = 64;
const SUMS2: usize = 2048;
const PANEL: usize = 4096;

/** The first `rows` tokens; of the last four one may be missing. */
export function linearRows(step: usize, rows: i32, scratch: usize, thread: i32, threads: i32): void {
  const block = word(step, LINEAR_BLOCK);
  const record = recordBytes((word(step, LINEAR_K) + block - 1) / block, block);
  const gated = address(step, LINEAR_W2) != 0;
  // runs of nearly equal length
  const runs = (rows + RUN - 1) / RUN;
  const run = ((rows + runs - 1) / runs + 3) & ~3;
  const panels = (word(step, LINEAR_N) + 7) >> 3;
  const end = shareStart(panels, thread + 1, threads);
  for (let panel = shareStart(panels, thread, threads); panel < end; panel++) {
    for (let row = 0; row < rows; row += run) {
      const tokens = min(run, rows - row);
      const x = address(step, LINEAR_X) + row * record;
      multiply(step, panel, 0, x, record, tokens, scratch, scratch + PANEL);
      if (gated) {
        const second = LINEAR_W2 - LINEAR_W;
        multiply(step, panel, second, x, record, tokens, scratch + SUMS2, scratch + PANEL);
      }
      finishPanel(step, panel << 3, row, tokens, scratch, gated ? scratch + SUMS2 : 0);
    }
  }
}

/** Sums [tokens][8] of the rows from `n` on -> the result of the tokens from `row` on, as `finishTile`. */
function finishPanel(step: usize, n: i32, row: i32, tokens: i32, sums: usize, sums2: usize): void {
  const activation = word(step, LINEAR_ACTIVATION);
  const alpha = f32x4.splat(float(step, LINEAR_ALPHA));
  const beta = f32x4.splat(float(step, LINEAR_BETA));
  const yRow = word(step, LINEAR_YROW);
  const residualRow = word(step, LINEAR_RESIDUALROW);
  const columns = word(step, LINEAR_N);
  for (let half = 0; half < 2 && n < columns; half++) {
    const left = columns - n;
    const at: usize = n << 2;
    const bias = address(step, LINEAR_BIAS);
    const bias2 = address(step, LINEAR_BIAS2);
    const b = bias ? loadUpTo(bias + at, left) : alpha;
    const b2 = bias2 ? loadUpTo(bias2 + at, left) : alpha;
    let residual = address(step, LINEAR_RESIDUAL);
    if (residual) residual += row * residualRow + at;
    let y = address(step, LINEAR_Y) + row * yRow + at;
    const offset: usize = half << 4;
    for (let token = 0; token < tokens; token++) {
      const tile = offset + (token << 5);
      let x = v128.load(sums + tile);
      if (bias) x = f32x4.add(x, b);
      // those of language models are written out, which takes half the time
      if (activation == ACT_SILU) x = silu(x);
      else if (activation == ACT_GELU) x = gelu(x);
      else if (activation) x = activate(activation, x, alpha, beta);
      if (sums2) {
        let up = v128.load(sums2 + tile);
        if (bias2) up = f32x4.add(up, b2);
        x = f32x4.mul(x, up);
      }
      if (residual) {
        x = f32x4.add(x, loadUpTo(residual, left));
        residual += residualRow;
      }
      storeUpTo(y, x, left);
      y += yRow;
    }
    n += 4;
  }
}

/** sums [tokens][8] = the tokens at `x` times the 8 rows of a panel; `second` is 0, or where the gate's words are. */
function multiply(
  step: usize,
  panel: i32,
  second: i32,
  x: usize,
  record: i32,
  tokens: i32,
  sums: usize,
  memory: usize,
): void {
  const format = word(step, LINEAR_FORMAT);
  const block = word(step, LINEAR_BLOCK);
  const blocks = (word(step, LINEAR_K) + block - 1) / block;
  const groupBlocks = word(step, LINEAR_GROUPBLOCKS);
  const head = headBytes(word(step, LINEAR_ZEROS + second));
  const codeBytes = blockBytes(format, block);
  const groupBytes = head + groupBlocks * codeBytes;
  const groups = (blocks + groupBlocks - 1) / groupBlocks;
  const tile = panel >> 1;
  const w = address(step, LINEAR_W + second) + tile * (groups * head + blocks * codeBytes);
  const codebook = address(step, LINEAR_CODEBOOK + second) + (tile << 4);
  const wide = !RELAXED || format == W8;
  const form = wide ? WIDE : format == C4 ? SEVEN : NARROW;
  if (wide) x += blocks * (block + 8);
  // pieces of nearly equal length
  const most = (SCRATCH_BYTES - <i32>PANEL) / panelBytes(wide, block);
  const pieces = (blocks + most - 1) / most;
  const piece = (blocks + pieces - 1) / pieces;
  const kind = block == 16 ? 2 : head == SCALE_BYTES ? 0 : 1;
  const multiplyTile = unchecked(tiles[form * 3 + kind]);
  const zero = i32x4.splat(0);
  for (let i = 0; i < ((tokens + 3) & ~3) << 5; i += 32) {
    v128.store(sums + i, zero, 0);
    v128.store(sums + i, zero, 16);
  }
  for (let b = 0; b < blocks; b += piece) {
    const count = min(piece, blocks - b);
    const group = b / groupBlocks;
    unchecked(unpackers[format - W8])(
      w + group * groupBytes,
      panel & 1,
      b - group * groupBlocks,
      head,
      codebook,
      count,
      block,
      groupBlocks,
      memory,
    );
    multiplyTile(memory, x, record, tokens, sums, count);
    x += count * ((wide ? 2 * block : block) + 8);
  }
}

// Called through tables, which also keeps the compiler from merging these into one huge function whose
// registers no engine can allocate well.
type Unpacker = (
  group: usize,
  half: i32,
  skip: i32,
  head: i32,
  codebook: usize,
  blocks: i32,
  block: i32,
  groupBlocks: i32,
  out: usize,
) => void;
type Tile = (
  panel: usize,
  x: usize,
  record: usize,
  tokens: i32,
  out: usize,
  blocks: i32,
) => void;

/** Formats from W8 on. */
const unpackers: StaticArray<Unpacker> = [
  (group, half, skip, head, codebook, blocks, block, groupBlocks, out) => {
    unpackPanel(W8, true, group, half, skip, head, codebook, blocks, block, groupBlocks, out);
  },
  (group, half, skip, head, codebook, blocks, block, groupBlocks, out) => {
    unpackPanel(W4, !RELAXED, group, half, skip, head, codebook, blocks, block, groupBlocks, out);
  },
  (group, half, skip, head, codebook, blocks, block, groupBlocks, out) => {
    unpackPanel(W3, !RELAXED, group, half, skip, head, codebook, blocks, block, groupBlocks, out);
  },
  (group, half, skip, head, codebook, blocks, block, groupBlocks, out) => {
    unpackPanel(W2, !RELAXED, group, half, skip, head, codebook, blocks, block, groupBlocks, out);
  },
  (group, half, skip, head, codebook, blocks, block, groupBlocks, out) => {
    unpackPanel(C4, !RELAXED, group, half, skip, head, codebook, blocks, block, groupBlocks, out);
  },
];

/** By form; for blocks of 32, symmetric or not, and of 16. What nobody waits for has fewer versions. */
const tiles: StaticArray<Tile> = [
  (panel, x, record, tokens, out, blocks) => {
    if (RELAXED) tilePanel(NARROW, 32, true, panel, x, record, tokens, out, blocks);
  },
  (panel, x, record, tokens, out, blocks) => {
    if (RELAXED) tilePanel(NARROW, 32, false, panel, x, record, tokens, out, blocks);
  },
  (panel, x, record, tokens, out, blocks) => {
    if (RELAXED) tilePanel(NARROW, 16, false, panel, x, record, tokens, out, blocks);
  },
  (panel, x, record, tokens, out, blocks) => {
    if (RELAXED) tilePanel(SEVEN, 32, false, panel, x, record, tokens, out, blocks);
  },
  (panel, x, record, tokens, out, blocks) => {
    if (RELAXED) tilePanel(SEVEN, 32, false, panel, x, record, tokens, out, blocks);
  },
  (panel, x, record, tokens, out, blocks) => {
    if (RELAXED) tilePanel(SEVEN, 16, false, panel, x, record, tokens, out, blocks);
  },
  (panel, x, record, tokens, out, blocks) => {
    tilePanel(WIDE, 32, true, panel, x, record, tokens, out, blocks);
  },
  (panel, x, record, tokens, out, blocks) => {
    tilePanel(WIDE, 32, false, panel, x, record, tokens, out, blocks);
  },
  (panel, x, record, tokens, out, blocks) => {
    tilePanel(WIDE, 16, false, panel, x, record, tokens, out, blocks);
  },
];
