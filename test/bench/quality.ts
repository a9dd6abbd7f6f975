/**
 * What weights in few bits cost: perplexity of `builtin:nib` on text that nothing was fitted to, for one
 * format for all weights and for formats chosen one by one, by us and by other orders of merit. The table
 * and head, scales, zero points, padding and alignment are counted; sizes are those of target `wasm`.
 * Everything is computed in f32 with the dequantized weights.
 *
 *   uniform RTN, GPTQ   the largest format whose nominal bits fit (w3g16 counts 4.0)
 *   hawq lim zd baq     our candidates, rounded by GPTQ as ours are, divided as those papers do
 *   ours                the sensitivity table and the solver, rounded by GPTQ
 *
 * Then the accuracy of the two digit classifiers in w4 and mixed, and how far PP-OCRv4's recognition is
 * from its original on images of text. Prints JSON with `--json`, else Markdown.
 *
 *     npm run bench:quality [-- --json] [--tokens 40192] [--held-tokens 16384] [--windows 64]
 *         [--only nib,digits,ocr]
 *         [--sizes 4,3.5,3,2.5] [--methods ours,gptq,rtn,hawq,lim,zd,baq] [--texts wikitext,heldout,unmarked]
 */
import { homedir } from 'node:os';
import { join } from 'node:path';
import { readFileSync } from 'node:fs';
import sharp from 'sharp';
import { FolderCache } from '../../compiler/calibrate/cache.ts';
import { LiveModel } from '../../compiler/calibrate/live-model.ts';
import type { Samples } from '../../compiler/calibrate/samples.ts';
import {
  arraySamples,
  chooseWindows,
  defaultWindows,
  partOf,
  tensorSamples,
  vocabularyOf,
  windowSamples,
} from '../../compiler/calibrate/samples.ts';
import { varyWindows } from '../../compiler/calibrate/vary-windows.ts';
import { subjectOf } from '../../compiler/calibrate/subject.ts';
import type { Front } from '../../compiler/front-half.ts';
import { FrontHalves } from '../../compiler/front-half.ts';
import { MemoryFiles } from '../../compiler/files.ts';
import { NodeFiles } from '../../compiler/node.ts';
import { resolveModel } from '../../compiler/node-source.ts';
import type { Assignment } from '../../compiler/passes/quantize-weights.ts';
import { bitsPerWeight, numberFormats, parseFormat } from '../../compiler/quant/formats.ts';
import type { WeightFormat } from '../../compiler/quant/formats.ts';
import { dequantizeMatrix } from '../../compiler/quant/matrix.ts';
import type { RoundingName } from '../../compiler/recipe.ts';
import { parseRecipe } from '../../compiler/recipe.ts';
import type { AllocatedFormats } from '../../compiler/search/allocate.ts';
import { allocate } from '../../compiler/search/allocate.ts';
import { baselineNames } from '../../compiler/search/baselines.ts';
import {
  CalibratedModel,
  gateCount,
  MIN_MIXED_ELEMENTS,
} from '../../compiler/search/calibrated.ts';
import { matrixCost } from '../../compiler/search/cost.ts';
import { FormatSearch } from '../../compiler/search/format-search.ts';
import { tokenize } from '../../compiler/cli/calibration-data.ts';
import { loadImage } from '../../models/image.ts';
import { readNpy } from '../../models/npy.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { wasm } from '../../targets/wasm.ts';
import { engines, recognition } from '../support/calibration.ts';
import { sharedPath } from '../support/shared.ts';

/** One measurement. */
interface Row {
  readonly model: string;
  /** Bits a weight that the row was given. */
  readonly bits: number;
  readonly method: string;
  /** What it chose, when it is one format. */
  readonly format?: string;
  readonly metric: string;
  readonly value: number;
  /** The same for the original. */
  readonly original: number;
  /** How far the outputs are from the original's, of text: KL in nats a token. */
  readonly kl?: number;
}

