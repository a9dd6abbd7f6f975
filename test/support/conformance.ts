/**
 * ONNX conformance cases: a folder each, with `model.onnx` and `test_data_set_0/{input,output}_N.pb`.
 * The `light` models have `output_N.pb` beside the model and no inputs: any will do, because all their
 * weights are equal.
 * Shared by `npm run conformance` and the test.
 */
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { FettleError } from '../../runtime/errors.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { dtypes, elementCount, tensor } from '../../runtime/tensor.ts';
import { substituteDim } from '../../compiler/ir/dim.ts';
import { evaluate } from '../../compiler/ir/evaluate.ts';
import type { Model, Value, ValueType } from '../../compiler/ir/graph.ts';
import { inferModel } from '../../compiler/ir/infer.ts';
import { Weight } from '../../compiler/ir/weight.ts';
import { decodeModel } from '../../compiler/onnx/read.ts';
import { readTensor } from '../../compiler/onnx/tensor.ts';
import { decodeMessage } from '../../compiler/onnx/wire.ts';
import { readNumbers, readStrings } from '../../compiler/ops/numbers.ts';

/** Tolerances of ONNX's own backend test runner (onnx/backend/test/runner). */
export const RELATIVE_TOLERANCE = 1e-3;
/** See {@link RELATIVE_TOLERANCE}. */
export const ABSOLUTE_TOLERANCE = 1e-7;

/** How one case went. */
export interface CaseResult {
  /** Folder name. */
  readonly name: string;
  readonly outcome: 'passed' | 'failed' | 'skipped';
  /** Why it failed or was skipped. */
  readonly reason?: string;
}

/** Folders below `folder`, at any depth, that hold a case; sorted. */
export function conformanceCases(folder: string): readonly string[] {
  return readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((path) => basename(path) === 'model.onnx')
    .map((path) => join(folder, dirname(path)))
    .filter((path) => isFull(path) || existsSync(join(path, 'output_0.pb')))
    .sort();
}

/**
 * Runs the model of a case in the reference evaluator and compares its outputs. What has been inferred
 * for any value, known sizes and dtype, must be what it turns out to be.
 */
export function runCase(path: string): CaseResult {
  return attempt(path, (model) => {
    const inputs = new Map<string, Tensor>();
    for (const [index, value] of model.graph.inputs.entries()) {
      if (value.opaqueType !== undefined) return skip('an input is no tensor');
      inputs.set(value.name, asDeclared(value, caseInput(path, index, value)));
    }
    if (model.graph.outputs.some((value) => value.opaqueType !== undefined))
      return skip('an output is no tensor');
    forgetTypes(model);
    inferModel(model);
    let wrongType: string | undefined;
    const onValue = (value: Value, tensor: Tensor): void => {
      wrongType ??= typeMismatch(value, tensor);
    };
    const outputs = evaluate(model, inputs, { onValue });
    if (wrongType !== undefined) return fail(wrongType);
    for (const [index, value] of model.graph.outputs.entries()) {
      const got = outputs.get(value.name);
      const wanted = asDeclared(value, caseTensor(path, 'output', index));
      const difference = got && differenceOf(got, wanted);
      if (difference !== undefined) return fail(`output ${index}: ${difference}`);
    }
    return passed;
  });
}

/**
 * Infers every type of the model from its inputs and compares with the declared outputs. Inputs that
 * can say a size (one dimension or none, at most 64 elements) are made constants, as they are in real
 * models; the cases make an input of everything.
 */
export function inferCase(path: string): CaseResult {
  return attempt(path, (model) => {
    const declared = model.graph.outputs.map(({ dtype, shape }) => ({ dtype, shape }));
    if (declared.every(({ shape }) => shape === undefined)) return skip('no output has a shape');
    forgetTypes(model);
    bindSizes(path, model);
    inferModel(model);
    for (const [index, value] of model.graph.outputs.entries()) {
      const { dtype, shape } = declared[index] ?? {};
      if (shape === undefined) continue;
      const fits =
        value.dtype === dtype &&
        value.shape?.length === shape.length &&
        shape.every((dim, axis) => typeof dim === 'string' || dim === value.shape?.[axis]);
      if (!fits)
        return fail(
          `output ${index}: declared ${typeText({ dtype, shape })}, inferred ${typeText(value)}`,
        );
    }
    return passed;
  });
}

/** Whether a case comes with inputs. */
function isFull(path: string): boolean {
  return existsSync(join(path, 'test_data_set_0'));
}

/** Tensor `index` of a case's inputs or outputs. */
export function caseTensor(path: string, kind: 'input' | 'output', index: number): Tensor {
  const folder = isFull(path) ? join(path, 'test_data_set_0') : path;
  return decodeTensor(readFileSync(join(folder, `${kind}_${index}.pb`)));
}

