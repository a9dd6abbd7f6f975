/**
 * Makes constants of inputs whose value is known when compiling, so that what depends on them is decided
 * once: a sample rate that chooses a branch, a switch for an output.
 *
 *     y = If(sr == 16000) { … } { … },  input sr, with sr=16000    ->    y = If(true) { … } { … }
 */
import { FettleError, nearest } from '../../runtime/errors.ts';
import { elementCount } from '../../runtime/tensor.ts';
import { isStatic } from '../ir/dim.ts';
import { Weight } from '../ir/weight.ts';
import { writeNumbers } from '../ops/numbers.ts';
import type { Pass } from './pass.ts';

/** Options of {@link fixInputs}. */
export interface FixInputsOptions {
  /** A number by input; every element of the input gets it. Default none. */
  readonly values?: Readonly<Record<string, number>>;
}

/** Defaults of {@link FixInputsOptions}. */
export const fixInputsDefaults: Required<FixInputsOptions> = { values: {} };

/**
 * Makes the pass.
 *
 * @throws FettleError USAGE (from `run`) when there is no such input, or its size is open
 */
export function fixInputs(options: FixInputsOptions = {}): Pass {
  const { values } = { ...fixInputsDefaults, ...options };
  return {
    name: 'fix-inputs',
    options: { values },
    run(model, context) {
      const { inputs } = model.graph;
      for (const [name, value] of Object.entries(values)) {
        const input = inputs.find((candidate) => candidate.name === name);
        const shape = input?.shape;
        if (input?.dtype === undefined || shape === undefined || !isStatic(shape)) {
          const guess = nearest(
            name,
            inputs.map((candidate) => candidate.name),
          );
          const why = input === undefined ? 'The model has no such input' : 'Its size is open';
          throw new FettleError('USAGE', `Input "${name}" cannot be fixed. ${why}.`, {
            at: { pass: 'fix-inputs', input: name },
            fix:
              input !== undefined
                ? 'Fix its size first, with --shape.'
                : guess === undefined
                  ? 'Look at the inputs with: fettle inspect'
                  : `Did you mean "${guess}"?`,
          });
        }
        const filled = Array.from({ length: elementCount(shape) }, () => value);
        input.weight = Weight.of(writeNumbers(input.dtype, shape, filled));
        inputs.splice(inputs.indexOf(input), 1);
        model.graph.addConstant(input);
        context.rewriter.changes++;
        context.count('fixed');
      }
      return Object.keys(values).length > 0;
    },
  };
}
