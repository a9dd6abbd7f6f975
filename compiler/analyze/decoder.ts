/**
 * Recognises how a decoder is driven: which input takes token ids, mask and positions, which output
 * gives logits, which outputs come back as which inputs (the KV cache) and along which axis they grow.
 * The runtime follows what is written here and guesses nothing, so whatever is ambiguous is refused
 * with the reason instead of being decided.
 *
 *   inputs   input_ids [b, s]  attention_mask [b, p + s]  position_ids [b, s]  past.N [b, h, p, d]
 *   outputs  logits [b, s, v]  present.N [b, h, p + s, d]
 *
 * Names follow what Optimum, PyTorch exports and onnxruntime's model builder write; where the graph
 * itself shows a fact (a Concat of past and new, a cache slot of a fused attention), the graph decides.
 */
import type { DecoderSpec, DimSpec, StateSpec } from '../../runtime/manifest.ts';
import { dtypes } from '../../runtime/tensor.ts';
import type { Shape } from '../ir/dim.ts';
import { dimToText, sameShape } from '../ir/dim.ts';
import type { Model, Node, Value } from '../ir/graph.ts';
import { attentionInputs, isFusedAttention } from '../ops/fused-attention.ts';
import type { ModelConfig } from './config.ts';
import { contextLengthOf, endIdsOf, startIdOf } from './config.ts';

/** What the analysis found. */
export interface DecoderAnalysis {
  /** The contract; undefined when the model is no decoder we know how to drive. */
  readonly decoder: DecoderSpec | undefined;
  /** A decoder that fusion makes drivable; undefined when there is no cache of fixed length. */
  readonly fixed: FixedCache | undefined;
  /** Whether the model takes token ids at all. */
  readonly takesIds: boolean;
  /** Why it is not driven as a decoder; empty when it does not look like one. */
  readonly reasons: readonly string[];
  /** Defaults that were assumed. */
  readonly warnings: readonly string[];
}

/** A decoder whose caches are buffers of fixed length, which fusion turns into caches that grow. */
export interface FixedCache {
  /** Input of token ids. */
  readonly ids: string;
  /** Output of logits. */
  readonly logits: string;
  /** The buffers. */
  readonly state: readonly { readonly input: string; readonly output: string }[];
  /** Inputs that say where tokens are. */
  readonly bookkeeping: readonly string[];
}

/** Cache slots of fused attention ops: domain.op -> output index -> [input index, growing axis]. */
const cacheSlots: Readonly<Record<string, Readonly<Record<number, readonly [number, number]>>>> = {
  '.Attention': { 1: [4, 2], 2: [5, 2] },
  'com.microsoft.Attention': { 1: [4, 3] },
  'com.microsoft.MultiHeadAttention': { 1: [6, 2], 2: [7, 2] },
  'com.microsoft.GroupQueryAttention': { 1: [3, 2], 2: [4, 2] },
  'fettle.Attention': { 1: [3, 2], 2: [4, 2] },
};

/** Scalar inputs whose value follows from the bookkeeping. */
const flagNames: readonly (readonly [
  RegExp,
  NonNullable<DecoderSpec['flags']>[number]['value'],
])[] = [
  [/^use_cache(_branch)?$/, 'use-cache'],
  [/^total_(sequence_length|seq_len|length)$/, 'total-length'],
  [/^past_(sequence_length|seq_len|length)$/, 'past-length'],
  [/^(sequence_length|seq_len)$/, 'sequence-length'],
  // what GroupQueryAttention calls the lengths of its keys, minus one
  [/^seqlens_k$/, 'last-position'],
];

/**
 * Analyses a model whose shapes have been inferred.
 *
 * @param model - the model, with or without fused attention
 * @param config - what the files beside the model say
 */
