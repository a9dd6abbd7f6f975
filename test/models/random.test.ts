import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { randomWeight, seedOf, transposedRandomWeight } from '../../models/random.ts';

describe('random weights', () => {
  const shape = [300, 500];
  const normal = { deviation: 0.5, mean: 2 };
  const weight = randomWeight(shape, seedOf('w'), normal);
  const values = weight.tensor().data as Float32Array;

  it('follow a normal distribution', () => {
    const mean = values.reduce((sum, x) => sum + x, 0) / values.length;
    const moment = (power: number): number =>
      values.reduce((sum, x) => sum + ((x - mean) / 0.5) ** power, 0) / values.length;
    // four standard errors of 150,000 samples: 0.5/387, then sqrt(2/n), sqrt(6/n), sqrt(24/n)
    assert.ok(Math.abs(mean - 2) < 0.0052, `mean ${mean}`);
    assert.ok(Math.abs(moment(2) - 1) < 0.0147, `variance ${moment(2)}`);
    assert.ok(Math.abs(moment(3)) < 0.026, `skew ${moment(3)}`);
    assert.ok(Math.abs(moment(4) - 3) < 0.051, `kurtosis ${moment(4)}`);
  });

  it('are not related from one to the next, nor from seed to seed', () => {
    const other = randomWeight(shape, seedOf('w') + 1, normal).tensor().data as Float32Array;
    for (const [name, pair] of Object.entries({
      neighbours: (i: number) => values[i + 1] ?? 2,
      'neighbouring seeds': (i: number) => other[i] ?? 2,
      'shifted seeds': (i: number) => other[i + 1] ?? 2,
    })) {
      const sum = values.reduce((total, x, i) => total + ((x - 2) * (pair(i) - 2)) / 0.25, 0);
      // four standard errors
      assert.ok(Math.abs(sum / values.length) < 0.0104, `${name}: ${sum / values.length}`);
    }
  });

  it('give the same bytes from any start', () => {
    const whole = weight.bytes();
    assert.equal(whole.length, 600_000);
    for (const [start, length] of [
      [0, 4],
      [3, 9],
      [599_999, 1],
      [123_456, 7890],
    ] as const)
      assert.deepEqual(weight.bytes(start, length), whole.slice(start, start + length));
  });

  it('are the same today as when this test was written', () => {
    assert.deepEqual(
      [...(randomWeight([4], seedOf('golden'), { deviation: 1 }).tensor().data as Float32Array)],
      GOLDEN,
    );
  });

  it('transpose to the same values', () => {
    const copy = transposedRandomWeight(300, 500, seedOf('w'), normal);
    assert.deepEqual(copy.shape, [500, 300]);
    const turned = copy.tensor().data as Float32Array;
    for (let row = 0; row < 300; row += 7)
      for (let column = 0; column < 500; column += 11)
        assert.equal(turned[column * 300 + row], values[row * 500 + column]);
    assert.deepEqual(copy.bytes(1001, 17), new Uint8Array(turned.buffer).slice(1001, 1018));
  });
});

// first values under seedOf('golden'); other numbers mean other models under the same names, and call
// for a new GENERATOR_VERSION
const GOLDEN = [
  -0.6811062097549438, -0.017709504812955856, 1.1373121738433838, -0.058106377720832825,
];
