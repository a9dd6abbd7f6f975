/**
 * Integer arithmetic in float ops: values on a grid of integers are held as f32, where integers up to
 * 2^24 are exact. For `expand-integers`.
 */
import type { DType } from '../../runtime/tensor.ts';
import { dtypes, elementCount } from '../../runtime/tensor.ts';
import type { Attributes } from '../ir/attribute.ts';
import { int } from '../ir/attribute.ts';
import { isStatic } from '../ir/dim.ts';
import type { Node, Value } from '../ir/graph.ts';
import type { Rewriter } from '../ir/rewriter.ts';
import { Weight } from '../ir/weight.ts';
import { int64s, integerRange, readNumbers } from '../ops/numbers.ts';

/** A value, what is subtracted from it, and the axis along which that differs. */
type Operand = readonly [value: Value, zero: Value | undefined, axis: number];

/** Bits of integers that f32 holds with room for their sums. */
const MOST_BITS = 16;

/** Adds nodes where the rewriter stands. */
export class GridOps {
  private readonly rewriter: Rewriter;
  /** f32 values behind the integers that were made of them. */
  private readonly wholes = new Map<Value, Value>();

  constructor(rewriter: Rewriter) {
    this.rewriter = rewriter;
  }

  /** Adds a node. */
  op(op: string, inputs: readonly (Value | undefined)[], attributes: Attributes = {}): Value {
    return this.rewriter.op(op, inputs, attributes);
  }

  /** Integers held as f32, as a value of their dtype. */
  whole(value: Value, dtype: DType): Value {
    const cast = this.op('Cast', [value], { to: int(dtypes[dtype].onnx) });
    this.wholes.set(cast, value);
    return cast;
  }

  /**
   * Constant floats made of constant integers; 8-bit ones are computed when they are read, and remember
   * their codes. Undefined when they are no constants, or scaled in a way that is no axis.
   */
  gridWeight(x: Value, scale: Value, zero: Value | undefined, axis: number): Weight | undefined {
    if (scale.weight === undefined || (zero !== undefined && zero.weight === undefined))
      return undefined;
    return this.weightOn(x, numbersOf(scale), zero, axis, false);
  }

  private weightOn(
    { weight: codes }: Value,
    scales: readonly number[],
    zero: Value | undefined,
    axis: number,
    exact: boolean,
  ): Weight | undefined {
    if (codes === undefined || !/^[iu](8|16|32)$/.test(codes.dtype)) return undefined;
    const rank = codes.shape.length;
    const place = scales.length === 1 ? 0 : axis < 0 ? axis + rank : axis;
    const given = zero === undefined ? [] : numbersOf(zero);
    const count = Math.max(scales.length, given.length);
    if (count > 1 && codes.shape[place] !== count) return undefined;
    const spread = (list: readonly number[], none: number): number[] =>
      Array.from({ length: count }, (_, i) => list[list.length === 1 ? 0 : i] ?? none);
    const grid = { codes, scales: spread(scales, 1), zeros: spread(given, 0), axis: place, exact };
    const floats = Weight.onGrid(grid);
    return dtypes[codes.dtype].bits === 8 ? floats : Weight.of(floats.tensor());
  }

  /** (x - zero) * scale, or why not. */
  dequantized(x: Value, scale: Value, zero: Value | undefined, axis: number): [Value] | string {
    const constant = this.gridWeight(x, scale, zero, axis);
    if (constant !== undefined) return [this.rewriter.constant(x.name, constant)];
    const centered = this.centered([x, zero, axis]);
    if (typeof centered === 'string') return centered;
    const factor = this.along(scale, axis, x);
    return typeof factor === 'string' ? factor : [this.op('Mul', [centered, factor])];
  }

  /** x / scale, or why not. */
  divided(x: Value, scale: Value, axis: number): Value | string {
    const by = this.along(scale, axis, x);
    return typeof by === 'string' ? by : this.op('Div', [x, by]);
  }

  /** The nearest integers, shifted and kept within the range of a dtype; or why not. */
  rounded(
    level: Value,
    zero: Value | undefined,
    dtype: DType | undefined,
    axis: number,
  ): [Value] | string {
    if (dtype === undefined || !/^[iu]/.test(dtype) || dtypes[dtype].bits > MOST_BITS)
      return `it rounds to ${dtype ?? 'an unknown type'}`;
    const shift = zero === undefined ? undefined : this.along(zero, axis, level);
    if (typeof shift === 'string') return shift;
    const nearest = this.op('Round', [level]);
    const shifted = shift === undefined ? nearest : this.op('Add', [nearest, shift]);
    const [low, high] = integerRange(dtype).map((bound) => this.scalar(bound));
    return [this.whole(this.op('Clip', [shifted, low, high]), dtype)];
  }

  /** A product of integers without their zero points, held as f32; or why not. */
  product(
    op: 'Conv' | 'MatMul',
    node: Node,
    left: Operand,
    right: Operand,
    bias: Value | undefined,
  ): Value | string {
    const [a, b] = [this.centered(left), this.centered(right)];
    if (typeof a === 'string') return a;
    if (typeof b === 'string') return b;
    const terms = bias === undefined ? [] : [this.floats(bias)];
    return this.op(op, [a, b, ...terms], op === 'Conv' ? Object.fromEntries(node.attributes) : {});
  }

