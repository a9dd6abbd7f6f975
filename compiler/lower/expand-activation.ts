/**
 * Activations by name as ONNX ops: the spelling that onnxruntime fuses or has a kernel for.
 *
 *     hard-swish   ->   Mul(x, HardSigmoid(x, 1/6, 1/2))   two ops; HardSwish is a function that says the same
 *     silu         ->   Mul(x, Sigmoid(x))
 *     relu6        ->   Clip(x, 0, 6)
 *
 * Conv followed by Relu, Clip, Sigmoid, Tanh, LeakyRelu or HardSigmoid is one kernel in its CPU provider.
 * Source: onnxruntime's ContribOperators.md and core/optimizer/conv_activation_fusion.cc.
 */
import { float, string } from '../ir/attribute.ts';
import type { Node, Value } from '../ir/graph.ts';
import type { Rewriter } from '../ir/rewriter.ts';
import { activationNameOf, activations } from '../ops/activation-table.ts';
import type { ActivationName } from '../ops/activation-table.ts';
import { filled } from '../ops/numbers.ts';

/** A constant with one element and the dtype of `like`. */
export function scalarLike(rewriter: Rewriter, like: Value, value: number): Value {
  return rewriter.constant(`${like.name}_k`, filled(like.dtype ?? 'f32', [], value));
}

/**
 * Applies the activation that a fused node carries.
 *
 * @param node - has the attributes `activation`, `alpha` and `beta`
 * @param x - the argument
 * @returns `x` itself when there is none
 */
export function expandActivation(rewriter: Rewriter, node: Node, x: Value): Value {
  const name = activationNameOf(node);
  return writeActivation(rewriter, name, x, node.float('alpha'), node.float('beta'));
}

/** Applies an activation by name; numbers that are undefined have the defaults of the table. */
export function writeActivation(
  rewriter: Rewriter,
  name: ActivationName,
  x: Value,
  alpha: number = activations[name].alpha ?? 0,
  beta: number = activations[name].beta ?? 0,
): Value {
  return writers[name]({ rewriter, x, alpha, beta });
}

interface Place {
  readonly rewriter: Rewriter;
  readonly x: Value;
  readonly alpha: number;
  readonly beta: number;
}

const writers: Readonly<Record<ActivationName, (place: Place) => Value>> = {
  none: ({ x }) => x,
  relu: plain('Relu'),
  relu6: (place) => clip(place, 0, 6),
  'leaky-relu': (place) => place.rewriter.op('LeakyRelu', [place.x], { alpha: float(place.alpha) }),
  clip: (place) => clip(place, place.alpha, place.beta),
  sigmoid: plain('Sigmoid'),
  'hard-sigmoid': (place) => hardSigmoid(place, place.alpha, place.beta),
  'hard-swish': (place) =>
    place.rewriter.op('Mul', [place.x, hardSigmoid(place, Math.fround(1 / 6), 0.5)]),
  silu: (place) => place.rewriter.op('Mul', [place.x, plain('Sigmoid')(place)]),
  gelu: (place) =>
    place.rewriter.model.opset >= 20
      ? place.rewriter.op('Gelu', [place.x], { approximate: string('none') })
      : contrib('Gelu')(place),
  'gelu-tanh': (place) =>
    place.rewriter.model.opset >= 20
      ? place.rewriter.op('Gelu', [place.x], { approximate: string('tanh') })
      : contrib('FastGelu')(place),
  'quick-gelu': ({ rewriter, x, alpha }) => {
    const scaled = rewriter.op('Mul', [x, scalarLike(rewriter, x, alpha)]);
    return rewriter.op('Mul', [x, rewriter.op('Sigmoid', [scaled])]);
  },
  mish: ({ rewriter, x }) =>
    rewriter.op('Mul', [x, rewriter.op('Tanh', [rewriter.op('Softplus', [x])])]),
  tanh: plain('Tanh'),
  softplus: plain('Softplus'),
  elu: (place) => place.rewriter.op('Elu', [place.x], { alpha: float(place.alpha) }),
};

function plain(op: string): (place: Place) => Value {
  return ({ rewriter, x }) => rewriter.op(op, [x]);
}

function contrib(op: string): (place: Place) => Value {
  return ({ rewriter, x }) => rewriter.op(op, [x], {}, { domain: 'com.microsoft' });
}

function hardSigmoid({ rewriter, x }: Place, alpha: number, beta: number): Value {
  return rewriter.op('HardSigmoid', [x], { alpha: float(alpha), beta: float(beta) });
}

/** Bounds are attributes before opset 11, then inputs; an infinite one is left out. */
function clip({ rewriter, x }: Place, low: number, high: number): Value {
  const bounds = [low, high].map((bound) => (Number.isFinite(bound) ? bound : undefined));
  if (rewriter.model.opset < 11) {
    const [min, max] = bounds;
    return rewriter.op('Clip', [x], {
      ...(min === undefined ? {} : { min: float(min) }),
      ...(max === undefined ? {} : { max: float(max) }),
    });
  }
  const inputs = [
    x,
    ...bounds.map((bound) => (bound === undefined ? bound : scalarLike(rewriter, x, bound))),
  ];
  while (inputs.at(-1) === undefined) inputs.pop();
  return rewriter.op('Clip', inputs);
}
