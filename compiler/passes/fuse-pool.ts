/**
 * Makes one mean of a global average and the view that takes its last axes away.
 *
 *     Flatten(GlobalAveragePool(x [n, c, h, w]))   ->   ReduceMean(x, [2, 3]) without those axes
 *
 * Exact up to the order of the sum. Refuses a pool that something else reads and views that keep axes.
 */
import { int, ints } from '../ir/attribute.ts';
import { sameShape } from '../ir/dim.ts';
import type { Node, Value } from '../ir/graph.ts';
import type { Rewriter } from '../ir/rewriter.ts';
import { int64s } from '../ops/numbers.ts';
import { applyRules } from '../rewrite/apply.ts';
import { op, value } from '../rewrite/pattern.ts';
import type { Rule } from '../rewrite/rule.ts';
import { passRules, refuse, rule } from '../rewrite/rule.ts';
import type { Pass } from './pass.ts';
import { viewOps } from './views.ts';

/** Makes the pass. It has no options. */
export function fusePool(): Pass {
  return {
    name: 'fuse-pool',
    options: {},
    rules: passRules([globalMean]),
    run: (model, context) => applyRules(model, [globalMean], context),
  };
}

const globalMean: Rule = rule({
  name: 'global-mean',
  pattern: op(
    [...viewOps],
    [op('GlobalAveragePool', [value('x')], { domain: '', uses: 'any' }).as('pool')],
    { domain: '', moreInputs: true },
  ).as('view'),
  build: ({ x, pool, view }, rewriter) => {
    const { shape } = x;
    if (shape === undefined || shape.length < 3) return refuse('its shape is not known', pool);
    if (!sameShape(view.output(0).shape, shape.slice(0, 2)))
      return refuse('the view behind it keeps axes', view);
    const reader = [...pool.output(0).users.keys()].find((user) => user !== view);
    if (reader !== undefined || pool.output(0).isOutput)
      return refuse(`${reader?.describe() ?? 'an output'} reads it too`, pool);
    return mean(
      rewriter,
      x,
      shape.slice(2).map((_, axis) => axis + 2),
      pool,
    );
  },
});

/** A mean over axes, which are an attribute before opset 18. */
function mean(rewriter: Rewriter, x: Value, axes: readonly number[], pool: Node): Value {
  const attributes = { keepdims: int(0) };
  const options = { name: pool.name };
  if (rewriter.model.opset < 18)
    return rewriter.op('ReduceMean', [x], { axes: ints(axes), ...attributes }, options);
  const constant = rewriter.constant(`${x.name}_axes`, int64s(axes));
  return rewriter.op('ReduceMean', [x, constant], attributes, options);
}
