/**
 * Fixes sizes that the model leaves open, so that shapes, plans and buffers are known when compiling.
 *
 *     x: [batch, 3, h, w] with x=1x3x48x320    ->   x: [1, 3, 48, 320]
 *     ids: [batch, seq]   with batch=1         ->   ids: [1, seq]
 *
 * A size that has a name is fixed everywhere the name occurs. Whatever follows is inferred again.
 */
import { FettleError, nearest } from '../../runtime/errors.ts';
import type { Dim, Shape } from '../ir/dim.ts';
import { dimToText, substituteDim, symbolsOf } from '../ir/dim.ts';
import type { Graph, Model, Value } from '../ir/graph.ts';
import type { Pass, PassContext } from './pass.ts';

/** Options of {@link specializeShapes}. */
export interface SpecializeShapesOptions {
  /**
   * Sizes by input or by symbol: `{ x: '1x3x48x320', batch: 1 }`. In a list `?` leaves a size open.
   * A name that is an input's means the input, unless it is given a single number and the input has
   * another rank than 1.
   */
  readonly shapes?: Readonly<Record<string, number | string | readonly (number | string)[]>>;
}

/** Defaults of {@link SpecializeShapesOptions}. */
export const specializeShapesDefaults: Required<SpecializeShapesOptions> = { shapes: {} };

/**
 * Makes the pass.
 *
 * @throws FettleError USAGE when a size is no whole number (from `run`: when a name is unknown or sizes
 * contradict the model or one another)
 */
export function specializeShapes(options: SpecializeShapesOptions = {}): Pass {
  const shapes = options.shapes ?? {};
  const wanted = Object.entries(shapes).map(
    ([name, sizes]) => [name, sizesOf(name, sizes)] as const,
  );
  return {
    name: 'specialize-shapes',
    options: { shapes },
    run(model, context) {
      const symbols = new Map<string, number>();
      let changed = false;
      for (const [name, sizes] of wanted) changed = settle(model, name, sizes, symbols) || changed;
      for (const value of model.graph.inputs) checkInput(value, symbols);
      if (symbols.size > 0) changed = substitute(model.graph, symbols) || changed;
      if (changed) context.rewriter.changes++;
      for (const [symbol, size] of symbols) if (!symbol.startsWith('?')) context.note(symbol, size);
      report(model, context);
      return changed;
    },
  };
}

type Sizes = readonly (number | undefined)[];

/** Reads `1x3x48x320`, `[1, 3, 48, 320]`, `8` or `1x?`. */
function sizesOf(name: string, sizes: number | string | readonly (number | string)[]): Sizes {
  const list =
    typeof sizes === 'string' ? sizes.split(/[x,]/i) : typeof sizes === 'number' ? [sizes] : sizes;
  return list.map((size) => {
    const text = String(size).trim();
    if (text === '?') return undefined;
    const number = Number(text);
    if (text !== '' && Number.isSafeInteger(number) && number >= 0) return number;
    throw new FettleError('USAGE', `The shape of "${name}" has the size "${text}".`, {
      at: { option: 'shape', name },
      fix: 'Write whole sizes joined by x, as in x=1x3x48x320, with ? for a size to leave open.',
    });
  });
}

