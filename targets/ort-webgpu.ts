/** onnxruntime-web on WebGPU: products computed from packed 4-bit weights. */
import type { Target } from './target.ts';
import { foldDequantize, ortOpset, ortWasm } from './ort-wasm.ts';

/**
 * onnxruntime-web, provider `webgpu`. Wants MatMulNBits with blocks of 32, no zero points, inputs a
 * multiple of 128 and outputs of 16; what does not fit is folded to f32 when the session starts.
 */
export const ortWebgpu: Target = {
  id: 'ort-webgpu',
  summary: 'onnxruntime-web on WebGPU: 4-bit products on a GPU, in browsers',
  engine: 'ort',
  provider: 'webgpu',
  hosts: ['browser'],
  features: ['simd', 'webgpu'],
  limits: {
    memoryBytes: ortWasm.limits.memoryBytes,
    // default maxBufferSize; most adapters offer more
    bufferBytes: { value: 268_435_456, source: 'https://www.w3.org/TR/webgpu/#limits' },
    opset: ortOpset,
  },
  weightFormats: ['w4', 'w8', 'f16', 'f32', 'w3', 'w2', 'c4'],
  groupSizes: [32],
  quantizedForm: 'mat-mul-nbits',
  // for the weights that do not fit MatMulNBits
  sessionOptions: foldDequantize,
  // fused forms have not been measured on this provider
  pipeline: ortWasm.pipeline.filter((step) => step !== 'fuse' && step !== 'insert-kv-cache'),
};
