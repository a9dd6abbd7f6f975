import assert from 'node:assert/strict';
import test from 'node:test';
import { pipelineFrom } from '../../compiler/passes.ts';
import { numberFormats } from '../../compiler/quant/formats.ts';
import { targetById } from '../../compiler/find-target.ts';
import { targets } from '../../targets/index.ts';
import { assertFails } from '../support/errors.ts';

test('every target is found by its name, and a misspelt one is suggested', () => {
  for (const target of targets) assert.equal(targetById(target.id), target);
  assert.equal(new Set(targets.map(({ id }) => id)).size, targets.length);
  const error = assertFails(() => targetById('ort-wsam'), 'TARGET_UNKNOWN', /"ort-wsam"/);
  assert.equal(error.fix, 'Did you mean "ort-wasm"?');
  assert.match(
    assertFails(() => targetById('esp32'), 'TARGET_UNKNOWN', /esp32/).fix ?? '',
    /ort-wasm, /,
  );
});

test('every pipeline names passes and options that exist, quantization after the clean-up', () => {
  for (const { id, pipeline } of targets) {
    const names = pipelineFrom(pipeline).map(({ name }) => name);
    assert.ok(names.indexOf('clean-up') < names.indexOf('quantize-weights'), `${id}: ${names}`);
    // a fold after it would undo it
    assert.ok(names.lastIndexOf('clean-up') < names.indexOf('quantize-weights'), id);
  }
});

test('every number says where it comes from', () => {
  for (const { id, limits } of targets)
    for (const limit of Object.values(limits)) {
      assert.ok(Number.isSafeInteger(limit.value) && limit.value > 0, id);
      assert.match(limit.source, /^(https:\/\/\S+|measured with \S+.*)$/, id);
    }
});

test('formats, groups and what only one engine has are consistent', () => {
  const known = new Set(
    numberFormats.flatMap(({ name, bits }) => [name, `w${bits}`, name.split('g')[0] ?? '']),
  );
  for (const target of targets) {
    for (const format of target.weightFormats) assert.ok(known.has(format), format);
    for (const group of target.groupSizes)
      assert.ok(known.has(`w4g${group}`), `${target.id}: groups of ${group}`);
    const isOrt = target.engine === 'ort';
    assert.equal(target.provider !== undefined, isOrt);
    assert.equal(target.limits.opset !== undefined, isOrt);
    assert.ok(target.hosts.length > 0 && target.summary !== '');
  }
});
