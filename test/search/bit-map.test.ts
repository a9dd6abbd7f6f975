/** Formats by block, from a bundle that was written. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { compile, MemoryFiles, parseRecipe } from '../../compiler/index.ts';
import { resolveModel } from '../../compiler/node.ts';
import { readFile } from '../../compiler/files.ts';
import { bitMap, bitMapText, outsideOf, rowOf } from '../../compiler/report/bit-map.ts';
import { reportHtml } from '../../compiler/report/html.ts';
import { reportMarkdown } from '../../compiler/report/markdown.ts';
import { reportBundle } from '../../compiler/report/report.ts';
import type { Manifest } from '../../runtime/manifest.ts';

async function manifestWith(weights: string): Promise<Manifest> {
  const files = new MemoryFiles();
  const source = await resolveModel('builtin:nib', { cacheFolder: 'unused' });
  const recipe = parseRecipe({ weights, embeddings: 'w8g32', canaries: false });
  await compile(source, { targets: ['wasm'], files, out: 'out', recipe });
  return JSON.parse(new TextDecoder().decode(readFile(files, 'out/manifest.json'))) as Manifest;
}

test('a bundle says which format each part of each block has', async () => {
  const manifest = await manifestWith('w4g32');
  const map = bitMap(manifest);
  assert.ok(map !== undefined);
  assert.deepEqual(map.parts, ['qkv', 'o', 'gate', 'up', 'down']);
  assert.equal(map.blocks.length, 12);
  assert.deepEqual(
    rowOf(map, 3).map((cell) => cell?.format),
    Array.from({ length: 5 }, () => 'w4g32'),
  );
  assert.deepEqual(
    outsideOf(map).map(({ part, format }) => [part, format]),
    [['table', 'w8g32']],
  );
  // 4.5 bits for the blocks, 8.5 for a seventh of the weights, and the norms
  assert.ok(map.averageBits > 4.9 && map.averageBits < 5.3, `${map.averageBits}`);
  const lines = bitMapText(map);
  assert.match(lines[0] ?? '', /bits a parameter on average/);
  assert.equal(lines.length, 1 + 1 + 12 + 1);
  const report = [reportBundle('out', manifest)];
  assert.match(reportHtml(report), /class="bits"[^>]*>w4g32</);
  assert.match(reportMarkdown(report), /block {2}qkv/);
});

test('a bundle whose passes stored nothing in codes has no map', () => {
  const model = { name: 'm', sha256: '', kind: 'model', parameters: 1 } as const;
  assert.equal(
    bitMap({ passes: [], model, weights: { bytes: 4, files: [], tensors: [] } }),
    undefined,
  );
});
