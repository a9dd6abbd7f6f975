/**
 * Gives a causal decoder that was exported without a cache one, so that a token costs one token's work.
 *
 *     logits(ids)     ->   logits(ids, past.N.key, past.N.value), present.N.key, present.N.value
 *     Add(x, Gather(table, Range(0, S)))   ->   Add(x, Gather(table, position_ids))
 *     Attention(q, k, v, bias = ALiBi)     ->   Attention(q, k, v, bias = slopes · key places)
 *
 * Works on a fused model: every attention must be causal over the same tokens, and everything else must
 * treat tokens one by one, so that the tokens before a call act through keys and values only. What is
 * computed from the places of tokens becomes a table. Refuses with the reason otherwise: masks that are
 * more than that, ops across tokens, fixed lengths.
 */
import { dtypes } from '../../runtime/tensor.ts';
import { Bookkeeping } from '../analyze/bookkeeping.ts';
import { DEFAULT_CONTEXT_LENGTH } from '../analyze/config.ts';
import { analyzeDecoder } from '../analyze/decoder.ts';
import type { PositionRows } from '../analyze/token-positions.ts';
import { TokenPositions } from '../analyze/token-positions.ts';
import { int } from '../ir/attribute.ts';
import type { Model, Node, Value } from '../ir/graph.ts';
import type { Rewriter } from '../ir/rewriter.ts';
import { attentionInputs, isFusedAttention, readAttention } from '../ops/fused-attention.ts';
import { writeNumbers } from '../ops/numbers.ts';
import { internalDomain } from '../ops/quantized.ts';
import { removeAll } from './fuse-activation.ts';
import type { Pass, PassContext } from './pass.ts';
import { replaceByNew } from './replace.ts';
import { treatsTokensAlike } from './row-wise.ts';

/** Makes the pass. It has no options. */
export function insertKvCache(): Pass {
  return {
    name: 'insert-kv-cache',
    options: {},
    rules: [{ name: 'cache', starts: ['fettle.Attention'] }],
    run(model, context) {
      const attentions = [...model.graph.nodes()].filter(isFusedAttention);
      const plan = planOf(model, attentions, context);
      if (plan === undefined) return false;
      if ('why' in plan) {
        context.refuse('cache', plan.at, plan.why);
        for (const node of attentions) context.miss('cache', node, plan.why);
        return false;
      }
      apply(plan, model, context);
      context.log.info(
        `The decoder has no cache and gets one: keys and values of ${attentions.length} attentions.`,
      );
      return true;
    },
  };
}

interface Obstacle {
  readonly why: string;
  readonly at: Node | Value;
}

/** Everything that is to be done. */
interface Plan {
  readonly ids: Value;
  readonly logits: Value;
  readonly attentions: readonly Node[];
  /** Slopes of the attentions whose bias is a term of the key's place. */
  readonly slopes: ReadonlyMap<Node, Float64Array>;
  /** What stands for values that are computed from positions. */
  readonly tables: ReadonlyMap<Value, PositionRows>;
  /** Most places. */
  readonly limit: number;
}

function planOf(
  model: Model,
  attentions: readonly Node[],
  context: PassContext,
): Plan | Obstacle | undefined {
  const miss = (why: string): undefined => {
    for (const node of attentions) context.miss('cache', node, why);
  };
  const { inputs } = model.graph;
  const ids = inputs.find(
    ({ name, shape }) =>
      shape?.length === 2 && /ids|tokens/.test(name) && !/position|type/.test(name),
  );
  if (attentions.length === 0 || ids === undefined) return miss('the model takes no token ids');
  if (analyzeDecoder(model).decoder !== undefined) return miss('there is a cache already');
  const tokens = ids.shape?.[1];
  const logits = logitsOf(model, tokens);
  if (logits === undefined) return miss('no output has logits for every token');
  if (typeof tokens !== 'string')
    return { why: `its length is fixed to ${tokens} tokens`, at: ids };
  const other = model.graph.outputs.find((output) => output !== logits && !isCacheOutput(output));
  if (other !== undefined) return { why: 'it is an output besides the logits', at: other };
  return new Planner(model, ids, logits, tokens, context).plan(attentions);
}

/** The output [batch, tokens, vocabulary]. */
function logitsOf(model: Model, tokens: unknown): Value | undefined {
  const fitting = model.graph.outputs.filter(
    ({ shape }) => shape?.length === 3 && shape[1] === tokens,
  );
  return fitting.find(({ name }) => /logits/.test(name)) ?? fitting[0];
}

