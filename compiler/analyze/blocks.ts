/**
 * The blocks of a fused model: the residual spine and what is attached to it. Attention and feed-forward
 * layers of transformers in any order of norms, residual blocks of convolutions with squeeze-excite; and
 * what was not recognised, by op.
 */
import type { Model, Node, Value } from '../ir/graph.ts';
import { activationNameOf } from '../ops/activation-table.ts';
import { attentionInputs, isFusedAttention, readAttention } from '../ops/fused-attention.ts';
import { isGatedLinear, isLinear } from '../ops/fused-linear.ts';
import { isNorm, normInputs, normKind } from '../ops/fused-norm.ts';
import { internalDomain } from '../ops/quantized.ts';
import { describeParts } from './outline-parts.ts';

/** An attention of a block. */
export interface AttentionLayer {
  readonly kind: 'attention';
  /** Query heads. */
  readonly heads: number;
  /** Key and value heads. */
  readonly kvHeads: number;
  /** Columns of a head. */
  readonly headSize: number;
  /** Columns of a head that the rotary embedding turns. */
  readonly rotaryDims: number;
  /** Whether keys and values are those of another sequence. */
  readonly cross: boolean;
  /** Whether later tokens are hidden. */
  readonly causal: boolean;
  /** Most keys a query sees; 0 for all. */
  readonly window: number;
  /** Names of the cache's inputs and outputs. */
  readonly cache?: {
    readonly inputs: readonly string[];
    readonly outputs: readonly string[];
  };
  /** The node. */
  readonly node: string;
}

/** A feed-forward layer of a block. */
export interface FeedForwardLayer {
  readonly kind: 'mlp';
  /** Whether one product gates another. */
  readonly gated: boolean;
  /** Columns between the products. */
  readonly width: number;
  readonly activation: string;
  /** The node of the first product. */
  readonly node: string;
}

/** Convolutions between two sums of a residual net. */
export interface ConvolutionLayer {
  readonly kind: 'conv';
  /** Convolutions. */
  readonly convolutions: number;
  /** Those with one group per channel. */
  readonly depthwise: number;
  /** Whether channels are scaled by what their means say. */
  readonly squeezeExcite: boolean;
  /** The last convolution. */
  readonly node: string;
}

/** Where a block's norms stand: before its layers, behind their sum, behind the layers, or shared. */
export type BlockOrder = 'pre-norm' | 'post-norm' | 'output-norm' | 'parallel' | 'plain';

/** One block. */
export interface Block {
  readonly kind: 'transformer' | 'residual';
  readonly order: BlockOrder;
  readonly norm: 'rms' | 'layer' | 'none';
  readonly layers: readonly (AttentionLayer | FeedForwardLayer | ConvolutionLayer)[];
  /** Nodes from its first to the next block's first. */
  readonly nodes: number;
}

/** The blocks of a model and what is left. */
export interface BlockOutline {
  readonly blocks: readonly Block[];
  /** Nodes that belong to no block, by op. */
  readonly outside: Readonly<Record<string, number>>;
  /** One line for each kind of block, and one for the rest. */
  readonly text: readonly string[];
}

/** The nodes of each block of a model that has been fused, in the order of the blocks. */
export function blockMembers(model: Model): readonly ReadonlySet<Node>[] {
  return foundIn([...model.graph.nodes()]).map(({ members }) => members);
}

function foundIn(nodes: readonly Node[]): readonly Found[] {
  const transformer = transformerBlocks(nodes);
  return transformer.length > 0 ? transformer : residualBlocks(nodes);
}

/** Something that looked like a part of a block and was not recognised. */
export interface Unrecognised {
  /** Node. */
  readonly at: string;
  /** As a sentence. */
  readonly why: string;
}

/**
 * Recognises the blocks of a model that has been fused.
 *
 * @param unrecognised - attentions that fusion refused, for the text
 */
export function findBlocks(model: Model, unrecognised: readonly Unrecognised[] = []): BlockOutline {
  const nodes = [...model.graph.nodes()];
  const found = foundIn(nodes);
  const inside = new Set(found.flatMap((block) => [...block.members]));
  const outside = new Map<string, number>();
  for (const node of nodes)
    if (!inside.has(node)) outside.set(opName(node), (outside.get(opName(node)) ?? 0) + 1);
  const blocks = found.map(({ block, members }): Block => ({ ...block, nodes: members.size }));
  const rest = Object.fromEntries([...outside].sort(([a, x], [b, y]) => y - x || (a < b ? -1 : 1)));
  return { blocks, outside: rest, text: describe(blocks, rest, nodes, unrecognised) };
}

interface Found {
  readonly block: Omit<Block, 'nodes'>;
  readonly members: ReadonlySet<Node>;
}

function opName(node: Node): string {
  return node.domain === '' ? node.op : `${node.domain}.${node.op}`;
}

/** A layer, with the value it reads and the node its sum is in. */
interface Layer {
  readonly layer: AttentionLayer | FeedForwardLayer;
  readonly input: Value;
  readonly members: readonly Node[];
}

