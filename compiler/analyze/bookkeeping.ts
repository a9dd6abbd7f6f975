/**
 * What a transformer's graph computes besides its tokens: positions, masks and sizes. Values that depend
 * on nothing else are bookkeeping; they can be evaluated for chosen sizes, and a fused attention that
 * counts positions itself does not need them.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { dtypes, elementCount } from '../../runtime/tensor.ts';
import type { Dim } from '../ir/dim.ts';
import { symbolsOf } from '../ir/dim.ts';
import type { Model, Value } from '../ir/graph.ts';
import { definitionOf } from '../ops/index.ts';
import { writeNumbers } from '../ops/numbers.ts';
import type { DecoderAnalysis } from './decoder.ts';
import { analyzeDecoder } from './decoder.ts';
import type { ProbeInputs } from './probe.ts';
import { knownShape, probe } from './probe.ts';

/** Sizes to evaluate bookkeeping at. */
export interface CallSizes {
  /** Sequences. */
  readonly batch: number;
  /** Tokens of this call. */
  readonly sequence: number;
  /** Tokens before. */
  readonly past: number;
}

/** Names of inputs that only say where tokens are. */
const bookkeepingNames =
  /mask|position|seqlens|(past|total|cache|seq\w*)_?(seq\w*_?)?len|use_cache|cache_branch|(input|start|cache|write|kv)_(pos|ind)/;

/** Knows which values are bookkeeping. */
export class Bookkeeping {
  /** The model. */
  readonly model: Model;
  /** How it is driven; a decoder is always called with its mask full of ones and positions in order. */
  readonly analysis: DecoderAnalysis;
  /** The batch size. */
  readonly batch: Dim;
  private readonly symbols: {
    readonly batch: string | undefined;
    readonly sequence: string | undefined;
    readonly past: string | undefined;
  };
  private readonly known = new Map<Value, boolean>();
  private readonly calls = new Map<string, ProbeInputs>();
  private readonly computed = new Map<ProbeInputs, Map<Value, Tensor | undefined>>();

  constructor(model: Model) {
    this.model = model;
    this.analysis = analyzeDecoder(model);
    const { decoder, fixed } = this.analysis;
    const { inputs } = model.graph;
    const named = (name: string | undefined): Value | undefined =>
      inputs.find((input) => input.name === name);
    const ids =
      named(decoder?.ids ?? fixed?.ids) ??
      inputs.find(({ name, shape }) => shape?.length === 2 && /ids|tokens/.test(name)) ??
      inputs.find(({ name, shape }) => (shape?.length ?? 0) >= 2 && !bookkeepingNames.test(name));
    const [state] = decoder?.state ?? [];
    this.batch = ids?.shape?.[0] ?? 1;
    this.symbols = {
      batch: symbolOf(this.batch),
      sequence: ids?.shape?.length === 2 ? symbolOf(ids.shape[1]) : undefined,
      past: state === undefined ? undefined : symbolOf(named(state.input)?.shape?.[state.axis]),
    };
  }

  /** Whether the model keeps a cache, so that its mask and positions follow from the call. */
  get isDecoder(): boolean {
    return this.analysis.decoder !== undefined || this.analysis.fixed !== undefined;
  }

  /** Whether the graph has a cache, so that tokens may be behind others. */
  get hasPast(): boolean {
    return this.symbols.past !== undefined || this.analysis.fixed !== undefined;
  }

  /** Whether a value depends on nothing but sizes, masks, positions and constants. */
  has(value: Value): boolean {
    const known = this.known.get(value);
    if (known !== undefined) return known;
    const { producer } = value;
    let result: boolean;
    if (value.weight !== undefined) result = true;
    else if (producer === undefined) result = bookkeepingNames.test(value.name) && isSmall(value);
    else if (producer.domain === '' && (producer.op === 'Shape' || producer.op === 'Size'))
      result = true;
    else
      result =
        producer.subgraphs.length === 0 &&
        definitionOf(producer)?.nondeterministic !== true &&
        producer.inputs.every((input) => input === undefined || this.has(input));
    this.known.set(value, result);
    return result;
  }

