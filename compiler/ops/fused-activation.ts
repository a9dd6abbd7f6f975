/**
 * An activation by name: what several nodes of an exporter compute together, before a linear layer or a
 * convolution takes it along.
 *
 *   fettle.Activation(x) -> y, attributes `activation`, `alpha`, `beta` as in `activation-table.ts`
 */
import type { Node } from '../ir/graph.ts';
import type { ActivationName } from './activation-table.ts';
import { activationNameOf, activations, fusedActivation } from './activation-table.ts';
import type { OpDefinition } from './definition.ts';
import { mapNumbers, sameAsInput } from './elementwise.ts';
import { internalDomain } from './quantized.ts';

/** An activation with its numbers. */
export interface ActivationChoice {
  /** Entry of the table. */
  readonly name: ActivationName;
  /** Left out where it is the entry's default, or has no meaning. */
  readonly alpha?: number;
  /** Left out where it is the entry's default, or has no meaning. */
  readonly beta?: number;
}

/** Whether a node is a fused Activation. */
export function isActivation(node: Node | undefined): node is Node & { readonly op: 'Activation' } {
  return node?.op === 'Activation' && node.domain === internalDomain;
}

/** The activation a fused node carries; `none` when it has no attribute. */
export function activationChoice(node: Node): ActivationChoice {
  const name = activationNameOf(node);
  const { alpha, beta } = activations[name];
  return {
    name,
    ...(alpha === undefined ? {} : { alpha: node.float('alpha', alpha) }),
    ...(beta === undefined ? {} : { beta: node.float('beta', beta) }),
  };
}

/** The named activation by itself. */
export const fusedActivationOps: readonly OpDefinition[] = [
  {
    op: 'Activation',
    domain: internalDomain,
    inputs: [1, 1],
    outputs: [1, 1],
    infer(context) {
      activationNameOf(context.node);
      return sameAsInput(context);
    },
    evaluate: (context) => [mapNumbers(context.input(0), fusedActivation(context.node))],
  },
];
