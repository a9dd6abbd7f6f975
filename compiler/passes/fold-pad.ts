/**
 * Puts a Pad into the window op behind it.
 *
 *     Conv(Pad(x, p, 0), w) {pads = q}          ->   Conv(x, w) {pads = p + q}
 *     MaxPool(Pad(x, p, -inf)) {pads = q}       ->   MaxPool(x) {pads = p + q}
 *     AveragePool(Pad(x, p, 0))                 ->   AveragePool(x) {pads = p, count_include_pad = 1}
 *
 * Exact: a Conv pads with zeros itself, a MaxPool with the smallest number (so zeros may go into it when
 * its input is never negative). Refuses padding of batch or channels, cropping, other values, and pools
 * whose last window only partly fits.
 */
import { int, ints } from '../ir/attribute.ts';
import type { Node, Value } from '../ir/graph.ts';
import { activationNameOf } from '../ops/activation-table.ts';
import { isActivation } from '../ops/fused-activation.ts';
import { isFusedConv } from '../ops/fused-conv.ts';
import { listOf, numbersOf } from './constants.ts';
import type { Pass, PassContext } from './pass.ts';
import { removeIfUnused } from './replace.ts';

/** Makes the pass. It has no options. */
export function foldPad(): Pass {
  return {
    name: 'fold-pad',
    options: {},
    rules: [{ name: 'pad', starts: [...windowOps] }],
    run(model, context) {
      const before = context.rewriter.changes;
      for (const node of model.graph.allNodes())
        if (windowOps.has(node.op) && (node.domain === '' || isFusedConv(node)))
          visit(node, context);
      return context.rewriter.changes > before;
    },
  };
}

const windowOps: ReadonlySet<string> = new Set(['Conv', 'MaxPool', 'AveragePool']);

function visit(node: Node, context: PassContext): void {
  const pad = node.inputs[0]?.producer;
  if (pad?.op !== 'Pad' || pad.domain !== '' || pad.graph !== node.graph) {
    context.miss('pad', node, 'there is no Pad in front of it');
    return;
  }
  const rank = pad.input(0).shape?.length;
  const pads = rank === undefined ? undefined : paddingOf(pad, rank);
  const why =
    rank === undefined || pads === undefined
      ? 'how much it pads is not known'
      : reasonToKeep(pad, pads, node, rank);
  if (why !== undefined || pads === undefined || rank === undefined) {
    context.refuse('pad', pad, why ?? '');
    context.miss('pad', node, `"${pad.name || pad.output(0).name}" stays: ${why}`);
    return;
  }
  const { rewriter } = context;
  const own = node.ints('pads') ?? [];
  const spatial = [...pads.slice(2, rank), ...pads.slice(rank + 2)];
  rewriter.setAttribute(node, 'pads', ints(spatial.map((by, i) => by + (own[i] ?? 0))));
  if (node.attributes.has('auto_pad')) rewriter.setAttribute(node, 'auto_pad', undefined);
  if (node.op === 'AveragePool') rewriter.setAttribute(node, 'count_include_pad', int(1));
  rewriter.setInput(node, 0, pad.input(0));
  node.from = [...new Set([...pad.from, ...node.from])];
  removeIfUnused(rewriter, pad);
  context.count('pad');
}

/** Cells added at the begin of every axis, then at the end; undefined when they are computed. */
function paddingOf(pad: Node, rank: number): readonly number[] | undefined {
  const listed = listOf(pad, 'pads', 1) ?? undefined;
  if (listed === undefined || listed === 'absent') return undefined;
  const axes = pad.inputs[3] === undefined ? undefined : numbersOf(pad.inputs[3]);
  if (pad.inputs[3] === undefined) return listed.length === 2 * rank ? listed : undefined;
  if (axes === undefined || listed.length !== 2 * axes.length) return undefined;
  const all = Array.from({ length: 2 * rank }, () => 0);
  axes.forEach((axis, index) => {
    const at = axis < 0 ? axis + rank : axis;
    all[at] = listed[index] ?? 0;
    all[at + rank] = listed[index + axes.length] ?? 0;
  });
  return all;
}

function reasonToKeep(
  pad: Node,
  pads: readonly number[],
  node: Node,
  rank: number,
): string | undefined {
  const mode = pad.string('mode', 'constant');
  if (mode !== 'constant') return `its mode is ${mode}`;
  if (pads.some((by) => by < 0)) return 'it crops';
  if ([0, 1, rank, rank + 1].some((index) => pads[index] !== 0))
    return 'it pads the batch or the channels';
  if (!['NOTSET', 'VALID'].includes(node.string('auto_pad', 'NOTSET')))
    return `the ${node.op} computes its own padding`;
  const value = pad.inputs[2] === undefined ? pad.float('value', 0) : numbersOf(pad.inputs[2])?.[0];
  if (value === undefined) return 'what it pads with is not known';
  if (node.op === 'Conv') return value === 0 ? undefined : `it pads with ${value}`;
  if (node.int('ceil_mode', 0) !== 0) return 'the last window may only partly fit';
  const kernel = node.ints('kernel_shape') ?? [];
  const wide = kernel.some(
    (size, axis) =>
      Math.max(pads[axis + 2] ?? 0, pads[axis + 2 + rank] ?? 0) +
        Math.max(node.ints('pads')?.[axis] ?? 0, node.ints('pads')?.[axis + kernel.length] ?? 0) >=
      size,
  );
  if (wide) return 'a window would lie in the padding only';
  const own = (node.ints('pads') ?? []).some((by) => by !== 0);
  if (node.op === 'AveragePool') {
    if (own && node.int('count_include_pad', 0) === 0)
      return 'the pool does not count its own padding';
    return value === 0 ? undefined : `it pads with ${value}`;
  }
  if (node.outputs[1] !== undefined) return 'the places of the largest elements are used';
  if (value === -Infinity || value < -3.4e38) return undefined;
  return value === 0 && isNeverNegative(pad.input(0)) ? undefined : `it pads with ${value}`;
}

/** Whether a value is known to have no element below 0. */
function isNeverNegative({ producer }: Value): boolean {
  if (producer === undefined) return false;
  if (isActivation(producer as Node | undefined) || isFusedConv(producer as Node | undefined))
    return (
      ['relu', 'relu6', 'sigmoid', 'hard-sigmoid', 'softplus'].includes(
        activationNameOf(producer),
      ) &&
      (producer.inputs[3] === undefined || producer.int('residualFirst', 0) === 1)
    );
  return producer.domain === '' && ['Relu', 'Sigmoid', 'Abs', 'Softplus'].includes(producer.op);
}
