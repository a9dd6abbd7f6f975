/** Every target, and how a name becomes one. To add a target: its file, and a line here. */
import { FettleError, nearest } from '../runtime/errors.ts';
import { ortWasm } from './ort-wasm.ts';
import { ortWebgpu } from './ort-webgpu.ts';
import type { Target } from './target.ts';

export type { EngineId, PipelineStep, QuantizedForm, Sourced, Target } from './target.ts';
export { ortWasm } from './ort-wasm.ts';
export { ortWebgpu } from './ort-webgpu.ts';

/** Every target, in the order `fettle targets` prints them. */
export const targets: readonly Target[] = [ortWasm, ortWebgpu];

/**
 * The target of a name.
 *
 * @param id - for example `ort-wasm`
 * @throws FettleError TARGET_UNKNOWN when there is none
 *
 * @example
 * targetById('ort-wasm').engine; // 'ort'
 */
export function targetById(id: string): Target {
  const target = targets.find((candidate) => candidate.id === id);
  if (target !== undefined) return target;
  const ids = targets.map((candidate) => candidate.id);
  const guess = nearest(id, ids);
  throw new FettleError('TARGET_UNKNOWN', `Unknown target "${id}".`, {
    at: { target: id },
    fix: guess === undefined ? `Use one of: ${ids.join(', ')}.` : `Did you mean "${guess}"?`,
  });
}