/** Keys and values that a model gives without taking any. */
function isCacheOutput({ name, shape }: Value): boolean {
  return /present|cache|key|value/.test(name) && shape?.length === 4;
}

/** Looks at everything that leads to the logits. */
class Planner {
  private readonly model: Model;
  private readonly ids: Value;
  private readonly logits: Value;
  private readonly tokens: string;
  private readonly books: Bookkeeping;
  private readonly positions: TokenPositions;
  private readonly slopes = new Map<Node, Float64Array>();
  private readonly tables = new Map<Value, PositionRows>();
  private limit: number;

  constructor(model: Model, ids: Value, logits: Value, tokens: string, context: PassContext) {
    this.model = model;
    this.ids = ids;
    this.logits = logits;
    this.tokens = tokens;
    this.books = new Bookkeeping(model);
    this.positions = new TokenPositions(model, this.books, tokens);
    this.limit = context.contextLength ?? DEFAULT_CONTEXT_LENGTH;
  }

  plan(attentions: readonly Node[]): Plan | Obstacle {
    const needed = neededFor(this.logits);
    for (const node of this.model.graph.nodes()) {
      if (!needed.has(node) || this.isBookkeeping(node)) continue;
      const why = isFusedAttention(node) ? this.attention(node) : this.rows(node);
      if (why !== undefined) return { why, at: node };
    }
    const { ids, logits, slopes, tables, limit } = this;
    return { ids, logits, attentions, slopes, tables, limit };
  }

  private isBookkeeping(node: Node): boolean {
    return node.outputs.every((output) => output === undefined || this.books.has(output));
  }

  private attention(node: Node): string | undefined {
    const { causal } = readAttention(node);
    const [k, positions, mask, bias] = (['k', 'positions', 'mask', 'bias'] as const).map(
      (name) => node.inputs[attentionInputs[name]],
    );
    if (k !== undefined && k.shape?.[1] !== this.tokens)
      return 'its keys are those of another sequence';
    if (positions?.producer !== undefined && !this.positions.isCount(positions))
      return 'its positions are not those of the tokens';
    if (mask !== undefined && !(this.books.has(mask) && this.positions.isFull(mask)))
      return 'its mask is more than padding';
    if (bias === undefined)
      return causal ? undefined : 'it is not causal: later tokens change earlier ones';
    if (!this.books.has(bias)) return 'its mask is computed from the tokens';
    const slopes = this.positions.slopesOf(bias, !causal);
    if (typeof slopes === 'string') return slopes;
    this.slopes.set(node, slopes);
    return undefined;
  }

  private rows(node: Node): string | undefined {
    const why = treatsTokensAlike(node);
    if (why !== undefined) return why;
    for (const input of node.inputs)
      if (input !== undefined && input.weight === undefined && this.books.has(input)) {
        const reason = this.table(node, input);
        if (reason !== undefined) return `its operand "${input.name}": ${reason}`;
      }
    return undefined;
  }

  /** Notes the table of a value that follows from positions, read by `node`. */
  private table(node: Node, value: Value): string | undefined {
    // what the caller says of each token is said for the tokens of a call
    if (value.producer === undefined && /position/.test(value.name)) return undefined;
    if (this.tables.has(value) || this.positions.isConstant(value)) return undefined;
    const [rank, out] = [value.shape?.length ?? 0, node.output(0).shape];
    const axis = this.positions.axisOf(out);
    if (axis === undefined || axis !== (out?.length ?? 0) - 2 || rank > (out?.length ?? 0))
      return 'it has no row for each token';
    const rows = this.positions.rowsOf(value, this.limit);
    if (typeof rows === 'string') return rows;
    this.limit = Math.min(this.limit, rows.count);
    this.tables.set(value, rows);
    return undefined;
  }
}

/** Nodes that a value is computed from. */
function neededFor(value: Value): ReadonlySet<Node> {
  const needed = new Set<Node>();
  const first = value.producer;
  if (first !== undefined) needed.add(first);
  for (const node of needed)
    for (const input of node.inputs) if (input?.producer !== undefined) needed.add(input.producer);
  return needed;
}

function apply(plan: Plan, model: Model, context: PassContext): void {
  const { rewriter } = context;
  for (const output of model.graph.outputs.filter((one) => one !== plan.logits))
    rewriter.removeOutput(output);
  const caches = plan.attentions.map((node, layer) => addInputs(node, layer, plan, context));
  addPositions(plan, model, context);
  plan.attentions.forEach((node, layer) => {
    const past = caches[layer];
    if (past !== undefined) insert(node, layer, past, plan, context);
  });
  removeAll([...model.graph.nodes()].reverse(), context);
  const idle = model.graph.inputs.filter(
    ({ name, useCount }) => /mask|position/.test(name) && useCount === 0,
  );
  for (const input of idle) rewriter.removeInput(input);
}

