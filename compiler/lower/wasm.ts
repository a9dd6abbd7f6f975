/**
 * Lowering for the WASM engine: a graph, fused or not, becomes a plan of kernel calls over one memory.
 *
 *   graph  ->  body   every node that tokens need from each other (attention, cache)
 *              head   the rows of the rest that lead to the logits; runs for the rows that are asked for
 *
 * Prompts are fed in chunks, so that activations take the same memory whatever their length. Nodes of
 * constants are computed here; shape arithmetic becomes sizes over S and P and no step at all.
 */
import { FettleError } from '../../runtime/errors.ts';
import type { DecoderSpec } from '../../runtime/manifest.ts';
import { batchAxis } from '../emit/open-sizes.ts';
import type { Dim } from '../ir/dim.ts';
import { multiplyDims, substituteDim, symbolsOf } from '../ir/dim.ts';
import type { Model, Node, Value } from '../ir/graph.ts';
import { isDequantize } from '../ops/quantized.ts';
import type { EncodedPlan } from './encode-plan.ts';
import { encodePlan } from './encode-plan.ts';
import { addressOf, P, S, sizeAt } from './plan.ts';
import type { Place } from './wasm-context.ts';
import { Lowering, Unsupported } from './wasm-context.ts';
import { headTables } from './wasm-embedding.ts';
import type { Side } from './wasm-movement.ts';
import { move } from './wasm-movement.ts';
import { lowererOf, rowwise } from './wasm-ops.ts';

/** What a plan is made for. */
export interface WasmOptions {
  /** How the model is driven, when it is a decoder. */
  readonly decoder: DecoderSpec | undefined;
  /** Threads that working memory is reserved for; 1 without threads. */
  readonly threads: number;
  /** Most tokens of one call; longer prompts are fed in parts. Default 128. */
  readonly chunk?: number;
  /** Format of the KV cache; `source`, the default, is the dtype the model keeps it in. */
  readonly kv?: 'source' | 'f32' | 'f16';
  /** Most tokens of a model that takes sequences but keeps no cache. Default 512. */
  readonly sequence?: number;
  /**
   * Whether float matrices made of halves are stored as halves. Default true; false for who is going to
   * replace them in memory by values that are none.
   */
  readonly halves?: boolean;
}

/** Tokens of a call, where the caller does not say. */
export const DEFAULT_CHUNK = 128;
/** Tokens an encoder is planned for, where its length is open. */
export const DEFAULT_SEQUENCE = 512;
/** Bytes of logits that may be held at a time when all are asked for. */
const LOGIT_BYTES = 4 << 20;

/**
 * Lowers a model to a plan.
 *
 * @param model - after its passes, shapes inferred; not changed
 * @throws {@link FettleError} OP_UNSUPPORTED naming every node that has no kernel, SHAPE_UNKNOWN when a
 * size is open that has to be fixed, BUDGET_EXCEEDED when it does not fit a 32-bit memory
 */
export function lowerForWasm(model: Model, options: WasmOptions): EncodedPlan {
  const { decoder, threads, halves = true } = options;
  const { sizes, open } = namedSizes(model, decoder);
  const longest = decoder?.contextLength ?? options.sequence ?? DEFAULT_SEQUENCE;
  const context = Math.min(longest, longestSlice(model, sizes));
  const limit = decoder === undefined ? context : (options.chunk ?? DEFAULT_CHUNK);
  const chunk = Math.min(limit, context);
  const lowering = new Lowering(model, decoder, {
    sizes,
    chunk,
    context,
    threads,
    halves,
    kv: options.kv ?? 'source',
  });
  if (open !== undefined)
    lowering.warnings.push(`The size ${open} is open; the plan holds up to ${context}.`);
  placeInputs(lowering);
  const nodes = [...model.graph.nodes()];
  const head = headOf(lowering, nodes, chunk);
  const heads = headTables(lowering, nodes);
  const failed = new Map<Node, string>();
  const lower = (node: Node): void => {
    if (isFree(lowering, node) || isDequantize(node)) return;
    lowering.node = node;
    try {
      const lowerNode = lowererOf(node);
      if (lowerNode === undefined) throw new Unsupported('no kernel');
      lowerNode(lowering, node, heads);
    } catch (error) {
      if (!(error instanceof Unsupported)) throw error;
      failed.set(node, error.message);
      placeholders(lowering, node);
    }
  };
  for (const node of nodes) if (!head.nodes.has(node)) lower(node);
  if (failed.size === 0) {
    lowering.segment = 'head';
    for (const node of nodes) if (head.nodes.has(node)) lower(node);
  }
  if (failed.size > 0) throw unsupported(failed);
  lowering.node = undefined;
  if (decoder === undefined) lowering.segment = 'body';
  const outputs = model.graph.outputs
    .filter(({ name }) => decoder === undefined || name === decoder.logits)
    .map((value) => ({ value, place: outputPlace(lowering, value) }));
  return encodePlan(lowering, { headRows: head.rows, outputs });
}

