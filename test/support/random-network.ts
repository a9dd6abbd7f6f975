/**
 * Seeded random networks of what fusion looks at: convolutions, norms, products, activations in several
 * spellings, residual sums, factors and shifts, padding, views and transposes around them. Valid by
 * construction: each step picks a value and an op that its inferred shape allows.
 */
import type { Attributes } from '../../compiler/ir/attribute.ts';
import { float, int, ints } from '../../compiler/ir/attribute.ts';
import type { Model, Value } from '../../compiler/ir/graph.ts';
import { ModelBuilder } from './model-builder.ts';
import { normalValues } from './random-values.ts';
import { random } from './rng.ts';

/** A network with an image and a sequence as inputs and one to four outputs. */
export function randomNetwork(seed: number, steps = 12): Model {
  return new RandomNetwork(seed).build(steps);
}

type Step = (net: RandomNetwork, x: Value) => Value | undefined;

class RandomNetwork {
  readonly builder: ModelBuilder;
  private readonly next: () => number;
  private readonly values: Value[] = [];
  private names = 0;

  constructor(seed: number) {
    this.next = random(seed);
    this.builder = new ModelBuilder(this.pick([13, 17, 20]));
  }

  build(steps: number): Model {
    this.values.push(
      this.builder.input('image', ['b', 4, 6, 5]),
      this.builder.input('tokens', ['b', 's', 6]),
    );
    for (let step = 0; step < steps; step++) {
      // the newest values most often, so that chains grow
      const recent = this.values.slice(-3);
      const x = this.pick(this.next() < 0.75 ? recent : this.values);
      const made = this.pick(this.rank(x) === 4 ? imageSteps : rowSteps)(this, x);
      if (made !== undefined) this.values.push(made);
    }
    const outputs = 1 + this.upTo(3);
    const last = this.values.slice(-outputs);
    last.forEach((value, i) => this.builder.output(`y${i}`, this.op('Tanh', [value])));
    return this.builder.model;
  }

  pick<T>(from: readonly T[]): T {
    const found = from[Math.floor(this.next() * from.length)];
    if (found === undefined) throw new Error('nothing to pick from');
    return found;
  }

  upTo(limit: number): number {
    return Math.floor(this.next() * limit);
  }

  rank(x: Value): number {
    return x.shape?.length ?? 0;
  }

  size(x: Value, axis: number): number {
    return Number(x.shape?.at(axis));
  }

  op(op: string, inputs: readonly (Value | undefined)[], attributes: Attributes = {}): Value {
    return this.builder.op(op, inputs, attributes);
  }

  /** Weights whose products keep about the size of what they are multiplied with. */
  weights(shape: readonly number[], fan = 1): Value {
    const size = shape.reduce((product, dim) => product * dim, 1);
    const values = normalValues(size, this.upTo(1e6)).map((value) => value / Math.sqrt(fan));
    return this.builder.floats(`w${this.names++}`, shape, values);
  }

  scalar(value: number, rank = 0): Value {
    const shape = Array.from({ length: rank }, () => 1);
    return this.builder.floats(`k${this.names++}`, shape, Float32Array.of(value));
  }

  list(values: readonly number[]): Value {
    return this.builder.integers(`i${this.names++}`, values);
  }

  /** Another value of exactly the same shape. */
  twin(x: Value): Value {
    const same = this.values.filter((value) => value.shape?.join() === x.shape?.join());
    return this.pick([...same, x]);
  }

  activation(x: Value): Value {
    return this.pick(activations)(this, x);
  }
}

