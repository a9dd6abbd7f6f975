/** Models on the WASM engine without a file: lowered, written to memory, opened. */
import type { BundleContents } from '../../compiler/emit/bundle.ts';
import { BundleWriter } from '../../compiler/emit/bundle.ts';
import { MemoryFiles } from '../../compiler/files.ts';
import type { Model } from '../../compiler/ir/graph.ts';
import type { EncodedPlan } from '../../compiler/lower/encode-plan.ts';
import type { WasmOptions as LowerOptions } from '../../compiler/lower/wasm.ts';
import { lowerForWasm } from '../../compiler/lower/wasm.ts';
import { defaultRecipe } from '../../compiler/recipe.ts';
import { folderSource } from '../../compiler/run-bundle.ts';
import type { DecoderSpec } from '../../runtime/manifest.ts';
import type { OpenOptions, Session } from '../../runtime/node.ts';
import { openBundle } from '../../runtime/node.ts';
import { wasm } from '../../targets/wasm.ts';

/** A plan in a bundle in memory. */
export interface PlanBundle {
  readonly plan: EncodedPlan;
  /** Its files, in the folder `bundle`. */
  readonly files: MemoryFiles;
  /** Opens it. */
  open(options?: OpenOptions): Promise<Session>;
}

/** Lowers a model and writes its bundle to memory. */
export async function planBundle(
  model: Model,
  decoder?: DecoderSpec,
  options: Partial<LowerOptions> = {},
): Promise<PlanBundle> {
  const plan = lowerForWasm(model, { decoder, threads: 1, ...options });
  const files = new MemoryFiles();
  files.makeDirectory('bundle');
  const contents: BundleContents = {
    program: model,
    plan,
    formats: plan.formats,
    sessionOptions: {},
    target: wasm,
    model: {
      name: 'test',
      sha256: '0'.repeat(64),
      kind: decoder === undefined ? 'model' : 'decoder',
      parameters: 0,
    },
    decoder,
    text: undefined,
    generationConfig: undefined,
    recipe: defaultRecipe,
    passes: [],
    warnings: [],
    memory: plan.memory,
  };
  const writer = new BundleWriter(files, 'bundle', contents);
  await writer.write({ progress: () => {}, signal: undefined });
  return { plan, files, open: (open) => openBundle(folderSource(files, 'bundle'), open) };
}