const WINDOW = 256;

const args = process.argv.slice(2);
const option = (name: string, fallback: string): string => {
  const at = args.indexOf(`--${name}`);
  return at < 0 ? fallback : (args[at + 1] ?? fallback);
};
const tokens = Number(option('tokens', '40192'));
const heldTokens = Number(option('held-tokens', '16384'));
const windows = Number(option('windows', '64'));
const sizes = option('sizes', '4,3.5,3,2.5').split(',').map(Number);
const methods = option('methods', 'ours,gptq,rtn,hawq,lim,zd,baq').split(',');
const textNames = option('texts', 'wikitext,heldout,unmarked').split(',');
const only = option('only', 'nib,digits,ocr').split(',');
const cache = new FolderCache(
  new NodeFiles(),
  option('cache', join(homedir(), '.cache/fettle/calibration')),
);
const began = performance.now();
const rows: Row[] = [];
const say = (text: string): void => {
  process.stderr.write(`${((performance.now() - began) / 1000).toFixed(0)} s  ${text}\n`);
};

/** Sentences drawn as images of one line. */
const sentences: readonly string[] = [
  'The river ran under the bridge',
  'Invoice 2024-0817',
  'Total 1,284.50 EUR',
  'Platform 9, 14:35',
  'Handle with care',
  'Open until 22:00',
  'quick brown fox',
  'Gate B12 closes',
  'Serial 8K4-221-XZ',
  'No entry after dark',
  'Milk 1.5% fat',
  'Exit to Main Street',
  'Passport control',
  'Room 417',
  'Keep refrigerated',
  'Batch 55310 / 03',
  'Made in Portugal',
  'Second floor left',
  'Mind the gap',
  'Best before 12.2027',
  'www.example.org',
  'Call 555 0142',
  'Size M, navy blue',
  'Thank you!',
];

if (only.includes('nib')) await nib();
if (only.includes('digits')) for (const name of ['digits-cnn', 'digits-vit']) await digits(name);
if (only.includes('ocr')) await ocr();
if (args.includes('--json'))
  process.stdout.write(`${JSON.stringify({ tokens, windows, rows }, undefined, 2)}\n`);
else process.stdout.write(`${markdown(rows)}\n`);

/** A model ready to be rounded by one method. */
async function opened(
  reference: string,
  rounding: RoundingName,
  samples: (front: Front) => Promise<Samples>,
): Promise<{ readonly front: Front; readonly calibrated: CalibratedModel }> {
  const source = await resolveModel(reference, { cacheFolder: '' });
  const recipe = parseRecipe({ weights: 'auto', rounding });
  const fronts = new FrontHalves(source, recipe, {
    targets: [],
    files: new MemoryFiles(),
    out: '',
  });
  const front = await fronts.of(wasm);
  const { model, decoder } = front;
  const calibrated = await CalibratedModel.open({
    model,
    decoder,
    target: wasm,
    recipe,
    minElements: MIN_MIXED_ELEMENTS,
    calibration: { samples: async () => samples(front), engines, cache },
  });
  return { front, calibrated };
}

/** A live model on held-out samples. */
async function held(
  { model, decoder }: Front,
  { services }: CalibratedModel,
  samples: Samples,
): Promise<LiveModel> {
  const subject = await subjectOf(model, decoder, samples, { minElements: MIN_MIXED_ELEMENTS });
  // the whole vocabulary: far from what a model was trained on, much of the loss is in unlikely tokens
  return LiveModel.open(subject, services, { topClasses: 4096 });
}

function setAll(live: LiveModel, assignments: ReadonlyMap<string, Assignment>): void {
  live.reset();
  for (const [name, { matrix }] of assignments)
    if (matrix !== undefined) live.setWeight(name, dequantizeMatrix(matrix));
}

