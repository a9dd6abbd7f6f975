/**
 * Recognises layer and RMS normalization over the last axis in any spelling.
 *
 *     m = ReduceMean(Pow(x, 2)); Mul(Mul(x, Div(1, Sqrt(Add(m, e)))), g)    ->   fettle.Norm(x, g) {kind = "rms"}
 *     LayerNormalization(x, g, b)                                           ->   fettle.Norm(x, g, b) {kind = "layer"}
 *     SkipSimplifiedLayerNormalization(x, s, g)                             ->   fettle.Norm(x, g, , s), and the sum
 *
 * Spread-out norms are recognised by meaning: what lies between the end of the chain and the one value it
 * depends on is evaluated on chosen rows, in doubles. Norms are odd functions apart from their bias, so
 * the rows v and -v give gain and bias (casts, 1 + g and sqrt(D) factors included) exactly, and further
 * rows, tiny ones among them, show the kind and the epsilon. Refuses what has the parts of a norm and is
 * none.
 *
 * Source: https://arxiv.org/abs/1607.06450, https://arxiv.org/abs/1910.07467; the fused ops are those of
 * ONNX 17 and 23 and of onnxruntime's ContribOperators.md.
 */
import { tensor } from '../../runtime/tensor.ts';
import { NodeOrder, dominators, escapingValue } from '../analyze/dominators.ts';
import { probe } from '../analyze/probe.ts';
import type { Attributes } from '../ir/attribute.ts';
import { float, string } from '../ir/attribute.ts';
import { sameShape } from '../ir/dim.ts';
import type { Model, Node, Value } from '../ir/graph.ts';
import type { NormKind } from '../ops/fused-norm.ts';
import { normalizeRows } from '../ops/norm.ts';
import { readNumbers, writeNumbers } from '../ops/numbers.ts';
import { internalDomain } from '../ops/quantized.ts';
import { uniformValueOf } from './constants.ts';
import { removeAll } from './fuse-activation.ts';
import type { Pass, PassContext } from './pass.ts';
import { removeIfUnused, replaceByNew } from './replace.ts';

/** Makes the pass. It has no options. */
export function fuseNorm(): Pass {
  return {
    name: 'fuse-norm',
    options: {},
    rules: [
      { name: 'rms', starts: ['ReduceMean'] },
      { name: 'layer', starts: ['ReduceMean'] },
      ...[...new Set(Object.keys(fusedForms).map(opOf))].map((name) => ({
        name,
        starts: Object.keys(fusedForms)
          .filter((form) => opOf(form) === name)
          .map((form) => form.replace(/^\./, '')),
      })),
    ],
    run(model, context) {
      const before = context.rewriter.changes;
      const order = new NodeOrder();
      for (const node of model.graph.allNodes()) {
        if (fromFused(node, context)) continue;
        if (node.op === 'ReduceMean' && node.domain === '') fromSpread(model, node, order, context);
      }
      return context.rewriter.changes > before;
    },
  };
}

/** Where fused ops keep what a Norm has. */
interface FusedForm {
  readonly kind: NormKind;
  readonly gain: number;
  readonly bias?: number;
  readonly skip?: number;
  readonly skipBias?: number;
  /** Output of the sum. */
  readonly sum?: number;
  readonly epsilon: number;
}

const fusedForms: Readonly<Record<string, FusedForm>> = {
  '.LayerNormalization': { kind: 'layer', gain: 1, bias: 2, epsilon: 1e-5 },
  '.RMSNormalization': { kind: 'rms', gain: 1, epsilon: 1e-5 },
  '.SimplifiedLayerNormalization': { kind: 'rms', gain: 1, epsilon: 1e-5 },
  'com.microsoft.SimplifiedLayerNormalization': { kind: 'rms', gain: 1, epsilon: 1e-5 },
  'com.microsoft.SkipLayerNormalization': {
    kind: 'layer',
    gain: 2,
    bias: 3,
    skip: 1,
    skipBias: 4,
    sum: 3,
    epsilon: 1e-12,
  },
  'com.microsoft.SkipSimplifiedLayerNormalization': {
    kind: 'rms',
    gain: 2,
    skip: 1,
    skipBias: 3,
    sum: 3,
    epsilon: 1e-12,
  },
};

