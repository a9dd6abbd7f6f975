import assert from 'node:assert/strict';
import test from 'node:test';
import {
  bitsPerWeight,
  codebookFormat,
  formatName,
  integerFormat,
  isFormatName,
  numberFormats,
  parseFormat,
} from '../../compiler/quant/formats.ts';
import { FettleError } from '../../runtime/errors.ts';

test('every supported format is parsed from its own name', () => {
  for (const format of numberFormats.filter((row) => row.supported))
    assert.equal(parseFormat(format.name), format);
  assert.equal(new Set(numberFormats.map((row) => row.name)).size, numberFormats.length);
});

test('a name says bits, group and symmetry', () => {
  const w4g32a = parseFormat('w4g32a');
  assert.ok(w4g32a.kind === 'integer');
  assert.deepEqual([w4g32a.bits, w4g32a.group, w4g32a.symmetric], [4, 32, false]);
  const w8 = parseFormat('W8');
  assert.ok(w8.kind === 'integer');
  assert.deepEqual([w8.bits, w8.group, w8.symmetric], [8, 'channel', true]);
  assert.equal(parseFormat('w8channel'), w8);
  assert.equal(formatName(3, 'channel', false), 'w3a');
  assert.equal(integerFormat(4, 32, false), w4g32a);
  assert.equal(integerFormat(4, 9, true).name, 'w4g9');
  const c4g64 = parseFormat('c4g64');
  assert.ok(c4g64.kind === 'codebook');
  assert.deepEqual([c4g64.bits, c4g64.group], [4, 64]);
  assert.equal(codebookFormat(64), c4g64);
});

test('names that are reserved or unknown are a FettleError with a fix', () => {
  for (const name of ['kv8', 'kv4']) {
    assert.ok(isFormatName(name));
    assert.throws(
      () => parseFormat(name),
      (error) =>
        error instanceof FettleError &&
        error.code === 'USAGE' &&
        /not supported yet/.test(error.message),
    );
  }
  assert.throws(
    () => parseFormat('w4g23'),
    (error) =>
      error instanceof FettleError && error.code === 'USAGE' && /w4g/.test(error.fix ?? ''),
  );
  assert.throws(() => parseFormat('banana'), FettleError);
});

test('bits per weight count scales and zero points, as ALGORITHMS 0.4 states', () => {
  const bits = (name: string, columns = 4096): number => bitsPerWeight(parseFormat(name), columns);
  assert.equal(bits('w4g32'), 4.5);
  assert.equal(bits('w4g64'), 4.25);
  assert.equal(bits('w4g128'), 4.125);
  assert.equal(bits('w4g32a') - bits('w4g32'), 0.125);
  assert.equal(bits('w4g128a') - bits('w4g128'), 0.03125);
  assert.equal(bits('w8', 64), 8.25);
  assert.equal(bits('c4g32'), 4.5);
  assert.equal(bits('f16'), 16);
});