/** The open sizes of the inputs over S and P; batches are 1. */
function namedSizes(
  model: Model,
  decoder: DecoderSpec | undefined,
): { readonly sizes: ReadonlyMap<string, Dim>; readonly open: string | undefined } {
  const sizes = new Map<string, Dim>();
  const bind = (dim: Dim | undefined, size: Dim): void => {
    if (dim === undefined) return;
    const [symbol, more] = symbolsOf(dim);
    if (symbol !== undefined && more === undefined && !sizes.has(symbol)) sizes.set(symbol, size);
  };
  const { inputs } = model.graph;
  const states = new Map(decoder?.state.map((state) => [state.input, state]));
  for (const { shape = [] } of inputs) {
    const axis = batchAxis(shape);
    // [1, n, width] is one sequence, unless n is the batch of another input
    const alone = axis > 0 && shape[0] === 1;
    if (!alone || inputs.some((other) => other.shape?.[0] === shape[axis])) bind(shape[axis], 1);
  }
  const ids = inputs.find(({ name }) => name === decoder?.ids);
  bind(ids?.shape?.at(-1), S);
  for (const input of inputs) bind(input.shape?.[states.get(input.name)?.axis ?? -1], P);
  const mask = inputs.find(({ name }) => name === decoder?.mask);
  bind(mask?.shape?.at(-1), `${P} + ${S}`);
  if (decoder !== undefined) {
    for (const { shape = [] } of inputs) for (const dim of shape) bind(dim, S);
    return { sizes, open: undefined };
  }
  const open = [...new Set(inputs.flatMap(({ shape = [] }) => shape.flatMap(symbolsOf)))].filter(
    (symbol) => !sizes.has(symbol),
  );
  if (open.length > 1 || inputs.some(({ shape }) => shape === undefined || isImage(shape, open)))
    throw new FettleError(
      'SHAPE_UNKNOWN',
      `A plan needs the sizes of the inputs; ${open.map((name) => `"${name}"`).join(', ')} ${open.length > 1 ? 'are' : 'is'} open.`,
      { at: { sizes: open.join(', ') }, fix: 'Fix them, for example with --shape x=1x3x224x224.' },
    );
  for (const symbol of open) sizes.set(symbol, S);
  return { sizes, open: open[0] };
}

/** Tokens there are positions for, where a table is cut to the length of the input. */
function longestSlice(model: Model, sizes: ReadonlyMap<string, Dim>): number {
  let most = Infinity;
  for (const node of model.graph.nodes()) {
    if (node.op !== 'Slice') continue;
    const [from, to] = [node.inputs[0]?.shape, node.outputs[0]?.shape];
    to?.forEach((dim, axis) => {
      const size = from?.[axis];
      if (typeof size === 'number' && substituteDim(dim, sizes) === S) most = Math.min(most, size);
    });
  }
  return most;
}

/** Whether an open size is the height or width of an image. */
function isImage(shape: readonly Dim[], open: readonly string[]): boolean {
  return (
    shape.length === 4 && shape.some((dim) => symbolsOf(dim).some((name) => open.includes(name)))
  );
}

/** Inputs of the model but the caches, which are the engine's own. */
function placeInputs(lowering: Lowering): void {
  for (const input of lowering.model.graph.inputs) {
    if (lowering.caches.has(input.name)) continue;
    const isFloat = input.dtype !== undefined && /f\d/.test(input.dtype);
    lowering.input(input, isFloat ? 'f32' : 'i32');
  }
}

