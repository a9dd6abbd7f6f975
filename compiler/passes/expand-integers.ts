/**
 * Writes 8-bit integer arithmetic, as quantizers leave it, in float ops. Values keep their grids, so that
 * results are those of the integers but for ties of rounding; weights are remembered as codes
 * (`restore-codes`).
 *
 *     QuantizeLinear(x, s, z)                 ->   Cast(Clip(Round(x / s) + z))
 *     DequantizeLinear(q, s, z)               ->   (q - z) * s
 *     DequantizeLinear(codes, s, z)           ->   a constant
 *     QLinearConv(x, xs, xz, w, …)            ->   Clip(Round(Conv(x - xz, w - wz) * m) + z)
 *     MatMulInteger(a, b, az, bz)             ->   MatMul(a - az, b - bz)
 *     DynamicQuantizeLinear, MatMulInteger, Cast, Mul   ->   MatMul(x, w)
 *
 * The last one leaves the rounding of activations to the engine, which does it per 32 values instead of
 * once for all of them. Refuses scales per block of what is computed, and integers of more than 16 bits.
 *
 * Source: https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html and its relatives; com.microsoft ops in
 * onnxruntime's ContribOperators.md.
 */
import type { Attributes } from '../ir/attribute.ts';
import type { Node, Value } from '../ir/graph.ts';
import { Weight } from '../ir/weight.ts';
import { GridOps } from './grid-ops.ts';
import type { Pass, PassContext } from './pass.ts';
import { removeIfUnused, replaceByConstant, replaceByNew } from './replace.ts';

/** Makes the pass. It has no options. */
export function expandIntegers(): Pass {
  return {
    name: 'expand-integers',
    options: {},
    rules: [
      { name: 'dynamic-product', starts: [] },
      { name: 'expand', starts: Object.keys(expansions) },
    ],
    run(model, context) {
      const before = context.rewriter.changes;
      for (const node of model.graph.allNodes()) dynamicProduct(node, context);
      const ops = new GridOps(context.rewriter);
      for (const node of model.graph.allNodes()) {
        const key = keyOf(node);
        const expand = Object.hasOwn(expansions, key) ? expansions[key] : undefined;
        if (expand === undefined || node.graph === undefined) continue;
        context.rewriter.before(node);
        const made = expand(node, ops);
        if (typeof made === 'string') {
          context.refuse('expand', node, made);
          continue;
        }
        made.forEach((value, index) => {
          const output = node.outputs[index];
          if (output === undefined || value === undefined) return;
          if (value instanceof Weight) replaceByConstant(context.rewriter, output, value);
          else replaceByNew(context.rewriter, output, value);
        });
        removeIfUnused(context.rewriter, node);
        context.count('expand');
      }
      return context.rewriter.changes > before;
    },
  };
}

const keyOf = ({ domain, op }: Node): string => (domain === '' ? op : `${domain}.${op}`);

/** What stands for a node's outputs, or why nothing does. */
type Expanded = readonly (Value | Weight | undefined)[] | string;

type Expand = (node: Node, ops: GridOps) => Expanded;

/** Attributes of a node that its float form has too. */
const attributesOf = (node: Node): Attributes => Object.fromEntries(node.attributes);

const dequantize: Expand = (node, ops) => {
  const [x, scale] = [node.input(0), node.input(1)];
  if (node.int('block_size', 0) > 0) return 'its scales are per block';
  const constant = ops.gridWeight(x, scale, node.inputs[2], node.int('axis', 1));
  if (constant !== undefined) return [constant];
  return ops.dequantized(x, scale, node.inputs[2], node.int('axis', 1));
};

const quantize: Expand = (node, ops) => {
  if (node.int('block_size', 0) > 0) return 'its scales are per block';
  const [x, scale] = [node.input(0), node.input(1)];
  const y = ops.divided(x, scale, node.int('axis', 1));
  if (typeof y === 'string') return y;
  const dtype = node.output().dtype;
  return ops.rounded(y, node.inputs[2], dtype, node.int('axis', 1));
};

/** The product of centered operands with its scales, on the grid of the output. */
function qLinear(op: 'Conv' | 'MatMul', axes: readonly [number, number]): Expand {
  return (node, ops) => {
    const [x, xScale, xZero, w, wScale, wZero, yScale, yZero] = node.inputs;
    if (
      x === undefined ||
      w === undefined ||
      xScale === undefined ||
      wScale === undefined ||
      yScale === undefined
    )
      return 'an input is missing';
    const sum = ops.product(op, node, [x, xZero, axes[0]], [w, wZero, axes[1]], node.inputs[8]);
    if (typeof sum === 'string') return sum;
    // scales of filters lie along the channels of the output
    const factor = ops.factor(
      [xScale, op === 'Conv' ? 1 : -2],
      [wScale, op === 'Conv' ? 1 : -1],
      yScale,
      sum.shape?.length ?? 0,
    );
    if (typeof factor === 'string') return factor;
    return ops.rounded(ops.op('Mul', [sum, factor]), yZero, node.output().dtype, 0);
  };
}

const integerProduct =
  (op: 'Conv' | 'MatMul', axes: readonly [number, number]): Expand =>
  (node, ops) => {
    const [a, b, aZero, bZero] = node.inputs;
    if (a === undefined || b === undefined) return 'an input is missing';
    const sum = ops.product(op, node, [a, aZero, axes[0]], [b, bZero, axes[1]], undefined);
    return typeof sum === 'string' ? sum : [ops.whole(sum, 'i32')];
  };

const dynamicQuantize: Expand = (node, ops) => ops.dynamic(node.input(0));