/** Inputs for keys and values of one attention. */
function addInputs(
  node: Node,
  layer: number,
  { ids }: Plan,
  { rewriter }: PassContext,
): readonly [key: Value, value: Value] {
  const { kvHeads, headSize } = readAttention(node);
  const shape = [ids.shape?.[0] ?? 1, kvHeads, PAST, headSize];
  const { dtype } = node.output(0);
  const input = (part: string): Value =>
    rewriter.graphInput(free(rewriter, `past_key_values.${layer}.${part}`), { dtype, shape });
  return [input('key'), input('value')];
}

const PAST = 'past_sequence_length';

/** Values that follow from positions are looked up by the positions of the call. */
function addPositions({ ids, tables, limit }: Plan, model: Model, context: PassContext): void {
  if (tables.size === 0) return;
  const { rewriter } = context;
  const given = model.graph.inputs.find(
    ({ name, shape }) => /position/.test(name) && shape?.length === 2,
  );
  const places =
    given ??
    rewriter.graphInput(free(rewriter, 'position_ids'), { dtype: 'i64', shape: ids.shape ?? [] });
  for (const [value, { width, numbers }] of tables) {
    const dtype = value.dtype ?? 'f32';
    const rows = writeNumbers(dtype, [limit, width], numbers.subarray(0, limit * width));
    const table = rewriter.constant(`${value.name}_table`, rows);
    const first = [...model.graph.nodes()].find((node) => value.users.has(node));
    if (first === undefined) continue;
    rewriter.before(first);
    const from = value.producer?.from ?? first.from;
    const row = rewriter.op('Gather', [table, places], { axis: int(0) }, { from });
    rewriter.replaceUses(value, row);
  }
}

function insert(
  node: Node,
  layer: number,
  past: readonly [key: Value, value: Value],
  plan: Plan,
  context: PassContext,
): void {
  const { rewriter } = context;
  const at = attentionInputs;
  const inputs = [...node.inputs];
  while (inputs.length <= at.pastValue) inputs.push(undefined);
  [inputs[at.pastKey], inputs[at.pastValue]] = past;
  rewriter.before(node);
  // a decoder is called without padding; positions that are counted are the op's own business
  if (inputs[at.positions]?.producer !== undefined) inputs[at.positions] = undefined;
  if (inputs.length > at.mask) inputs[at.mask] = undefined;
  const slopes = plan.slopes.get(node);
  if (slopes !== undefined) inputs[at.bias] = placeTerm(slopes, past[0], plan, context);
  while (inputs.at(-1) === undefined) inputs.pop();
  const attributes = { ...Object.fromEntries(node.attributes), causal: int(1) };
  const made = rewriter.node('Attention', inputs, attributes, {
    domain: internalDomain,
    outputs: 3,
    name: node.name,
    from: node.from,
  });
  replaceByNew(rewriter, node.output(0), made.output(0));
  for (const [index, part] of (['key', 'value'] as const).entries())
    rewriter.graphOutput(free(rewriter, `present.${layer}.${part}`), made.output(index + 1));
  context.count('cache');
}

/** A name that the model does not know yet. */
function free({ model }: Rewriter, wanted: string): string {
  let name = wanted;
  for (let suffix = 1; model.hasName(name); suffix++) name = `${wanted}_${suffix}`;
  return name;
}

/** slope · place of each key, [1, heads, 1, keys]; nothing when every slope is 0. */
function placeTerm(
  slopes: Float64Array,
  past: Value,
  { ids }: Plan,
  { rewriter }: PassContext,
): Value | undefined {
  if (slopes.every((slope) => slope === 0)) return undefined;
  const number = (value: number): Value =>
    rewriter.constant('index', writeNumbers('i64', [], Float64Array.of(value)));
  const size = (value: Value, axis: number): Value =>
    rewriter.op('Gather', [rewriter.op('Shape', [value]), number(axis)], { axis: int(0) });
  const keys = rewriter.op('Add', [size(past, 2), size(ids, 1)]);
  const places = rewriter.op('Range', [number(0), keys, number(1)]);
  const factors = writeNumbers('f32', [1, slopes.length, 1, 1], slopes);
  const floats = rewriter.op('Cast', [places], { to: int(dtypes.f32.onnx) });
  return rewriter.op('Mul', [floats, rewriter.constant('slopes', factors)]);
}
