/** Opening bundles: every kind of source, progress, abort, and everything that can be wrong with one. */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import type { RequestListener } from 'node:http';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { pathToFileURL } from 'node:url';

import type { LoadProgress, OpenOptions, SourceLike } from '../../runtime/index.ts';
import { openBundle as openWeb } from '../../runtime/index.ts';
import { directorySource, openBundle, processMemory } from '../../runtime/node.ts';
import { fakeEngine, fettleError } from '../support/fake-engine.ts';
import type { Files } from '../support/tiny-bundle.ts';
import {
  linearBundle,
  manifestOf,
  memorySource,
  packTar,
  setManifest,
} from '../support/tiny-bundle.ts';

/** Opens with a fake engine and returns the weights that arrived. */
async function load(
  from: SourceLike,
  options: OpenOptions = {},
  open = openBundle,
): Promise<number[]> {
  const engine = fakeEngine();
  const session = await open(from, { engine, ...options });
  await session.dispose();
  return [...new Float32Array(engine.weights?.slice().buffer ?? new ArrayBuffer(0))];
}

const expected = [
  ...Array.from({ length: 12 }, (_, i) => i + 1),
  ...Array.from({ length: 52 }, () => 0),
  100,
  200,
  300,
];

function inFolder(files: Files, use: (folder: string) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'fettle-open-'));
  for (const [path, bytes] of files) {
    mkdirSync(dirname(join(folder, path)), { recursive: true });
    writeFileSync(join(folder, path), bytes);
  }
  return use(folder).finally(() => rmSync(folder, { recursive: true }));
}

