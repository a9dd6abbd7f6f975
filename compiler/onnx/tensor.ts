/**
 * TensorProto -> Weight. Raw data stays a view of the file or a range of it; typed fields are
 * converted to the same little-endian storage. Sizes are checked before anything is allocated.
 *
 * @see https://github.com/onnx/onnx/blob/main/onnx/onnx.in.proto (TensorProto)
 */
import type { ErrorPlace } from '../../runtime/errors.ts';
import { FettleError } from '../../runtime/errors.ts';
import type { DType } from '../../runtime/tensor.ts';
import { bytesFor, bytesOf, dtypeOfOnnx, dtypes, viewBytes } from '../../runtime/tensor.ts';
import { concatBytes } from '../files.ts';
import type { ByteSource, CarriedTensor } from '../ir/weight.ts';
import { Weight } from '../ir/weight.ts';
import type { ExternalReference } from './external.ts';
import { externalReference } from './external.ts';
import type { TensorProto } from './schema.ts';
import { textOf } from './text.ts';
import { countVarints, eachVarint, encodeMessage, has, toSize, unknownFields } from './wire.ts';

/** Where the bytes of tensors come from. */
export interface TensorStorage {
  /** Keeps a view of the model's bytes, or remembers where to find them again. */
  hold(bytes: Uint8Array): ByteSource;
  /** Finds external data and checks that `bytes` bytes are there. */
  external(reference: ExternalReference, bytes: number, at: ErrorPlace): ByteSource;
}

type TypedField = 'floatData' | 'int32Data' | 'int64Data' | 'doubleData' | 'uint64Data';

/** The tag byte of an element that was not packed, by field. */
const unpackedTags: Readonly<Record<TypedField, number>> = {
  floatData: (4 << 3) | 5,
  int32Data: 5 << 3,
  int64Data: 7 << 3,
  doubleData: (10 << 3) | 1,
  uint64Data: 11 << 3,
};

/** `segment` (field 3): a part of a tensor. Nothing writes it. */
const SEGMENT_TAG = (3 << 3) | 2;

/** DataLocation.EXTERNAL of TensorProto. */
const EXTERNAL = 1;

/** Which typed field holds a dtype, where it is no raw data. */
function typedField(dtype: DType): TypedField {
  if (dtype === 'f32' || dtype === 'c64') return 'floatData';
  if (dtype === 'f64' || dtype === 'c128') return 'doubleData';
  if (dtype === 'i64') return 'int64Data';
  return dtype === 'u32' || dtype === 'u64' ? 'uint64Data' : 'int32Data';
}

/**
 * Reads a tensor.
 *
 * @param storage - where raw and external bytes come from
 * @param at - place for messages
 * @param keepName - whether the name belongs to the tensor (attributes) and not to a value
 * @throws FettleError MODEL_INVALID when dtype, dimensions and data do not agree
 */
export function readTensor(
  proto: TensorProto,
  storage: TensorStorage,
  at: ErrorPlace,
  keepName: boolean,
): Weight {
  const dtype = dtypeOfOnnx(proto.dataType ?? 0);
  if (dtype === undefined)
    throw invalidTensor(at, `has data type ${proto.dataType ?? 0}, which ONNX does not define.`);
  const shape = (proto.dims ?? []).map((dim) =>
    toSize(dim, `A dimension of ${tensorLabel(at)}`, at),
  );
  const count = shape.reduce((product, dim) => product * dim, 1);
  if (!Number.isSafeInteger(count) || count * dtypes[dtype].bits > Number.MAX_SAFE_INTEGER)
    throw invalidTensor(at, `has dimensions [${shape}]; their product is beyond 2^53.`);
  const carried = carriedOf(proto, keepName);
  if (dtype === 'string') {
    if (has(proto, 'rawData') || proto.dataLocation === EXTERNAL)
      throw invalidTensor(at, 'holds strings as raw or external data, which ONNX does not allow.');
    const data = (proto.stringData ?? []).map(textOf);
    if (data.length !== count)
      throw invalidTensor(at, `has dimensions [${shape}] but ${data.length} strings.`);
    return Weight.of({ dtype, shape, data }, carried);
  }
  return Weight.lazy(dtype, shape, sourceOf(proto, dtype, shape, count, storage, at), carried);
}