/** The largest uniform format that nominally fits, inputs per channel of the typical matrix given. */
function uniformFormat(bits: number, columns: number): WeightFormat | undefined {
  return numberFormats
    .flatMap((format) => (format.kind === 'integer' ? [format] : []))
    .filter(({ group }) => group !== 'channel')
    .filter((format) => bitsPerWeight(format, columns) <= bits + 1e-9)
    .toSorted((a, b) => bitsPerWeight(b, columns) - bitsPerWeight(a, columns))[0];
}

function weightsOf({ units }: CalibratedModel): number {
  return units.reduce((sum, unit) => sum + unit.rows * unit.columns, 0);
}

/** Bits a weight that formats take, as ours are counted; up, so that they fit their own budget. */
function bitsOf(calibrated: CalibratedModel, formats: ReadonlyMap<string, WeightFormat>): number {
  const bytes = calibrated.units.reduce((sum, unit) => {
    const cost = matrixCost(unit, formats.get(unit.name) ?? parseFormat('f32'), wasm);
    return sum + (cost?.bytesDownload ?? 0);
  }, 0);
  return Math.ceil((8000 * bytes) / weightsOf(calibrated)) / 1000;
}

async function nib(): Promise<void> {
  const source = await resolveModel('builtin:nib', { cacheFolder: '' });
  const textIn = (name: string): string => readFileSync(sharedPath('data', name), 'utf8');
  const read = (name: string): Promise<readonly number[]> => tokenize(source, textIn(name), name);
  // one token of nine belongs to a mark that the model has never seen
  const unmarked = async (): Promise<readonly number[]> =>
    tokenize(source, textIn('wikitext2-test.txt').replaceAll(' <unk>', ''), 'wikitext2-test.txt');
  const fitted = await read('calibration.txt');
  const calibration = async ({ model, decoder }: Front): Promise<Samples> =>
    windowSamples(
      model,
      decoder,
      varyWindows(
        chooseWindows(fitted, 'calibration.txt', { count: windows }),
        gateCount({ count: windows, tokens: WINDOW }),
        vocabularyOf(model, decoder, 'calibration.txt'),
        defaultWindows.seed,
      ),
      'calibration.txt',
    );
  const gptq = await opened('builtin:nib', 'gptq', calibration);
  const nearest = await opened('builtin:nib', 'nearest', calibration);
  const known = {
    wikitext: async () =>
      textOf(gptq, 'wikitext2-test.txt', await read('wikitext2-test.txt'), tokens),
    heldout: async () => textOf(gptq, 'heldout.txt', await read('heldout.txt'), heldTokens),
    unmarked: async () =>
      textOf(gptq, 'wikitext2-test.txt without <unk>', await unmarked(), heldTokens),
  };
  const texts: Awaited<ReturnType<typeof textOf>>[] = [];
  for (const [name, open] of Object.entries(known))
    if (textNames.includes(name)) texts.push(await open());
  for (const { name, original } of texts) say(`nib: f32 ${original.toFixed(2)} on ${name}`);
  const add = async (
    bits: number,
    method: string,
    { calibrated }: typeof gptq,
    formats: ReadonlyMap<string, WeightFormat>,
    format?: string,
  ): Promise<void> => {
    const rounded = await calibrated.round(formats);
    for (const { name, live, original } of texts) {
      setAll(live, rounded);
      const { value, kl } = await perplexityOf(live);
      say(
        `nib: ${bits} bits, ${method} ${format ?? ''} ${value.toFixed(2)}, KL ${kl.toFixed(5)} on ${name}`,
      );
      rows.push({
        model: `nib, ${name}`,
        bits,
        method,
        ...(format === undefined ? {} : { format }),
        metric: 'perplexity',
        value,
        original,
        kl,
      });
    }
  };
  const search = await FormatSearch.open(gptq.calibrated, {
    name: 'nib',
    sha256: '',
    parameters: 0,
  });
  const weights = weightsOf(gptq.calibrated);
  for (const bits of sizes) {
    const bytes = (bits * weights) / 8;
    const chosen = methods.includes('ours') ? await search.choose(bytes) : undefined;
    const formats = (list: AllocatedFormats): Map<string, WeightFormat> =>
      new Map(list.rows.map(({ unit, option: name }) => [unit, parseFormat(name)]));
    if (chosen !== undefined) await add(bits, 'ours', gptq, formats(chosen.formats));
    for (const [method, one] of [
      ['uniform GPTQ', gptq] as const,
      ['uniform RTN', nearest] as const,
    ]) {
      const format = uniformFormat(bits, 192);
      const wanted = method === 'uniform GPTQ' ? 'gptq' : 'rtn';
      if (format === undefined || !methods.includes(wanted)) continue;
      await add(bits, method, one, one.calibrated.uniform(format), format.name);
    }
    for (const method of baselineNames.filter((name) => methods.includes(name))) {
      const found = allocate(search.table, { bytes }, method);
      if (found !== undefined) await add(bits, method, gptq, formats(found));
    }
  }
  await search.close();
  for (const { live } of texts) await live.dispose();
}