const activations: readonly ((net: RandomNetwork, x: Value) => Value)[] = [
  (net, x) => net.op(net.pick(['Relu', 'Sigmoid', 'Tanh', 'Softplus', 'Elu']), [x]),
  (net, x) => net.op('LeakyRelu', [x], { alpha: float(net.pick([0.125, 0.3])) }),
  (net, x) => net.op('HardSigmoid', [x], { alpha: float(net.pick([0.2, 1 / 6])) }),
  (net, x) => net.op('Clip', [x, net.scalar(0), net.scalar(net.pick([1, 6]))]),
  (net, x) => net.op('Mul', [x, net.op('Sigmoid', [x])]),
  (net, x) => net.op('Mul', [x, net.op('Tanh', [net.op('Softplus', [x])])]),
  (net, x) => {
    const sum = net.op('Add', [x, net.scalar(3)]);
    const clipped = net.op('Clip', [sum, net.scalar(0), net.scalar(6)]);
    return net.op('Div', [net.op('Mul', [clipped, x]), net.scalar(6)]);
  },
  (net, x) => {
    const erf = net.op('Erf', [net.op('Div', [x, net.scalar(Math.SQRT2)])]);
    const sum = net.op('Add', [erf, net.scalar(1)]);
    return net.op('Mul', [net.op('Mul', [x, sum]), net.scalar(0.5)]);
  },
];

/** Steps for any rank. */
const anySteps: readonly Step[] = [
  (net, x) => net.activation(x),
  (net, x) => net.op('Add', [x, net.twin(x)]),
  (net, x) => net.op('Mul', [net.op('Sigmoid', [net.twin(x)]), x]),
  (net, x) =>
    net.op(net.pick(['Add', 'Mul', 'Sub', 'Div']), [
      x,
      net.scalar(net.pick([0.5, -1.5, 2]), net.upTo(3)),
    ]),
  (net, x) => net.op(net.pick(['Sub', 'Mul', 'Add']), [net.scalar(net.pick([1, -0.75])), x]),
  (net, x) => net.op(net.pick(['Neg', 'Abs', 'Identity']), [x]),
];

const imageSteps: readonly Step[] = [
  ...anySteps,
  convolution,
  convolution,
  (net, x) => {
    const made = convolution(net, x);
    return made && net.activation(made);
  },
  (net, x) => {
    const made = convolution(net, x);
    return made && net.op('Add', [made, net.twin(made)]);
  },
  (net, x) => {
    const c = net.size(x, 1);
    const variance = net.builder.constant(`v${net.upTo(1e9)}`, {
      dtype: 'f32',
      shape: [c],
      data: normalValues(c, net.upTo(1e6)).map((value) => 0.5 + Math.abs(value)),
    });
    const parameters = [net.weights([c]), net.weights([c]), net.weights([c]), variance];
    return net.op('BatchNormalization', [x, ...parameters]);
  },
  (net, x) => net.op(net.pick(['Mul', 'Add']), [x, net.weights([net.size(x, 1), 1, 1])]),
  (net, x) => {
    const kernel = net.pick([1, 2]);
    const w = net.weights([net.size(x, 1), 4, kernel, kernel], net.size(x, 1));
    return net.size(x, 2) > 12
      ? undefined
      : net.op('ConvTranspose', [x, w], { strides: ints([1, 1]) });
  },
  (net, x) => {
    // squeeze-excite
    const c = net.size(x, 1);
    const pooled = net.op('GlobalAveragePool', [x]);
    const down = net.op('Relu', [
      net.op('Conv', [pooled, net.weights([2, c, 1, 1], c), net.weights([2])]),
    ]);
    const gate = net.op('Conv', [down, net.weights([c, 2, 1, 1], 2), net.weights([c])]);
    return net.op('Mul', [x, net.op(net.pick(['HardSigmoid', 'Sigmoid']), [gate])]);
  },
  (net, x) => {
    const pads = net.list([0, 0, net.upTo(2), 1, 0, 0, 1, net.upTo(2)]);
    const padded = net.op('Pad', [net.pick([x, net.op('Relu', [x])]), pads]);
    const kind = net.upTo(3);
    if (kind === 0) return convolution(net, padded);
    const attributes = { kernel_shape: ints([2, 2]) };
    return net.op(kind === 1 ? 'MaxPool' : 'AveragePool', [padded], attributes);
  },
  (net, x) => {
    const turned = net.op('Transpose', [x], { perm: ints([0, 2, 3, 1]) });
    const inner = net.pick([
      net.activation(turned),
      net.op('Mul', [turned, net.weights([net.size(x, 1)])]),
      net.op('MatMul', [turned, net.weights([net.size(x, 1), 4], 4)]),
    ]);
    return net.op('Transpose', [inner], { perm: ints([0, 3, 1, 2]) });
  },
];

