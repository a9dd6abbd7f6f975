/**
 * Memory of sessions beside their plan: what a child process (Linux) holds beyond its own after the bundle
 * was opened, and after its context was filled. Prints JSON with `--json`, else Markdown.
 *
 *     npm run bench:memory [-- --json] [--context 512]
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { compile } from '../../compiler/compile.ts';
import { NodeFiles } from '../../compiler/node.ts';
import { resolveModel } from '../../compiler/node-source.ts';
import { parseRecipe } from '../../compiler/recipe.ts';
import type { SessionMemory } from '../support/session-memory.ts';

interface Row extends SessionMemory {
  readonly model: string;
  readonly weightFormat: string;
  readonly kv: string;
  /** Peak while loading over the weights. */
  readonly loadRatio: number;
  /** Peak over the plan. */
  readonly peakRatio: number;
}

const arguments_ = process.argv.slice(2);
const at = arguments_.indexOf('--context');
const contextLength = at < 0 ? 512 : Number(arguments_[at + 1]);
const folder = mkdtempSync(join(tmpdir(), 'fettle-memory-'));
try {
  const warmUp = await bundle('micro:gqa', 'source');
  const rows: Row[] = [];
  for (const model of ['builtin:nib', 'shape:smollm2-135m'])
    for (const kv of ['f32', 'f16']) {
      const path = await bundle(model, kv);
      const script = join(import.meta.dirname, '../support/session-memory.ts');
      const run = ['--expose-gc', '--import', 'tsx', script, warmUp, path];
      const memory = JSON.parse(
        execFileSync(process.execPath, run, { encoding: 'utf8' }),
      ) as SessionMemory;
      const { load, peak, planned, weights } = memory;
      const ratios = { loadRatio: load / weights, peakRatio: peak / planned };
      rows.push({ model, weightFormat: 'w4g32', kv, ...ratios, ...memory });
    }
  const mb = (bytes: number): string => (bytes / 1e6).toFixed(1);
  const lines = rows.map(
    (row) =>
      `| ${row.model} ${row.weightFormat} | ${row.kv} | ${row.tokens} | ${mb(row.weights)} | ${mb(row.load)} | ${mb(row.planned)} | ${mb(row.peak)} | ${row.peakRatio.toFixed(2)} |`,
  );
  const table = [
    '| model | KV | tokens | weights, MB | peak of loading, MB | planned, MB | peak, MB | peak / planned |',
    '| --- | --- | --- | --- | --- | --- | --- | --- |',
    ...lines,
  ].join('\n');
  const node = process.versions.node;
  const text = arguments_.includes('--json') ? JSON.stringify({ node, rows }, undefined, 2) : table;
  process.stdout.write(`${text}\n`);
} finally {
  rmSync(folder, { recursive: true, force: true });
}

async function bundle(reference: string, kv: string): Promise<string> {
  const out = join(folder, `${reference.replace(/\W/g, '-')}-${kv}`);
  await compile(await resolveModel(reference, { cacheFolder: folder }), {
    targets: ['wasm'],
    recipe: parseRecipe({
      weights: 'w4g32',
      clip: 'none',
      kv,
      canaries: false,
      ...(reference.startsWith('micro:') ? {} : { contextLength }),
    }),
    files: new NodeFiles(),
    out,
  });
  return out;
}