/** Turns one option into sizes of symbols; true when an input's shape was written directly. */
function settle(model: Model, name: string, sizes: Sizes, symbols: Map<string, number>): boolean {
  const input = model.graph.inputs.find((value) => value.name === name);
  const known = symbolsIn(model.graph);
  const [only] = sizes;
  if (sizes.length === 1 && known.has(name) && input?.shape?.length !== 1) {
    if (only !== undefined) define(symbols, name, only);
    return false;
  }
  if (input === undefined) {
    const names = [...model.graph.inputs.map((value) => value.name), ...known];
    const guess = nearest(name, names);
    throw new FettleError('USAGE', `The model has no input and no size called "${name}".`, {
      at: { option: 'shape', name },
      fix: guess === undefined ? `It has: ${names.join(', ')}.` : `Did you mean "${guess}"?`,
    });
  }
  const { shape } = input;
  if (shape !== undefined && shape.length !== sizes.length)
    throw new FettleError(
      'USAGE',
      `Input "${name}" has ${shape.length} dimensions [${shape.join(', ')}], not ${sizes.length}.`,
      { at: { option: 'shape', name }, fix: `Give ${shape.length} sizes.` },
    );
  let direct = false;
  const fixed: Dim[] = sizes.map((size, axis) => {
    const dim = shape?.[axis];
    if (size === undefined) return dim ?? model.freshDim();
    if (typeof dim === 'string' && isSymbol(dim)) define(symbols, dimToText(dim), size);
    else if (typeof dim === 'number' && dim !== size) contradiction(name, shape, size, dim);
    if (dim !== size) direct = true;
    return size;
  });
  if (shape !== undefined)
    shape.forEach((dim, axis) => {
      const size = sizes[axis];
      if (typeof dim !== 'string' || isSymbol(dim) || size === undefined) return;
      const now = substituteDim(dim, symbols);
      if (typeof now === 'number' && now !== size) contradiction(name, shape, size, now);
    });
  if (direct) input.shape = fixed;
  return direct;
}

/** Whether a dimension is one symbol, not an expression over symbols. */
function isSymbol(dim: string): boolean {
  const [first, ...more] = symbolsOf(dim);
  return more.length === 0 && first !== undefined && dimToText(dim) === first;
}

function define(symbols: Map<string, number>, symbol: string, size: number): void {
  const before = symbols.get(symbol);
  if (before !== undefined && before !== size)
    throw new FettleError('USAGE', `Size "${symbol}" is given as ${before} and as ${size}.`, {
      at: { option: 'shape', symbol },
      fix: `Give "${symbol}" one size.`,
    });
  symbols.set(symbol, size);
}

function contradiction(name: string, shape: Shape | undefined, size: number, dim: number): never {
  throw new FettleError(
    'USAGE',
    `Input "${name}" is [${shape?.join(', ')}] in the model: a size of ${size} contradicts ${dim}.`,
    { at: { option: 'shape', name }, fix: `Use ${dim}, or export the model with that size open.` },
  );
}

/** After all symbols are known: no input may have become something else than was asked for. */
function checkInput(value: Value, symbols: ReadonlyMap<string, number>): void {
  for (const dim of value.shape ?? []) {
    const size = substituteDim(dim, symbols);
    if (typeof size === 'number' && size < 0)
      throw new FettleError('USAGE', `Input "${value.name}" would have a size of ${size}.`, {
        at: { option: 'shape', name: value.name },
        fix: 'Choose larger sizes.',
      });
  }
}

function symbolsIn(graph: Graph): Set<string> {
  const names = new Set<string>();
  for (const value of graph.inputs)
    for (const dim of value.shape ?? [])
      for (const symbol of symbolsOf(dim)) if (!symbol.startsWith('?')) names.add(symbol);
  return names;
}

/** Writes the sizes into every shape; true when one changed. */
function substitute(graph: Graph, symbols: ReadonlyMap<string, number>): boolean {
  let changed = false;
  for (const value of allValues(graph)) {
    const shape = value.shape?.map((dim) => substituteDim(dim, symbols));
    if (shape?.some((dim, axis) => dim !== value.shape?.[axis]) === true) {
      value.shape = shape;
      changed = true;
    }
    if (value.elements !== undefined)
      value.elements = value.elements.map((dim) => substituteDim(dim, symbols));
  }
  return changed;
}

function* allValues(graph: Graph): Generator<Value, void> {
  for (const inner of graph.allGraphs()) yield* inner.inputs;
  for (const node of graph.allNodes())
    for (const output of node.outputs) if (output !== undefined) yield output;
}

function report(model: Model, context: PassContext): void {
  const open = [...symbolsIn(model.graph)];
  if (open.length > 0) context.note('open', open.join(', '));
}
