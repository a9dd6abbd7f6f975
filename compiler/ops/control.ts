/**
 * Ops with subgraphs: If, Loop, Scan (the form of opset 8 and the one since 9). A subgraph may read
 * values of the graphs around it, so that it runs in the scope of its node.
 */
import { FettleError, assert } from '../../runtime/errors.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { zeros } from '../../runtime/tensor.ts';
import type { Dim } from '../ir/dim.ts';
import type { Graph, ValueType } from '../ir/graph.ts';
import type { EvaluateContext, InferContext, OpDefinition } from './definition.ts';
import { filled, gatherElements, readBigInts, readScalar } from './numbers.ts';
import { concatTensors } from './rearrange.ts';
import { takePositions } from './shapes.ts';
import type { OpPlace } from './support.ts';
import { normalizeAxis, onnxOp, opError } from './support.ts';

function subgraphOf(context: OpPlace, name: string): Graph {
  const graph = context.node.subgraph(name);
  if (graph === undefined) throw opError(context, `attribute "${name}" is missing`);
  return graph;
}

/** What is true of both types; sizes that differ become anonymous. */
function commonType(context: InferContext, a: ValueType, b: ValueType): ValueType {
  const dtype = a.dtype === b.dtype ? a.dtype : undefined;
  const { shape: left } = a;
  const { shape: right } = b;
  if (left === undefined || right === undefined || left.length !== right.length) return { dtype };
  return { dtype, shape: left.map((dim, i) => (dim === right[i] ? dim : context.fresh())) };
}

/**
 * The attribute of an If that holds the branch taken, when the condition is known. The other branch
 * may be wrong for the sizes at hand (exporters write "if the size is 1, squeeze it"), so that nothing
 * looks into it.
 */
export function takenBranch(condition: Dim | undefined): 'then_branch' | 'else_branch' | undefined {
  if (typeof condition !== 'number') return undefined;
  return condition !== 0 ? 'then_branch' : 'else_branch';
}

/** Types when either branch may be taken. A branch that cannot run at these sizes is not. */
function inferEither(context: InferContext, ...names: [string, string]): readonly ValueType[] {
  const failures: FettleError[] = [];
  const types: (readonly ValueType[])[] = [];
  for (const name of names) {
    try {
      types.push(context.graph(subgraphOf(context, name), []));
    } catch (error) {
      if (!(error instanceof FettleError)) throw error;
      failures.push(error);
    }
  }
  const [first, second] = types;
  const [failure] = failures;
  if (first === undefined && failure !== undefined) throw failure;
  if (failure !== undefined)
    context.warn(`${context.node.describe()}: one branch cannot run: ${failure.message}`);
  if (first === undefined || second === undefined) return first ?? [];
  return first.map((type, i) => commonType(context, type, second[i] ?? {}));
}

const ifOp = onnxOp('If', [1, 1], [1, Infinity], {
  infer: (context) => {
    const taken = takenBranch(context.elements(0)?.[0]);
    if (taken !== undefined) return context.graph(subgraphOf(context, taken), []);
    return inferEither(context, 'then_branch', 'else_branch');
  },
  evaluate: (context) => {
    const taken = takenBranch(readScalar(context.input(0)));
    return context.graph(subgraphOf(context, taken ?? 'else_branch'), []);
  },
});

/** Types of the values a loop carries, such that the body maps them to themselves. */
function inferCarried(
  context: InferContext,
  carried: readonly ValueType[],
  run: (types: readonly ValueType[]) => readonly ValueType[],
): { readonly carried: readonly ValueType[]; readonly results: readonly ValueType[] } {
  // contents and sizes hold for the first iteration only; sizes that change become anonymous
  const free = new Set<Dim>();
  const freed = { ...context, fresh: () => remember(free, context.fresh()) };
  let types: readonly ValueType[] = carried.map(({ dtype, shape }) => ({ dtype, shape }));
  for (;;) {
    const results = run(types);
    const next = types.map((type, i) => {
      const result = results[i] ?? {};
      return isInvariant(type, result, free) ? type : commonType(freed, type, result);
    });
    // every round makes a size anonymous or a type unknown, so this ends
    if (next.every((type, i) => type === types[i])) return { carried: types, results };
    types = next;
  }
}

function remember(dims: Set<Dim>, dim: Dim): Dim {
  dims.add(dim);
  return dim;
}

/** Whether what the body gives is covered by what it was given. */
function isInvariant(type: ValueType, result: ValueType, free: ReadonlySet<Dim>): boolean {
  if (type.dtype !== undefined && type.dtype !== result.dtype) return false;
  const { shape } = type;
  if (shape === undefined) return true;
  return (
    shape.length === result.shape?.length &&
    shape.every((dim, i) => dim === result.shape?.[i] || free.has(dim))
  );
}

