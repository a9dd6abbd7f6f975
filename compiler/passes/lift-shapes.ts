/**
 * Reads sizes from the inputs of the graph instead of from values on the way, so that no value is needed
 * for its shape alone and fusion can take it away.
 *
 *     Shape(x: [b, 4, s, p + s])     ->   Concat(Gather(Shape(ids), 0), [4], Gather(Shape(ids), 1), …)
 *
 * A size is a number, that of an input, a sum of two of them, or a multiple of one. Refuses shapes with
 * another size. What it writes is shortened by `simplify-shapes`.
 */
import { int } from '../ir/attribute.ts';
import type { Dim } from '../ir/dim.ts';
import { addDims, divideDims, isAnonymous } from '../ir/dim.ts';
import type { Model, Node, Value } from '../ir/graph.ts';
import { int64s } from '../ops/numbers.ts';
import type { Pass, PassContext } from './pass.ts';
import { removeIfUnused, replaceByNew } from './replace.ts';

/** Makes the pass. It has no options. */
export function liftShapes(): Pass {
  return {
    name: 'lift-shapes',
    options: {},
    rules: [{ name: 'shape', starts: ['Shape'] }],
    run(model, context) {
      const before = context.rewriter.changes;
      const sizes = new InputSizes(model, context);
      for (const node of model.graph.nodes())
        if (node.op === 'Shape' && node.domain === '') lift(node, sizes, context);
      return context.rewriter.changes > before;
    },
  };
}

function lift(node: Node, sizes: InputSizes, context: PassContext): void {
  const x = node.input(0);
  const { shape } = x;
  const [output] = node.outputs;
  if (x.producer === undefined || output === undefined || output.isOutput || output.useCount === 0)
    return context.miss('shape', node, 'its value is an input, or nobody wants the sizes');
  if (shape === undefined || output.elements === undefined)
    return context.miss('shape', node, 'the rank of its value is not known');
  const unknown = output.elements.find((dim) => !sizes.has(dim));
  if (unknown !== undefined)
    return context.refuse('shape', node, `no input has the size ${unknown}`);
  const { rewriter } = context;
  rewriter.before(node);
  const parts = output.elements.map((dim) => sizes.of(dim));
  const [first, ...more] = parts;
  if (first === undefined) return;
  const value = more.length === 0 ? first : rewriter.op('Concat', parts, { axis: int(0) });
  replaceByNew(rewriter, output, value);
  removeIfUnused(rewriter, node);
  context.count('shape');
}

/** How a size follows from those of inputs. */
type Source =
  | { readonly kind: 'input'; readonly input: Value; readonly axis: number }
  | { readonly kind: 'sum'; readonly terms: readonly [Dim, Dim] }
  | { readonly kind: 'multiple'; readonly of: Dim; readonly by: number };

/** Sizes of the inputs of a graph. */
class InputSizes {
  private readonly known = new Map<Dim, { readonly input: Value; readonly axis: number }>();
  private readonly found = new Map<Dim, Source | undefined>();
  private readonly context: PassContext;

  constructor(model: Model, context: PassContext) {
    this.context = context;
    // integers first: what counts tokens is still there when floats have been fused
    const inputs = [...model.graph.inputs].sort(
      (a, b) => Number(a.dtype !== 'i64') - Number(b.dtype !== 'i64'),
    );
    for (const input of inputs)
      input.shape?.forEach((dim, axis) => {
        if (typeof dim === 'string' && !isAnonymous(dim) && !this.known.has(dim))
          this.known.set(dim, { input, axis });
      });
  }

  /** Whether a size follows from those of inputs. */
  has(dim: Dim): boolean {
    return typeof dim === 'number' || this.sourceOf(dim) !== undefined;
  }

  private sourceOf(dim: Dim): Source | undefined {
    if (this.found.has(dim)) return this.found.get(dim);
    const source = this.search(dim);
    this.found.set(dim, source);
    return source;
  }

  private search(dim: Dim): Source | undefined {
    const own = this.known.get(dim);
    if (own !== undefined) return { kind: 'input', ...own };
    const dims = [...this.known.keys()];
    for (const a of dims) {
      const by = divideDims(dim, a);
      if (typeof by === 'number' && Number.isInteger(by)) return { kind: 'multiple', of: a, by };
      for (const b of dims) if (addDims(a, b) === dim) return { kind: 'sum', terms: [a, b] };
    }
    return undefined;
  }

  /** A size as an i64 vector of one element, in front of the rewriter's place. */
  of(dim: Dim): Value {
    const { rewriter } = this.context;
    const constant = (value: number): Value => rewriter.constant('size', int64s([value]));
    if (typeof dim === 'number') return constant(dim);
    const source = this.sourceOf(dim);
    switch (source?.kind) {
      case 'sum':
        return rewriter.op(
          'Add',
          source.terms.map((term) => this.of(term)),
        );
      case 'multiple':
        return rewriter.op('Mul', [this.of(source.of), constant(source.by)]);
      case 'input': {
        const shape = rewriter.op('Shape', [source.input]);
        return rewriter.op('Gather', [shape, constant(source.axis)], { axis: int(0) });
      }
      case undefined:
        return constant(-1);
    }
  }
}
