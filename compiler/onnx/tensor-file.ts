/**
 * A tensor in a file of its own, as ONNX's test cases store inputs and outputs (`input_0.pb`).
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { readTensor } from './tensor.ts';
import { FettleError } from '../../runtime/errors.ts';
import { decodeMessage } from './wire.ts';

/**
 * Decodes a TensorProto.
 *
 * @param bytes - the encoded message; the tensor is a view of it where alignment allows
 * @throws FettleError MODEL_INVALID when it is damaged or refers to external data
 */
export function decodeTensor(bytes: Uint8Array): {
  readonly name: string;
  readonly tensor: Tensor;
} {
  const proto = decodeMessage('TensorProto', bytes);
  const name = proto.name ?? '';
  const storage = {
    hold: (view: Uint8Array) => (start: number, length: number) =>
      view.subarray(start, start + length),
    external: (): never => {
      throw new FettleError('MODEL_INVALID', `The tensor "${name}" is external data.`, {
        at: { value: name },
        fix: 'Store the tensor in the file itself.',
      });
    },
  };
  return { name, tensor: readTensor(proto, storage, { value: name }, false).tensor() };
}
