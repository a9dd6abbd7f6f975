import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { decodeModel, readModel } from '../../compiler/onnx/read.ts';
import { MemoryFiles } from '../../compiler/files.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import { FettleError } from '../../runtime/errors.ts';
import { outlineModel } from '../support/model-outline.ts';
import { floats, graphAttribute, modelBytes, node, value } from '../support/onnx.ts';
import { random } from '../support/rng.ts';
import { needsShared, sharedPath } from '../support/shared.ts';

/** Cases over all files. */
const CASES = 1200;

/** The slowest honest case takes a few ms; more means a loop or an allocation that depends on a bad number. */
const DEADLINE_MS = 1000;

/** Largest growth of memory outside of the heap that one case may cause; the files are below 100 KB. */
const MAX_GROWTH_BYTES = 64 * 1024 * 1024;

/** Flips, overwrites, cuts, doubles or drops some bytes. */
function damage(bytes: Uint8Array, next: () => number): Uint8Array {
  const below = (limit: number): number => Math.floor(next() * limit);
  const copy = bytes.slice();
  const edits = 1 + below(3);
  for (let i = 0; i < edits; i++) {
    // small graphs in front of weights: half of the damage goes to the first kilobyte
    const at = below(next() < 0.5 ? Math.min(copy.length, 1024) : copy.length);
    if (next() < 0.6) copy[at] = (copy[at] ?? 0) ^ (1 << below(8));
    else copy[at] = [0, 1, 0x7f, 0x80, 0xff, below(256)][below(6)] ?? 0;
  }
  const kind = next();
  const [a, b] = [below(copy.length), below(copy.length)].sort((x, y) => x - y) as [number, number];
  if (kind < 0.15) return copy.subarray(0, a);
  if (kind < 0.2) return Uint8Array.from([...copy.subarray(0, a), ...copy.subarray(b)]);
  if (kind < 0.25) return Uint8Array.from([...copy.subarray(0, b), ...copy.subarray(a)]);
  return copy;
}

/** A little of everything: subgraphs, functions, typed data, strings, metadata. */
function mixedModel(): Uint8Array {
  const branch = (op: string) => ({
    node: [node(op, ['t'], ['o'])],
    initializer: [floats('k', [1, 2])],
    output: [value('o')],
  });
  return modelBytes(
    {
      node: [
        node('F', ['x'], ['t'], { domain: 'local', attribute: [{ name: 'k', f: 2, type: 1 }] }),
        node('If', ['c'], ['y'], {
          attribute: [
            graphAttribute('then_branch', branch('Neg')),
            graphAttribute('else_branch', branch('Relu')),
          ],
        }),
      ],
      initializer: [
        {
          name: 'i',
          dataType: 7,
          dims: [{ low: 3, high: 0 }],
          int64Data: [Uint8Array.of(1, 2, 3)],
        },
        { name: 's', dataType: 8, dims: [{ low: 1, high: 0 }], stringData: [Uint8Array.of(0x61)] },
      ],
      input: [value('x', ['batch', 'past + 1']), value('c', [], 9)],
      output: [value('y'), value('i'), value('s')],
    },
    {
      functions: [
        {
          domain: 'local',
          name: 'F',
          input: ['a'],
          output: ['b'],
          attribute: ['k'],
          node: [
            node('Elu', ['a'], ['b'], {
              attribute: [{ name: 'alpha', refAttrName: 'k', type: 1 }],
            }),
          ],
        },
      ],
    },
  );
}

test(
  `${CASES} damaged files fail with a FettleError or load as a sound model`,
  needsShared('onnx-tests'),
  () => {
    const sources = [
      mixedModel(),
      ...[
        'test_if',
        'test_loop11',
        'test_scan_sum',
        'test_constant',
        'test_lstm_with_initial_bias',
      ].map((name) => readFileSync(sharedPath('onnx-tests/node', name, 'model.onnx'))),
      readFileSync(sharedPath('onnx-tests/light/light_squeezenet/model.onnx')),
    ];
    let loaded = 0;
    for (let seed = 0; seed < CASES; seed++) {
      const source = sources[seed % sources.length] ?? new Uint8Array(0);
      const bytes = damage(Uint8Array.from(source), random(seed));
      const before = process.memoryUsage().arrayBuffers;
      const started = performance.now();
      try {
        const model = decodeModel(bytes);
        // the first writing may raise the IR version and add copies of outer values to subgraphs
        const again = decodeModel(encodeModel(model));
        const third = decodeModel(encodeModel(again));
        assert.deepEqual(outlineModel(third), outlineModel(again), `seed ${seed}`);
        loaded++;
      } catch (error) {
        assert.ok(
          error instanceof FettleError,
          `seed ${seed}: ${error instanceof Error ? error.stack : error}`,
        );
        assert.equal(error.code, 'MODEL_INVALID', `seed ${seed}: ${error.message}`);
      }
      const took = performance.now() - started;
      assert.ok(took < DEADLINE_MS, `seed ${seed} took ${took} ms`);
      const grown = process.memoryUsage().arrayBuffers - before;
      assert.ok(grown < MAX_GROWTH_BYTES, `seed ${seed} allocated ${grown} bytes`);
    }
    // both outcomes must be common, or the damage is of the wrong kind
    assert.ok(loaded > CASES / 20 && loaded < CASES * 0.95, `${loaded} of ${CASES} loaded`);
  },
);

test('300 damaged references to external data fail with a FettleError or load', () => {
  const externalData = Object.entries({ location: 'w.bin', offset: '16', length: '8' }).map(
    ([key, text]) => ({ key, value: text }),
  );
  const dims = [{ low: 2, high: 0 }];
  const source = modelBytes({
    node: [node('Add', ['x', 'w'], ['y'])],
    initializer: [{ name: 'w', dataType: 1, dims, dataLocation: 1, externalData }],
    input: [value('x')],
    output: [value('y')],
  });
  const outcomes = new Set<string>();
  for (let seed = 0; seed < 300; seed++) {
    const files = new MemoryFiles({
      'm/model.onnx': damage(source, random(seed)),
      'm/w.bin': new Uint8Array(64),
      'w.bin': new Uint8Array(64),
    });
    try {
      for (const { weight } of readModel(files, 'm/model.onnx').graph.constants) weight?.tensor();
      outcomes.add('loaded');
    } catch (error) {
      assert.ok(error instanceof FettleError, `seed ${seed}: ${String(error)}`);
      outcomes.add(error.code);
    }
  }
  assert.deepEqual([...outcomes].sort(), ['IO_FAILED', 'MODEL_INVALID', 'loaded']);
});
