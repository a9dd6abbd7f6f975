/**
 * A conversation on the WASM engine: prompts are fed in chunks, keys and values stay in linear memory.
 * One cache serves all sequences of a program: a sequence that lost it to another one feeds its tokens
 * again before it goes on.
 */
import { checkIds } from '../decoder.ts';
import type { Sequence } from '../engine.ts';
import { FettleError } from '../errors.ts';
import type { DecoderSpec } from '../manifest.ts';
import type { PlanLayout, PlanTensor } from '../plan.ts';
import { sizeOf } from '../plan.ts';
import type { Executor } from './executor.ts';

/** Milliseconds after which a long prompt lets events happen, an abort among them. */
const TURN_MS = 40;

/** Whose tokens the cache holds. */
export interface CacheOwner {
  /** The sequence; undefined when nobody's. */
  holder: object | undefined;
}

/** What a sequence works with. */
export interface SequenceParts {
  readonly executor: Executor;
  readonly layout: PlanLayout;
  readonly decoder: DecoderSpec;
  readonly cache: CacheOwner;
}

/** Reads `count` rows of logits at an address; the first of them is row `row` of what was asked for. */
type ReadLogits = (address: number, count: number, row: number) => void;

/** Tokens a decoder has seen. */
export class WasmSequence implements Sequence {
  readonly #parts: SequenceParts;
  readonly #ids: number[] = [];

  constructor(parts: SequenceParts) {
    this.#parts = parts;
  }

  get ids(): readonly number[] {
    return this.#ids;
  }

  get stateBytes(): number {
    return this.#parts.layout.state.bytes;
  }

  async feed(
    ids: readonly number[],
    all = false,
    signal?: AbortSignal,
  ): Promise<Float32Array<ArrayBuffer>> {
    const { decoder, executor, layout } = this.#parts;
    const { vocabulary } = decoder;
    const logits = tensorNamed(layout.outputs, decoder.logits);
    const rows = all ? ids.length : 1;
    if (all && layout.head === undefined && sizeOf(logits.elements, 2, 0) === decoder.vocabulary)
      throw new FettleError('USAGE', 'The model gives logits of the last token only.', {
        at: { output: logits.name },
        fix: 'Feed one token at a time.',
      });
    const result = new Float32Array(rows * vocabulary);
    const copy: ReadLogits = (address, count, row) =>
      result.set(executor.floats(address, count * vocabulary), row * vocabulary);
    await this.#append(ids, copy, all, signal);
    return result;
  }

  async next(ids: readonly number[], signal?: AbortSignal): Promise<number> {
    const { decoder, executor } = this.#parts;
    let id = 0;
    const choose: ReadLogits = (address) => (id = executor.largest(address, decoder.vocabulary));
    await this.#append(ids, choose, false, signal);
    return id;
  }

  reset(): void {
    this.#ids.length = 0;
    if (this.#parts.cache.holder === this) this.#parts.cache.holder = undefined;
  }

  /** Appends tokens, behind all others of this sequence when another one had the cache. */
  async #append(
    ids: readonly number[],
    read: ReadLogits,
    all: boolean,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const { cache, decoder } = this.#parts;
    checkIds(ids, decoder, this.#ids.length);
    if (cache.holder !== this) {
      // the same array: whoever asked for `ids` before sees what is added
      const before = this.#ids.splice(0);
      cache.holder = this;
      if (before.length > 0) await this.#take(before, undefined, false, signal);
    }
    await this.#take(ids, read, all, signal);
  }

  /** Runs chunk after chunk; what an abort leaves behind has been fed. */
  async #take(
    ids: readonly number[],
    read: ReadLogits | undefined,
    all: boolean,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const { executor, layout } = this.#parts;
    let turnMs = performance.now();
    for (let at = 0; at < ids.length; at += layout.chunk) {
      if (at > 0 && performance.now() - turnMs > TURN_MS) {
        await new Promise((resolve) => setTimeout(resolve));
        signal?.throwIfAborted();
        turnMs = performance.now();
      }
      const part = ids.slice(at, at + layout.chunk);
      const past = this.#ids.length;
      this.#write(part, past);
      executor.body(part.length, past);
      for (const id of part) this.#ids.push(id);
      const last = at + layout.chunk >= ids.length;
      if (read === undefined || !(all || last)) continue;
      const first = all ? 0 : part.length - 1;
      this.#read(read, all ? at : 0, first, part.length - first);
    }
  }

  /** Ids, and whatever else the plan still wants to know. */
  #write(ids: readonly number[], past: number): void {
    const { executor, layout, decoder } = this.#parts;
    const total = past + ids.length;
    const flags = {
      'use-cache': past > 0 ? 1 : 0,
      'sequence-length': ids.length,
      'total-length': total,
      'past-length': past,
      'last-position': total - 1,
    };
    for (const input of layout.inputs) {
      if (input.address === 0) continue;
      const flag = decoder.flags?.find((item) => item.input === input.name);
      const value = (index: number): number => {
        if (input.name === decoder.ids) return ids[index] ?? 0;
        if (input.name === decoder.positions) return past + index;
        return flag === undefined ? 1 : flags[flag.value];
      };
      const count = sizeOf(input.elements, ids.length, past);
      const target =
        input.type === 'f32'
          ? executor.floats(input.address, count)
          : executor.integers(input.address, count);
      for (let index = 0; index < count; index++) target[index] = value(index);
    }
  }

  /** Reads logits of `count` rows of the last chunk from row `first` on, as rows `to`… of the result. */
  #read(read: ReadLogits, to: number, first: number, count: number): void {
    const { executor, layout, decoder } = this.#parts;
    const { vocabulary } = decoder;
    const logits = tensorNamed(layout.outputs, decoder.logits);
    if (layout.head === undefined) {
      const rows = sizeOf(logits.elements, first + count, 0) / vocabulary;
      const from = logits.address + (rows - count) * vocabulary * 4;
      read(from, count, to);
      return;
    }
    for (let row = 0; row < count; row += layout.headRows) {
      const rows = Math.min(layout.headRows, count - row);
      executor.head(rows, first + row);
      read(logits.address, rows, to + row);
    }
  }
}

/** A tensor of the plan; the engine has checked that it is there. */
export function tensorNamed(tensors: readonly PlanTensor[], name: string): PlanTensor {
  const found = tensors.find((tensor) => tensor.name === name);
  if (found === undefined)
    throw new FettleError('BUNDLE_CORRUPT', `The plan has no tensor "${name}".`, {
      at: { value: name },
      fix: 'Compile the bundle again.',
    });
  return found;
}
