/** How far the outputs of a bundle are from those of the original, of any model on any samples. */
import type { Session } from '../../runtime/node.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { tensor } from '../../runtime/tensor.ts';
import { toF32 } from '../evaluate/numbers.ts';
import { rowsOf } from './calibration-data.ts';
import type { Output } from './output.ts';

/** Outputs of every sample, by name. */
export type Outputs = readonly Readonly<Record<string, Float32Array>>[];

/**
 * Runs samples one by one.
 *
 * @param arrays - one for each input, samples along the first axis
 */
export async function outputsOn(
  session: Session,
  arrays: ReadonlyMap<string, Tensor>,
  { signal, progress }: Pick<Output, 'signal' | 'progress'>,
): Promise<Outputs> {
  const [first] = arrays.values();
  const count = first?.shape[0] ?? 0;
  const found: Record<string, Float32Array>[] = [];
  for (let index = 0; index < count; index++) {
    signal.throwIfAborted();
    const feeds: Record<string, Tensor> = {};
    for (const { name, dtype } of session.manifest.inputs) {
      const array = arrays.get(name);
      if (array !== undefined) feeds[name] = asInput(rowsOf(array, index, index + 1), dtype);
    }
    const outputs = await session.run(feeds);
    found.push(
      Object.fromEntries(Object.entries(outputs).map(([name, value]) => [name, toF32(value)])),
    );
    progress('measure', index + 1, count);
  }
  return found;
}

/** Bytes are pixels, as calibration reads them. */
function asInput(value: Tensor, dtype: Tensor['dtype']): Tensor {
  if (dtype !== 'f32' || value.dtype === 'f32') return value;
  const floats = toF32(value);
  return tensor('f32', value.shape, value.dtype === 'u8' ? floats.map((one) => one / 255) : floats);
}

/** Root of the squared difference over the squared original, all outputs and samples together. */
export function relativeDistance(original: Outputs, other: Outputs): number {
  let [error, norm] = [0, 0];
  original.forEach((outputs, index) => {
    for (const [name, wanted] of Object.entries(outputs)) {
      const got = other[index]?.[name];
      wanted.forEach((value, i) => {
        error += (value - (got?.[i] ?? 0)) ** 2;
        norm += value ** 2;
      });
    }
  });
  return norm === 0 ? Math.sqrt(error) : Math.sqrt(error / norm);
}
