/** Fettle's own kernels on WebAssembly, one thread: language models, encoders and vision models. */
import type { Target } from './target.ts';
import { ortWasm } from './ort-wasm.ts';

/**
 * The default. Weights are multiplied from their packed codes; every byte of memory is planned. Runs on
 * plain SIMD128 and uses relaxed SIMD where it computes what the kernels rely on.
 */
export const wasm: Target = {
  id: 'wasm',
  summary: 'own kernels on WebAssembly, one thread: the smallest and fastest, in browsers and Node',
  engine: 'wasm',
  hosts: ['node', 'browser'],
  features: ['simd'],
  limits: {
    memoryBytes: ortWasm.limits.memoryBytes,
    bufferBytes: ortWasm.limits.bufferBytes,
  },
  weightFormats: ['w4', 'w8', 'f16', 'f32', 'w3', 'w2', 'c4'],
  kvFormats: ['f32', 'f16'],
  // multiples of the kernels' blocks
  groupSizes: [32, 64, 128, 16],
  quantizedForm: 'native',
  pipeline: [
    'clean-up',
    // integer models: there are kernels for floats, and for weights in codes
    'expand-integers',
    // before weights are widened too, so that nothing computes in halves any more
    'widen-halves',
    // f16 weights behind a Cast are weights like any other; lowering stores them as halves again
    ['fold-constants', { widen: true }],
    // the kernels are those of the fused ops
    'fuse',
    // knows attention by the fused op only
    'insert-kv-cache',
    // last, for elementwise ops are parts of what the others look for
    'fuse-expression',
    // After everything that folds or merges constants. Convolutions are computed from f32 filters, which a
    // plan unpacks when it is loaded: codes make the download smaller.
    'quantize-weights',
    // weights of integer models that are not to be rounded again
    'restore-codes',
    // a matrix that was stored twice, once transposed, now has the same codes twice
    'deduplicate-weights',
    'eliminate-dead',
  ],
};
