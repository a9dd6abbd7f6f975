/**
 * Images to tensors: decode, resize, scale and arrange as a vision model wants them. Decoding is
 * sharp's (libvips), loaded when the first image is.
 */
import type { Sharp } from 'sharp';
import type * as SharpModule from 'sharp';
import { FettleError, outOfRange } from '../runtime/errors.ts';
import type { Tensor } from '../runtime/tensor.ts';
import { tensor } from '../runtime/tensor.ts';

/** How an image becomes a tensor. */
export interface ImageOptions {
  /** Height in pixels; default: the image's. */
  readonly height?: number;
  /** Width in pixels; default: the image's. */
  readonly width?: number;
  /**
   * How the image meets another aspect ratio: `fill` stretches, `cover` crops the middle, `contain`
   * adds black. Default `fill`.
   */
  readonly fit?: 'fill' | 'cover' | 'contain';
  /** Channels: 3, in the order `order`, or 1 for luminance. Default 3. */
  readonly channels?: 1 | 3;
  /** Channel order. Default `rgb`. */
  readonly order?: 'rgb' | 'bgr';
  /** Subtracted from each channel after division by 255; one number, or one a channel. Default 0. */
  readonly mean?: number | readonly number[];
  /** Divides each channel after `mean`; not 0. Default 1. */
  readonly deviation?: number | readonly number[];
  /** `nchw` [1, C, H, W] or `nhwc` [1, H, W, C]. Default `nchw`. */
  readonly layout?: 'nchw' | 'nhwc';
  /** `f32`, or `u8` for the pixels as they are (no `mean` or `deviation`). Default `f32`. */
  readonly dtype?: 'f32' | 'u8';
}

/**
 * Decodes an image file and makes the tensor a model wants.
 *
 * Transparency is put on black; an orientation tag is applied.
 *
 * @param image - encoded bytes (PNG, JPEG, WebP, …)
 * @param options - size, scaling and layout
 * @param name - for messages
 * @throws FettleError MODEL_INVALID when the bytes are no image
 * @throws RangeError when an option makes no sense
 */
export async function loadImage(
  image: Uint8Array,
  options: ImageOptions = {},
  name = 'image',
): Promise<Tensor> {
  const { channels = 3, order = 'rgb', layout = 'nchw', dtype = 'f32' } = options;
  const mean = perChannel('mean', options.mean ?? 0, channels);
  const deviation = perChannel('deviation', options.deviation ?? 1, channels);
  if (deviation.includes(0)) throw outOfRange('deviation', 'numbers other than 0', deviation);
  if (dtype === 'u8' && (options.mean !== undefined || options.deviation !== undefined))
    throw outOfRange('dtype', 'f32 where mean or deviation is given', dtype);
  const pixels = await decode(image, options, channels, name);
  const { width, height } = pixels;
  const area = width * height;
  const result =
    dtype === 'f32' ? new Float32Array(area * channels) : new Uint8Array(area * channels);
  for (let channel = 0; channel < channels; channel++) {
    const from = order === 'bgr' ? channels - 1 - channel : channel;
    const shift = mean[channel] ?? 0;
    const divisor = deviation[channel] ?? 1;
    for (let at = 0; at < area; at++) {
      const pixel = pixels.data[at * channels + from] ?? 0;
      const to = layout === 'nchw' ? channel * area + at : at * channels + channel;
      result[to] = dtype === 'f32' ? (pixel / 255 - shift) / divisor : pixel;
    }
  }
  const shape = layout === 'nchw' ? [1, channels, height, width] : [1, height, width, channels];
  return tensor(dtype, shape, result);
}

interface Pixels {
  readonly data: Uint8Array;
  readonly width: number;
  readonly height: number;
}

async function decode(
  image: Uint8Array,
  options: ImageOptions,
  channels: 1 | 3,
  name: string,
): Promise<Pixels> {
  const { height, width, fit = 'fill' } = options;
  for (const [key, size] of Object.entries({ height, width }))
    if (size !== undefined && !(Number.isSafeInteger(size) && size > 0 && size <= 65_535))
      throw outOfRange(key, 'a whole number from 1 to 65535', size);
  const { default: sharp } = await importSharp();
  let pipeline: Sharp = sharp(image, { failOn: 'error' }).rotate().flatten({ background: '#000' });
  if (width !== undefined || height !== undefined)
    pipeline = pipeline.resize({ ...sizes(width, height), fit, kernel: 'linear' });
  pipeline = channels === 1 ? pipeline.grayscale() : pipeline.toColourspace('srgb');
  try {
    const { data, info } = await pipeline
      .raw({ depth: 'uchar' })
      .toBuffer({ resolveWithObject: true });
    return { data, width: info.width, height: info.height };
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new FettleError('MODEL_INVALID', `Cannot decode the image "${name}": ${reason}.`, {
      at: { file: name },
      fix: 'Give a PNG, JPEG or WebP file.',
      cause: error,
    });
  }
}

function sizes(width?: number, height?: number): { width?: number; height?: number } {
  return { ...(width === undefined ? {} : { width }), ...(height === undefined ? {} : { height }) };
}

async function importSharp(): Promise<typeof SharpModule> {
  try {
    return await import('sharp');
  } catch (error) {
    throw new FettleError(
      'ENGINE_UNAVAILABLE',
      'Cannot read images: the package "sharp" does not load.',
      {
        at: { package: 'sharp' },
        fix: 'Run "npm install sharp" on this machine.',
        cause: error,
      },
    );
  }
}

function perChannel(
  key: string,
  value: number | readonly number[],
  channels: number,
): readonly number[] {
  const list = typeof value === 'number' ? Array.from({ length: channels }, () => value) : value;
  if (list.length !== channels || !list.every(Number.isFinite))
    throw outOfRange(key, `one finite number or ${channels}`, `[${list}]`);
  return list;
}
