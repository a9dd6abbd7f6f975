/**
 * ValueInfoProto -> dtype, shape and annotations of a Value.
 */
import type { ErrorPlace } from '../../runtime/errors.ts';
import { FettleError } from '../../runtime/errors.ts';
import { dtypeOfOnnx } from '../../runtime/tensor.ts';
import type { Dim } from '../ir/dim.ts';
import { isAnonymous, parseDim } from '../ir/dim.ts';
import type { Value } from '../ir/graph.ts';
import type { DimensionProto, EntryProto, ValueInfoProto } from './schema.ts';
import { encodeMessage, has, toSize, unknownsOf } from './wire.ts';

/** Longest name of a dimension that is read as an expression; real ones stay below 100 characters. */
const MAX_EXPRESSION = 256;

/** Most products of sums in such a name; multiplying out more takes too long. */
const MAX_PRODUCTS = 4;

/**
 * Puts what a file declares about a value on it.
 *
 * @param fresh - makes an anonymous size for a dimension without value and name
 * @throws FettleError MODEL_INVALID for a dtype ONNX does not define or a negative size
 */
export function readType(value: Value, info: ValueInfoProto, fresh: () => Dim): void {
  const at = { value: info.name ?? '' };
  if (has(info, 'docString') && info.docString !== '') value.docString = info.docString;
  value.metadata = entriesOf(info.metadataProps);
  value.carried = unknownsOf(info);
  const { type } = info;
  if (!type) return;
  const { tensorType } = type;
  if (!tensorType) {
    const encoded = encodeMessage('TypeProto', type);
    if (encoded.length > 0) value.opaqueType = encoded;
    return;
  }
  const number = tensorType.elemType ?? 0;
  value.dtype = dtypeOfOnnx(number);
  if (value.dtype === undefined && number !== 0)
    throw new FettleError(
      'MODEL_INVALID',
      `"${info.name}" has data type ${number}, which ONNX does not define.`,
      { at, fix: 'Export the model again, or update Fettle if the data type is new.' },
    );
  if (!tensorType.shape) return;
  const dims = tensorType.shape.dim ?? [];
  value.shape = dims.map((dim) => readDim(dim, fresh, at));
  const denotations = [type, ...dims].map(({ denotation }) => denotation ?? '');
  if (denotations.some((text) => text !== '')) value.denotations = denotations;
}

/** Key-value entries as a map, in file order. */
export function entriesOf(entries: readonly EntryProto[] | undefined): Map<string, string> {
  return new Map(entries?.map(({ key, value }) => [key ?? '', value ?? '']));
}

function readDim(dim: DimensionProto, fresh: () => Dim, at: ErrorPlace): Dim {
  if (has(dim, 'dimValue') && dim.dimValue !== undefined)
    return toSize(dim.dimValue, `A dimension of "${at['value']}"`, at);
  const text = dim.dimParam ?? '';
  if (text === '') return fresh();
  if (!isExpression(text)) return quoteDim(text);
  const parsed = parseDim(text);
  if (typeof parsed === 'number') return parsed < 0 ? fresh() : parsed;
  if (isAnonymous(parsed)) return fresh();
  // what the writer makes of it must be read the same way
  return isExpression(parsed) ? parsed : quoteDim(text);
}

function isExpression(text: string): boolean {
  const products = text.match(/\)\s*\*|\*\s*\(/g)?.length ?? 0;
  return text.length <= MAX_EXPRESSION && products <= MAX_PRODUCTS;
}

function quoteDim(text: string): Dim {
  return `\`${text.replaceAll('`', "'")}\``;
}
