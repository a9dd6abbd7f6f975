/** Every target. To add a target: its file, and a line here. */
import { ortWasm } from './ort-wasm.ts';
import { ortWebgpu } from './ort-webgpu.ts';
import type { Target } from './target.ts';
import { wasm } from './wasm.ts';
import { wasmThreads } from './wasm-threads.ts';

export type { EngineId, PipelineStep, QuantizedForm, Sourced, Target } from './target.ts';
export { ortWasm } from './ort-wasm.ts';
export { ortWebgpu } from './ort-webgpu.ts';
export { wasm } from './wasm.ts';
export { wasmThreads } from './wasm-threads.ts';

/** Every target, in the order `fettle targets` prints them. */
export const targets: readonly Target[] = [wasm, wasmThreads, ortWasm, ortWebgpu];
