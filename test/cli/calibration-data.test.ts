/** What is calibrated on and what is measured on never meet. */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'node:test';
import { readSplit, rowsOf } from '../../compiler/cli/calibration-data.ts';
import { writeNpy } from '../../models/npy.ts';
import { FettleError } from '../../runtime/errors.ts';
import { tensor } from '../../runtime/tensor.ts';
import { npzOf } from '../support/npz.ts';

const folder = mkdtempSync(join(tmpdir(), 'fettle-data-'));

function file(name: string, contents: string | Uint8Array): string {
  const path = join(folder, name);
  writeFileSync(path, contents);
  return path;
}

/** Lines of made-up words that differ between two sets. */
const lines = (of: string, count = 40): string =>
  Array.from({ length: count }, (_, i) =>
    Array.from({ length: 16 }, (__, j) => `${of}${(i * 31 + j * 17) % 97}x${i}`).join(' '),
  ).join('\n');

const misused = (pattern: RegExp) => (error: unknown) =>
  error instanceof FettleError && error.code === 'USAGE' && pattern.test(error.message);

test('without other data the last quarter is kept for measuring, and both are named by hash', () => {
  const text = lines('first');
  const { calibration, evaluation } = readSplit(file('one.txt', text), undefined);
  assert.ok(calibration.kind === 'text' && evaluation.kind === 'text');
  assert.equal(calibration.text + evaluation.text, text);
  const share = evaluation.text.length / text.length;
  assert.ok(share > 0.2 && share < 0.26, `${share}`);
  assert.notEqual(calibration.sha256, evaluation.sha256);
  assert.match(evaluation.name, /last quarter/);
});

test('the same file twice, or texts that share lines, are refused', () => {
  const one = file('a.txt', lines('one'));
  assert.throws(() => readSplit(one, one), misused(/calibrated on/));
  const copy = file('b.txt', `${lines('two')}\n${lines('one', 10)}`);
  assert.throws(() => readSplit(one, copy), misused(/calibrated on/));
  const other = file('c.txt', lines('three'));
  const { evaluation, warning } = readSplit(one, other);
  assert.equal(evaluation.name, other);
  assert.equal(warning, undefined);
  // the same words in other lines, in capitals
  const wrapped = file('d.txt', lines('one').toUpperCase().replaceAll(/\s+/g, ' '));
  assert.throws(
    () => readSplit(one, wrapped),
    misused(/calibrated on .*100% of it, such as "one0x0/),
  );
  // a quotation is no reason to refuse a text, but is said
  const quoting = file('e.txt', `${lines('five', 200)}\n${lines('one', 1)}`);
  assert.match(readSplit(one, quoting).warning ?? '', /share 0\.\d+%, such as "one/);
});

test('arrays are split by samples, and samples that come twice are found', () => {
  const values = Float32Array.from({ length: 16 }, (_, i) => i);
  const samples = tensor('f32', [8, 2], values);
  const path = file('x.npy', writeNpy(samples));
  const { calibration, evaluation } = readSplit(path, undefined);
  assert.ok(calibration.kind === 'array' && evaluation.kind === 'array');
  assert.deepEqual(calibration.array.shape, [6, 2]);
  assert.deepEqual([...(evaluation.array.data as Float32Array)], [12, 13, 14, 15]);
  const some = file('y.npy', writeNpy(rowsOf(samples, 7)));
  assert.throws(() => readSplit(path, some), misused(/calibrated on/));
});

test('archives give an array for each input, and are split alike', () => {
  const a = tensor(
    'f32',
    [4, 2],
    Float32Array.from({ length: 8 }, (_, i) => i),
  );
  const b = tensor('i64', [4, 1], BigInt64Array.of(1n, 2n, 3n, 4n));
  const path = file('z.npz', npzOf({ a, b }, true));
  const { calibration, evaluation } = readSplit(path, undefined);
  assert.ok(calibration.kind === 'array' && evaluation.kind === 'array');
  assert.deepEqual(calibration.arrays?.get('a')?.shape, [3, 2]);
  assert.deepEqual([...(evaluation.arrays?.get('b')?.data ?? [])], [4n]);
});

test('what cannot be divided is refused, unless there is other data to measure on', () => {
  const one = tensor('f32', [1, 2], Float32Array.of(1, 2));
  const path = file('single.npy', writeNpy(one));
  assert.throws(() => readSplit(path, undefined), misused(/holds 1 sample; .* 3 at least/));
  const other = file('other.npy', writeNpy(tensor('f32', [1, 2], Float32Array.of(3, 4))));
  assert.equal(readSplit(path, other).calibration.name, path);
  const scalar = file('scalar.npy', writeNpy(tensor('f32', [], Float32Array.of(1))));
  assert.throws(() => readSplit(scalar, undefined), misused(/holds nothing/));
});

test('nothing to calibrate on is said so', () => {
  assert.throws(() => readSplit(file('empty.txt', ' \n'), undefined), misused(/holds nothing/));
  const images = join(folder, 'images');
  mkdirSync(images);
  assert.throws(() => readSplit(images, undefined), misused(/holds nothing/));
});
