/** The shared trained model as a bundle made by hand: the exporter's own graph, weights inside it. */
import { readFileSync } from 'node:fs';

import type { Manifest } from '../../runtime/manifest.ts';
import { sharedPath } from './shared.ts';
import type { Files } from './tiny-bundle.ts';
import { makeBundle } from './tiny-bundle.ts';

/** The bundle; needs the shared folder. */
export function nibBundle(): Files {
  const layers = Array.from({ length: 12 }, (_, i) => i).flatMap((i) => [`${i}.key`, `${i}.value`]);
  const shape = ['batch', 2, 'past', 32];
  const dtype = 'f32' as const;
  const read = (path: string): Uint8Array => readFileSync(sharedPath('models/nib', path));
  const row = (name: string, length: string): Manifest['inputs'][number] => ({
    name,
    dtype: 'i64',
    shape: ['batch', length],
  });
  return makeBundle({
    graph: read('onnx/model.onnx'),
    inputs: [
      row('input_ids', 'sequence'),
      row('attention_mask', 'past + sequence'),
      row('position_ids', 'sequence'),
      ...layers.map((name) => ({ name: `past_key_values.${name}`, dtype, shape })),
    ],
    outputs: [
      { name: 'logits', dtype, shape: ['batch', 'sequence', 4096] },
      ...layers.map((name) => ({ name: `present.${name}`, dtype, shape })),
    ],
    files: {
      'tokenizer.json': read('tokenizer.json'),
      'tokenizer_config.json': read('tokenizer_config.json'),
    },
    text: { tokenizer: 'tokenizer.json', tokenizerConfig: 'tokenizer_config.json' },
    decoder: {
      ids: 'input_ids',
      mask: 'attention_mask',
      positions: 'position_ids',
      logits: 'logits',
      vocabulary: 4096,
      contextLength: 1024,
      state: layers.map((name) => ({
        input: `past_key_values.${name}`,
        output: `present.${name}`,
        dtype,
        shape,
        axis: 2,
      })),
      endIds: [0],
    },
  });
}
