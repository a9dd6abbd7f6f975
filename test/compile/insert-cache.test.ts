/** `fettle compile` gives a causal decoder without a cache one: the bundle generates the same tokens. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { CompileResult } from '../../compiler/index.ts';
import { compile, MemoryFiles, parseRecipe } from '../../compiler/index.ts';
import { evaluate } from '../../compiler/ir/evaluate.ts';
import type { Model } from '../../compiler/ir/graph.ts';
import { folderSource } from '../../compiler/run-bundle.ts';
import { openBundle } from '../../runtime/node.ts';
import { tensor } from '../../runtime/tensor.ts';
import type { Positions } from '../support/uncached.ts';
import { plainGpt } from '../support/uncached.ts';

const prompt = [3, 17, 5, 41, 0];
const TOKENS = 12;

async function compiled(
  read: () => Model,
  recipe: object = {},
): Promise<CompileResult & { readonly files: MemoryFiles; readonly told: readonly string[] }> {
  const files = new MemoryFiles();
  const told: string[] = [];
  const result = await compile(
    {
      reference: 'gpt',
      name: 'gpt',
      config: { config: { n_positions: 64, eos_token_id: 47 } },
      text: undefined,
      read,
      bytes: () => 0,
      sha256: () => 'cd'.repeat(32),
    },
    {
      targets: ['wasm', 'ort-wasm'],
      out: 'out',
      files,
      recipe: parseRecipe(recipe),
      log: { info: (line) => told.push(line), warn: (line) => told.push(line) },
    },
  );
  return { ...result, files, told };
}

/** The likeliest tokens, computing the whole text anew for each. */
function greedy(model: Model): readonly number[] {
  const tokens = [...prompt];
  for (let i = 0; i < TOKENS; i++) {
    const row = (values: readonly number[]): ReturnType<typeof tensor> =>
      tensor('i64', [1, values.length], BigInt64Array.from(values, BigInt));
    const feeds = new Map([['input_ids', row(tokens)]]);
    if (model.graph.inputs.some(({ name }) => name === 'position_ids'))
      feeds.set('position_ids', row(tokens.map((_, place) => place)));
    const logits = evaluate(model, feeds).get('logits');
    assert.ok(logits?.data instanceof Float32Array);
    const last = logits.data.subarray(-(logits.shape.at(-1) ?? 0));
    tokens.push(last.indexOf(Math.max(...last)));
  }
  return tokens.slice(prompt.length);
}

const kinds: readonly Positions[] = ['learned', 'learned-input', 'sinusoidal', 'rotary', 'alibi'];

for (const positions of kinds)
  test(`a GPT with ${positions} positions generates what the whole graph gives, on both engines`, async () => {
    // small random models like to repeat themselves; one that does not says more
    const isVaried = (seed: number): boolean =>
      new Set(greedy(plainGpt(positions, true, seed))).size > 5;
    const seed = [1, 1001, 2001, 3001, 4001, 5001, 6001, 7001].find(isVaried);
    assert.ok(seed !== undefined, 'every model repeats itself');
    const { files, told } = await compiled(() => plainGpt(positions, true, seed));
    const wanted = greedy(plainGpt(positions, true, seed));
    assert.ok(
      told.some((line) => /has no cache and gets one/.test(line)),
      told.join('\n'),
    );
    for (const target of ['wasm', 'ort-wasm']) {
      const session = await openBundle(folderSource(files, `out/${target}`));
      const options = { maxTokens: TOKENS, temperature: 0, ignoreEnd: true };
      const { tokens } = await session.generate(prompt, options).result();
      await session.dispose();
      assert.deepEqual([...tokens], wanted, target);
    }
  });

test('a recipe can leave a decoder without a cache', async () => {
  const { files, told } = await compiled(() => plainGpt('rotary'), { cache: false });
  assert.ok(!told.some((line) => /gets one/.test(line)));
  const manifest = JSON.parse(
    new TextDecoder().decode(files.contents.get('out/ort-wasm/manifest.json')),
  ) as { decoder?: object; inputs: readonly { name: string }[] };
  assert.equal(manifest.decoder, undefined);
  assert.deepEqual(
    manifest.inputs.map(({ name }) => name),
    ['input_ids'],
  );
});

test('a model that is not causal is refused a cache, and the reason is reported', async () => {
  const { passes } = await compiled(() => plainGpt('learned', false));
  const refusals = passes.flatMap((report) => report.refusals);
  const found = refusals.find(({ pass }) => pass === 'insert-kv-cache');
  assert.match(found?.why ?? '', /not causal/);
});