/** Input `index` of a case; a ramp from 0 to 1 when the case has none. */
export function caseInput(path: string, index: number, { dtype, shape }: Value): Tensor {
  if (isFull(path)) return caseTensor(path, 'input', index);
  const sizes = (shape ?? []).map((dim) => (typeof dim === 'number' ? dim : 1));
  const count = elementCount(sizes);
  if (dtype !== 'f32') throw new Error(`${path} has no input ${index}`);
  return tensor(
    'f32',
    sizes,
    Float32Array.from({ length: count }, (_, i) => i / count),
  );
}

/** The cases store bfloat16 as the uint16 of its pattern. */
function asDeclared(value: Value, tensor: Tensor): Tensor {
  return value.dtype === 'bf16' && tensor.dtype === 'u16' ? { ...tensor, dtype: 'bf16' } : tensor;
}

/** An encoded TensorProto. */
export function decodeTensor(bytes: Uint8Array): Tensor {
  const hold = (view: Uint8Array) => (start: number, length: number) =>
    view.slice(start, start + length);
  const external = (): never => {
    throw new Error('a test tensor has external data');
  };
  const proto = decodeMessage('TensorProto', bytes);
  return readTensor(proto, { hold, external }, { value: 'test tensor' }, false).tensor();
}

type Outcome = Omit<CaseResult, 'name'>;
const passed: Outcome = { outcome: 'passed' };

function fail(reason: string): Outcome {
  return { outcome: 'failed', reason };
}

function skip(reason: string): Outcome {
  return { outcome: 'skipped', reason };
}

/** Reads the model; an expected failure is the reason of a failed case. */
function attempt(path: string, run: (model: Model) => Outcome): CaseResult {
  const name = basename(path);
  try {
    return { name, ...run(decodeModel(readFileSync(join(path, 'model.onnx')))) };
  } catch (error) {
    // anything else is a bug, and its stack says where
    if (!(error instanceof FettleError)) return { name, ...fail((error as Error).stack ?? '') };
    return { name, ...fail(`${error.code}: ${error.message}`) };
  }
}

function bindSizes(path: string, model: Model): void {
  const { graph } = model;
  for (const [index, value] of [...graph.inputs].entries()) {
    if (value.opaqueType !== undefined || (value.shape?.length ?? 2) > 1) continue;
    const tensor = asDeclared(value, caseInput(path, index, value));
    if (elementCount(tensor.shape) > 64 || tensor.dtype === 'string') continue;
    value.weight = Weight.of(tensor);
    value.shape = tensor.shape;
    graph.inputs.splice(graph.inputs.indexOf(value), 1);
    graph.addConstant(value);
  }
}

/** Leaves only what the model's inputs and constants say. */
function forgetTypes(model: Model): void {
  for (const node of model.graph.allNodes())
    for (const value of node.outputs)
      if (value !== undefined) {
        value.dtype = undefined;
        value.shape = undefined;
        value.elements = undefined;
      }
}

function typeText({ dtype, shape }: ValueType): string {
  return `${dtype ?? '?'}${shape === undefined ? '' : `[${shape.join(', ')}]`}`;
}

/** What an inferred type says that is not so; undefined when all of it is. */
export function typeMismatch(
  value: Value,
  tensor: Tensor,
  sizes: ReadonlyMap<string, number> = new Map(),
): string | undefined {
  const shape = value.shape?.map((dim) => substituteDim(dim, sizes));
  const holds =
    (value.dtype ?? tensor.dtype) === tensor.dtype &&
    (shape === undefined ||
      (shape.length === tensor.shape.length &&
        shape.every((dim, axis) => typeof dim === 'string' || dim === tensor.shape[axis])));
  return holds
    ? undefined
    : `"${value.name}" is inferred as ${typeText(value)}, is ${typeText(tensor)}`;
}

/** What differs beyond the tolerances; undefined when nothing does. */
function differenceOf(got: Tensor, wanted: Tensor): string | undefined {
  if (got.dtype !== wanted.dtype || got.shape.join() !== wanted.shape.join())
    return `wanted ${typeText(wanted)}, got ${typeText(got)}`;
  if (wanted.dtype === 'string') {
    const texts = readStrings(got);
    const at = readStrings(wanted).findIndex((text, i) => text !== texts[i]);
    return at < 0 ? undefined : `[${at}]: wanted ${readStrings(wanted)[at]}, got ${texts[at]}`;
  }
  const exact = dtypes[wanted.dtype].kind !== 'float' && dtypes[wanted.dtype].kind !== 'complex';
  const [xs, ys] = [readNumbers(got), readNumbers(wanted)];
  let [wrong, worst, worstAt] = [0, -1, 0];
  for (const [i, y] of ys.entries()) {
    const x = xs[i] ?? NaN;
    if (Object.is(x, y) || x === y) continue;
    const limit = exact ? 0 : ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * Math.abs(y);
    const distance = Math.abs(x - y);
    if (distance <= limit) continue;
    wrong++;
    const size = Number.isNaN(distance) ? Infinity : distance;
    if (size > worst) [worst, worstAt] = [size, i];
  }
  if (wrong === 0) return undefined;
  return `${wrong} of ${ys.length} differ, worst [${worstAt}]: wanted ${ys[worstAt]}, got ${xs[worstAt]}`;
}