/** The op of a form, without its domain. */
function opOf(form: string): string {
  return form.slice(form.lastIndexOf('.') + 1);
}

/** Replaces an op that is a norm already; false when it is none. */
function fromFused(node: Node, context: PassContext): boolean {
  const key = `${node.domain}.${node.op}`;
  const form = Object.hasOwn(fusedForms, key) ? fusedForms[key] : undefined;
  if (form === undefined) return false;
  const { rewriter } = context;
  const x = node.input(0);
  const rank = x.shape?.length;
  const axis = node.int('axis', -1);
  const statistics = node.outputs.filter((_, index) => index > 0 && index !== form.sum);
  const skip = form.skip === undefined ? undefined : node.inputs[form.skip];
  const why =
    axis !== -1 && axis + 1 !== rank
      ? `it normalizes over more than the last axis (axis ${axis})`
      : statistics.some((output) => (output?.useCount ?? 0) > 0)
        ? 'its statistics are used'
        : skip !== undefined && !sameShape(skip.shape, x.shape)
          ? 'the residual has another shape'
          : node.inputs[form.gain]?.dtype !== x.dtype
            ? 'its gain has another dtype'
            : undefined;
  if (why !== undefined) {
    context.refuse(node.op, node, why);
    return true;
  }
  const at = (index: number | undefined): Value | undefined =>
    index === undefined ? undefined : node.inputs[index];
  rewriter.before(node);
  const sum = form.sum === undefined ? undefined : node.outputs[form.sum];
  const inputs = trimmed([x, at(form.gain), at(form.bias), skip, at(form.skipBias)]);
  const made = rewriter.node(
    'Norm',
    inputs,
    attributesOf(form.kind, node.float('epsilon', form.epsilon)),
    {
      domain: internalDomain,
      outputs: (sum?.useCount ?? 0) > 0 ? 2 : 1,
      from: node.from,
    },
  );
  const [y] = node.outputs;
  if (sum !== undefined && sum.useCount > 0) replaceByNew(rewriter, sum, made.output(1));
  if (y !== undefined) replaceByNew(rewriter, y, made.output(0));
  removeIfUnused(rewriter, node);
  context.count(node.op);
  return true;
}

function attributesOf(kind: NormKind, epsilon: number): Attributes {
  return { kind: string(kind), epsilon: float(epsilon) };
}

function trimmed(inputs: readonly (Value | undefined)[]): (Value | undefined)[] {
  const result = [...inputs];
  while (result.length > 0 && result.at(-1) === undefined) result.pop();
  return result;
}

/** Ops a spread-out norm is made of. */
const parts: ReadonlySet<string> = new Set([
  'ReduceMean',
  'Pow',
  'Mul',
  'Div',
  'Add',
  'Sub',
  'Sqrt',
  'Reciprocal',
  'Cast',
  'Identity',
  'Neg',
  'Clip',
  'Max',
  'Expand',
  'Abs',
]);

/** What lies behind a mean and may still belong to the norm; reached from the ReduceMean forwards. */
function ends(mean: Node): readonly Value[] {
  const found: Value[] = [];
  const seen = new Set<Node>();
  const walk = (value: Value, depth: number): void => {
    if (depth > 12) return;
    for (const user of value.users.keys()) {
      if (seen.has(user) || user.domain !== '' || !parts.has(user.op)) continue;
      seen.add(user);
      const output = user.output(0);
      const columns = output.shape?.at(-1);
      if (typeof columns === 'number' && columns > 1) found.push(output);
      walk(output, depth + 1);
    }
  };
  walk(mean.output(0), 0);
  return found;
}

