/**
 * The edit of `quantize-weights`: a constant matrix becomes codes and scales behind `fettle.Dequantize`.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import type { Model, Node, Value } from '../ir/graph.ts';
import { dequantizeAttributes, internalDomain } from '../ops/quantized.ts';
import type { QuantizedMatrix } from '../quant/matrix.ts';
import { CODEBOOK_LEVELS } from '../quant/matrix.ts';
import type { PassContext } from './pass.ts';
import type { WeightSite } from './weight-sites.ts';

/** Bytes of codes, scales, zero points and codebooks. */
export function bytesOfMatrix({ codes, scales, zeros, codebook }: QuantizedMatrix): number {
  return codes.length + scales.byteLength + (zeros?.length ?? 0) + (codebook?.length ?? 0);
}

/**
 * Puts Dequantize nodes in front of the sites of one constant, and removes the constant when nothing
 * reads it any more. Sites that read alike share a node; all share the codes.
 *
 * @param sites - every site of the constant, in the order of the model
 */
export function insertDequantize(
  model: Model,
  sites: readonly [WeightSite, ...WeightSite[]],
  matrix: QuantizedMatrix,
  context: PassContext,
): void {
  const { rewriter } = context;
  const [{ node: firstNode, constant }] = sites;
  const { name } = constant;
  const parts = partsOf(matrix).map(
    (part) => part && rewriter.constant(`${name}.${part[0]}`, part[1]),
  );
  const made = new Map<string, Value>();
  rewriter.before(topLevel(model, firstNode));
  for (const { node, index, shape, readTransposed } of sites) {
    const old = node.input(index);
    const dtype = old.dtype ?? 'f32';
    const key = `${shape} ${dtype} ${readTransposed}`;
    let value = made.get(key);
    if (value === undefined) {
      const { bits, group, columns } = matrix;
      value = rewriter.op(
        'Dequantize',
        parts,
        dequantizeAttributes({ bits, group, columns, transposed: readTransposed, dtype }),
        { domain: internalDomain, name, from: [] },
      );
      if (shape.length !== 2) {
        const target = rewriter.constant(`${name}.shape`, int64s(shape));
        value = rewriter.op('Reshape', [value, target], {}, { name, from: [] });
      }
      made.set(key, value);
    }
    rewriter.setInput(node, index, value);
    removeUnread(old, context);
  }
  if (constant.useCount === 0)
    for (const graph of model.graph.allGraphs())
      if (graph.constants.has(constant)) rewriter.removeConstant(graph, constant);
}

/** The constants of a matrix in the order of Dequantize's inputs. */
function partsOf(matrix: QuantizedMatrix): readonly (readonly [string, Tensor] | undefined)[] {
  const { rows, codes, scales, zeros, codebook } = matrix;
  const parts: ([string, Tensor] | undefined)[] = [
    ['codes', { dtype: 'u8', shape: [rows, codes.length / rows], data: codes }],
    ['scales', { dtype: 'f16', shape: [rows, scales.length / rows], data: scales }],
  ];
  if (zeros !== undefined)
    parts.push(['zeros', { dtype: 'u8', shape: [rows, zeros.length / rows], data: zeros }]);
  if (codebook !== undefined) {
    const shape = [codebook.length / CODEBOOK_LEVELS, CODEBOOK_LEVELS];
    parts.push(undefined, ['codebook', { dtype: 'i8', shape, data: codebook }]);
  }
  return parts;
}

/** Removes the Transpose, Cast or Identity nodes behind a value that nothing reads any more. */
function removeUnread(value: Value, context: PassContext): void {
  const { producer } = value;
  if (value.useCount > 0 || producer === undefined) return;
  const source = producer.inputs[0];
  context.rewriter.remove(producer);
  if (source !== undefined) removeUnread(source, context);
}

/** The node of the main graph that contains a node. */
function topLevel(model: Model, node: Node): Node {
  let at = node;
  while (at.graph !== undefined && at.graph !== model.graph && at.graph.owner !== undefined)
    at = at.graph.owner;
  return at;
}

function int64s(values: readonly number[]): Tensor {
  return { dtype: 'i64', shape: [values.length], data: BigInt64Array.from(values, BigInt) };
}