function sourceOf(
  proto: TensorProto,
  dtype: DType,
  shape: readonly number[],
  count: number,
  storage: TensorStorage,
  at: ErrorPlace,
): ByteSource {
  const wanted = bytesFor(dtype, count);
  const wantedText = `[${shape}] of ${dtype} is ${wanted} bytes`;
  if (proto.dataLocation === EXTERNAL) {
    const reference = externalReference(proto.externalData ?? [], at);
    if (reference.length !== undefined && reference.length !== wanted)
      throw invalidTensor(at, `has ${reference.length} bytes of external data, but ${wantedText}.`);
    return storage.external(reference, wanted, at);
  }
  if (unknownFields(proto).some((field) => field[0] === SEGMENT_TAG))
    throw invalidTensor(at, 'is stored in segments, which no ONNX writer does.');
  if (has(proto, 'rawData')) {
    const bytes = proto.rawData ?? new Uint8Array(0);
    if (bytes.length !== wanted)
      throw invalidTensor(at, `has ${bytes.length} bytes of raw data, but ${wantedText}.`);
    return storage.hold(bytes);
  }
  return typedSource(proto, dtype, wanted, storage, (seen) =>
    invalidTensor(
      at,
      seen === 0
        ? `has no data, but ${wantedText}.`
        : `has ${seen} stored elements, but ${wantedText}.`,
    ),
  );
}

function typedSource(
  proto: TensorProto,
  dtype: DType,
  wanted: number,
  storage: TensorStorage,
  mismatch: (seen: number) => FettleError,
): ByteSource {
  const { array } = dtypes[dtype];
  const unitBytes = array?.BYTES_PER_ELEMENT ?? 1;
  const field = typedField(dtype);
  const loose = unknownFields(proto).filter((bytes) => bytes[0] === unpackedTags[field]);
  const chunks = [...(proto[field] ?? []), ...loose.map((bytes) => bytes.subarray(1))];
  if (field === 'floatData' || field === 'doubleData') {
    const seen = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
    if (seen !== wanted) throw mismatch(Math.floor(seen / unitBytes));
    const [only] = chunks;
    return storage.hold(chunks.length === 1 && only !== undefined ? only : concatBytes(chunks));
  }
  const seen = countVarints(chunks);
  if (seen !== wanted / unitBytes) throw mismatch(seen);
  const bytes = new Uint8Array(wanted);
  const units = viewBytes(dtype, bytes);
  if (units instanceof BigInt64Array || units instanceof BigUint64Array) {
    const words = new Uint32Array(bytes.buffer);
    eachVarint(chunks, (low, high, i) => {
      words[2 * i] = low;
      words[2 * i + 1] = high;
    });
  } else eachVarint(chunks, (low, _, i) => (units[i] = low));
  const storageBytes = bytesOf(units);
  return (start, length) => storageBytes.subarray(start, start + length);
}

function carriedOf(proto: TensorProto, keepName: boolean): CarriedTensor | undefined {
  const unpacked = new Set(Object.values(unpackedTags));
  const fields = unknownFields(proto).filter((field) => !unpacked.has(field[0] ?? 0));
  const named = keepName && has(proto, 'name') ? { name: proto.name ?? '' } : {};
  if (fields.length === 0 && !keepName) return undefined;
  const tensor = encodeMessage('TensorProto', { ...named, $unknowns: fields });
  return tensor.length === 0 ? undefined : { tensor };
}

/** What a message calls the tensor. */
export function tensorLabel(at: ErrorPlace): string {
  const name = at['value'] ?? at['node'];
  return name === undefined ? 'a tensor' : `the tensor of "${name}"`;
}

/** The error for a tensor that contradicts itself. */
export function invalidTensor(at: ErrorPlace, what: string): FettleError {
  const text = tensorLabel(at);
  return new FettleError('MODEL_INVALID', `${text[0]?.toUpperCase()}${text.slice(1)} ${what}`, {
    at,
    fix: 'Export the model again; the file is damaged or its writer has a bug.',
  });
}
