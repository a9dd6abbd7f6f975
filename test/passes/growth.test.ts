/** Clean-up and fusion take work in proportion to the size of a model; counted, not timed. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import type { Growth } from '../support/growth-work.ts';

test('10,000 nodes take no more work for each than 2,000 do', () => {
  const script = fileURLToPath(new URL('../support/growth-work.ts', import.meta.url));
  const printed = execFileSync(process.execPath, ['--import', 'tsx', script], {
    encoding: 'utf8',
    maxBuffer: 1 << 24,
  });
  const { small, large } = JSON.parse(printed) as Growth;
  assert.ok(small.nodes >= 2000 && large.nodes >= 10_000, `${small.nodes} and ${large.nodes}`);
  // what is done once for a model becomes less for each node; sorting takes a little more
  assert.ok(
    large.total / large.nodes < (1.05 * small.total) / small.nodes,
    `${large.total} of ${small.total}`,
  );
  // anything that grows faster shows here long before it is much of the whole
  const grown = Object.entries(large.byFunction)
    .filter(([, count]) => count / large.nodes > 1)
    .map(([name, count]) => {
      const before = (small.byFunction[name] ?? 0) / small.nodes;
      return { name, before, after: count / large.nodes };
    })
    .filter(({ before, after }) => after > 1.5 * before)
    .map(
      ({ name, before, after }) => `${name}: ${before.toFixed(1)} -> ${after.toFixed(1)} a node`,
    );
  assert.deepEqual(grown, []);
});
