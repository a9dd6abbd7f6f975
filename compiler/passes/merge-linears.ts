/**
 * Makes one linear op of two in a row where that leaves fewer weights.
 *
 *     Linear(Linear(x, a [K, M], p), b [M, N], q)   ->   Linear(x, a·b, p·b + q)    when K·N < K·M + M·N
 *
 * Nothing may stand between them and nothing else may read the first. Products are summed in doubles
 * and rounded once to f32.
 */
import { writeNumbers, readNumbers } from '../ops/numbers.ts';
import type { Node } from '../ir/graph.ts';
import { activationNameOf } from '../ops/activation-table.ts';
import { isLinear, linearInputs } from '../ops/fused-linear.ts';
import type { LinearSite } from './linear-site.ts';
import { linearSites, setWeights } from './linear-site.ts';
import type { Pass, PassContext } from './pass.ts';
import { removeIfUnused } from './replace.ts';

/** Makes the pass. It has no options. */
export function mergeLinears(): Pass {
  return {
    name: 'merge-linears',
    options: {},
    rules: [{ name: 'merge', starts: ['MatMul', 'Gemm', 'fettle.Linear'] }],
    run(model, context) {
      const before = context.rewriter.changes;
      for (const node of model.graph.allNodes()) visit(node, context);
      return context.rewriter.changes > before;
    },
  };
}

/** The single linear op over the last axis that a node is. */
function rowSite(node: Node | undefined): LinearSite | string | undefined {
  const sites = node === undefined ? undefined : linearSites(node);
  if (sites === undefined || typeof sites === 'string') return sites;
  const [site, ...more] = sites;
  return more.length === 0 && site?.axis === -1 ? site : undefined;
}

function visit(outer: Node, context: PassContext): void {
  const inner = outer.inputs[0]?.producer;
  const second = rowSite(outer);
  if (second === undefined) return;
  const first = inner === undefined || inner.graph !== outer.graph ? undefined : rowSite(inner);
  if (first === undefined || inner === undefined) {
    context.miss('merge', outer, 'no linear op is right in front of it');
    return;
  }
  const why =
    typeof first === 'string'
      ? first
      : typeof second === 'string'
        ? second
        : reasonToKeep(first, second);
  if (why !== undefined || typeof first === 'string' || typeof second === 'string') {
    context.refuse('merge', outer, why ?? '');
    return;
  }
  const made = product(first, second);
  if (!readNumbers(made.weight).every(Number.isFinite)) {
    context.refuse('merge', outer, 'the merged weights would not be finite');
    return;
  }
  setWeights(context.rewriter, second, made);
  context.rewriter.setInput(outer, 0, inner.input(0));
  outer.from = [...new Set([...inner.from, ...outer.from])];
  removeIfUnused(context.rewriter, inner);
  context.count('merge');
}

function reasonToKeep(first: LinearSite, second: LinearSite): string | undefined {
  const { node } = first;
  const sums = node.output(0);
  if (sums.useCount > 1 || sums.isOutput) return 'the first sums are read elsewhere too';
  if (isLinear(node) && activationNameOf(node) !== 'none') return 'there is an activation between';
  if (isLinear(node) && node.inputs[linearInputs.residual] !== undefined)
    return 'there is a residual between';
  const [k, m, n] = [first.inputs, first.outputs, second.outputs];
  if (k * n >= k * m + m * n)
    return `${k} x ${n} weights are no fewer than ${k} x ${m} + ${m} x ${n}`;
  if (first.bias !== undefined && !second.takesBias)
    return 'a product without a bias cannot take one';
  return undefined;
}

/** Weights as [inputs, outputs]. */
function matrixOf(site: LinearSite): Float64Array {
  const tensor = site.weight.constant();
  const numbers = tensor === undefined ? [] : readNumbers(tensor);
  const matrix = new Float64Array(site.inputs * site.outputs);
  for (let i = 0; i < numbers.length; i++)
    matrix[site.inputOf(i) * site.outputs + site.outputOf(i)] = numbers[i] ?? 0;
  return matrix;
}

function rowOf(site: LinearSite): Float64Array {
  const tensor = site.bias?.constant();
  const numbers = tensor === undefined ? [0] : readNumbers(tensor);
  return Float64Array.from(
    { length: site.outputs },
    (_, i) => numbers[numbers.length === 1 ? 0 : i] ?? 0,
  );
}

function product(
  first: LinearSite,
  second: LinearSite,
): { weight: ReturnType<typeof writeNumbers>; bias: ReturnType<typeof writeNumbers> | undefined } {
  const [a, b] = [matrixOf(first), matrixOf(second)];
  const [k, m, n] = [first.inputs, first.outputs, second.outputs];
  // the bias is one more row of the first matrix
  const rows = [
    ...Array.from({ length: k }, (_, row) => a.subarray(row * m, row * m + m)),
    rowOf(first),
  ];
  const sums = rows.map((row) => {
    const sum = new Float64Array(n);
    for (let i = 0; i < m; i++)
      for (let j = 0; j < n; j++)
        sum[j] = (sum[j] as number) + (row[i] as number) * (b[i * n + j] as number);
    return sum;
  });
  const shifted = sums.pop() ?? new Float64Array(n);
  const dtype = second.weight.dtype ?? 'f32';
  // stored as the second one is
  const { outputsFirst } = second;
  const weight = new Float64Array(k * n);
  sums.forEach((sum, row) =>
    sum.forEach((value, column) => {
      weight[outputsFirst ? column * k + row : row * n + column] = value;
    }),
  );
  const bias = rowOf(second).map((value, column) => value + (shifted[column] ?? 0));
  const hasBias = first.bias !== undefined || second.bias !== undefined;
  return {
    weight: writeNumbers(dtype, outputsFirst ? [n, k] : [k, n], weight),
    bias: hasBias ? writeNumbers(dtype, [n], bias) : undefined,
  };
}
