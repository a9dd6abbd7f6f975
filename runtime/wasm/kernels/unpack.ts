/**
 * UNPACK: codes in 2, 3, 4 or 8 bits -> f32, row by row. Runs once for each weight, when a plan is loaded, for
 * layers that are computed from f32: value = (code - zero) * scale, of 2 and 3 bits (2 * code - zero) * scale, or
 * codebook[code] * scale.
 */
import {
  UNPACK_BITS,
  UNPACK_BOOKROWS,
  UNPACK_CODEBOOK,
  UNPACK_CODES,
  UNPACK_COLUMNS,
  UNPACK_GROUP,
  UNPACK_ROWS,
  UNPACK_SCALES,
  UNPACK_Y,
  UNPACK_YCOLUMN,
  UNPACK_YROW,
  UNPACK_ZEROS,
} from './abi.ts';
import { address, shareStart, word } from './core.ts';
import { half1 } from './embed.ts';

export function unpack(step: usize, _scratch: usize, thread: i32, threads: i32): void {
  const columns = word(step, UNPACK_COLUMNS);
  const bits = word(step, UNPACK_BITS);
  const group = word(step, UNPACK_GROUP);
  const groups = (columns + group - 1) / group;
  const rowBytes = (columns * bits + 7) >> 3;
  const zeroBits = bits == 8 ? 8 : 4;
  const zeroBytes = (groups * zeroBits + 7) >> 3;
  const doubles = bits < 4 ? 1 : 0;
  // the middle of the levels
  const middle = doubles ? (1 << bits) - 1 : 1 << (bits - 1);
  const zeros = address(step, UNPACK_ZEROS);
  const codebook = address(step, UNPACK_CODEBOOK);
  const yColumn = word(step, UNPACK_YCOLUMN);
  const rows = word(step, UNPACK_ROWS);
  const end = shareStart(rows, thread + 1, threads);
  for (let row = shareStart(rows, thread, threads); row < end; row++) {
    const codes = address(step, UNPACK_CODES) + row * rowBytes;
    const scales = address(step, UNPACK_SCALES) + ((row * groups) << 1);
    const levels = codebook ? codebook + ((row / word(step, UNPACK_BOOKROWS)) << 4) : 0;
    let y = address(step, UNPACK_Y) + row * word(step, UNPACK_YROW);
    let column = 0;
    for (let g = 0; g < groups; g++) {
      const scale = half1(scales + (g << 1));
      const zero = zeros ? codeAt(zeros + row * zeroBytes, zeroBits, g) : middle;
      const stop = min(columns, column + group);
      for (; column < stop; column++) {
        const code = codeAt(codes, bits, column);
        const value = levels ? <i32>load<i8>(levels + code) : (code << doubles) - zero;
        store<f32>(y, <f32>value * scale);
        y += yColumn;
      }
    }
  }
}

/** Element `index` of a bit stream; of 3 bits it may lie in two bytes. */
@inline
function codeAt(stream: usize, bits: i32, index: i32): i32 {
  const at = index * bits;
  const byte = stream + (at >> 3);
  const shift = at & 7;
  let held = <i32>load<u8>(byte);
  if (shift + bits > 8) held |= <i32>load<u8>(byte, 1) << 8;
  return (held >> shift) & ((1 << bits) - 1);
}
