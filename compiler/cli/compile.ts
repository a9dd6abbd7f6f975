/** `fettle compile`: a model in, one bundle per target out. */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { FettleError } from '../../runtime/errors.ts';
import type { CompileOptions, CompileResult } from '../compile-options.ts';
import { ortEngine } from '../../runtime/ort/engine.ts';
import { wasmEngine } from '../../runtime/wasm/engine.ts';
import type { CacheUse } from '../calibrate/cache.ts';
import { countedCache } from '../calibrate/cache.ts';
import { compile as compileModel } from '../compile.ts';
import { openBundle, processMemory } from '../../runtime/node.ts';
import { NodeFiles } from '../node.ts';
import type { Recipe } from '../recipe.ts';
import {
  parseFixOption,
  parseRecipe,
  parseShapeOption,
  presetRecipe,
  presets,
  roundings,
} from '../recipe.ts';
import { baselineNames } from '../search/baselines.ts';
import { activationText } from '../report/activations.ts';
import type { ModelSource } from '../source.ts';
import { transformSpellings } from '../transforms.ts';
import { bundleRunner } from '../run-bundle.ts';
import { formatBytes } from '../units.ts';
import type { Command } from './command.ts';
import { command } from './command.ts';
import { modelSource } from './opening.ts';
import {
  calibrationCache,
  checkEvaluation,
  readNamed,
  readSplit,
  samplesFrom,
} from './calibration-data.ts';
import type { DataSplit } from './calibration-data.ts';
import { measureLoss } from './measure-loss.ts';
import type { Output } from './output.ts';
import type { Remainder } from '../explain-remainders.ts';
import { explainRemainders } from '../explain-remainders.ts';
import { contextLengthIn } from '../analyze/config.ts';
import { explainFormats } from './explain-formats.ts';
import { explainPasses, explainStorage } from './explain-passes.ts';
import { formatMs, table } from './text.ts';

interface Arguments {
  readonly model: string;
  readonly target: string;
  readonly out: string;
  readonly recipe: string | undefined;
  readonly maxSize: string | undefined;
  readonly maxMemory: string | undefined;
  readonly maxLoss: string | undefined;
  readonly weights: string | undefined;
  readonly dropLayers: string | undefined;
  readonly kv: string | undefined;
  readonly calibrate: string | undefined;
  readonly evaluate: string | undefined;
  readonly calibrationCache: string | undefined;
  readonly rounding: string | undefined;
  readonly allocate: string | undefined;
  readonly refine: string | undefined;
  readonly transforms: string | undefined;
  readonly activations: string | undefined;
  readonly shape: readonly string[] | undefined;
  readonly fix: readonly string[] | undefined;
  readonly skip: readonly string[] | undefined;
  readonly seed: number | undefined;
  readonly fusion: boolean;
  readonly algebra: boolean;
  readonly cache: boolean;
  readonly canaries: boolean;
  readonly explain: boolean;
  readonly dump: string | undefined;
}

