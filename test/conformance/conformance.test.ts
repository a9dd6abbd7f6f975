/**
 * The ONNX conformance cases against the reference evaluator and shape inference. Every case must pass
 * that `exceptions.ts` does not list, and none that it lists.
 */
import assert from 'node:assert/strict';
import { basename } from 'node:path';
import { test } from 'node:test';
import type { CaseResult } from '../support/conformance.ts';
import { conformanceCases, inferCase, runCase } from '../support/conformance.ts';
import { needsShared, sharedPath } from '../support/shared.ts';
import { exceptions } from './exceptions.ts';

const suites = ['node', 'pytorch-operator', 'pytorch-converted'];

for (const suite of suites) {
  const folder = ['onnx-tests', suite];
  test(
    `every ${suite} case gives the expected outputs in the evaluator`,
    needsShared(...folder),
    () => {
      check(sharedPath(...folder), 'evaluate', runCase);
    },
  );
  test(
    `every ${suite} case gets its declared output shapes inferred`,
    needsShared(...folder),
    () => {
      check(sharedPath(...folder), 'infer', inferCase);
    },
  );
}

test('every exception names a case that exists', needsShared('onnx-tests'), () => {
  const names = suites.flatMap((suite) =>
    conformanceCases(sharedPath('onnx-tests', suite)).map((path) => basename(path)),
  );
  const unknown = exceptions.flatMap(({ cases }) => cases).filter((name) => !names.includes(name));
  assert.deepEqual(unknown, []);
});

function check(
  folder: string,
  kind: 'evaluate' | 'infer',
  run: (path: string) => CaseResult,
): void {
  const listed = new Set(exceptions.flatMap((entry) => (entry.check === kind ? entry.cases : [])));
  const results = conformanceCases(folder).map(run);
  assert.ok(results.length > 0, `no case in ${folder}`);
  const wrong = results.flatMap(({ name, outcome, reason }) => {
    if (outcome === 'failed' && !listed.has(name)) return [`${name}: ${reason}`];
    return outcome === 'passed' && listed.has(name) ? [`${name} passes now: unlist it`] : [];
  });
  assert.deepEqual(wrong, []);
}
