/**
 * `fettle demo`: the whole way in one command. Compiles the built-in model under a size budget, lets
 * both the original and the bundle write and be measured, and prints them side by side.
 */
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Session } from '../../runtime/node.ts';
import { openBundle } from '../../runtime/node.ts';
import { compile } from '../compile.ts';
import { logitsModel } from '../evaluate/decoder.ts';
import { perplexity } from '../evaluate/perplexity.ts';
import { NodeFiles } from '../node.ts';
import { parseRecipe } from '../recipe.ts';
import { bundleRunner } from '../run-bundle.ts';
import { formatBytes } from '../units.ts';
import type { Command } from './command.ts';
import { command } from './command.ts';
import { modelSource, openAsIs } from './opening.ts';
import type { Output } from './output.ts';
import { formatMs, table } from './text.ts';

/** Text the demo measures on, written for this purpose; carried in the package. */
const SAMPLE_TEXT =
  'The committee met in the afternoon and heard from three witnesses. The first said that the bridge ' +
  'had been closed since the spring, and that nobody in the town knew when it would be opened again. ' +
  'The second, an engineer, explained that the iron was sound but the stone beneath it was not. He had ' +
  'written to the city twice and had received no answer. The last witness was an old man who had ' +
  'crossed the river every day for forty years. He said that he did not care much for bridges, and ' +
  'that he would go on using his boat as long as he could row it. There was some laughter in the room, ' +
  'and the chairman asked for silence. In the evening the members of the committee walked down to the ' +
  'water to see for themselves. The light was going, and they could make out only the dark line of the ' +
  'arches and a lamp on the other side. It was agreed that a report should be made before the winter, ' +
  'and that the money, if there was any money, should be found by the people who had asked for it.';

const PROMPT = 'The president of the United States';

interface Measured {
  readonly text: string;
  readonly perplexity: number;
  readonly tokensPerSecond: number;
  readonly memoryBytes: number;
}

/** Compiles, generates, measures. */
export const demo: Command = command({
  usage: 'demo',
  summary: 'compile the built-in model, generate text, compare with the original',
  options: (parser) =>
    parser
      .option('target', { type: 'string', default: 'wasm', describe: 'what to compile for' })
      .option('max-size', { type: 'string', default: '4MB', describe: 'size budget' })
      .option('prompt', { type: 'string', default: PROMPT, describe: 'text to continue' })
      .option('tokens', { type: 'number', default: 48, describe: 'tokens to generate' })
      .option('out', { type: 'string', describe: 'keep the bundle here' }),
  run: async (args, output) => {
    const startMs = performance.now();
    const folder = mkdtempSync(join(tmpdir(), 'fettle-demo-'));
    const out = args.out ?? join(folder, 'nib');
    try {
      output.info(`Compiling builtin:nib for ${args.target}, at most ${args.maxSize} …`);
      const source = await modelSource('builtin:nib', output);
      const recipe = parseRecipe({ maxSize: args.maxSize });
      const files = new NodeFiles();
      const { bundles, wallMs } = await compile(source, {
        targets: [args.target],
        files,
        out,
        recipe,
        run: bundleRunner(files, openBundle),
        progress: output.progress,
        signal: output.signal,
      });
      const [bundle] = bundles;
      output.info(
        `  ${formatMs(wallMs)}: ${formatBytes(bundle?.bytes ?? 0)}, weights ${bundle?.weights ?? 'as they are'}`,
      );
      output.info('Running the original and the bundle …');
      const before = await measure(await openAsIs(source, output), args, output);
      const session = await openBundle(out, { signal: output.signal });
      const check = await session.check();
      const after = await measure(session, args, output);
      const rows = [
        ['original', formatBytes(source.bytes()), ...figures(before)],
        [bundle?.weights ?? 'bundle', formatBytes(bundle?.bytes ?? 0), ...figures(after)],
      ];
      output.result(
        {
          bundle,
          before: { bytes: source.bytes(), ...before },
          after,
          check,
          wallMs: performance.now() - startMs,
        },
        [
          '',
          `${args.prompt}${after.text}`,
          '',
          table(['', 'size', 'memory', 'tokens/s', 'perplexity'], rows),
          `canaries ${check.passed ? 'passed' : 'FAILED'}; ${formatMs(performance.now() - startMs)} in all`,
          ...(args.out !== undefined && existsSync(out) ? [`The bundle is in ${out}.`] : []),
        ].join('\n'),
      );
      return check.passed ? 0 : 1;
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  },
});

async function measure(
  session: Session,
  args: { readonly prompt: string; readonly tokens: number },
  output: Output,
): Promise<Measured> {
  try {
    const ids = (await session.tokenizer()).encode(SAMPLE_TEXT, false);
    const { signal } = output;
    const quality = await perplexity(logitsModel(session), ids, { signal });
    // a seed, so that the text is the same every time; ignoring the end, so that the length is
    const options = {
      maxTokens: args.tokens,
      temperature: 0.8,
      topK: 40,
      seed: 1,
      ignoreEnd: true,
      signal,
    };
    const { text, decodeTokensPerSecond } = await session.generate(args.prompt, options).result();
    const { weights, arena, state } = session.measure().memoryBytes;
    return {
      text,
      perplexity: quality.perplexity,
      tokensPerSecond: decodeTokensPerSecond,
      memoryBytes: weights + arena + state,
    };
  } finally {
    await session.dispose();
  }
}

function figures({ memoryBytes, tokensPerSecond, perplexity: value }: Measured): string[] {
  return [formatBytes(memoryBytes), tokensPerSecond.toFixed(0), value.toFixed(1)];
}
