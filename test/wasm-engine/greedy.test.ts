/** Greedy generation is the same with and without relaxed SIMD, on any number of threads, in every format. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { compile } from '../../compiler/compile.ts';
import { NodeFiles } from '../../compiler/node.ts';
import { parseRecipe } from '../../compiler/recipe.ts';
import { openSource } from '../../compiler/source.ts';
import type { GreedyRun } from '../support/greedy-tokens.ts';
import { greedyRuns } from '../support/greedy-tokens.ts';
import { node22 } from '../support/node22.ts';
import { needsShared, sharedPath } from '../support/shared.ts';

const TOKENS = 64;

const formats = [
  'f32',
  'f16',
  'w8g32',
  'w4g32',
  'w4g32a',
  'w4g16',
  'w3g32',
  'w3g32a',
  'w2g16',
  'w2g32a',
  'w4',
  'c4g32',
];

/** Formats whose products round in f32: relaxed SIMD rounds a product and its sum once, plain SIMD twice. */
const floats: ReadonlySet<string> = new Set(['f32', 'f16']);

/** Relaxed SIMD runs right on Node 22, not on Node 20: one program for all sources, or why there is none. */
const newer = node22();
const script = join(import.meta.dirname, '../support/greedy-tokens.ts');
const onNode22 = (sources: readonly string[]): readonly GreedyRun[] => {
  if (typeof newer !== 'string') return [];
  const arguments_ = ['--import', 'tsx', script, String(TOKENS), ...sources];
  return JSON.parse(execFileSync(newer, arguments_, { encoding: 'utf8' })) as GreedyRun[];
};

const kind = ({ kernels }: Pick<GreedyRun, 'kernels'>): string | undefined =>
  kernels?.replace('-threads', '');

function checkAlike(runs: readonly GreedyRun[], format: string): void {
  const [first] = runs;
  assert.equal(first?.tokens.length, TOKENS);
  // a decoder that says one thing over and over would agree too easily
  assert.ok(new Set(first?.tokens).size > 4, `${first?.tokens}`);
  for (const { tokens, kernels, threads, logits } of runs) {
    assert.deepEqual(tokens, first?.tokens, `${format}: ${kernels}, ${threads} threads`);
    // integers are exact everywhere, and threads split rows
    const alike: GreedyRun | undefined = floats.has(format)
      ? runs.find((run) => kind(run) === kind({ kernels }))
      : first;
    assert.equal(logits, alike?.logits, `${format}: ${kernels}, ${threads} threads`);
  }
  if (typeof newer === 'string')
    assert.ok(runs.some(({ kernels }) => kernels?.startsWith('relaxed')));
}

const micros = onNode22(formats.map((format) => `micro:${format}`));

for (const format of formats)
  test(`${format}: the same ${TOKENS} tokens with any kernels on 1, 2 and 3 threads`, async (t) => {
    if (typeof newer !== 'string') t.diagnostic(`without relaxed SIMD: ${newer.message}`);
    const source = `micro:${format}`;
    const own = await greedyRuns(source, TOKENS, 3);
    checkAlike([...own, ...micros.filter((run) => run.source === source)], format);
  });

test(
  `nib generates the same ${TOKENS} tokens with any kernels and threads, on this Node and on Node 22`,
  needsShared('models/nib'),
  async () => {
    const folder = mkdtempSync(join(tmpdir(), 'fettle-greedy-'));
    try {
      const bundles = [];
      for (const weights of ['w4g32', 'f16']) {
        const out = join(folder, weights);
        await compile(openSource(new NodeFiles(), sharedPath('models/nib')), {
          targets: ['wasm-threads'],
          recipe: parseRecipe({ weights, clip: 'none', canaries: false }),
          files: new NodeFiles(),
          out,
        });
        bundles.push({ weights, out });
      }
      const others = onNode22(bundles.map(({ out }) => out));
      for (const { weights, out } of bundles)
        checkAlike(
          [...(await greedyRuns(out, TOKENS)), ...others.filter(({ source }) => source === out)],
          weights,
        );
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  },
);
