/**
 * Cast, CastLike and BitCast between every pair of dtypes. Floats to integers truncate and wrap;
 * small floats round to nearest even and saturate unless told otherwise; strings are written the way
 * NumPy writes them.
 */
import type { DType, Tensor } from '../../runtime/tensor.ts';
import { bytesOf, dtypes, elementCount, viewBytes } from '../../runtime/tensor.ts';
import type { Dim } from '../ir/dim.ts';
import type { Node } from '../ir/graph.ts';
import type { OpDefinition } from './definition.ts';
import type { Rounding } from './float-formats.ts';
import {
  isFloat,
  isInteger,
  isWide,
  readBigInts,
  readNumbers,
  readStrings,
  writeBigInts,
  writeNumbers,
} from './numbers.ts';
import { dtypeAttribute, onnxOp, opError, unsupported } from './support.ts';

/**
 * A tensor converted to another dtype.
 *
 * @param rounding - for floats of 8 bits and less
 */
export function castTensor(tensor: Tensor, dtype: DType, rounding?: Rounding): Tensor {
  const { shape } = tensor;
  if (tensor.dtype === dtype) return tensor;
  if (tensor.dtype === 'string') return parseStrings(tensor, dtype);
  if (dtype === 'string') return { dtype, shape, data: textsOf(tensor) };
  if (isWide(tensor.dtype) && isInteger(dtype))
    return writeBigInts(dtype, shape, readBigInts(tensor));
  return writeNumbers(dtype, shape, readNumbers(tensor), rounding);
}

function parseStrings(tensor: Tensor, dtype: DType): Tensor {
  const texts = readStrings(tensor);
  if (isWide(dtype))
    return writeBigInts(
      dtype,
      tensor.shape,
      texts.map((t) => BigInt(t.trim())),
    );
  return writeNumbers(dtype, tensor.shape, texts.map(parseNumber));
}

/** A number as ONNX writes it: `INF`, `-inf`, `NaN`, `1e-5`. */
function parseNumber(text: string): number {
  const word = text.trim().toLowerCase();
  const infinite = /^([+-]?)inf(?:inity)?$/.exec(word);
  if (infinite !== null) return infinite[1] === '-' ? -Infinity : Infinity;
  return word === 'nan' ? NaN : Number(word);
}

function textsOf(tensor: Tensor): readonly string[] {
  if (isWide(tensor.dtype)) return Array.from(readBigInts(tensor), String);
  const numbers = Array.from(readNumbers(tensor));
  if (!isFloat(tensor.dtype)) return numbers.map(String);
  return numbers.map((value) => floatText(value, tensor.dtype !== 'f64'));
}

/** The shortest text that reads back as the same float. */
function floatText(value: number, single: boolean): string {
  if (Number.isNaN(value)) return 'NaN';
  if (!Number.isFinite(value)) return value < 0 ? '-INF' : 'INF';
  let shortest = value;
  for (let digits = 1; single && digits <= 9; digits++) {
    shortest = Number(value.toPrecision(digits));
    if (Math.fround(shortest) === value) break;
  }
  const magnitude = Math.abs(shortest);
  if (magnitude !== 0 && (magnitude < 1e-4 || magnitude >= 1e16))
    return shortest.toExponential().replace(/([+-])(\d)$/, '$10$2');
  const text = Object.is(shortest, -0) ? '-0' : String(shortest);
  return text.includes('.') ? text : `${text}.0`;
}

function roundingOf(node: Node): Rounding {
  const mode = node.string('round_mode', 'up');
  return {
    saturate: node.int('saturate', 1) !== 0,
    direction: mode === 'down' || mode === 'nearest' ? mode : 'up',
  };
}

/** What whole numbers become in another dtype. */
function castElements(
  elements: readonly Dim[] | undefined,
  dtype: DType | undefined,
): readonly Dim[] | undefined {
  if (elements === undefined || dtype === undefined) return undefined;
  if (isInteger(dtype) || isFloat(dtype)) return elements;
  if (dtype !== 'bool') return undefined;
  const known = elements.every((dim) => typeof dim === 'number');
  return known ? elements.map((dim) => Number(dim !== 0)) : undefined;
}

const castOp = onnxOp('Cast', [1, 1], [1, 1], {
  infer: (context) => {
    const dtype = dtypeAttribute(context, 'to');
    if (dtype === undefined) throw opError(context, 'attribute "to" is missing');
    const { shape } = context.input(0);
    return [{ dtype, shape, elements: castElements(context.elements(0), dtype) }];
  },
  evaluate: (context) => {
    const dtype = dtypeAttribute(context, 'to');
    if (dtype === undefined) throw opError(context, 'attribute "to" is missing');
    const x = context.input(0);
    if (dtypes[x.dtype].kind === 'complex' || dtypes[dtype].kind === 'complex')
      throw unsupported(context, `a cast from ${x.dtype} to ${dtype}`);
    return [castTensor(x, dtype, roundingOf(context.node))];
  },
});

const castLikeOp = onnxOp('CastLike', [2, 2], [1, 1], {
  infer: (context) => {
    const { dtype } = context.input(1);
    const { shape } = context.input(0);
    return [{ dtype, shape, elements: castElements(context.elements(0), dtype) }];
  },
  evaluate: (context) => [
    castTensor(context.input(0), context.input(1).dtype, roundingOf(context.node)),
  ],
});

const bitCastOp = onnxOp('BitCast', [1, 1], [1, 1], {
  infer: (context) => [{ dtype: dtypeAttribute(context, 'to'), shape: context.input(0).shape }],
  evaluate: (context) => {
    const x = context.input(0);
    const dtype = dtypeAttribute(context, 'to') ?? x.dtype;
    if (dtypes[dtype].bits !== dtypes[x.dtype].bits || elementCount(x.shape) === 0)
      throw opError(context, `cannot see ${x.dtype} as ${dtype}, their widths differ`);
    return [{ dtype, shape: x.shape, data: viewBytes(dtype, bytesOf(x.data)) }];
  },
});

/** Conversions of dtype. */
export const castOps: readonly OpDefinition[] = [castOp, castLikeOp, bitCastOp];
