/** Sessions on onnxruntime-web: run and its checks, order, canaries, figures, the end. */
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { openBundle, tensor, zeros } from '../../runtime/node.ts';
import type { Session, Tensor } from '../../runtime/node.ts';
import { fakeEngine, fettleError } from '../support/fake-engine.ts';
import type { Files } from '../support/tiny-bundle.ts';
import { decoderBundle, linearBundle, memorySource } from '../support/tiny-bundle.ts';

async function using(files: Files, use: (session: Session) => Promise<void>): Promise<void> {
  const session = await openBundle(memorySource(files));
  await use(session).finally(() => session.dispose());
}

function rows(count: number, fill: (index: number) => number): Tensor {
  return tensor(
    'f32',
    [count, 4],
    Float32Array.from({ length: count * 4 }, (_, i) => fill(i)),
  );
}

test('run gives x W + b from weights that span chunks', () =>
  using(linearBundle(), async (session) => {
    const { y } = await session.run({ x: rows(2, (i) => (i === 0 || i === 7 ? 1 : 0)) });
    assert.deepEqual(y, {
      dtype: 'f32',
      shape: [2, 3],
      data: Float32Array.of(101, 202, 303, 110, 211, 312),
    });
  }));

test('inputs of the wrong name, dtype, rank, size or storage are refused with wanted and got', () =>
  using(decoderBundle(), async (session) => {
    const long = (shape: number[]): Tensor => zeros('i64', shape);
    const inputs = {
      ids: long([1, 2]),
      mask: long([1, 5]),
      positions: long([1, 2]),
      past: zeros('f32', [1, 1, 3, 1]),
    };
    await session.run(inputs);
    const refused: readonly [RegExp, Record<string, unknown>][] = [
      [/Input "ids" is missing: wanted i64 \[batch, sequence\]/, { ids: undefined }],
      [/no input "idz"; it has ids, mask, positions, past/, { idz: inputs.ids }],
      [
        /"ids" does not fit: wanted i64 \[batch, sequence\], got i32 \[1, 2\]/,
        { ids: zeros('i32', [1, 2]) },
      ],
      [/wanted i64 \[batch, sequence\], got i64 \[2\]/, { ids: long([2]) }],
      [
        /"past" does not fit: wanted size 1 along axis 1, got 2/,
        { past: zeros('f32', [1, 2, 3, 1]) },
      ],
      [
        /"positions" does not fit: wanted size 2 \(sequence\) along axis 1, got 3/,
        { positions: long([1, 3]) },
      ],
      [
        /"mask" does not fit: wanted size 5 \(past \+ sequence\) along axis 1, got 4/,
        { mask: long([1, 4]) },
      ],
      [/wanted size 1 \(batch\) along axis 0, got 2/, { past: zeros('f32', [2, 1, 3, 1]) }],
      [
        /"ids" is inconsistent: data.length: wanted 2/,
        { ids: { dtype: 'i64', shape: [1, 2], data: new BigInt64Array(3) } },
      ],
      [
        /"ids" is inconsistent: data of i64: wanted BigInt64Array/,
        { ids: { dtype: 'i64', shape: [1, 2], data: new Int32Array(2) } },
      ],
    ];
    for (const [message, change] of refused)
      await assert.rejects(
        session.run({ ...inputs, ...change } as Record<string, Tensor>),
        fettleError('USAGE', message),
        String(message),
      );
    await assert.rejects(session.run({ ...inputs, ids: 5 as unknown as Tensor }), TypeError);
    await assert.rejects(session.run(null as unknown as Record<string, Tensor>), TypeError);
    await session.run(inputs);
  }));

test('calls of one session queue up, and two sessions run at once', async () => {
  const [first, second] = await Promise.all([
    openBundle(memorySource(linearBundle())),
    openBundle(memorySource(decoderBundle())),
  ]);
  const runs = Array.from({ length: 8 }, (_, i) => first.run({ x: rows(1, () => i) }));
  const text = second.generate([1, 2], { maxTokens: 3 }).result();
  const results = await Promise.all(runs);
  results.forEach(({ y }, i) =>
    assert.deepEqual(y?.data, Float32Array.of(100 + 22 * i, 200 + 26 * i, 300 + 30 * i)),
  );
  assert.deepEqual((await text).tokens, [3, 6, 4]);
  await Promise.all([first.dispose(), second.dispose()]);
});

test('an aborted run rejects with the reason, and the next one works', () =>
  using(linearBundle(), async (session) => {
    const x = rows(1, () => 0);
    await assert.rejects(session.run({ x }, { signal: AbortSignal.abort() }), {
      name: 'AbortError',
    });
    assert.deepEqual((await session.run({ x }))['y']?.data, Float32Array.of(100, 200, 300));
  }));

test('after dispose every call says so, and dispose may be repeated', async () => {
  const session = await openBundle(memorySource(decoderBundle()));
  const waiting = session.generate([1]).result();
  await Promise.all([session.dispose(), session.dispose()]);
  await session.dispose();
  const disposed = fettleError('USAGE', /has been disposed/);
  await assert.rejects(waiting, disposed);
  await assert.rejects(session.run({}), disposed);
  await assert.rejects(session.logits([1]), disposed);
  await assert.rejects(session.check(), disposed);
  await assert.rejects(session.reset(), disposed);
  assert.throws(() => session.generate([1]), disposed);
  assert.throws(() => session.measure(), disposed);
  assert.equal(session.manifest.model.name, 'tiny');
});