export function analyzeDecoder(model: Model, config: ModelConfig = {}): DecoderAnalysis {
  const { inputs, outputs } = model.graph;
  const ids = findIds(inputs);
  const warnings: string[] = [];
  const none = (...reasons: string[]): DecoderAnalysis => ({
    decoder: undefined,
    fixed: undefined,
    takesIds: ids !== undefined,
    reasons,
    warnings: [],
  });
  const hasCache = inputs.some((input) => isPastName(input.name) && isFloat(input));
  if (ids === undefined)
    return hasCache ? none('which input takes token ids is not known') : none();

  const logits = findLogits(outputs, ids);
  if (logits === undefined)
    return hasCache ? none('which output holds the logits is not known') : none();
  if (typeof logits === 'string') return none(logits);

  const roles = assignRoles(inputs, ids);
  const fixed = fixedCache(roles, outputs, ids.name, logits.value.name);
  if (fixed !== undefined)
    return {
      ...none('its cache has a fixed length, which only fusion turns into one that grows'),
      fixed,
    };
  if (roles.unknown.length > 0)
    return none(
      ...roles.unknown.map(
        (input) => `what to feed its input "${input.name}" ${print(input.shape)} is not known`,
      ),
    );
  if (roles.past.length === 0)
    return none('it has no cache inputs: every call would compute all tokens again');

  const continued = continuedCaches(outputs);
  const state: StateSpec[] = [];
  const reasons: string[] = [];
  for (const past of roles.past) {
    const pair = findPair(past, roles.past, outputs, continued);
    const spec = typeof pair === 'string' ? pair : stateSpec(past, pair);
    if (typeof spec === 'string') reasons.push(spec);
    else state.push(spec);
  }
  const twice = repeated(state.map(({ output }) => output));
  if (twice !== undefined) reasons.push(`two cache inputs are paired with its output "${twice}"`);
  if (reasons.length > 0) return none(...reasons);

  const startId = startIdOf(config);
  return {
    decoder: {
      ids: ids.name,
      ...(roles.mask === undefined ? {} : { mask: roles.mask.name }),
      ...(roles.positions === undefined ? {} : { positions: roles.positions.name }),
      ...(roles.flags.length === 0 ? {} : { flags: roles.flags }),
      logits: logits.value.name,
      vocabulary: logits.vocabulary,
      contextLength: contextLengthOf(
        config,
        [...positionTables(roles.positions), ...rotaryTables(model)],
        warnings,
      ),
      state,
      endIds: endIdsOf(config, warnings),
      ...(startId === undefined ? {} : { startId }),
    },
    fixed: undefined,
    takesIds: true,
    reasons: [],
    warnings,
  };
}

/** The caches, when they are buffers that every call writes into. */
function fixedCache(
  { past, unknown, mask, positions, flags }: Roles,
  outputs: readonly Value[],
  ids: string,
  logits: string,
): FixedCache | undefined {
  if (past.length === 0 || !unknown.every(saysPlaces)) return undefined;
  // the first output of each, as it is for every input only one
  const written = new Map([...outputs].reverse().map((output) => [bufferBehind(output), output]));
  const state = past.flatMap((input) => {
    const output = written.get(input);
    const open = input.shape?.filter((dim) => typeof dim === 'string') ?? [];
    return output !== undefined && sameShape(input.shape, output.shape) && open.length <= 1
      ? [{ input: input.name, output: output.name }]
      : [];
  });
  if (state.length < past.length || repeated(state.map(({ output }) => output)) !== undefined)
    return undefined;
  const bookkeeping = [
    ...[mask, positions, ...unknown].flatMap((input) => input?.name ?? []),
    ...flags.map(({ input }) => input),
  ];
  return { ids, logits, state, bookkeeping };
}

