/**
 * The number formats, one table row each: bits, grouping, packing, error bound, which engines run it.
 *
 * A name reads bits, group and symmetry: `w4g32` is 4-bit codes with one f16 scale per 32 inputs and
 * the zero point in the middle of the codes (8), `w4g32a` adds a zero point per group (asymmetric),
 * `w8` has one scale per output channel; `c4g32` is 4-bit indices into 16 learned levels with one scale
 * per 32 inputs. `fettle formats` prints this table.
 */
import type { EngineId } from '../../targets/target.ts';
import { codeStep, levelSpan, middleZero, zeroBits } from './grid.ts';
import { FettleError, nearest } from '../../runtime/errors.ts';

/** Bits of a weight code. */
export type CodeBits = 2 | 3 | 4 | 8;

/** What one scale covers: a number of inputs, or all inputs of an output channel. */
export type GroupSize = number | 'channel';

/** What every row of the table says. */
interface FormatRow {
  /** Name on the command line and in recipes. */
  readonly name: string;
  /** Bits of one stored element, scales and zero points not counted. */
  readonly bits: number;
  /** Engines that run it today. */
  readonly engines: readonly EngineId[];
  /** False for a name that is reserved for a later version. */
  readonly supported: boolean;
  /** One line for `fettle formats`. */
  readonly summary: string;
  /**
   * Largest error of a value as a fraction of the largest magnitude in its group, without clipping;
   * the rounding of the f16 scale included. Undefined where no such bound is stated.
   */
  readonly errorBound: number | undefined;
}

/** Integer codes with a scale, and perhaps a zero point, per group. */
export interface IntegerFormat extends FormatRow {
  readonly kind: 'integer';
  readonly bits: CodeBits;
  /** Inputs that share a scale. */
  readonly group: GroupSize;
  /** Whether the zero point is the middle of the levels everywhere, so that none is stored. */
  readonly symmetric: boolean;
}

/** Plain floating point. */
export interface FloatFormat extends FormatRow {
  readonly kind: 'float';
  readonly dtype: 'f32' | 'f16';
}

/** Indices into a list of 16 int8 levels that is learned from the weights, with a scale per group. */
export interface CodebookFormat extends FormatRow {
  readonly kind: 'codebook';
  readonly bits: 4;
  /** Inputs that share a scale. */
  readonly group: number;
}

/** A format that is planned: integers for the KV cache. */
export interface ReservedFormat extends FormatRow {
  readonly kind: 'kv';
}

/** A format of codes with a scale per group. */
export type CodeFormat = IntegerFormat | CodebookFormat;

/** A format that weights can be stored in. */
export type WeightFormat = CodeFormat | FloatFormat;

/** One row of the table of number formats. */
export type NumberFormat = WeightFormat | ReservedFormat;

/** Group sizes that integer weight formats come in, smallest first. */
export const groupSizes: readonly number[] = [16, 32, 64, 128];

const codeBits: readonly CodeBits[] = [8, 4, 3, 2];

/** Every number format, in the order `fettle formats` prints them. */
export const numberFormats: readonly NumberFormat[] = [
  float('f32', 32, 0),
  // half a unit in the last of 11 significant bits
  float('f16', 16, 2 ** -11),
  ...codeBits.flatMap((bits) =>
    [...groupSizes, 'channel' as const].flatMap((group) => [
      integer(bits, group, true),
      integer(bits, group, false),
    ]),
  ),
  ...groupSizes.map(codebookRow),
  reserved('kv', 'kv8', 8, '8-bit keys and values in the cache'),
  reserved('kv', 'kv4', 4, '4-bit keys and values in the cache'),
];

const byName = new Map(numberFormats.map((format) => [format.name, format]));

/**
 * The format of a name.
 *
 * @param name - for example `w4g32`, `w4g32a`, `w8`, `f16`; `w8gc` and `w8channel` also mean `w8`
 * @throws {@link FettleError} USAGE when there is none of that name, or when it is only reserved
 *
 * @example
 * parseFormat('w4g32a').bits; // 4
 */
