/**
 * Quantized weights as onnxruntime folds them to floats when a session starts: `DequantizeLinear` with
 * blocks. With its session option `disable_quant_qdq` the fold happens once, and products then run
 * as fast as on f32 weights.
 *
 *     MatMul(x, Dequantize)     ->  MatMul(x, DequantizeLinear(i4 [K, N], Cast(f16 [K/32, N]), axis 0))
 *     Gather(Dequantize, ids)   ->  GatherBlockQuantized(i4 [V, D], ids, Cast(f16 [V, D/32]))
 *     tied: both, over one i4 [V, D]; the product becomes FusedMatMul(x, DequantizeLinear(…), transB),
 *     or with WebGPU, which has no FusedMatMul, MatMul(x, Transpose(DequantizeLinear(…)))
 *
 * A weight that only products read is stored [K, N], as MatMul wants it: folding a Transpose as well
 * costs 1.4 times the loading time and a second copy (measured: 20 matrices of 2048 x 2048, 2.1 s
 * against 2.9 s, 756 MB against 1,114 MB, onnxruntime-web 1.30). A table is gathered from packed codes,
 * so that its rows are never all in memory as f32.
 *
 * Source: https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html (opset 21: blocks, 4 bits; 13: per
 * axis), com.microsoft GatherBlockQuantized and FusedMatMul in onnxruntime's ContribOperators.md.
 */
import type { DType } from '../../runtime/tensor.ts';
import { dtypes } from '../../runtime/tensor.ts';
import { int, ints, tensorAttribute } from '../ir/attribute.ts';
import type { Value } from '../ir/graph.ts';
import { Weight } from '../ir/weight.ts';
import { codeStep, middleZero, zeroBits } from '../quant/grid.ts';
import { storeCodes, transpose } from './code-layout.ts';
import type { LowerContext } from './context.ts';
import { quantizedConstant } from './context.ts';
import type { QuantizedGroup, QuantizedUse } from './quantized-uses.ts';
import { matrixOf } from './quantized-uses.ts';

/** The parts of a weight as ONNX reads them. */
interface Parts {
  readonly codes: Value;
  /** f16. */
  readonly scales: Value;
  readonly zeros: Value | undefined;
}

/** Opset that the spelling of a weight needs. */
export function opsetNeeded(group: QuantizedGroup): number {
  // blocks and 4-bit elements came with 21, scales per axis with 13, ConstantOfShape with 9
  if (group.bits !== 8) return 21;
  const gathers = group.uses.filter((use) => canGather(group, use)).length;
  if (gathers === group.uses.length) return 9;
  return isPerChannel(group) && gathers === 0 ? 13 : 21;
}

/** Spells one quantized weight with DequantizeLinear, and removes its Dequantize nodes. */
export function lowerToDequantizeLinear(group: QuantizedGroup, context: LowerContext): void {
  const { rewriter } = context;
  const gathers = group.uses.filter((use) => canGather(group, use));
  const others = group.uses.filter((use) => !gathers.includes(use));
  const products = others.every(({ transposed }) => transposed);
  const turned = gathers.length === 0 && products && others.length > 0;
  rewriter.before(group.nodes[0]);
  const parts = partsOf(group, turned, gathers.length > 0, context);
  const made = new Map<string, Value>();
  const once = (key: string, make: () => Value): Value => {
    const value = made.get(key) ?? make();
    made.set(key, value);
    return value;
  };
  const scalesIn = (dtype: DType): Value =>
    once(`scales ${dtype}`, () => cast(group, parts.scales, dtype, context));
  const floats = (dtype: DType): Value =>
    once(`floats ${dtype}`, () => dequantized(group, parts, turned, dtype, scalesIn, context));
  for (const { dtype } of others) floats(dtype);
  for (const { dtype } of gathers) scalesIn(dtype);

  for (const use of gathers) gather(group, use, parts, scalesIn(use.dtype), context);
  for (const use of others) {
    const { node, index, transposed, dtype } = use;
    const weight = floats(dtype);
    if (transposed === turned) rewriter.setInput(node, index, weight);
    else if (node.op === 'Gemm' && index === 1 && node.domain === '') {
      rewriter.setInput(node, index, weight);
      rewriter.setAttribute(node, 'transB', int(node.int('transB', 0) === 0 ? 1 : 0));
    } else if (context.provider === 'wasm' && multipliesTransposed(use)) {
      const result = rewriter
        .before(node)
        .op(
          'FusedMatMul',
          [node.input(0), weight],
          { transB: int(1) },
          { domain: 'com.microsoft' },
        );
      rewriter.replace(node.output(), result);
      rewriter.remove(node);
    } else {
      const turn = once(`turned ${dtype}`, () =>
        rewriter.before(group.nodes[0]).op('Transpose', [weight], { perm: ints([1, 0]) }),
      );
      rewriter.setInput(node, index, turn);
    }
  }
  for (const node of group.nodes) if (node.output().useCount === 0) rewriter.remove(node);
}

