/** Scores of blocks that need no data: how many of its weights stand out (ZD, ../shared/ALGORITHMS.md Q2). */
import type { UnitRole } from '../analyze/unit-roles.ts';
import type { WeightUnit } from '../passes/weight-units.ts';
import { unitRows } from '../passes/weight-units.ts';

/** Weights looked at per unit, at most. */
const SAMPLED_VALUES = 1 << 18;

/** Share of the weights of each block that are more than one deviation above their mean. */
export function zdOfBlocks(
  units: readonly WeightUnit[],
  roles: ReadonlyMap<string, UnitRole>,
): ReadonlyMap<number, number> {
  const values = new Map<number, Float32Array[]>();
  for (const unit of units) {
    const block = roles.get(unit.name)?.block ?? -1;
    const rows = Math.min(unit.rows, Math.max(1, Math.floor(SAMPLED_VALUES / unit.columns)));
    const sample = unitRows(unit)
      .read(0, rows)
      .slice(0, rows * unit.columns);
    values.set(block, [...(values.get(block) ?? []), sample]);
  }
  return new Map([...values].map(([block, parts]) => [block, outlyingShare(parts)]));
}

/** Share of values with `(w - mean) / deviation > 1`. */
export function outlyingShare(parts: readonly Float32Array[]): number {
  let [count, sum, squares] = [0, 0, 0];
  for (const part of parts)
    for (const value of part) {
      count++;
      sum += value;
      squares += value * value;
    }
  if (count === 0) return 0;
  const mean = sum / count;
  const limit = mean + Math.sqrt(Math.max(0, squares / count - mean * mean));
  let above = 0;
  for (const part of parts) for (const value of part) if (value > limit) above++;
  return above / count;
}