/** A text to measure on, with the original's perplexity. */
async function textOf(
  { front, calibrated }: Awaited<ReturnType<typeof opened>>,
  name: string,
  ids: readonly number[],
  most: number,
): Promise<{ readonly name: string; readonly live: LiveModel; readonly original: number }> {
  const places = Array.from({ length: Math.floor(most / WINDOW) }, (_, index) => index * WINDOW);
  const { model, decoder } = front;
  const windowsOf = (length: number): readonly (readonly number[])[] =>
    places.map((at) => ids.slice(at, at + length));
  const inputs = windowSamples(model, decoder, windowsOf(WINDOW), name);
  // every input predicts a token, the last one the first of the next window
  const live = await held(front, calibrated, { ...inputs, ids: windowsOf(WINDOW + 1) });
  return { name, live, original: (await perplexityOf(live)).value };
}

async function perplexityOf(
  live: LiveModel,
): Promise<{ readonly value: number; readonly kl: number }> {
  const { nats = NaN, error } = await live.measure();
  return { value: Math.exp(nats), kl: error };
}

async function digits(name: string): Promise<void> {
  const read = (file: string): Tensor => readNpy(readFileSync(sharedPath('data', file)), file);
  const samples =
    (file: string) =>
    async ({ model }: Front): Promise<Samples> =>
      arraySamples(model, new Map([[model.graph.inputs[0]?.name ?? '', read(file)]]), file);
  const reference = sharedPath('models', name, 'model.onnx');
  const some = async (front: Front): Promise<Samples> =>
    partOf(await samples('digits-calibration-images.npy')(front), 0, 256);
  const { front, calibrated } = await opened(reference, 'gptq', some);
  const live = await held(front, calibrated, await samples('digits-test-images.npy')(front));
  const labels = read('digits-test-labels.npy').data as ArrayLike<number>;
  const accuracy = async (): Promise<number> => {
    let correct = 0;
    for (let index = 0; index < live.samples; index++) {
      const [scores] = (await live.run(index)).values();
      const values = [...((scores?.data ?? []) as Float32Array)];
      if (values.indexOf(Math.max(...values)) === Number(labels[index])) correct++;
    }
    return correct / live.samples;
  };
  const original = await accuracy();
  const add = (bits: number, method: string, value: number, format?: string): void => {
    say(`${name}: ${bits} bits, ${method} ${value}`);
    rows.push({
      model: name,
      bits,
      method,
      ...(format === undefined ? {} : { format }),
      metric: 'accuracy',
      value,
      original,
    });
  };
  const uniform = calibrated.uniform(parseFormat('w4g32'));
  const same = bitsOf(calibrated, uniform);
  setAll(live, await calibrated.round(uniform));
  add(same, 'uniform GPTQ', await accuracy(), 'w4g32');
  const search = await FormatSearch.open(calibrated, { name, sha256: '', parameters: 0 });
  const weights = weightsOf(calibrated);
  for (const bits of [same, 4, 3]) {
    const chosen = await search.choose((bits * weights) / 8);
    if (chosen === undefined) continue;
    setAll(live, chosen.assignments);
    add(bits, 'ours', await accuracy());
  }
  await search.close();
  await live.dispose();
}

