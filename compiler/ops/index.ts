/**
 * Every op Fettle knows, by family. To add an op: add it to its family's array, and a case to the
 * tests. A family file exports one `readonly OpDefinition[]`; `elementwise.ts` is the one to copy.
 */
import type { Node } from '../ir/graph.ts';
import { activationOps } from './activation.ts';
import type { OpDefinition } from './definition.ts';
import { convTransposeOps } from './conv-transpose.ts';
import { convOps } from './conv.ts';
import { einsumOps } from './einsum.ts';
import { castOps } from './cast.ts';
import { constantOps } from './constants.ts';
import { randomOps } from './random.ts';
import { reduceOps } from './reduce.ts';
import { softmaxOps } from './softmax.ts';
import { sortOps } from './sort.ts';
import { reshapeOps } from './reshape.ts';
import { sliceOps } from './slice.ts';
import { gatherOps } from './gather.ts';
import { scatterOps } from './scatter.ts';
import { rearrangeOps } from './rearrange.ts';
import { controlOps } from './control.ts';
import { lossOps } from './loss.ts';
import { signalOps } from './signal.ts';
import { elementwiseOps } from './elementwise.ts';
import { logicOps } from './logic.ts';
import { matmulOps } from './matmul.ts';
import { poolOps } from './pool.ts';
import { normOps } from './norm.ts';
import { quantizedOps } from './quantized.ts';
import { quantizeOps } from './quantize.ts';
import { quantizeContribOps } from './quantize-contrib.ts';
import { matmulNBitsOps } from './matmul-n-bits.ts';
import { rnnOps } from './rnn.ts';
import { resizeOps } from './resize.ts';
import { imageOps } from './image.ts';
import { normContribOps } from './norm-contrib.ts';
import { attentionOps } from './attention.ts';
import { attentionContribOps } from './attention-contrib.ts';
import { groupQueryAttentionOps } from './group-query-attention.ts';
import { fusedActivationOps } from './fused-activation.ts';
import { fusedAttentionOps } from './fused-attention.ts';
import { fusedConvOps } from './fused-conv.ts';
import { fusedExpressionOps } from './fused-expression.ts';
import { fusedLinearOps } from './fused-linear.ts';
import { fusedNormOps } from './fused-norm.ts';
import { deformConvOps } from './deform-conv.ts';

/** The families, each a file of this folder. */
export const opFamilies: Readonly<Record<string, readonly OpDefinition[]>> = {
  elementwise: elementwiseOps,
  logic: logicOps,
  activation: activationOps,
  cast: castOps,
  constants: constantOps,
  random: randomOps,
  reduce: reduceOps,
  softmax: softmaxOps,
  sort: sortOps,
  reshape: reshapeOps,
  slice: sliceOps,
  gather: gatherOps,
  scatter: scatterOps,
  rearrange: rearrangeOps,
  control: controlOps,
  loss: lossOps,
  signal: signalOps,
  matmul: matmulOps,
  einsum: einsumOps,
  conv: convOps,
  'conv-transpose': convTransposeOps,
  pool: poolOps,
  norm: normOps,
  quantized: quantizedOps,
  quantize: quantizeOps,
  'quantize-contrib': quantizeContribOps,
  'matmul-n-bits': matmulNBitsOps,
  rnn: rnnOps,
  resize: resizeOps,
  image: imageOps,
  'norm-contrib': normContribOps,
  attention: attentionOps,
  'attention-contrib': attentionContribOps,
  'group-query-attention': groupQueryAttentionOps,
  'fused-activation': fusedActivationOps,
  'fused-attention': fusedAttentionOps,
  'fused-conv': fusedConvOps,
  'fused-expression': fusedExpressionOps,
  'fused-linear': fusedLinearOps,
  'fused-norm': fusedNormOps,
  'deform-conv': deformConvOps,
};

const definitions: ReadonlyMap<string, OpDefinition> = new Map(
  Object.values(opFamilies)
    .flat()
    .map((definition) => [keyOf(definition.op, definition.domain), definition]),
);

/**
 * The definition of an op, or undefined for one that Fettle does not know.
 *
 * @param op - op type
 * @param domain - '' or 'ai.onnx' for ONNX. Default ''
 */
export function opDefinition(op: string, domain = ''): OpDefinition | undefined {
  return definitions.get(keyOf(op, domain));
}

/** The definition of a node's op. */
export function definitionOf(node: Node): OpDefinition | undefined {
  return opDefinition(node.op, node.domain);
}

function keyOf(op: string, domain: string): string {
  return domain === '' || domain === 'ai.onnx' ? op : `${domain}.${op}`;
}