/** The input that an output is after rows were written into it. */
function bufferBehind(output: Value): Value | undefined {
  let value = output;
  let isWritten = false;
  for (let node = value.producer; node !== undefined; node = value.producer) {
    const slot = cacheSlots[`${node.domain}.${node.op}`]?.[node.outputs.indexOf(value)]?.[0];
    const isWriter = node.domain === '' && bufferWriters.has(node.op);
    if (slot === undefined && !isWriter && node.op !== 'Transpose' && !passesThrough(node))
      return undefined;
    isWritten ||= isWriter || slot !== undefined;
    const next = node.inputs[slot ?? 0];
    if (next === undefined) return undefined;
    value = next;
  }
  return isWritten && value.weight === undefined ? value : undefined;
}

const bufferWriters: ReadonlySet<string> = new Set([
  'ScatterND',
  'ScatterElements',
  'Scatter',
  'TensorScatter',
]);

/** Whether an input can only say which places of a buffer are written or read. */
function saysPlaces(input: Value): boolean {
  if (/mask/.test(input.name)) return true;
  return isInteger(input) && (input.shape?.length ?? 2) <= 1 && /pos|ind|len/.test(input.name);
}

/** The input of token ids: by name, else the only integer matrix that indexes a constant table. */
function findIds(inputs: readonly Value[]): Value | undefined {
  const candidates = inputs.filter((input) => isInteger(input) && input.shape?.length === 2);
  const named = candidates.filter(({ name }) =>
    /^(decoder_)?(input_ids|input_tokens|token_ids|tokens|ids)$/.test(name),
  );
  if (named.length > 0) return named.length === 1 ? named[0] : undefined;
  const indexing = candidates.filter(
    (input) => !/position|mask|type|segment/.test(input.name) && tablesIndexedBy(input).length > 0,
  );
  return indexing.length === 1 ? indexing[0] : undefined;
}

/** Constant tables that a value indexes, through casts and identities. */
function tablesIndexedBy(value: Value): readonly Value[] {
  const tables: Value[] = [];
  const look = (from: Value, depth: number): void => {
    for (const node of from.users.keys()) {
      const isGather = node.op === 'Gather' || node.op === 'GatherBlockQuantized';
      if (isGather && node.inputs[1] === from && (node.inputs[0]?.shape?.length ?? 0) >= 2)
        tables.push(node.input(0));
      else if (depth > 0 && passesThrough(node)) look(node.output(), depth - 1);
    }
  };
  look(value, 3);
  return tables;
}

/** The output of logits, a reason why none can be chosen, or undefined when nothing looks like it. */
function findLogits(
  outputs: readonly Value[],
  ids: Value,
): { readonly value: Value; readonly vocabulary: number } | string | undefined {
  const candidates = outputs.filter(
    (output) => isFloat(output) && output.shape?.length === 3 && output.shape[0] === ids.shape?.[0],
  );
  const floats = outputs.filter((output) => isFloat(output) && output.shape?.length === 3);
  const value =
    outputs.find(({ name }) => /^(lm_)?logits$/.test(name)) ??
    (candidates.length === 1 ? candidates[0] : floats.length === 1 ? floats[0] : undefined);
  if (value === undefined || !isFloat(value)) return undefined;
  const vocabulary = value.shape?.at(-1);
  if (value.shape?.length !== 3 || typeof vocabulary !== 'number')
    return value.name === 'logits' && value.shape?.length === 3
      ? `the vocabulary size of its output "${value.name}" ${print(value.shape)} is not known`
      : undefined;
  return { value, vocabulary };
}

interface Roles {
  mask: Value | undefined;
  positions: Value | undefined;
  readonly flags: NonNullable<DecoderSpec['flags']>[number][];
  readonly past: Value[];
  readonly unknown: Value[];
}