export function parseFormat(name: string): WeightFormat {
  const plain = name
    .trim()
    .toLowerCase()
    .replace(/^(w\d)g?c(?:hannel)?(a?)$/, '$1$2');
  const format = byName.get(plain);
  if (format === undefined) {
    const guess = nearest(plain, byName.keys());
    throw new FettleError('USAGE', `Unknown number format "${name}".`, {
      at: { format: name },
      fix:
        guess === undefined ? 'List the formats with: fettle formats' : `Did you mean "${guess}"?`,
    });
  }
  if (format.kind === 'kv')
    throw new FettleError('USAGE', `Number format "${name}" is not supported yet.`, {
      at: { format: name },
      fix: 'Leave the KV cache as it is.',
    });
  return format;
}

/** Whether a name is in the table, supported or reserved. */
export function isFormatName(name: string): boolean {
  return byName.has(name);
}

/** The name of an integer format. */
export function formatName(bits: CodeBits, group: GroupSize, symmetric: boolean): string {
  return `w${bits}${group === 'channel' ? '' : `g${group}`}${symmetric ? '' : 'a'}`;
}

/**
 * The integer format with these properties, in the table or beside it: groups of any size are as
 * valid as the listed ones, which are those that engines are tuned for.
 */
export function integerFormat(bits: CodeBits, group: GroupSize, symmetric: boolean): IntegerFormat {
  const listed = byName.get(formatName(bits, group, symmetric));
  return listed?.kind === 'integer' ? listed : integer(bits, group, symmetric);
}

/** The codebook format with groups of this size, in the table or beside it. */
export function codebookFormat(group: number): CodebookFormat {
  const listed = byName.get(`c4g${group}`);
  return listed?.kind === 'codebook' ? listed : codebookRow(group);
}

/**
 * Bits one weight takes, scales and zero points included; padding at the end of rows and the 16 bytes
 * of a codebook not.
 *
 * @param format - any row
 * @param columns - inputs per output channel; needed for what is stored once per channel
 */
export function bitsPerWeight(format: NumberFormat, columns: number): number {
  if (format.kind === 'float' || format.kind === 'kv') return format.bits;
  const group = format.group === 'channel' ? columns : format.group;
  if (format.kind === 'codebook') return format.bits + 16 / group;
  return format.bits + (16 + (format.symmetric ? 0 : zeroBits(format.bits))) / group;
}

function integer(bits: CodeBits, group: GroupSize, symmetric: boolean): IntegerFormat {
  const step = codeStep(bits);
  const steps = (levelSpan(bits) - (symmetric ? middleZero(bits) : 0)) / step;
  const scaleRounding = 2 ** -10;
  return {
    kind: 'integer',
    name: formatName(bits, group, symmetric),
    bits,
    group,
    symmetric,
    engines: ['wasm', 'ort'],
    supported: true,
    summary:
      `${bits}-bit codes, ${symmetric ? 'symmetric' : 'asymmetric'}, ` +
      (group === 'channel' ? 'one scale per output channel' : `one scale per ${group} inputs`),
    // Half a step. Asymmetric: the range spans both signs, and rounding the zero point moves the
    // grid by up to another half step.
    errorBound: (symmetric ? 0.5 : 2) / steps + scaleRounding,
  };
}

function codebookRow(group: number): CodebookFormat {
  return {
    kind: 'codebook',
    name: `c4g${group}`,
    bits: 4,
    group,
    engines: ['wasm', 'ort'],
    supported: true,
    summary: `4-bit indices into 16 levels learned per tensor, one scale per ${group} inputs`,
    // levels go where the weights are: what is rare may be far from all of them
    errorBound: undefined,
  };
}

function float(dtype: 'f32' | 'f16', bits: number, errorBound: number): FloatFormat {
  const summary = dtype === 'f32' ? 'single precision, as trained' : 'half precision';
  return {
    kind: 'float',
    name: dtype,
    dtype,
    bits,
    engines: ['wasm', 'ort'],
    supported: true,
    summary,
    errorBound,
  };
}

function reserved(
  kind: ReservedFormat['kind'],
  name: string,
  bits: number,
  summary: string,
): ReservedFormat {
  return { kind, name, bits, engines: [], supported: false, summary, errorBound: undefined };
}
