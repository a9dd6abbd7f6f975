/**
 * A model as it is, runnable: compiled with an empty pipeline, so that evaluation and benchmarks have
 * one code for models and bundles.
 */
import { ortWasm } from '../../targets/ort-wasm.ts';
import type { Target } from '../../targets/target.ts';

/** onnxruntime-web on WASM, and not a node touched. */
export const asIs: Target = {
  ...ortWasm,
  id: 'as-is',
  summary: 'onnxruntime-web on WASM with the model as it is; for comparison',
  pipeline: [],
};