/** Compiles a model. */
export const compile: Command = command({
  usage: 'compile <model>',
  summary: 'compile a model into bundles',
  options: (parser) =>
    parser
      .positional('model', {
        type: 'string',
        demandOption: true,
        describe: 'an ONNX file, a model folder, a URL, builtin:nib, shape:…',
      })
      .option('target', {
        type: 'string',
        demandOption: true,
        describe: 'what for: id[,id]; see fettle targets',
      })
      .option('out', {
        type: 'string',
        demandOption: true,
        describe: 'a folder, or name.fettle for one file',
      })
      .option('recipe', {
        type: 'string',
        describe: `a JSON file, or ${Object.keys(presets).join(', ')}`,
      })
      .option('max-size', { type: 'string', describe: 'most bytes of the bundle, such as 3MB' })
      .option('max-memory', { type: 'string', describe: 'most bytes of a session, such as 450MB' })
      .option('max-loss', {
        type: 'string',
        describe: 'largest loss of quality, such as 1%; needs --calibrate or --evaluate',
      })
      .option('weights', {
        type: 'string',
        describe: 'number format of weights (fettle formats), or auto, auto:4.2 for average bits',
      })
      .option('drop-layers', {
        type: 'string',
        describe: 'blocks to drop: a number or auto (not supported yet)',
      })
      .option('kv', {
        type: 'string',
        describe: 'number format of the KV cache: f32 or f16 (half the memory)',
      })
      .option('calibrate', {
        type: 'string',
        describe:
          'text, .npy or .npz samples, a folder of images, or self: what weights are fitted to',
      })
      .option('evaluate', {
        type: 'string',
        describe:
          'other data that quality is measured on; default: the last quarter of --calibrate',
      })
      .option('calibration-cache', {
        type: 'string',
        describe: 'folder of finished parts of calibration; default: in ~/.cache/fettle',
      })
      .option('rounding', {
        choices: roundings,
        describe: 'how weights are rounded; default: gptq with --calibrate',
      })
      .option('allocate', {
        choices: ['ours', ...baselineNames],
        describe: 'how auto divides a budget: ours, or a baseline to compare with',
      })
      .option('refine', {
        choices: ['none', 'evolve'],
        describe: 'measure mutants of the chosen formats and keep better ones',
      })
      .option('transforms', {
        type: 'string',
        describe: `exact changes of weights before they are rounded, some of: ${transformSpellings.join(', ')}`,
      })
      .option('activations', {
        type: 'string',
        describe:
          'what weights are multiplied with: auto, f32, int8, or by name, such as int8,head*=f32',
      })
      .option('shape', {
        type: 'string',
        array: true,
        describe: 'fix sizes: input=1x3x48x320 or batch=1',
      })
      .option('fix', {
        type: 'string',
        array: true,
        describe: 'make a constant of an input: sr=16000',
      })
      .option('skip', {
        type: 'string',
        array: true,
        describe: 'weights that keep their dtype; * matches',
      })
      .option('seed', { type: 'number', describe: 'seed of everything random' })
      .option('fusion', {
        type: 'boolean',
        default: true,
        describe: 'make few ops of many; --no-fusion leaves the graph as it is',
      })
      .option('algebra', {
        type: 'boolean',
        default: true,
        describe: 'fold factors, gains and norms into weights; --no-algebra leaves weights alone',
      })
      .option('cache', {
        type: 'boolean',
        default: true,
        describe: 'give a causal decoder without a cache one; --no-cache leaves it without',
      })
      .option('canaries', {
        type: 'boolean',
        default: true,
        describe: 'store inputs and outputs for session.check()',
      })
      .option('explain', {
        type: 'boolean',
        default: false,
        describe: 'say what every pass did and left alone',
      })
      .option('dump', {
        type: 'string',
        describe: 'folder for the graph as text after every pass',
      }),
  run: async (args, output) => {
    const recipe = recipeOf(args);
    const source = await modelSource(args.model, output);
    const { dump } = args;
    const files = new NodeFiles();
    if (dump !== undefined) mkdirSync(dump, { recursive: true });
    const parts: CacheUse = { found: 0, made: 0 };
    const result = await compileModel(source, {
      targets: args.target.split(','),
      files,
      out: args.out,
      recipe,
      log: output,
      progress: output.progress,
      signal: output.signal,
      run: bundleRunner(files, openBundle),
      ...(await dataOptions(args, recipe, source, output, parts)),
      ...(dump === undefined
        ? {}
        : { dump: (name, text) => writeFileSync(join(dump, `${name}.txt`), text) }),
    });
    const peakRssBytes = processMemory().peakBytes;
    const remainders = args.explain
      ? await explainRemainders(source.read(), contextLengthIn(source.config))
      : undefined;
    const isCalibrated = parts.found + parts.made > 0;
    const text = describe(result, peakRssBytes, args.explain, isCalibrated ? parts : undefined);
    output.result(
      {
        ...result,
        peakRssBytes,
        ...(isCalibrated ? { calibrationParts: parts } : {}),
        ...(remainders === undefined ? {} : { remainders }),
      },
      remainders === undefined ? text : `${text}\n\n${describeRemainders(remainders)}`,
    );
  },
});

/** What `--calibrate` and `--evaluate` bring. */
async function dataOptions(
  args: Pick<Arguments, 'calibrate' | 'evaluate' | 'calibrationCache'>,
  recipe: Recipe,
  source: ModelSource,
  output: Output,
  parts: CacheUse,
): Promise<Pick<CompileOptions, 'calibration' | 'measure'>> {
  const { calibrate, evaluate, calibrationCache: folder } = args;
  if (calibrate === undefined && evaluate === undefined) return {};
  const { calibration, evaluation, warning }: Partial<DataSplit> =
    calibrate === undefined
      ? { evaluation: readNamed(evaluate ?? '') }
      : readSplit(calibrate, evaluate);
  if (evaluation === undefined) return {};
  if (warning !== undefined) output.warn(warning);
  await checkEvaluation(evaluation, source);
  const measure = measureLoss(source, evaluation, output);
  if (calibration !== undefined)
    output.info(
      `calibrating on ${calibration.name} (${calibration.sha256.slice(0, 12)}), measuring on ${measure === undefined ? 'nothing' : `${evaluation.name} (${evaluation.sha256.slice(0, 12)})`}`,
    );
  return {
    ...(measure === undefined ? {} : { measure }),
    ...(calibration === undefined
      ? {}
      : {
          calibration: {
            samples: samplesFrom(calibration, source, output, recipe.seed),
            engines: { wasm: wasmEngine(), ort: ortEngine({ provider: 'wasm', threads: 1 }) },
            cache: countedCache(calibrationCache(folder), parts),
          },
        }),
  };
}

