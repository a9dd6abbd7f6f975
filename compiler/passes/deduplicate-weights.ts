/**
 * Stores equal weights once, found by content: tied embeddings, masks and tables that an exporter
 * wrote per layer.
 *
 *     MatMul(x, w1), MatMul(y, w2), w1 = w2        ->   MatMul(x, w1), MatMul(y, w1)
 *     Gather(t, i),  MatMul(y, w),  w = tᵀ         ->   Gather(t, i),  MatMul(y, Transpose(t))
 *
 * The second form halves the bytes of a tied table. The copy that stays is the one with more rows
 * than columns: that is a table rows are gathered from, and quantization groups run along its rows for
 * both uses. onnxruntime folds a Transpose of a constant when it loads the model. Contents are always
 * compared in full before anything is merged, in pieces, so that a large model is never in memory.
 */
import { dtypes } from '../../runtime/tensor.ts';
import { throwIfAborted } from '../../runtime/errors.ts';
import { ints } from '../ir/attribute.ts';
import type { Graph, Model, Value } from '../ir/graph.ts';
import type { Weight } from '../ir/weight.ts';
import type { Pass, PassContext } from './pass.ts';
import { edgeKey, sameContents, sameTransposed } from './weight-equality.ts';

/** Options of {@link deduplicateWeights}. */
export interface DeduplicateWeightsOptions {
  /** Smallest constant that is looked at, in bytes. Default 64. */
  readonly minBytes?: number;
  /** Smallest matrix that is tied to its own transpose, in bytes. Default 65,536. */
  readonly minTransposedBytes?: number;
}

/** Defaults of {@link DeduplicateWeightsOptions}. */
export const deduplicateWeightsDefaults: Required<DeduplicateWeightsOptions> = {
  minBytes: 64,
  minTransposedBytes: 65_536,
};

/** Makes the pass. */
export function deduplicateWeights(options: DeduplicateWeightsOptions = {}): Pass {
  const settings = { ...deduplicateWeightsDefaults, ...options };
  return {
    name: 'deduplicate-weights',
    options: settings,
    run(model, context) {
      const before = context.rewriter.changes;
      const merged = mergeEqual(model, settings.minBytes, context);
      const tied = tieTransposed(model, settings.minTransposedBytes, context);
      if (merged + tied > 0) context.note('savedBytes', merged + tied);
      return context.rewriter.changes > before;
    },
  };
}

/** Returns the bytes saved. */
function mergeEqual(model: Model, minBytes: number, context: PassContext): number {
  let saved = 0;
  const bySize = groupBy(constantsOf(model, minBytes), ([, value]) => {
    const { dtype, shape } = weightOf(value);
    return `${dtype}[${shape}]`;
  });
  for (const twins of bySize.values()) {
    if (twins.length < 2) continue;
    throwIfAborted(context.signal);
    for (const equals of groupBy(twins, ([, value]) => edgeKey(weightOf(value))).values())
      if (equals.length > 1) saved += mergeGroup(equals, context);
  }
  return saved;
}

function mergeGroup(equals: readonly (readonly [Graph, Value])[], context: PassContext): number {
  const { rewriter } = context;
  let saved = 0;
  const kept: Value[] = [];
  for (const [graph, value] of equals) {
    const weight = weightOf(value);
    const first = kept.find((other) => sameContents(weightOf(other), weight));
    if (first === undefined) {
      // only a constant of the main graph can be used from everywhere
      if (graph === rewriter.model.graph) kept.push(value);
    } else if (value.isOutput) context.refuse('equal', value, 'it is an output of a graph');
    else {
      rewriter.replaceUses(value, first);
      rewriter.removeConstant(graph, value);
      context.count('equal');
      saved += weight.byteLength;
    }
  }
  return saved;
}

/** Returns the bytes saved. */
function tieTransposed(model: Model, minBytes: number, context: PassContext): number {
  const { rewriter } = context;
  let saved = 0;
  const matrices = constantsOf(model, minBytes).filter(([graph, value]) => {
    const { dtype, shape } = weightOf(value);
    // packed elements cannot be transposed as bytes, and a square matrix has no natural side
    return (
      graph === model.graph &&
      shape.length === 2 &&
      shape[0] !== shape[1] &&
      dtypes[dtype].bits >= 8
    );
  });
  const tall = matrices.filter(([, value]) => isTall(weightOf(value)));
  const wide = matrices.filter(([, value]) => !isTall(weightOf(value)));
  for (const [, table] of tall)
    for (const [graph, value] of wide) {
      const [a, b] = [weightOf(table), weightOf(value)];
      if (a.dtype !== b.dtype || a.shape[0] !== b.shape[1] || a.shape[1] !== b.shape[0]) continue;
      if (value.useCount === 0 || !graph.constants.has(value)) continue;
      throwIfAborted(context.signal);
      if (!sameTransposed(a, b)) continue;
      if (value.isOutput) {
        context.refuse('transposed', value, 'it is an output of the graph');
        continue;
      }
      const first = model.graph.nodes().next().value;
      if (first === undefined) continue;
      const transposed = rewriter
        .before(first)
        .op('Transpose', [table], { perm: ints([1, 0]) }, { name: `${value.name}_tied`, from: [] });
      [value.name, transposed.name] = [transposed.name, value.name];
      rewriter.replaceUses(value, transposed);
      rewriter.removeConstant(graph, value);
      context.count('transposed');
      context.note(`tied:${transposed.name}`, `transpose of ${table.name}`);
      saved += b.byteLength;
    }
  return saved;
}

function isTall({ shape }: Weight): boolean {
  return (shape[0] ?? 0) > (shape[1] ?? 0);
}

function constantsOf(model: Model, minBytes: number): (readonly [Graph, Value])[] {
  const found: (readonly [Graph, Value])[] = [];
  for (const graph of model.graph.allGraphs())
    for (const value of graph.constants)
      if (weightOf(value).byteLength >= minBytes && weightOf(value).dtype !== 'string')
        found.push([graph, value]);
  return found;
}

function weightOf(value: Value): Weight {
  if (value.weight === undefined) throw new TypeError(`"${value.name}" is no constant.`);
  return value.weight;
}

function groupBy<T>(items: readonly T[], keyOf: (item: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const item of items) {
    const key = keyOf(item);
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [item]);
    else group.push(item);
  }
  return groups;
}