/** Codes, scales and zero points in the orientation asked for. */
function partsOf(
  group: QuantizedGroup,
  turned: boolean,
  gathered: boolean,
  context: LowerContext,
): Parts {
  const { rows, columns, groups, bits, symmetric, constants } = group;
  const matrix = matrixOf(group);
  const stored = bits === 8 ? 8 : 4;
  // GatherBlockQuantized knows signed nibbles, but only unsigned bytes
  const signed = symmetric && !(stored === 8 && gathered);
  const shift = signed ? -middleZero(bits) : 0;
  const shape = (width: number): readonly number[] => (turned ? [width, rows] : [rows, width]);
  const codes = storeCodes(matrix.codes, bits, [rows, columns], {
    bits: stored,
    factor: codeStep(bits),
    shift,
    transposed: turned,
  });
  const dtype = `${signed ? 'i' : 'u'}${stored}` as const;
  const data = dtype === 'i8' ? new Int8Array(codes.buffer) : codes;
  const keep = (part: string, weight: Weight): Value =>
    quantizedConstant(context, group, part, stored, weight);
  const zeros =
    matrix.zeros === undefined
      ? undefined
      : storeCodes(matrix.zeros, zeroBits(bits), [rows, groups], {
          bits: stored,
          factor: 1,
          shift: 0,
          transposed: turned,
        });
  // one scale per channel is a vector, unless GatherBlockQuantized reads it too
  const perAxis = isPerChannel(group) && !gathered;
  const scaleShape = perAxis ? [rows] : shape(groups);
  return {
    codes: keep('packed', Weight.of({ dtype, shape: shape(columns), data })),
    scales: turned
      ? keep(
          'scale',
          Weight.of({
            dtype: 'f16',
            shape: scaleShape,
            data: transpose(matrix.scales, rows, groups),
          }),
        )
      : keep(
          'scale',
          (
            constants.scales.weight ??
            Weight.of({ dtype: 'f16', shape: scaleShape, data: matrix.scales })
          ).reshaped(scaleShape),
        ),
    zeros:
      zeros !== undefined
        ? keep('zero', Weight.of({ dtype: `u${stored}`, shape: scaleShape, data: zeros }))
        : signed
          ? undefined
          : middle(group, scaleShape, stored, context),
  };
}

/** Zero points that are all in the middle, computed when the session starts instead of stored. */
function middle(
  group: QuantizedGroup,
  shape: readonly number[],
  bits: 4 | 8,
  { rewriter }: LowerContext,
): Value {
  const data = Uint8Array.of(middleZero(bits));
  const value = tensorAttribute(Weight.of({ dtype: 'u8', shape: [1], data }));
  const size = rewriter.constant(`${group.name}.zero_shape`, {
    dtype: 'i64',
    shape: [shape.length],
    data: BigInt64Array.from(shape, BigInt),
  });
  return rewriter.op('ConstantOfShape', [size], { value });
}

function dequantized(
  group: QuantizedGroup,
  { codes, scales, zeros }: Parts,
  turned: boolean,
  dtype: DType,
  scalesIn: (dtype: DType) => Value,
  context: LowerContext,
): Value {
  // DequantizeLinear computes in f32 or f16
  const computed = dtype === 'f16' ? 'f16' : 'f32';
  const perAxis = scales.shape?.length === 1;
  const axis = perAxis === turned ? 1 : 0;
  const value = context.rewriter
    .before(group.nodes[0])
    .op('DequantizeLinear', [codes, scalesIn(computed), zeros], {
      axis: int(axis),
      ...(perAxis ? {} : { block_size: int(Math.min(group.group, group.columns)) }),
    });
  return cast(group, value, dtype, context);
}

function gather(
  group: QuantizedGroup,
  { node }: QuantizedUse,
  { codes, zeros }: Parts,
  scales: Value,
  { rewriter }: LowerContext,
): void {
  const bits = codes.dtype === 'u8' ? 8 : 4;
  const rows = rewriter.before(node).op(
    'GatherBlockQuantized',
    [codes, node.input(1), scales, zeros],
    {
      bits: int(bits),
      block_size: int(blockSize(group)),
      gather_axis: int(0),
      quantize_axis: int(1),
    },
    { domain: 'com.microsoft' },
  );
  rewriter.replace(node.output(), rows);
  rewriter.remove(node);
}

/** Whether a use is a Gather of rows that onnxruntime can do on packed codes. */
function canGather(
  group: QuantizedGroup,
  { node, index, transposed, dtype }: QuantizedUse,
): boolean {
  return (
    node.op === 'Gather' &&
    node.domain === '' &&
    index === 0 &&
    !transposed &&
    node.int('axis', 0) === 0 &&
    (dtype === 'f32' || dtype === 'f16') &&
    group.group >= 16 &&
    (isPerChannel(group) || Number.isInteger(Math.log2(group.group))) &&
    // rows of nibbles have to start at a byte
    (group.bits === 8 || group.columns % 2 === 0)
  );
}

/** GatherBlockQuantized wants a power of two; one that covers the row means one block. */
function blockSize(group: QuantizedGroup): number {
  return isPerChannel(group) ? Math.max(16, 2 ** Math.ceil(Math.log2(group.columns))) : group.group;
}

function isPerChannel(group: QuantizedGroup): boolean {
  return group.group >= group.columns;
}

/** Whether a use is a product that FusedMatMul can do with the weight transposed. */
function multipliesTransposed({ node, index, transposed, dtype }: QuantizedUse): boolean {
  const rank = node.inputs[0]?.shape?.length ?? 0;
  const isProduct = node.op === 'MatMul' && node.domain === '' && index === 1;
  return isProduct && transposed && dtype === 'f32' && rank >= 2;
}

function cast(
  group: QuantizedGroup,
  value: Value,
  dtype: DType,
  { rewriter }: LowerContext,
): Value {
  if (value.dtype === dtype) return value;
  return rewriter.before(group.nodes[0]).op('Cast', [value], { to: int(dtypes[dtype].onnx) });
}
