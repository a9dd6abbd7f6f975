/**
 * Ranges of activations for the pass `quantize-activations`: of what products read, and of what
 * convolutions give before their activation.
 */
import type { DecoderSpec } from '../../runtime/manifest.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { cloneModel } from '../ir/clone.ts';
import type { Model } from '../ir/graph.ts';
import { inferNode } from '../ir/infer.ts';
import { Rewriter } from '../ir/rewriter.ts';
import { epilogueAttributes } from '../ops/fused-conv.ts';
import { internalDomain } from '../ops/quantized.ts';
import type { QuantizeActivationsOptions } from '../passes/quantize-activations.ts';
import { PRODUCT, productOf, quantizeActivationsDefaults } from '../passes/quantize-activations.ts';
import { turn } from '../turn.ts';
import { namingNotFinite } from './find-not-finite.ts';
import { fixedModel } from './fixed-model.ts';
import type { Samples } from './samples.ts';
import { stageModel } from './stage-model.ts';
import { openStage } from './stage-runner.ts';
import { notFinite } from './statistics.ts';
import type { CalibrationServices } from './subject.ts';

/**
 * Least and greatest value over all samples.
 *
 * @param model - what the pass will be run on; not changed
 * @param options - the pass's own, so that nothing is measured for what it leaves alone
 * @throws {@link FettleError} MODEL_INVALID when a value is not finite
 *
 * @example
 * const ranges = await activationRanges(model, undefined, samples, services);
 * await runPasses(model, [quantizeActivations({ ranges })]);
 */
export async function activationRanges(
  model: Model,
  decoder: DecoderSpec | undefined,
  samples: Samples,
  services: Pick<CalibrationServices, 'engines' | 'progress' | 'signal'>,
  options: Pick<QuantizeActivationsOptions, 'only' | 'skip' | 'minElements'> = {},
): Promise<Readonly<Record<string, readonly [least: number, greatest: number]>>> {
  const { engines, signal, progress = () => {} } = services;
  const copy = cloneModel(model);
  const wanted = withProducts(copy, { ...quantizeActivationsDefaults, ...options });
  const fixed = await fixedModel(copy, decoder, samples.shapes);
  const given = new Set(fixed.graph.inputs.map(({ name }) => name));
  const computed = [...wanted].filter((name) => !given.has(name));
  if (computed.length === 0) return {};
  const runner = await openStage(stageModel(fixed, [], computed), { engines, units: [] });
  const ranges: Record<string, readonly [number, number]> = {};
  const widen = (name: string, { data }: Tensor, sample: number): void => {
    if (!(data instanceof Float32Array)) return;
    let [least, greatest] = ranges[name] ?? [Infinity, -Infinity];
    for (const value of data) {
      if (!Number.isFinite(value)) throw notFinite({ value: name, node: '', sample });
      if (value < least) least = value;
      if (value > greatest) greatest = value;
    }
    ranges[name] = [least, greatest];
  };
  const measure = async (): Promise<void> => {
    for (let index = 0; index < samples.count; index++) {
      await turn(signal);
      const feeds = samples.at(index);
      for (const [name, value] of feeds) if (wanted.has(name)) widen(name, value, index);
      for (const [name, value] of await runner.run(feeds)) widen(name, value, index);
      progress('measure ranges', index + 1, samples.count);
    }
  };
  try {
    await namingNotFinite({ model: fixed, samples }, services, measure);
  } finally {
    await runner.dispose();
  }
  return ranges;
}

/** Adds the products of convolutions as outputs; names of everything to be measured. */
function withProducts(model: Model, options: Parameters<typeof productOf>[1]): ReadonlySet<string> {
  const rewriter = new Rewriter(model, inferNode);
  const wanted = new Set<string>();
  for (const node of model.graph.nodes()) {
    const site = productOf(node, options);
    if (site === undefined || typeof site === 'string') continue;
    wanted.add(node.input(0).name);
    if (node.op !== 'Conv') continue;
    const attributes = Object.fromEntries(
      [...node.attributes].filter(([name]) => !epilogueAttributes.includes(name)),
    );
    rewriter.before(node);
    const inputs = node.inputs.slice(0, 3);
    const product = rewriter.op('Conv', inputs, attributes, { domain: internalDomain });
    const name = `${node.output(0).name}${PRODUCT}`;
    rewriter.graphOutput(name, product);
    wanted.add(name);
  }
  return wanted;
}
