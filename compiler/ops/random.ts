/**
 * Random ops. Fettle's numbers are deterministic in the `seed` attribute but are nobody else's: ONNX
 * does not define a generator.
 */
import type { DType, Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { EvaluateContext, OpDefinition } from './definition.ts';
import { isFloat, readNumbers, writeNumbers } from './numbers.ts';
import { dtypeAttribute, onnxOp, opError } from './support.ts';

/** Uniform numbers of a node; its `seed` is a float. */
function uniform(context: EvaluateContext): () => number {
  return context.random(Math.round(context.node.float('seed', 0) * 65536));
}

function uniformSampler(context: EvaluateContext): () => number {
  const next = uniform(context);
  const low = context.node.float('low', 0);
  const high = context.node.float('high', 1);
  return () => low + (high - low) * next();
}

function normalSampler(context: EvaluateContext): () => number {
  const next = uniform(context);
  const mean = context.node.float('mean', 0);
  const scale = context.node.float('scale', 1);
  // Box and Muller; 1 - u keeps the logarithm finite
  return () => mean + scale * Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next());
}

function draw(dtype: DType, shape: readonly number[], next: () => number): Tensor {
  return writeNumbers(dtype, shape, Float64Array.from({ length: elementCount(shape) }, next));
}

type Sampler = (context: EvaluateContext) => () => number;

function randomOp(op: string, sampler: Sampler): OpDefinition {
  return onnxOp(op, [0, 0], [1, 1], {
    nondeterministic: true,
    infer: (context) => [
      { dtype: dtypeAttribute(context, 'dtype') ?? 'f32', shape: context.node.ints('shape') },
    ],
    evaluate: (context) => {
      const shape = context.node.ints('shape');
      if (shape === undefined) throw opError(context, 'attribute "shape" is missing');
      return [draw(dtypeAttribute(context, 'dtype') ?? 'f32', shape, sampler(context))];
    },
  });
}

function randomLikeOp(op: string, sampler: Sampler): OpDefinition {
  return onnxOp(op, [1, 1], [1, 1], {
    nondeterministic: true,
    infer: (context) => {
      const { dtype, shape } = context.input(0);
      return [{ dtype: dtypeAttribute(context, 'dtype') ?? dtype, shape }];
    },
    evaluate: (context) => {
      const { dtype, shape } = context.input(0);
      const own = isFloat(dtype) ? dtype : 'f32';
      return [draw(dtypeAttribute(context, 'dtype') ?? own, shape, sampler(context))];
    },
  });
}

const bernoulliOp: OpDefinition = {
  ...randomLikeOp('Bernoulli', uniform),
  evaluate: (context) => {
    const x = context.input(0);
    const next = uniform(context);
    const flags = readNumbers(x).map((probability) => Number(next() < probability));
    return [writeNumbers(dtypeAttribute(context, 'dtype') ?? x.dtype, x.shape, flags)];
  },
};

const multinomialOp = onnxOp('Multinomial', [1, 1], [1, 1], {
  nondeterministic: true,
  infer: (context) => {
    const [batch = context.fresh()] = context.input(0).shape ?? [];
    const count = context.node.int('sample_size', 1);
    return [{ dtype: dtypeAttribute(context, 'dtype') ?? 'i32', shape: [batch, count] }];
  },
  evaluate: (context) => {
    const x = context.input(0);
    const [batch = 1, classes = 1] = x.shape;
    const logs = readNumbers(x);
    const next = uniform(context);
    const count = context.node.int('sample_size', 1);
    const picks = Float64Array.from({ length: batch * count }, (_, i) => {
      const start = Math.floor(i / count) * classes;
      const weights = Array.from(logs.subarray(start, start + classes), Math.exp);
      let left = next() * weights.reduce((sum, weight) => sum + weight, 0);
      const found = weights.findIndex((weight) => (left -= weight) < 0);
      return found < 0 ? classes - 1 : found;
    });
    return [writeNumbers(dtypeAttribute(context, 'dtype') ?? 'i32', [batch, count], picks)];
  },
});

/** Random ops. */
export const randomOps: readonly OpDefinition[] = [
  randomOp('RandomUniform', uniformSampler),
  randomOp('RandomNormal', normalSampler),
  randomLikeOp('RandomUniformLike', uniformSampler),
  randomLikeOp('RandomNormalLike', normalSampler),
  bernoulliOp,
  multinomialOp,
];
