/** The GGUF writer of the benchmark, read back by a reader written from the specification. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { microDecoders } from '../../models/micro.ts';
import { halfToFloat } from '../../runtime/half.ts';
import type { GgufTensor, GgufType, GgufValue } from '../bench/gguf.ts';
import { ggufTensorBytes, llamaMetadata, llamaTensors, writeGguf } from '../bench/gguf.ts';

interface ReadGguf {
  readonly version: number;
  readonly metadata: Map<string, unknown>;
  readonly tensors: readonly {
    readonly name: string;
    readonly dims: readonly number[];
    readonly type: number;
    readonly offset: number;
  }[];
  /** Where tensor data starts; offsets count from here. */
  readonly dataStart: number;
}

/** https://github.com/ggml-org/ggml/blob/master/docs/gguf.md */
function readGguf(bytes: Uint8Array): ReadGguf {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  let at = 0;
  const u32 = (): number => view.getUint32((at += 4) - 4, true);
  const i32 = (): number => view.getInt32((at += 4) - 4, true);
  const f32 = (): number => view.getFloat32((at += 4) - 4, true);
  const u64 = (): number => Number(view.getBigUint64((at += 8) - 8, true));
  const text = (): string => {
    const length = u64();
    return new TextDecoder().decode(bytes.subarray(at, (at += length)));
  };
  const value = (type: number): unknown => {
    if (type === 4) return u32();
    if (type === 5) return i32();
    if (type === 6) return f32();
    if (type === 8) return text();
    assert.equal(type, 9, `type ${type} at byte ${at}`);
    const of = u32();
    return Array.from({ length: u64() }, () => value(of));
  };
  assert.equal(new TextDecoder().decode(bytes.subarray(0, 4)), 'GGUF');
  at = 4;
  const version = u32();
  const [tensorCount, valueCount] = [u64(), u64()];
  const metadata = new Map(Array.from({ length: valueCount }, () => [text(), value(u32())]));
  const tensors = Array.from({ length: tensorCount }, () => ({
    name: text(),
    dims: Array.from({ length: u32() }, u64),
    type: u32(),
    offset: u64(),
  }));
  return { version, metadata, tensors, dataStart: Math.ceil(at / 32) * 32 };
}

/** Writes a file, reads it and removes it. */
function written(
  metadata: readonly (readonly [string, GgufValue])[],
  tensors: readonly GgufTensor[],
): { bytes: Uint8Array; size: number } {
  const folder = mkdtempSync(join(tmpdir(), 'fettle-gguf-'));
  try {
    const file = join(folder, 'model.gguf');
    const size = writeGguf(file, metadata, tensors);
    // a copy: a Buffer's slices share its memory
    return { bytes: new Uint8Array(readFileSync(file)), size };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const config = microDecoders.gqa;

test('metadata and tensors of a GGUF file are found where the specification says', () => {
  const metadata = llamaMetadata(config, 64);
  const tensors = llamaTensors(config, 'q4_0');
  const { bytes, size } = written(metadata, tensors);
  const read = readGguf(bytes);
  assert.equal(read.version, 3);
  assert.equal(size, bytes.length);
  assert.equal(read.metadata.get('general.architecture'), 'llama');
  assert.equal(read.metadata.get('llama.block_count'), config.layers);
  assert.equal(read.metadata.get('llama.attention.head_count_kv'), config.kvHeads);
  assert.equal(read.metadata.get('llama.rope.dimension_count'), config.headSize);
  assert.equal(
    read.metadata.get('llama.attention.layer_norm_rms_epsilon'),
    Math.fround(config.norm.epsilon),
  );
  assert.deepEqual(
    [...read.metadata.keys()],
    metadata.map(([key]) => key),
  );
  assert.deepEqual(
    read.tensors.map(({ name, dims }) => ({ name, dims })),
    tensors.map(({ name, dims }) => ({ name, dims })),
  );
  // every tensor is aligned, follows the one before, and the last one ends with the file
  let end = 0;
  for (const [i, tensor] of tensors.entries()) {
    const offset = read.tensors[i]?.offset ?? -1;
    assert.equal(offset, Math.ceil(end / 32) * 32, tensor.name);
    end = offset + ggufTensorBytes(tensor);
  }
  assert.equal(bytes.length, read.dataStart + Math.ceil(end / 32) * 32);
});

test('the vocabulary has as many distinct tokens as the model, and letters are tokens', () => {
  const read = readGguf(written(llamaMetadata(config, 64), []).bytes);
  const tokens = read.metadata.get('tokenizer.ggml.tokens') as string[];
  assert.equal(tokens.length, config.vocabulary);
  assert.equal(new Set(tokens).size, config.vocabulary);
  assert.equal(tokens['a'.charCodeAt(0)], 'a');
  // as byte-pair tokenizers write a newline, which llama.cpp looks up
  assert.equal(tokens[10], '\u010a');
});

for (const [type, id, bytesOfBlock, steps] of [
  ['q4_0', 2, 18, 16],
  ['q8_0', 8, 34, 256],
] as const)
  test(`${type} blocks have one scale each, of the wanted deviation`, () => {
    const tensor = { name: 'w', dims: [64, 3], type, deviation: 0.25 } as const;
    const { bytes } = written([], [tensor]);
    const read = readGguf(bytes);
    assert.equal(read.tensors[0]?.type, id);
    const data = bytes.subarray(read.dataStart, read.dataStart + ggufTensorBytes(tensor));
    assert.equal(data.length, 6 * bytesOfBlock);
    const view = new DataView(data.buffer, data.byteOffset);
    for (let block = 0; block < 6; block++) {
      const scale = halfToFloat(view.getUint16(block * bytesOfBlock, true));
      // f16 has 11 significant bits
      assert.ok(Math.abs((scale * steps) / Math.sqrt(12) / 0.25 - 1) < 2 ** -10, `${scale}`);
    }
    // random codes: a block of equal bytes would be none
    assert.ok(new Set(data.subarray(2, bytesOfBlock)).size > 4);
  });

test('f32 tensors hold ones, or random values of the wanted deviation', () => {
  const make = (deviation: number | undefined): Float32Array => {
    const tensor = { name: 'w', dims: [1000], type: 'f32' as GgufType, deviation };
    const { bytes } = written([], [tensor]);
    const { dataStart } = readGguf(bytes);
    return new Float32Array(bytes.slice(dataStart, dataStart + 4000).buffer);
  };
  assert.ok(make(undefined).every((value) => value === 1));
  const squares = make(0.5).reduce((sum, value) => sum + value * value, 0);
  // the deviation of 1,000 uniform numbers is within 5% of theirs with room to spare
  assert.ok(Math.abs(Math.sqrt(squares / 1000) / 0.5 - 1) < 0.05);
});

test('rows that are no whole blocks are refused', () => {
  assert.throws(() => ggufTensorBytes({ dims: [48, 2], type: 'q4_0' }), RangeError);
});
