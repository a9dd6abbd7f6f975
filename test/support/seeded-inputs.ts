/** Inputs for any model: seeded values, small different sizes for the symbols. */
import type { Dim } from '../../compiler/ir/dim.ts';
import { substituteDim, symbolsOf } from '../../compiler/ir/dim.ts';
import type { Model, Value } from '../../compiler/ir/graph.ts';
import { writeNumbers } from '../../compiler/ops/numbers.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { dtypes, elementCount } from '../../runtime/tensor.ts';
import { random } from './rng.ts';

/** Sizes given to symbols in order of appearance; different, so that mixed-up axes show. */
const sizes = [2, 3, 5, 4, 7, 6, 11, 13];

/**
 * A tensor for every input of a model. Floats lie in [-2, 2), integers are 0 or 1 (they may be
 * indices).
 *
 * @param given - sizes of symbols that must have a certain one
 */
export function seededInputs(
  model: Model,
  seed: number,
  given: Readonly<Record<string, number>> = {},
): Map<string, Tensor> {
  const symbols = new Map<string, Dim>(Object.entries(given));
  for (const input of model.graph.inputs)
    for (const dim of input.shape ?? [])
      for (const symbol of symbolsOf(dim))
        if (!symbols.has(symbol))
          symbols.set(symbol, sizes[(symbols.size + seed - 1) % sizes.length] ?? 2);
  const next = random(seed);
  return new Map(
    model.graph.inputs.map((input) => [input.name, tensorFor(input, symbols, next)] as const),
  );
}

function tensorFor(input: Value, symbols: ReadonlyMap<string, Dim>, next: () => number): Tensor {
  const { dtype = 'f32', name } = input;
  const shape = (input.shape ?? []).map((dim) => Number(substituteDim(dim, symbols)));
  if (!shape.every(Number.isInteger))
    throw new Error(`input "${name}" has no size for its symbols`);
  const float = dtypes[dtype].kind === 'float';
  const values = Float64Array.from({ length: elementCount(shape) }, () =>
    float ? next() * 4 - 2 : Math.floor(next() * 2),
  );
  return writeNumbers(dtype, shape, values);
}
