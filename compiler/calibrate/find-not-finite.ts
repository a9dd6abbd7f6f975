/**
 * Finds the node that first computes NaN or an infinity: calibration sees only what products are
 * multiplied with, which may be far behind it.
 *
 *   sample -> stage by stage, every value looked at in the order in which it is computed
 */
import { FettleError } from '../../runtime/errors.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import type { Node } from '../ir/graph.ts';
import { readNumbers } from '../ops/numbers.ts';
import { weightUnits } from '../passes/weight-units.ts';
import { openStage } from './stage-runner.ts';
import { splitStages } from './stages.ts';
import { notFinite } from './statistics.ts';
import type { CalibrationServices, Subject } from './subject.ts';

/**
 * Runs calibration, and where it meets values that are not finite, the sample again, to name the data or
 * the node that they come from.
 *
 * @param work - throws what {@link notFinite} makes
 * @throws what `work` throws, with the place found when it is about values that are not finite
 */
export async function namingNotFinite<T>(
  subject: Pick<Subject, 'model' | 'samples'>,
  services: Pick<CalibrationServices, 'engines'>,
  work: () => Promise<T>,
): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof FettleError) || typeof error.at['sample'] !== 'number') throw error;
    throw (await origin(subject, services, error.at['sample'])) ?? error;
  }
}

async function origin(
  { model, samples }: Pick<Subject, 'model' | 'samples'>,
  { engines }: Pick<CalibrationServices, 'engines'>,
  sample: number,
): Promise<FettleError | undefined> {
  const known = new Map<string, Tensor>(samples.at(sample));
  // masks may hold infinities on purpose: the first NaN says more
  let infinite: FettleError | undefined;
  for (const [input, value] of known)
    if (isWrong(value))
      return new FettleError(
        'MODEL_INVALID',
        `Sample ${sample} of "${samples.name}" holds NaN or infinity for input "${input}".`,
        { at: { data: samples.name, input, sample }, fix: 'Repair the data, or leave it out.' },
      );
  for (const stage of splitStages(model, weightUnits(model))) {
    const wanted = stage.nodes.flatMap((node) =>
      node.outputs.flatMap((value) =>
        value !== undefined && (value.dtype === 'f32' || stage.outputs.includes(value.name))
          ? [value.name]
          : [],
      ),
    );
    const runner = await openStage(stage.model(wanted), { engines, units: [] });
    try {
      const values = await runner.run(known);
      for (const node of stage.nodes)
        for (const output of node.outputs) {
          const value = output === undefined ? undefined : values.get(output.name);
          if (output === undefined || value === undefined || !isWrong(value)) continue;
          const place = { value: output.name, node: node.name, sample };
          const found = notFinite(place, weightsOf(node));
          if (isWrong(value, Number.isNaN)) return found;
          infinite ??= found;
        }
      for (const [name, value] of values) if (stage.outputs.includes(name)) known.set(name, value);
    } finally {
      await runner.dispose();
    }
  }
  return infinite;
}

/** The first constant of a node that is not finite itself. */
function weightsOf(node: Node): string | undefined {
  return node.inputs.find((input) => {
    const constant = input?.weight?.dtype === 'f32' ? input.constant() : undefined;
    return constant !== undefined && isWrong(constant);
  })?.name;
}

function isWrong(value: Tensor, wrong: (one: number) => boolean = isNotFinite): boolean {
  if (value.data instanceof Float32Array) return value.data.some(wrong);
  return /^f\d/.test(value.dtype) && readNumbers(value).some((one) => wrong(Number(one)));
}

function isNotFinite(value: number): boolean {
  return !Number.isFinite(value);
}
