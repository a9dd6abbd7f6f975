/** Tensors between Fettle and onnxruntime-web; both sides share the storage, nothing is copied. */
import { FettleError } from '../errors.ts';
import type { DType, Tensor } from '../tensor.ts';
import { dtypes, viewBytes } from '../tensor.ts';
import type { OrtModule, OrtTensor } from './module.ts';

const ortTypes: Partial<Record<DType, string>> = {
  f32: 'float32',
  f64: 'float64',
  f16: 'float16',
  i8: 'int8',
  i16: 'int16',
  i32: 'int32',
  i64: 'int64',
  u8: 'uint8',
  u16: 'uint16',
  u32: 'uint32',
  u64: 'uint64',
  bool: 'bool',
  string: 'string',
};

const dtypeOf = new Map(Object.entries(ortTypes).map(([dtype, type]) => [type, dtype as DType]));

/** Whether onnxruntime-web takes and gives tensors of this dtype. */
export function isOrtDType(dtype: DType): boolean {
  return ortTypes[dtype] !== undefined;
}

/** A tensor of onnxruntime-web over the same storage. */
export function toOrt(ort: OrtModule, { dtype, shape, data }: Tensor): OrtTensor {
  const type = ortTypes[dtype];
  if (type === undefined)
    throw new FettleError('USAGE', `onnxruntime-web cannot take ${dtype} tensors.`, {
      at: { engine: 'ort', dtype },
      fix: 'Use a model whose inputs and outputs have another dtype.',
    });
  return new ort.Tensor(type, data, shape);
}

/** Our tensor over the data of one of theirs; downloads it first when it is on the GPU. */
export async function fromOrt(tensor: OrtTensor): Promise<Tensor> {
  const dtype = dtypeOf.get(tensor.type);
  const data = await tensor.getData(true);
  if (dtype === undefined)
    throw new FettleError(
      'MODEL_INVALID',
      `onnxruntime-web gave a tensor of type ${tensor.type}.`,
      {
        at: { engine: 'ort', type: tensor.type },
        fix: 'Use a model whose inputs and outputs have another dtype.',
      },
    );
  const shape = [...tensor.dims];
  if (!ArrayBuffer.isView(data)) return { dtype, shape, data: data as readonly string[] };
  // Newer hosts give Float16Array; our storage of f16 is its patterns.
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return { dtype, shape, data: viewBytes(dtype, bytes) };
}

/** Bytes a tensor of onnxruntime-web takes. */
export function bytesOfOrt(tensor: OrtTensor): number {
  const dtype = dtypeOf.get(tensor.type);
  const elements = tensor.dims.reduce((product, dim) => product * dim, 1);
  return dtype === undefined ? 0 : (elements * dtypes[dtype].bits) / 8;
}