function assignRoles(inputs: readonly Value[], ids: Value): Roles {
  const roles: Roles = { mask: undefined, positions: undefined, flags: [], past: [], unknown: [] };
  for (const input of inputs) {
    if (input === ids) continue;
    const rank = input.shape?.length;
    const flag = isFlag(input, ids) ? flagNames.find(([name]) => name.test(input.name)) : undefined;
    if (flag !== undefined) roles.flags.push({ input: input.name, value: flag[1] });
    else if (rank === 2 && /mask/.test(input.name) && roles.mask === undefined && grows(input, ids))
      roles.mask = input;
    else if (rank === 2 && /position/.test(input.name) && isInteger(input) && !roles.positions)
      roles.positions = input;
    else if (isFloat(input) && (rank ?? 0) >= 3 && !/mask/.test(input.name)) roles.past.push(input);
    // an input that nothing uses must be fed all the same
    else roles.unknown.push(input);
  }
  return roles;
}

/** A mask over past and present tokens is longer than the ids of one call. */
function grows(mask: Value, ids: Value): boolean {
  return mask.shape?.[1] !== ids.shape?.[1] || typeof mask.shape?.[1] !== 'string';
}

/** An output that continues a cache, and along which axis. */
interface Pair {
  readonly output: Value;
  readonly axis: number | undefined;
}

/** The first output that continues each cache input, for those whose producer shows it. */
function continuedCaches(outputs: readonly Value[]): ReadonlyMap<Value, Pair> {
  return new Map(
    [...outputs].reverse().flatMap((output): [Value, Pair][] => {
      const source = cacheSource(output);
      return source === undefined ? [] : [[source.past, { output, axis: source.axis }]];
    }),
  );
}

/** The output that holds the cache of `past` after the call, or why it is not known. */
function findPair(
  past: Value,
  allPast: readonly Value[],
  outputs: readonly Value[],
  continued: ReadonlyMap<Value, Pair>,
): Pair | string {
  const shown = continued.get(past);
  if (shown !== undefined) return shown;
  const wanted = signature(past.name);
  const named = outputs.filter(({ name }) => signature(name) === wanted);
  const [output] = named;
  if (named.length === 1 && output !== undefined) {
    const rival = allPast.find((other) => other !== past && signature(other.name) === wanted);
    if (rival === undefined) return { output, axis: undefined };
    return `its inputs "${past.name}" and "${rival.name}" would both pair with "${output.name}"`;
  }
  return named.length === 0
    ? `no output holds the cache of its input "${past.name}" after a call`
    : `several outputs could hold the cache of its input "${past.name}"`;
}

/** The cache input that an output continues, when its producer shows it. */
function cacheSource(
  output: Value,
): { readonly past: Value; readonly axis: number | undefined } | undefined {
  let value = output;
  for (let node = value.producer; node !== undefined; node = value.producer) {
    if (passesThrough(node)) value = node.input(0);
    else {
      const slot = cacheSlots[`${node.domain}.${node.op}`]?.[node.outputs.indexOf(value)];
      const rank = output.shape?.length ?? 0;
      if (slot !== undefined) {
        const past = graphInput(node.inputs[slot[0]]);
        return past === undefined ? undefined : { past, axis: slot[1] };
      }
      if (node.op !== 'Concat') return undefined;
      const past = graphInput(node.inputs[0]);
      const axis = node.int('axis', 0);
      return past === undefined ? undefined : { past, axis: axis < 0 ? axis + rank : axis };
    }
  }
  return undefined;
}

function graphInput(value: Value | undefined): Value | undefined {
  let source = value;
  while (source?.producer !== undefined && passesThrough(source.producer))
    source = source.producer.input(0);
  return source?.producer === undefined && source?.weight === undefined ? source : undefined;
}

function stateSpec(
  past: Value,
  pair: { readonly output: Value; readonly axis: number | undefined },
): StateSpec | string {
  const { output } = pair;
  const [before, after] = [past.shape ?? [], output.shape ?? []];
  if (past.dtype === undefined || past.dtype !== output.dtype)
    return `its cache input "${past.name}" is ${past.dtype}, but "${output.name}" is ${output.dtype}`;
  const axis = pair.axis ?? growingAxis(before, after);
  if (axis === undefined)
    return `along which axis "${past.name}" ${print(before)} grows is not known`;
  if (typeof before[axis] === 'number')
    return `its cache input "${past.name}" ${print(before)} has a fixed length of ${before[axis]}`;
  const open = before.filter((dim, index) => index !== axis && typeof dim === 'string');
  if (open.length > 1)
    return `its cache input "${past.name}" ${print(before)} has more than one open size besides its length`;
  return {
    input: past.name,
    output: output.name,
    dtype: past.dtype,
    shape: before.map(toSpec),
    axis,
  };
}