function fromSpread(model: Model, mean: Node, order: NodeOrder, context: PassContext): void {
  // the end of the chain first: gain, bias and casts belong to it
  const candidates = [...ends(mean)].sort((a, b) => order.of(b) - order.of(a));
  let nearMiss: { readonly node: Node; readonly why: string } | undefined;
  for (const root of candidates)
    for (const { value, nodes } of [...dominators(root, order, normInputsOf)].reverse()) {
      if (!nodes.has(mean) || value.weight !== undefined) continue;
      if (value.dtype !== root.dtype || !sameShape(value.shape, root.shape)) continue;
      const found = recognise(model, value, root, nodes);
      if (found === undefined) continue;
      const node = root.producer;
      if (node === undefined) continue;
      const escaping = escapingValue(nodes, root);
      if (escaping !== undefined) {
        nearMiss ??= { node, why: `its part "${escaping.name}" is used elsewhere` };
        continue;
      }
      replace(value, root, nodes, found, context);
      return;
    }
  const rule = kindOf(mean);
  if (nearMiss !== undefined) context.refuse(rule, nearMiss.node, nearMiss.why);
  else if (candidates.some((value) => hasRoot(value)))
    context.refuse(rule, mean, 'what follows the mean is no layer or RMS norm of the last axis');
  else context.miss(rule, mean, 'nothing that follows it divides by a root');
}

/** Which norm a mean would belong to: one of squares, or of squared differences from a mean. */
function kindOf(mean: Node): NormKind {
  const square = mean.input(0).producer;
  const isSquare = square?.op === 'Pow' || square?.op === 'Mul';
  return isSquare && square.input(0).producer?.op !== 'Sub' ? 'rms' : 'layer';
}

function hasRoot(value: Value): boolean {
  return [...(value.producer?.inputs ?? [])].some(
    (input) => input?.producer?.op === 'Sqrt' || input?.producer?.op === 'Reciprocal',
  );
}

/** Inputs that are no constants of a row's size or smaller. */
function normInputsOf(node: Node): readonly Value[] | undefined {
  if (node.domain !== '' || !parts.has(node.op)) return undefined;
  const inputs = node.inputs.filter(
    (input): input is Value => input !== undefined && input.weight === undefined,
  );
  const constants = node.inputs.filter((input) => input?.weight !== undefined);
  const isRow = constants.every((input) =>
    (input?.weight?.shape ?? []).slice(0, -1).every((dim) => dim === 1),
  );
  return isRow ? inputs : undefined;
}

/** A recognised norm: parameters as they act, gains of 1 + g added up. */
interface Found {
  readonly kind: NormKind;
  readonly epsilon: number;
  readonly gain: Float64Array;
  readonly bias: Float64Array;
}

/** Relative difference of spellings: constants are rounded to f32 and f16, sums are in doubles. */
const SAME = 1e-6;

function recognise(
  model: Model,
  x: Value,
  root: Value,
  nodes: ReadonlySet<Node>,
): Found | undefined {
  const columns = x.shape?.at(-1);
  const rank = x.shape?.length ?? 0;
  if (typeof columns !== 'number' || columns < 2 || rank < 2) return undefined;
  if (x.dtype !== 'f32') return undefined;
  const run = (rows: readonly Float64Array[]): Float64Array | undefined => {
    const data = new Float64Array(rows.length * columns);
    rows.forEach((row, index) => data.set(row, index * columns));
    const shape = [...Array.from({ length: rank - 2 }, () => 1), rows.length, columns];
    const given = new Map([[x, writeNumbers('f64', shape, data)]]);
    const got = probe(model, root, { sizes: new Map(), given, exact: true });
    return got?.data.length === data.length ? Float64Array.from(readNumbers(got)) : undefined;
  };
  const rows = sampleRows(columns);
  const both = run(rows.flatMap((row) => [row, row.map((value) => -value)]));
  if (both === undefined) return undefined;
  const flat = new Float64Array(rows.length * columns);
  rows.forEach((row, index) => flat.set(row, index * columns));
  for (const epsilon of epsilonsOf(nodes))
    for (const kind of ['rms', 'layer'] as const) {
      const { values } = normalizeRows(flat, columns, epsilon, kind === 'layer');
      const found = parametersOf(both, values, columns);
      if (found !== undefined) return { kind, epsilon, ...found };
    }
  return undefined;
}

