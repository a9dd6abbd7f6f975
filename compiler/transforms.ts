/**
 * Transforms a recipe can ask for: changes of weights that leave what the model gives as it is and make
 * the weights easier to round, in the order in which they are made.
 *
 *   equalize-layers      channels between two layers are as wide in the weights of both (nets of convolutions)
 *   rotate-spine         no channel of the residual stream stands out; a table that is also the output matrix
 *                        is stored twice where that is cheap (`:untie` always, `:tied` never)
 *   rotate-values        the same inside attention heads
 *   scale-channels       loud channels are rounded finer: AWQ (default), `:smooth` (SmoothQuant) or
 *                        `:logarithmic` (FPTQ), both of which are for 8-bit activations; fitted to data
 *   correct-bias         biases make up for what rounding takes from the mean of outputs; fitted to data
 *
 * `"transforms": ["rotate-spine:tied", "rotate-values"]`, `--transforms rotate-spine:tied,rotate-values`
 */
import type { PipelineStep } from '../targets/target.ts';

/** Transforms in their order, and the choices behind a colon that each has; the first is the default. */
const choices = {
  'equalize-layers': [],
  'rotate-spine': ['auto', 'untie', 'tied'],
  'rotate-values': [],
  'scale-channels': ['awq', 'smooth', 'logarithmic'],
  'correct-bias': [],
} as const;

/** Names of transforms, in the order in which they are made. */
export const transformNames = Object.keys(choices) as readonly TransformName[];

/** A transform. */
export type TransformName = keyof typeof choices;

/** Every spelling that is accepted, defaults without their choice. */
export const transformSpellings: readonly string[] = transformNames.flatMap((name) => [
  name,
  ...choices[name].slice(1).map((choice) => `${name}:${choice}`),
]);

/** Transforms that calibration data decides. */
const fitted: ReadonlySet<TransformName> = new Set(['scale-channels', 'correct-bias']);

/**
 * The transforms of a list, each once, in their order.
 *
 * @returns undefined when one of them is none
 */
export function sortTransforms(names: readonly unknown[]): readonly string[] | undefined {
  if (!names.every((name) => typeof name === 'string' && isSpelling(name))) return undefined;
  return transformNames.flatMap((name) => {
    const given = names.find((one) => nameOf(String(one)) === name);
    return given === undefined ? [] : [String(given)];
  });
}

/** The choice made for a transform; undefined when it is not asked for. */
export function choiceOf<Name extends TransformName>(
  name: Name,
  transforms: readonly string[] = [],
): (typeof choices)[Name][number] | 'yes' | undefined {
  const given = transforms.find((one) => nameOf(one) === name);
  if (given === undefined) return undefined;
  const [, choice = choices[name][0] ?? 'yes'] = given.split(':');
  // sortTransforms has let only these through
  return choice as (typeof choices)[Name][number] | 'yes';
}

/** The first transform that needs calibration data. */
export function fittedTransform(transforms: readonly string[] = []): string | undefined {
  return transforms.find((one) => fitted.has(nameOf(one)));
}

/** Passes of the transforms that need no data, behind everything that recognises what they change. */
export function transformSteps(transforms: readonly string[] = []): readonly PipelineStep[] {
  return transforms.flatMap((one): readonly PipelineStep[] => {
    const name = nameOf(one);
    if (fitted.has(name)) return [];
    if (name !== 'rotate-spine') return [name];
    const choice = choiceOf(name, transforms);
    const untie: PipelineStep =
      choice === 'untie' ? ['untie-tables', { share: 1 }] : 'untie-tables';
    // a rotation does not pass a norm with a gain
    return [...(choice === 'tied' ? [] : [untie]), 'fold-norm-gains', name];
  });
}

function nameOf(spelling: string): TransformName {
  return spelling.split(':')[0] as TransformName;
}

function isSpelling(spelling: string): boolean {
  const [name = '', choice, ...rest] = spelling.split(':');
  if (!Object.hasOwn(choices, name) || rest.length > 0) return false;
  const own: readonly string[] = choices[name as TransformName];
  return choice === undefined || own.includes(choice);
}
