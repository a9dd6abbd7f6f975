/**
 * Writes a graph node by node the way an exporter does: hierarchical node names, shared small
 * constants, weights that are generated when read.
 */
import type { Attributes } from '../compiler/ir/attribute.ts';
import type { Dim } from '../compiler/ir/dim.ts';
import type { Node, Value } from '../compiler/ir/graph.ts';
import { Graph, Model } from '../compiler/ir/graph.ts';
import { inferNode } from '../compiler/ir/infer.ts';
import type { NodeOptions } from '../compiler/ir/rewriter.ts';
import { Rewriter } from '../compiler/ir/rewriter.ts';
import type { Weight } from '../compiler/ir/weight.ts';
import type { DType, Tensor } from '../runtime/tensor.ts';
import { tensor } from '../runtime/tensor.ts';
import type { Normal } from './random.ts';
import { randomWeight, seedOf } from './random.ts';

/** Builds one model. */
export class Emitter {
  /** The model so far. */
  readonly model: Model;
  private readonly rewriter: Rewriter;
  private readonly seed: number;
  private readonly shared = new Map<string, Value>();
  private readonly used = new Map<string, number>();

  /**
   * @param name - graph name
   * @param opsets - version by domain
   * @param seed - every weight follows from it and the weight's name
   */
  constructor(name: string, opsets: Readonly<Record<string, number>>, seed: number) {
    this.model = new Model(new Graph(name), new Map(Object.entries(opsets)));
    this.rewriter = new Rewriter(this.model, inferNode);
    this.seed = seed;
  }

  /** Adds a graph input. */
  input(name: string, dtype: DType, shape: readonly Dim[]): Value {
    return this.rewriter.graphInput(name, { dtype, shape });
  }

  /** Makes a node's output a graph output of the given name and declared type. */
  output(name: string, value: Value, dtype: DType, shape: readonly Dim[]): void {
    value.dtype = dtype;
    value.shape = shape;
    this.rewriter.graphOutput(name, value);
  }

  /** Adds a node named `path/op`, `path/op_1`, …; returns its first output. */
  op(
    path: string,
    op: string,
    inputs: readonly (Value | undefined)[],
    attributes: Attributes = {},
  ): Value {
    return this.node(path, op, inputs, attributes).output(0);
  }

  /** Adds a node with further options; see {@link Emitter.op}. */
  node(
    path: string,
    op: string,
    inputs: readonly (Value | undefined)[],
    attributes: Attributes,
    options: NodeOptions = {},
  ): Node {
    const base = `${path}/${op}`;
    const count = this.used.get(base) ?? 0;
    this.used.set(base, count + 1);
    const name = count === 0 ? base : `${base}_${count}`;
    return this.rewriter.node(op, inputs, attributes, { ...options, name, from: [name] });
  }

  /** A seeded random f32 weight. */
  weight(name: string, shape: readonly number[], normal: Normal): Value {
    return this.rewriter.constant(name, randomWeight(shape, this.seedOf(name), normal));
  }

  /** The seed of a weight, for a second copy of it. */
  seedOf(name: string): number {
    return seedOf(`${this.seed}/${name}`);
  }

  /** A given constant. */
  constant(name: string, value: Tensor | Weight): Value {
    return this.rewriter.constant(name, value);
  }

  /** An i64 vector, shared by everyone who asks for the same one. */
  ints(...values: readonly (number | bigint)[]): Value {
    return this.share(`i64[${values}]`, () =>
      tensor('i64', [values.length], BigInt64Array.from(values, BigInt)),
    );
  }

  /** An i64 scalar, shared. */
  int(value: number): Value {
    return this.share(`i64 ${value}`, () => tensor('i64', [], BigInt64Array.of(BigInt(value))));
  }

  /** An f32 scalar, shared. */
  float(value: number): Value {
    return this.share(`f32 ${value}`, () => tensor('f32', [], Float32Array.of(value)));
  }

  private share(key: string, make: () => Tensor): Value {
    let value = this.shared.get(key);
    if (value === undefined) {
      value = this.rewriter.constant(`constant_${this.shared.size}`, make());
      this.shared.set(key, value);
    }
    return value;
  }
}