async function ocr(): Promise<void> {
  const images: Tensor[] = [];
  for (const sentence of sentences) {
    const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="320" height="48"><rect width="320" height="48" fill="#f4f1ea"/><text x="8" y="33" font-family="sans-serif" font-size="22" fill="#222">${sentence}</text></svg>`;
    const png = await sharp(Buffer.from(svg)).png().toBuffer();
    images.push(
      await loadImage(png, {
        channels: 3,
        height: 48,
        width: 320,
        mean: [0.5, 0.5, 0.5],
        deviation: [0.5, 0.5, 0.5],
      }),
    );
  }
  const all = async ({ model }: Front): Promise<Samples> =>
    tensorSamples(model.graph.inputs[0]?.name ?? '', images, 'images of text');
  const { front, calibrated } = await opened(recognition, 'gptq', async (it) =>
    partOf(await all(it), 0, 16),
  );
  const live = await held(front, calibrated, partOf(await all(front), 16, images.length));
  const add = async (bits: number, method: string, format?: string): Promise<void> => {
    const { error } = await live.measure();
    say(`PP-OCRv4 rec: ${bits} bits, ${method} ${error}`);
    rows.push({
      model: 'PP-OCRv4 rec',
      bits,
      method,
      ...(format === undefined ? {} : { format }),
      metric: live.metric,
      value: error,
      original: 0,
    });
  };
  const uniform = calibrated.uniform(parseFormat('w4g32'));
  const same = bitsOf(calibrated, uniform);
  setAll(live, await calibrated.round(uniform));
  await add(same, 'uniform GPTQ', 'w4g32');
  const search = await FormatSearch.open(calibrated, {
    name: 'PP-OCRv4 rec',
    sha256: '',
    parameters: 0,
  });
  const weights = weightsOf(calibrated);
  for (const bits of [same, 4]) {
    const chosen = await search.choose((bits * weights) / 8);
    if (chosen === undefined) continue;
    setAll(live, chosen.assignments);
    await add(bits, 'ours');
  }
  await search.close();
  await live.dispose();
}

/** A line per model and method, a column per size; of text, the same for KL. */
function markdown(list: readonly Row[]): string {
  const lines: string[] = [];
  for (const model of new Set(list.map((row) => row.model))) {
    const own = list.filter((row) => row.model === model);
    const [first] = own;
    lines.push(
      ...tableOf(
        `${model}: ${first?.metric ?? ''} (original ${first?.original.toPrecision(4)})`,
        own,
        ({ value, format }) =>
          `${value.toPrecision(4)}${format === undefined ? '' : ` (${format})`}`,
      ),
    );
    if (first?.kl !== undefined)
      lines.push(...tableOf(`${model}: KL to the original`, own, ({ kl }) => kl?.toFixed(4) ?? ''));
  }
  return lines.join('\n');
}

function tableOf(title: string, list: readonly Row[], cell: (row: Row) => string): string[] {
  const sizes = [...new Set(list.map(({ bits }) => bits))].toSorted((a, b) => b - a);
  const methods = [...new Set(list.map(({ method }) => method))];
  const cellOf = (method: string, bits: number): string => {
    const found = list.find((row) => row.method === method && row.bits === bits);
    return found === undefined ? '' : cell(found);
  };
  return [
    `| ${title} | ${sizes.map((bits) => `${bits} bits`).join(' | ')} |`,
    `|---|${sizes.map(() => '---:|').join('')}`,
    ...methods.map(
      (method) => `| ${method} | ${sizes.map((bits) => cellOf(method, bits)).join(' | ')} |`,
    ),
    '',
  ];
}
