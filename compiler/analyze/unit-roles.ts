/**
 * What each weight does, in the words of the model's structure: the block it belongs to and its part
 * there, so that tables and maps of formats can be read by people.
 *
 *     onnx::MatMul_2602   ->   block 10, down
 */
import type { Model, Node, Value } from '../ir/graph.ts';
import { activationNameOf } from '../ops/activation-table.ts';
import { attentionInputs, isFusedAttention } from '../ops/fused-attention.ts';
import { gatedLinearInputs, isGatedLinear, isLinear } from '../ops/fused-linear.ts';
import type { WeightUnit } from '../passes/weight-units.ts';
import { blockMembers } from './blocks.ts';

/** Place and part of a unit. */
export interface UnitRole {
  /** Index of its block, -1 outside of blocks. */
  readonly block: number;
  /** `qkv`, `q`, `k`, `v`, `o`, `gate`, `up`, `down`, `table`, `head`, `conv 2`, or what op it is. */
  readonly part: string;
}

/**
 * Roles of units.
 *
 * @param model - fused, with the nodes that the units' sites name
 */
export function unitRoles(
  model: Model,
  units: readonly WeightUnit[],
): ReadonlyMap<string, UnitRole> {
  const blocks = blockMembers(model);
  const seen = new Map<string, number>();
  const outputs = new Set(model.graph.outputs);
  const roles = new Map<string, UnitRole>();
  for (const unit of units) {
    const [{ node, index }] = unit.sites;
    const inBlock = unit.kind === 'table' ? -1 : blocks.findIndex((members) => members.has(node));
    const part = unit.kind === 'table' ? 'table' : partOf(node, index, outputs);
    // parts that come several times are numbered
    const key = `${inBlock} ${part}`;
    const times = (seen.get(key) ?? 0) + 1;
    seen.set(key, times);
    roles.set(unit.name, { block: inBlock, part: times === 1 ? part : `${part} ${times}` });
  }
  return roles;
}

/** `L3.down`, `table`. */
export function roleName({ block, part }: UnitRole): string {
  return block < 0 ? part : `L${block}.${part}`;
}

function partOf(node: Node, index: number, outputs: ReadonlySet<Value>): string {
  if (isGatedLinear(node)) return index === gatedLinearInputs.gate ? 'gate' : 'up';
  if (!isLinear(node)) {
    if (node.op === 'Conv') return node.int('group', 1) > 1 ? 'depthwise' : 'conv';
    return node.op.toLowerCase();
  }
  const reader = node.output(0).onlyUser;
  if (isFusedAttention(reader)) {
    const places = [attentionInputs.q, attentionInputs.k, attentionInputs.v] as const;
    const [q, k, v] = places.map((place) => reader.inputs[place] === node.output(0));
    if (reader.inputs[attentionInputs.k] === undefined) return 'qkv';
    return q === true ? 'q' : k === true ? 'k' : v === true ? 'v' : 'linear';
  }
  const source = node.input(0).producer;
  if (isFusedAttention(source)) return 'o';
  if (isGatedLinear(source) || (isLinear(source) && isActivated(source))) return 'down';
  if (isActivated(node) && isLinear(reader)) return 'up';
  return outputs.has(node.output(0)) ? 'head' : 'linear';
}

function isActivated(node: Node): boolean {
  return activationNameOf(node) !== 'none';
}
