/** Fettle's own kernels on WebAssembly, several threads over a shared memory. */
import type { Target } from './target.ts';
import { wasm } from './wasm.ts';

/**
 * As `wasm`, with working memory for up to 8 threads. Pages need cross-origin isolation (COOP and COEP
 * headers); without it the session runs on one thread and says so.
 */
export const wasmThreads: Target = {
  ...wasm,
  id: 'wasm-threads',
  summary: 'own kernels on WebAssembly, one thread per core where memory can be shared',
  threads: 8,
};
