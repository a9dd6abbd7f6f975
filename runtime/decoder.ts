/**
 * Drives a decoder whose graph takes and returns its KV cache: feeds ids, mask, positions, flags and
 * state exactly as the bundle's DecoderSpec says, and carries the cache from call to call.
 * What each feed means is in docs/bundle.md, "Decoder".
 */
import type { Held, Program, Sequence } from './engine.ts';
import { FettleError, outOfRange } from './errors.ts';
import { floatToHalf, fromHalfArray } from './half.ts';
import type { DecoderSpec, Manifest, StateSpec, TensorSpec } from './manifest.ts';
import type { DType, Tensor, TensorData } from './tensor.ts';
import { elementCount, zeros } from './tensor.ts';

/** One conversation with a decoder; batch 1. */
export class Decoder implements Sequence {
  readonly #program: Program;
  readonly #spec: DecoderSpec;
  readonly #inputs: ReadonlyMap<string, TensorSpec>;
  readonly #keep: ReadonlySet<string>;
  readonly #ids: number[] = [];
  #state: Readonly<Record<string, Held>> = {};

  /**
   * @param program - must accept what it kept as feeds
   * @param manifest - of a bundle with a `decoder`
   */
  constructor(program: Program, manifest: Manifest & { readonly decoder: DecoderSpec }) {
    this.#program = program;
    this.#spec = manifest.decoder;
    this.#inputs = new Map(manifest.inputs.map((input) => [input.name, input]));
    this.#keep = new Set(manifest.decoder.state.map((state) => state.output));
  }

  get ids(): readonly number[] {
    return this.#ids;
  }

  get stateBytes(): number {
    return Object.values(this.#state).reduce((sum, held) => sum + held.bytes, 0);
  }

  async feed(ids: readonly number[], all = false): Promise<Float32Array<ArrayBuffer>> {
    checkIds(ids, this.#spec, this.#ids.length);
    const { outputs, held } = await this.#program.run(this.#feeds(ids), this.#keep);
    this.#forget();
    this.#state = held;
    for (const id of ids) this.#ids.push(id);
    const logits = outputs[this.#spec.logits];
    if (logits === undefined) throw this.#wrongLogits('nothing');
    return this.#rows(logits, all ? ids.length : 1);
  }

  reset(): void {
    this.#forget();
    this.#state = {};
    this.#ids.length = 0;
  }

  #forget(): void {
    for (const held of Object.values(this.#state)) held.dispose();
  }

  #feeds(ids: readonly number[]): Record<string, Tensor | Held> {
    const spec = this.#spec;
    const past = this.#ids.length;
    const total = past + ids.length;
    const feeds: Record<string, Tensor | Held> = {
      [spec.ids]: this.#row(spec.ids, ids.length, (i) => ids[i] ?? 0),
    };
    if (spec.mask !== undefined) feeds[spec.mask] = this.#row(spec.mask, total, () => 1);
    if (spec.positions !== undefined)
      feeds[spec.positions] = this.#row(spec.positions, ids.length, (i) => past + i);
    const flags = {
      'use-cache': past > 0 ? 1 : 0,
      'sequence-length': ids.length,
      'total-length': total,
      'past-length': past,
      'last-position': total - 1,
    };
    for (const { input, value } of spec.flags ?? []) {
      const { dtype, shape } = this.#input(input);
      const sizes = shape.map((dim) => (typeof dim === 'number' ? dim : 1));
      feeds[input] = filled(dtype, sizes, () => flags[value]);
    }
    for (const state of spec.state) feeds[state.input] = this.#state[state.output] ?? empty(state);
    return feeds;
  }

  /** [1, length] (or [length] where the model wants rank 1) in the input's dtype. */
  #row(name: string, length: number, value: (index: number) => number): Tensor {
    const { dtype, shape } = this.#input(name);
    return filled(dtype, shape.length === 1 ? [length] : [1, length], value);
  }

  #input(name: string): TensorSpec {
    const input = this.#inputs.get(name);
    if (input === undefined) throw outOfRange('decoder', 'an input of the model', name);
    return input;
  }

  /** The last `count` rows of [1, rows, vocabulary]. */
  #rows({ dtype, shape, data }: Tensor, count: number): Float32Array<ArrayBuffer> {
    const { vocabulary, logits } = this.#spec;
    const rows = shape.length === 3 ? (shape[1] ?? 0) : 0;
    if (shape[2] !== vocabulary || rows < 1)
      throw this.#wrongLogits(`${dtype} [${shape.join(', ')}]`);
    if (rows < count)
      throw new FettleError(
        'USAGE',
        `The model gives logits of the last token only ("${logits}").`,
        {
          at: { output: logits },
          fix: 'Feed one token at a time.',
        },
      );
    const start = (rows - count) * vocabulary;
    if (data instanceof Float32Array) return data.slice(start, start + count * vocabulary);
    if (dtype === 'f16' && data instanceof Uint16Array)
      return fromHalfArray(data.subarray(start, start + count * vocabulary));
    throw this.#wrongLogits(`${dtype} [${shape.join(', ')}]`);
  }

  #wrongLogits(got: string): FettleError {
    const { logits, vocabulary } = this.#spec;
    return new FettleError(
      'BUNDLE_CORRUPT',
      `Output "${logits}" is no logits: wanted f32 or f16 [1, sequence, ${vocabulary}], got ${got}.`,
      { at: { output: logits }, fix: 'Compile the bundle again.' },
    );
  }
}

/**
 * Checks tokens before they are fed.
 *
 * @param past - tokens already in the context
 * @throws {@link FettleError} USAGE when the context would become too long
 * @throws RangeError when there are none, or an id is outside the vocabulary
 */
export function checkIds(ids: readonly number[], spec: DecoderSpec, past: number): void {
  if (ids.length === 0) throw outOfRange('ids.length', 'at least 1 token', 0);
  const odd = ids.find((id) => !Number.isInteger(id) || id < 0 || id >= spec.vocabulary);
  if (odd !== undefined) throw outOfRange('token id', `0 to ${spec.vocabulary - 1}`, odd);
  const total = past + ids.length;
  if (total > spec.contextLength)
    throw new FettleError(
      'USAGE',
      `The context holds ${spec.contextLength} tokens: ${past} are in it and ${ids.length} were to be added.`,
      {
        at: { past, added: ids.length, contextLength: spec.contextLength },
        fix: 'Shorten the prompt, or call reset().',
      },
    );
}

function empty(state: StateSpec): Tensor {
  const shape = state.shape.map((dim, axis) =>
    axis === state.axis ? 0 : typeof dim === 'number' ? dim : 1,
  );
  return zeros(state.dtype, shape);
}

/** A numeric tensor from whole numbers. */
function filled(dtype: DType, shape: readonly number[], value: (index: number) => number): Tensor {
  const { data } = zeros(dtype, shape);
  const array = data as Exclude<TensorData, readonly string[]>;
  const count = elementCount(shape);
  if (array instanceof BigInt64Array || array instanceof BigUint64Array)
    for (let i = 0; i < count; i++) array[i] = BigInt(value(i));
  else if (dtype === 'f16') for (let i = 0; i < count; i++) array[i] = floatToHalf(value(i));
  else for (let i = 0; i < count; i++) array[i] = value(i);
  return { dtype, shape, data };
}
