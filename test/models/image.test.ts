import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import sharp from 'sharp';
import { loadImage } from '../../models/image.ts';
import { FettleError } from '../../runtime/errors.ts';

/** A 2 x 1 PNG: one red pixel, one blue one. */
const png = sharp(Uint8Array.of(255, 0, 0, 0, 0, 255), {
  raw: { width: 2, height: 1, channels: 3 },
})
  .png()
  .toBuffer();

describe('loadImage', () => {
  it('gives channels of 0 to 1, one plane each', async () => {
    const image = await loadImage(await png);
    assert.deepEqual(image.shape, [1, 3, 1, 2]);
    assert.deepEqual([...image.data], [1, 0, 0, 0, 0, 1]);
  });

  it('interleaves channels, turns their order and scales them', async () => {
    const image = await loadImage(await png, {
      layout: 'nhwc',
      order: 'bgr',
      mean: [0.5, 0, 0.25],
      deviation: [0.5, 1, 0.25],
    });
    assert.deepEqual(image.shape, [1, 1, 2, 3]);
    // blue, green, red of the red pixel, then of the blue one
    assert.deepEqual([...image.data], [-1, 0, 3, 1, 0, -1]);
  });

  it('gives bytes and luminance when asked', async () => {
    const image = await loadImage(await png, { channels: 1, dtype: 'u8' });
    assert.deepEqual(image.shape, [1, 1, 1, 2]);
    // Rec. 709 luminance in linear light: 0.2126 and 0.0722, as sRGB 127 and 76
    assert.deepEqual([...image.data], [127, 76]);
  });

  it('resizes', async () => {
    const image = await loadImage(await png, { width: 8, height: 4 });
    assert.deepEqual(image.shape, [1, 3, 4, 8]);
    const red = image.data.slice(0, 8);
    assert.equal(red[0], 1);
    assert.equal(red[7], 0);
  });

  it('puts transparency on black', async () => {
    const clear = await sharp(Uint8Array.of(255, 255, 255, 0), {
      raw: { width: 1, height: 1, channels: 4 },
    })
      .png()
      .toBuffer();
    assert.deepEqual([...(await loadImage(clear)).data], [0, 0, 0]);
  });

  it('refuses bytes that are no image, and a damaged image', async () => {
    const damaged = (await png).subarray(0, 60);
    for (const bytes of [new Uint8Array(100), new TextEncoder().encode('<html>'), damaged])
      await assert.rejects(
        loadImage(bytes, {}, 'cat.png'),
        (error) =>
          error instanceof FettleError &&
          error.code === 'MODEL_INVALID' &&
          error.message.includes('cat.png'),
      );
  });

  it('refuses options that make no sense', async () => {
    const image = await png;
    await assert.rejects(loadImage(image, { width: 0 }), RangeError);
    await assert.rejects(loadImage(image, { deviation: 0 }), RangeError);
    await assert.rejects(loadImage(image, { mean: [1, 2] }), RangeError);
    await assert.rejects(loadImage(image, { dtype: 'u8', mean: 1 }), RangeError);
  });
});
