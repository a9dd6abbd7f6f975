/**
 * Writes a Llama-shaped decoder with random weights as GGUF version 3, for llama.cpp and what is built on
 * it. The tokenizer is the least that loads: a letter is a token, so that a prompt of n letters has n tokens.
 *
 * As llama.cpp quantizes tied models whose rows are no multiple of 256, the token table stays in 8 bits
 * (it is the output matrix too) and the norms in f32.
 *
 * Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, block layouts in ggml-common.h
 */
import { closeSync, openSync, renameSync, writeSync } from 'node:fs';
import type { DecoderConfig } from '../../models/decoder-config.ts';
import { rotarySize } from '../../models/decoder-config.ts';
import { floatToHalf } from '../../runtime/half.ts';

/** Element types of tensors; ids and block sizes are those of ggml. */
const tensorTypes = {
  f32: { id: 0, blockElements: 1, blockBytes: 4 },
  q4_0: { id: 2, blockElements: 32, blockBytes: 18 },
  q8_0: { id: 8, blockElements: 32, blockBytes: 34 },
} as const;

/** Element type of a tensor. */
export type GgufType = keyof typeof tensorTypes;

/** A value of the metadata, by the name of its type. */
export type GgufValue =
  | { readonly u32: number }
  | { readonly f32: number }
  | { readonly string: string }
  | { readonly strings: readonly string[] }
  | { readonly i32s: readonly number[] };

/** A tensor to write. */
export interface GgufTensor {
  readonly name: string;
  /** Fastest first, as ggml counts: a matrix of N rows of K is [K, N]. */
  readonly dims: readonly number[];
  readonly type: GgufType;
  /** Standard deviation of its random values; undefined for ones. */
  readonly deviation: number | undefined;
}

/** Every tensor starts at a multiple of this many bytes. */
const ALIGNMENT = 32;

/** Bytes a tensor takes, without what aligns the next. */
export function ggufTensorBytes({ dims, type }: Pick<GgufTensor, 'dims' | 'type'>): number {
  const { blockElements, blockBytes } = tensorTypes[type];
  const elements = dims.reduce((product, dim) => product * dim, 1);
  if ((dims[0] ?? 0) % blockElements !== 0)
    throw new RangeError(`Rows of ${dims[0]} are no multiple of ${blockElements}.`);
  return (elements / blockElements) * blockBytes;
}

/** Metadata of a Llama-shaped decoder and its byte tokenizer. */
export function llamaMetadata(
  config: DecoderConfig,
  contextLength: number,
): readonly (readonly [string, GgufValue])[] {
  const tokens = vocabulary(config.vocabulary);
  return [
    ['general.architecture', { string: 'llama' }],
    ['general.name', { string: 'random' }],
    ['llama.block_count', { u32: config.layers }],
    ['llama.context_length', { u32: contextLength }],
    ['llama.embedding_length', { u32: config.width }],
    ['llama.feed_forward_length', { u32: config.mlp.width }],
    ['llama.attention.head_count', { u32: config.heads }],
    ['llama.attention.head_count_kv', { u32: config.kvHeads }],
    ['llama.attention.layer_norm_rms_epsilon', { f32: config.norm.epsilon }],
    ['llama.rope.freq_base', { f32: config.rotary.base }],
    ['llama.rope.dimension_count', { u32: rotarySize(config) }],
    ['llama.vocab_size', { u32: config.vocabulary }],
    ['tokenizer.ggml.model', { string: 'gpt2' }],
    ['tokenizer.ggml.pre', { string: 'gpt-2' }],
    ['tokenizer.ggml.tokens', { strings: tokens }],
    ['tokenizer.ggml.token_type', { i32s: tokens.map(() => NORMAL_TOKEN) }],
    // byte-pair tokenizers must have merges; this one never applies to a prompt of one letter
    ['tokenizer.ggml.merges', { strings: ['a b'] }],
    ['tokenizer.ggml.bos_token_id', { u32: 0 }],
    ['tokenizer.ggml.eos_token_id', { u32: 1 }],
  ];
}

/** Tensors of a Llama-shaped decoder with a tied head. */
export function llamaTensors(config: DecoderConfig, type: GgufType): GgufTensor[] {
  const { width, heads, kvHeads, headSize, mlp } = config;
  const branch = 1 / Math.sqrt(2 * config.layers);
  const tensor = (name: string, dims: readonly number[], gain = 1): GgufTensor => ({
    name: `${name}.weight`,
    dims,
    type,
    deviation: gain / Math.sqrt(dims[0] ?? 1),
  });
  const norm = (name: string): GgufTensor => ({
    name: `${name}.weight`,
    dims: [width],
    type: 'f32',
    deviation: undefined,
  });
  const table = tensor('token_embd', [width, config.vocabulary]);
  return [
    { ...table, type: type === 'f32' ? 'f32' : 'q8_0' },
    ...Array.from({ length: config.layers }, (_, layer) => `blk.${layer}.`).flatMap((block) => [
      norm(`${block}attn_norm`),
      tensor(`${block}attn_q`, [width, heads * headSize]),
      tensor(`${block}attn_k`, [width, kvHeads * headSize]),
      tensor(`${block}attn_v`, [width, kvHeads * headSize]),
      tensor(`${block}attn_output`, [heads * headSize, width], branch),
      norm(`${block}ffn_norm`),
      tensor(`${block}ffn_gate`, [width, mlp.width]),
      tensor(`${block}ffn_up`, [width, mlp.width]),
      tensor(`${block}ffn_down`, [mlp.width, width], branch),
    ]),
    norm('output_norm'),
  ];
}