/** Nodes that take no step: all inputs constant, or shape arithmetic. */
function isFree(lowering: Lowering, node: Node): boolean {
  if (node.outputs.every((output) => output === undefined || output.useCount === 0)) return true;
  if (node.outputs.every((output) => output === undefined || lowering.isConstant(output)))
    return true;
  return node.outputs.every(
    (output) => output?.elements !== undefined && output.elements.length <= 64,
  );
}

/**
 * The nodes that only lead to the logits and compute each row by itself, and how many rows they run
 * for at a time.
 */
function headOf(
  lowering: Lowering,
  nodes: readonly Node[],
  chunk: number,
): { readonly nodes: ReadonlySet<Node>; readonly rows: number } {
  const found = new Set<Node>();
  const { decoder } = lowering;
  const logits = lowering.model.graph.outputs.find(({ name }) => name === decoder?.logits);
  if (decoder === undefined || logits === undefined) return { nodes: found, rows: 0 };
  for (const node of nodes.toReversed()) {
    const outputs = node.outputs.filter((output) => output !== undefined);
    const leads = outputs.every(
      (output) =>
        (!output.isOutput || output === logits) &&
        [...output.users.keys()].every((user) => found.has(user)),
    );
    const used = outputs.some((output) => output.useCount > 0);
    if (used && leads && rowwise(node) && outputs.every((output) => hasRows(lowering, output)))
      found.add(node);
  }
  const width =
    logits.shape === undefined ? 0 : sizeAt(lowering.dim(logits.shape.at(-1) ?? 0), 1, 0);
  const rows = Math.max(1, Math.min(chunk, Math.floor(LOGIT_BYTES / 4 / Math.max(1, width ?? 1))));
  return { nodes: found, rows: found.size === 0 ? 0 : rows };
}

/** Whether a value is rows of tokens: [1, S, ...]. */
function hasRows(lowering: Lowering, value: Value): boolean {
  const shape = value.shape?.map((dim) => lowering.dim(dim));
  const axis = shape?.indexOf(S) ?? -1;
  if (shape === undefined || axis < 0) return false;
  const rest = shape.filter((_, index) => index !== axis);
  return (
    shape.slice(0, axis).every((dim) => dim === 1) && rest.every((dim) => typeof dim === 'number')
  );
}

/** Lets the lowering go on behind a node that failed, to find the others. */
function placeholders(lowering: Lowering, node: Node): void {
  for (const output of node.outputs) {
    if (output === undefined) continue;
    const shape = (output.shape ?? []).map((dim): Dim => {
      const size = lowering.dim(dim);
      return typeof size === 'number' ? size : 1;
    });
    const bytes = multiplyDims(4, ...shape);
    const buffer = { name: output.name, region: 'arena', bytes, segment: 'body' } as const;
    const place: Place = { address: addressOf(buffer), shape, type: 'f32', segment: 'body' };
    lowering.define(output, place);
  }
}

/** Where the caller reads an output; one that is an input in another shape is copied first. */
function outputPlace(lowering: Lowering, value: Value): Place {
  const place = lowering.placeOf(value);
  if (place.address.buffer.input !== true) {
    place.address.buffer.output = true;
    return place;
  }
  const copy = lowering.fresh(value.name, place.shape, place.type);
  const count = multiplyDims(...place.shape);
  const side = (of: Place): Side => ({ place: of, strides: [1] });
  move(lowering, [count], side(place), side(copy), 'an input that is an output');
  copy.address.buffer.output = true;
  return copy;
}

function unsupported(failed: ReadonlyMap<Node, string>): FettleError {
  const reasons = new Map<string, Node[]>();
  for (const [node, why] of failed) {
    const op = node.domain === '' ? node.op : `${node.domain}.${node.op}`;
    const key = why === 'no kernel' ? op : `${op} (${why})`;
    reasons.set(key, [...(reasons.get(key) ?? []), node]);
  }
  const list = [...reasons].map(([what, nodes]) =>
    nodes.length === 1 ? what : `${nodes.length} x ${what}`,
  );
  const [first] = failed.keys();
  return new FettleError(
    'OP_UNSUPPORTED',
    `The wasm engine cannot run this model. It has no kernel for: ${list.join('; ')}.`,
    {
      at: {
        op: [...new Set([...failed.keys()].map(({ op }) => op))].join(', '),
        node: first?.name ?? '',
      },
      fix: 'Compile for ort-wasm, or for both: --target wasm,ort-wasm.',
    },
  );
}