/** The axis where past and present differ; where the exporter lost names, the only open inner axis. */
function growingAxis(before: Shape, after: Shape): number | undefined {
  const axes = before.map((_, axis) => axis);
  const differing = axes.filter((axis) => before[axis] !== after[axis]);
  if (before.length === after.length && differing.length === 1) return differing[0];
  const open = axes.filter((axis) => axis > 0 && typeof before[axis] === 'string');
  return open.length === 1 ? open[0] : undefined;
}

/** Tables of positions, whose rows bound the context. */
function positionTables(positions: Value | undefined): readonly number[] {
  const rows = positions === undefined ? [] : tablesIndexedBy(positions);
  return rows.flatMap(({ shape }) => (typeof shape?.[0] === 'number' ? [shape[0]] : []));
}

/** Tables of positions inside fused attention, whose rows bound the context too. */
function rotaryTables(model: Model): readonly number[] {
  const rows = new Set<number>();
  for (const node of model.graph.nodes()) {
    const table = isFusedAttention(node) ? node.inputs[attentionInputs.cos] : undefined;
    if (typeof table?.shape?.[0] === 'number') rows.add(table.shape[0]);
  }
  return [...rows];
}

/** Words that say past or present and nothing about which layer and half. */
const sideWords: ReadonlySet<string> = new Set(
  (
    'past present cache caches kv new next updated in out input output inputs outputs ' +
    'prev previous current cur layer layers'
  ).split(' '),
);

/** What a cache name says about layer and half: `past_key_values.3.key` and `present.3.key` agree. */
function signature(name: string): string {
  const words =
    name
      .replaceAll(/([a-z])([A-Z])/g, '$1 $2')
      .toLowerCase()
      .replaceAll(/key[_.]?values?/g, ' ')
      .match(/[a-z]+|\d+/g) ?? [];
  const numbers = words.filter((word) => /\d/.test(word));
  const halves = words
    .filter((word) => !/\d/.test(word) && !sideWords.has(word))
    .map((word) => ({ k: 'key', keys: 'key', v: 'value', values: 'value' })[word] ?? word);
  // with nothing left to tell two caches apart, only the very same name may match
  return numbers.length + halves.length === 0 ? 'cache' : [...halves.sort(), ...numbers].join(' ');
}

function repeated(names: readonly string[]): string | undefined {
  return names.find((name, index) => names.indexOf(name) !== index);
}

function passesThrough(node: Node): boolean {
  return node.op === 'Identity' || node.op === 'Cast';
}

function isPastName(name: string): boolean {
  return /past|cache/.test(name);
}

function isFloat({ dtype }: Value): boolean {
  return dtype !== undefined && dtypes[dtype].kind === 'float';
}

function isInteger({ dtype }: Value): boolean {
  return dtype === 'i64' || dtype === 'i32';
}

/** One element, or one per row of the batch. */
function isFlag({ dtype, shape }: Value, ids: Value): boolean {
  const [size = 1] = shape ?? [];
  const single =
    shape !== undefined && shape.length <= 1 && (size === 1 || size === ids.shape?.[0]);
  return single && (dtype === 'i64' || dtype === 'i32' || dtype === 'bool');
}

function toSpec(dim: number | string): DimSpec {
  return typeof dim === 'number' ? dim : dimToText(dim);
}

function print(shape: Shape | undefined): string {
  return shape === undefined ? 'of unknown rank' : `[${shape.map(toSpec).join(', ')}]`;
}
