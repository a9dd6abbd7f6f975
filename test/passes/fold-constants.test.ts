/** What golden cases of fold-constants cannot show: large results, and results after the model changed. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ints } from '../../compiler/ir/attribute.ts';
import { Weight } from '../../compiler/ir/weight.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { ModelBuilder } from '../support/model-builder.ts';

test('a large result is computed again when it is read, whatever the opset is by then', async () => {
  const [rows, columns] = [1024, 1500];
  let reads = 0;
  const builder = new ModelBuilder(12);
  const source = Float32Array.from({ length: rows * columns }, (_, i) => i);
  const weight = Weight.lazy('f32', [rows, columns], (start, length) => {
    reads++;
    return new Uint8Array(source.buffer, start, length);
  });
  const x = builder.input('x', [1, 1, columns]);
  const w = builder.rewriter.constant('w', weight);
  const turned = builder.op('Transpose', [w], { perm: ints([1, 0]) });
  const wide = builder.op('Unsqueeze', [turned], { axes: ints([0]) });
  builder.output('y', builder.op('MatMul', [x, wide]));
  await runPasses(builder.model, pipelineFrom(['fold-constants', 'eliminate-dead']));

  const [node] = builder.model.graph.nodes();
  const folded = node?.input(1).weight;
  assert.equal(node?.op, 'MatMul');
  assert.deepEqual(folded?.shape, [1, columns, rows]);
  builder.model.opsets.set('', 21);
  const bytes = folded?.bytes(4 * rows, 8);
  assert.ok(bytes !== undefined);
  // row 1 of the transpose is column 1 of the source
  assert.deepEqual([...new Float32Array(bytes.slice().buffer)], [1, 1 + columns]);
  const before = reads;
  folded?.bytes(0, 8);
  assert.equal(reads, before, 'the result read last is kept');
});