async function served(
  listener: RequestListener,
  use: (origin: string) => Promise<void>,
): Promise<void> {
  const server = createServer(listener).listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  try {
    await use(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  } finally {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  }
}

/** Serves files, with or without range requests; remembers what was asked. */
function fileServer(files: Files, ranges: boolean, asked: string[] = []): RequestListener {
  return ({ url = '', headers }, response) => {
    const bytes = files.get(url.replace(/^\/(?:bundle\/)?/, '').replace(/\?.*/, ''));
    asked.push(`${url} ${headers.range ?? ''}`);
    if (bytes === undefined) return void response.writeHead(404).end();
    const range = ranges ? /bytes=(\d+)-(\d+)/.exec(headers.range ?? '') : null;
    if (range === null) return void response.end(bytes);
    const [start, end] = [Number(range[1]), Math.min(Number(range[2]) + 1, bytes.length)];
    response.writeHead(206, { 'content-range': `bytes ${start}-${end - 1}/${bytes.length}` });
    response.end(bytes.subarray(start, end));
  };
}

test('a bundle opens from a source, bytes, an ArrayBuffer and a Blob', async () => {
  const files = linearBundle();
  const packed = packTar(files);
  assert.deepEqual(await load(memorySource(files)), expected);
  assert.deepEqual(await load(packed), expected);
  assert.deepEqual(await load(packed.buffer), expected);
  assert.deepEqual(await load(new Blob([packed])), expected);
  assert.deepEqual(await load(packed, {}, openWeb), expected);
});

test('a bundle opens from a folder, a file URL and a packed file on disk', () =>
  inFolder(linearBundle(), async (folder) => {
    assert.deepEqual(await load(folder), expected);
    assert.deepEqual(await load(pathToFileURL(folder)), expected);
    const packed = join(folder, 'tiny.fettle');
    writeFileSync(packed, packTar(linearBundle()));
    assert.deepEqual(await load(packed), expected);
  }));

test('a bundle opens from the URL of its folder, with or without slash, and of its manifest', () =>
  served(fileServer(linearBundle(), false), async (origin) => {
    for (const path of ['/bundle', '/bundle/', '/bundle/manifest.json', '/bundle/?token=1'])
      assert.deepEqual(await load(origin + path), expected, path);
    assert.deepEqual(await load(new URL('/bundle', origin), {}, openWeb), expected);
  }));

test('a packed bundle opens from a URL with range requests', () => {
  const asked: string[] = [];
  // Large enough that not everything arrives with the first request.
  const packed = packTar(linearBundle({ files: { 'big.bin': new Uint8Array(400_000) } }));
  const files: Files = new Map([['tiny.fettle', packed]]);
  return served(fileServer(files, true, asked), async (origin) => {
    assert.deepEqual(await load(`${origin}/tiny.fettle`), expected);
    assert.ok(asked.length > 1 && asked.every((request) => request.includes('bytes=')), `${asked}`);
  });
});

test('a packed bundle opens from a URL without range requests', () =>
  served(fileServer(new Map([['tiny.fettle', packTar(linearBundle())]]), false), async (origin) =>
    assert.deepEqual(await load(`${origin}/tiny.fettle`), expected),
  ));

test('a packed bundle opens from another origin that hides its size', () => {
  const packed = packTar(linearBundle());
  const hiding: RequestListener = ({ headers }, response) => {
    if (headers.range === undefined) response.end(packed);
    else response.writeHead(206).end(packed.subarray(0, 512));
  };
  return served(hiding, async (origin) =>
    assert.deepEqual(await load(`${origin}/tiny.fettle`), expected),
  );
});

test('progress counts every byte once and ends with ready', async () => {
  const seen: LoadProgress[] = [];
  await load(memorySource(linearBundle()), { onProgress: (progress) => seen.push(progress) });
  const { totalBytes } = seen[0] ?? { totalBytes: 0 };
  assert.ok(totalBytes > 268);
  assert.deepEqual(seen.at(-1), { stage: 'ready', loadedBytes: totalBytes, totalBytes });
  assert.ok(seen.every(({ loadedBytes }, i) => loadedBytes >= (seen[i - 1]?.loadedBytes ?? 0)));
});

test('chunks of small weights are asked for and read one after the other', async () => {
  const files = linearBundle({ weights: { w: new Float32Array(600).fill(1) }, chunkBytes: 256 });
  const chunks = [...files.keys()].filter((path) => path.startsWith('weights'));
  const log: string[] = [];
  const read = (path: string): Promise<ReadableStream<Uint8Array>> => {
    let left = files.get(path) ?? new Uint8Array(0);
    log.push(`ask ${path}`);
    const pull = (controller: ReadableByteStreamController): void => {
      log.push(`read ${path}`);
      controller.enqueue(left.slice(0, 100));
      left = left.subarray(100);
      if (left.length === 0) controller.close();
    };
    return Promise.resolve(new ReadableStream({ type: 'bytes', pull }));
  };
  const session = await openBundle({ name: 'streams', read }, { engine: fakeEngine() });
  await session.dispose();
  // repetitions left out, what is logged is one chunk after the other
  const own = log.filter(
    (line, i) => chunks.some((path) => line.endsWith(path)) && line !== log[i - 1],
  );
  assert.deepEqual(
    own,
    chunks.flatMap((path) => [`ask ${path}`, `read ${path}`]),
  );
});

test('a flipped byte in any file is found by its hash, unless verify is off', async () => {
  for (const path of ['weights-00.bin', 'weights-01.bin', 'model.onnx']) {
    const files = linearBundle();
    const bytes = files.get(path);
    assert.ok(bytes);
    bytes[7] = (bytes[7] ?? 0) ^ 4;
    const error = fettleError(
      'BUNDLE_CORRUPT',
      new RegExp(`"${path}" has changed: wanted SHA-256`),
    );
    await assert.rejects(load(memorySource(files)), error);
    await assert.rejects(load(packTar(files)), error);
    await assert.rejects(load(memorySource(files), {}, openWeb), error);
    await load(memorySource(files), { verify: false });
    await load(memorySource(files), { verify: false }, openWeb);
  }
});

test('a missing chunk is named, from every kind of source', async () => {
  const files = linearBundle();
  files.delete('weights-01.bin');
  const error = fettleError('BUNDLE_CORRUPT', /Cannot find "weights-01.bin"/);
  await assert.rejects(load(memorySource(files)), error);
  await assert.rejects(load(packTar(files)), error);
  await inFolder(files, (folder) => assert.rejects(load(folder), error));
  await served(fileServer(files, false), (origin) =>
    assert.rejects(load(`${origin}/bundle`), error),
  );
});

test('a truncated or longer chunk is named with both sizes', async () => {
  for (const [change, got] of [
    [-1, '67'],
    [1, '69'],
  ] as const) {
    const files = linearBundle();
    const grown = new Uint8Array(68 + change);
    files.set('weights-01.bin', grown);
    const error = fettleError('BUNDLE_CORRUPT', /"weights-01.bin" has the wrong size: wanted 68/);
    await assert.rejects(load(memorySource(files)), error);
    await assert.rejects(
      load(packTar(files)),
      fettleError('BUNDLE_CORRUPT', new RegExp(`got ${got}`)),
    );
    await inFolder(files, (folder) => assert.rejects(load(folder), error));
  }
});

test('a newer version is refused by name', async () => {
  const files = linearBundle();
  setManifest(files, { ...manifestOf(files), version: 2, inputs: 'another shape altogether' });
  await assert.rejects(
    load(memorySource(files)),
    fettleError('BUNDLE_CORRUPT', /written in format version 2; this runtime reads version 1/),
  );
});

test('something that is no bundle says so', async () => {
  const corrupt = fettleError('BUNDLE_CORRUPT');
  await assert.rejects(load(new Uint8Array(0)), corrupt);
  await assert.rejects(load(new Uint8Array(5000).fill(7)), corrupt);
  await assert.rejects(load(memorySource(new Map())), corrupt);
  const html: Files = new Map([['manifest.json', new TextEncoder().encode('<!doctype html>')]]);
  await assert.rejects(load(memorySource(html)), fettleError('BUNDLE_CORRUPT', /is not JSON/));
  await assert.rejects(load('/no/such/folder'), fettleError('IO_FAILED', /no such file or folder/));
  await assert.rejects(load('bundle', {}, openWeb), fettleError('USAGE', /is not a URL/));
  // @ts-expect-error a number is no source
  await assert.rejects(load(5), TypeError);
});

test('paths that leave the bundle are refused, links included', () =>
  inFolder(linearBundle(), async (folder) => {
    for (const path of [
      '../weights-00.bin',
      '/etc/passwd',
      'a/../../b',
      'C:\\x',
      '.hidden',
      'a%2fb',
      '',
    ]) {
      const files = linearBundle();
      const manifest = manifestOf(files);
      manifest.weights.files[0].path = path;
      setManifest(files, manifest);
      await assert.rejects(
        load(memorySource(files)),
        fettleError('BUNDLE_CORRUPT', /weights.files\[0\].path/),
      );
    }
    const outside = `${folder}-outside`;
    writeFileSync(outside, linearBundle().get('weights-00.bin') ?? '');
    rmSync(join(folder, 'weights-00.bin'));
    symlinkSync(outside, join(folder, 'weights-00.bin'));
    await assert.rejects(
      load(folder),
      fettleError('BUNDLE_CORRUPT', /leads out of the bundle folder/),
    );
    await assert.rejects(
      directorySource(folder).read('../../etc/passwd', {}),
      fettleError('BUNDLE_CORRUPT', /leads out|Cannot find/),
    );
    rmSync(outside);
  }));

test('an archive with a bad header, a link or a repeated path is refused', async () => {
  const spoil = async (message: RegExp, change: (packed: Uint8Array) => void): Promise<void> => {
    const packed = packTar(linearBundle());
    change(packed);
    await assert.rejects(load(packed), fettleError('BUNDLE_CORRUPT', message));
  };
  await spoil(/ustar header/, (packed) => packed.fill(0x20, 257, 262));
  await spoil(/checksum/, (packed) => packed.set([0x71], 3));
  await spoil(/regular file/, (packed) => {
    packed[156] = 0x32; // a symbolic link
    packed.set(new TextEncoder().encode(checksum(packed.subarray(0, 512))), 148);
  });
  const twice = linearBundle();
  const packed = Buffer.concat([packTar(twice).subarray(0, -1024), packTar(twice)]);
  await assert.rejects(
    load(new Uint8Array(packed)),
    fettleError('BUNDLE_CORRUPT', /every path once/),
  );
  const cut = packTar(linearBundle());
  await assert.rejects(
    load(cut.slice(0, cut.length - 1024)),
    fettleError('BUNDLE_CORRUPT', /end mark/),
  );
});

function checksum(header: Uint8Array): string {
  const sum = header.reduce((total, byte, i) => total + (i >= 148 && i < 156 ? 32 : byte), 0);
  return `${sum.toString(8).padStart(6, '0')}\0 `;
}

test('abort during the load rejects with the reason and cleans up', async () => {
  const engine = fakeEngine();
  const abort = new AbortController();
  const reason = new Error('the user left');
  await assert.rejects(
    openBundle(memorySource(linearBundle()), {
      engine,
      signal: abort.signal,
      onProgress: ({ stage, loadedBytes }) => {
        if (stage === 'download' && loadedBytes > 200) abort.abort(reason);
      },
    }),
    reason,
  );
  assert.deepEqual(engine.counts, { started: 0, disposed: 0, abandoned: 1 });
  await assert.rejects(
    load(memorySource(linearBundle()), { signal: AbortSignal.abort(reason) }),
    reason,
  );
});

test('abort while the engine prepares disposes the program', async () => {
  const engine = fakeEngine();
  const abort = new AbortController();
  const opened = openBundle(memorySource(linearBundle()), {
    engine,
    signal: abort.signal,
    onProgress: ({ stage }) => stage === 'prepare' && abort.abort(),
  });
  await assert.rejects(opened, { name: 'AbortError' });
  assert.deepEqual(engine.counts, { started: 1, disposed: 1, abandoned: 1 });
});

test('abort ends a download that hangs', () =>
  served(
    ({ url = '' }, response) => {
      const bytes = linearBundle().get(url.slice(1));
      // The last chunk never ends.
      if (url.endsWith('01.bin')) response.write(bytes?.subarray(0, 5));
      else response.end(bytes);
    },
    async (origin) => {
      const signal = AbortSignal.timeout(200);
      await assert.rejects(load(origin, { signal }), { name: 'TimeoutError' });
    },
  ));

test('a server error and a dead server are IO_FAILED', async () => {
  const broken: RequestListener = (_, response) => void response.writeHead(503).end();
  let origin = '';
  await served(broken, async (here) => {
    origin = here;
    await assert.rejects(load(origin), fettleError('IO_FAILED', /the server answered 503/));
  });
  await assert.rejects(load(origin), fettleError('IO_FAILED', /could not be reached/));
  const failing = {
    ...memorySource(new Map()),
    read: () => Promise.reject(new Error('disk on fire')),
  };
  await assert.rejects(load(failing), fettleError('IO_FAILED', /disk on fire/));
});

test('an engine this runtime does not have is refused by name', async () => {
  const files = linearBundle();
  setManifest(files, { ...manifestOf(files), engine: 'webgpu' });
  await assert.rejects(
    openBundle(memorySource(files)),
    fettleError('ENGINE_UNAVAILABLE', /it needs engine "webgpu"/),
  );
});

test('loading a folder takes the weights and less than a fifth more', async () => {
  const bytes = 64 * 2 ** 20;
  const weights = { w: new Float32Array(bytes / 4).fill(1.5) };
  await inFolder(linearBundle({ weights, chunkBytes: 2 ** 23 }), async (folder) => {
    weights.w = new Float32Array(0);
    globalThis.gc?.();
    const before = process.memoryUsage.rss();
    let most = 0;
    const onProgress = (): void => void (most = Math.max(most, process.memoryUsage.rss() - before));
    const session = await openBundle(folder, { engine: fakeEngine(), onProgress });
    await session.dispose();
    // Resident memory, so an earlier garbage buffer may be collected meanwhile; it cannot read too high
    // by more than what other tests allocate, and they do not run at the same time.
    assert.ok(most <= 1.2 * bytes, `peak ${most} for ${bytes} bytes of weights`);
  });
  assert.ok(processMemory().peakBytes >= bytes);
});
