/** Models of speech that are measured and checked; files may be absent. */
import { join } from 'node:path';
import { writeNumbers } from '../../compiler/ops/numbers.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { sharedPath } from './shared.ts';

/** One of them. */
export interface SpeechModel {
  readonly name: string;
  readonly path: string;
  /** Sizes of the symbols of its inputs. */
  readonly sizes: Readonly<Record<string, number>>;
  /** Inputs that become constants: a sample rate chooses a branch. */
  readonly fixed: Readonly<Record<string, number>>;
}

const vad = (file: string): string =>
  join(import.meta.dirname, '../../node_modules/@ricky0123/vad-web/dist', file);

/** Every one. */
export const speechModels: readonly SpeechModel[] = [
  {
    name: 'silero_vad_v5',
    path: vad('silero_vad_v5.onnx'),
    sizes: { '?1': 1, '?2': 512, '?3': 1 },
    fixed: { sr: 16000 },
  },
  {
    name: 'silero_vad_v6',
    path: vad('silero_vad_v6.onnx'),
    sizes: { '?1': 1, '?2': 512, '?3': 1 },
    fixed: { sr: 16000 },
  },
  {
    name: 'silero_vad_legacy',
    path: vad('silero_vad_legacy.onnx'),
    sizes: { batch: 1, sequence: 512 },
    fixed: { sr: 16000 },
  },
  {
    name: 'bilstm_ctc',
    path: sharedPath('models/exports/bilstm_ctc/model.onnx'),
    sizes: { time: 40 },
    fixed: {},
  },
];

/** Inputs where those that become constants have their value. */
export function withFixed(
  inputs: ReadonlyMap<string, Tensor>,
  fixed: Readonly<Record<string, number>>,
): Map<string, Tensor> {
  return new Map(
    [...inputs].map(([name, tensor]) => {
      const value = fixed[name];
      if (value === undefined) return [name, tensor];
      const { dtype, shape, data } = tensor;
      const filled = Array.from({ length: data.length }, () => value);
      return [name, writeNumbers(dtype, shape, filled)];
    }),
  );
}