function convolution(net: RandomNetwork, x: Value): Value | undefined {
  const c = net.size(x, 1);
  const kernel = net.pick([1, 1, 3]);
  if (net.size(x, 2) < kernel || net.size(x, 3) < kernel) return undefined;
  const pad = kernel === 3 ? net.pick([0, 1, 1]) : 0;
  const depthwise = net.upTo(3) === 0;
  const group = depthwise ? c : 1;
  const outputs = depthwise ? c : 4;
  const w = net.weights([outputs, c / group, kernel, kernel], (c / group) * kernel * kernel);
  const bias = net.upTo(2) === 0 ? [] : [net.weights([outputs])];
  return net.op('Conv', [x, w, ...bias], {
    group: int(group),
    pads: ints([pad, pad, pad, pad]),
    ...(net.upTo(4) === 0 ? { strides: ints([2, 1]) } : {}),
  });
}

const rowSteps: readonly Step[] = [
  ...anySteps,
  linear,
  linear,
  (net, x) => {
    const made = linear(net, x);
    return made && net.activation(made);
  },
  (net, x) => {
    const made = linear(net, x);
    return made && net.op('Add', [net.twin(made), made]);
  },
  (net, x) => net.op(net.pick(['Mul', 'Add']), [x, net.weights([net.size(x, -1)])]),
  (net, x) => {
    // layer norm, spelt out
    const axes = { axes: ints([-1]) };
    const mean = net.builder.model.opset < 18 ? net.op('ReduceMean', [x], axes) : undefined;
    if (mean === undefined) return undefined;
    const centred = net.op('Sub', [x, mean]);
    const square = net.op('Pow', [centred, net.scalar(2)]);
    const variance = net.op('Add', [net.op('ReduceMean', [square], axes), net.scalar(1e-3)]);
    const scaled = net.op('Div', [centred, net.op('Sqrt', [variance])]);
    const gained = net.op('Mul', [scaled, net.weights([net.size(x, -1)])]);
    return net.op('Add', [gained, net.weights([net.size(x, -1)])]);
  },
  (net, x) => {
    // gated feed-forward layer
    const [k, n] = [net.size(x, -1), 6];
    const gate = net.activation(net.op('MatMul', [x, net.weights([k, n], k)]));
    return net.op('Mul', [gate, net.op('MatMul', [x, net.weights([k, n], k)])]);
  },
  (net, x) => {
    if (net.rank(x) !== 3) return undefined;
    const [k, n] = [net.size(x, -1), net.pick([3, 6])];
    const flat = net.op('Reshape', [x, net.list([-1, k])]);
    const attributes = { transB: int(1) };
    const product = net.op('Gemm', [flat, net.weights([n, k], k), net.weights([n])], attributes);
    const sizes = net.op('Concat', [net.op('Shape', [x]), net.list([n])], { axis: int(0) });
    const target = net.op('Gather', [sizes, net.list([0, 1, 3])], { axis: int(0) });
    return net.op('Reshape', [net.pick([product, net.op('Relu', [product])]), target]);
  },
  (net, x) => {
    if (net.rank(x) !== 3) return undefined;
    const turned = net.op('Transpose', [x], { perm: ints([0, 2, 1]) });
    return net.op('Transpose', [net.activation(turned)], { perm: ints([0, 2, 1]) });
  },
];

function linear(net: RandomNetwork, x: Value): Value | undefined {
  const [k, n] = [net.size(x, -1), net.pick([3, 6, 6])];
  const product = net.op('MatMul', [x, net.weights([k, n], k)]);
  const bias = net.weights([n]);
  return net.pick([product, net.op('Add', [product, bias]), net.op('Add', [bias, product])]);
}
