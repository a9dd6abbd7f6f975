/**
 * The internal op that carries quantized weights through the graph. `quantize-weights` puts it in
 * front of a weight's users, `lower/` turns it into what an engine reads; it never leaves the compiler.
 *
 *   fettle.Dequantize(codes u8 [N, rowBytes], scales f16 [N, groups], zeros? u8 [N, zeroBytes],
 *                     codebook? i8 [C, 16])
 *     -> f32 [N, columns], or [columns, N] when `transposed`
 *
 * Codes and zero points are packed as `quant/pack.ts` says and mean what `quant/grid.ts` says. N are output channels, columns inputs;
 * groups run along the inputs. With a codebook, codes of 4 bits are indices into the 16 levels of their
 * run of N / C rows, and there are no zero points. Tied weights share the constants of two such nodes.
 */
import type { DType, Tensor } from '../../runtime/tensor.ts';
import { dtypeOfOnnx, dtypes } from '../../runtime/tensor.ts';
import type { Attributes } from '../ir/attribute.ts';
import { int } from '../ir/attribute.ts';
import type { Node } from '../ir/graph.ts';
import { zeroBits } from '../quant/grid.ts';
import type { CodeLayout } from '../quant/matrix.ts';
import { CODEBOOK_LEVELS, dequantizeMatrix, groupCount } from '../quant/matrix.ts';
import { packedRowBytes } from '../quant/pack.ts';
import type { EvaluateContext, InferContext, OpDefinition } from './definition.ts';
import { writeNumbers } from './numbers.ts';
import { opError } from './support.ts';

/** Domain of ops that only the compiler knows. */
export const internalDomain = 'fettle';

/** What the attributes of a Dequantize node say. */
export interface DequantizeAttributes {
  /** Bits of a code: 2, 3, 4 or 8. */
  readonly bits: number;
  /** Inputs that share a scale; `columns` for one scale per output channel. */
  readonly group: number;
  /** Inputs. */
  readonly columns: number;
  /** Whether the output is [columns, N]. */
  readonly transposed: boolean;
  /** Dtype of the output: f32, f16, bf16 or f64. */
  readonly dtype: DType;
}

/** Attributes of a Dequantize node. */
export function dequantizeAttributes(attributes: DequantizeAttributes): Attributes {
  return {
    bits: int(attributes.bits),
    group: int(attributes.group),
    columns: int(attributes.columns),
    transposed: int(attributes.transposed ? 1 : 0),
    to: int(dtypes[attributes.dtype].onnx),
  };
}

/** Whether a node is a Dequantize. */
export function isDequantize(node: Node | undefined): node is Node {
  return node?.op === 'Dequantize' && node.domain === internalDomain;
}

/** The attributes of a Dequantize node. */
export function readDequantize(node: Node): DequantizeAttributes {
  const columns = node.int('columns', 0);
  return {
    bits: node.int('bits', 4),
    group: node.int('group', columns),
    columns,
    transposed: node.int('transposed', 0) === 1,
    dtype: dtypeOfOnnx(node.int('to', dtypes.f32.onnx)) ?? 'f32',
  };
}

/** The op's definition. */
export const quantizedOps: readonly OpDefinition[] = [
  {
    op: 'Dequantize',
    domain: internalDomain,
    inputs: [2, 4],
    outputs: [1, 1],
    infer(context) {
      const { columns, transposed, dtype } = readDequantize(context.node);
      const rows = context.input(0).shape?.[0];
      if (rows === undefined) return [{ dtype }];
      checkLayout(context, rows);
      return [{ dtype, shape: transposed ? [columns, rows] : [rows, columns] }];
    },
    evaluate(context) {
      const { columns, bits, group, transposed, dtype } = readDequantize(context.node);
      const codes = context.input(0);
      const layout: CodeLayout = { rows: codes.shape[0] ?? 0, columns, bits, group };
      const values = dequantizeMatrix(
        {
          ...layout,
          codes: bytes(context, codes),
          scales: halves(context, context.input(1)),
          zeros: context.inputs[2] === undefined ? undefined : bytes(context, context.inputs[2]),
          codebook:
            context.inputs[3] === undefined ? undefined : levels(context, context.inputs[3]),
        },
        transposed,
      );
      const shape = transposed ? [columns, layout.rows] : [layout.rows, columns];
      return [writeNumbers(dtype, shape, values)];
    },
    cost(node, shapeOf) {
      const elements = shapeOf(node.output()).reduce((product, dim) => product * dim, 1);
      return { flops: 2 * elements, bytes: (elements * node.int('bits', 4)) / 8 + 4 * elements };
    },
  },
];

function checkLayout(context: InferContext, rows: number | string): void {
  const { bits, group, columns } = readDequantize(context.node);
  if (![2, 3, 4, 8].includes(bits))
    throw opError(context, `bits must be 2, 3, 4 or 8, got ${bits}`);
  if (group < 1 || columns < 1)
    throw opError(context, `group and columns must be positive, got ${group} and ${columns}`);
  const groups = groupCount({ columns, group });
  const widths = [packedRowBytes(bits, columns), groups, packedRowBytes(zeroBits(bits), groups)];
  ['codes', 'scales', 'zeros'].forEach((name, index) => {
    const shape = context.node.inputs[index]?.shape;
    if (shape !== undefined && (shape[0] !== rows || shape[1] !== widths[index]))
      throw opError(context, `${name} must be [${rows}, ${widths[index]}], got [${shape}]`);
  });
  const [, , zeros, codebook] = context.node.inputs;
  if (codebook === undefined) return;
  if (bits !== 4 || zeros !== undefined)
    throw opError(context, 'a codebook wants codes of 4 bits and no zero points');
  const [tables, entries] = codebook.shape ?? [1, CODEBOOK_LEVELS];
  const splits = typeof rows !== 'number' || typeof tables !== 'number' || rows % tables === 0;
  if (entries !== CODEBOOK_LEVELS || !splits)
    throw opError(
      context,
      `codebook must be [C, 16] where C divides ${rows}, got [${codebook.shape}]`,
    );
}

function bytes(context: EvaluateContext, tensor: Tensor): Uint8Array<ArrayBuffer> {
  if (!(tensor.data instanceof Uint8Array))
    throw opError(context, `codes are ${tensor.dtype}, not u8`);
  return tensor.data as Uint8Array<ArrayBuffer>;
}

function levels(context: EvaluateContext, tensor: Tensor): Int8Array<ArrayBuffer> {
  if (!(tensor.data instanceof Int8Array))
    throw opError(context, `the codebook is ${tensor.dtype}, not i8`);
  return tensor.data as Int8Array<ArrayBuffer>;
}

function halves(context: EvaluateContext, tensor: Tensor): Uint16Array<ArrayBuffer> {
  if (!(tensor.data instanceof Uint16Array))
    throw opError(context, `scales are ${tensor.dtype}, not f16`);
  return tensor.data as Uint16Array<ArrayBuffer>;
}
