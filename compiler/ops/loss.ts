/**
 * Training losses, which exported models sometimes still contain: NegativeLogLikelihoodLoss and
 * SoftmaxCrossEntropyLoss. Scores are `[N, C, d1, …]`, classes `[N, d1, …]`.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { Shape } from '../ir/dim.ts';
import type { EvaluateContext, InferContext, OpDefinition } from './definition.ts';
import { checkedIndices } from './gather.ts';
import { readNumbers, writeNumbers } from './numbers.ts';
import { splitAtAxis } from './shapes.ts';
import { logSoftmaxLine, mapLines } from './softmax.ts';
import { onnxOp } from './support.ts';

function lossShape(context: InferContext): Shape | undefined {
  return context.node.string('reduction', 'mean') === 'none' ? context.input(1).shape : [];
}

/** The loss of log probabilities. */
function lossOf(context: EvaluateContext, logs: Tensor): Tensor {
  const classes = context.input(1);
  const [batch, count, inner] = splitAtAxis(logs.shape, 1);
  const numbers = readNumbers(logs);
  const weights = context.inputs[2] && readNumbers(context.inputs[2]);
  const ignored = context.node.int('ignore_index');
  const wanted = Array.from(readNumbers(classes));
  const losses = new Float64Array(batch * inner);
  let [total, totalWeight] = [0, 0];
  for (const [i, label] of wanted.entries()) {
    if (label === ignored) continue;
    const [at = 0] = checkedIndices(context, [label], count);
    const weight = weights?.[at] ?? 1;
    const from = (Math.floor(i / inner) * count + at) * inner + (i % inner);
    const loss = -(numbers[from] ?? 0) * weight;
    losses[i] = loss;
    total += loss;
    totalWeight += weight;
  }
  const reduction = context.node.string('reduction', 'mean');
  if (reduction === 'none') return writeNumbers(logs.dtype, classes.shape, losses);
  return writeNumbers(logs.dtype, [], [reduction === 'sum' ? total : total / totalWeight]);
}

/** Training losses. */
export const lossOps: readonly OpDefinition[] = [
  onnxOp('NegativeLogLikelihoodLoss', [2, 3], [1, 1], {
    infer: (context) => [{ dtype: context.input(0).dtype, shape: lossShape(context) }],
    evaluate: (context) => [lossOf(context, context.input(0))],
  }),
  onnxOp('SoftmaxCrossEntropyLoss', [2, 3], [1, 2], {
    infer: (context) => {
      const { dtype, shape } = context.input(0);
      return [
        { dtype, shape: lossShape(context) },
        { dtype, shape },
      ];
    },
    evaluate: (context) => {
      const scores = context.input(0);
      const [batch, count] = splitAtAxis(scores.shape, 1);
      const inner = elementCount(scores.shape.slice(2));
      const logs = mapLines(scores, [batch, count, inner], logSoftmaxLine);
      return [lossOf(context, logs), logs];
    },
  }),
];
