/**
 * A plan in the making: steps of the kernel ABI whose words may depend on the sizes of a call, over
 * buffers that have no address yet. `arena.ts` gives buffers places, `encode-plan.ts` makes words of it.
 *
 * Sizes are dimensions (`ir/dim.ts`) over two symbols: `S`, tokens of this call, and `P`, tokens before.
 * A word must be linear in S, P and S*P, which is what a patch can compute.
 */
import type { KernelName, ParameterName } from '../../runtime/wasm/step.ts';
import { parameterWord, stepWords } from '../../runtime/wasm/step.ts';
import * as abi from '../../runtime/wasm/kernels/abi.ts';
import type { Dim } from '../ir/dim.ts';
import { addDims, substituteDim } from '../ir/dim.ts';
import type { Weight } from '../ir/weight.ts';

/** Tokens of this call; rows of a block in the head. */
export const S = 'S';
/** Tokens before this call; the first row of a block in the head. */
export const P = 'P';

/** Where a buffer lies: with the activations, the weights, the KV cache, or the plan itself. */
export type Region = 'arena' | 'weights' | 'state' | 'plan';

/** A run of bytes that steps read or write. */
export interface Buffer {
  /** For messages and `fettle inspect`. */
  readonly name: string;
  readonly region: Region;
  /** Bytes; in the arena a dimension over S and P, elsewhere a number. */
  readonly bytes: Dim;
  /** Which segment's sizes `bytes` is about. */
  readonly segment: Segment;
  /** Contents, of weights. */
  readonly weight?: Weight;
  /** Number format, of weights. */
  readonly format?: string;
  /** Contents, of what lies in the plan. */
  readonly words?: Int32Array<ArrayBuffer>;
  /** Whether the caller writes it before a call: it is alive from the start. */
  readonly input?: boolean;
  /** Whether the caller reads it after a call: it is alive to the end. */
  output?: boolean;
}

/**
 * Steps before the logits, which run for every token; those that run for chosen rows only; and those that
 * run once, when the plan is loaded.
 */
export type Segment = 'body' | 'head' | 'init';

/** A byte in a buffer. */
export interface Address {
  readonly buffer: Buffer;
  readonly offset: Dim;
}

/** A parameter of a step: a number, a size, or the address of something. */
export type Word = Dim | Address;

/** One kernel call. */
export interface Step {
  readonly kernel: KernelName | 'EXPRESSION';
  readonly segment: Segment;
  /** All words from word 2 on. */
  readonly words: Word[];
  /** Name of the node it computes. */
  readonly node: string;
  /** Why this kernel and this form. */
  readonly why: string;
  /** Buffers that may share storage when the second one is not needed after this step: [written, read]. */
  readonly inPlace: readonly (readonly [Buffer, Buffer])[];
}

/** Address of byte `offset` of a buffer. */
export function addressOf(buffer: Buffer, offset: Dim = 0): Address {
  return { buffer, offset };
}

/** An address some bytes further. */
export function shifted({ buffer, offset }: Address, by: Dim): Address {
  return { buffer, offset: addDims(offset, by) };
}

/** Whether a word is an address. */
export function isAddress(word: Word): word is Address {
  return typeof word === 'object';
}

/** The words of a step from its parameters by name; every parameter must be given. */
export function stepOf<K extends KernelName>(
  kernel: K,
  parameters: Readonly<Record<ParameterName<K>, Word>>,
): Word[] {
  const words: Word[] = Array.from({ length: stepWords(kernel) - 2 }, () => 0);
  for (const [name, word] of Object.entries<Word>(parameters))
    words[parameterWord(kernel, name as ParameterName<K>) - 2] = word;
  return words;
}

/** Number of a kernel. */
export function kernelId(kernel: Step['kernel']): number {
  return (abi as Readonly<Record<Step['kernel'], number>>)[kernel];
}

/** A size over S and P as `c + s*S + p*P + sp*S*P`. */
export interface Linear {
  readonly c: number;
  readonly s: number;
  readonly p: number;
  readonly sp: number;
}

/** The value of a size at S and P; undefined when it depends on anything else. */
export function sizeAt(dim: Dim, s: number, p: number): number | undefined {
  if (typeof dim === 'number') return dim;
  const value = substituteDim(
    dim,
    new Map([
      [S, s],
      [P, p],
    ]),
  );
  return typeof value === 'number' ? value : undefined;
}

/** The linear form of a size, or undefined when it has none. */
export function linearOf(dim: Dim): Linear | undefined {
  if (typeof dim === 'number') return { c: dim, s: 0, p: 0, sp: 0 };
  const at = (s: number, p: number): number => sizeAt(dim, s, p) ?? Number.NaN;
  const c = at(0, 0);
  const s = at(1, 0) - c;
  const p = at(0, 1) - c;
  const sp = at(1, 1) - c - s - p;
  // four points always fit; a form that is not linear misses the others
  const fits = ([x, y]: readonly [number, number]): boolean =>
    at(x, y) === c + s * x + p * y + sp * x * y;
  return (
    [
      [2, 3],
      [7, 5],
      [64, 1023],
    ] as const
  ).every(fits)
    ? { c, s, p, sp }
    : undefined;
}
