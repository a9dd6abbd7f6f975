/**
 * Steps -> the words of a plan and exact addresses of everything in one linear memory:
 *
 *   [kernels' own | plan words | control | scratch per thread] [weights] [arena] [state]
 *                                                              256-aligned
 *
 * Words that depend on S and P get an entry in the patch table of their segment; all others are final.
 */
import { FettleError } from '../../runtime/errors.ts';
import type { MemorySpec } from '../../runtime/manifest.ts';
import type { PlanLayout, PlanSegment, PlanTensor } from '../../runtime/plan.ts';
import { encodePlanFile } from '../../runtime/plan.ts';
import * as abi from '../../runtime/wasm/kernels/abi.ts';
import { ENGINE_BYTES, THREAD_BYTES } from '../emit/engine-memory.ts';
import type { WeightLayout } from '../emit/layout.ts';
import { placeWeights } from '../emit/layout.ts';
import type { Dim } from '../ir/dim.ts';
import { multiplyDims } from '../ir/dim.ts';
import type { Value } from '../ir/graph.ts';
import { planArena } from './arena.ts';
import type { Address, Buffer, Linear, Segment, Step, Word } from './plan.ts';
import { isAddress, kernelId, linearOf, sizeAt } from './plan.ts';
import type { Lowering, Place } from './wasm-context.ts';

/** A model as the WASM engine runs it. */
export interface EncodedPlan {
  /** Contents of `plan.bin`. */
  readonly bytes: Uint8Array;
  /** What is in it. */
  readonly layout: PlanLayout;
  /** Where each weight lies. */
  readonly weights: WeightLayout;
  /** Number format of weights by name. */
  readonly formats: ReadonlyMap<string, string>;
  /** Exact memory of a session. */
  readonly memory: MemorySpec;
  /** What the user should know. */
  readonly warnings: readonly string[];
}

/** What the driver knows about the plan. */
export interface EncodeOptions {
  /** Rows the head runs for at a time; 0 without a head. */
  readonly headRows: number;
  /** Outputs of the model and where they are. */
  readonly outputs: readonly { readonly value: Value; readonly place: Place }[];
}

/** Pages of a 32-bit memory, one left out so that no address overflows. */
const MOST_BYTES = 65535 * 65536;

/** Puts everything in its place. */
export function encodePlan(lowering: Lowering, { headRows, outputs }: EncodeOptions): EncodedPlan {
  const { chunk, context, threads } = lowering.sizes;
  const bytesOf = mostBytes(chunk, context, headRows);
  const arena = planArena(lowering.steps, bytesOf);
  const segments = (['body', 'head', 'init'] as const).map(
    (segment) => new SegmentWords(lowering.steps.filter((step) => step.segment === segment)),
  );
  const codes = lowering.codes;
  const codeWords = codes.reduce((sum, { words }) => sum + (words?.length ?? 0), 0);
  const words = segments.reduce((sum, part) => sum + part.length, 0) + codeWords;
  const addresses = new Map<Buffer, number>();
  let at = abi.RESERVED_BYTES + segments.reduce((sum, part) => sum + part.length, 0) * 4;
  for (const code of codes) {
    addresses.set(code, at);
    at += (code.words?.length ?? 0) * 4;
  }
  const control = align(at, 64);
  const scratch = control + abi.CONTROL_BYTES;
  const weightsAt = align(scratch + threads * abi.SCRATCH_BYTES, 256);
  const weights = placeWeights(
    lowering.weights.flatMap(({ name, weight }) =>
      weight === undefined ? [] : [{ name, weight }],
    ),
  );
  for (const buffer of lowering.weights)
    if (buffer.weight !== undefined)
      addresses.set(buffer, weightsAt + (weights.offsets.get(buffer.weight) ?? 0));
  const arenaAt = align(weightsAt + weights.bytes, 64);
  for (const [buffer, offset] of arena.offsets) addresses.set(buffer, arenaAt + offset);
  const stateAt = align(arenaAt + arena.bytes, 64);
  let end = stateAt;
  for (const cache of lowering.state) {
    addresses.set(cache, end);
    end = align(end + Number(cache.bytes), 64);
  }
  if (end > MOST_BYTES)
    throw new FettleError(
      'BUDGET_EXCEEDED',
      `The plan needs ${end} bytes; a WebAssembly memory holds ${MOST_BYTES}.`,
      { at: { bytes: end }, fix: 'Use fewer bits, a shorter context or a smaller model.' },
    );
  const image = new Int32Array(words);
  let word = 0;
  const spans: PlanSegment[] = [];
  for (const part of segments) {
    const address = abi.RESERVED_BYTES + word * 4;
    part.write(image, word, { addresses, control, scratch });
    spans.push({ address, steps: part.steps.length });
    word += part.length;
  }
  for (const code of codes) {
    image.set(code.words ?? [], word);
    word += code.words?.length ?? 0;
  }
  const [body, head, init] = spans;
  if (body === undefined) throw new RangeError('a plan without a body');
  const region = (address: number, bytes: number): PlanLayout['arena'] => ({ address, bytes });
  const layout: PlanLayout = {
    abi: abi.ABI_VERSION,
    chunk,
    context,
    threads,
    headRows,
    memoryBytes: end,
    image: abi.RESERVED_BYTES,
    weights: region(weightsAt, weights.bytes),
    arena: region(arenaAt, arena.bytes),
    state: region(stateAt, end - stateAt),
    arenaLowerBound: arena.lowerBound,
    inPlace: arena.inPlace,
    body,
    ...(head === undefined || headRows === 0 ? {} : { head }),
    ...(init === undefined || init.steps === 0 ? {} : { init }),
    inputs: lowering.model.graph.inputs
      .filter((input) => !lowering.caches.has(input.name))
      .map((input) => tensorAt(input, lowering.placeOf(input), addresses)),
    outputs: outputs.map(({ value, place }) => tensorAt(value, place, addresses)),
    steps: segments.flatMap(({ steps }) =>
      steps.map(({ kernel, node, why }) => ({ kernel, node, why })),
    ),
  };
  const { bytes: arenaBytes } = arena;
  return {
    bytes: encodePlanFile(layout, image),
    layout,
    weights,
    formats: new Map(
      lowering.weights.flatMap(({ name, format }) =>
        format === undefined ? [] : [[name, format]],
      ),
    ),
    memory: {
      weights: weights.bytes,
      arena: arenaBytes,
      state: end - stateAt,
      stack: end - weights.bytes - arenaBytes - (end - stateAt),
      engine: ENGINE_BYTES,
      ...(threads > 1 ? { thread: THREAD_BYTES } : {}),
      tokens: lowering.decoder === undefined ? 0 : context,
      exact: true,
    },
    warnings: lowering.warnings,
  };
}

