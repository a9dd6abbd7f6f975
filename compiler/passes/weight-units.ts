/**
 * The constants that weight quantization may touch, each with everything that reads it: what
 * `quantize-weights` stores in fewer bits, what calibration collects statistics for, and what the search
 * chooses a format for.
 *
 *     MatMul(x, w [K, N])                                  linear, N rows, K columns, inputs [x]
 *     Gather(t [V, D], ids), MatMul(h, Transpose(t))       one table, V rows, D columns, inputs [h]
 */
import type { Value, Model } from '../ir/graph.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { CodeFormat } from '../quant/formats.ts';
import { codebookFormat, groupSizes, integerFormat } from '../quant/formats.ts';
import type { RowSource } from '../quant/matrix.ts';
import { matrixRows, readableDtypes } from '../quant/rows.ts';
import { isSinusoidal } from '../quant/sinusoids.ts';
import { isSkipped } from './skip-list.ts';
import type { SiteKind, WeightSite } from './weight-sites.ts';
import { leavesGraph, readersOf, weightSite } from './weight-sites.ts';

/** One constant that may be stored in fewer bits. */
export interface WeightUnit {
  /** Name of the constant. */
  readonly name: string;
  /** The constant. */
  readonly constant: Value;
  /** Every place that reads it; the earliest reader first. */
  readonly sites: readonly [WeightSite, ...WeightSite[]];
  /** Output channels. */
  readonly rows: number;
  /** Inputs of an output channel. */
  readonly columns: number;
  /** `table` as soon as one site gathers rows of it. */
  readonly kind: SiteKind;
  /**
   * Activations it is multiplied with, [..., columns] (of a convolution: its input, before patches are
   * taken); empty for a table that is only gathered from. Each once.
   */
  readonly inputs: readonly Value[];
}

/** Which constants count. */
export interface UnitSettings {
  /** Constants or nodes to leave alone: names, or patterns with `*`. Default none. */
  readonly skip?: readonly string[];
  /** Smallest constant, in elements. Default 4,096. */
  readonly minElements?: number;
}

/** Smallest constant that is worth a format of its own, in elements. */
export const MIN_UNIT_ELEMENTS = 4096;

/** Told why a constant that something multiplies by is no unit. */
export type RefuseUnit = (rule: string, constant: Value, why: string) => void;

/**
 * The units of a model, in the order in which its nodes first read them.
 *
 * @param model - after everything that folds or merges constants
 * @param refuse - told about constants that are left alone
 *
 * @example
 * const bits = weightUnits(model).map(({ name, rows, columns }) => [name, rows * columns * 4]);
 */
export function weightUnits(
  model: Model,
  settings: UnitSettings = {},
  refuse: RefuseUnit = () => {},
): WeightUnit[] {
  return [...eachUnit(model, settings, refuse)];
}

/** {@link weightUnits} one by one, so that a caller's own refusals come in the order of the model. */
export function* eachUnit(
  model: Model,
  { skip = [], minElements = MIN_UNIT_ELEMENTS }: UnitSettings,
  refuse: RefuseUnit,
): Generator<WeightUnit> {
  const seen = new Set<Value>();
  for (const node of model.graph.allNodes())
    for (const index of node.inputs.keys()) {
      const site = weightSite(node, index);
      if (site === undefined || 'why' in site || seen.has(site.constant)) continue;
      seen.add(site.constant);
      if (elementCount(site.shape) < minElements) continue;
      const sites = sitesOf(site, skip, refuse);
      if (sites !== undefined) yield unitOf(sites);
    }
}

/** The matrix of a unit, [rows, columns] = [output channels, inputs]. */
export function unitRows(unit: WeightUnit): RowSource {
  const { weight } = unit.constant;
  // a unit is made of a constant, and constants keep their contents
  if (weight === undefined) return { rows: 0, columns: 0, read: () => new Float32Array() };
  return rowsOf(unit.sites[0], weight);
}

/** How convolutions are treated. */
export type ConvolutionChoice = 'all' | 'none' | 'auto';

/** A format that fits a unit; `why` when it is another one than asked for. */
export type UnitFormat =
  | { readonly format: CodeFormat; readonly why?: string }
  | { readonly refused: string };

/** Filters with fewer inputs than this are stored in 8 bits at least. */
const SMALL_FILTER = 32;

