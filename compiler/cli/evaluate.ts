/** `fettle evaluate`: quality of a model or a bundle, measured the same way for both. */
import { readNpy } from '../../models/npy.ts';
import { FettleError } from '../../runtime/errors.ts';
import { accuracy } from '../evaluate/classify.ts';
import { logitsModel } from '../evaluate/decoder.ts';
import { compareDecoders, compareOutputs } from '../evaluate/compare.ts';
import type { Distance } from '../evaluate/distance.ts';
import { randomIds } from '../evaluate/random-feeds.ts';
import { perplexity } from '../evaluate/perplexity.ts';
import type { Command } from './command.ts';
import { command } from './command.ts';
import { labelsBeside, readData, readTensor, readText, sha256Of } from './data.ts';
import type { Opened } from './opening.ts';
import { openRunnable } from './opening.ts';
import type { Output } from './output.ts';
import { formatCount, formatMs, table } from './text.ts';

/** Tokens of one random sample of a decoder. */
const RANDOM_TOKENS = 32;

interface Arguments {
  readonly model: string;
  readonly task: string;
  readonly data: string | undefined;
  readonly labels: string | undefined;
  readonly against: string | undefined;
  readonly window: number | undefined;
  readonly stride: number | undefined;
  readonly maxTokens: number | undefined;
  readonly samples: number;
  readonly seed: number;
}

/** What a task found: the keys every evaluation prints, and its own. */
interface Evaluation {
  readonly metric: string;
  readonly value: number;
  readonly unit: string;
  readonly samples: number;
  readonly tokens?: number;
  /** Of the data; null when inputs were random. */
  readonly dataSha256: string | null;
  readonly more?: object;
}

type Task = (opened: Opened, args: Arguments, output: Output) => Promise<Evaluation>;

const tasks: Readonly<Record<string, Task>> = {
  perplexity: evaluatePerplexity,
  distance: evaluateDistance,
  classify: evaluateAccuracy,
};

/** Evaluates a model or a bundle. */
export const evaluate: Command = command({
  usage: 'evaluate <model>',
  summary: 'measure the quality of a model or a bundle',
  options: (parser) =>
    parser
      .positional('model', { type: 'string', demandOption: true, describe: 'a bundle or a model' })
      .option('task', {
        choices: [...Object.keys(tasks), 'ocr'],
        demandOption: true,
        describe: 'what to measure',
      })
      .option('data', { type: 'string', describe: 'text file, .npy samples or image' })
      .option('labels', { type: 'string', describe: 'labels as .npy; default: beside the samples' })
      .option('against', { type: 'string', describe: 'model or bundle to compare with (distance)' })
      .option('window', {
        type: 'number',
        describe: 'tokens of a window (perplexity; default 256)',
      })
      .option('stride', { type: 'number', describe: 'tokens between windows; default: the window' })
      .option('max-tokens', { type: 'number', describe: 'tokens of text to read; default: all' })
      .option('samples', {
        type: 'number',
        default: 8,
        describe: 'random inputs, when no data is given (distance)',
      })
      .option('seed', { type: 'number', default: 1, describe: 'seed of random inputs' }),
  run: async (args, output) => {
    const task = tasks[args.task];
    if (task === undefined)
      throw new FettleError('USAGE', `--task ${args.task} is not supported yet.`, {
        at: { option: 'task' },
        fix: `Use one of: ${Object.keys(tasks).join(', ')}.`,
      });
    const opened = await openRunnable(args.model, output);
    try {
      const startMs = performance.now();
      const { more, ...found } = await task(opened, args, output);
      const wallMs = performance.now() - startMs;
      const { engine, target } = opened.session.manifest;
      const result = {
        task: args.task,
        ...found,
        model: opened.name,
        engine,
        target,
        wallMs,
        ...more,
      };
      output.result(result, describe(result));
    } finally {
      await opened.session.dispose();
    }
  },
});

