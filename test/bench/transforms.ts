/**
 * What transforms and ways of rounding are worth on `builtin:nib`: KL to the original and perplexity for
 * one format for all weights, computed in f32 with the dequantized weights. Choices are made on
 * `heldout.txt`; WikiText-2 is only reported. One JSON line a row, Markdown at the end.
 *
 *     node --import tsx test/bench/transforms.ts [--windows 24] [--tokens 8192]
 *         [--formats w4g32a,w3g32a,w2g32a] [--only name,name]
 */
import { readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { FolderCache } from '../../compiler/calibrate/cache.ts';
import { ReferenceOutputs } from '../../compiler/calibrate/reference-outputs.ts';
import type { Samples } from '../../compiler/calibrate/samples.ts';
import { chooseWindows, windowSamples } from '../../compiler/calibrate/samples.ts';
import { openStage } from '../../compiler/calibrate/stage-runner.ts';
import { subjectOf } from '../../compiler/calibrate/subject.ts';
import { tokenize } from '../../compiler/cli/calibration-data.ts';
import { MemoryFiles } from '../../compiler/files.ts';
import { fitTransforms } from '../../compiler/fit-transforms.ts';
import { FrontHalves } from '../../compiler/front-half.ts';
import { cloneModel } from '../../compiler/ir/clone.ts';
import { NodeFiles } from '../../compiler/node.ts';
import { resolveModel } from '../../compiler/node-source.ts';
import { correctBias } from '../../compiler/passes/correct-bias.ts';
import { parseFormat } from '../../compiler/quant/formats.ts';
import { dequantizeMatrix } from '../../compiler/quant/matrix.ts';
import { parseRecipe } from '../../compiler/recipe.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { CalibratedModel } from '../../compiler/search/calibrated.ts';
import { wasm } from '../../targets/wasm.ts';
import { engines } from '../support/calibration.ts';
import { sharedPath } from '../support/shared.ts';

const WINDOW = 256;

const args = process.argv.slice(2);
const option = (name: string, fallback: string): string => {
  const at = args.indexOf(`--${name}`);
  return at < 0 ? fallback : (args[at + 1] ?? fallback);
};

/** What is compared: a rounding and the transforms in front of it. */
const configurations: Readonly<Record<string, { rounding: string; transforms?: string }>> = {
  nearest: { rounding: 'nearest' },
  'awq+nearest': { rounding: 'nearest', transforms: 'scale-channels' },
  'bias+nearest': { rounding: 'nearest', transforms: 'correct-bias' },
  'rotate+nearest': { rounding: 'nearest', transforms: 'rotate-spine,rotate-values' },
  gptq: { rounding: 'gptq' },
  rsq: { rounding: 'rsq' },
  'awq+gptq': { rounding: 'gptq', transforms: 'scale-channels' },
  'bias+gptq': { rounding: 'gptq', transforms: 'correct-bias' },
  'values+gptq': { rounding: 'gptq', transforms: 'rotate-values' },
  'rotate+gptq': { rounding: 'gptq', transforms: 'rotate-spine,rotate-values' },
  'untie+gptq': { rounding: 'gptq', transforms: 'rotate-spine:untie,rotate-values' },
  'rotate+rsq': { rounding: 'rsq', transforms: 'rotate-spine,rotate-values' },
};

const windows = Number(option('windows', '24'));
const count = Math.floor(Number(option('tokens', '8192')) / WINDOW);
const formats = option('formats', 'w4g32a,w3g32a,w2g32a').split(',');
const names = option('only', Object.keys(configurations).join()).split(',');

const source = await resolveModel('builtin:nib', { cacheFolder: '' });
const read = (name: string): Promise<readonly number[]> =>
  tokenize(source, readFileSync(sharedPath('data', name), 'utf8'), name);
const fitted = chooseWindows(await read('calibration.txt'), 'calibration.txt', { count: windows });
const texts = [await read('heldout.txt'), await read('wikitext2-test.txt')];
const cache = new FolderCache(new NodeFiles(), join(homedir(), '.cache/fettle/calibration'));

/** The front half for a recipe, its samples and those that are measured on. */
async function opened(rounding: string, transforms: string | undefined, weights: string) {
  const recipe = parseRecipe({
    weights,
    rounding,
    ...(transforms === undefined ? {} : { transforms }),
  });
  const options = { targets: [], files: new MemoryFiles(), out: '' };
  const front = await new FrontHalves(source, recipe, options).of(wasm);
  const samples = async (): Promise<Samples> =>
    windowSamples(front.model, front.decoder, fitted, 'calibration.txt');
  const made = await fitTransforms(
    { front, recipe, target: wasm, options },
    { samples, engines, cache },
  );
  const { model, decoder } = made.request.front;
  const calibrated = await CalibratedModel.open({
    model,
    decoder,
    target: wasm,
    recipe,
    calibration: made.calibration,
  });
  return { model, decoder, calibrated, reports: made.reports };
}

const base = await opened('nearest', undefined, 'f32');
const measured = windowSamples(
  base.model,
  base.decoder,
  texts.flatMap((ids) =>
    Array.from({ length: count }, (_, i) => ids.slice(i * WINDOW, (i + 1) * WINDOW)),
  ),
  'texts',
);
const idsOf = (index: number): readonly number[] => {
  const at = (index % count) * WINDOW;
  return texts[Math.floor(index / count)]?.slice(at, at + WINDOW + 1) ?? [];
};
const subject = await subjectOf(base.model, base.decoder, measured);
const reference = new ReferenceOutputs(subject.model, base.decoder);
const original = await openStage(subject.model, { engines, units: [] });
for (let index = 0; index < measured.count; index++)
  reference.keep(index, await original.run(measured.at(index)));
await original.dispose();

interface Row {
  readonly name: string;
  readonly format: string;
  readonly kl: readonly number[];
  readonly perplexity: readonly number[];
  readonly seconds: number;
}
const rows: Row[] = [];

for (const format of formats)
  for (const name of names) {
    const configuration = configurations[name];
    if (configuration === undefined) throw new RangeError(`no configuration "${name}"`);
    const began = performance.now();
    const { rounding, transforms } = configuration;
    const { model, decoder, calibrated } = await opened(rounding, transforms, format);
    const assignments = await calibrated.round(calibrated.uniform(parseFormat(format)));
    const changed = cloneModel(model);
    if (transforms?.includes('correct-bias') === true)
      await runPasses(changed, [correctBias({ shifts: await calibrated.biasShifts(assignments) })]);
    const { model: fixed, units } = await subjectOf(changed, decoder, measured);
    const weights = new Map(
      [...assignments].flatMap(([unit, { matrix }]) =>
        matrix === undefined ? [] : [[unit, dequantizeMatrix(matrix)] as const],
      ),
    );
    const runner = await openStage(fixed, { engines, units, weights });
    const [kl, nats] = [
      [0, 0],
      [0, 0],
    ];
    for (let index = 0; index < measured.count; index++) {
      const of = Math.floor(index / count);
      const found = reference.compare(index, await runner.run(measured.at(index)), idsOf(index));
      kl[of] = (kl[of] ?? 0) + found.error / count;
      nats[of] = (nats[of] ?? 0) + (found.nats ?? NaN) / count;
    }
    await runner.dispose();
    const seconds = Math.round((performance.now() - began) / 1000);
    const row = { name, format, kl, perplexity: nats.map(Math.exp), seconds };
    rows.push(row);
    process.stdout.write(`${JSON.stringify(row)}\n`);
  }

process.stdout.write(
  `\nKL on heldout.txt, KL on WikiText-2, perplexity there; ${count * WINDOW} tokens each, calibrated on ${windows * WINDOW}\n\n` +
    `| | ${formats.join(' | ')} |\n|---|${formats.map(() => '---:|').join('')}\n`,
);
for (const name of names) {
  const cells = formats.map((format) => {
    const row = rows.find((one) => one.name === name && one.format === format);
    const [held = NaN, wiki = NaN] = row?.kl ?? [];
    return `${held.toFixed(4)}, ${wiki.toFixed(4)}, ${row?.perplexity[1]?.toFixed(1)}`;
  });
  process.stdout.write(`| ${name} | ${cells.join(' | ')} |\n`);
}
