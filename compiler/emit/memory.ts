/**
 * Estimates what a session needs before anybody downloads anything.
 *
 * Weights are counted as the engine holds them, not as the bundle stores them: an engine that folds
 * `DequantizeLinear(constant)` when it loads a model keeps f32. The arena is a lower bound: the
 * largest sum of activations alive at one node when the nodes run in order and every buffer is freed
 * after its last use; views share their input's storage. State is the KV cache at the given length.
 */
import type { DecoderSpec, MemorySpec } from '../../runtime/manifest.ts';
import { bytesFor } from '../../runtime/tensor.ts';
import type { Dim } from '../ir/dim.ts';
import { isAnonymous, multiplyDims, substituteDim, symbolsOf } from '../ir/dim.ts';
import type { Graph, Model, Node, Value } from '../ir/graph.ts';
import { batchAxis } from './open-sizes.ts';

/** What the figures are for. */
export interface MemoryOptions {
  /** How the model is driven, when it is a decoder. */
  readonly decoder?: DecoderSpec | undefined;
  /** Tokens the cache holds; default: the decoder's context length. */
  readonly contextLength?: number | undefined;
  /** Whether the engine computes nodes of constants when it loads the model. */
  readonly foldsConstants: boolean;
  /** Whether that includes `DequantizeLinear`. */
  readonly foldsDequantize: boolean;
}

/** The estimate, and the sizes that had to be assumed for it. */
export interface MemoryEstimate {
  /** Figures for the manifest. */
  readonly memory: MemorySpec;
  /** Open sizes of the inputs and what was assumed; empty when everything was known. */
  readonly assumed: ReadonlyMap<string, number>;
}

/** Prompt length the arena of a decoder is estimated for, in tokens. */
export const PROMPT_TOKENS = 128;

/** Size assumed for an open axis of an image (rank 4), and of anything else but the batch. */
const ASSUMED_PIXELS = 224;
const ASSUMED_STEPS = 128;

/** Estimates the memory of a model whose shapes have been inferred. */
export function estimateMemory(model: Model, options: MemoryOptions): MemoryEstimate {
  const { decoder } = options;
  const folded = options.foldsConstants
    ? foldedNodes(model.graph, options.foldsDequantize)
    : new Set<Node>();
  const sizes = batchSizes(model, decoder);
  const tokens = decoder === undefined ? 0 : (options.contextLength ?? decoder.contextLength);
  const calls =
    decoder === undefined ? [sizes.known] : callsOf(model, decoder, tokens, sizes.known);
  return {
    memory: {
      weights: heldWeightBytes(model.graph, folded),
      arena: Math.max(0, ...calls.map((call) => peakBytes(model.graph, call, folded, decoder))),
      state: decoder === undefined ? 0 : stateBytes(decoder, tokens),
      tokens,
      exact: false,
    },
    assumed: sizes.assumed,
  };
}

/** Bytes of a decoder's cache holding `tokens` tokens, batch 1. */
export function stateBytes(decoder: DecoderSpec, tokens: number): number {
  return decoder.state.reduce((sum, { dtype, shape, axis }) => {
    const count = shape.reduce<number>(
      (product, dim, index) =>
        product * (index === axis ? tokens : typeof dim === 'number' ? dim : 1),
      1,
    );
    return sum + bytesFor(dtype, count);
  }, 0);
}

type Sizes = ReadonlyMap<string, number>;

/** A value for every open size of the inputs: 1 for the batch, an assumption for the rest. */
function batchSizes(
  model: Model,
  decoder: DecoderSpec | undefined,
): { readonly known: Sizes; readonly assumed: Sizes } {
  const known = new Map<string, number>();
  const assumed = new Map<string, number>();
  for (const { shape = [] } of model.graph.inputs)
    for (const symbol of symbolsOf(shape[batchAxis(shape)] ?? 1)) known.set(symbol, 1);
  if (decoder !== undefined) return { known, assumed };
  for (const { name, shape = [] } of model.graph.inputs)
    for (const [axis, dim] of shape.entries())
      for (const symbol of symbolsOf(dim)) {
        if (known.has(symbol)) continue;
        const size = shape.length === 4 ? ASSUMED_PIXELS : ASSUMED_STEPS;
        known.set(symbol, size);
        // a size that nobody named is called by its place
        assumed.set(isAnonymous(symbol) ? `${name}[${axis}]` : symbol, size);
      }
  return { known, assumed };
}

