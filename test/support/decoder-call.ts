/** A call of a decoder of the builders: seeded ids and cache, no token is padding. */
import type { Model } from '../../compiler/ir/graph.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { seededInputs } from './seeded-inputs.ts';

const sizes = {
  batch_size: 1,
  sequence_length: 3,
  past_sequence_length: 4,
  total_sequence_length: 7,
};

/** Inputs of a call in which no token is padding. */
export function callInputs(model: Model): Map<string, Tensor> {
  const inputs = seededInputs(model, 3, sizes);
  for (const [name, { data }] of inputs) {
    if (!(data instanceof BigInt64Array)) continue;
    if (name.includes('mask')) data.fill(1n);
    if (name.includes('position')) data.forEach((_, index) => (data[index] = BigInt(4 + index)));
  }
  return inputs;
}

/** Those that a model still has. */
export function inputsOf(model: Model, inputs: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
  const names = new Set(model.graph.inputs.map(({ name }) => name));
  return new Map([...inputs].filter(([name]) => names.has(name)));
}
