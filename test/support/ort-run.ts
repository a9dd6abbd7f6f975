/** Runs ONNX bytes on onnxruntime-web's CPU provider, as the yardstick of everything else. */
import { loadOrt } from '../../runtime/ort/module.ts';
import { fromOrt, toOrt } from '../../runtime/ort/tensors.ts';
import type { Tensor } from '../../runtime/tensor.ts';

/** Options of {@link runOnOrt}. */
export interface RunOnOrtOptions {
  /**
   * onnxruntime-web's own graph optimizations. Default 'disabled': two graphs that should compute the
   * same are compared as they are, not as its fusions happen to round.
   */
  readonly optimizations?: 'disabled' | 'basic' | 'extended' | 'all';
  /** More session options, such as a target's. */
  readonly sessionOptions?: Readonly<Record<string, unknown>>;
}

/**
 * Runs a model once.
 *
 * @param bytes - a self-contained ONNX file
 * @param inputs - by name
 * @returns outputs by name
 */
export async function runOnOrt(
  bytes: Uint8Array,
  inputs: ReadonlyMap<string, Tensor>,
  options: RunOnOrtOptions = {},
): Promise<Map<string, Tensor>> {
  const { optimizations = 'disabled' } = options;
  const ort = await loadOrt({ threads: 1 }, 'wasm');
  const session = await ort.InferenceSession.create(bytes, {
    executionProviders: ['wasm'],
    graphOptimizationLevel: optimizations,
    logSeverityLevel: 3,
    // a weight that has become a constant would be packed, and summed in another order
    ...(optimizations === 'disabled' ? { extra: { session: { disable_prepacking: '1' } } } : {}),
    ...structuredClone(options.sessionOptions ?? {}),
  });
  try {
    const feeds = Object.fromEntries(
      [...inputs].map(([name, tensor]) => [name, toOrt(ort, tensor)] as const),
    );
    const results = await session.run(feeds);
    const outputs = new Map<string, Tensor>();
    for (const [name, tensor] of Object.entries(results)) outputs.set(name, await fromOrt(tensor));
    return outputs;
  } finally {
    await session.release();
  }
}
