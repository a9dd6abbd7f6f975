/**
 * Quantized weights as onnxruntime computes with them on WebGPU, packed.
 *
 *     MatMul(x, Dequantize)        ->  MatMulNBits(x, u8 [N, K/32, 16], Cast(f16 [N, K/32]))
 *     Gemm(x, Dequantize, c)       ->  Add(MatMulNBits(…), c)
 *     Gather(Dequantize, ids)      ->  GatherBlockQuantized(u8 [V, D/2], ids, Cast(f16 [V, D/32]))
 *     tied: both, over one u8 [V, D/2], which a Reshape hands to the product
 *
 * Provider kernels are picked by op type and dtype alone, so attributes that a kernel does not take
 * fail when the model runs, or run slowly. Hence the conditions here; a use that does not meet them
 * says which one, and is folded to floats when the session starts (`dequantize-linear.ts`).
 *
 * Source: com.microsoft MatMulNBits and GatherBlockQuantized in onnxruntime's ContribOperators.md;
 * conditions: matmul_nbits.cc and dp4a_matmul_nbits.cc of onnxruntime/contrib_ops/webgpu/quantization.
 */
import type { DType } from '../../runtime/tensor.ts';
import { dtypes } from '../../runtime/tensor.ts';
import { int } from '../ir/attribute.ts';
import type { Node, Value } from '../ir/graph.ts';
import { Weight } from '../ir/weight.ts';
import { codeStep, middleZero } from '../quant/grid.ts';
import { storeCodes } from './code-layout.ts';
import type { LowerContext } from './context.ts';
import { quantizedConstant } from './context.ts';
import type { QuantizedGroup, QuantizedUse } from './quantized-uses.ts';
import { matrixOf } from './quantized-uses.ts';

/** Inputs that share a scale. */
const BLOCK = 32;
/** What inputs and outputs of a product must be multiples of. */
const INPUTS_MULTIPLE = 128;
const OUTPUTS_MULTIPLE = 16;

/**
 * Spells one quantized weight with MatMulNBits and GatherBlockQuantized, and removes its Dequantize
 * nodes.
 *
 * @returns false, with nothing changed, when one of its uses cannot be computed from packed codes:
 * storing the codes in two layouts would cost more than it gains
 */
export function lowerToMatMulNBits(group: QuantizedGroup, context: LowerContext): boolean {
  const { rewriter } = context;
  const reasons = group.uses.map((use) => unfit(group, use));
  const bad = reasons.findIndex((why) => why !== undefined);
  if (bad >= 0) {
    context.refuse(
      'mat-mul-nbits',
      group.name,
      `${reasons[bad]}; folded to floats at load instead`,
    );
    return false;
  }
  const gathers = group.uses.some(({ node }) => node.op === 'Gather');
  const products = group.uses.some(({ node }) => node.op !== 'Gather');
  rewriter.before(group.nodes[0]);
  const parts = partsOf(group, gathers, products, context);
  const scales = new Map<DType, Value>();
  for (const { dtype } of group.uses)
    if (!scales.has(dtype)) scales.set(dtype, castTo(dtype, parts.scales, context));
  for (const { node, dtype } of group.uses) {
    const inputs = { ...parts, scale: scales.get(dtype) };
    const result =
      node.op === 'Gather' ? gather(node, inputs, context) : product(group, node, inputs, context);
    rewriter.replace(node.output(), result);
    rewriter.remove(node);
  }
  for (const node of group.nodes) rewriter.remove(node);
  return true;
}

