/**
 * SparseTensorProto -> Weight: a constant of zeros with a few elements, made dense when it is read.
 *
 * @see https://github.com/onnx/onnx/blob/main/onnx/onnx.in.proto (SparseTensorProto)
 */
import type { ErrorPlace } from '../../runtime/errors.ts';
import { dtypes, viewBytes } from '../../runtime/tensor.ts';
import type { ByteSource } from '../ir/weight.ts';
import { Weight } from '../ir/weight.ts';
import type { SparseTensorProto, TensorProto } from './schema.ts';
import type { TensorStorage } from './tensor.ts';
import { invalidTensor, readTensor, tensorLabel } from './tensor.ts';
import { encodeMessage, fromNumber, toSize } from './wire.ts';

/** Reads a sparse initializer: a constant of zeros with a few elements, made dense when it is read. */
export function readSparseTensor(
  proto: SparseTensorProto,
  storage: TensorStorage,
  at: ErrorPlace,
): Weight {
  if (!proto.values || !proto.indices)
    throw invalidTensor(at, 'is a sparse tensor without values or indices.');
  const values = readTensor(proto.values, storage, at, false);
  const indices = readTensor(proto.indices, storage, at, false);
  const shape = (proto.dims ?? []).map((dim) =>
    toSize(dim, `A dimension of ${tensorLabel(at)}`, at),
  );
  const count = shape.reduce((product, dim) => product * dim, 1);
  const elementBytes = dtypes[values.dtype].bits / 8;
  const nonZero = values.shape[0] ?? 0;
  if (!Number.isSafeInteger(count * Math.ceil(elementBytes)))
    throw invalidTensor(at, `has dimensions [${shape}]; their product is beyond 2^53.`);
  if (!Number.isInteger(elementBytes) || elementBytes === 0)
    throw invalidTensor(at, `is a sparse tensor of ${values.dtype}, which has no whole bytes.`);
  const perIndex = indices.shape.length === 2 ? shape.length : 1;
  if (
    indices.dtype !== 'i64' ||
    values.shape.length !== 1 ||
    indices.shape[0] !== nonZero ||
    indices.shape.length > 2 ||
    (indices.shape[1] ?? 1) !== perIndex
  )
    throw invalidTensor(
      at,
      `has values [${values.shape}] and indices [${indices.shape}] that disagree.`,
    );
  const places = sparsePlaces(indices, nonZero, perIndex, shape);
  if (places.some((place) => !(place >= 0 && place < count)))
    throw invalidTensor(at, `has a sparse index outside of [${shape}].`);
  const source: ByteSource = (start, length) => {
    const dense = new Uint8Array(length);
    const bytes = values.bytes();
    places.forEach((place, i) => {
      for (let b = 0; b < elementBytes; b++) {
        const target = place * elementBytes + b - start;
        if (target >= 0 && target < length) dense[target] = bytes[i * elementBytes + b] ?? 0;
      }
    });
    return dense;
  };
  // encoded anew, since values and indices may be external data
  const sparse = encodeMessage('SparseTensorProto', {
    ...proto,
    values: plainTensor(values),
    indices: plainTensor(indices),
  });
  return Weight.lazy(values.dtype, shape, source, { sparse });
}

function plainTensor(weight: Weight): TensorProto {
  return {
    dims: weight.shape.map(fromNumber),
    dataType: dtypes[weight.dtype].onnx,
    rawData: weight.bytes(),
  };
}

function sparsePlaces(
  indices: Weight,
  count: number,
  perIndex: number,
  shape: readonly number[],
): number[] {
  const data = viewBytes('i64', indices.bytes());
  return Array.from({ length: count }, (_, i) => {
    if (indices.shape.length === 1) return Number(data[i] ?? -1);
    let place = 0;
    for (let axis = 0; axis < perIndex; axis++) {
      const index = Number(data[i * perIndex + axis] ?? -1);
      const size = shape[axis] ?? 0;
      if (index < 0 || index >= size) return -1;
      place = place * size + index;
    }
    return place;
  });
}
