import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import type { TestContext } from 'node:test';
import { test } from 'node:test';
import type { FileSystem } from '../../compiler/files.ts';
import { MemoryFiles, readFile, writeFile } from '../../compiler/files.ts';
import { NodeFiles } from '../../compiler/node.ts';
import { assertFails } from '../support/errors.ts';

/** Both file systems, each with an empty folder to work in. */
function systems(t: TestContext): { files: FileSystem; folder: string }[] {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fettle-files-'));
  const onDisk = new NodeFiles();
  const inMemory = new MemoryFiles();
  inMemory.makeDirectory('/work');
  t.after(() => {
    onDisk.close();
    fs.rmSync(folder, { recursive: true });
  });
  return [
    { files: onDisk, folder },
    { files: inMemory, folder: '/work' },
  ];
}

const bytes = Uint8Array.from({ length: 1000 }, (_, i) => i & 0xff);

test('files can be written, looked at, read in parts, renamed, listed and removed', (t) => {
  for (const { files, folder } of systems(t)) {
    files.makeDirectory(`${folder}/a/b`);
    files.makeDirectory(`${folder}/a/b`);
    writeFile(files, `${folder}/a/b/one.bin`, bytes);
    assert.deepEqual(files.stat(`${folder}/a/b/one.bin`), { bytes: 1000, kind: 'file' });
    assert.deepEqual(files.stat(`${folder}/a`), { bytes: 0, kind: 'directory' });
    assert.equal(files.stat(`${folder}/c`), undefined);
    assert.deepEqual([...files.read(`${folder}/a/b/one.bin`, 10, 3)], [10, 11, 12]);
    assert.deepEqual(readFile(files, `${folder}/a/../a/b/one.bin`).length, 1000);
    files.rename(`${folder}/a/b/one.bin`, `${folder}/a/two.bin`);
    assert.deepEqual(files.list(`${folder}/a`), ['b', 'two.bin']);
    assert.equal(files.realPath(`${folder}/a/./two.bin`), `${files.realPath(folder)}/a/two.bin`);
    files.remove(`${folder}/a`);
    files.remove(`${folder}/a`);
    assert.deepEqual(files.list(folder), []);
  }
});

test('what cannot be read is IO_FAILED, without allocating what was asked for', (t) => {
  for (const { files, folder } of systems(t)) {
    writeFile(files, `${folder}/f`, bytes);
    assertFails(() => files.read(`${folder}/f`, 999, 2), 'IO_FAILED', /1000 bytes/);
    assertFails(() => files.read(`${folder}/f`, 0, 2 ** 45), 'IO_FAILED', /1000 bytes/);
    assertFails(() => files.read(`${folder}/none`, 0, 1), 'IO_FAILED', /nothing is there/);
    assertFails(() => readFile(files, folder), 'IO_FAILED', /directory/);
    assertFails(() => files.list(`${folder}/none`), 'IO_FAILED', /./);
    assertFails(() => files.realPath(`${folder}/none`), 'IO_FAILED', /./);
    assertFails(() => files.rename(`${folder}/none`, `${folder}/x`), 'IO_FAILED', /./);
    assertFails(() => files.create(`${folder}/none/x`), 'IO_FAILED', /./);
    assertFails(() => files.makeDirectory(`${folder}/f`), 'IO_FAILED', /./);
  }
});

test('a file appears when it is complete, and an aborted one never', (t) => {
  for (const { files, folder } of systems(t)) {
    writeFile(files, `${folder}/f`, Uint8Array.of(1));
    const writer = files.create(`${folder}/f`);
    writer.write(bytes);
    assert.deepEqual([...readFile(files, `${folder}/f`)], [1], 'the old contents until the end');
    writer.close();
    assert.equal(readFile(files, `${folder}/f`).length, 1000, 'a file kept open is opened again');
    const aborted = files.create(`${folder}/g`);
    aborted.write(bytes);
    aborted.abort();
    aborted.abort();
    assert.deepEqual(files.list(folder), ['f']);
  }
});

test('a full disk is IO_FAILED and leaves nothing behind', (t) => {
  const [{ files, folder } = assert.fail()] = systems(t);
  writeFile(files, `${folder}/f`, Uint8Array.of(1));
  let calls = 0;
  const { writeSync } = fs;
  // a real full disk needs a mount; this is what Node throws on one, in the middle of a file
  t.mock.method(fs, 'writeSync', (...args: Parameters<typeof writeSync>): number => {
    if (++calls < 2) return writeSync(...args);
    throw Object.assign(new Error('ENOSPC: no space left on device, write'), { code: 'ENOSPC' });
  });
  const writer = files.create(`${folder}/f`);
  writer.write(bytes);
  const error = assertFails(() => writer.write(bytes), 'IO_FAILED', /no space left/);
  assert.match(error.fix ?? '', /space/);
  assert.deepEqual(files.list(folder), ['f']);
  assert.deepEqual([...readFile(files, `${folder}/f`)], [1], 'what was there stays');
  assertFails(() => writer.write(bytes), 'IO_FAILED', /closed/);
});

test('a folder that cannot be written to is IO_FAILED', (t) => {
  const [{ files, folder } = assert.fail()] = systems(t);
  fs.writeFileSync(`${folder}/file`, '');
  // below a file nobody can write, not even root
  assertFails(() => files.create(`${folder}/file/x`), 'IO_FAILED', /file\/x/);
  assertFails(() => files.makeDirectory(`${folder}/file/x`), 'IO_FAILED', /file\/x/);
});

test('more files than are kept open can be read', (t) => {
  const [{ files, folder } = assert.fail()] = systems(t);
  for (let i = 0; i < 40; i++) fs.writeFileSync(`${folder}/${i}`, Uint8Array.of(i));
  for (let i = 0; i < 80; i++)
    assert.deepEqual([...files.read(`${folder}/${i % 40}`, 0, 1)], [i % 40]);
  // Linux tells which files are open
  if (!fs.existsSync('/proc/self/fd')) return;
  const descriptors = fs.readdirSync('/proc/self/fd').map((fd) => {
    try {
      return fs.readlinkSync(`/proc/self/fd/${fd}`);
    } catch {
      return '';
    }
  });
  assert.ok(
    descriptors.filter((target) => target.startsWith(fs.realpathSync(folder))).length <= 16,
  );
});
