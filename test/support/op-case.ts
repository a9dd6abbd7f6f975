/**
 * Op cases as data: one node with inputs and attributes, evaluated by the reference evaluator and by
 * onnxruntime-web, and its inferred shapes compared with the real ones.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Attribute } from '../../compiler/ir/attribute.ts';
import { float, floats, int, ints, string, strings } from '../../compiler/ir/attribute.ts';
import { isAnonymous } from '../../compiler/ir/dim.ts';
import { evaluate } from '../../compiler/ir/evaluate.ts';
import type { Model, Node, Value } from '../../compiler/ir/graph.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import { writeNumbers } from '../../compiler/ops/numbers.ts';
import type { DType, Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import { expectSame } from './expect-same.ts';
import { ModelBuilder } from './model-builder.ts';
import { runOnOrt } from './ort-run.ts';
import { random } from './rng.ts';

/** An attribute in short: whole numbers are ints unless wrapped by `float()`. */
export type ShortAttribute = Attribute | number | string | readonly number[] | readonly string[];

/** One case. */
export interface OpCase {
  /** What is special about it. */
  readonly name: string;
  /** Op type. */
  readonly op: string;
  /** Default: the domain of the list. */
  readonly domain?: string;
  /** ONNX opset. Default 22. */
  readonly opset?: number;
  /** Inputs; undefined where absent. */
  readonly inputs: readonly (Tensor | undefined)[];
  /** Indices of inputs that are constants of the model instead of graph inputs. */
  readonly constants?: readonly number[];
  /** Attributes. */
  readonly attributes?: Readonly<Record<string, ShortAttribute>>;
  /** Outputs of the node. Default 1. */
  readonly outputs?: number;
  /** Which of them are compared. Default: all. */
  readonly compared?: readonly number[];
  /** Largest difference as a fraction of the largest value. Default 1e-5: sums in another order. */
  readonly tolerance?: number;
  /** Values instead of onnxruntime's, with the reason in the name of the case. */
  readonly expected?: readonly Tensor[];
}

/** A tensor of listed values. */
export function values(dtype: DType, shape: readonly number[], data: readonly number[]): Tensor {
  return writeNumbers(dtype, shape, data);
}

/** Seeded floats in [-1, 1). */
export function floatsIn(shape: readonly number[], seed = 1, scale = 1): Tensor {
  const next = random(seed);
  const data = Float32Array.from({ length: elementCount(shape) }, () => (next() * 2 - 1) * scale);
  return { dtype: 'f32', shape, data };
}

/** Seeded integers from `low` up to, not including, `high`. */
export function integersIn(
  dtype: DType,
  shape: readonly number[],
  low: number,
  high: number,
  seed = 1,
): Tensor {
  const next = random(seed);
  const data = Array.from({ length: elementCount(shape) }, () =>
    Math.floor(low + next() * (high - low)),
  );
  return writeNumbers(dtype, shape, data);
}

function attributeOf(value: ShortAttribute): Attribute {
  if (typeof value === 'number') return Number.isInteger(value) ? int(value) : float(value);
  if (typeof value === 'string') return string(value);
  if (!isList(value)) return value;
  if (value.every((item) => typeof item === 'string')) return strings(value);
  return value.every(Number.isInteger) ? ints(value) : floats(value);
}

function isList(
  value: Attribute | readonly number[] | readonly string[],
): value is readonly number[] | readonly string[] {
  return Array.isArray(value);
}

/** Registers one test for a list of cases of one family; names what failed. */
export function testOpCases(title: string, domain: string, cases: readonly OpCase[]): void {
  test(title, async (t) => {
    for (const opCase of cases)
      await t.test(`${opCase.op}: ${opCase.name}`, () =>
        runOpCase({ ...opCase, domain: opCase.domain ?? domain }),
      );
  });
}

/** The model of one case, whose outputs are `out0`, `out1`, … */
export function buildOpCase(opCase: OpCase): {
  readonly model: Model;
  readonly node: Node;
  readonly feeds: ReadonlyMap<string, Tensor>;
  readonly compared: readonly number[];
} {
  const { op, domain = '', inputs, constants = [] } = opCase;
  const builder = new ModelBuilder(opCase.opset ?? 22, domain === '' ? {} : { [domain]: 1 });
  const feeds = new Map<string, Tensor>();
  const operands = inputs.map((tensor, index): Value | undefined => {
    if (tensor === undefined) return undefined;
    if (constants.includes(index)) return builder.constant(`in${index}`, tensor);
    feeds.set(`in${index}`, tensor);
    return builder.input(`in${index}`, tensor.shape, tensor.dtype);
  });
  const attributes = Object.fromEntries(
    Object.entries(opCase.attributes ?? {}).map(([name, value]) => [name, attributeOf(value)]),
  );
  const node = builder.rewriter.node(op, operands, attributes, {
    domain,
    outputs: opCase.outputs ?? 1,
  });
  const compared = opCase.compared ?? node.outputs.map((_, index) => index);
  for (const index of compared) builder.output(`out${index}`, node.output(index));
  return { model: builder.model, node, feeds, compared };
}

/** Checks one case. */
export async function runOpCase(opCase: OpCase): Promise<void> {
  const { op } = opCase;
  const { model, node, feeds, compared } = buildOpCase(opCase);
  const got = evaluate(model, feeds);
  const wanted =
    opCase.expected === undefined
      ? await runOnOrt(encodeModel(model), feeds)
      : new Map(compared.map((index, i) => [`out${index}`, opCase.expected?.[i]] as const));
  for (const index of compared) {
    const [ours, theirs] = [got.get(`out${index}`), wanted.get(`out${index}`)];
    assert.ok(ours !== undefined && theirs !== undefined, `output ${index} is missing`);
    const tolerance = opCase.tolerance ?? 1e-5;
    expectSame(ours, theirs, { tolerance, what: `${op} output ${index}` });
    const { dtype, shape } = node.output(index);
    assert.equal(dtype, ours.dtype, `inferred dtype of output ${index}`);
    assert.equal(shape?.length, ours.shape.length, `inferred rank of output ${index}`);
    shape?.forEach((dim, axis) => {
      if (!isAnonymous(dim)) assert.equal(dim, ours.shape[axis], `inferred size ${index}/${axis}`);
    });
  }
}
