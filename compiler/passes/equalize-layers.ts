/**
 * Moves factors between two layers in a row, so that each channel between them is as wide in the weights
 * that give it as in those that read it: one scale for all of them then fits all.
 *
 *     Conv(x, w1, b1) -> Relu -> Conv(w2)   ->   Conv(x, w1 / s, b1 / s) -> Relu -> Conv(s w2)
 *     s_i = sqrt(max |w1 of channel i| / max |w2 of channel i|)
 *
 *     GatedLinear(x, g, u) -> Linear(w)     ->   GatedLinear(x, g, u / s) -> Linear(s w)
 *
 * Exact up to rounding: what lies between keeps positive factors (nothing, Relu, LeakyRelu). Pairs are
 * gone through until factors are near 1. Data-free.
 * Source: Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction,
 * arXiv:1906.04721, section 4.1.
 */
import type { Node, Value } from '../ir/graph.ts';
import { activationNameOf } from '../ops/activation-table.ts';
import { isFusedConv } from '../ops/fused-conv.ts';
import { isLinear, linearInputs } from '../ops/fused-linear.ts';
import { readNumbers } from '../ops/numbers.ts';
import type { LinearSite } from './linear-site.ts';
import { givingScaled, linearSites, readersOf, setWeights, takingAffine } from './linear-site.ts';
import type { Pass, PassContext } from './pass.ts';

/** Options of {@link equalizeLayers}. */
export interface EqualizeLayersOptions {
  /** Times that all pairs are gone through, at most. Default 8. */
  readonly rounds?: number;
}

/** Defaults of {@link EqualizeLayersOptions}. */
export const equalizeLayersDefaults: Required<EqualizeLayersOptions> = { rounds: 8 };

const RULE = 'pair';

/** A factor this near to 1 is left out. */
const NEAR = 1.02;

/** Factors beyond this would only move the trouble. */
const MOST_FACTOR = 1e4;

/** Makes the pass. */
export function equalizeLayers(options: EqualizeLayersOptions = {}): Pass {
  const { rounds } = { ...equalizeLayersDefaults, ...options };
  return {
    name: 'equalize-layers',
    options: { rounds },
    rules: [
      {
        name: RULE,
        starts: ['Conv', 'Gemm', 'fettle.Conv', 'fettle.Linear', 'fettle.GatedLinear'],
      },
    ],
    run(model, context) {
      const before = context.rewriter.changes;
      for (let round = 0; round < rounds; round++) {
        const changes = context.rewriter.changes;
        for (const node of model.graph.nodes()) visit(node, round === 0, context);
        if (context.rewriter.changes === changes) break;
      }
      return context.rewriter.changes > before;
    },
  };
}

/** Activations that a positive factor passes through. */
const homogeneous: ReadonlySet<string> = new Set(['none', 'relu', 'leaky-relu']);

function visit(node: Node, first: boolean, context: PassContext): void {
  const sites = linearSites(node);
  // of a gated pair the second product is the one without an activation
  const giver = sites === undefined || typeof sites === 'string' ? undefined : sites.at(-1);
  if (giver === undefined || giver.node.op === 'MatMul') return;
  const passed = behind(node);
  if (passed === undefined) return;
  const readers = readersOf(passed);
  if (readers === undefined) return;
  const refuse = (why: string): void => (first ? context.refuse(RULE, node, why) : undefined);
  if (typeof readers === 'string') return refuse(readers);
  if (fused(node) && !homogeneous.has(activationNameOf(node)))
    return refuse('a factor does not pass its activation');
  if (hasResidual(node)) return refuse('something is added to it');
  if (readers.some(({ inputs, axis }) => inputs !== giver.outputs || axis !== giver.axis))
    return refuse('its readers see other channels');
  const factors = factorsOf(giver, readers);
  if (factors.every((factor) => factor < NEAR && factor > 1 / NEAR)) return;
  const zeros = new Float64Array(factors.length);
  const given = givingScaled(
    giver,
    factors.map((factor) => 1 / factor),
  );
  const taken = readers.map((site) => takingAffine(site, factors, zeros));
  if (given === undefined || taken.includes(undefined))
    return refuse('the scaled weights would not be finite');
  setWeights(context.rewriter, giver, given);
  readers.forEach((site, index) => {
    const weights = taken[index];
    if (weights !== undefined) setWeights(context.rewriter, site, weights);
  });
  context.count(RULE);
}

/** The value behind a node and an activation of its own behind it. */
function behind(node: Node): Value | undefined {
  const [output] = node.outputs;
  const next = output?.onlyUser;
  const isActivation = next?.domain === '' && (next.op === 'Relu' || next.op === 'LeakyRelu');
  return isActivation ? next.outputs[0] : output;
}

function fused(node: Node): boolean {
  return isLinear(node) || isFusedConv(node);
}

function hasResidual(node: Node): boolean {
  return fused(node) && node.inputs[linearInputs.residual] !== undefined;
}

function factorsOf(giver: LinearSite, readers: readonly LinearSite[]): Float64Array {
  const given = rangesOf(giver, (index) => giver.outputOf(index), giver.outputs);
  const read = new Float64Array(giver.outputs);
  for (const site of readers) {
    const ranges = rangesOf(site, (index) => site.inputOf(index), site.inputs);
    ranges.forEach((range, channel) => (read[channel] = Math.max(read[channel] ?? 0, range)));
  }
  return given.map((range, channel) => {
    const other = read[channel] ?? 0;
    if (range === 0 || other === 0) return 1;
    return Math.min(MOST_FACTOR, Math.max(1 / MOST_FACTOR, Math.sqrt(range / other)));
  });
}

/** Largest magnitude of the weights of each channel. */
function rangesOf(
  site: LinearSite,
  channelOf: (index: number) => number,
  channels: number,
): Float64Array {
  const ranges = new Float64Array(channels);
  const tensor = site.weight.constant();
  if (tensor === undefined) return ranges;
  readNumbers(tensor).forEach((value, index) => {
    const channel = channelOf(index);
    ranges[channel] = Math.max(ranges[channel] ?? 0, Math.abs(value));
  });
  return ranges;
}