/** Independent rows of ordinary size with and without a mean, and tiny ones, where the epsilon shows. */
function sampleRows(columns: number): readonly Float64Array[] {
  let state = 1;
  const row = (size: number, shift: number): Float64Array =>
    Float64Array.from({ length: columns }, (_, i) => {
      // a linear congruential generator: the rows only have to be unlike each other
      state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
      const sign = (i + (state >>> 30)) % 2 === 0 ? 1 : -1;
      return Math.fround(size * sign * (0.75 + state / 2 ** 33) + shift);
    });
  return [row(1, 0), row(1, 0.5), row(1e-3, 0), row(1e-2, 2e-3), row(30, -10)];
}

/** Gain and bias that explain outputs by normalized rows, or undefined when none do. */
function parametersOf(
  both: Float64Array,
  normalized: Float64Array,
  columns: number,
): { gain: Float64Array; bias: Float64Array } | undefined {
  const rows = normalized.length / columns;
  const gain = new Float64Array(columns);
  const bias = new Float64Array(columns);
  for (let column = 0; column < columns; column++) {
    const [plus = 0, minus = 0] = [both[column], both[columns + column]];
    bias[column] = (plus + minus) / 2;
    gain[column] = (plus - minus) / 2 / (normalized[column] ?? 1);
  }
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++) {
      const [g = 0, b = 0, n = 0] = [
        gain[column],
        bias[column],
        normalized[row * columns + column],
      ];
      const [plus = NaN, minus = NaN] = [
        both[2 * row * columns + column],
        both[(2 * row + 1) * columns + column],
      ];
      const allowed = SAME * (Math.abs(g) + Math.abs(b) + Math.abs(g * n));
      if (!(Math.abs(plus - g * n - b) <= allowed && Math.abs(minus + g * n - b) <= allowed))
        return undefined;
    }
  return gain.every((value) => value === 0) ? undefined : { gain, bias };
}

/** Small numbers of the graph piece, largest first, and none. */
function epsilonsOf(nodes: ReadonlySet<Node>): readonly number[] {
  const found = new Set<number>();
  for (const node of nodes)
    for (const input of node.inputs) {
      const number = input?.weight === undefined ? undefined : uniformValueOf(input);
      if (number !== undefined && number > 0 && number < 0.1) found.add(number);
    }
  return [...[...found].sort((a, b) => b - a), 0];
}

function replace(
  x: Value,
  root: Value,
  nodes: ReadonlySet<Node>,
  found: Found,
  context: PassContext,
): void {
  const { rewriter } = context;
  const { producer } = root;
  if (producer === undefined) return;
  rewriter.before(producer);
  const [gain, bias] = [
    parameter(found.gain, 1, nodes, `${root.name}_gain`, context),
    parameter(found.bias, 0, nodes, `${root.name}_bias`, context),
  ];
  const from = [...new Set([...nodes].flatMap((node) => node.from))];
  const y = rewriter.op('Norm', trimmed([x, gain, bias]), attributesOf(found.kind, found.epsilon), {
    domain: internalDomain,
    from,
  });
  replaceByNew(rewriter, root, y);
  removeAll(nodes, context);
  context.count(found.kind);
}

/** The constant of the model that a parameter is, a new one, or none when it is `neutral` throughout. */
function parameter(
  exact: Float64Array,
  neutral: number,
  nodes: ReadonlySet<Node>,
  name: string,
  context: PassContext,
): Value | undefined {
  // half the difference of two rows of about 1, in doubles: what is smaller is no bias
  const values = Float32Array.from(exact, (value) => (Math.abs(value) < 1e-14 ? 0 : value));
  if (values.every((value) => value === neutral)) return undefined;
  for (const node of nodes)
    for (const input of node.inputs) {
      if (input?.weight?.dtype !== 'f32' || input.weight.shape.length !== 1) continue;
      if (input.weight.shape[0] !== values.length) continue;
      const given = readNumbers(input.weight.tensor());
      if (values.every((value, i) => value === given[i])) return input;
    }
  return context.rewriter.constant(name, tensor('f32', [values.length], values));
}