  /** x * w / y for scales, in the shape of an output of that rank; or why not. */
  factor(
    [x, xAxis]: readonly [Value, number],
    [w, wAxis]: readonly [Value, number],
    y: Value,
    rank: number,
  ): Value | string {
    const constants = [x, w, y].map(({ weight }) => weight !== undefined);
    const single = x.weight !== undefined && elementCount(x.weight.shape) === 1;
    if (constants.every(Boolean) && single) {
      const [[left = 1], [by = 1]] = [numbersOf(x), numbersOf(y)];
      const values = numbersOf(w).map((scale) => (left * scale) / by);
      return this.vector(values, wAxis, rank);
    }
    const parts = [this.along(x, xAxis, rank), this.along(w, wAxis, rank), this.along(y, 0, rank)];
    const [left, right, by] = parts;
    for (const part of parts) if (typeof part === 'string') return part;
    return this.op('Div', [this.op('Mul', [left as Value, right as Value]), by as Value]);
  }

  /** What DynamicQuantizeLinear gives: integers, their scale and their zero point. */
  dynamic(x: Value): Value[] {
    const flat = { keepdims: int(0) };
    const zero = this.scalar(0);
    const low = this.op('Min', [this.op('ReduceMin', [x], flat), zero]);
    const high = this.op('Max', [this.op('ReduceMax', [x], flat), zero]);
    const step = this.op('Div', [this.op('Sub', [high, low]), this.scalar(255)]);
    // all zeros: any scale will do
    const isZero = this.op('Equal', [step, zero]);
    const scale = this.op('Where', [isZero, this.scalar(1), step]);
    const [from, to] = [zero, this.scalar(255)];
    const shift = this.op('Round', [this.op('Div', [this.op('Neg', [low]), scale])]);
    const origin = this.op('Clip', [shift, from, to]);
    const levels = this.op('Add', [this.op('Round', [this.op('Div', [x, scale])]), origin]);
    const codes = this.whole(this.op('Clip', [levels, from, to]), 'u8');
    return [codes, scale, this.whole(origin, 'u8')];
  }

  /** Integers without their zero point, as f32; or why not. */
  private centered([value, zero, axis]: Operand): Value | string {
    if (value.weight !== undefined && (zero === undefined || zero.weight !== undefined)) {
      const weight = this.weightOn(value, [1], zero, axis, true);
      if (weight !== undefined) return this.rewriter.constant(value.name, weight);
    }
    const floats = this.floats(value);
    const none = zero?.weight !== undefined && numbersOf(zero).every((number) => number === 0);
    if (zero === undefined || none) return floats;
    const shift = this.along(zero, axis, value);
    return typeof shift === 'string' ? shift : this.op('Sub', [floats, shift]);
  }

  /** A value as f32. */
  private floats(value: Value): Value {
    const known = this.wholes.get(value);
    if (known !== undefined) return known;
    if (value.weight !== undefined && elementCount(value.weight.shape) <= 65_536)
      return this.constant(numbersOf(value), value.weight.shape);
    return value.dtype === 'f32' ? value : this.op('Cast', [value], { to: int(dtypes.f32.onnx) });
  }

  /** A scale or zero point as f32 that broadcasts along an axis of a value; or why not. */
  private along(parameter: Value, axis: number, to: Value | number): Value | string {
    const { shape } = parameter;
    if (!isStatic(shape)) return `the shape of "${parameter.name}" is not known`;
    const count = elementCount(shape);
    if (count === 1 && parameter.weight !== undefined) return this.scalar(numbersOf(parameter)[0]);
    const floats = this.floats(parameter);
    if (count === 1 && shape.length === 0) return floats;
    const rank = typeof to === 'number' ? to : to.shape?.length;
    if (rank === undefined) return 'its rank is not known';
    if (shape.length > 1) return floats;
    if (parameter.weight !== undefined) return this.vector(numbersOf(parameter), axis, rank);
    return this.op('Reshape', [
      floats,
      this.rewriter.constant('shape', int64s(axisShape(count, axis, rank))),
    ]);
  }

  private vector(values: readonly number[], axis: number, rank: number): Value {
    if (values.length === 1) return this.scalar(values[0]);
    return this.constant(values, axisShape(values.length, axis, rank));
  }

  private scalar(value = 0): Value {
    return this.constant([value], []);
  }

  private constant(values: readonly number[], shape: readonly number[]): Value {
    const tensor = { dtype: 'f32' as const, shape, data: Float32Array.from(values) };
    return this.rewriter.constant('grid', tensor);
  }
}

/** One size along an axis, 1 elsewhere; without the ones in front. */
function axisShape(count: number, axis: number, rank: number): number[] {
  const behind = axis < 0 ? -axis - 1 : Math.max(0, rank - axis - 1);
  return [count, ...Array.from({ length: behind }, () => 1)];
}

function numbersOf(value: Value): readonly number[] {
  const tensor = value.weight?.tensor();
  return tensor === undefined ? [] : Array.from(readNumbers(tensor));
}
