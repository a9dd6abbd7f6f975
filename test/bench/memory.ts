/**
 * Memory of sessions beside their plan (Linux): what the first session of a process adds to it when the
 * bundle was opened, and when its context was filled; in this Node, in Node 22 and in Chromium. Prints
 * JSON with `--json`, else Markdown.
 *
 *     npm run bench:memory [-- --json] [--context 512]
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { compile } from '../../compiler/compile.ts';
import { NodeFiles } from '../../compiler/node.ts';
import { resolveModel } from '../../compiler/node-source.ts';
import { parseRecipe } from '../../compiler/recipe.ts';
import { node22 } from '../support/node22.ts';
import { sessionMemory } from '../support/session-memory.ts';
import type { SessionMemory } from '../support/session-memory-child.ts';
import { chromiumMemory } from './memory-chromium.ts';

type Measure = (path: string, threads: number) => SessionMemory | Promise<SessionMemory>;

interface Row extends SessionMemory {
  readonly model: string;
  readonly weightFormat: string;
  readonly kv: string;
  readonly threads: number;
  readonly host: string;
  /** What is said that a session takes. */
  readonly planned: number;
  /** Peak while loading, without what the engine takes for every model, over the weights; of one thread. */
  readonly loadRatio?: number;
  /** Peak over the plan. */
  readonly peakRatio: number;
}

const arguments_ = process.argv.slice(2);
const at = arguments_.indexOf('--context');
const contextLength = at < 0 ? 512 : Number(arguments_[at + 1]);
const folder = mkdtempSync(join(tmpdir(), 'fettle-memory-'));
try {
  const inNode = await sessionMemory(join(folder, 'child'));
  const newer = node22();
  const hosts = new Map<string, Measure>();
  hosts.set('this Node', (path, threads) => inNode(path, { threads }));
  if (typeof newer === 'string')
    hosts.set('Node 22', (path, threads) => inNode(path, { node: newer, threads }));
  hosts.set('Chromium', chromiumMemory);
  const rows: Row[] = [];
  for (const [model, kv, threads] of [
    ['micro:gqa', 'f32', 1],
    ['builtin:nib', 'f32', 1],
    ['builtin:nib', 'f16', 1],
    ['builtin:nib', 'f32', 2],
    ['shape:smollm2-135m', 'f32', 1],
    ['shape:smollm2-135m', 'f16', 1],
  ] as const) {
    const path = await bundle(model, kv, threads);
    for (const [host, measure] of hosts) {
      const measured = await measure(path, threads);
      const { memory, load, peak } = measured;
      const { weights, arena, state, stack = 0, engine = 0, thread = 0, text = 0 } = memory;
      const planned = weights + arena + state + stack + engine + (threads - 1) * thread + text;
      const ratios = {
        planned,
        ...(threads === 1 ? { loadRatio: (load - engine) / weights } : {}),
        peakRatio: peak / planned,
      };
      rows.push({ model, weightFormat: 'w4g32', kv, threads, host, ...ratios, ...measured });
    }
  }
  const mb = (bytes = 0): string => (bytes / 1e6).toFixed(1);
  const lines = rows.map(
    ({ model, kv, threads, host, memory, load, loadRatio, planned, peak, peakRatio }) =>
      `| ${model} w4g32, KV ${kv} | ${threads} | ${host} | ${mb(memory.weights)} | ${mb(load)} | ${loadRatio?.toFixed(2) ?? ''} | ${mb(planned)} | ${mb(peak)} | ${peakRatio.toFixed(2)} |`,
  );
  const table = [
    '| model | threads | host | weights, MB | peak of loading, MB | without the engine, over the weights | planned, MB | peak, MB | peak / planned |',
    '| --- | --- | --- | --- | --- | --- | --- | --- | --- |',
    ...lines,
  ].join('\n');
  const node = process.versions.node;
  const text = arguments_.includes('--json') ? JSON.stringify({ node, rows }, undefined, 2) : table;
  process.stdout.write(`${text}\n`);
} finally {
  rmSync(folder, { recursive: true, force: true });
}

async function bundle(reference: string, kv: string, threads: number): Promise<string> {
  const out = join(folder, `${reference.replace(/\W/g, '-')}-${kv}-${threads}`);
  await compile(await resolveModel(reference, { cacheFolder: folder }), {
    targets: [threads > 1 ? 'wasm-threads' : 'wasm'],
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