/**
 * Writes a GGUF file; it appears complete or not at all.
 *
 * @returns its bytes
 */
export function writeGguf(
  file: string,
  metadata: readonly (readonly [string, GgufValue])[],
  tensors: readonly GgufTensor[],
): number {
  const temporary = `${file}.tmp`;
  const descriptor = openSync(temporary, 'w');
  let written = 0;
  const write = (bytes: Uint8Array): void => {
    for (let done = 0; done < bytes.length;) done += writeSync(descriptor, bytes, done);
    written += bytes.length;
  };
  try {
    write(header(metadata, tensors));
    const random = new RandomBits(1);
    for (const tensor of tensors) {
      write(contents(tensor, random));
      write(new Uint8Array(padding(written)));
    }
  } finally {
    closeSync(descriptor);
  }
  renameSync(temporary, file);
  return written;
}

/** Of llama.cpp's token types. */
const NORMAL_TOKEN = 1;

/**
 * ASCII bytes as byte-pair tokenizers write them, then names. The other bytes are left out: a random model
 * that strings them together gives text that is no UTF-8, at which wllama 3.8 breaks.
 */
function vocabulary(size: number): string[] {
  let beyond = 256;
  return Array.from({ length: size }, (_, id) => {
    if (id >= 128) return `<${id}>`;
    return String.fromCharCode(id >= 33 && id <= 126 ? id : beyond++);
  });
}

function header(
  metadata: readonly (readonly [string, GgufValue])[],
  tensors: readonly GgufTensor[],
): Uint8Array {
  const out = new Fields();
  out.raw(new TextEncoder().encode('GGUF'));
  out.u32(3);
  out.u64(tensors.length);
  out.u64(metadata.length);
  for (const [key, value] of metadata) {
    out.string(key);
    out.value(value);
  }
  let offset = 0;
  for (const tensor of tensors) {
    out.string(tensor.name);
    out.u32(tensor.dims.length);
    for (const dim of tensor.dims) out.u64(dim);
    out.u32(tensorTypes[tensor.type].id);
    out.u64(offset);
    const end = offset + ggufTensorBytes(tensor);
    offset = end + padding(end);
  }
  out.raw(new Uint8Array(padding(out.length)));
  return out.bytes();
}

function padding(length: number): number {
  return (ALIGNMENT - (length % ALIGNMENT)) % ALIGNMENT;
}

/** Random contents; the scale of every block gives its values the wanted deviation. */
function contents(tensor: GgufTensor, random: RandomBits): Uint8Array {
  const bytes = new Uint8Array(ggufTensorBytes(tensor));
  const { type, deviation } = tensor;
  const { blockBytes } = tensorTypes[type];
  const view = new DataView(bytes.buffer);
  if (type === 'f32') {
    const range = (deviation ?? 0) * Math.sqrt(12);
    for (let at = 0; at < bytes.length; at += 4)
      view.setFloat32(
        at,
        deviation === undefined ? 1 : (random.next() / 2 ** 32 - 0.5) * range,
        true,
      );
    return bytes;
  }
  random.fill(bytes);
  // codes are uniform: their deviation is that of 16 or 256 equal steps
  const steps = type === 'q4_0' ? 16 : 256;
  const scale = floatToHalf(((deviation ?? 1) * Math.sqrt(12)) / steps);
  for (let at = 0; at < bytes.length; at += blockBytes) view.setUint16(at, scale, true);
  return bytes;
}

/** xorshift32 (G. Marsaglia, 2003). */
class RandomBits {
  private state: number;

  constructor(seed: number) {
    this.state = seed;
  }

  next(): number {
    let bits = this.state;
    bits ^= bits << 13;
    bits ^= bits >>> 17;
    bits ^= bits << 5;
    this.state = bits;
    return bits >>> 0;
  }

  fill(bytes: Uint8Array): void {
    const words = new Uint32Array(bytes.buffer, bytes.byteOffset, Math.floor(bytes.length / 4));
    for (let i = 0; i < words.length; i++) words[i] = this.next();
    for (let i = words.length * 4; i < bytes.length; i++) bytes[i] = this.next();
  }
}

/** Little-endian fields one after the other. */
class Fields {
  length = 0;
  private readonly pieces: Uint8Array[] = [];

  raw(bytes: Uint8Array): void {
    this.pieces.push(bytes);
    this.length += bytes.length;
  }

  u32(value: number): void {
    this.raw(new Uint8Array(Uint32Array.of(value).buffer));
  }

  u64(value: number): void {
    this.raw(new Uint8Array(BigUint64Array.of(BigInt(value)).buffer));
  }

  string(text: string): void {
    const bytes = new TextEncoder().encode(text);
    this.u64(bytes.length);
    this.raw(bytes);
  }

  /** A value behind the id of its type. */
  value(value: GgufValue): void {
    if ('u32' in value) {
      this.u32(4);
      this.u32(value.u32);
    } else if ('f32' in value) {
      this.u32(6);
      this.raw(new Uint8Array(Float32Array.of(value.f32).buffer));
    } else if ('string' in value) {
      this.u32(8);
      this.string(value.string);
    } else if ('strings' in value) {
      this.array(8, value.strings.length);
      for (const text of value.strings) this.string(text);
    } else {
      this.array(5, value.i32s.length);
      this.raw(new Uint8Array(Int32Array.from(value.i32s).buffer));
    }
  }

  bytes(): Uint8Array {
    const all = new Uint8Array(this.length);
    let at = 0;
    for (const piece of this.pieces) {
      all.set(piece, at);
      at += piece.length;
    }
    return all;
  }

  private array(type: number, count: number): void {
    this.u32(9);
    this.u32(type);
    this.u64(count);
  }
}
