/**
 * Where each weight lies in the bundle. All weights form one buffer, each at a multiple of 256 bytes
 * (WebGPU's storage offset alignment), in the order in which the graph first uses them, so that an
 * engine that streams can start early. The buffer is cut into chunk files without regard to tensors.
 *
 *   constants a (300 B) b (4 KiB) c (5 MiB)  ->  a inline, b at 0, c at 4096; weights-00.bin …
 *
 * Tensors below 1 KiB stay in the graph file: engines look at small constants (axes, shapes) before
 * they load external data.
 */
import type { Model, Value } from '../ir/graph.ts';
import type { Weight } from '../ir/weight.ts';

/** Alignment of tensors in the weight buffer, in bytes. */
export const WEIGHT_ALIGNMENT = 256;

/** Tensors smaller than this many bytes stay in the graph. */
export const INLINE_BYTES = 1024;

/** Bytes of a chunk at most. */
const MAX_CHUNK_BYTES = 16 << 20;

/** Bytes of a chunk at least, unless all weights are smaller. */
const MIN_CHUNK_BYTES = 1 << 20;

/** One weight in the buffer. */
export interface PlacedWeight {
  /** Name of the first constant that holds it. */
  readonly name: string;
  /** Its contents. */
  readonly weight: Weight;
  /** First byte in the buffer; a multiple of {@link WEIGHT_ALIGNMENT}. */
  readonly offset: number;
}

/** The weight buffer of a model. */
export interface WeightLayout {
  /** By rising offset. */
  readonly placed: readonly PlacedWeight[];
  /** Where a constant's storage lies; undefined when it stays in the graph. */
  readonly offsets: ReadonlyMap<Weight, number>;
  /** Size of the buffer. */
  readonly bytes: number;
  /** Size of every chunk file but the last. */
  readonly chunkBytes: number;
}

/**
 * Lays out the constants of a model. A weight object that several constants share is placed once.
 *
 * @param model - what will be emitted
 */
export function layoutWeights(model: Model): WeightLayout {
  return placeWeights(
    constantsInUseOrder(model).filter(
      ({ weight }) => weight.byteLength >= INLINE_BYTES && weight.carried?.sparse === undefined,
    ),
  );
}

/** Lays out weights one after the other; a weight object that is listed twice is placed once. */
export function placeWeights(
  weights: readonly { readonly name: string; readonly weight: Weight }[],
): WeightLayout {
  const placed: PlacedWeight[] = [];
  const offsets = new Map<Weight, number>();
  let end = 0;
  for (const { name, weight } of weights) {
    if (offsets.has(weight)) continue;
    placed.push({ name, weight, offset: end });
    offsets.set(weight, end);
    end = align(end + weight.byteLength);
  }
  return { placed, offsets, bytes: end, chunkBytes: chunkBytesFor(end) };
}

/**
 * Each constant of the main graph once: in the order of first use, then those that nothing uses.
 * Constants of subgraphs stay with their subgraph; onnxruntime-web finds no external data for them.
 */
export function constantsInUseOrder(
  model: Model,
): readonly { readonly name: string; readonly weight: Weight }[] {
  const { constants } = model.graph;
  const found = new Set<Value>();
  for (const node of model.graph.allNodes())
    for (const input of node.inputs)
      if (input !== undefined && constants.has(input)) found.add(input);
  for (const constant of constants) found.add(constant);
  return [...found].flatMap(({ name, weight }) => (weight === undefined ? [] : [{ name, weight }]));
}

/**
 * A chunk is a sixteenth of the weights where that lies between 1 and 16 MiB: what a host buffers of one
 * that is being read is small beside the weights, and so is what requests cost (85 kB each in Chromium).
 */
function chunkBytesFor(bytes: number): number {
  return Math.min(MAX_CHUNK_BYTES, Math.max(MIN_CHUNK_BYTES, align(Math.ceil(bytes / 16))));
}

function align(bytes: number): number {
  return Math.ceil(bytes / WEIGHT_ALIGNMENT) * WEIGHT_ALIGNMENT;
}
