/** Clean-up and fusion take work in proportion to the size of a model; counted, not timed. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pipelineFrom } from '../../compiler/passes.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { buildDecoder } from '../../models/decoder.ts';
import { microDecoders } from '../../models/micro.ts';
import { spellings } from '../../models/spelling/index.ts';
import { countNodes } from '../support/count-nodes.ts';
import type { Work } from '../support/work-count.ts';
import { WorkCounter } from '../support/work-count.ts';

/** Runs of blocks of code of every rule over a decoder of so many layers, and its nodes. */
async function workOf(counter: WorkCounter, layers: number): Promise<readonly [Work, number]> {
  const model = buildDecoder('deep', { ...microDecoders.gqa, layers }, spellings[0]);
  const nodes = countNodes(model);
  const steps = pipelineFrom(['clean-up', 'fuse', 'fold-norm-gains', 'fuse-expression']);
  return [await counter.count(() => runPasses(model, steps)), nodes];
}

test('10,000 nodes take no more work for each than 2,000 do', async () => {
  const counter = new WorkCounter('/compiler/');
  await counter.open();
  const [[small, few], [large, many]] = [await workOf(counter, 23), await workOf(counter, 115)];
  await counter.close();
  assert.ok(few >= 2000 && many >= 10_000, `${few} and ${many} nodes`);
  // what is done once for a model becomes less for each node; sorting takes a little more
  assert.ok(large.total / many < (1.05 * small.total) / few, `${large.total} of ${small.total}`);
  // anything that grows faster shows here long before it is much of the whole
  const grown = [...large.byFunction]
    .filter(([, count]) => count / many > 1)
    .map(([name, count]) => [name, count / many, (small.byFunction.get(name) ?? 0) / few] as const)
    .filter(([, after, before]) => after > 1.5 * before)
    .map(([name, after, before]) => `${name}: ${before.toFixed(1)} -> ${after.toFixed(1)} a node`);
  assert.deepEqual(grown, []);
});
