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
import { Algebra } from '../algebra/algebra.ts';
import { unitRoles } from '../analyze/unit-roles.ts';
import type { Model, Value } from '../ir/graph.ts';
import type { CodeFormat, WeightFormat } from '../quant/formats.ts';
import { parseFormat } from '../quant/formats.ts';
import type { QuantizedMatrix, QuantizeResult } from '../quant/matrix.ts';
import { quantizeToCodebook } from '../quant/learned-codebook.ts';
import { quantizeMatrix } from '../quant/matrix.ts';
import { bytesOfMatrix, insertDequantize } from './insert-dequantize.ts';
import type { Pass, PassContext } from './pass.ts';
import type { QuantizedTensorNote } from './store-halves.ts';
import { storeHalves } from './store-halves.ts';
import { turn } from '../turn.ts';
import type { ConvolutionChoice, WeightUnit } from './weight-units.ts';
import { eachUnit, isTable, MIN_UNIT_ELEMENTS, unitFormat, unitRows } from './weight-units.ts';

/** What one constant is stored as. */
export interface Assignment {
  /** Its format; `f32` keeps it as it is. */
  readonly format: WeightFormat;
  /** Its codes, when they are already chosen; else they are rounded to nearest. */
  readonly matrix?: QuantizedMatrix;
  /** `‖W - Ŵ‖² / ‖W‖²` of `matrix`. */
  readonly relativeError?: number;
}

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
  /** By the name of a constant: a format of its own, and perhaps its codes. Default none. */
  readonly assignments?: ReadonlyMap<string, Assignment>;
}

/** Defaults of {@link QuantizeWeightsOptions}. */
export const quantizeWeightsDefaults: Required<QuantizeWeightsOptions> = {
  format: 'f32',
  skip: [],
  minElements: MIN_UNIT_ELEMENTS,
  embeddings: 'same',
  convolutions: 'auto',
  clip: true,
  assignments: new Map(),
};

interface Settings extends Required<QuantizeWeightsOptions> {
  readonly convolutions: ConvolutionChoice;
}

/** Makes the pass. @throws FettleError USAGE for a format or choice that does not exist */
export function quantizeWeights(options: QuantizeWeightsOptions = {}): Pass {
  const { convolutions, ...rest } = { ...quantizeWeightsDefaults, ...options };
  const settings = { ...rest, convolutions: convolutionChoice(convolutions) };
  const format = parseFormat(settings.format);
  const tables = tableFormat(settings, format);
  return {
    name: 'quantize-weights',
    options: settings,
    async run(model, context) {
      const before = context.rewriter.changes;
      const notes: QuantizedTensorNote[] = [];
      const wanted = (constant: Value): Wanted =>
        settings.assignments.get(constant.name)?.format ?? (isTable(constant) ? tables : format);
      const plan = planOf(model, settings, wanted, context);
      const roles = unitRoles(
        model,
        plan.map(({ unit }) => unit),
      );
      const total = plan.reduce((sum, { unit }) => sum + sizeOf(unit), 0);
      const algebra = await Algebra.create();
      let done = 0;
      for (const planned of plan) {
        await turn(context.signal);
        const note = quantize(
          model,
          planned,
          { algebra, clip: settings.clip },
          context,
          (elements) => context.progress('quantize weights', done + elements, total),
        );
        if (note !== undefined) notes.push({ ...note, ...roles.get(note.name) });
        done += sizeOf(planned.unit);
      }
      const isHalf = (constant: Value): boolean => {
        const chosen = wanted(constant);
        return chosen !== 'keep' && chosen.name === 'f16';
      };
      notes.push(...storeHalves(model, settings, isHalf, context));
      if (notes.length > 0) context.note('tensors', notes);
      return context.rewriter.changes > before;
    },
  };
}

type Wanted = WeightFormat | 'keep';

/** A unit and what it is stored as. */
interface Planned {
  readonly unit: WeightUnit;
  readonly format: CodeFormat;
  readonly assigned: Assignment | undefined;
}

/** Which constants are quantized, in the order in which the model first reads them. */
function planOf(
  model: Model,
  settings: Settings,
  wanted: (constant: Value) => Wanted,
  context: PassContext,
): Planned[] {
  const plans: Planned[] = [];
  const units = eachUnit(model, settings, (rule, at, why) => context.refuse(rule, at, why));
  for (const unit of units) {
    const { constant } = unit;
    const assigned = settings.assignments.get(unit.name);
    const chosen = wanted(constant);
    if (chosen === 'keep') context.refuse('table', constant, 'tables are kept by option');
    else if (chosen.kind !== 'float') {
      if (assigned?.matrix !== undefined) {
        plans.push({ unit, format: chosen, assigned });
        continue;
      }
      const fitting = unitFormat(unit, chosen, settings.convolutions);
      if ('refused' in fitting) {
        context.refuse('convolution', constant, fitting.refused);
        continue;
      }
      const { format, why } = fitting;
      if (why !== undefined)
        context.refuse('group', constant, `${why}; stored as ${format.name} instead`);
      plans.push({ unit, format, assigned });
    }
  }
  return plans;
}

/** Replaces one constant. Undefined after saying why it could not be. */
function quantize(
  model: Model,
  { unit, format, assigned }: Planned,
  { algebra, clip }: { readonly algebra: Algebra; readonly clip: boolean },
  context: PassContext,
  onElements: (done: number) => void,
): QuantizedTensorNote | undefined {
  const { constant, sites, rows, columns } = unit;
  const { weight } = constant;
  if (weight === undefined) return undefined;
  const onRows = (done: number): void => {
    throwIfAborted(context.signal);
    onElements(done * columns);
  };
  const result =
    givenMatrix(unit, assigned) ??
    (format.kind === 'codebook'
      ? quantizeToCodebook(unitRows(unit), format, { onRows })
      : quantizeMatrix(unitRows(unit), format, algebra, clip, onRows));
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

/** Codes that the caller chose, checked against the unit they are for. */
function givenMatrix(unit: WeightUnit, assigned?: Assignment): QuantizeResult | undefined {
  const matrix = assigned?.matrix;
  if (matrix === undefined) return undefined;
  const { name, rows, columns } = unit;
  if (matrix.rows !== rows || matrix.columns !== columns)
    throw new FettleError(
      'USAGE',
      `The codes for "${name}" are ${matrix.rows} x ${matrix.columns}; it is ${rows} x ${columns}.`,
      {
        at: { pass: 'quantize-weights', value: name },
        fix: 'Round the matrix of this very model.',
      },
    );
  return { matrix, relativeError: assigned?.relativeError ?? 0 };
}

function tableFormat(settings: Required<QuantizeWeightsOptions>, format: WeightFormat): Wanted {
  if (settings.embeddings === 'same') return format;
  return settings.embeddings === 'keep' ? 'keep' : parseFormat(settings.embeddings);
}

function convolutionChoice(value: string): ConvolutionChoice {
  if (value === 'all' || value === 'none' || value === 'auto') return value;
  throw new FettleError('USAGE', `Option "convolutions" of quantize-weights is "${value}".`, {
    at: { pass: 'quantize-weights', option: 'convolutions' },
    fix: 'Use one of: all, none, auto.',
  });
}

function sizeOf({ rows, columns }: WeightUnit): number {
  return rows * columns;
}
