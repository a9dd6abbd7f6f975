/**
 * Checks the tensors given to `session.run` against the bundle's contract: names, dtypes, ranks, sizes,
 * and that a named size means one number over all inputs.
 */
import { FettleError, nearest, wrongType } from './errors.ts';
import type { DimSpec, TensorSpec } from './manifest.ts';
import type { SizeConflict, Sizes } from './sizes.ts';
import { bindSizes, findConflict } from './sizes.ts';
import type { Tensor } from './tensor.ts';
import { isDType, tensor } from './tensor.ts';

/**
 * Checks inputs.
 *
 * @returns the named sizes that the inputs gave a value to
 * @throws {@link FettleError} USAGE, naming the input, what was wanted and what was given
 * @throws TypeError when something is not a tensor at all
 */
export function checkInputs(
  specs: readonly TensorSpec[],
  inputs: Readonly<Record<string, Tensor>>,
): Sizes {
  if (typeof inputs !== 'object' || inputs === null)
    throw wrongType('inputs', 'an object of tensors by name', inputs);
  const known = specs.map((spec) => spec.name);
  for (const name of Object.keys(inputs)) if (!known.includes(name)) throw unknownName(name, known);
  for (const spec of specs) checkTensor(spec, inputs);
  const sizes: Sizes = new Map();
  for (const find of [bindSizes, findConflict])
    for (const { name, shape } of specs) {
      const conflict = find(shape, inputs[name]?.shape ?? [], sizes);
      if (conflict !== undefined) throw wrongSize(name, shape, conflict);
    }
  return sizes;
}

function checkTensor(spec: TensorSpec, inputs: Readonly<Record<string, Tensor>>): void {
  const { name } = spec;
  const given = Object.hasOwn(inputs, name) ? inputs[name] : undefined;
  if (given === undefined)
    throw misfed(name, `Input "${name}" is missing: wanted ${describe(spec)}.`, 'Pass it.');
  if (
    typeof given !== 'object' ||
    given === null ||
    !isDType(given.dtype) ||
    !Array.isArray(given.shape)
  )
    throw wrongType(`inputs.${name}`, 'a tensor { dtype, shape, data }', given);
  if (given.dtype !== spec.dtype || given.shape.length !== spec.shape.length)
    throw misfed(
      name,
      `Input "${name}" does not fit: wanted ${describe(spec)}, got ${describe(given)}.`,
      given.dtype === spec.dtype ? 'Reshape it.' : `Convert it to ${spec.dtype}.`,
    );
  try {
    tensor(given.dtype, given.shape, given.data);
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw misfed(name, `Input "${name}" is inconsistent: ${why}`, 'Make it with tensor().', cause);
  }
}

function unknownName(name: string, known: readonly string[]): FettleError {
  const near = nearest(name, known);
  return misfed(
    name,
    `The model has no input "${name}"; it has ${known.join(', ')}.`,
    near === undefined ? 'Remove it.' : `Did you mean "${near}"?`,
  );
}

function wrongSize(
  name: string,
  contract: readonly DimSpec[],
  { axis, wanted, got }: SizeConflict,
): FettleError {
  const size = contract[axis];
  const meaning = typeof size === 'string' ? ` (${size})` : '';
  return misfed(
    name,
    `Input "${name}" does not fit: wanted size ${wanted}${meaning} along axis ${axis}, got ${got}.`,
    'Resize the input, or compile the model for this size.',
  );
}

function misfed(input: string, message: string, fix: string, cause?: unknown): FettleError {
  return new FettleError('USAGE', message, {
    at: { input },
    fix,
    ...(cause === undefined ? {} : { cause }),
  });
}

function describe(of: { readonly dtype: string; readonly shape: readonly DimSpec[] }): string {
  return `${of.dtype} [${of.shape.join(', ')}]`;
}