/**
 * The format asked for, or the nearest one whose groups fill the rows, as engines want them: smaller
 * groups; one group per row when rows are short; 8 bits, with which one scale per row is enough.
 *
 * @param convolutions - `auto` stores those with few inputs in 8 bits at least
 */
export function unitFormat(
  unit: Pick<WeightUnit, 'columns' | 'sites'>,
  format: CodeFormat,
  convolutions: ConvolutionChoice,
): UnitFormat {
  const { columns } = unit;
  const isConvolution = unit.sites[0].kind === 'convolution';
  const { bits, group } = format;
  const symmetric = format.kind === 'codebook' || format.symmetric;
  if (isConvolution && convolutions === 'none')
    return { refused: 'convolutions are kept by option' };
  // few inputs, as in a depthwise convolution: every weight counts, and a scale costs more than it saves
  if (isConvolution && convolutions === 'auto' && columns < SMALL_FILTER && bits < 8)
    return {
      format: integerFormat(8, 'channel', symmetric),
      why: `${columns} inputs per output channel are few`,
    };
  if (group === 'channel' || columns % group === 0) return { format };
  const smaller = groupSizes.findLast((size) => size < group && columns % size === 0);
  const fallback =
    smaller === undefined
      ? integerFormat(columns <= 2 * group ? bits : 8, 'channel', symmetric)
      : format.kind === 'codebook'
        ? codebookFormat(smaller)
        : integerFormat(bits, smaller, symmetric);
  return { format: fallback, why: `${columns} inputs are no multiple of ${group}` };
}

/** Whether rows of a constant are gathered. */
export function isTable(constant: Value): boolean {
  return readersOf(constant).some(([node, index]) => node.op === 'Gather' && index === 0);
}

function unitOf(sites: WeightUnit['sites']): WeightUnit {
  const [first] = sites;
  const inputs = new Set<Value>();
  for (const { node, index, kind } of sites) {
    const input = node.inputs[0];
    // a recurrence multiplies the second matrix by its own state, which is no value of the graph
    const multiplies = kind !== 'table' && (kind !== 'recurrent' || index === 1);
    if (multiplies && input !== undefined) inputs.add(input);
  }
  return {
    name: first.constant.name,
    constant: first.constant,
    sites,
    rows: first.rows,
    columns: first.columns,
    kind: sites.some(({ kind }) => kind === 'table') ? 'table' : first.kind,
    inputs: [...inputs],
  };
}

/** Every site of the constant, or undefined after saying why it is left alone. */
function sitesOf(
  first: WeightSite,
  skip: readonly string[],
  refuse: RefuseUnit,
): WeightUnit['sites'] | undefined {
  const { constant } = first;
  const leave = (why: string): undefined => {
    refuse('quantize', constant, why);
    return undefined;
  };
  if (constant.weight === undefined || !readableDtypes.includes(constant.weight.dtype))
    return undefined;
  const sites: WeightSite[] = [];
  for (const [node, index] of readersOf(constant)) {
    const site = weightSite(node, index);
    if (site === undefined) return leave(`${node.describe()} reads it too, and is no product`);
    if ('why' in site) return leave(`${site.why} in ${node.describe()}`);
    if (site.rows !== first.rows || site.storedTransposed !== first.storedTransposed)
      return leave(`${node.describe()} sums over another axis of it`);
    sites.push(site);
  }
  if (leavesGraph(constant)) return leave('it is an output of the model');
  if (first.kind === 'table' && isSinusoidal(rowsOf(first, constant.weight)))
    return leave('it is a table of sines or cosines, which positions are read from');
  const names = [constant.name, ...sites.flatMap(({ node }) => [node.name, ...node.from])];
  if (isSkipped(names, skip)) return leave('the skip list names it');
  // the earliest reader leads: what all of them share is put in front of it
  return [
    first,
    ...sites.filter(({ node, index }) => node !== first.node || index !== first.index),
  ];
}

function rowsOf(site: WeightSite, weight: NonNullable<Value['weight']>): RowSource {
  const { rows, columns, storedTransposed: transposed } = site;
  const bytes = (start: number, length: number): Uint8Array => weight.bytes(start, length);
  return matrixRows({ dtype: weight.dtype, rows, columns, transposed, bytes });
}