/** Sizes of the two calls that need most: a prompt, and one token at a full context. */
function callsOf(model: Model, decoder: DecoderSpec, tokens: number, batch: Sizes): Sizes[] {
  const prompt = Math.min(PROMPT_TOKENS, tokens);
  return [
    [prompt, 0],
    [1, Math.max(0, tokens - 1)],
  ].map(([sequence = 1, past = 0]) => {
    const sizes = new Map(batch);
    for (const input of model.graph.inputs) {
      const state = decoder.state.find((spec) => spec.input === input.name);
      const [axis, size] =
        state !== undefined
          ? [state.axis, past]
          : input.name === decoder.mask
            ? [1, past + sequence]
            : [1, sequence];
      const dim = input.shape?.[axis];
      // `past + sequence` follows from its parts; a name of its own is bound here
      if (typeof dim === 'string' && symbolsOf(dim).length === 1)
        sizes.set(symbolsOf(dim)[0] ?? '', size);
    }
    return sizes;
  });
}

/** Nodes that depend on constants alone; the engine runs them once and keeps the results. */
function foldedNodes(graph: Graph, foldsDequantize: boolean): Set<Node> {
  const folded = new Set<Node>();
  for (const node of graph.nodes()) {
    if (node.subgraphs.length > 0 || (node.op === 'DequantizeLinear' && !foldsDequantize)) continue;
    const inputs = node.inputs.filter((input) => input !== undefined);
    const constant = (input: Value): boolean =>
      input.weight !== undefined || (input.producer !== undefined && folded.has(input.producer));
    if (inputs.length > 0 && inputs.every(constant)) folded.add(node);
  }
  return folded;
}

/** Bytes of the constants, original or folded, that the remaining nodes read. */
function heldWeightBytes(graph: Graph, folded: ReadonlySet<Node>): number {
  const held = new Set<Value>();
  const note = (node: Node): void => {
    for (const input of node.inputs)
      if (input?.weight !== undefined || (input?.producer && folded.has(input.producer)))
        held.add(input);
  };
  for (const node of graph.allNodes()) if (!folded.has(node)) note(node);
  for (const output of graph.outputs) if (output.weight !== undefined) held.add(output);
  const storages = new Set<unknown>();
  let bytes = 0;
  for (const value of held) {
    const storage = value.weight ?? value;
    if (storages.has(storage)) continue;
    storages.add(storage);
    bytes += value.weight?.byteLength ?? valueBytes(value, new Map());
  }
  return bytes;
}

const views: ReadonlySet<string> = new Set([
  'Identity',
  'Reshape',
  'Squeeze',
  'Unsqueeze',
  'Flatten',
]);

/** The most bytes of activations alive at once. Cache inputs are counted as state, not here. */
function peakBytes(
  graph: Graph,
  sizes: Sizes,
  folded: ReadonlySet<Node>,
  decoder: DecoderSpec | undefined,
): number {
  const stateInputs = new Set(decoder?.state.map(({ input }) => input));
  const nodes = [...graph.nodes()].filter((node) => !folded.has(node));
  const owner = new Map<Value, Value>(); // a view -> the value whose storage it is
  const root = (value: Value): Value => owner.get(value) ?? value;
  const lastUse = new Map<Value, number>();
  const use = (value: Value | undefined, at: number): void => {
    if (value !== undefined) lastUse.set(root(value), Math.max(at, lastUse.get(root(value)) ?? 0));
  };
  nodes.forEach((node, at) => {
    const [input] = node.inputs;
    const [output] = node.outputs;
    if (views.has(node.op) && input !== undefined && output !== undefined)
      owner.set(output, root(input));
    for (const value of readBy(node)) use(value, at);
  });
  for (const output of graph.outputs) use(output, nodes.length);

  const freedAt: Value[][] = Array.from({ length: nodes.length + 1 }, () => []);
  const alive = new Set<Value>();
  let bytes = 0;
  let peak = 0;
  const start = (value: Value, at: number): void => {
    if (value.weight !== undefined || owner.has(value) || alive.has(value)) return;
    alive.add(value);
    bytes += valueBytes(value, sizes);
    freedAt[lastUse.get(value) ?? at]?.push(value);
  };
  for (const input of graph.inputs) if (!stateInputs.has(input.name)) start(input, 0);
  nodes.forEach((node, at) => {
    for (const output of node.outputs) if (output !== undefined) start(output, at);
    peak = Math.max(peak, bytes);
    for (const value of freedAt[at] ?? []) bytes -= valueBytes(value, sizes);
  });
  return peak;
}

/** What a node reads, values used inside its subgraphs included. */
function* readBy(node: Node): Generator<Value | undefined> {
  yield* node.inputs;
  for (const graph of node.subgraphs) {
    for (const inner of graph.allNodes()) yield* inner.inputs;
    yield* graph.outputs;
  }
}

/** Bytes of a value at these sizes; 0 when its shape is not known, which keeps a bound a lower one. */
function valueBytes(value: Value, sizes: Sizes): number {
  if (value.dtype === undefined || value.shape === undefined) return 0;
  const count: Dim = multiplyDims(...value.shape.map((dim) => substituteDim(dim, sizes)));
  return typeof count === 'number' && count > 0 ? bytesFor(value.dtype, count) : 0;
}
