import assert from 'node:assert/strict';
import test from 'node:test';
import { kernelTimes } from '../../compiler/cli/bench-profile.ts';
import type { StepTime } from '../../runtime/index.ts';

const step = (kernel: string, ms: number, calls: number): StepTime => ({
  kernel,
  node: '',
  ms,
  calls,
});

test('times of a profile are what came between two looks, by kernel, for one run, largest first', () => {
  const before = [step('NORM', 1, 3), step('LINEAR', 10, 3), step('LINEAR', 20, 3)];
  const after = [step('NORM', 2, 7), step('LINEAR', 30, 7), step('LINEAR', 60, 7)];
  assert.deepEqual(kernelTimes('decode', before, after, 4), [
    { phase: 'decode', kernel: 'LINEAR', steps: 2, ms: 15 },
    { phase: 'decode', kernel: 'NORM', steps: 1, ms: 0.25 },
  ]);
});

test('kernels that did not run are left out', () => {
  const once = [step('NORM', 1, 3), step('ARGMAX', 2, 1)];
  const after = [step('NORM', 3, 4), step('ARGMAX', 2, 1)];
  assert.deepEqual(kernelTimes('call', once, after, 1), [
    { phase: 'call', kernel: 'NORM', steps: 1, ms: 2 },
  ]);
});
