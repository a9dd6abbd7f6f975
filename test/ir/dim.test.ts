/** Symbolic dimensions: one normal form, so equal sizes have equal texts. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  addDims,
  ceilDivideDims,
  divideDims,
  isAnonymous,
  knownDifference,
  maxDims,
  minDims,
  moduloDims,
  multiplyDims,
  parseDim,
  dimToText,
  substituteDim,
  subtractDims,
  symbolsOf,
} from '../../compiler/ir/dim.ts';
import { random } from '../support/rng.ts';

test('sums and products have one spelling whatever the order', () => {
  assert.equal(addDims('past', 'sequence', 1), 'past + sequence + 1');
  assert.equal(addDims(1, 'sequence', 'past'), 'past + sequence + 1');
  assert.equal(parseDim('sequence+past'), 'past + sequence');
  assert.equal(multiplyDims('b', 'a', 2), '2*a*b');
  assert.equal(multiplyDims('a + 1', 'a - 1'), 'a*a - 1');
  assert.equal(subtractDims('a + b', 'b'), 'a');
  assert.equal(subtractDims('a', 'a'), 0);
});

test('division is exact where every term allows it and an atom elsewhere', () => {
  assert.equal(divideDims('2*a + 4', 2), 'a + 2');
  assert.equal(divideDims('6*batch*seq', '2*seq'), '3*batch');
  assert.equal(divideDims(multiplyDims('a + b', 3), 'a + b'), 3);
  assert.equal(divideDims('a + 1', 2), 'floordiv(a + 1, 2)');
  const half = divideDims('a + 1', 2);
  assert.equal(addDims(half, half), '2*floordiv(a + 1, 2)');
  assert.equal(moduloDims('4*a', 2), 0);
  assert.equal(divideDims(7, 2), 3);
  assert.equal(divideDims(-7, 2), -4);
});

test('rounded-up division, maximum and minimum evaluate once the sizes are known', () => {
  const sizes = new Map([['a', 5]]);
  assert.equal(substituteDim(ceilDivideDims('a', 2), sizes), 3);
  assert.equal(substituteDim(maxDims('a', 7), sizes), 7);
  assert.equal(substituteDim(minDims('a', 7), sizes), 5);
  assert.equal(maxDims('a', 'a + 1'), 'a + 1');
  assert.equal(minDims('a', 'a + 1'), 'a');
  assert.equal(knownDifference('a + 3', 'a'), 3);
  assert.equal(knownDifference('a', 'b'), undefined);
});

test('text that is no expression is one quoted atom and keeps its spelling', () => {
  const odd = parseDim('weird name!');
  assert.equal(odd, '`weird name!`');
  assert.equal(dimToText('`weird name!`'), 'weird name!');
  assert.equal(addDims(odd, 1), '`weird name!` + 1');
  assert.deepEqual(symbolsOf(addDims(odd, 'b')), ['weird name!', 'b'].sort().reverse());
  assert.equal(substituteDim(addDims(odd, 1), new Map([['weird name!', 4]])), 5);
});

test('anonymous sizes are recognised inside expressions', () => {
  assert.ok(isAnonymous('?1'));
  assert.ok(isAnonymous('a + ?12'));
  assert.ok(!isAnonymous('a'));
  assert.ok(!isAnonymous(3));
});

test('every expression evaluates like plain arithmetic (300 seeded cases)', () => {
  const next = random(7);
  const pick = (count: number): number => Math.floor(next() * count);
  for (let round = 0; round < 300; round++) {
    const sizes = new Map([
      ['a', 1 + pick(9)],
      ['b', 1 + pick(9)],
    ]);
    let text: number | string = 'a';
    let wanted = sizes.get('a') ?? 0;
    for (let step = 0; step < 5; step++) {
      const isName = next() < 0.5;
      const operand = isName ? 'b' : 1 + pick(6);
      const number = isName ? (sizes.get('b') ?? 0) : Number(operand);
      const kind = pick(6);
      if (kind === 0) [text, wanted] = [addDims(text, operand), wanted + number];
      else if (kind === 1) [text, wanted] = [subtractDims(text, operand), wanted - number];
      else if (kind === 2) [text, wanted] = [multiplyDims(text, operand), wanted * number];
      else if (kind === 3)
        [text, wanted] = [divideDims(text, operand), Math.floor(wanted / number)];
      else if (kind === 4) [text, wanted] = [maxDims(text, operand), Math.max(wanted, number)];
      else [text, wanted] = [minDims(text, operand), Math.min(wanted, number)];
    }
    assert.equal(substituteDim(text, sizes), wanted, `${text} with ${JSON.stringify([...sizes])}`);
    if (typeof text === 'string')
      assert.equal(parseDim(text), text, 'parsing the text gives the text');
  }
});
