/**
 * Stores weight matrices and tables in a smaller number format.
 *
 *     MatMul(x, w f32 [K, N])   ->   MatMul(x, fettle.Dequantize(codes u8 [N, …], scales f16 [N, K/32]))
 *     Gather(t f32 [V, D], i)   ->   Gather(fettle.Dequantize(codes, scales), i)
 *     w f32                     ->   Cast(w f16)                       with the format f16
 *
 * Groups run along the inputs of an output channel. A table that is tied to the output matrix keeps
 * one set of codes for both. Rounding is to nearest with a search for the clip of least squared error
 * (`quant/affine.ts`). Never touched: biases, gains of norms, other small constants, constants that
 * something else than a product reads, and values that have no code (NaN, infinities).
 *
 * Runs after everything that folds or merges constants. `lower/` spells the result for an engine.
 */
import { FettleError, throwIfAborted } from '../../runtime/errors.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { Model, Value } from '../ir/graph.ts';
import type { Weight } from '../ir/weight.ts';
import type { FloatFormat, IntegerFormat } from '../quant/formats.ts';
import { groupSizes, integerFormat, parseFormat } from '../quant/formats.ts';
import type { RowSource } from '../quant/matrix.ts';
import { quantizeMatrix } from '../quant/matrix.ts';
import { matrixRows, readableDtypes } from '../quant/rows.ts';
import { isSinusoidal } from '../quant/sinusoids.ts';
import { bytesOfMatrix, insertDequantize } from './insert-dequantize.ts';
import type { Pass, PassContext } from './pass.ts';
import { isSkipped } from './skip-list.ts';
import type { QuantizedTensorNote } from './store-halves.ts';
import { storeHalves } from './store-halves.ts';
import { turn } from '../turn.ts';
import type { WeightSite } from './weight-sites.ts';
import { leavesGraph, readersOf, weightSite } from './weight-sites.ts';

/** Options of {@link quantizeWeights}. */
export interface QuantizeWeightsOptions {
  /** Number format: `w4g32`, `w4g32a`, `w8`, `f16`, …; `f32` changes nothing. Default `f32`. */
  readonly format?: string;
  /** Constants or nodes to leave alone: names, or patterns with `*`. Default none. */
  readonly skip?: readonly string[];
  /** Smallest constant that is quantized, in elements. Default 4,096. */
  readonly minElements?: number;
  /** Tables that rows are gathered from: `same`, `keep`, or a format of their own. Default `same`. */
  readonly embeddings?: string;
  /**
   * Convolutions: `all`, `none`, or `auto`: those with fewer than 32 inputs per output channel in 8 bits
   * at least. Default `auto`.
   */
  readonly convolutions?: string;
  /** Whether to search for the clip of least squared error. Default true. */
  readonly clip?: boolean;
}

/** Defaults of {@link QuantizeWeightsOptions}. */
export const quantizeWeightsDefaults: Required<QuantizeWeightsOptions> = {
  format: 'f32',
  skip: [],
  minElements: 4096,
  embeddings: 'same',
  convolutions: 'auto',
  clip: true,
};

type Settings = Required<QuantizeWeightsOptions>;

/** Makes the pass. @throws FettleError USAGE for a format or choice that does not exist */
export function quantizeWeights(options: QuantizeWeightsOptions = {}): Pass {
  const settings = { ...quantizeWeightsDefaults, ...options };
  const format = parseFormat(settings.format);
  const tables = tableFormat(settings, format);
  checkChoice('convolutions', settings.convolutions, ['all', 'none', 'auto']);
  return {
    name: 'quantize-weights',
    options: settings,
    async run(model, context) {
      const before = context.rewriter.changes;
      const notes: QuantizedTensorNote[] = [];
      const plan = planOf(model, settings, format, tables, context);
      const total = plan.reduce((sum, { sites }) => sum + sizeOf(sites[0]), 0);
      let done = 0;
      for (const { sites, format: wanted } of plan) {
        await turn(context.signal);
        const note = quantize(model, sites, wanted, settings.clip, context, (elements) =>
          context.progress('quantize weights', done + elements, total),
        );
        if (note !== undefined) notes.push(note);
        done += sizeOf(sites[0]);
      }
      const isHalf = (constant: Value): boolean => {
        const wanted = isTable(constant) ? tables : format;
        return wanted !== 'keep' && wanted.name === 'f16';
      };
      notes.push(...storeHalves(model, settings, isHalf, context));
      if (notes.length > 0) context.note('tensors', notes);
      return context.rewriter.changes > before;
    },
  };
}

/** The sites of one constant and the format it gets. */
interface Plan {
  readonly sites: readonly [WeightSite, ...WeightSite[]];
  readonly format: IntegerFormat;
}

