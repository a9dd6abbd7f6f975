/**
 * `plan.bin`: what the WASM engine executes. A header in JSON, and the words of the plan exactly as
 * they lie in linear memory (format: runtime/wasm/kernels/abi.ts). Written by the compiler, see
 * docs/bundle.md, "Plan".
 *
 *   "FPLN" | u32 bytes of JSON | JSON, padded with spaces to 16 | i32 words
 */
import type { Checked } from './check.ts';
import { parseJson } from './check.ts';
import type { DType } from './tensor.ts';
import { isDType } from './tensor.ts';

/** `c + s*S + p*P + sp*S*P`: a size at S tokens of this call and P before. */
export type PlanSize = readonly [c: number, s: number, p: number, sp: number];

/** A run of bytes in linear memory. */
export interface PlanRegion {
  /** First byte. */
  readonly address: number;
  /** Size. */
  readonly bytes: number;
}

/** Steps that run together. */
export interface PlanSegment {
  /** Address of the plan header. */
  readonly address: number;
  /** Number of steps. */
  readonly steps: number;
}

/** An input or output of the model in linear memory. */
export interface PlanTensor {
  /** Its name in the manifest. */
  readonly name: string;
  /** What the caller sees. */
  readonly dtype: DType;
  /** What is in memory. */
  readonly type: 'f32' | 'i32';
  /** First byte; 0 when the plan does not read it. */
  readonly address: number;
  /** Sizes. */
  readonly shape: readonly PlanSize[];
  /** Their product. */
  readonly elements: PlanSize;
}

/** The header of a plan. */
export interface PlanLayout {
  /** Version of the kernel ABI. */
  readonly abi: number;
  /** Most tokens of one call. */
  readonly chunk: number;
  /** Most tokens of the cache; largest S of a model without one. */
  readonly context: number;
  /** Threads that working memory is reserved for. */
  readonly threads: number;
  /** Rows the head runs for at a time; 0 without a head. */
  readonly headRows: number;
  /** Bytes of linear memory. */
  readonly memoryBytes: number;
  /** Address of the words. */
  readonly image: number;
  readonly weights: PlanRegion;
  readonly arena: PlanRegion;
  readonly state: PlanRegion;
  /** Bytes that no arrangement of the arena can go below. */
  readonly arenaLowerBound: number;
  /** Activations that took over the storage of their input. */
  readonly inPlace: number;
  /** Steps of every call. */
  readonly body: PlanSegment;
  /** Steps from rows of the body to the logits; S are rows, P is the first one. */
  readonly head?: PlanSegment;
  /** Steps that run once, when the weights are in memory: what is unpacked into the state. */
  readonly init?: PlanSegment;
  readonly inputs: readonly PlanTensor[];
  readonly outputs: readonly PlanTensor[];
  /** Steps of body, head and init, for people and profiles. */
  readonly steps: readonly {
    readonly kernel: string;
    readonly node: string;
    readonly why: string;
  }[];
}

/** A plan as it is read. */
export interface Plan {
  readonly layout: PlanLayout;
  /** Goes to `layout.image`. */
  readonly words: Uint8Array;
}

const MAGIC = 0x4e4c5046; // "FPLN"
const MOST_BYTES = 2 ** 32 - 1;

/** The bytes of `plan.bin`. */
export function encodePlanFile(layout: PlanLayout, words: Int32Array): Uint8Array {
  const json = new TextEncoder().encode(JSON.stringify(layout));
  const start = Math.ceil((8 + json.length) / 16) * 16;
  const file = new Uint8Array(start + words.byteLength).fill(32, 8, start);
  const view = new DataView(file.buffer);
  view.setUint32(0, MAGIC, true);
  view.setUint32(4, start - 8, true);
  file.set(json, 8);
  file.set(new Uint8Array(words.buffer, words.byteOffset, words.byteLength), start);
  return file;
}

/**
 * Reads `plan.bin` and checks that everything it names lies inside its memory.
 *
 * @param path - for messages
 * @throws {@link FettleError} BUNDLE_CORRUPT
 */
export function decodePlan(bytes: Uint8Array, path: string): Plan {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const isPlan = bytes.length >= 8 && view.getUint32(0, true) === MAGIC;
  const length = isPlan ? view.getUint32(4, true) : 0;
  const root = parseJson(bytes.subarray(isPlan ? 8 : 0, isPlan ? 8 + length : 0), path);
  const words = bytes.subarray(8 + length);
  return { layout: readLayout(root, words.length), words };
}

function readLayout(root: Checked, wordBytes: number): PlanLayout {
  const memoryBytes = root.get('memoryBytes').integer(0, MOST_BYTES);
  const inside = (item: Checked, bytes: number): number => {
    const address = item.integer(0, memoryBytes);
    if (address + bytes > memoryBytes) throw item.wrong(`an end within ${memoryBytes} bytes`);
    return address;
  };
  const region = (key: string): PlanRegion => {
    const bytes = root.get(key).get('bytes').integer(0, memoryBytes);
    return { address: inside(root.get(key).get('address'), bytes), bytes };
  };
  const segment = (item: Checked): PlanSegment => ({
    address: inside(item.get('address'), 32),
    steps: item.get('steps').integer(0, 2 ** 20),
  });
  return {
    abi: root.get('abi').integer(),
    chunk: root.get('chunk').integer(1, 2 ** 20),
    context: root.get('context').integer(1, 2 ** 31),
    threads: root.get('threads').integer(1, 1024),
    headRows: root.get('headRows').integer(0, 2 ** 20),
    memoryBytes,
    image: inside(root.get('image'), wordBytes),
    weights: region('weights'),
    arena: region('arena'),
    state: region('state'),
    arenaLowerBound: root.get('arenaLowerBound').integer(),
    inPlace: root.get('inPlace').integer(),
    body: segment(root.get('body')),
    ...(root.has('head') ? { head: segment(root.get('head')) } : {}),
    ...(root.has('init') ? { init: segment(root.get('init')) } : {}),
    inputs: root.get('inputs').list((item) => tensorSpec(item, memoryBytes)),
    outputs: root.get('outputs').list((item) => tensorSpec(item, memoryBytes)),
    steps: root.get('steps').list(
      (item) => ({
        kernel: item.get('kernel').string(),
        node: item.get('node').string(10_000, 0),
        why: item.get('why').string(10_000, 0),
      }),
      2 ** 20,
    ),
  };
}

function tensorSpec(item: Checked, memoryBytes: number): PlanTensor {
  const dtype = item.get('dtype').raw();
  if (!isDType(dtype)) throw item.get('dtype').wrong('a dtype');
  return {
    name: item.get('name').string(),
    dtype,
    type: item.get('type').oneOf(['f32', 'i32']),
    address: item.get('address').integer(0, memoryBytes),
    shape: item.get('shape').list(planSize, 64),
    elements: planSize(item.get('elements')),
  };
}

function planSize(item: Checked): PlanSize {
  const terms = item.list((term) => term.integer(-(2 ** 31), 2 ** 31), 4);
  return [terms[0] ?? 0, terms[1] ?? 0, terms[2] ?? 0, terms[3] ?? 0];
}

/** A size at S and P. */
export function sizeOf([c, s, p, sp]: PlanSize, S: number, P: number): number {
  return c + s * S + p * P + sp * S * P;
}
