/**
 * Perplexity of nib from the same weights on two engines: ours, which rounds activations to 8 bits, and
 * onnxruntime-web, which unpacks the weights and keeps activations in f32 as the evaluator does.
 *
 *     node --import tsx test/support/nib-perplexity.ts [tokens] [format]
 */
import { readFileSync } from 'node:fs';
import { compile } from '../../compiler/compile.ts';
import { logitsModel } from '../../compiler/evaluate/decoder.ts';
import { perplexity } from '../../compiler/evaluate/perplexity.ts';
import { MemoryFiles } from '../../compiler/files.ts';
import { NodeFiles } from '../../compiler/node.ts';
import { parseRecipe } from '../../compiler/recipe.ts';
import { folderSource } from '../../compiler/run-bundle.ts';
import { openSource } from '../../compiler/source.ts';
import type { Session } from '../../runtime/node.ts';
import { openBundle } from '../../runtime/node.ts';
import { sharedPath } from './shared.ts';

/** nib on both engines, and the tokens of a text. */
export interface NibEngines {
  readonly wasm: Session;
  readonly f32: Session;
  readonly ids: readonly number[];
}

/** Compiles nib once for each engine; the weights are the same codes. */
export async function openNib(weights: string, kv = 'source'): Promise<NibEngines> {
  const files = new MemoryFiles();
  const open = async (target: string, recipe: object): Promise<Session> => {
    await compile(openSource(new NodeFiles(), sharedPath('models/nib')), {
      targets: [target],
      recipe: parseRecipe({ weights, canaries: false, ...recipe }),
      files,
      out: target,
    });
    return openBundle(folderSource(files, target));
  };
  const [wasm, f32] = [await open('wasm', { kv }), await open('ort-wasm', {})];
  const text = readFileSync(sharedPath('data/wikitext2-test.txt'), 'utf8');
  const ids = (await f32.tokenizer()).encode(text, false);
  return { wasm, f32, ids };
}

/** Perplexity of a session on the first tokens of a text. */
export async function perplexityOf(
  session: Session,
  ids: readonly number[],
  maxTokens: number,
): Promise<number> {
  return (await perplexity(logitsModel(session), ids, { maxTokens })).perplexity;
}

if (process.argv[1] === import.meta.filename) {
  const [tokens = 40_000, format = 'w4g32', kv] = process.argv.slice(2);
  const { wasm, f32, ids } = await openNib(String(format), kv);
  const own = await perplexityOf(wasm, ids, Number(tokens));
  const other = await perplexityOf(f32, ids, Number(tokens));
  const row = { format, kv, tokens: Number(tokens), wasm: own, f32: other, ratio: own / other };
  process.stdout.write(`${JSON.stringify(row)}\n`);
  await Promise.all([wasm.dispose(), f32.dispose()]);
}