function transformerBlocks(nodes: readonly Node[]): Found[] {
  const layers: Layer[] = [];
  for (const node of nodes) {
    const layer = isFusedAttention(node) ? attentionLayer(node) : feedForwardLayer(node);
    if (layer !== undefined) layers.push(layer);
  }
  if (!layers.some(({ layer }) => layer.kind === 'attention')) return [];
  const groups: Layer[][] = [];
  for (const layer of layers) {
    const last = groups.at(-1);
    const startsBlock =
      last === undefined ||
      (layer.layer.kind === 'attention' &&
        !layer.layer.cross &&
        last.some((one) => one.layer.kind === 'attention'));
    if (startsBlock) groups.push([layer]);
    else last.push(layer);
  }
  const places = new Map(nodes.map((node, index) => [node, index]));
  return groups.map((group): Found => {
    const members = new Set(group.flatMap((layer) => layer.members));
    for (const norm of normsOf(group)) members.add(norm);
    // what lies between the first and the last node of a block belongs to it
    const indices = [...members].map((node) => places.get(node) ?? 0);
    const [first, last] = [Math.min(...indices), Math.max(...indices)];
    for (const node of nodes.slice(first, last + 1)) members.add(node);
    const [norm] = [...members].filter(isNorm);
    return {
      block: {
        kind: 'transformer',
        order: orderOf(group),
        norm: norm === undefined ? 'none' : normKind(norm),
        layers: group.map(({ layer }) => layer),
      },
      members,
    };
  });
}

function attentionLayer(node: Node): Layer | undefined {
  const shape = readAttention(node);
  const [q, k] = [node.input(attentionInputs.q), node.inputs[attentionInputs.k]];
  const source = sourceOf(q);
  const cross = k !== undefined && sourceOf(k) !== source;
  const pasts = [node.inputs[attentionInputs.pastKey], node.inputs[attentionInputs.pastValue]];
  const projections = [q, k, node.inputs[attentionInputs.v]].flatMap(
    (value) => value?.producer ?? [],
  );
  const output = node.output(0).onlyUser;
  const cached = pasts.flatMap((value) => (value === undefined ? [] : [value.name]));
  return {
    layer: {
      kind: 'attention',
      heads: shape.heads,
      kvHeads: shape.kvHeads,
      headSize: shape.headSize,
      rotaryDims: shape.rotaryDims,
      cross,
      causal: shape.causal,
      window: shape.window,
      ...(cached.length === 0
        ? {}
        : {
            cache: {
              inputs: cached,
              outputs: node.outputs.slice(1).flatMap((value) => value?.name ?? []),
            },
          }),
      node: node.name,
    },
    input: source,
    members: [...projections, node, ...(output === undefined ? [] : [output])],
  };
}

/** What a projection reads; the value itself when it is no projection. */
function sourceOf(value: Value): Value {
  return isLinear(value.producer) ? value.producer.input(0) : value;
}

function feedForwardLayer(node: Node): Layer | undefined {
  const gated = isGatedLinear(node);
  if (!gated && !(isLinear(node) && activationNameOf(node) !== 'none')) return undefined;
  const down = node.output(0).onlyUser;
  const width = node.output(0).shape?.at(-1);
  if (!isLinear(down) || down.input(0) !== node.output(0)) return undefined;
  return {
    layer: {
      kind: 'mlp',
      gated,
      width: typeof width === 'number' ? width : 0,
      activation: activationNameOf(node),
      node: node.name,
    },
    input: node.input(0),
    members: [node, down],
  };
}

/** Norms in front of and behind the layers of a block. */
function normsOf(group: readonly Layer[]): readonly Node[] {
  const found: Node[] = [];
  const order = orderOf(group);
  for (const { input, members } of group) {
    if (order !== 'post-norm' && isNorm(input.producer)) found.push(input.producer);
    const behind = members.at(-1)?.output(0);
    if (order === 'post-norm' || order === 'output-norm')
      for (const user of behind?.users.keys() ?? []) if (isNorm(user)) found.push(user);
  }
  return found;
}

function orderOf(group: readonly Layer[]): BlockOrder {
  const [first, second] = group;
  if (first === undefined) return 'plain';
  if (second !== undefined && first.input === second.input) return 'parallel';
  const sum = first.members.at(-1);
  const behind = [...(sum?.output(0).users.keys() ?? [])].filter(isNorm);
  const joint = behind.find((norm) => norm.inputs[normInputs.skip] !== undefined);
  // who goes on with the sum itself has normed it for the next layer only
  if (joint !== undefined) return (joint.outputs[1]?.useCount ?? 0) > 0 ? 'pre-norm' : 'post-norm';
  if (isLinear(sum) && sum.inputs[3] === undefined && behind.length > 0) return 'output-norm';
  if (isNorm(sum?.output(0).onlyUser)) return 'post-norm';
  return isNorm(first.input.producer) ? 'pre-norm' : 'plain';
}

