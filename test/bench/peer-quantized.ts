/**
 * The two ways in which models for onnxruntime are usually shipped in few bits, which Fettle itself does
 * not write because they are slow there. For comparison only.
 *
 *   ort-q4   MatMul(x, w) -> MatMulNBits(x, u8 [N, K/32, 16], f32 [N, K/32]), as its model builder does
 *   ort-q8   MatMul(x, w) -> DynamicQuantizeLinear(x), MatMulInteger, Cast, Mul, as its quantize_dynamic does
 *
 * Source: com.microsoft.MatMulNBits in onnxruntime's ContribOperators.md; onnxruntime/python/tools/quantization
 */
import { int } from '../../compiler/ir/attribute.ts';
import type { Model, Node, Value } from '../../compiler/ir/graph.ts';
import { inferModel, inferNode } from '../../compiler/ir/infer.ts';
import { Rewriter } from '../../compiler/ir/rewriter.ts';
import { storeCodes } from '../../compiler/lower/code-layout.ts';
import type { QuantizedGroup } from '../../compiler/lower/quantized-uses.ts';
import { matrixOf, quantizedGroups } from '../../compiler/lower/quantized-uses.ts';
import { quantizeWeights } from '../../compiler/passes/quantize-weights.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { dtypes } from '../../runtime/tensor.ts';
import { fromHalfArray } from '../../runtime/half.ts';

/** Inputs that share a scale in `ort-q4`. */
const BLOCK = 32;

/** Quantizes the weights of every product to 4 bits, as MatMulNBits; tables keep their dtype. */
export async function withMatMulNBits(model: Model): Promise<void> {
  await eachProduct(model, 'w4g32', (group, node, rewriter) => {
    const { rows, columns, groups } = group;
    const { codes, scales } = matrixOf(group);
    const wanted = { bits: 4, factor: 1, shift: 0, transposed: false } as const;
    const data = storeCodes(codes, 4, [rows, columns], wanted);
    const shape = [rows, groups, BLOCK / 2];
    const blocks = rewriter.constant(`${group.name}.q`, { dtype: 'u8', shape, data });
    const scale = rewriter.constant(`${group.name}.s`, {
      dtype: 'f32',
      shape: [rows * groups],
      data: fromHalfArray(scales),
    });
    const attributes = {
      K: int(columns),
      N: int(rows),
      bits: int(4),
      block_size: int(BLOCK),
      // int8 activations are allowed, which is the fastest it has
      accuracy_level: int(4),
    };
    const inputs = [node.input(0), blocks, scale];
    return rewriter.op('MatMulNBits', inputs, attributes, { domain: 'com.microsoft' });
  });
  model.opsets.set('com.microsoft', 1);
}

/** Quantizes the weights of every product to 8 bits, and its activations as they come. */
export async function withDynamicInt8(model: Model): Promise<void> {
  const quantized = new Map<Value, Node>();
  await eachProduct(model, 'w8', (group, node, rewriter) => {
    const { rows, columns } = group;
    const { codes, scales } = matrixOf(group);
    const wanted = { bits: 8, factor: 1, shift: -128, transposed: true } as const;
    const stored = storeCodes(codes, 8, [rows, columns], wanted);
    const weight = rewriter.constant(`${group.name}.q`, {
      dtype: 'i8',
      shape: [columns, rows],
      data: new Int8Array(stored.buffer, stored.byteOffset, stored.length),
    });
    const scale = rewriter.constant(`${group.name}.s`, {
      dtype: 'f32',
      shape: [rows],
      data: fromHalfArray(scales),
    });
    const x = node.input(0);
    // products of one activation share its codes, as in what quantize_dynamic writes
    let codesOf = quantized.get(x);
    if (codesOf === undefined) {
      codesOf = rewriter.node(
        'DynamicQuantizeLinear',
        [x],
        {},
        { outputs: 3, name: `${x.name}/codes` },
      );
      quantized.set(x, codesOf);
    }
    const [xCodes, xScale, xZero] = [codesOf.output(0), codesOf.output(1), codesOf.output(2)];
    const add: typeof rewriter.op = (op, inputs, attributes) =>
      rewriter.op(op, inputs, attributes, { name: `${node.name}/${op}_${inputs.length}` });
    const sum = add('MatMulInteger', [xCodes, weight, xZero]);
    const plain = add('Cast', [sum], { to: int(dtypes.f32.onnx) });
    return rewriter.op('Mul', [plain, add('Mul', [xScale, scale])]);
  });
}

/** Replaces every MatMul with a quantized weight by what `build` makes of it. */
async function eachProduct(
  model: Model,
  format: string,
  build: (group: QuantizedGroup, node: Node, rewriter: Rewriter) => Value,
): Promise<void> {
  const rewriter = new Rewriter(model, inferNode);
  ownHead(model, rewriter);
  inferModel(model);
  await runPasses(model, [
    quantizeWeights({ format, clip: false, embeddings: 'keep', minElements: 1 }),
  ]);
  for (const group of quantizedGroups(model)) {
    for (const { node } of group.uses) {
      if (node.op !== 'MatMul') throw new Error(`${node.describe()} reads a quantized weight.`);
      const result = build(group, node, rewriter.before(node));
      rewriter.replace(node.output(), result);
      rewriter.remove(node);
    }
    for (const node of group.nodes) rewriter.remove(node);
  }
  for (const constant of model.graph.constants)
    if (constant.useCount === 0) rewriter.removeConstant(model.graph, constant);
  model.opsets.delete('fettle');
}

/** MatMul(x, Transpose(table)) -> MatMul(x, a copy): the table itself is gathered from and stays f32. */
function ownHead(model: Model, rewriter: Rewriter): void {
  for (const node of model.graph.nodes()) {
    const table = node.inputs[0]?.constant();
    if (node.op !== 'Transpose' || !(table?.data instanceof Float32Array)) continue;
    const [rows = 0, columns = 0] = table.shape;
    const bits = new Uint32Array(table.data.buffer, table.data.byteOffset, table.data.length);
    const turned = transposeWords(bits, rows, columns);
    const copy = rewriter.before(node).constant('lm_head.weight', {
      dtype: 'f32',
      shape: [columns, rows],
      data: new Float32Array(turned.buffer),
    });
    rewriter.replace(node.output(), copy);
    rewriter.remove(node);
  }
}

function transposeWords(
  words: Uint32Array,
  rows: number,
  columns: number,
): Uint32Array<ArrayBuffer> {
  const turned = new Uint32Array(words.length);
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++)
      turned[column * rows + row] = words[row * columns + column] ?? 0;
  return turned;
}
