/** The built-in model against the f32 export it was made from. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { verifyModel } from '../../compiler/ir/verify.ts';
import { NodeFiles } from '../../compiler/node.ts';
import { readModel } from '../../compiler/onnx/read.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import { builtinFolder } from '../../models/builtin.ts';
import { shrink } from '../../models/make-nib.ts';
import { FettleError } from '../../runtime/errors.ts';
import { openDecoder } from '../support/ort-decoder.ts';
import { needsShared, sharedPath } from '../support/shared.ts';

const folder = builtinFolder('builtin:nib');
const file = join(folder, 'onnx/model.onnx');
const sizes = { layers: 12, kvHeads: 2, headSize: 32 };
const ids = Array.from({ length: 48 }, (_, i) => (i * 389 + 17) % 4096);

describe('builtin:nib', () => {
  it('takes at most 12 MB and reads as a valid model', () => {
    const bytes = readFileSync(file);
    assert.ok(bytes.length < 12e6, `${bytes.length}`);
    const model = readModel(new NodeFiles(), file);
    verifyModel(model);
    const stored = [...model.graph.constants].filter(({ shape }) => shape?.length === 2);
    assert.equal(stored.length, 85);
    assert.ok(stored.every(({ dtype }) => dtype === 'f16'));
  });

  it('gives the same logits with and without a cache', async () => {
    const decoder = await openDecoder(readFileSync(file), sizes);
    const whole = await decoder.logits(ids);
    const first = await decoder.logits(ids.slice(0, 30));
    const second = await decoder.logits(ids.slice(30), { continued: true });
    await decoder.close();
    // logits reach 20; f32 rounding in another order of summation
    assert.ok(distance([...first, ...second], whole) < 1e-3);
  });

  const shared = ['models', 'nib', 'onnx', 'model.onnx'];
  it('differs from the f32 export by rounding only', needsShared(...shared), async () => {
    const [exact, rounded] = await Promise.all(
      [sharedPath(...shared), file].map(async (path) => {
        const decoder = await openDecoder(readFileSync(path), sizes);
        const logits = await decoder.logits(ids);
        await decoder.close();
        return logits;
      }),
    );
    assert.ok(exact !== undefined && rounded !== undefined);
    const apart = distance(rounded, exact);
    // 0.008 is the most over 4,096 tokens of text; logits span 40. Equal would mean nothing was rounded
    assert.ok(apart < 0.02 && apart > 0, `${apart}`);
  });

  it('is what make-nib.ts makes, to the byte', needsShared(...shared), () => {
    const model = readModel(new NodeFiles(), sharedPath(...shared));
    const { halved, shared: removed } = shrink(model);
    assert.deepEqual([halved, removed], [85, 1]);
    const same = Buffer.from(encodeModel(model)).equals(readFileSync(file));
    assert.ok(same, 'the writer changed: run node --import tsx models/make-nib.ts and commit');
  });
});

describe('builtinFolder', () => {
  it('knows what a misspelt name may have meant', () => {
    assert.throws(
      () => builtinFolder('builtin:nip'),
      (error) =>
        error instanceof FettleError &&
        error.code === 'USAGE' &&
        error.fix === 'Did you mean "builtin:nib"?',
    );
    assert.throws(() => builtinFolder('builtin:gpt-17'), /no built-in model "gpt-17"/);
  });
});

function distance(a: ArrayLike<number>, b: ArrayLike<number>): number {
  assert.equal(a.length, b.length);
  return Array.from(a, (x, i) => Math.abs(x - (b[i] ?? NaN))).reduce((x, y) => Math.max(x, y), 0);
}