function stackedType(type: ValueType | undefined, count: Dim, axis = 0): ValueType {
  const { dtype, shape } = type ?? {};
  if (shape === undefined) return { dtype };
  const at = axis < 0 ? axis + shape.length + 1 : axis;
  return { dtype, shape: [...shape.slice(0, at), count, ...shape.slice(at)] };
}

/** Iterations of a loop that no condition ends; "forever" is written as a huge number. */
function tripCount(limit: Dim | undefined): Dim | undefined {
  if (typeof limit !== 'number') return limit;
  return limit < 2 ** 31 - 1 ? Math.max(0, limit) : undefined;
}

// the trip count, the condition and the lengths of opset 8 may be absent
const loopOp = onnxOp('Loop', [0, Infinity], [0, Infinity], {
  infer: (context) => {
    const body = subgraphOf(context, 'body');
    const count = context.node.inputs.length - 2;
    const initial = Array.from({ length: count }, (_, i) => context.input(i + 2));
    const fixed: ValueType[] = [
      { dtype: 'i64', shape: [] },
      // the body only runs when the condition holds
      { dtype: 'bool', shape: [], elements: [1] },
    ];
    let next: ValueType = {};
    const { carried, results } = inferCarried(context, initial, (types) => {
      const [condition = {}, ...rest] = context.graph(body, [...fixed, ...types]);
      next = condition;
      return rest;
    });
    const runsOut = next.elements?.[0] === 1 && (!context.has(1) || context.elements(1)?.[0] === 1);
    const trips = (runsOut ? tripCount(context.elements(0)?.[0]) : undefined) ?? context.fresh();
    return [...carried, ...results.slice(count).map((type) => stackedType(type, trips))];
  },
  evaluate: (context) => {
    const body = subgraphOf(context, 'body');
    const [limit, condition, ...initial] = context.inputs;
    const most = limit === undefined ? undefined : readBigInts(limit)[0];
    let goesOn = condition === undefined || readScalar(condition) !== 0;
    let carried: readonly (Tensor | undefined)[] = initial;
    const scanned: Tensor[][] = body.outputs.slice(1 + initial.length).map(() => []);
    for (let trip = 0n; goesOn && (most === undefined || trip < most); trip++) {
      const iteration: Tensor = { dtype: 'i64', shape: [], data: BigInt64Array.of(trip) };
      const results = context.graph(body, [iteration, filled('bool', [], 1), ...carried]);
      const [next] = results;
      assert(next !== undefined, 'a loop body has no condition');
      goesOn = readScalar(next) !== 0;
      carried = results.slice(1, 1 + initial.length);
      results.slice(1 + initial.length).forEach((tensor, i) => scanned[i]?.push(tensor));
    }
    const outputs = body.outputs.slice(1 + initial.length);
    return [...carried, ...scanned.map((parts, i) => stack(parts, 0, outputs[i] ?? {}))];
  },
});

/** Tensors joined along a new axis; `type` says what an empty list would have held. */
function stack(parts: readonly Tensor[], axis: number, type: ValueType): Tensor {
  const [first] = parts;
  if (first === undefined) {
    const shape = (type.shape ?? []).map((dim) => (typeof dim === 'number' ? dim : 0));
    return zeros(type.dtype ?? 'f32', [...shape.slice(0, axis), 0, ...shape.slice(axis)]);
  }
  const at = axis < 0 ? axis + first.shape.length + 1 : axis;
  const shape = [...first.shape.slice(0, at), 1, ...first.shape.slice(at)];
  return concatTensors(
    parts.map((tensor) => ({ ...tensor, shape })),
    at,
  );
}

/** One position of an axis, the axis dropped. */
function sliceAt(tensor: Tensor, axis: number, position: number): Tensor {
  const positions: number[][] = [];
  positions[axis] = [position];
  const { shape, indices } = takePositions(tensor.shape, positions);
  return gatherElements(
    tensor,
    shape.filter((_, i) => i !== axis),
    indices,
  );
}

/** The parts of a Scan node since opset 9. */
interface ScanLayout {
  readonly body: Graph;
  readonly states: number;
  readonly scans: number;
  inputAxis(scan: number, rank: number): number;
  inputReversed(scan: number): boolean;
  outputAxis(scan: number): number;
  outputReversed(scan: number): boolean;
}

