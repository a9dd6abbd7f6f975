/**
 * Prints the tokens that a bundle generates greedily, for each variant of kernels and threads, as JSON.
 * Run as a program of its own, because relaxed SIMD depends on the version of Node.
 *
 *   node --import tsx test/support/greedy-tokens.ts <bundle> <tokens>
 */
import { pathToFileURL } from 'node:url';
import { openBundle } from '../../runtime/node.ts';

/** Tokens of one variant. */
export interface GreedyRun {
  readonly kernels: string | undefined;
  readonly threads: number;
  readonly tokens: readonly number[];
}

/** Generates with every variant that this Node runs. */
export async function greedyRuns(bundle: string, maxTokens: number): Promise<readonly GreedyRun[]> {
  const runs: GreedyRun[] = [];
  for (const plainSimd of [false, true])
    for (const threads of [1, 2]) {
      const session = await openBundle(bundle, { wasm: { threads, plainSimd } });
      const prompt = [464, 17, 902, 33, 1204, 77, 5, 2048];
      const { tokens } = await session
        .generate(prompt, { maxTokens, temperature: 0, ignoreEnd: true })
        .result();
      runs.push({ kernels: session.measure().kernels, threads, tokens });
      await session.dispose();
    }
  return runs;
}

const [, script, bundle, tokens] = process.argv;
if (script !== undefined && import.meta.url === pathToFileURL(script).href)
  process.stdout.write(JSON.stringify(await greedyRuns(bundle ?? '', Number(tokens))));
