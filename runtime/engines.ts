/** The engines of this runtime, each loaded only when a bundle asks for it. */
import type { Engine, EngineId } from './engine.ts';
import { FettleError } from './errors.ts';
import type { OrtOptions } from './ort/module.ts';
import type { WasmOptions } from './wasm/engine.ts';

/** Options of the engines, by engine. */
export interface EngineOptions {
  /** For bundles that run on onnxruntime-web. */
  readonly ort?: OrtOptions;
  /** For bundles that run on Fettle's own WASM kernels. */
  readonly wasm?: WasmOptions;
}

const engines: Partial<Record<EngineId, (options: EngineOptions) => Promise<Engine>>> = {
  wasm: async (options) => (await import('./wasm/engine.ts')).wasmEngine(options.wasm),
  ort: async (options) => (await import('./ort/engine.ts')).ortEngine(options.ort),
};

/**
 * Loads an engine.
 *
 * @throws {@link FettleError} ENGINE_UNAVAILABLE when this runtime has no such engine
 */
export async function loadEngine(id: EngineId, options: EngineOptions): Promise<Engine> {
  const load = engines[id];
  if (load === undefined)
    throw new FettleError(
      'ENGINE_UNAVAILABLE',
      `Cannot run this bundle: it needs engine "${id}", this runtime has ${Object.keys(engines).join(', ')}.`,
      { at: { engine: id }, fix: 'Update the package, or compile for a target of another engine.' },
    );
  return load(options);
}