/** Which constants are quantized, in the order in which the model first reads them. */
function planOf(
  model: Model,
  settings: Settings,
  format: IntegerFormat | FloatFormat,
  tables: IntegerFormat | FloatFormat | 'keep',
  context: PassContext,
): Plan[] {
  const seen = new Set<Value>();
  const plans: Plan[] = [];
  for (const node of model.graph.allNodes())
    node.inputs.forEach((_, index) => {
      const site = weightSite(node, index);
      if (site === undefined || 'why' in site || seen.has(site.constant)) return;
      seen.add(site.constant);
      if (elementCount(site.shape) < settings.minElements) return;
      const sites = sitesOf(site, settings, context);
      if (sites === undefined) return;
      const chosen = sites.some(({ kind }) => kind === 'table') ? tables : format;
      if (chosen === 'keep') context.refuse('table', site.constant, 'tables are kept by option');
      else if (chosen.kind === 'integer') {
        const fitting = fittingFormat(sites[0], chosen, settings, context);
        if (fitting !== undefined) plans.push({ sites, format: fitting });
      }
    });
  return plans;
}

/** Every site of the constant, or undefined after saying why it is left alone. */
function sitesOf(
  first: WeightSite,
  settings: Settings,
  context: PassContext,
): Plan['sites'] | undefined {
  const { constant } = first;
  const leave = (why: string): undefined => {
    context.refuse('quantize', constant, why);
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
  if (isSkipped(names, settings.skip)) return leave('the skip list names it');
  // the earliest reader leads: what all of them share is put in front of it
  return [
    first,
    ...sites.filter(({ node, index }) => node !== first.node || index !== first.index),
  ];
}

/**
 * The format asked for, or the nearest one whose groups fill the rows, as engines want them: smaller
 * groups; one group per row when rows are short; 8 bits, with which one scale per row is enough.
 */
function fittingFormat(
  site: WeightSite,
  format: IntegerFormat,
  settings: Settings,
  context: PassContext,
): IntegerFormat | undefined {
  const { columns, constant, kind } = site;
  const { bits, group, symmetric } = format;
  if (kind === 'convolution' && settings.convolutions === 'none') {
    context.refuse('convolution', constant, 'convolutions are kept by option');
    return undefined;
  }
  // few inputs, as in a depthwise convolution: every weight counts, and a scale costs more than it saves
  const small =
    kind === 'convolution' && settings.convolutions === 'auto' && columns < SMALL_FILTER;
  if (small && bits < 8) {
    const why = `${columns} inputs per output channel are few`;
    return instead(constant, integerFormat(8, 'channel', symmetric), why, context);
  }
  if (group === 'channel' || columns % group === 0) return format;
  const smaller = groupSizes.findLast((size) => size < group && columns % size === 0);
  const fallback =
    smaller !== undefined
      ? integerFormat(bits, smaller, symmetric)
      : integerFormat(columns <= 2 * group ? bits : 8, 'channel', symmetric);
  return instead(constant, fallback, `${columns} inputs are no multiple of ${group}`, context);
}

/** Filters with fewer inputs than this are stored in 8 bits at least. */
const SMALL_FILTER = 32;

function instead(
  constant: Value,
  format: IntegerFormat,
  why: string,
  context: PassContext,
): IntegerFormat {
  context.refuse('group', constant, `${why}; stored as ${format.name} instead`);
  return format;
}

/** Replaces one constant. Undefined after saying why it could not be. */
function quantize(
  model: Model,
  sites: Plan['sites'],
  format: IntegerFormat,
  clip: boolean,
  context: PassContext,
  onElements: (done: number) => void,
): QuantizedTensorNote | undefined {
  const [{ constant, rows, columns }] = sites;
  const { weight } = constant;
  if (weight === undefined) return undefined;
  const result = quantizeMatrix(rowsOf(sites[0], weight), format, clip, (done) => {
    throwIfAborted(context.signal);
    onElements(done * columns);
  });
  if ('refused' in result) {
    context.refuse('quantize', constant, result.refused);
    context.log.warn(`"${constant.name}" stays ${weight.dtype}: ${result.refused}.`);
    return undefined;
  }
  insertDequantize(model, sites, result.matrix, context);
  context.count(format.name);
  return {
    name: constant.name,
    format: format.name,
    shape: [rows, columns],
    relativeError: Number(result.relativeError.toPrecision(4)),
    bytes: bytesOfMatrix(result.matrix),
  };
}

function rowsOf(site: WeightSite, weight: Weight): RowSource {
  const { rows, columns, storedTransposed: transposed } = site;
  const bytes = (start: number, length: number): Uint8Array => weight.bytes(start, length);
  return matrixRows({ dtype: weight.dtype, rows, columns, transposed, bytes });
}

function tableFormat(
  settings: Settings,
  format: IntegerFormat | FloatFormat,
): IntegerFormat | FloatFormat | 'keep' {
  if (settings.embeddings === 'same') return format;
  return settings.embeddings === 'keep' ? 'keep' : parseFormat(settings.embeddings);
}

function isTable(constant: Value): boolean {
  return readersOf(constant).some(([node, index]) => node.op === 'Gather' && index === 0);
}

function checkChoice(option: string, value: string, choices: readonly string[]): void {
  if (!choices.includes(value))
    throw new FettleError('USAGE', `Option "${option}" of quantize-weights is "${value}".`, {
      at: { pass: 'quantize-weights', option },
      fix: `Use one of: ${choices.join(', ')}.`,
    });
}

function sizeOf(site: WeightSite): number {
  return site.rows * site.columns;
}
