/**
 * Constants of a model that can be replaced after it has been lowered: lazy weights that say, when they
 * are read, which unit they belong to, so that whoever packed them knows what to pack again.
 */
import { assert } from '../../runtime/errors.ts';
import { bytesOf, elementCount } from '../../runtime/tensor.ts';
import type { Model } from '../ir/graph.ts';
import { Weight } from '../ir/weight.ts';
import { writeNumbers } from '../ops/numbers.ts';
import type { WeightUnit } from '../passes/weight-units.ts';

interface Cell {
  readonly unit: WeightUnit;
  readonly original: Weight;
  /** In the order of storage; undefined: the original's. */
  bytes: Uint8Array | undefined;
}

/** The replaceable constants of a model. */
export class LiveWeights {
  /** The model; its constants of units are the replaceable ones. */
  readonly model: Model;
  private readonly cells = new Map<string, Cell>();
  private readonly read = new Set<string>();

  /**
   * @param model - edited: constants of units get another weight
   * @param units - units, of which those that the model has are taken
   */
  constructor(model: Model, units: readonly WeightUnit[]) {
    this.model = model;
    const known = new Map(units.map((unit) => [unit.name, unit]));
    for (const constant of model.graph.constants) {
      const unit = known.get(constant.name);
      const { weight: original } = constant;
      if (unit === undefined || original === undefined) continue;
      const cell: Cell = { unit, original, bytes: undefined };
      this.cells.set(unit.name, cell);
      constant.weight = Weight.lazy(original.dtype, original.shape, (start, length) => {
        this.read.add(unit.name);
        return cell.bytes?.subarray(start, start + length) ?? original.bytes(start, length);
      });
    }
  }

  /** Names of the units that `work` reads constants of. */
  reading(work: () => void): ReadonlySet<string> {
    this.read.clear();
    work();
    return new Set(this.read);
  }

  /**
   * Replaces the constant of a unit; does nothing when the model does not have it.
   *
   * @param values - [rows, columns]; absent: its own again
   */
  set(name: string, values?: Float32Array): void {
    const cell = this.cells.get(name);
    if (cell === undefined) return;
    const { unit, original } = cell;
    if (values !== undefined)
      assert(
        values.length === elementCount(original.shape),
        `"${name}" has ${elementCount(original.shape)} values, not ${values.length}`,
      );
    cell.bytes = values === undefined ? undefined : bytesOf(stored(unit, original, values));
  }

  /**
   * Lets go of what was set, when it has been copied to where it is read from.
   *
   * @param name - a unit that no constant is computed from together with another one
   */
  forget(name: string): void {
    const cell = this.cells.get(name);
    if (cell !== undefined) cell.bytes = undefined;
  }
}

/** Values of a unit in the order and dtype of its storage. */
function stored(
  { rows, columns, sites: [site] }: WeightUnit,
  { dtype, shape }: Weight,
  values: Float32Array,
): ReturnType<typeof writeNumbers>['data'] {
  let ordered = values;
  if (site.storedTransposed) {
    ordered = new Float32Array(values.length);
    // 16 rows at a time: what they write lies side by side
    for (let first = 0; first < rows; first += 16)
      for (let column = 0; column < columns; column++)
        for (let row = first; row < Math.min(rows, first + 16); row++)
          ordered[column * rows + row] = values[row * columns + column] ?? 0;
  }
  return dtype === 'f32' ? ordered : writeNumbers(dtype, shape, ordered).data;
}