async function evaluatePerplexity(
  { session }: Opened,
  args: Arguments,
  output: Output,
): Promise<Evaluation> {
  const { text, sha256 } = readText(required(args.data, 'data', 'a text file'));
  const ids = (await session.tokenizer()).encode(text, false);
  const {
    perplexity: value,
    bitsPerToken,
    tokens,
    windows,
  } = await perplexity(logitsModel(session), ids, {
    progress: output.progress,
    signal: output.signal,
    ...(args.window === undefined ? {} : { windowTokens: args.window }),
    ...(args.stride === undefined ? {} : { strideTokens: args.stride }),
    ...(args.maxTokens === undefined ? {} : { maxTokens: args.maxTokens }),
  });
  return {
    metric: 'perplexity',
    value,
    unit: 'per token',
    samples: windows,
    tokens,
    dataSha256: sha256,
    more: { bitsPerToken },
  };
}

async function evaluateAccuracy(
  { session }: Opened,
  args: Arguments,
  output: Output,
): Promise<Evaluation> {
  const path = required(args.data, 'data', 'samples as .npy');
  const labelPath = args.labels ?? labelsBeside(path);
  const samples = readData(path);
  const labels = readNpy(readData(labelPath), labelPath);
  const found = await accuracy(session, readNpy(samples, path), labels.data as ArrayLike<number>, {
    progress: output.progress,
    signal: output.signal,
  });
  return {
    metric: 'accuracy',
    value: found.accuracy,
    unit: 'share',
    samples: found.samples,
    dataSha256: sha256Of(samples),
  };
}

async function evaluateDistance(
  opened: Opened,
  args: Arguments,
  output: Output,
): Promise<Evaluation> {
  const against = await openRunnable(
    required(args.against, 'against', 'a model or a bundle'),
    output,
  );
  try {
    const { session } = opened;
    const { progress, signal } = output;
    let distance: Distance;
    let dataSha256: string | null = null;
    const { decoder } = session.manifest;
    if (decoder !== undefined && against.session.manifest.decoder !== undefined) {
      let ids: readonly number[];
      if (args.data === undefined) {
        ids = randomIds(args.samples * RANDOM_TOKENS, decoder.vocabulary, args.seed);
      } else {
        const { text, sha256 } = readText(args.data);
        ids = (await session.tokenizer()).encode(text, false).slice(0, args.maxTokens ?? 4096);
        dataSha256 = sha256;
      }
      distance = await compareDecoders(logitsModel(against.session), logitsModel(session), ids, {
        windowTokens: args.window ?? (args.data === undefined ? RANDOM_TOKENS : 256),
        progress,
        signal,
      });
    } else {
      const [input] = session.manifest.inputs;
      const feeds =
        args.data === undefined || input === undefined
          ? undefined
          : [{ [input.name]: await readTensor(args.data, input) }];
      if (args.data !== undefined) dataSha256 = sha256Of(readData(args.data));
      distance = await compareOutputs(against.session, session, {
        ...(feeds === undefined ? {} : { feeds }),
        samples: args.samples,
        seed: args.seed,
        progress,
        signal,
      });
    }
    return {
      metric: 'relativeError',
      value: distance.relativeError,
      unit: 'of range',
      samples: distance.rows,
      dataSha256,
      more: { ...distance, against: against.name },
    };
  } finally {
    await against.session.dispose();
  }
}

function required(value: string | undefined, option: string, what: string): string {
  if (value !== undefined) return value;
  throw new FettleError('USAGE', `--${option} is missing: this task needs ${what}.`, {
    at: { option },
    fix: `Add --${option} <path>.`,
  });
}

function describe(result: Readonly<Record<string, unknown>>): string {
  const shown = Object.entries(result).filter(([, value]) => value !== undefined);
  return table(
    ['', ''],
    shown.map(([key, value]) => [
      key,
      key === 'wallMs'
        ? formatMs(Number(value))
        : typeof value === 'number'
          ? Number.isInteger(value)
            ? formatCount(value)
            : value.toPrecision(6)
          : String(value),
    ]),
  );
}