/** An op of floats between dequantizing and quantizing; inputs come in threes. */
function between(op: string, inputs: number): Expand {
  return (node, ops) => {
    if (node.int('channels_last', 0) !== 0) return 'its channels are last';
    const floats = Array.from({ length: inputs }, (_, i) =>
      ops.dequantized(node.input(3 * i), node.input(3 * i + 1), node.inputs[3 * i + 2], 0),
    );
    const why = floats.find((made) => typeof made === 'string');
    if (why !== undefined) return why;
    const y = ops.op(op, floats.flat() as Value[], attributesOf(node));
    const level = ops.divided(y, node.input(3 * inputs), 0);
    if (typeof level === 'string') return level;
    return ops.rounded(level, node.inputs[3 * inputs + 1], node.input(0).dtype, 0);
  };
}

/** A float product of `left` and constant or computed codes, with a bias. */
function floatProduct(
  ops: GridOps,
  left: Value,
  [codes, scale, zero, bias]: readonly [Value, Value, Value | undefined, Value | undefined],
): Expanded {
  const right = ops.dequantized(codes, scale, zero, -1);
  if (typeof right === 'string') return right;
  const y = ops.op('MatMul', [left, ...right]);
  return [bias === undefined ? y : ops.op('Add', [y, bias])];
}

const dynamicQuantizeMatMul: Expand = (node, ops) => {
  const [, , , zero, bias] = node.inputs;
  return floatProduct(ops, node.input(0), [node.input(1), node.input(2), zero, bias]);
};

const matMulIntegerToFloat: Expand = (node, ops) => {
  const [, , , , aZero, bZero, bias] = node.inputs;
  const left = ops.dequantized(node.input(0), node.input(2), aZero, -2);
  if (typeof left === 'string') return left;
  return floatProduct(ops, left[0], [node.input(1), node.input(3), bZero, bias]);
};

const concat: Expand = (node, ops) => {
  const parts: Value[] = [];
  for (let at = 2; at < node.inputs.length; at += 3) {
    const part = ops.dequantized(node.input(at), node.input(at + 1), node.inputs[at + 2], 0);
    if (typeof part === 'string') return part;
    parts.push(...part);
  }
  const level = ops.divided(ops.op('Concat', parts, attributesOf(node)), node.input(0), 0);
  if (typeof level === 'string') return level;
  return ops.rounded(level, node.inputs[1], node.output().dtype, 0);
};

const contrib = 'com.microsoft';

const expansions: Readonly<Record<string, Expand>> = {
  DequantizeLinear: dequantize,
  [`${contrib}.DequantizeLinear`]: dequantize,
  QuantizeLinear: quantize,
  [`${contrib}.QuantizeLinear`]: quantize,
  DynamicQuantizeLinear: dynamicQuantize,
  QLinearConv: qLinear('Conv', [0, 0]),
  QLinearMatMul: qLinear('MatMul', [-2, -1]),
  ConvInteger: integerProduct('Conv', [0, 0]),
  MatMulInteger: integerProduct('MatMul', [-2, -1]),
  [`${contrib}.DynamicQuantizeMatMul`]: dynamicQuantizeMatMul,
  [`${contrib}.MatMulIntegerToFloat`]: matMulIntegerToFloat,
  [`${contrib}.QLinearConcat`]: concat,
  [`${contrib}.QLinearAdd`]: between('Add', 2),
  [`${contrib}.QLinearMul`]: between('Mul', 2),
  [`${contrib}.QLinearSigmoid`]: between('Sigmoid', 1),
  [`${contrib}.QLinearLeakyRelu`]: between('LeakyRelu', 1),
  [`${contrib}.QLinearAveragePool`]: between('AveragePool', 1),
  [`${contrib}.QLinearGlobalAveragePool`]: between('GlobalAveragePool', 1),
};

/**
 * The product that a dynamic quantizer took apart: what is rounded to u8 and multiplied by codes is
 * multiplied by weights in codes, whose kernel rounds it itself.
 */
function dynamicProduct(node: Node, context: PassContext): void {
  if (keyOf(node) !== 'MatMulInteger' && keyOf(node) !== 'ConvInteger') return;
  const [a, b, , bZero] = node.inputs;
  const source = a?.producer;
  if (source?.op !== 'DynamicQuantizeLinear' || b?.weight === undefined) return;
  const cast = onlyUser(node.output());
  const scaled = cast?.op === 'Cast' ? onlyUser(cast.output()) : undefined;
  if (cast === undefined || scaled?.op !== 'Mul') return;
  const factor = scaled.input(scaled.inputs[0] === cast.output() ? 1 : 0).producer;
  const scale = source.output(1);
  if (factor?.op !== 'Mul' || !factor.inputs.includes(scale)) return;
  const bScale = factor.input(factor.inputs[0] === scale ? 1 : 0);
  if (bScale.weight === undefined) return;
  const { rewriter } = context;
  rewriter.before(scaled);
  const isConv = node.op === 'ConvInteger';
  const weight = new GridOps(rewriter).gridWeight(b, bScale, bZero, isConv ? 0 : -1);
  if (weight === undefined) return;
  const matrix = rewriter.constant(b.name, weight);
  const inputs = [source.input(0), matrix];
  const y = rewriter.op(isConv ? 'Conv' : 'MatMul', inputs, attributesOf(node));
  replaceByNew(rewriter, scaled.output(), y);
  for (const unused of [scaled, factor, cast, node, source]) removeIfUnused(rewriter, unused);
  context.count('dynamic-product');
}

/** The only node that reads a value which is no output. */
function onlyUser(value: Value): Node | undefined {
  const [user, more] = value.users.keys();
  return value.isOutput || more !== undefined ? undefined : user;
}
