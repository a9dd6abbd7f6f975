/** The models that fusion is measured on: those of clean-up, and the digit classifiers. */
import { existsSync } from 'node:fs';
import { availableModels } from './clean-up-models.ts';
import { sharedPath } from './shared.ts';
import { visionModels } from './vision-models.ts';

/** One of them. */
export interface FusionModel {
  readonly name: string;
  readonly path: string;
  /** Sizes of symbols that must have a certain one for a run. */
  readonly sizes: Readonly<Record<string, number>>;
}

/** Sizes that go together in a decoder, and lengths that a voice detector takes. */
export const decoderSizes: Readonly<Record<string, number>> = {
  batch_size: 1,
  sequence_length: 3,
  past_sequence_length: 4,
  total_sequence_length: 7,
  batch: 1,
  sequence: 512,
  '?1': 1,
  '?2': 512,
  '?3': 1,
};

/** Every model whose file is there. */
export function fusionModels(): readonly FusionModel[] {
  const sizes = new Map(visionModels.map((model) => [model.path, model.sizes]));
  const cleaned = availableModels().map(({ name, path }) => ({
    name,
    path,
    sizes: sizes.get(path) ?? decoderSizes,
  }));
  const digits = ['digits-cnn', 'digits-vit'].map((name) => ({
    name,
    path: sharedPath('models', name, 'model.onnx'),
    sizes: {},
  }));
  return [...cleaned, ...digits.filter(({ path }) => existsSync(path))];
}
