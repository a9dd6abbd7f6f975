/**
 * Turns the residual stream by an orthogonal matrix, so that no channel of it is much larger than the
 * others when weights and activations are rounded.
 *
 *     x = embed(ids);      x += f(norm(x) W_in) W_out;      y = norm(x) W_head
 *     x = embed(ids) R;    x += f(norm(x) Rᵀ W_in) W_out R;   y = norm(x) Rᵀ W_head
 *
 * Exact up to rounding: a norm without gains only scales rows. Layer norms become rms norms, and what
 * writes to the stream has its means taken away. Run `fold-norm-gains` first. A table that is the output
 * matrix as well cannot be turned (its norm keeps its gain): the stream is turned behind the table and
 * turned back in front of that norm instead, by one small product each.
 *
 * Sources: Ashkboos et al., QuaRot, arXiv:2404.00456, and SliceGPT, arXiv:2401.15024, section 3; tied
 * tables: ../shared/ALGORITHMS.md B8, option B.
 */
import { int, string } from '../ir/attribute.ts';
import type { Value } from '../ir/graph.ts';
import { readNumbers, writeNumbers } from '../ops/numbers.ts';
import { internalDomain } from '../ops/quantized.ts';
import { Rotation } from '../quant/rotation.ts';
import { setWeights } from './linear-site.ts';
import type { Pass, PassContext } from './pass.ts';
import type { Spine } from './spine.ts';
import { findSpines } from './spine.ts';
import { center, givingTurned, readingTurned } from './turn-weights.ts';

/** Options of {@link rotateSpine}. */
export interface RotateSpineOptions {
  /** Which rotation. Default 1. */
  readonly seed?: number;
  /** Whether the stream may be turned at run time where nothing can take it. Default true. */
  readonly borders?: boolean;
}

/** Defaults of {@link RotateSpineOptions}. */
export const rotateSpineDefaults: Required<RotateSpineOptions> = { seed: 1, borders: true };

const RULE = 'spine';

/** Makes the pass. */
export function rotateSpine(options: RotateSpineOptions = {}): Pass {
  const settings = { ...rotateSpineDefaults, ...options };
  return {
    name: 'rotate-spine',
    options: settings,
    rules: [{ name: RULE, starts: ['fettle.Norm'] }],
    run(model, context) {
      const before = context.rewriter.changes;
      for (const spine of findSpines(model)) {
        if ('why' in spine) context.refuse(RULE, spine.at, spine.why);
        else turn(spine, settings, context);
      }
      return context.rewriter.changes > before;
    },
  };
}

function turn(
  spine: Spine,
  { seed, borders }: Required<RotateSpineOptions>,
  context: PassContext,
): void {
  const [norm] = spine.norms;
  const { entries, exits, size, kind } = spine;
  if (norm === undefined) return;
  if (!borders && entries.length + exits.length > 0) {
    context.refuse(RULE, norm, 'something else gives or reads it, and borders are not allowed');
    return;
  }
  if (spine.writers.length === 0) {
    context.refuse(RULE, norm, 'nothing writes to it that could be turned');
    return;
  }
  const { rewriter } = context;
  const rotation = new Rotation(size, seed);
  const centered = kind === 'layer';
  const whole = { from: 0, count: 1 };
  for (const site of spine.writers) {
    const made = givingTurned(site, rotation, whole, centered);
    if (made !== undefined) setWeights(rewriter, site, made);
  }
  for (const site of spine.readers) {
    const made = readingTurned(site, rotation, whole);
    if (made !== undefined) setWeights(rewriter, site, made);
  }
  for (const node of spine.tables) {
    const table = node.input(0);
    const turned = turnedTable(table, rotation, centered);
    if (turned !== undefined)
      rewriter.setInput(node, 0, rewriter.constant(`${table.name}_turned`, turned));
  }
  if (centered) for (const node of spine.norms) rewriter.setAttribute(node, 'kind', string('rms'));
  const matrix = rotation.matrix();
  const backMatrix = Float64Array.from(
    matrix,
    (_, i) => matrix[(i % size) * size + Math.floor(i / size)] ?? 0,
  );
  if (centered) for (let column = 0; column < size; column++) center(matrix, column, size, size);
  const product = (x: Value, weight: Value): Value =>
    rewriter.op('Linear', [x, weight], { transposed: int(0) }, { domain: internalDomain });
  const weightOf = (name: string, values: Float64Array): Value =>
    rewriter.constant(name, writeNumbers('f32', [size, size], values));
  // exits first: they still read the values that entries are about to replace
  const back = exits.length > 0 ? weightOf('rotation_back', backMatrix) : undefined;
  for (const { node, index } of exits) {
    const value = node.inputs[index];
    if (value === undefined || back === undefined) continue;
    rewriter.before(node);
    rewriter.setInput(node, index, product(value, back));
  }
  for (const value of entries) enter(value, weightOf('rotation', matrix), product, context);
  context.count(RULE);
}

/** Puts x R behind what gives x; everything that read x is part of the stream. */
function enter(
  value: Value,
  weight: Value,
  product: (x: Value, weight: Value) => Value,
  { rewriter }: PassContext,
): void {
  const users = [...value.users.keys()];
  const [first] = [...rewriter.model.graph.nodes()].filter((node) => users.includes(node));
  if (first === undefined) return;
  rewriter.before(first);
  const turned = product(value, weight);
  for (const node of users)
    node.inputs.forEach((input, index) => {
      if (input === value) rewriter.setInput(node, index, turned);
    });
}

function turnedTable(
  table: Value,
  rotation: Rotation,
  centered: boolean,
): ReturnType<typeof writeNumbers> | undefined {
  const old = table.constant();
  if (old === undefined) return undefined;
  const numbers = Float64Array.from(readNumbers(old));
  const { size } = rotation;
  for (let start = 0; start < numbers.length; start += size) {
    if (centered) center(numbers, start, 1, size);
    rotation.apply(numbers, start);
  }
  return writeNumbers(old.dtype, old.shape, numbers);
}
