/** Downloads from a local server that breaks, changes and lies. */
import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { download } from '../../compiler/node-download.ts';
import { FettleError } from '../../runtime/errors.ts';
import type { FileServer, ServedFile } from '../support/file-server.ts';
import { serveFiles } from '../support/file-server.ts';

const bytes = Uint8Array.from({ length: 300_000 }, (_, i) => (i * i) >> 3);
const fast = { retryDelayMs: 1 };

describe('download', () => {
  let server: FileServer;
  let folder: string;
  let count = 0;
  before(async () => {
    server = await serveFiles({});
    folder = mkdtempSync(join(tmpdir(), 'fettle-download-'));
  });
  after(async () => {
    await server.close();
    rmSync(folder, { recursive: true });
  });

  /** Puts a file on the server; returns its address and a new place for it. */
  function serve(file: Partial<ServedFile> = {}): { url: URL; file: string; served: ServedFile } {
    const name = `/file-${++count}.onnx`;
    const served = { bytes, ...file };
    server.files.set(name, served);
    server.requests.length = 0;
    return { url: new URL(name, server.origin), file: join(folder, name), served };
  }

  it('brings a file and reports how far it is', async () => {
    const { url, file } = serve();
    const seen: [number, number][] = [];
    const result = await download(url, file, {
      progress: (what, done, total) => {
        assert.match(what, /file-\d+\.onnx/);
        seen.push([done, total]);
      },
    });
    assert.equal(result, 'downloaded');
    assert.deepEqual(new Uint8Array(readFileSync(file)), bytes);
    assert.deepEqual(seen.at(-1), [bytes.length, bytes.length]);
    for (const leftover of ['.part', '.part.json', '.lock'])
      assert.ok(!existsSync(file + leftover));
  });

  it('goes on where the connection broke, twice', async () => {
    const { url, file } = serve({ etag: '"v1"', cuts: [100_000, 50_000] });
    assert.equal(await download(url, file, fast), 'downloaded');
    assert.deepEqual(new Uint8Array(readFileSync(file)), bytes);
    const ranges = server.requests.map((line) => line.split(' ')[2]);
    assert.deepEqual(ranges, [undefined, 'bytes=100000-', 'bytes=150000-']);
  });

  it('goes on in a later run, by date when there is no entity tag', async () => {
    const lastModified = 'Mon, 02 Jan 2006 15:04:05 GMT';
    const { url, file } = serve({ lastModified, cuts: [120_000] });
    await assert.rejects(download(url, file, stopAt(120_000)));
    assert.ok(!existsSync(file));
    assert.equal(readFileSync(`${file}.part`).length, 120_000);
    assert.equal(await download(url, file), 'downloaded');
    assert.deepEqual(new Uint8Array(readFileSync(file)), bytes);
    assert.equal(server.requests.at(-1), `GET ${url.pathname} bytes=120000-`);
  });

  it('starts again when the file changed in between', async () => {
    const { url, file, served } = serve({ etag: '"v1"', cuts: [100_000] });
    await assert.rejects(download(url, file, stopAt(100_000)));
    served.bytes = bytes.map((byte) => byte ^ 1);
    served.etag = '"v2"';
    assert.equal(await download(url, file), 'downloaded');
    assert.deepEqual(new Uint8Array(readFileSync(file)), served.bytes);
  });

  it('starts again when the server knows no ranges, or gives nothing to compare', async () => {
    for (const kind of [{ etag: '"v1"', ranges: false }, {}, { etag: 'W/"weak"' }]) {
      const { url, file } = serve({ ...kind, cuts: [70_000] });
      assert.equal(await download(url, file, fast), 'downloaded');
      assert.deepEqual(new Uint8Array(readFileSync(file)), bytes);
    }
  });

  it('asks once more for a complete file and keeps it when nothing changed', async () => {
    for (const kind of [{ etag: '"v1"' }, { lastModified: 'Mon, 02 Jan 2006 15:04:05 GMT' }, {}]) {
      const { url, file, served } = serve(kind);
      await download(url, file);
      assert.equal(await download(url, file), 'unchanged');
      served.bytes = Uint8Array.of(1, 2, 3);
      if ('etag' in kind) served.etag = '"v2"';
      if ('lastModified' in kind) served.lastModified = 'Tue, 03 Jan 2006 15:04:05 GMT';
      assert.equal(await download(url, file), 'downloaded');
      assert.deepEqual([...readFileSync(file)], [1, 2, 3]);
    }
  });

  it('does not trust a cached file whose bytes have changed', async () => {
    const { url, file } = serve({ etag: '"v1"' });
    await download(url, file);
    const damaged = Buffer.from(bytes);
    damaged[1234] = (damaged[1234] ?? 0) ^ 1;
    writeFileSync(file, damaged);
    assert.equal(await download(url, file), 'downloaded');
    assert.deepEqual(new Uint8Array(readFileSync(file)), bytes);
  });

  it('uses the cached file when the server is down, and says so', async () => {
    const lonely = await serveFiles({ '/a.onnx': { bytes, etag: '"v1"' } });
    const url = new URL('/a.onnx', lonely.origin);
    const file = join(folder, 'lonely.onnx');
    await download(url, file);
    await lonely.close();
    const warnings: string[] = [];
    const options = { ...fast, warn: (message: string) => void warnings.push(message) };
    assert.equal(await download(url, file, options), 'offline');
    assert.match(warnings.join(), /cannot be reached/);
    await assert.rejects(
      download(url, join(folder, 'other.onnx'), fast),
      io(/Cannot download .*a\.onnx/, /connection/),
    );
  });

  it('tries again after 503, and gives up after three', async () => {
    const { url, file } = serve({ failures: [503, 503] });
    assert.equal(await download(url, file, fast), 'downloaded');
    const broken = serve({ failures: [500, 502, 503, 504] });
    await assert.rejects(download(broken.url, broken.file, fast), io(/answered 503/, /address/));
    assert.equal(server.requests.length, 3);
  });

  it('says what is wrong with 404 and 403, at once', async () => {
    const { url, file } = serve({ failures: [403] });
    await assert.rejects(download(url, file), io(/answered 403/, /local file/));
    const missing = new URL('/nothing.onnx', server.origin);
    await assert.rejects(download(missing, file), io(/answered 404/, /address/));
    assert.equal(await download(missing, file, { optional: true }), 'absent');
    assert.equal(server.requests.length, 3);
  });

  it('does not take a web page for a model', async () => {
    const { url, file } = serve({ type: 'text/html; charset=utf-8' });
    await assert.rejects(download(url, file), io(/web page/, /resolve\/main/));
    assert.equal(await download(url, file, { optional: true }), 'absent');
  });

  it('refuses a file that is shorter than announced', async () => {
    const { length } = bytes;
    const { url, file } = serve({
      claimedLength: length + 10,
      cuts: [length, length, length, length],
    });
    await assert.rejects(
      download(url, file, fast),
      io(new RegExp(`broke after ${length} of ${length + 10} bytes`), /Run it again/),
    );
    assert.ok(!existsSync(file));
  });

  it(
    'says when the disk is full',
    { skip: existsSync('/dev/full') ? false : 'no /dev/full' },
    async () => {
      const { url, file } = serve({ etag: '"v1"' });
      symlinkSync('/dev/full', `${file}.part`);
      await assert.rejects(download(url, file, fast), io(/disk is full/, /Free some space/));
    },
  );

  it('stops when told to, and can go on', async () => {
    const { url, file } = serve({ etag: '"v1"', cuts: [90_000] });
    await assert.rejects(download(url, file, stopAt(1)), { name: 'AbortError' });
    assert.equal(await download(url, file), 'downloaded');
    assert.deepEqual(new Uint8Array(readFileSync(file)), bytes);
    const already = AbortSignal.abort(new Error('enough'));
    await assert.rejects(download(url, file, { signal: already }), /enough/);
  });

  it('does not write a file that another process is writing, unless that one is gone', async () => {
    const { url, file } = serve();
    writeFileSync(`${file}.lock`, String(process.pid));
    await assert.rejects(download(url, file), io(new RegExp(`by process ${process.pid}`), /Wait/));
    writeFileSync(`${file}.lock`, '999999999');
    assert.equal(await download(url, file), 'downloaded');
  });

  it('shows no secret of an address', async () => {
    const url = new URL('/secret.onnx?token=hunter2', server.origin);
    await assert.rejects(
      download(url, join(folder, 'secret.onnx')),
      (error) => error instanceof FettleError && !JSON.stringify(error).includes('hunter2'),
    );
  });
});

/** Options that abort once so many bytes have arrived. */
function stopAt(wanted: number): {
  signal: AbortSignal;
  progress: (w: string, done: number) => void;
} {
  const controller = new AbortController();
  return {
    signal: controller.signal,
    progress: (_, done) => {
      if (done >= wanted) controller.abort();
    },
  };
}

function io(message: RegExp, fix: RegExp): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof FettleError, String(error));
    assert.equal(error.code, 'IO_FAILED');
    assert.match(error.message, message);
    assert.match(error.fix ?? '', fix);
    return true;
  };
}
