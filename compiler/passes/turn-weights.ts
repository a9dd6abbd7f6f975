/** Weights of linear ops whose rows are turned by an orthogonal map, for the passes that rotate. */
import type { Tensor } from '../../runtime/tensor.ts';
import { readNumbers, writeNumbers } from '../ops/numbers.ts';
import type { Rotation } from '../quant/rotation.ts';
import type { LinearSite, NewWeights } from './linear-site.ts';

/** Channels `from` to `from + rotation.size`, and so on for `count` runs of them. */
export interface TurnedChannels {
  /** First channel. */
  readonly from: number;
  /** Runs of `rotation.size` channels, each turned for itself. */
  readonly count: number;
}

/**
 * The weights of a matrix that reads turned rows instead of its own: Rᵀ W.
 *
 * @param site - a matrix, not a convolution
 */
export function readingTurned(
  site: LinearSite,
  rotation: Rotation,
  { from, count }: TurnedChannels,
): NewWeights | undefined {
  const old = site.weight.constant();
  if (old === undefined) return undefined;
  const numbers = Float64Array.from(readNumbers(old));
  const { inputs, outputs, outputsFirst } = site;
  for (let output = 0; output < outputs; output++)
    for (let run = 0; run < count; run++) {
      const channel = from + run * rotation.size;
      if (outputsFirst) rotation.apply(numbers, output * inputs + channel);
      else rotation.apply(numbers, channel * outputs + output, outputs);
    }
  return { weight: writeNumbers(old.dtype, old.shape, numbers), bias: undefined };
}

/**
 * The weights of a matrix that gives turned rows instead of its own: W R, and the bias with it.
 *
 * @param site - a matrix, not a convolution
 * @param centered - whether the mean of each row is taken away first
 */
export function givingTurned(
  site: LinearSite,
  rotation: Rotation,
  { from, count }: TurnedChannels,
  centered = false,
): NewWeights | undefined {
  const old = site.weight.constant();
  if (old === undefined) return undefined;
  const numbers = Float64Array.from(readNumbers(old));
  const { inputs, outputs, outputsFirst } = site;
  const turn = (values: Float64Array, start: number, stride: number): void => {
    for (let run = 0; run < count; run++) {
      const at = start + (from + run * rotation.size) * stride;
      if (centered) center(values, at, stride, rotation.size);
      rotation.apply(values, at, stride);
    }
  };
  for (let input = 0; input < inputs; input++)
    if (outputsFirst) turn(numbers, input, inputs);
    else turn(numbers, input * outputs, 1);
  return {
    weight: writeNumbers(old.dtype, old.shape, numbers),
    bias: turnedBias(site, turn),
  };
}

function turnedBias(
  site: LinearSite,
  turn: (values: Float64Array, start: number, stride: number) => void,
): Tensor | undefined {
  const bias = site.bias?.constant();
  if (bias === undefined) return undefined;
  const given = readNumbers(bias);
  const values = Float64Array.from(
    { length: site.outputs },
    (_, output) => given[given.length === 1 ? 0 : output] ?? 0,
  );
  turn(values, 0, 1);
  return writeNumbers(bias.dtype, [site.outputs], values);
}

/** Takes the mean away. */
export function center(values: Float64Array, start: number, stride: number, count: number): void {
  let sum = 0;
  for (let i = 0; i < count; i++) sum += values[start + i * stride] ?? 0;
  for (let i = 0; i < count; i++)
    values[start + i * stride] = (values[start + i * stride] ?? 0) - sum / count;
}