const MOST_NODES = 40;

/** Stretches of convolutions that a sum closes. */
function residualBlocks(nodes: readonly Node[]): Found[] {
  const found: Found[] = [];
  for (const node of nodes) {
    const isConv = node.op === 'Conv' && node.domain === internalDomain;
    const residual = isConv ? node.inputs[3] : undefined;
    const sum = node.op === 'Add' && node.domain === '' ? node : undefined;
    const pairs: readonly (readonly [Node | undefined, Value | undefined])[] =
      residual !== undefined
        ? [[node, residual]]
        : sum === undefined
          ? []
          : [
              [sum.inputs[0]?.producer, sum.inputs[1]],
              [sum.inputs[1]?.producer, sum.inputs[0]],
            ];
    for (const [end, start] of pairs) {
      const members = end === undefined || start === undefined ? undefined : between(end, start);
      const convolutions = [...(members ?? [])].filter(({ op }) => op === 'Conv');
      if (members === undefined || convolutions.length === 0) continue;
      if (sum !== undefined) members.add(sum);
      found.push(residualBlock(members, convolutions));
      break;
    }
  }
  return found;
}

function residualBlock(members: ReadonlySet<Node>, convolutions: readonly Node[]): Found {
  const depthwise = convolutions.filter((conv) => conv.int('group', 1) > 1).length;
  const pools = [...members].some(({ op }) => op === 'GlobalAveragePool' || op === 'ReduceMean');
  return {
    block: {
      kind: 'residual',
      order: 'plain',
      norm: 'none',
      layers: [
        {
          kind: 'conv',
          convolutions: convolutions.length,
          depthwise,
          squeezeExcite: pools,
          node: convolutions.at(-1)?.name ?? '',
        },
      ],
    },
    members,
  };
}

/** Nodes on the way back from a node to a value; undefined when some way leads past it. */
function between(end: Node, start: Value): Set<Node> | undefined {
  const members = new Set<Node>();
  const work = [end];
  for (let node = work.pop(); node !== undefined; node = work.pop()) {
    if (members.has(node)) continue;
    members.add(node);
    if (members.size > MOST_NODES) return undefined;
    const residual =
      node.domain === internalDomain && node.op === 'Conv' ? node.inputs[3] : undefined;
    for (const input of node.inputs) {
      if (
        input === undefined ||
        input.weight !== undefined ||
        input === start ||
        input === residual
      )
        continue;
      if (input.producer === undefined) return undefined;
      work.push(input.producer);
    }
  }
  return members;
}

function describe(
  blocks: readonly Block[],
  outside: Readonly<Record<string, number>>,
  nodes: readonly Node[],
  unrecognised: readonly Unrecognised[],
): string[] {
  const lines = new Map<string, { count: number; nodes: number }>();
  for (const block of blocks) {
    const text = [
      block.order === 'plain' ? block.kind : block.order,
      ...block.layers.map(describeLayer),
    ].join(', ');
    const line = lines.get(text) ?? { count: 0, nodes: 0 };
    lines.set(text, { count: line.count + 1, nodes: Math.max(line.nodes, block.nodes) });
  }
  const rest = Object.entries(outside)
    .map(([op, count]) => (count === 1 ? op : `${count} ${op}`))
    .join(', ');
  const text = [...lines].map(
    ([what, { count, nodes: most }]) =>
      `${count} ${count === 1 ? 'block' : 'blocks'} of ${most} nodes: ${what}`,
  );
  text.push(...describeParts(nodes));
  if (blocks.length === 0)
    text.push('no blocks: there is neither a fused attention nor a residual sum of convolutions');
  if (rest !== '') text.push(`outside of blocks: ${rest}`);
  const places = new Map<string, string[]>();
  for (const { at, why } of unrecognised) places.set(why, [...(places.get(why) ?? []), at]);
  for (const [why, at] of places)
    text.push(
      `${at.length === 1 ? 'an attention' : `${at.length} attentions`} not recognised at "${at[0]}": ${why}`,
    );
  return text;
}

function describeLayer(layer: Block['layers'][number]): string {
  if (layer.kind === 'mlp')
    return `${layer.gated ? 'gated MLP' : 'MLP'} ${layer.width} (${layer.activation})`;
  if (layer.kind === 'conv') {
    const parts = [
      `${layer.convolutions} convolutions`,
      ...(layer.depthwise > 0 ? [`${layer.depthwise} depthwise`] : []),
      ...(layer.squeezeExcite ? ['squeeze-excite'] : []),
    ];
    return parts.join(', ');
  }
  const heads =
    layer.kvHeads === layer.heads
      ? `${layer.heads} heads`
      : `${layer.heads} heads / ${layer.kvHeads} KV heads`;
  const kind = layer.cross ? 'cross attention' : 'attention';
  const window = layer.window > 0 ? `, window ${layer.window}` : '';
  return `${kind} ${heads} x ${layer.headSize}${window}`;
}
