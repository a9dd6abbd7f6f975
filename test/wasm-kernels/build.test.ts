import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { brotliCompressSync } from 'node:zlib';
import {
  buildKernels,
  hashBuild,
  kernelBuilds,
  moduleText,
} from '../../runtime/wasm/build-kernels.ts';
import * as abi from '../../runtime/wasm/kernels/abi.ts';
import type { BinaryName } from '../../runtime/wasm/module.ts';
import { kernelBytes } from '../../runtime/wasm/module.ts';
import { encodeStep, floatBits, parameterWord, stepWords } from '../../runtime/wasm/step.ts';

// one variant: a build of all takes half a minute, and they differ in flags only
test('the committed relaxed kernels are what the sources build to', async () => {
  const build = kernelBuilds.find(({ name }) => name === 'relaxed');
  assert.ok(build);
  assert.deepEqual(await buildKernels(build), await kernelBytes('relaxed'));
});

test('the committed hash is what its source builds to', async () => {
  const path = join(import.meta.dirname, '../../runtime/wasm/generated/sha256.ts');
  const text = moduleText(hashBuild, await buildKernels(hashBuild));
  assert.equal(readFileSync(path, 'utf8'), text);
});

test('every binary is valid, small, and keeps its data below the plan', async () => {
  for (const { name } of kernelBuilds) {
    const bytes = await kernelBytes(name as BinaryName);
    const packed = brotliCompressSync(bytes).length;
    assert.ok(packed < 20 * 1024, `${name} is ${packed} bytes of brotli`);
  }
  const memory = new WebAssembly.Memory({ initial: 1 });
  new Uint8Array(memory.buffer).fill(0xaa);
  await WebAssembly.instantiate(await kernelBytes('simd'), { env: { memory } });
  const above = new Uint8Array(memory.buffer, abi.RESERVED_BYTES);
  assert.ok(
    above.every((byte) => byte === 0xaa),
    'static data stays in the reserved bytes',
  );
});

test('kernel ids are distinct and their parameters consecutive', () => {
  const names = Object.keys(abi)
    .filter((name) => name.endsWith('_END'))
    .map((name) => name.slice(0, -4));
  const constants = abi as unknown as Record<string, number>;
  assert.equal(new Set(names.map((name) => constants[name])).size, names.length);
  for (const name of names) {
    assert.ok((constants[name] ?? 0) < abi.KERNEL_COUNT);
    const words = Object.entries(constants)
      .filter(
        ([key]) =>
          key.startsWith(`${name}_`) &&
          !/^REDUCE_(SUM|MEAN|MAX|MIN|PROD|L1|L2|SUMSQUARE)$/.test(key),
      )
      .map(([, value]) => value)
      .sort((a, b) => a - b);
    assert.deepEqual(
      words,
      Array.from({ length: words.length }, (_, i) => i + 2),
      name,
    );
  }
});

test('steps encode by name and refuse what is no 32-bit integer', () => {
  const step = encodeStep('FILL', { Y: 4096, COUNT: 8, ELEMENT: 4, VALUE: floatBits(1), HIGH: 0 });
  assert.deepEqual(Array.from(step), [abi.FILL, 7, 4096, 8, 4, 0x3f800000, 0]);
  assert.equal(parameterWord('FILL', 'COUNT'), abi.FILL_COUNT);
  assert.equal(stepWords('FILL'), 7);
  assert.throws(
    () => encodeStep('FILL', { Y: 0.5, COUNT: 8, ELEMENT: 4, VALUE: 0, HIGH: 0 }),
    RangeError,
  );
});
