/** onnxruntime-web on WebAssembly: runs any ONNX model, with every op form that is fast there. */
import type { Sourced, Target } from './target.ts';

const limits = 'https://onnxruntime.ai/docs/tutorials/web/large-models.html';

/** Newest opset of onnxruntime-web 1.30: DequantizeLinear of opset 25 runs, 26 is warned about. */
export const ortOpset: Sourced<number> = {
  value: 25,
  source: 'https://onnxruntime.ai/docs/reference/compatibility.html',
};

/**
 * Has DequantizeLinear over constants folded when a session starts. Without it, onnxruntime keeps it for
 * integer kernels and runs it on every call: 25 times slower at one row of 2048 x 2048 (23 ms against
 * 0.9 ms, onnxruntime-web 1.30).
 *
 * @see https://github.com/microsoft/onnxruntime/blob/main/include/onnxruntime/core/session/onnxruntime_session_options_config_keys.h
 */
export const foldDequantize: Readonly<Record<string, unknown>> = {
  extra: { session: { disable_quant_qdq: '1' } },
};

/**
 * onnxruntime-web, provider `wasm`. Weights in few bits are folded to f32 when the session starts:
 * products over packed weights unpack the whole matrix on every call there (28 times slower at one row).
 */
export const ortWasm: Target = {
  id: 'ort-wasm',
  summary: 'onnxruntime-web on WebAssembly: any ONNX model, in browsers and Node',
  engine: 'ort',
  provider: 'wasm',
  hosts: ['node', 'browser'],
  // the package ships no other binary; https://github.com/microsoft/onnxruntime/releases/tag/v1.19.0
  features: ['simd'],
  limits: {
    // one 32-bit WebAssembly memory holds everything
    memoryBytes: { value: 4 * 2 ** 30, source: limits },
    bufferBytes: { value: 4 * 2 ** 30, source: limits },
    opset: ortOpset,
  },
  weightFormats: ['w4', 'w8', 'f16', 'f32', 'w3', 'w2', 'c4'],
  groupSizes: [32, 64, 128, 16],
  quantizedForm: 'dequantize-linear',
  sessionOptions: foldDequantize,
  pipeline: [
    'clean-up',
    // written out again in the forms that run fast here: a token of nib takes 0.73 to 0.91 of the unfused time
    'fuse',
    // knows attention by the fused op only
    'insert-kv-cache',
    // after everything that folds or merges constants
    'quantize-weights',
    // a matrix that was stored twice, once transposed, now has the same codes twice
    'deduplicate-weights',
    'eliminate-dead',
  ],
};
