/**
 * Named sizes of inputs and outputs: evaluates a DimSpec and checks that shapes agree with a contract.
 * Understood are sums and differences of products of numbers and names (`past + sequence`, `2*width`);
 * anything else (`floordiv(height, 2)`) has no value here and is left to the engine.
 */
import type { DimSpec } from './manifest.ts';

/** Values of named sizes. */
export type Sizes = Map<string, number>;

const name = /^(?:[^\s+\-*/(),`\d][^\s+\-*/(),`]*|`[^`]*`)$/;

/** The number a size stands for, or undefined when a name in it is unknown or it is no plain sum. */
export function evaluateSize(spec: DimSpec, sizes: Sizes): number | undefined {
  if (typeof spec === 'number') return spec;
  let total = 0;
  // `a - 2*b + 3` -> ['a', '- 2*b', '+ 3']
  for (const term of spec.trim().split(/(?=[+-])/)) {
    const match = /^([+-]?)\s*(.+)$/.exec(term.trim());
    if (match === null) return undefined;
    let product = match[1] === '-' ? -1 : 1;
    for (const factor of (match[2] ?? '').split('*').map((text) => text.trim())) {
      const value = /^\d+$/.test(factor) ? Number(factor) : sizes.get(factor);
      if (value === undefined) return undefined;
      product *= value;
    }
    total += product;
  }
  return total;
}

/** Where a shape broke its contract. */
export interface SizeConflict {
  /** The axis that differs. */
  readonly axis: number;
  /** What the contract says. */
  readonly wanted: number;
  /** What the shape has. */
  readonly got: number;
}

/**
 * Learns the names that stand alone in a contract from an actual shape of the same rank.
 *
 * @returns the first axis whose name already means another number
 */
export function bindSizes(
  contract: readonly DimSpec[],
  shape: readonly number[],
  sizes: Sizes,
): SizeConflict | undefined {
  for (const [axis, spec] of contract.entries()) {
    const got = shape[axis] ?? 0;
    if (typeof spec !== 'string' || !name.test(spec)) continue;
    const wanted = sizes.get(spec);
    if (wanted === undefined) sizes.set(spec, got);
    else if (wanted !== got) return { axis, wanted, got };
  }
  return undefined;
}

/** The first axis of a shape that differs from what its contract evaluates to. */
export function findConflict(
  contract: readonly DimSpec[],
  shape: readonly number[],
  sizes: Sizes,
): SizeConflict | undefined {
  for (const [axis, spec] of contract.entries()) {
    const wanted = evaluateSize(spec, sizes);
    const got = shape[axis] ?? 0;
    if (wanted !== undefined && wanted !== got) return { axis, wanted, got };
  }
  return undefined;
}
