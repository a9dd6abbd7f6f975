/**
 * The model as calibration runs it: every size a number, and no KV cache.
 *
 *     ids [b, s], past [b, h, p, d], mask [b, p + s]   ->   ids [1, 256], mask [1, 256]
 *
 * A decoder sees whole windows from position 0 on, so its caches are empty and come and go with the
 * window: the inputs that hold them become absent (fused attention) or constants of no rows (anything
 * else), and nobody asks for the outputs. Constants keep their names: they are what quantization is
 * about.
 */
import { assert } from '../../runtime/errors.ts';
import type { DecoderSpec, StateSpec } from '../../runtime/manifest.ts';
import { elementCount, zeros } from '../../runtime/tensor.ts';
import { cloneModel } from '../ir/clone.ts';
import { isStatic } from '../ir/dim.ts';
import type { Model, Value } from '../ir/graph.ts';
import { inferModel, inferNode } from '../ir/infer.ts';
import { Rewriter } from '../ir/rewriter.ts';
import { writeNumbers } from '../ops/numbers.ts';
import { attentionInputs, isFusedAttention } from '../ops/fused-attention.ts';
import { eliminateDead } from '../passes/eliminate-dead.ts';
import { specializeShapes } from '../passes/specialize-shapes.ts';
import { runPasses } from '../run-passes.ts';

/**
 * A copy of a model for inputs of certain shapes.
 *
 * @param model - shapes inferred, fused or not; not changed
 * @param decoder - how it is driven, when it is a decoder
 * @param shapes - sizes of every input that is no cache
 * @throws {@link FettleError} USAGE when the shapes do not fit the model
 */
export async function fixedModel(
  model: Model,
  decoder: DecoderSpec | undefined,
  shapes: ReadonlyMap<string, readonly number[]>,
): Promise<Model> {
  const copy = cloneModel(model);
  const states = decoder?.state ?? [];
  const sizes = Object.fromEntries([
    ...states.map((state): [string, readonly number[]] => [state.input, emptyShape(state)]),
    ...shapes,
  ]);
  await runPasses(copy, [specializeShapes({ shapes: sizes })], { verify: false });
  const rewriter = new Rewriter(copy, inferNode);
  for (const state of states) dropState(rewriter, state);
  inferModel(copy, { contradictions: 'warn' });
  foldSizes(rewriter);
  await runPasses(copy, [eliminateDead()], {});
  for (const input of copy.graph.inputs.filter(({ useCount }) => useCount === 0))
    rewriter.removeInput(input);
  return copy;
}

/** With fixed shapes, arithmetic about shapes is constant. */
function foldSizes(rewriter: Rewriter): void {
  for (const node of rewriter.model.graph.nodes())
    for (const value of node.outputs) {
      if (value === undefined || value.isOutput || value.useCount === 0) continue;
      const { dtype, shape, elements } = value;
      if (dtype === undefined || !isStatic(shape) || elements === undefined) continue;
      if (!isStatic(elements) || elements.length !== elementCount(shape)) continue;
      const contents = writeNumbers(dtype, shape, elements);
      rewriter.replaceUses(value, rewriter.constant(`${value.name}_known`, contents));
    }
}

/** A cache of no tokens, one sequence. */
function emptyShape({ shape, axis }: StateSpec): readonly number[] {
  return shape.map((size, index) => (index === axis ? 0 : typeof size === 'number' ? size : 1));
}

function dropState(rewriter: Rewriter, state: StateSpec): void {
  const { graph } = rewriter.model;
  const output = graph.outputs.findIndex(({ name }) => name === state.output);
  if (output >= 0) graph.removeOutput(output);
  const input = graph.inputs.find(({ name }) => name === state.input);
  assert(input !== undefined, `the model has no input "${state.input}"`);
  for (const node of input.users.keys())
    if (isFusedAttention(node))
      for (const index of [attentionInputs.pastKey, attentionInputs.pastValue])
        if (node.inputs[index] === input) rewriter.setInput(node, index, undefined);
  if (input.useCount > 0) rewriter.replaceUses(input, noRows(rewriter, input, state));
}

function noRows(rewriter: Rewriter, input: Value, state: StateSpec): Value {
  return rewriter.constant(`${input.name}_empty`, zeros(input.dtype ?? 'f32', emptyShape(state)));
}
