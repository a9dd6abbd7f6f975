/**
 * Gives a causal decoder that was exported without a cache one, so that a token costs one token's work.
 *
 *     logits(ids)     ->   logits(ids, past.N.key, past.N.value), present.N.key, present.N.value
 *
 * Works on a fused model: every attention must be causal over the same tokens, and everything else must
 * treat tokens one by one, so that the tokens before a call act through keys and values only. Refuses
 * with the reason otherwise: masks that are more than causal, positions counted in the graph outside of
 * attention, ops across tokens, fixed lengths.
 */
import { analyzeDecoder } from '../analyze/decoder.ts';
import type { Model, Node, Value } from '../ir/graph.ts';
import { attentionInputs, isFusedAttention, readAttention } from '../ops/fused-attention.ts';
import { internalDomain } from '../ops/quantized.ts';
import type { Pass, PassContext } from './pass.ts';
import { replaceByNew } from './replace.ts';

/** Makes the pass. It has no options. */
export function insertKvCache(): Pass {
  return {
    name: 'insert-kv-cache',
    options: {},
    rules: [{ name: 'cache', starts: ['fettle.Attention'] }],
    run(model, context) {
      const attentions = [...model.graph.nodes()].filter(isFusedAttention);
      if (attentions.length === 0 || analyzeDecoder(model).decoder !== undefined) return false;
      const ids = idsOf(model);
      if (ids === undefined) return false;
      const why = obstacle(model, ids, attentions);
      if (why !== undefined) {
        context.refuse('cache', why.at, why.why);
        return false;
      }
      attentions.forEach((node, layer) => insert(node, layer, ids, context));
      const idle = model.graph.inputs.filter(
        ({ name, useCount }) => /mask/.test(name) && useCount === 0,
      );
      for (const input of idle) context.rewriter.removeInput(input);
      return true;
    },
  };
}

/** The token ids, [batch, tokens], of a model that gives logits for every token. */
function idsOf(model: Model): Value | undefined {
  const [logits, ...more] = model.graph.outputs;
  const ids = model.graph.inputs.find(
    ({ name, shape }) =>
      shape?.length === 2 && /ids|tokens/.test(name) && !/position|type/.test(name),
  );
  const isLogits = logits?.shape?.length === 3 && logits.shape[1] === ids?.shape?.[1];
  return more.length === 0 && isLogits ? ids : undefined;
}

interface Obstacle {
  readonly why: string;
  readonly at: Node | Value;
}

function obstacle(model: Model, ids: Value, attentions: readonly Node[]): Obstacle | undefined {
  const tokens = ids.shape?.[1];
  if (typeof tokens !== 'string')
    return { why: `its length is fixed to ${tokens} tokens`, at: ids };
  for (const node of attentions) {
    const { causal } = readAttention(node);
    const at = attentionInputs;
    if (!causal) return { why: 'it is not causal: later tokens change earlier ones', at: node };
    if (node.inputs[at.bias] !== undefined)
      return { why: 'its mask is more than causal', at: node };
    const mask = node.inputs[at.mask];
    if (mask !== undefined && mask.producer !== undefined)
      return { why: 'its padding is computed in the graph', at: node };
    if (node.inputs[at.k] !== undefined && node.inputs[at.k]?.shape?.[1] !== tokens)
      return { why: 'its keys are those of another sequence', at: node };
  }
  for (const node of model.graph.nodes()) {
    const why = isFusedAttention(node) ? undefined : mixesTokens(node, tokens);
    if (why !== undefined) return { why, at: node };
  }
  return undefined;
}

/** Ops that compute each row from the same rows. */
const rowWise: ReadonlySet<string> = new Set([
  'fettle.Linear',
  'fettle.GatedLinear',
  'fettle.Norm',
  'fettle.Activation',
  'fettle.Expression',
  'Add',
  'Sub',
  'Mul',
  'Div',
  'Tanh',
  'Sigmoid',
  'Relu',
  'Gelu',
  'Cast',
  'Identity',
  'Neg',
  'Sqrt',
  'Where',
  'Clip',
  'Erf',
  'Exp',
  'Pow',
]);

/** Why a node may connect tokens or count them; undefined when it treats them one by one. */
function mixesTokens(node: Node, tokens: string): string | undefined {
  const name = node.domain === '' ? node.op : `${node.domain}.${node.op}`;
  const isTable =
    node.op === 'Gather' && node.inputs[0]?.weight !== undefined && node.int('axis', 0) === 0;
  const [output] = node.outputs;
  if (isTable && node.inputs[1]?.producer === undefined) return undefined;
  if (node.op === 'Transpose' && node.inputs[0]?.weight !== undefined) return undefined;
  if (!rowWise.has(name))
    return output?.shape?.includes(tokens) === true || name === 'Shape'
      ? `${name} may count or mix tokens`
      : `${name} is not known to treat tokens one by one`;
  // a constant with a row for each token would be another one for later tokens
  const perToken = node.inputs.find((input) => {
    const dim = input?.weight?.shape.at(-2);
    return node.domain === '' && dim !== undefined && dim !== 1;
  });
  return perToken === undefined ? undefined : `its constant "${perToken.name}" has rows of its own`;
}

function insert(node: Node, layer: number, ids: Value, { rewriter, count }: PassContext): void {
  const { kvHeads, headSize } = readAttention(node);
  const shape = [ids.shape?.[0] ?? 1, kvHeads, 'past_sequence_length', headSize];
  const { dtype } = node.output(0);
  const past = (['key', 'value'] as const).map((part) =>
    rewriter.graphInput(`past_key_values.${layer}.${part}`, { dtype, shape }),
  );
  const inputs = [...node.inputs];
  while (inputs.length <= attentionInputs.pastValue) inputs.push(undefined);
  [inputs[attentionInputs.pastKey], inputs[attentionInputs.pastValue]] = past;
  // a decoder is called without padding
  if (inputs.length > attentionInputs.mask) inputs[attentionInputs.mask] = undefined;
  while (inputs.at(-1) === undefined) inputs.pop();
  rewriter.before(node);
  const made = rewriter.node('Attention', inputs, Object.fromEntries(node.attributes), {
    domain: internalDomain,
    outputs: 3,
    name: node.name,
    from: node.from,
  });
  replaceByNew(rewriter, node.output(0), made.output(0));
  for (const [index, part] of (['key', 'value'] as const).entries())
    rewriter.graphOutput(`present.${layer}.${part}`, made.output(index + 1));
  count('cache');
}
