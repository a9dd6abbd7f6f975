/**
 * Says a Resize by whole factors as constant factors, so that the shape arithmetic that computed its
 * sizes goes away.
 *
 *     Resize(x [n, c, h, w], roi, , [n, c, 2*h, 2*w])   ->   Resize(x, , [1, 1, 2, 2])
 *
 * Exact: a whole factor gives the same sizes and the same coordinates. Refuses factors that are not whole
 * or not known, cropping, and policies about the aspect ratio. Opset 11 and later.
 * Source: https://onnx.ai/onnx/operators/onnx__Resize.html.
 */
import { divideDims, multiplyDims } from '../ir/dim.ts';
import type { Dim } from '../ir/dim.ts';
import type { Node } from '../ir/graph.ts';
import { integersOf } from './constants.ts';
import type { Pass, PassContext } from './pass.ts';
import { replaceByNew } from './replace.ts';

/** Makes the pass. It has no options. */
export function simplifyResize(): Pass {
  return {
    name: 'simplify-resize',
    options: {},
    rules: [{ name: 'sizes', starts: ['Resize'] }],
    run(model, context) {
      const before = context.rewriter.changes;
      if (model.opset >= 11)
        for (const node of model.graph.allNodes())
          if (node.op === 'Resize' && node.domain === '')
            if (node.inputs[3] !== undefined) visit(node, context);
            else context.miss('sizes', node, 'it has factors already');
      return context.rewriter.changes > before;
    },
  };
}

function visit(node: Node, context: PassContext): void {
  const factors = wholeFactors(node);
  const why = typeof factors === 'string' ? factors : undefined;
  if (why !== undefined || typeof factors === 'string') {
    context.refuse('sizes', node, why ?? '');
    return;
  }
  const { rewriter } = context;
  const [x] = node.inputs;
  rewriter.before(node);
  const name = `${node.output(0).name}_scales`;
  const data = Float32Array.from(factors);
  const scales = rewriter.constant(name, { dtype: 'f32', shape: [data.length], data });
  // opset 11 wants a region even where nothing is cropped
  const roi =
    rewriter.model.opset < 13
      ? rewriter.constant(`${name}_roi`, { dtype: 'f32', shape: [0], data: new Float32Array(0) })
      : undefined;
  const attributes = Object.fromEntries(node.attributes);
  replaceByNew(rewriter, node.output(0), rewriter.op('Resize', [x, roi, scales], attributes));
  context.count('sizes');
}

/** The factor of every axis, or why they are not whole. */
function wholeFactors(node: Node): readonly number[] | string {
  if (node.string('coordinate_transformation_mode', 'half_pixel') === 'tf_crop_and_resize')
    return 'it crops';
  if (node.string('keep_aspect_ratio_policy', 'stretch') !== 'stretch')
    return 'its sizes depend on the aspect ratio';
  if (node.attributes.has('axes')) return 'it lists axes';
  const { shape } = node.input(0);
  const sizes: readonly Dim[] | undefined = integersOf(node.inputs[3]) ?? node.inputs[3]?.elements;
  if (shape === undefined || sizes?.length !== shape.length) return 'its sizes are not known';
  const factors: number[] = [];
  for (const [axis, dim] of shape.entries()) {
    const size = sizes[axis] ?? 0;
    const factor = divideDims(size, dim);
    if (typeof factor !== 'number' || factor < 1 || multiplyDims(factor, dim) !== size)
      return `${size} is no whole multiple of ${dim}`;
    factors.push(factor);
  }
  return factors;
}
