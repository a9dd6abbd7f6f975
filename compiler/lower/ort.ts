/**
 * Lowering for onnxruntime-web: quantized weights in the form that is fast on the target's provider,
 * in an opset that has it, and nothing left that only the compiler knows.
 */
import { FettleError } from '../../runtime/errors.ts';
import type { Target } from '../../targets/target.ts';
import { inferNode } from '../ir/infer.ts';
import type { Model } from '../ir/graph.ts';
import { Rewriter } from '../ir/rewriter.ts';
import { internalDomain } from '../ops/quantized.ts';
import type { Refusal } from '../passes/pass.ts';
import type { LowerContext } from './context.ts';
import { lowerToDequantizeLinear, opsetNeeded } from './dequantize-linear.ts';
import { expandFused } from './expand-fused.ts';
import { lowerToMatMulNBits } from './mat-mul-nbits.ts';
import type { QuantizedGroup } from './quantized-uses.ts';
import { quantizedGroups } from './quantized-uses.ts';
import { upgradeOpset } from './upgrade-opset.ts';

/** What a lowering found out besides editing the model. */
export interface LoweredModel {
  /** Number format of the constants that are parts of quantized weights, by name. */
  readonly formats: ReadonlyMap<string, string>;
  /** Bytes of the constants as stored, each storage once. */
  readonly weightBytes: number;
  /** Session options that the model needs: the target's, or fewer. */
  readonly sessionOptions: Readonly<Record<string, unknown>>;
  /** What the user should know: formats that are stored in more bits, a raised opset. */
  readonly warnings: readonly string[];
  /** Why a form that was looked for was not used. */
  readonly refusals: readonly Refusal[];
}

/**
 * Lowers a model for a target of engine `ort`, in place.
 *
 * @param model - after its passes, shapes inferred
 * @param target - says how quantized weights are spelt
 * @throws {@link FettleError} OP_UNSUPPORTED when an op has no form that the engine reads, or when the
 * opset has to be raised and an op cannot follow
 */
export function lowerForOrt(model: Model, target: Target): LoweredModel {
  const refusals: Refusal[] = [];
  const warnings: string[] = [];
  const formats = new Map<string, string>();
  const context: LowerContext = {
    rewriter: new Rewriter(model, inferNode),
    provider: target.provider ?? 'wasm',
    formats,
    masks: new Map(),
    refuse: (rule, at, why) =>
      refusals.push({ pass: 'lower-ort', rule, at: typeof at === 'string' ? at : at.name, why }),
  };
  // first, so that quantized weights are found where onnxruntime will read them
  expandFused(model, context);
  const groups = quantizedGroups(model);
  const folded =
    target.quantizedForm === 'mat-mul-nbits'
      ? groups.filter((group) => !lowerToMatMulNBits(group, context))
      : groups;
  const needed = Math.max(0, ...folded.map(opsetNeeded));
  if (needed > model.opset) {
    warnings.push(`Opset raised from ${model.opset} to ${needed}, which quantized weights need.`);
    upgradeOpset(model, needed);
  }
  for (const group of folded) lowerToDequantizeLinear(group, context);
  removeUnusedConstants(model, context.rewriter);
  declareDomains(model, needed);
  makeNamesUnique(model);
  checkNothingInternal(model);
  return {
    formats,
    weightBytes: storedBytes(model),
    // The options are about folding our weights. A model that came with 8-bit activations of its own
    // is faster when onnxruntime fuses them, which the options forbid.
    sessionOptions:
      folded.length === 0 && quantizesActivations(model) ? {} : (target.sessionOptions ?? {}),
    warnings: [...warnings, ...widened(groups)],
    refusals,
  };
}

/** onnxruntime has no codebooks, no 3-bit elements, and 2-bit ones only from opset 25 on. */
function widened(groups: readonly QuantizedGroup[]): string[] {
  const books = groups.filter(({ constants }) => constants.codebook !== undefined).length;
  const spelled =
    books === 0
      ? []
      : [
          `${books} weights with codebooks are stored in 8 bits for onnxruntime: twice the bytes of w4.`,
        ];
  const few = ([3, 2] as const).flatMap((bits) => {
    const count = groups.filter((group) => group.bits === bits).length;
    return count === 0
      ? []
      : [
          `${count} weights in ${bits} bits are stored in 4 for onnxruntime: no bytes saved over w4.`,
        ];
  });
  return [...spelled, ...few];
}

function quantizesActivations(model: Model): boolean {
  return [...model.graph.allNodes()].some(({ op }) => op === 'QuantizeLinear');
}

function removeUnusedConstants(model: Model, rewriter: Rewriter): void {
  for (const graph of model.graph.allGraphs())
    for (const constant of graph.constants)
      if (constant.useCount === 0) rewriter.removeConstant(graph, constant);
}

/** Operator sets the new nodes come from, and the IR version that has 4-bit tensors. */
function declareDomains(model: Model, opset: number): void {
  model.opsets.delete(internalDomain);
  for (const node of model.graph.allNodes())
    if (node.domain === 'com.microsoft' && !model.opsets.has(node.domain))
      model.opsets.set(node.domain, 1);
  // https://github.com/onnx/onnx/blob/main/docs/Versioning.md
  if (opset >= 21) model.irVersion = Math.max(model.irVersion, 10);
}

/** onnxruntime refuses a graph in which two nodes have one name, which the ONNX text does not forbid. */
function makeNamesUnique(model: Model): void {
  const taken = new Set<string>();
  for (const node of model.graph.allNodes()) {
    if (node.name === '') continue;
    const { name } = node;
    for (let suffix = 1; taken.has(node.name); suffix++) node.name = `${name}_${suffix}`;
    taken.add(node.name);
  }
}

function checkNothingInternal(model: Model): void {
  for (const node of model.graph.allNodes())
    if (node.domain === internalDomain)
      throw new FettleError('OP_UNSUPPORTED', `${node.describe()} has no form for onnxruntime.`, {
        at: { node: node.name, op: node.op },
        fix: 'Leave out the pass that made it, or compile for another target.',
      });
}

function storedBytes(model: Model): number {
  const weights = new Set(
    [...model.graph.allGraphs()].flatMap((graph) => [...graph.constants].map((c) => c.weight)),
  );
  let bytes = 0;
  for (const weight of weights) bytes += weight?.byteLength ?? 0;
  return bytes;
}
