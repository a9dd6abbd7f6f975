import assert from 'node:assert/strict';
import test from 'node:test';
import { varyWindows } from '../../compiler/calibrate/vary-windows.ts';

/** Eight windows of 128 tokens, none of which occurs twice. */
const windows = Array.from({ length: 8 }, (_, w) =>
  Array.from({ length: 128 }, (_unused, i) => 100 + 128 * w + i),
);

test('one window of four stays, two get names that come back, one repeats a string', () => {
  const varied = varyWindows(windows, 8, 2000, 1);
  assert.deepEqual(
    varied.map(({ length }) => length),
    windows.map(({ length }) => length),
  );
  for (const [index, window] of varied.entries()) {
    const original = windows[index] ?? [];
    const kept = window.filter((token, at) => token === original[at]).length;
    if (index % 4 === 0) assert.equal(kept, 128);
    else if (index % 4 === 2) {
      const comesBack = (after: number): boolean =>
        window.slice(after).every((token, at) => token === window[at]);
      const period = window.findIndex((_, after) => after > 0 && comesBack(after));
      assert.ok(period >= 24 && period <= 63, `a string of ${period}`);
    } else {
      // names take 3 to 5 of 9 to 30 tokens
      assert.ok(kept > 64 && kept < 120, `${kept} tokens stay`);
      const names = window.filter((token, at) => token !== original[at]);
      assert.ok(new Set(names).size <= 10 && names.length > new Set(names).size, 'names come back');
    }
  }
});

test('tokens are of the vocabulary, repeated ones of the text, and a seed gives the same ones again', () => {
  const known = new Set(windows.flat());
  const varied = varyWindows(windows, 8, 2000, 7);
  assert.ok(varied.flat().every((token) => token >= 0 && token < 2000));
  assert.ok(varied.flat().some((token) => !known.has(token)));
  assert.ok(varied[2]?.every((token) => known.has(token)) === true);
  assert.deepEqual(varyWindows(windows, 8, 2000, 7), varied);
  assert.notDeepEqual(varyWindows(windows, 8, 2000, 8), varied);
});

test('windows shorter than a name, and none at all, are no error', () => {
  assert.deepEqual(varyWindows([], 0, 10, 1), []);
  const short = varyWindows([[5], [6], [7], [8]], 4, 10, 1);
  assert.deepEqual(
    short.map(({ length }) => length),
    [1, 1, 1, 1],
  );
});

test('windows before the last ones stay', () => {
  const varied = varyWindows(windows, 3, 2000, 1);
  assert.deepEqual(varied.slice(0, 6), windows.slice(0, 6));
  assert.notDeepEqual(varied[6], windows[6]);
  assert.notDeepEqual(varied[7], windows[7]);
});
