/** Builds small models through the Rewriter, for tests that do not go through a file. */
import type { Attributes } from '../../compiler/ir/attribute.ts';
import type { Shape } from '../../compiler/ir/dim.ts';
import type { Value } from '../../compiler/ir/graph.ts';
import { Graph, Model } from '../../compiler/ir/graph.ts';
import { inferNode } from '../../compiler/ir/infer.ts';
import type { NodeOptions } from '../../compiler/ir/rewriter.ts';
import { Rewriter } from '../../compiler/ir/rewriter.ts';
import type { DType, Tensor } from '../../runtime/tensor.ts';

/** A model under construction. */
export class ModelBuilder {
  readonly model: Model;
  readonly rewriter: Rewriter;

  constructor(opset = 17, domains: Readonly<Record<string, number>> = {}) {
    this.model = new Model(new Graph('test'), new Map([['', opset], ...Object.entries(domains)]));
    this.rewriter = new Rewriter(this.model, inferNode);
  }

  /** Adds a graph input. */
  input(name: string, shape: Shape, dtype: DType = 'f32'): Value {
    return this.rewriter.graphInput(name, { dtype, shape });
  }

  /** Adds a constant. */
  constant(name: string, value: Tensor): Value {
    return this.rewriter.constant(name, value);
  }

  /** Adds an f32 constant. */
  floats(name: string, shape: readonly number[], data: Float32Array): Value {
    return this.constant(name, { dtype: 'f32', shape, data });
  }

  /** Adds an i64 constant. */
  integers(
    name: string,
    values: readonly number[],
    shape: readonly number[] = [values.length],
  ): Value {
    return this.constant(name, { dtype: 'i64', shape, data: BigInt64Array.from(values, BigInt) });
  }

  /** Adds a node at the end. */
  op(
    op: string,
    inputs: readonly (Value | undefined)[],
    attributes: Attributes = {},
    options: NodeOptions = {},
  ): Value {
    return this.rewriter.op(op, inputs, attributes, options);
  }

  /** Makes a value an output. */
  output(name: string, value: Value): this {
    this.rewriter.graphOutput(name, value);
    return this;
  }
}
