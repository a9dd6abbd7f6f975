/** Reading what users give as data: text, arrays, images. */
import { createHash } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { extname, join } from 'node:path';
import { loadImage } from '../../models/image.ts';
import { readNpy } from '../../models/npy.ts';
import { FettleError } from '../../runtime/errors.ts';
import type { TensorSpec } from '../../runtime/manifest.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { tensor } from '../../runtime/tensor.ts';
import { toF32 } from '../evaluate/numbers.ts';

/** A file's bytes; a failure says which file and why. */
export function readData(path: string): Uint8Array {
  try {
    return readFileSync(path);
  } catch (cause) {
    throw new FettleError('IO_FAILED', `Cannot read "${path}": ${(cause as Error).message}.`, {
      at: { file: path },
      fix: 'Check the path.',
      cause,
    });
  }
}

/** Lower-case hex SHA-256. */
export function sha256Of(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

/** Text of a file, UTF-8, and the hash that reports name it by. */
export function readText(path: string): { readonly text: string; readonly sha256: string } {
  const bytes = readData(path);
  return { text: new TextDecoder().decode(bytes), sha256: sha256Of(bytes) };
}

/** How pixels become numbers. */
export interface PixelOptions {
  /** Subtracted per channel, after scaling to 0..1. */
  readonly mean?: readonly number[];
  /** Divided by per channel. */
  readonly deviation?: readonly number[];
}

/**
 * A tensor for an input: `.npy` (bytes are scaled to 0..1 for f32), or an image that is resized to the input's height and width.
 *
 * @param path - the file
 * @param spec - what the model wants; images need [1, channels, height, width]
 */
export async function readTensor(
  path: string,
  spec: TensorSpec,
  pixels: PixelOptions = {},
): Promise<Tensor> {
  const bytes = readData(path);
  if (extname(path) === '.npy') {
    const array = readNpy(bytes, path);
    // images as bytes, as data sets store them
    if (array.dtype !== 'u8' || spec.dtype !== 'f32') return array;
    return tensor(
      'f32',
      array.shape,
      toF32(array).map((value) => value / 255),
    );
  }
  const [, channels, height, width] = spec.shape;
  if (spec.shape.length !== 4 || (channels !== 1 && channels !== 3))
    throw new FettleError(
      'USAGE',
      `Input "${spec.name}" takes ${spec.dtype} [${spec.shape.join(', ')}], which is no image.`,
      {
        at: { input: spec.name, file: path },
        fix: 'Give a .npy file.',
      },
    );
  return loadImage(
    bytes,
    {
      channels,
      ...(typeof height === 'number' ? { height } : {}),
      ...(typeof width === 'number' ? { width } : {}),
      ...pixels,
    },
    path,
  );
}

/** Splits `name=value`; without a name the value belongs to the only input. */
export function splitAssignment(
  text: string,
  names: readonly string[],
): readonly [name: string, value: string] {
  const at = text.indexOf('=');
  if (at > 0) return [text.slice(0, at), text.slice(at + 1)];
  const [only, second] = names;
  if (only !== undefined && second === undefined) return [only, text];
  throw new FettleError('USAGE', `"${text}" does not say which input it is for.`, {
    at: { option: 'input' },
    fix: `Write ${names[0] ?? 'name'}=${text}. Inputs are: ${names.join(', ')}.`,
  });
}

/** The labels beside a file of samples: `x-images.npy` -> `x-labels.npy`, or `labels.npy` in its folder. */
export function labelsBeside(path: string): string {
  const renamed = path.replace(/images(?=[^/\\]*$)/, 'labels');
  return renamed !== path && statSync(renamed, { throwIfNoEntry: false }) !== undefined
    ? renamed
    : join(path, '..', 'labels.npy');
}
