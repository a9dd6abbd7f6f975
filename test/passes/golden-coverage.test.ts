/** Every rule of fusion and exact algebra has a case in which it is applied, and one in which it refuses. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { findPass } from '../../compiler/passes.ts';
import { fusionPasses } from '../support/fusion-passes.ts';
import { goldenReports } from '../support/golden.ts';

/** Rules that refuse under another name, and which. */
const neverRefuse: ReadonlyMap<string, string> = new Map([
  ['fuse-attention/attention-with-cache', 'attention'],
]);

for (const name of [...fusionPasses, 'insert-kv-cache'])
  test(`every rule of ${name} has a case where it applies and a near miss with its refusal`, async () => {
    const reports = [...(await goldenReports(name)).values()];
    assert.ok(reports.length > 0, `test/golden/${name} has no case`);
    const applied = new Set(reports.flatMap(({ rewrites }) => Object.keys(rewrites)));
    const refused = new Set(reports.flatMap(({ refusals }) => refusals.map(({ rule }) => rule)));
    const rules = (findPass(name)?.create().rules ?? []).map((rule) => rule.name);
    assert.deepEqual(
      {
        neverApplied: rules.filter((rule) => !applied.has(rule)),
        neverRefused: rules.filter(
          (rule) => !refused.has(rule) && !neverRefuse.has(`${name}/${rule}`),
        ),
      },
      { neverApplied: [], neverRefused: [] },
    );
  });