/** The recipe: a preset or file, then the flags. */
function recipeOf(args: Arguments): Recipe {
  const flags = {
    weights: args.weights,
    maxSize: args.maxSize,
    maxMemory: args.maxMemory,
    maxLoss: args.maxLoss,
    rounding: args.rounding,
    allocate: args.allocate,
    refine: args.refine,
    transforms: args.transforms,
    activations: args.activations,
    dropLayers: args.dropLayers,
    kv: args.kv,
    skip: args.skip,
    seed: args.seed,
    fusion: args.fusion ? undefined : false,
    algebra: args.algebra ? undefined : false,
    cache: args.cache ? undefined : false,
    canaries: args.canaries ? undefined : false,
    shapes:
      args.shape === undefined ? undefined : Object.fromEntries(args.shape.map(parseShapeOption)),
    fixed: args.fix === undefined ? undefined : Object.fromEntries(args.fix.map(parseFixOption)),
  };
  const given = Object.entries(flags).filter(([, value]) => value !== undefined);
  return parseRecipe(Object.fromEntries(given), baseRecipe(args.recipe));
}

function baseRecipe(name: string | undefined): Recipe | undefined {
  if (name === undefined) return undefined;
  if (!/[./\\]/.test(name)) return presetRecipe(name);
  try {
    return parseRecipe(JSON.parse(readFileSync(name, 'utf8')));
  } catch (cause) {
    if (cause instanceof FettleError) throw cause;
    throw new FettleError(
      'USAGE',
      `Cannot read the recipe "${name}": ${(cause as Error).message}.`,
      {
        at: { file: name },
        fix: 'Give the path of a JSON file, or the name of a preset.',
        cause,
      },
    );
  }
}

function describe(
  result: CompileResult,
  peakRssBytes: number,
  explain: boolean,
  calibrated: CacheUse | undefined,
): string {
  const parts = [
    table(
      ['bundle', 'target', 'weights', 'size', 'files', 'memory', 'sha256'],
      result.bundles.map(({ path, target, weights, bytes, files, memory, sha256 }) => [
        path,
        target,
        weights ?? 'as they are',
        formatBytes(bytes),
        files,
        formatBytes(memory.weights + memory.arena + memory.state + (memory.stack ?? 0)),
        sha256.slice(0, 12),
      ]),
    ),
  ];
  for (const { warnings } of result.bundles)
    parts.push(...warnings.map((one) => `warning: ${one}`));
  for (const { target, error } of result.refused ?? [])
    parts.push(`warning: no bundle for ${target}: ${error.message}`);
  if (result.loss !== undefined)
    parts.push(
      `${result.loss.metric}: ${result.loss.before.toPrecision(6)} before, ${result.loss.after.toPrecision(6)} after`,
    );
  if (explain)
    for (const { target, activations } of result.bundles)
      parts.push(`${target}: ${activationText(activations)}`);
  if (explain)
    parts.push(
      '',
      explainPasses(result.passes),
      ...(result.bundles.some((bundle) => bundle.table !== undefined)
        ? result.bundles.flatMap(explainFormats)
        : explainStorage(result.passes)),
    );
  if (calibrated !== undefined)
    parts.push(
      `calibration: ${calibrated.made} parts made, ${calibrated.found} found where an earlier run left them`,
    );
  parts.push(`${formatMs(result.wallMs)}, peak memory ${formatBytes(peakRssBytes)}`);
  return parts.join('\n');
}

/** What fusion left as it was. */
function describeRemainders(remainders: readonly Remainder[]): string {
  const lines = remainders.flatMap(({ op, count, example, reasons }) => [
    `  ${count} x ${op}, such as ${example}`,
    ...reasons.map((reason) => `    ${reason}`),
  ]);
  return ['not fused:', ...(lines.length > 0 ? lines : ['  nothing'])].join('\n');
}
