/**
 * Seeded random graphs of the ops that clean-up looks at, valid by construction: each step picks a
 * value and an op that its inferred shape allows. Shape arithmetic is written the long way exporters do.
 */
import { int, ints } from '../../compiler/ir/attribute.ts';
import { isStatic } from '../../compiler/ir/dim.ts';
import type { Model, Value } from '../../compiler/ir/graph.ts';
import { ModelBuilder } from './model-builder.ts';
import { random } from './rng.ts';

/** A graph with two inputs, some shape arithmetic and one to three outputs. */
export function randomGraph(seed: number, steps = 14): Model {
  return new RandomGraph(seed).build(steps);
}

/** A number, or the size of an axis. */
type Size = number | { readonly axis: number };

type Step = (graph: RandomGraph, x: Value) => Value | undefined;

class RandomGraph {
  private readonly builder = new ModelBuilder(17);
  private readonly next: () => number;
  private readonly values: Value[] = [];
  private names = 0;

  constructor(seed: number) {
    this.next = random(seed);
  }

  build(steps: number): Model {
    this.values.push(
      this.builder.input('x', ['b', 3, 's', 4]),
      this.builder.input('z', ['b', 's', 12]),
    );
    for (let step = 0; step < steps; step++) {
      const x = this.pick(this.values);
      const made = this.pick(allSteps)(this, x);
      if (made !== undefined) this.values.push(made);
    }
    const outputs = 1 + this.upTo(3);
    for (let i = 0; i < outputs; i++) {
      const value = this.op('Relu', [this.values.at(-1 - this.upTo(5)) ?? this.pick(this.values)]);
      this.builder.output(`y${i}`, value);
    }
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

  op(op: string, inputs: readonly Value[], attributes = {}): Value {
    return this.builder.op(op, inputs, attributes);
  }

  list(values: readonly number[], shape: readonly number[] = [values.length]): Value {
    return this.builder.integers(`c${this.names++}`, values, shape);
  }

  scalar(value: number): Value {
    return this.builder.floats(`f${this.names++}`, [], Float32Array.of(value));
  }

  /** Another value of exactly the same shape. */
  twin(x: Value): Value {
    const same = this.values.filter((value) => value.shape?.join() === x.shape?.join());
    return this.pick(same);
  }

  permutation(rank: number): number[] {
    const axes = Array.from({ length: rank }, (_, axis) => axis);
    for (let i = rank - 1; i > 0; i--) {
      const j = this.upTo(i + 1);
      [axes[i], axes[j]] = [axes[j] ?? 0, axes[i] ?? 0];
    }
    return axes;
  }

  /** Sizes of `x` along `axes` and given numbers, through Shape, Gather, Unsqueeze and Concat. */
  sizes(x: Value, wanted: readonly Size[]): Value {
    const parts = wanted.map((part) => {
      if (typeof part === 'number') return this.list([part]);
      const shape = this.op('Shape', [x]);
      const size = this.op('Gather', [shape, this.list([part.axis], [])], { axis: int(0) });
      return this.op('Unsqueeze', [size, this.list([0])]);
    });
    return this.op('Concat', parts, { axis: int(0) });
  }
}

const allSteps: readonly Step[] = [
  (g, x) => g.op(g.pick(['Relu', 'Neg', 'Identity', 'Abs']), [x]),
  (g, x) => g.op(g.pick(['Add', 'Mul', 'Sub']), [x, g.twin(x)]),
  (g, x) => g.op(g.pick(['Add', 'Mul', 'Sub', 'Div']), [x, g.scalar(g.pick([0, -0, 1, 2]))]),
  (g, x) => g.op('Mul', [g.scalar(g.pick([1, 3])), x]),
  (g, x) => g.op('Transpose', [x], { perm: ints(g.permutation(g.rank(x))) }),
  (g, x) => g.op('Cast', [g.op('Cast', [x], { to: int(g.pick([1, 11])) })], { to: int(1) }),
  (g, x) => (g.rank(x) > 4 ? undefined : g.op('Unsqueeze', [x, g.list([g.upTo(g.rank(x) + 1)])])),
  (g, x) => {
    const ones = (x.shape ?? []).flatMap((dim, axis) => (dim === 1 ? [axis] : []));
    return ones.length === 0 ? undefined : g.op('Squeeze', [x, g.list([g.pick(ones)])]);
  },
  (g, x) => {
    // the shape it has, asked for in full
    const axes = (x.shape ?? []).map((_, axis) => ({ axis }));
    return axes.length === 0 ? undefined : g.op('Reshape', [x, g.sizes(x, axes)]);
  },
  (g, x) => {
    // splits a known axis in two
    const { shape = [] } = x;
    const even = shape.flatMap((dim, axis) =>
      typeof dim === 'number' && dim > 2 && dim % 2 === 0 ? [axis] : [],
    );
    if (even.length === 0 || shape.length > 4) return undefined;
    const split = g.pick(even);
    const wanted = shape.flatMap((dim, axis): readonly Size[] =>
      axis === split ? [2, Number(dim) / 2] : [{ axis }],
    );
    return g.op('Reshape', [x, g.sizes(x, wanted)]);
  },
  (g, x) => (g.rank(x) < 2 ? undefined : g.op('Flatten', [x], { axis: int(1 + g.upTo(2)) })),
  (g, x) => {
    const { shape = [] } = x;
    if (shape.length === 0) return undefined;
    const axis = g.upTo(shape.length);
    const end = g.pick([g.sizes(x, [{ axis }]), g.list([2 ** 31 - 1])]);
    return g.op('Slice', [x, g.list([0]), end, g.list([axis])]);
  },
  (g, x) => g.op('Expand', [x, g.op('Shape', [g.twin(x)])]),
  (g, x) => {
    const { shape = [] } = x;
    if (shape.length === 0 || !isStatic(shape.slice(-1))) return undefined;
    return g.op('Concat', [x], { axis: int(-1) });
  },
  (g, x) => g.op('Add', [x, g.op('ConstantOfShape', [g.op('Shape', [x])])]),
];