/** Most bytes of a buffer over every call the plan allows. */
function mostBytes(chunk: number, context: number, rows: number): (buffer: Buffer) => number {
  const corners: Readonly<Record<Segment, readonly (readonly [number, number])[]>> = {
    body: [
      [1, 0],
      [chunk, 0],
      [chunk, context - chunk],
      [1, context - 1],
    ],
    head: [
      [1, 0],
      [rows, 0],
    ],
    init: [[1, 0]],
  };
  return ({ bytes, segment }) =>
    // sizes are linear in S and in P: the largest is at a corner
    Math.max(0, ...corners[segment].map(([s, p]) => sizeAt(bytes, s, p) ?? 0));
}

interface Places {
  readonly addresses: ReadonlyMap<Buffer, number>;
  readonly control: number;
  readonly scratch: number;
}

/** The words of one segment: header, table of steps, steps, patches. */
class SegmentWords {
  readonly steps: readonly Step[];
  private readonly patches: {
    readonly word: number;
    readonly linear: Linear;
    readonly base: Buffer | undefined;
  }[] = [];
  private readonly stepsAt: number;
  private readonly patchesAt: number;

  constructor(steps: readonly Step[]) {
    this.steps = steps;
    this.stepsAt = abi.PLAN_WORDS + steps.length;
    let at = this.stepsAt;
    for (const step of steps) {
      step.words.forEach((word, index) => {
        const [dim, base] = isAddress(word) ? [word.offset, word.buffer] : [word, undefined];
        const linear = linearOf(dim);
        if (linear === undefined) throw new RangeError(`"${dim}" is not linear`);
        const moves = linear.s !== 0 || linear.p !== 0 || linear.sp !== 0;
        if (moves) this.patches.push({ word: at + 2 + index, linear, base });
      });
      at += 2 + step.words.length;
    }
    this.patchesAt = at;
  }

  get length(): number {
    // whole 16 bytes, so that the next segment is aligned
    return align(this.patchesAt + this.patches.length * abi.PATCH_WORDS, 4);
  }

  write(image: Int32Array, start: number, { addresses, control, scratch }: Places): void {
    const address = (word: number): number => abi.RESERVED_BYTES + (start + word) * 4;
    image.set(
      [
        abi.ABI_VERSION,
        this.steps.length,
        address(abi.PLAN_WORDS),
        this.patches.length,
        address(this.patchesAt),
        scratch,
        control,
        0,
      ],
      start,
    );
    let at = this.stepsAt;
    this.steps.forEach((step, index) => {
      image[start + abi.PLAN_WORDS + index] = address(at);
      image[start + at] = kernelId(step.kernel);
      image[start + at + 1] = step.words.length + 2;
      step.words.forEach((word, offset) => {
        image[start + at + 2 + offset] = resolve(word, addresses);
      });
      at += 2 + step.words.length;
    });
    this.patches.forEach(({ word, linear, base }, index) => {
      const { c, s, p, sp } = linear;
      const from = base === undefined ? 0 : addressIn(addresses, base);
      image.set(
        [address(word), c + from, s, p, sp],
        start + this.patchesAt + index * abi.PATCH_WORDS,
      );
    });
  }
}

/** A word at S = P = 0. */
function resolve(word: Word, addresses: ReadonlyMap<Buffer, number>): number {
  if (!isAddress(word)) return linearOf(word)?.c ?? 0;
  return addressIn(addresses, word.buffer) + (linearOf(word.offset)?.c ?? 0);
}

function addressIn(addresses: ReadonlyMap<Buffer, number>, buffer: Buffer): number {
  const address = addresses.get(buffer);
  if (address === undefined) throw new RangeError(`"${buffer.name}" has no place`);
  return address;
}

function tensorAt(
  value: Value,
  { address, shape, type }: Place,
  addresses: ReadonlyMap<Buffer, number>,
): PlanTensor {
  return {
    name: value.name,
    dtype: value.dtype ?? 'f32',
    type,
    address: outputAddress(address, addresses),
    shape: shape.map(termsOf),
    elements: termsOf(multiplyDims(...shape)),
  };
}

/** Where the caller reads or writes; an input that nothing reads has no place and needs none. */
function outputAddress(
  { buffer, offset }: Address,
  addresses: ReadonlyMap<Buffer, number>,
): number {
  const base = addresses.get(buffer);
  return base === undefined ? 0 : base + (linearOf(offset)?.c ?? 0);
}

function termsOf(dim: Dim): readonly [number, number, number, number] {
  const { c, s, p, sp } = linearOf(dim) ?? { c: 0, s: 0, p: 0, sp: 0 };
  return [c, s, p, sp];
}

function align(bytes: number, to: number): number {
  return Math.ceil(bytes / to) * to;
}
