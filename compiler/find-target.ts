/** A target by its name. `targets/` itself is data and imports nothing. */
import { FettleError, nearest } from '../runtime/errors.ts';
import { targets } from '../targets/index.ts';
import type { Target } from '../targets/target.ts';

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