function scanLayout(context: OpPlace & { readonly opset: number }): ScanLayout {
  const { node } = context;
  const scans = node.int('num_scan_inputs', 0);
  const first = context.opset < 9 ? 1 : 0;
  const inputAxes = node.ints('scan_input_axes');
  const outputAxes = node.ints('scan_output_axes');
  const inputDirections = node.ints('scan_input_directions') ?? node.ints('directions');
  const outputDirections = node.ints('scan_output_directions');
  return {
    body: subgraphOf(context, 'body'),
    states: node.inputs.length - first - scans,
    scans,
    inputAxis: (scan, rank) => normalizeAxis(context, inputAxes?.[scan] ?? 0, rank),
    inputReversed: (scan) => inputDirections?.[scan] === 1,
    outputAxis: (scan) => outputAxes?.[scan] ?? 0,
    outputReversed: (scan) => outputDirections?.[scan] === 1,
  };
}

function inferScan(context: InferContext): readonly ValueType[] {
  const layout = scanLayout(context);
  const batched = context.opset < 9;
  const types = Array.from({ length: layout.states + layout.scans }, (_, i) =>
    context.input(batched ? i + 1 : i),
  );
  const batch: Dim = types.find(({ shape }) => shape !== undefined)?.shape?.[0] ?? context.fresh();
  const unbatched = batched
    ? types.map(({ dtype, shape }) => ({ dtype, shape: shape?.slice(1) }))
    : types;
  let count: Dim | undefined;
  const sliced = unbatched.slice(layout.states).map(({ dtype, shape }, scan) => {
    if (shape === undefined) return { dtype };
    const axis = layout.inputAxis(scan, shape.length);
    count ??= shape[axis];
    return { dtype, shape: shape.filter((_, i) => i !== axis) };
  });
  const { carried, results } = inferCarried(context, unbatched.slice(0, layout.states), (states) =>
    context.graph(layout.body, [...states, ...sliced]),
  );
  const steps = count ?? context.fresh();
  const stacked = results
    .slice(layout.states)
    .map((type, scan) => stackedType(type, steps, layout.outputAxis(scan)));
  const outputs = [...carried, ...stacked];
  return batched ? outputs.map((type) => stackedType(type, batch)) : outputs;
}

function runScan(
  context: EvaluateContext,
  layout: ScanLayout,
  inputs: readonly Tensor[],
  length?: number,
): readonly Tensor[] {
  let states: readonly Tensor[] = inputs.slice(0, layout.states);
  const scans = inputs.slice(layout.states);
  const axes = scans.map(({ shape }, scan) => layout.inputAxis(scan, shape.length));
  const steps = length ?? scans[0]?.shape[axes[0] ?? 0] ?? 0;
  const outputs = layout.body.outputs.slice(layout.states);
  const collected: Tensor[][] = outputs.map(() => []);
  for (let step = 0; step < steps; step++) {
    const slices = scans.map((tensor, scan) =>
      sliceAt(tensor, axes[scan] ?? 0, layout.inputReversed(scan) ? steps - 1 - step : step),
    );
    const results = context.graph(layout.body, [...states, ...slices]);
    states = results.slice(0, layout.states);
    results.slice(layout.states).forEach((tensor, scan) => {
      if (layout.outputReversed(scan)) collected[scan]?.unshift(tensor);
      else collected[scan]?.push(tensor);
    });
  }
  const stacked = collected.map((parts, scan) =>
    stack(parts, layout.outputAxis(scan), outputs[scan] ?? {}),
  );
  return [...states, ...stacked];
}

const scanOp = onnxOp('Scan', [0, Infinity], [1, Infinity], {
  infer: inferScan,
  evaluate: (context) => {
    const layout = scanLayout(context);
    const first = context.opset < 9 ? 1 : 0;
    const inputs = Array.from({ length: layout.states + layout.scans }, (_, i) =>
      context.input(i + first),
    );
    if (first === 0) return runScan(context, layout, inputs);
    // opset 8: a batch axis in front of everything, and a length for each batch row
    const lengths = context.inputs[0] && readBigInts(context.inputs[0]);
    const batch = inputs[0]?.shape[0] ?? 0;
    const rows = Array.from({ length: batch }, (_, row) => {
      const own = inputs.map((tensor) => sliceAt(tensor, 0, row));
      const length = lengths?.[row];
      return runScan(context, layout, own, length === undefined ? undefined : Number(length));
    });
    return context.node.outputs.map((_, i) => {
      const parts = rows.map((row) => row[i]).filter((tensor) => tensor !== undefined);
      return stack(parts, 0, {});
    });
  },
});

/** Ops with subgraphs. */
export const controlOps: readonly OpDefinition[] = [ifOp, loopOp, scanOp];
