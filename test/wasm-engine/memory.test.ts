/** Sessions take what was planned: the first session of a process, in Node 20 and Node 22. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { compile } from '../../compiler/compile.ts';
import { NodeFiles } from '../../compiler/node.ts';
import { resolveModel } from '../../compiler/node-source.ts';
import { parseRecipe } from '../../compiler/recipe.ts';
import type { ModelSource } from '../../compiler/source.ts';
import { buildDecoder } from '../../models/decoder.ts';
import { hubConfig, hubGenerationConfig } from '../../models/hub-config.ts';
import { microDecoders } from '../../models/micro.ts';
import { torchSpelling } from '../../models/spelling/torch.ts';
import { node22 } from '../support/node22.ts';
import { noSessionMemory, sessionMemory } from '../support/session-memory.ts';

const skip = noSessionMemory;
const folder = mkdtempSync(join(tmpdir(), 'fettle-memory-'));
after(() => rmSync(folder, { recursive: true, force: true }));
const measured = await sessionMemory(join(folder, 'child'));
const newer = node22();
const hosts = [...new Set([process.execPath, ...(typeof newer === 'string' ? [newer] : [])])];

async function bundle(source: ModelSource, recipe: object, target = 'wasm'): Promise<string> {
  const out = join(folder, `${source.name}-${target}`);
  await compile(source, {
    targets: [target],
    recipe: parseRecipe({ canaries: false, clip: 'none', ...recipe }),
    files: new NodeFiles(),
    out,
  });
  return out;
}

/** What a session of `threads` threads is said to take. */
function planned(
  { weights, arena, state, stack = 0, engine = 0, thread = 0, text = 0 }: MemoryOf,
  threads = 1,
): number {
  return weights + arena + state + stack + engine + (threads - 1) * thread + text;
}

type MemoryOf = ReturnType<typeof measured>['memory'];

test(
  'a session takes what was planned, and loading it little more than the weights',
  { skip },
  async () => {
    const config = {
      ...microDecoders.gqa,
      layers: 4,
      width: 512,
      heads: 8,
      kvHeads: 8,
      headSize: 64,
      mlp: { ...microDecoders.gqa.mlp, width: 1024 },
      vocabulary: 16_384,
    };
    const source: ModelSource = {
      reference: 'medium',
      name: 'medium',
      config: { config: hubConfig(config), generationConfig: hubGenerationConfig(config) },
      text: undefined,
      read: () => buildDecoder('medium', config, torchSpelling),
      bytes: () => 0,
      sha256: () => '0'.repeat(64),
    };
    const path = await bundle(source, {});
    for (const node of hosts) {
      const { memory, load, peak } = measured(path, { node });
      const most = planned(memory);
      assert.ok(most > 60e6, `${most}`);
      assert.ok(load <= 1.2 * memory.weights, `${load} to load ${memory.weights}`);
      assert.ok(peak <= 1.1 * most, `${peak} of ${most}`);
      // all of it was used, so that the measurement can tell
      assert.ok(peak >= 0.8 * most, `${peak} of ${most}`);
    }
  },
);

test('so does one of a small model, engine and tokenizer counted', { skip }, async () => {
  const nib = await resolveModel('builtin:nib', { cacheFolder: folder });
  const path = await bundle(nib, { weights: 'w4g32' });
  for (const node of hosts) {
    const { memory, load, peak } = measured(path, { node });
    const { weights, engine = 0 } = memory;
    assert.ok(load <= 1.2 * weights + engine, `${load} to load ${weights}`);
    const most = planned(memory);
    assert.ok(Math.abs(peak - most) <= 0.1 * most, `${peak} of ${most}`);
  }
});

test('a further thread takes what is said of it', { skip }, async () => {
  const nib = await resolveModel('builtin:nib', { cacheFolder: folder });
  const path = await bundle(nib, { weights: 'w4g32' }, 'wasm-threads');
  for (const node of hosts) {
    const { memory, peak } = measured(path, { node, threads: 2 });
    const most = planned(memory, 2);
    assert.ok(peak <= 1.1 * most, `${peak} of ${most}`);
  }
});
