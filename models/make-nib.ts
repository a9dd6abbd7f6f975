/**
 * Makes `models/nib` from the f32 export in `../shared/models/nib`: matrices stored as f16 with a Cast
 * to f32 behind each, and the tied table stored once. What is computed stays f32; only the weights are
 * rounded, once. Same input, same bytes.
 *
 *   onnx::MatMul_2383 f32 ─ MatMul              onnx::MatMul_2383 f16 ─ Cast ─ MatMul
 *   embed_tokens f32 ─ Gather              ->   embed_tokens f16 ─ Cast ─┬─ Gather
 *   onnx::MatMul_2623 f32 ─ MatMul ─ logits                              └─ Transpose ─ MatMul ─ logits
 *
 * Run: node --import tsx models/make-nib.ts
 */
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { int, ints } from '../compiler/ir/attribute.ts';
import type { Model, Value } from '../compiler/ir/graph.ts';
import { inferNode } from '../compiler/ir/infer.ts';
import { Rewriter } from '../compiler/ir/rewriter.ts';
import { Weight } from '../compiler/ir/weight.ts';
import { decodeModel } from '../compiler/onnx/read.ts';
import { encodeModel } from '../compiler/onnx/write.ts';
import { fromHalfArray, toHalfArray } from '../runtime/half.ts';
import { dtypes, tensor } from '../runtime/tensor.ts';

/** What {@link shrink} did. */
export interface ShrinkReport {
  /** Matrices stored as f16. */
  readonly halved: number;
  /** Transposed copies of another matrix that were removed. */
  readonly shared: number;
  /** Largest relative error of a matrix: root of the mean square, over that of the matrix. */
  readonly worstRelativeError: number;
}

/**
 * Stores matrices as f16 and transposed copies once, in place.
 *
 * @param model - an f32 model
 */
export function shrink(model: Model): ShrinkReport {
  const rewriter = new Rewriter(model, inferNode);
  const matrices = [...model.graph.constants].filter(
    ({ dtype, shape, users }) =>
      dtype === 'f32' &&
      shape?.length === 2 &&
      [...users.keys()].every(({ op }) => op === 'MatMul' || op === 'Gather'),
  );
  let shared = 0;
  let worstRelativeError = 0;
  const kept = new Map<Value, Value>();
  for (const matrix of matrices) {
    const original = [...kept.keys()].find((other) => isTransposed(other, matrix));
    const source = original === undefined ? undefined : kept.get(original);
    if (source !== undefined) {
      const [user] = matrix.users.keys();
      if (user === undefined) continue;
      const turned = rewriter
        .before(user)
        .op(
          'Transpose',
          [source],
          { perm: ints([1, 0]) },
          { name: '/Transpose', from: ['/Transpose'] },
        );
      rewriter.replaceUses(matrix, turned);
      rewriter.removeConstant(model.graph, matrix);
      shared++;
    } else {
      kept.set(matrix, castBehind(rewriter, matrix));
    }
  }
  for (const matrix of kept.keys()) {
    const exact = floats(matrix);
    const halves = toHalfArray(exact);
    worstRelativeError = Math.max(worstRelativeError, relativeError(exact, fromHalfArray(halves)));
    matrix.weight = Weight.of(tensor('f16', matrix.weight?.shape ?? [], halves));
    matrix.dtype = 'f16';
  }
  return { halved: kept.size, shared, worstRelativeError };
}

/** Makes every user of a constant read it through a Cast to f32 at the start of the graph. */
function castBehind(rewriter: Rewriter, matrix: Value): Value {
  const users = [...matrix.users.keys()];
  const [first] = rewriter.model.graph.nodes();
  if (first !== undefined) rewriter.before(first);
  const name = `${matrix.name}/Cast`;
  const cast = rewriter.op('Cast', [matrix], { to: int(dtypes.f32.onnx) }, { name, from: [name] });
  for (const user of users)
    user.inputs.forEach((input, index) => {
      if (input === matrix) rewriter.setInput(user, index, cast);
    });
  return cast;
}

function floats(value: Value): Float32Array {
  const contents = value.constant();
  if (contents?.dtype !== 'f32') throw new Error(`"${value.name}" is no f32 constant`);
  return contents.data as Float32Array;
}

function isTransposed(a: Value, b: Value): boolean {
  const [rows = 0, columns = 0] = a.shape as readonly number[];
  if (b.shape?.[0] !== columns || b.shape[1] !== rows) return false;
  const [x, y] = [floats(a), floats(b)];
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++)
      if (x[row * columns + column] !== y[column * rows + row]) return false;
  return true;
}

function relativeError(exact: Float32Array, rounded: Float32Array): number {
  let error = 0;
  let size = 0;
  exact.forEach((value, i) => {
    error += (value - (rounded[i] ?? 0)) ** 2;
    size += value ** 2;
  });
  return Math.sqrt(error / size);
}

function main(): void {
  const here = path.dirname(fileURLToPath(import.meta.url));
  const from = path.join(here, '../../shared/models/nib');
  const to = path.join(here, 'nib');
  const source = path.join(from, 'onnx/model.onnx');
  const model = decodeModel(fs.readFileSync(source));
  const report = shrink(model);
  fs.mkdirSync(path.join(to, 'onnx'), { recursive: true });
  const target = path.join(to, 'onnx/model.onnx');
  fs.writeFileSync(target, encodeModel(model));
  for (const name of fs.readdirSync(from))
    if (name.endsWith('.json'))
      fs.writeFileSync(path.join(to, name), fs.readFileSync(path.join(from, name)));
  const [before, after] = [source, target].map((file) => fs.statSync(file).size);
  console.log(JSON.stringify({ before, after, ...report }));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) main();