/** A canary file as docs/bundle.md says. */
function canaryFile(y: number[], shape = [1, 3]): Uint8Array {
  const header = new TextEncoder().encode(
    JSON.stringify({
      cases: [
        {
          inputs: { x: { dtype: 'f32', shape: [1, 4], offset: 0, bytes: 16 } },
          outputs: { y: { dtype: 'f32', shape, offset: 16, bytes: 12 } },
        },
      ],
    }),
  );
  const start = Math.ceil((4 + header.length) / 16) * 16;
  const file = new Uint8Array(start + 28);
  new DataView(file.buffer).setUint32(0, header.length, true);
  file.set(header, 4);
  file.set(new Uint8Array(Float32Array.of(1, 0, 0, 0, ...y).buffer), start);
  return file;
}

function withCanary(file: Uint8Array): Files {
  return linearBundle({
    files: { 'canaries.bin': file },
    canaries: { file: 'canaries.bin', tolerance: 0.01 },
  });
}

test('check replays canaries and reports the largest error of each output', async () => {
  // Range 303 - 101 = 202, so 2.02 is accepted.
  for (const [off, passed] of [
    [0, true],
    [2, true],
    [3, false],
    [NaN, false],
  ] as const)
    await using(withCanary(canaryFile([101 + off, 202, 303])), async (session) => {
      const report = await session.check();
      assert.equal(report.passed, passed, `${off}`);
      assert.equal(report.results[0]?.output, 'y');
      if (!Number.isNaN(off)) assert.equal(report.results[0]?.maxError, off);
    });
  await using(withCanary(canaryFile([101, 202, 303], [3, 1])), async (session) => {
    assert.equal((await session.check()).results[0]?.maxError, Infinity);
  });
});

test('a bundle without canaries, or with broken ones, says so', async () => {
  await using(linearBundle(), (session) =>
    assert.rejects(session.check(), fettleError('USAGE', /carries no canaries/)),
  );
  const good = canaryFile([1, 2, 3]);
  for (const file of [good.subarray(0, 3), good.subarray(0, 40), good.subarray(0, good.length - 4)])
    await using(withCanary(file), (session) =>
      assert.rejects(session.check(), fettleError('BUNDLE_CORRUPT')),
    );
});

test('measure reports load, latency and memory with the origin of each figure', () =>
  using(linearBundle(), async (session) => {
    assert.equal(session.measure().latencyMs, undefined);
    for (let i = 0; i < 5; i++) await session.run({ x: rows(1, () => i) });
    const { loadMs, latencyMs, memoryBytes, memorySource } = session.measure();
    assert.ok(loadMs > 0);
    assert.equal(latencyMs?.samples, 5);
    assert.ok(latencyMs.median > 0 && latencyMs.p95 >= latencyMs.median);
    assert.equal(memoryBytes.weights, 268);
    assert.ok(memoryBytes.peak > 2 ** 20);
    assert.deepEqual(memorySource, {
      weights: 'estimated',
      arena: 'estimated',
      state: 'counted',
      peak: 'process',
    });
  }));

test('a model that onnxruntime-web refuses is OP_UNSUPPORTED with its message', async () => {
  const graph = linearBundle().get('model.onnx');
  assert.ok(graph);
  const text = new TextDecoder('latin1').decode(graph).replace('MatMul', 'MatMuk');
  const broken = Uint8Array.from(text, (character) => character.charCodeAt(0));
  await assert.rejects(
    openBundle(memorySource(linearBundle({ graph: broken }))),
    fettleError('OP_UNSUPPORTED', /MatMuk/),
  );
});

test('an engine that cannot be loaded is ENGINE_UNAVAILABLE', () =>
  assert.rejects(
    openBundle(memorySource(linearBundle()), {
      ort: { module: () => Promise.reject(new Error('no such package')) },
    }),
    fettleError('ENGINE_UNAVAILABLE', /no such package/),
  ));

test('a bundle for WebGPU is refused where there is none, unless another provider is asked for', async () => {
  const files = linearBundle({ provider: 'webgpu' });
  await assert.rejects(
    openBundle(memorySource(files)),
    fettleError('ENGINE_UNAVAILABLE', /this host has no adapter/),
  );
  const session = await openBundle(memorySource(files), { ort: { provider: 'wasm' } });
  await session.run({ x: rows(1, () => 0) });
  await session.dispose();
});

test('an engine failure in a run reaches the caller and leaves the session usable', async () => {
  let fail = true;
  const engine = fakeEngine({
    run: () =>
      fail ? Promise.reject(new Error('out of order')) : Promise.resolve({ outputs: {}, held: {} }),
  });
  const session = await openBundle(memorySource(linearBundle()), { engine });
  await assert.rejects(session.run({ x: rows(1, () => 0) }), /out of order/);
  fail = false;
  assert.deepEqual(await session.run({ x: rows(1, () => 0) }), {});
  await session.dispose();
  assert.equal(engine.counts.disposed, 1);
});
