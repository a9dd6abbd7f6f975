import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { openOutput } from '../../compiler/emit/output.ts';
import { packFiles, packedBytes } from '../../compiler/emit/tar.ts';
import { MemoryFiles, readFile, writeFile } from '../../compiler/files.ts';
import { sourceFrom } from '../../runtime/source.ts';
import { assertFails } from '../support/errors.ts';

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

/** Files of a bundle by path, as its manifest would list them. */
function bundle(place: string, marker: string): Record<string, Uint8Array> {
  const manifest = JSON.stringify({ files: [{ path: 'model.onnx' }], weights: { files: [] } });
  return { [`${place}/manifest.json`]: bytes(manifest), [`${place}/model.onnx`]: bytes(marker) };
}

test('a bundle appears at its place when it is published, and not before', () => {
  const files = new MemoryFiles();
  const output = openOutput(files, 'a/b/out/');
  writeFile(files, `${output.folder}/manifest.json`, bytes('{}'));
  assert.equal(files.stat('a/b/out'), undefined);
  output.publish();
  output.discard();
  assert.deepEqual([...files.contents.keys()], ['a/b/out/manifest.json']);
  assert.deepEqual(files.list('a/b'), ['out']);
});

test('what was made on the way is gone after a failure, parents included', () => {
  const files = new MemoryFiles({ 'a/other': bytes('x') });
  const output = openOutput(files, 'a/b/c/out');
  writeFile(files, `${output.folder}/weights-00.bin`, bytes('half'));
  output.discard();
  assert.deepEqual([...files.contents.keys()], ['a/other']);
  assert.equal(files.stat('a/b'), undefined);
});

test('an older bundle is replaced on success and untouched by a failure', () => {
  const files = new MemoryFiles(bundle('out', 'old'));
  openOutput(files, 'out').discard();
  assert.deepEqual(readFile(files, 'out/model.onnx'), bytes('old'));
  const output = openOutput(files, 'out');
  writeFile(files, `${output.folder}/model.onnx`, bytes('new'));
  output.publish();
  assert.deepEqual([...files.contents], [['out/model.onnx', bytes('new')]]);
});

test('a failing rename puts the older bundle back', () => {
  const files = new MemoryFiles(bundle('out', 'old'));
  const output = openOutput(files, 'out');
  const rename = files.rename.bind(files);
  files.rename = (from, to) => {
    if (from === output.folder) throw new Error('disk is full');
    rename(from, to);
  };
  assert.throws(() => output.publish(), /disk is full/);
  output.discard();
  assert.deepEqual([...files.contents.keys()].sort(), Object.keys(bundle('out', 'old')).sort());
});

test('a place with files that are no bundle is refused before any work', () => {
  const files = new MemoryFiles({ 'work/thesis.txt': bytes('x'), ...bundle('out', 'old') });
  writeFile(files, 'out/notes.txt', bytes('mine'));
  assertFails(() => openOutput(files, 'work'), 'IO_FAILED', /"thesis.txt" in it is not part of/);
  assertFails(() => openOutput(files, 'out'), 'IO_FAILED', /"notes.txt" in it is not part of/);
  assertFails(() => openOutput(files, 'work/thesis.txt'), 'IO_FAILED', /a file is there/);
  assertFails(() => openOutput(files, 'work/thesis.txt/x'), 'IO_FAILED', /a file is there/);
  files.makeDirectory('x.fettle');
  assertFails(() => openOutput(files, 'x.fettle'), 'IO_FAILED', /a directory is there/);
  assert.equal([...files.contents.keys()].length, 4);
});

test('an archive is what tar reads and what the runtime reads, and has no dates', async () => {
  const files = new MemoryFiles();
  const contents = { 'manifest.json': bytes('{}'), 'weights-00.bin': new Uint8Array(700).fill(7) };
  for (const [path, data] of Object.entries(contents)) writeFile(files, path, data);
  const entries = Object.entries(contents).map(([path, data]) => ({ path, bytes: data.length }));
  packFiles(files, '', entries, 'out.fettle');
  const archive = readFile(files, 'out.fettle');
  assert.equal(archive.length, packedBytes(entries));

  const source = await sourceFrom(archive);
  for (const [path, data] of Object.entries(contents)) {
    const read = await source.read(path, {});
    assert.deepEqual(read instanceof Uint8Array ? read : undefined, data);
  }
  const folder = mkdtempSync(join(tmpdir(), 'fettle-'));
  try {
    writeFileSync(join(folder, 'a.tar'), archive);
    const listing = execFileSync('tar', ['-tvf', join(folder, 'a.tar'), '--utc'], {
      encoding: 'utf8',
    });
    assert.match(listing, /^-rw-r--r-- 0\/0 +2 1970-01-01 00:00 manifest\.json$/m);
    assert.match(listing, /^-rw-r--r-- 0\/0 +700 1970-01-01 00:00 weights-00\.bin$/m);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test('a packed output is one file, and the folder it was made from is gone', () => {
  const files = new MemoryFiles();
  const output = openOutput(files, 'out.fettle');
  writeFile(files, `${output.folder}/manifest.json`, bytes('{}'));
  output.prepare([{ path: 'manifest.json', bytes: 2 }]);
  output.publish();
  output.discard();
  assert.deepEqual([...files.contents.keys()], ['out.fettle']);
  assert.deepEqual(files.list(''), ['out.fettle']);
});
