/**
 * Gives the keys and the values of a layer a cache each, where an exporter stacks them in one tensor, so
 * that an attention can append to them in place.
 *
 *     Gather(past [2, b, h, p, d], 0), Gather(past, 1)     ->   past.key [b, h, p, d], past.value
 *     present = Concat(Unsqueeze(k), Unsqueeze(v))         ->   present.key = k, present.value = v
 *
 * Only where the input is read by these alone and the output is made by these alone. Names get a suffix.
 *
 * Source: GPT-2 of transformers before 4.x, and onnxruntime's conversion of it.
 */
import type { Model, Node, Value } from '../ir/graph.ts';
import { integersOf } from './constants.ts';
import { dtypes } from '../../runtime/tensor.ts';
import type { Pass, PassContext } from './pass.ts';
import { removeIfUnused } from './replace.ts';

/** Makes the pass. It has no options. */
export function splitCaches(): Pass {
  return {
    name: 'split-caches',
    options: {},
    rules: [{ name: 'cache', starts: ['Concat'] }],
    run(model, context) {
      const before = context.rewriter.changes;
      const pairs = model.graph.outputs.flatMap((present) => pairOf(model, present, context));
      for (const pair of pairs) split(model, pair, context);
      for (const node of model.graph.allNodes())
        if (node.op === 'Concat' && node.domain === '' && !node.output(0).isOutput)
          context.miss('cache', node, 'its result is no output of the model');
      return context.rewriter.changes > before;
    },
  };
}

interface Pair {
  readonly past: Value;
  readonly present: Value;
  /** Takes of keys and of values. */
  readonly takes: readonly [readonly Node[], readonly Node[]];
  readonly join: Node;
  readonly parts: readonly [Value, Value];
}

/** A stacked cache that an output is the next state of. */
function pairOf(model: Model, present: Value, context: PassContext): readonly Pair[] {
  const join = present.producer;
  if (join?.op !== 'Concat' || join.domain !== '') return [];
  const miss = (why: string): readonly Pair[] => {
    context.miss('cache', join, why);
    return [];
  };
  if (join.int('axis', -1) !== 0) return miss('it does not stack along a first axis');
  const stacked = join.inputs.map((input) => {
    const lift = input?.producer;
    const isLifted = lift?.op === 'Unsqueeze' || lift?.op === 'Reshape';
    return isLifted && input?.shape?.[0] === 1 && input.shape.length === 5
      ? lift.input(0)
      : undefined;
  });
  const [key, value] = stacked;
  if (stacked.length !== 2 || key?.shape?.length !== 4 || value?.shape?.length !== 4)
    return miss('it does not stack keys and values');
  if (present.users.size > 0) return miss('its result is read');
  if (key.isOutput || value.isOutput || key === value) return miss('its parts are outputs too');
  const past = model.graph.inputs.find(
    (input) => input.shape?.length === 5 && input.shape[0] === 2 && feeds(input, key, value),
  );
  if (past === undefined) return miss('no input with keys and values leads to it');
  const takes = [0, 1].map((index) =>
    [...past.users.keys()].filter((user) => takenIndex(user, past) === index),
  );
  const [keys = [], values = []] = takes;
  if (keys.length + values.length < past.users.size || past.isOutput) {
    context.refuse('cache', join, `"${past.name}" is read as a whole`);
    return [];
  }
  return [{ past, present, takes: [keys, values], join, parts: [key, value] }];
}

/** Whether keys are computed from the first half of a cache, and values from the second, by one op. */
function feeds(past: Value, key: Value, value: Value): boolean {
  return [key, value].every((part, index) =>
    part.producer?.inputs.some(
      (input) => input?.producer !== undefined && takenIndex(input.producer, past) === index,
    ),
  );
}

/** Which half of a cache a node takes; undefined when it does something else. */
function takenIndex(node: Node, past: Value): number | undefined {
  if (node.op !== 'Gather' || node.domain !== '' || node.inputs[0] !== past) return undefined;
  const index = integersOf(node.inputs[1]);
  const isScalar = node.input(1).shape?.length === 0;
  return node.int('axis', 0) === 0 && isScalar && (index?.[0] === 0 || index?.[0] === 1)
    ? index[0]
    : undefined;
}

function split(
  model: Model,
  { past, present, takes, join, parts }: Pair,
  context: PassContext,
): void {
  const { rewriter } = context;
  const { graph } = model;
  const names = ['key', 'value'] as const;
  if (past.dtype === undefined || dtypes[past.dtype].kind !== 'float') return;
  names.forEach((name, half) => {
    const input = rewriter.graphInput(`${past.name}.${name}`, {
      dtype: past.dtype,
      shape: past.shape?.slice(1),
    });
    for (const take of takes[half] ?? []) {
      rewriter.replaceUses(take.output(0), input);
      rewriter.remove(take);
    }
  });
  const at = graph.outputs.indexOf(present);
  names.forEach((name, half) => {
    const part = parts[half];
    if (part !== undefined) rewriter.graphOutput(`${present.name}.${name}`, part);
  });
  graph.removeOutput(at);
  for (const lift of [join, ...join.inputs.map((input) => input?.producer)])
    if (lift !== undefined) removeIfUnused(rewriter, lift);
  rewriter.removeInput(past);
  context.count('cache');
}
