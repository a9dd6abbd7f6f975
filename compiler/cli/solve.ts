/** `fettle solve`: formats for another budget, from the sensitivity table of a bundle; no model is read. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { FettleError } from '../../runtime/errors.ts';
import { readListedFile, readManifest } from '../../runtime/load.ts';
import { bundleSource } from '../../runtime/node.ts';
import { averageBits, parseRecipe } from '../recipe.ts';
import type { AllocatedFormats } from '../search/allocate.ts';
import { allocate, belowFloor, unitBudget } from '../search/allocate.ts';
import { baselineNames } from '../search/baselines.ts';
import type { SensitivityTable } from '../search/table.ts';
import { decodeTable, TABLE_PATH } from '../search/table.ts';
import { formatBytes } from '../units.ts';
import type { Command } from './command.ts';
import { command } from './command.ts';
import { readData } from './data.ts';
import { bundlePath, isBundle } from './opening.ts';
import { table as textTable } from './text.ts';

/** Solves a budget from a table. */
export const solve: Command = command({
  usage: 'solve <table>',
  summary: 'choose weight formats for another budget from the sensitivity table of a bundle',
  options: (parser) =>
    parser
      .positional('table', {
        type: 'string',
        demandOption: true,
        describe: 'a bundle compiled with --calibrate, or its sensitivity.json',
      })
      .option('max-size', { type: 'string', describe: 'most bytes of the bundle, such as 3MB' })
      .option('weights', { type: 'string', describe: 'average bits, everything counted: auto:4.2' })
      .option('allocate', {
        choices: ['ours', ...baselineNames],
        default: 'ours',
        describe: 'how the budget is divided: ours, or a baseline to compare with',
      }),
  run: async (args, output) => {
    const found = await readTable(args.table);
    const given = { maxSize: args.maxSize, weights: args.weights, allocate: args.allocate };
    const recipe = parseRecipe(
      Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined)),
    );
    const bits = averageBits(recipe.weights);
    if (recipe.maxSize === undefined && bits === undefined)
      throw new FettleError('USAGE', 'No budget is given.', {
        at: { option: 'max-size' },
        fix: 'Add --max-size 3MB or --weights auto:4.2.',
      });
    const budget = unitBudget(found, { maxSize: recipe.maxSize, averageBits: bits });
    const answer = allocate(found, { bytes: budget }, recipe.allocate);
    if (answer === undefined) throw belowFloor(found, budget, { averageBits: bits });
    output.result(summary(found, answer), describe(found, answer));
  },
});

async function readTable(reference: string): Promise<SensitivityTable> {
  if (!isBundle(reference)) {
    const file = join(reference, TABLE_PATH);
    const path = existsSync(file) ? file : reference;
    return decodeTable(readData(path), path);
  }
  const source = await bundleSource(bundlePath(reference));
  const manifest = await readManifest(source, {});
  if (!manifest.files.some(({ path }) => path === TABLE_PATH))
    throw new FettleError('USAGE', `"${reference}" carries no sensitivity table.`, {
      at: { bundle: reference },
      fix: 'Compile it with --calibrate and a budget.',
    });
  return decodeTable(await readListedFile(source, manifest, TABLE_PATH, {}), TABLE_PATH);
}

function summary(found: SensitivityTable, answer: AllocatedFormats): object {
  const weightBytes = answer.bytes + found.fixedBytes;
  return {
    model: found.model.name,
    target: found.target,
    bytes: weightBytes + found.overheadBytes,
    weightBytes,
    averageBits: (8 * weightBytes) / found.model.parameters,
    predictedError: answer.error,
    metric: found.metric,
    timeUs: answer.timeUs,
    formats: Object.fromEntries(answer.rows.map(({ unit, option }) => [unit, option])),
  };
}

function describe(found: SensitivityTable, answer: AllocatedFormats): string {
  const rows = answer.rows.map((row, index) => [
    found.units[index]?.role ?? row.unit,
    row.option,
    formatBytes(row.bytesDownload),
    (row.kl ?? row.klProxy).toExponential(2),
    ['predicted', 'measured', 'measured in pairs'][row.tier],
  ]);
  const weightBytes = answer.bytes + found.fixedBytes;
  return [
    textTable(['weight', 'format', 'size', found.metric, 'how'], rows),
    '',
    `${found.model.name} for ${found.target}: ${formatBytes(weightBytes + found.overheadBytes)}, ` +
      `${((8 * weightBytes) / found.model.parameters).toFixed(3)} bits a parameter, predicted ${found.metric} ${answer.error.toPrecision(3)}`,
  ].join('\n');
}