  /** Graph inputs whose contents a bookkeeping value depends on. */
  inputsOf(value: Value): readonly Value[] {
    const found = new Set<Value>();
    const seen = new Set<Value>();
    const walk = (one: Value): void => {
      if (seen.has(one) || one.weight !== undefined) return;
      seen.add(one);
      const { producer } = one;
      if (producer === undefined) found.add(one);
      else if (producer.op !== 'Shape' && producer.op !== 'Size')
        for (const input of producer.inputs) if (input !== undefined) walk(input);
    };
    walk(value);
    return [...found];
  }

  /** Sizes and contents of the bookkeeping inputs of a call in which no token is padding. */
  call(sizes: CallSizes): ProbeInputs {
    const key = `${sizes.batch} ${sizes.sequence} ${sizes.past}`;
    let inputs = this.calls.get(key);
    if (inputs === undefined) this.calls.set(key, (inputs = this.inputsOfCall(sizes)));
    return inputs;
  }

  /** What a bookkeeping value is in such a call; computed once, since the layers of a model share it. */
  at(value: Value, sizes: CallSizes): Tensor | undefined {
    const inputs = this.call(sizes);
    let found = this.computed.get(inputs);
    if (found === undefined) this.computed.set(inputs, (found = new Map()));
    if (!found.has(value)) found.set(value, probe(this.model, value, inputs));
    return found.get(value);
  }

  private inputsOfCall(sizes: CallSizes): ProbeInputs {
    const { inputs } = this.model.graph;
    const bySymbol = new Map<string, number>();
    const { batch, sequence, past } = this.symbols;
    if (batch !== undefined) bySymbol.set(batch, sizes.batch);
    if (sequence !== undefined) bySymbol.set(sequence, sizes.sequence);
    if (past !== undefined) bySymbol.set(past, sizes.past);
    // large, since images are often halved several times, and different in every call
    let other = 16 * sizes.sequence + 3;
    for (const input of inputs)
      for (const dim of input.shape ?? [])
        for (const symbol of symbolsOf(dim))
          if (!bySymbol.has(symbol))
            bySymbol.set(
              symbol,
              this.isTotal(input, dim)
                ? input.shape?.length === 1 && isPlaces(input)
                  ? sizes.sequence
                  : sizes.past + sizes.sequence
                : (other += 16),
            );
    const given = new Map<Value, Tensor>();
    for (const input of inputs) {
      if (!this.has(input)) continue;
      const shape = knownShape(input.shape, bySymbol);
      if (shape !== undefined) given.set(input, contents(input, shape, sizes));
    }
    return { sizes: bySymbol, given };
  }

  /** A mask over past and present tokens whose length has a symbol of its own. */
  private isTotal(input: Value, dim: Dim): boolean {
    return this.has(input) && typeof dim === 'string' && dim === input.shape?.at(-1);
  }
}

/** Whether an input holds the position of every token. */
function isPlaces({ name }: Value): boolean {
  return /position|(input|cache|kv)_pos/.test(name);
}

function symbolOf(dim: Dim | undefined): string | undefined {
  if (typeof dim !== 'string') return undefined;
  const symbols = symbolsOf(dim);
  return symbols.length === 1 && (dim === symbols[0] || dim === `\`${symbols[0]}\``)
    ? symbols[0]
    : undefined;
}

function isSmall({ dtype, shape }: Value): boolean {
  const kind = dtype === undefined ? undefined : dtypes[dtype].kind;
  return kind === 'int' || kind === 'bool' || (kind === 'float' && (shape?.length ?? 0) <= 2);
}

function contents(input: Value, shape: readonly number[], sizes: CallSizes): Tensor {
  const count = elementCount(shape);
  const columns = shape.at(-1) ?? 1;
  const value = (index: number): number => {
    if (/(write|cache|kv)_ind|start_pos/.test(input.name)) return sizes.past;
    if (isPlaces(input)) return sizes.past + (index % columns);
    if (/nonpad|kv_seq/.test(input.name)) return sizes.past + sizes.sequence;
    if (/past/.test(input.name)) return sizes.past;
    if (/seqlens/.test(input.name)) return sizes.past + sizes.sequence - 1;
    if (/total/.test(input.name)) return sizes.past + sizes.sequence;
    return /len/.test(input.name) && shape.length < 2 ? sizes.sequence : 1;
  };
  return writeNumbers(
    input.dtype ?? 'i64',
    shape,
    Float64Array.from({ length: count }, (_, i) => value(i)),
  );
}
