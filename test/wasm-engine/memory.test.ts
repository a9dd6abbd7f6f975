import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { compile } from '../../compiler/compile.ts';
import { NodeFiles } from '../../compiler/node.ts';
import { resolveModel } from '../../compiler/node-source.ts';
import { parseRecipe } from '../../compiler/recipe.ts';
import type { ModelSource } from '../../compiler/source.ts';
import { buildDecoder } from '../../models/decoder.ts';
import { hubConfig, hubGenerationConfig } from '../../models/hub-config.ts';
import { microDecoders } from '../../models/micro.ts';
import { torchSpelling } from '../../models/spelling/torch.ts';
import type { SessionMemory } from '../support/session-memory.ts';

const skip = existsSync('/proc/self/clear_refs') ? false : 'needs Linux to reset a peak';
const folder = mkdtempSync(join(tmpdir(), 'fettle-memory-'));
after(() => rmSync(folder, { recursive: true, force: true }));

/** Kernels compiled to machine code, the tokenizer, and what V8's heap grows by: whatever the model. */
const HOST_BYTES = 6e6;

async function bundle(name: string, source: ModelSource, recipe: object): Promise<string> {
  const out = join(folder, name);
  await compile(source, {
    targets: ['wasm'],
    recipe: parseRecipe({ canaries: false, clip: 'none', ...recipe }),
    files: new NodeFiles(),
    out,
  });
  return out;
}

/** What a child process measures. */
async function measured(path: string): Promise<SessionMemory> {
  const micro = await resolveModel('micro:gqa', { cacheFolder: folder });
  const warmUp = join(folder, 'micro');
  if (!existsSync(warmUp)) await bundle('micro', micro, { weights: 'w4g32' });
  const script = fileURLToPath(new URL('../support/session-memory.ts', import.meta.url));
  const args = ['--expose-gc', '--import', 'tsx', script, warmUp, path];
  return JSON.parse(execFileSync(process.execPath, args, { encoding: 'utf8' })) as SessionMemory;
}

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
    const { planned, weights, load, peak } = await measured(await bundle('medium', source, {}));
    assert.ok(planned > 60e6, `${planned}`);
    assert.ok(load <= 1.2 * weights, `${load} to load ${weights}`);
    assert.ok(peak <= 1.1 * planned, `${peak} of ${planned}`);
    // all of it was used, so that the measurement can tell
    assert.ok(peak >= 0.8 * planned, `${peak} of ${planned}`);
  },
);

test('a small model adds what the host needs for any model, and no more', { skip }, async () => {
  const source = await resolveModel('builtin:nib', { cacheFolder: folder });
  const path = await bundle('nib', source, { weights: 'w4g32' });
  const { planned, weights, load, peak } = await measured(path);
  assert.ok(load <= 1.2 * weights + HOST_BYTES, `${load} to load ${weights}`);
  assert.ok(peak <= 1.1 * planned + HOST_BYTES, `${peak} of ${planned}`);
});
