/**
 * What a model is, without running it: ops, parameters, bytes per dtype, inputs and outputs, and what
 * a session would need. Reads weights only as far as asked, so that a model larger than memory is
 * inspected from its graph.
 */
import type { DecoderSpec, TensorSpec } from '../runtime/manifest.ts';
import { elementCount } from '../runtime/tensor.ts';
import { targets } from '../targets/index.ts';
import type { Target } from '../targets/target.ts';
import { analyzeDecoder } from './analyze/decoder.ts';
import type { ModelConfig } from './analyze/config.ts';
import { estimateMemory } from './emit/memory.ts';
import { dimToText } from './ir/dim.ts';
import type { Model, Value } from './ir/graph.ts';
import { inferModel } from './ir/infer.ts';

/** What a session of an uncompiled model would need on a target, in bytes. */
export interface TargetMemory {
  /** Id of the target. */
  readonly target: string;
  /** Weights as its engine holds them. */
  readonly weights: number;
  /** Activations of one call. */
  readonly arena: number;
  /** KV cache at the context length. */
  readonly state: number;
  /** Whether all of it fits the target's limit. */
  readonly fits: boolean;
}

/** The summary `fettle inspect` prints; keys are stable. */
export interface Inspection {
  /** What was inspected. */
  readonly kind: 'model' | 'bundle';
  /** Nodes, subgraphs included, `Constant` nodes left out. */
  readonly nodes: number;
  /** Nodes by op; ops of other domains are written `domain.Op`. */
  readonly ops: Readonly<Record<string, number>>;
  /** Elements of the constants in use. */
  readonly parameters: number;
  /** Bytes of the constants in use, by dtype. */
  readonly bytes: Readonly<Record<string, number>>;
  /** Recognised blocks. */
  readonly blocks: readonly { readonly kind: string }[];
  /** Inputs; unknown sizes keep their name. */
  readonly inputs: readonly TensorSpec[];
  /** Outputs. */
  readonly outputs: readonly TensorSpec[];
  /** Estimate of an f32 session at batch 1. */
  readonly memory: { readonly weights: number; readonly arena: number; readonly state: number };
  /** The same for each target, with weights in the dtypes they have. */
  readonly targets: readonly TargetMemory[];
  /** ONNX opset by domain. */
  readonly opsets: Readonly<Record<string, number>>;
  /** How it is driven, when it is a decoder, in words; or why it is not one. */
  readonly decoder: string;
  /** Things worth knowing that the readers met. */
  readonly warnings: readonly string[];
}

/**
 * Inspects a model. Infers its shapes, otherwise leaves it as it is.
 *
 * @param model - as read
 * @param config - the JSON files beside it, when there are any
 *
 * @example
 * const { nodes, parameters } = inspectModel(readModel(files, 'model.onnx'));
 */
export function inspectModel(model: Model, config: ModelConfig = {}): Inspection {
  inferModel(model, { contradictions: 'warn' });
  const ops = new Map<string, number>();
  let nodes = 0;
  const weights = new Set<Value>();
  let constantNodes = 0;
  for (const node of model.graph.allNodes()) {
    if (node.op === 'Constant' && node.domain === '') {
      constantNodes++;
      continue;
    }
    nodes++;
    const name = node.domain === '' ? node.op : `${node.domain}.${node.op}`;
    ops.set(name, (ops.get(name) ?? 0) + 1);
  }
  for (const graph of model.graph.allGraphs())
    for (const value of graph.constants) if (value.useCount > 0) weights.add(value);
  if (constantNodes > 0) ops.set('Constant', constantNodes);

  const bytes = new Map<string, number>();
  let parameters = 0;
  for (const { weight } of weights) {
    if (weight === undefined) continue;
    parameters += elementCount(weight.shape);
    bytes.set(weight.dtype, (bytes.get(weight.dtype) ?? 0) + weight.byteLength);
  }
  const analysis = analyzeDecoder(model, config);
  const { decoder } = analysis;
  const { memory } = estimateMemory(model, {
    decoder,
    foldsConstants: true,
    foldsDequantize: true,
  });
  return {
    kind: 'model',
    nodes,
    ops: Object.fromEntries([...ops].sort(([a, x], [b, y]) => y - x || (a < b ? -1 : 1))),
    parameters,
    bytes: Object.fromEntries([...bytes].sort(([, x], [, y]) => y - x)),
    blocks: [],
    inputs: model.graph.inputs.map(specOf),
    outputs: model.graph.outputs.map(specOf),
    memory: { weights: memory.weights, arena: memory.arena, state: memory.state },
    targets: targets.map((target) => memoryOn(target, model, decoder)),
    opsets: Object.fromEntries(model.opsets),
    decoder:
      analysis.decoder === undefined
        ? ['no decoder', ...analysis.reasons].join('; ')
        : `decoder: ${analysis.decoder.state.length} state tensors, context ${analysis.decoder.contextLength}`,
    warnings: [...model.warnings, ...analysis.warnings],
  };
}

function memoryOn(target: Target, model: Model, decoder: DecoderSpec | undefined): TargetMemory {
  const foldsConstants = target.engine === 'ort';
  const { memory } = estimateMemory(model, {
    decoder,
    foldsConstants,
    foldsDequantize: foldsConstants && target.quantizedForm === 'dequantize-linear',
  });
  const { weights, arena, state } = memory;
  const fits = weights + arena + state <= target.limits.memoryBytes.value;
  return { target: target.id, weights, arena, state, fits };
}

function specOf(value: Value): TensorSpec {
  return {
    name: value.name,
    dtype: value.dtype ?? 'f32',
    shape: (value.shape ?? []).map((dim) => (typeof dim === 'string' ? dimToText(dim) : dim)),
  };
}