/** Why a use cannot be computed from packed codes, or undefined. */
function unfit(
  group: QuantizedGroup,
  { node, index, transposed, dtype }: QuantizedUse,
): string | undefined {
  const { columns, rows, symmetric } = group;
  const isGather = node.op === 'Gather' && index === 0 && node.int('axis', 0) === 0 && !transposed;
  const isGemm = node.op === 'Gemm' && index === 1;
  const isProduct = (node.op === 'MatMul' && index === 1 && transposed) || isGemm;
  if (node.domain !== '' || !(isGather || isProduct))
    return `${node.describe()} has no kernel for packed weights`;
  if (dtype !== 'f32' && dtype !== 'f16')
    return `packed weights are read as f32 or f16, not ${dtype}`;
  if (!symmetric) return 'zero points are slow there: use a symmetric format such as w4g32';
  if (group.group !== BLOCK)
    return `blocks of ${group.group}: only blocks of ${BLOCK} are fast there`;
  if (columns % BLOCK !== 0) return `${columns} inputs are no multiple of ${BLOCK}`;
  if (isGather) return undefined;
  if (columns % INPUTS_MULTIPLE !== 0)
    return `${columns} inputs are no multiple of ${INPUTS_MULTIPLE}`;
  if (rows % OUTPUTS_MULTIPLE !== 0)
    return `${rows} outputs are no multiple of ${OUTPUTS_MULTIPLE}`;
  if (
    isGemm &&
    (node.float('alpha', 1) !== 1 || node.float('beta', 1) !== 1 || node.int('transA', 0) !== 0)
  )
    return 'a Gemm with alpha, beta or transA is no plain product';
  const rank = node.inputs[0]?.shape?.length;
  return rank === undefined || rank < 2 ? 'the rank of the other operand is not known' : undefined;
}

interface Parts {
  /** u8 [rows, bytes]; absent when only products read it. */
  readonly table: Value | undefined;
  /** u8 [rows, blocks, bytes]; absent when only gathers read it. */
  readonly blocks: Value | undefined;
  /** f16 [rows, blocks]. */
  readonly scales: Value;
  readonly bits: 4 | 8;
}

/** Parts with the scales in the dtype of one use. */
interface Inputs extends Parts {
  readonly scale: Value | undefined;
}

function partsOf(
  group: QuantizedGroup,
  gathers: boolean,
  products: boolean,
  context: LowerContext,
): Parts {
  const { rows, columns, groups, bits, constants } = group;
  const { rewriter } = context;
  const stored = bits === 8 ? 8 : 4;
  // the zero point that is meant when none is given: the middle of the stored range
  const shift = middleZero(stored) - middleZero(bits);
  const data = storeCodes(matrixOf(group).codes, bits, [rows, columns], {
    bits: stored,
    factor: codeStep(bits),
    shift,
    transposed: false,
  });
  const shape = [rows, groups, (BLOCK * stored) / 8];
  const keep = (dims: readonly number[]): Value =>
    quantizedConstant(
      context,
      group,
      'packed',
      stored,
      Weight.of({ dtype: 'u8', shape: dims, data }),
    );
  const table = gathers ? keep([rows, (columns * stored) / 8]) : undefined;
  const { scales } = constants;
  context.formats.set(scales.name, group.format);
  return {
    table,
    blocks: !products
      ? undefined
      : table === undefined
        ? keep(shape)
        : rewriter.op('Reshape', [table, shapeConstant(group, shape, context)]),
    scales,
    bits: stored,
  };
}

function product(
  group: QuantizedGroup,
  node: Node,
  { blocks, scale, bits }: Inputs,
  { rewriter }: LowerContext,
): Value {
  const result = rewriter.before(node).op(
    'MatMulNBits',
    [node.input(0), blocks, scale],
    {
      K: int(group.columns),
      N: int(group.rows),
      bits: int(bits),
      block_size: int(BLOCK),
    },
    { domain: 'com.microsoft' },
  );
  const bias = node.op === 'Gemm' ? node.inputs[2] : undefined;
  return bias === undefined ? result : rewriter.op('Add', [result, bias]);
}

function gather(node: Node, { table, scale, bits }: Inputs, { rewriter }: LowerContext): Value {
  return rewriter
    .before(node)
    .op(
      'GatherBlockQuantized',
      [table, node.input(1), scale],
      { bits: int(bits), block_size: int(BLOCK), gather_axis: int(0), quantize_axis: int(1) },
      { domain: 'com.microsoft' },
    );
}

function castTo(dtype: DType, scales: Value, { rewriter }: LowerContext): Value {
  if (scales.dtype === dtype) return scales;
  return rewriter.op('Cast', [scales], { to: int(dtypes[dtype].onnx) });
}

function shapeConstant(
  group: QuantizedGroup,
  shape: readonly number[],
  context: LowerContext,
): Value {
  return context.rewriter.constant(`${group.name}.block_shape`, {
    dtype: 'i64',
    shape: [shape.length],
    data: BigInt64Array.from(shape, BigInt),
  });
}
