/**
 * Prints the tokens that decoders generate greedily, for each variant of kernels and threads, as JSON.
 * Run as a program of its own, because relaxed SIMD depends on the version of Node.
 *
 *   node --import tsx test/support/greedy-tokens.ts <tokens> <bundle or micro:format>...
 *
 * `micro:w4g32` is the decoder of fused-decoder.ts with weights in that format.
 */
import { createHash } from 'node:crypto';
import { pathToFileURL } from 'node:url';
import type { OpenOptions, Session } from '../../runtime/node.ts';
import { openBundle, startWorker } from '../../runtime/node.ts';
import { bytesOf } from '../../runtime/tensor.ts';
import { fusedDecoder } from './fused-decoder.ts';
import { planBundle } from './plan-session.ts';

/** What one variant gave. */
export interface GreedyRun {
  /** What was run. */
  readonly source: string;
  readonly kernels: string | undefined;
  readonly threads: number;
  readonly tokens: readonly number[];
  /** Hash of the logits behind each token of the prompt. */
  readonly logits: string;
}

const prompt = [464, 17, 902, 33, 1204, 77, 5, 2048, 7, 7, 300];

/** Generates with every variant that this Node runs. */
export async function greedyRuns(
  source: string,
  maxTokens: number,
  mostThreads = 2,
): Promise<readonly GreedyRun[]> {
  const open = await opener(source, maxTokens, mostThreads);
  const runs: GreedyRun[] = [];
  for (const plainSimd of [false, true])
    for (let threads = 1; threads <= mostThreads; threads++) {
      const session = await open({ wasm: { startWorker, threads, plainSimd } });
      const { vocabulary = 1 } = session.manifest.decoder ?? {};
      const ids = prompt.map((id) => id % vocabulary);
      const options = { maxTokens, temperature: 0, ignoreEnd: true };
      const { tokens } = await session.generate(ids, options).result();
      const { data } = await session.logits(ids);
      const logits = createHash('sha256').update(bytesOf(data)).digest('hex');
      runs.push({ source, kernels: session.measure().kernels, threads, tokens, logits });
      await session.dispose();
    }
  return runs;
}

async function opener(
  source: string,
  maxTokens: number,
  threads: number,
): Promise<(options: OpenOptions) => Promise<Session>> {
  const [kind, format] = source.split(':');
  if (kind !== 'micro' || format === undefined) return (options) => openBundle(source, options);
  const { model, decoder } = fusedDecoder({
    format,
    tied: false,
    context: maxTokens + prompt.length,
  });
  const bundle = await planBundle(model, decoder, { chunk: 8, threads });
  return (options) => bundle.open(options);
}

const [, script, tokens, ...sources] = process.argv;
if (script !== undefined && import.meta.url === pathToFileURL(script).href) {
  const runs: GreedyRun[] = [];
  for (const source of sources) runs.push(...(await greedyRuns(source, Number(tokens))));
  process.stdout.write(JSON.stringify(runs));
}
