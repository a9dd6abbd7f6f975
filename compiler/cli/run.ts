/** `fettle run`: one call of a model. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { writeNpy } from '../../models/npy.ts';
import { FettleError, nearest } from '../../runtime/errors.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { toF32 } from '../evaluate/numbers.ts';
import type { Command } from './command.ts';
import { command } from './command.ts';
import { readTensor, splitAssignment } from './data.ts';
import { openRunnable } from './opening.ts';
import { formatMs, table } from './text.ts';

/** Values of an output shown to people. */
const SHOWN_VALUES = 8;

/** Runs a model once on files. */
export const run: Command = command({
  usage: 'run <bundle>',
  summary: 'run a bundle (or a model as it is) once',
  options: (parser) =>
    parser
      .positional('bundle', { type: 'string', demandOption: true, describe: 'a bundle or a model' })
      .option('input', {
        type: 'string',
        array: true,
        demandOption: true,
        describe: 'name=file.npy or name=image.png',
      })
      .option('output', { type: 'string', describe: 'folder for the outputs as .npy' })
      .option('mean', {
        type: 'string',
        describe: 'subtracted from pixels, per channel: 0.485,0.456,0.406',
      })
      .option('deviation', { type: 'string', describe: 'pixels are divided by it, per channel' }),
  run: async (args, output) => {
    const { session, name } = await openRunnable(args.bundle, output);
    try {
      const { inputs } = session.manifest;
      const names = inputs.map((spec) => spec.name);
      const pixels = { ...numbers('mean', args.mean), ...numbers('deviation', args.deviation) };
      const feeds: Record<string, Tensor> = {};
      for (const text of args.input) {
        const [key, path] = splitAssignment(text, names);
        const spec = inputs.find((one) => one.name === key);
        if (spec === undefined) {
          const close = nearest(key, names);
          throw new FettleError('USAGE', `"${name}" has no input "${key}".`, {
            at: { option: 'input', input: key },
            fix:
              close === undefined ? `Inputs are: ${names.join(', ')}.` : `Did you mean "${close}"?`,
          });
        }
        feeds[key] = await readTensor(path, spec, pixels);
      }
      const startMs = performance.now();
      const outputs = await session.run(feeds, { signal: output.signal });
      const wallMs = performance.now() - startMs;
      const files = args.output === undefined ? undefined : save(outputs, args.output);
      output.result(
        {
          model: name,
          wallMs,
          outputs: Object.entries(outputs).map(([key, { dtype, shape }]) => ({
            name: key,
            dtype,
            shape,
            file: files?.get(key),
          })),
        },
        `${table(
          ['output', 'dtype', 'shape', 'values'],
          Object.entries(outputs).map(([key, value]) => [
            key,
            value.dtype,
            value.shape.join('x'),
            preview(value),
          ]),
        )}\n${formatMs(wallMs)}`,
      );
    } finally {
      await session.dispose();
    }
  },
});

/** Writes each output as `<name>.npy`; characters that no file name should have become `_`. */
function save(outputs: Readonly<Record<string, Tensor>>, folder: string): Map<string, string> {
  const files = new Map<string, string>();
  try {
    mkdirSync(folder, { recursive: true });
    for (const [name, tensor] of Object.entries(outputs)) {
      const file = join(folder, `${name.replace(/[^\w.-]/g, '_')}.npy`);
      writeFileSync(file, writeNpy(tensor));
      files.set(name, file);
    }
  } catch (cause) {
    if (cause instanceof FettleError) throw cause;
    throw new FettleError(
      'IO_FAILED',
      `Cannot write to "${folder}": ${(cause as Error).message}.`,
      {
        at: { folder },
        fix: 'Choose a folder that can be written.',
        cause,
      },
    );
  }
  return files;
}

function preview(tensor: Tensor): string {
  if (tensor.dtype === 'string')
    return (tensor.data as readonly string[]).slice(0, SHOWN_VALUES).join(' ');
  const shown = Array.from(toF32(tensor).subarray(0, SHOWN_VALUES), (value) =>
    value.toPrecision(4),
  );
  return shown.join(' ') + (tensor.data.length > SHOWN_VALUES ? ' …' : '');
}

function numbers(option: 'mean' | 'deviation', text: string | undefined): Record<string, number[]> {
  if (text === undefined) return {};
  const values = text.split(',').map(Number);
  if (values.every(Number.isFinite)) return { [option]: values };
  throw new FettleError('USAGE', `--${option}: wanted numbers, got "${text}".`, {
    at: { option },
    fix: `Write --${option} 0.485,0.456,0.406.`,
  });
}
