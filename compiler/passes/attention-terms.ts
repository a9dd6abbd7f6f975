/**
 * What a fused attention adds to its scores: biases and masks that are no attributes, as one value. A bias
 * that is linear in the place of the key is computed once for all layers, from its slopes.
 *
 *     Mul(slopes [H, 1, 1], Cast(Range(0, past + sequence)))     // [H, 1, T]
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { dtypes } from '../../runtime/tensor.ts';
import { linearSlopes } from '../analyze/attention-bias.ts';
import type { Bias } from '../analyze/attention-scores.ts';
import type { Site } from '../analyze/attention-site.ts';
import type { Bookkeeping } from '../analyze/bookkeeping.ts';
import { int } from '../ir/attribute.ts';
import type { Node, Value } from '../ir/graph.ts';
import { filled, writeNumbers } from '../ops/numbers.ts';
import type { PassContext } from './pass.ts';

/** What is added to the scores of one attention. */
export interface Terms {
  readonly site: Site;
  /** Undefined when the masks stay. */
  readonly mask: unknown;
  readonly biases: readonly Bias[];
  /** Rows of caches of fixed length. */
  readonly capacity: number | undefined;
}

/** Writes terms. */
export class AttentionTerms {
  private readonly books: Bookkeeping;
  private readonly context: PassContext;
  private readonly linear = new Map<string, Value>();

  constructor(books: Bookkeeping, context: PassContext) {
    this.books = books;
    this.context = context;
  }

  /**
   * The sum of all terms; undefined when there is none.
   *
   * @param anchor - what new nodes stand in front of
   */
  of(
    { site, mask, biases, capacity }: Terms,
    pastKey: Value | undefined,
    anchor: Node,
  ): Value | undefined {
    const { rewriter } = this.context;
    const terms = biases.map(({ value, factor }) => {
      // what is the same for all keys counts when a sink takes part
      const slopes =
        site.sinks === undefined ? linearSlopes(value, this.books, capacity) : undefined;
      if (slopes !== undefined && pastKey !== undefined)
        return this.linearBias(
          slopes.map((slope) => slope * factor),
          pastKey,
          anchor,
        );
      if (factor === 1) return value;
      return rewriter.op('Mul', [value, rewriter.constant('bias_factor', scalar(factor))]);
    });
    for (const { condition, when } of mask === undefined ? site.hidings : []) {
      const zero = rewriter.constant('seen', scalar(0));
      const low = rewriter.constant('hidden', scalar(-3e38));
      terms.push(rewriter.op('Where', when ? [condition, low, zero] : [condition, zero, low]));
    }
    const [first, ...rest] = terms;
    return first === undefined
      ? undefined
      : rest.reduce((sum, term) => rewriter.op('Add', [sum, term]), first);
  }

  /** Slopes times the places of all keys. */
  private linearBias(slopes: readonly number[], pastKey: Value, anchor: Node): Value {
    const key = slopes.join();
    const known = this.linear.get(key);
    if (known !== undefined) return known;
    const { rewriter } = this.context;
    const { graph } = rewriter.model;
    const { decoder, fixed } = this.books.analysis;
    const ids = graph.inputs.find(({ name }) => name === (decoder?.ids ?? fixed?.ids));
    const [first] = graph.nodes();
    // in front of everything, for it belongs to no layer
    if (first !== undefined) rewriter.before(first);
    const size = (x: Value | undefined, axis: number): Value =>
      rewriter.op(
        'Gather',
        [rewriter.op('Shape', [x]), rewriter.constant('axis', filled('i64', [], axis))],
        { axis: int(0) },
      );
    const [zero, one] = [0, 1].map((n) => rewriter.constant('place', filled('i64', [], n)));
    const total = rewriter.op('Add', [size(pastKey, 2), size(ids, 1)]);
    const places = rewriter.op('Cast', [rewriter.op('Range', [zero, total, one])], {
      to: int(dtypes.f32.onnx),
    });
    const column = writeNumbers('f32', [slopes.length, 1, 1], Float64Array.from(slopes));
    const made = rewriter.op('Mul', [rewriter.constant('bias_slopes', column), places]);
    this.linear.set(key, made);
    rewriter.before(anchor);
    return made;
  }
}

function scalar(value: number): Tensor {
  return filled('f32', [], value);
}
