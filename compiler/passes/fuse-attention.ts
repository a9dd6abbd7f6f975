/**
 * Recognises attention from its softmax outwards and makes one op of it: heads, repeated heads, norms of
 * heads, rotary embedding, scale, masks, soft cap, sinks and the growing cache.
 *
 *     MatMul(Softmax(Add(Mul(MatMul(q, Transpose(k)), s), mask)), v)     ->   fettle.Attention(q, k, v)
 *     k = Concat(past, rotated)                                          ->   … with past and present
 *
 * The parts are recognised by what they compute (`analyze/head-map.ts`, `attention-mask.ts`), so that no
 * exporter's spelling is special. Masks that are causality, a window or padding become attributes; others
 * stay as a bias. A decoder's mask and positions follow from the call: when no attention needs them any
 * more, the inputs go. Refuses softmaxes between two products that are something else.
 *
 * Source: https://arxiv.org/abs/1706.03762; see `ops/attention-core.ts` for the variants.
 */
import { biasTerms } from '../analyze/attention-bias.ts';
import type { Cache } from '../analyze/attention-cache.ts';
import { readCache } from '../analyze/attention-cache.ts';
import type { MaskFound } from '../analyze/attention-mask.ts';
import { explainMasks } from '../analyze/attention-mask.ts';
import type { Bias, Obstacle } from '../analyze/attention-scores.ts';
import { readScores } from '../analyze/attention-scores.ts';
import type { Site } from '../analyze/attention-site.ts';
import { attentionOps, isAttentionOp, siteOfOp, siteOfScores } from '../analyze/attention-site.ts';
import { Bookkeeping } from '../analyze/bookkeeping.ts';
import { NodeOrder } from '../analyze/dominators.ts';
import type { HeadContext, HeadMap } from '../analyze/head-map.ts';
import { isInOrder, readHeads } from '../analyze/head-map.ts';
import { probe } from '../analyze/probe.ts';
import type { RotaryTables } from '../analyze/rotary-tables.ts';
import { rotaryTables } from '../analyze/rotary-tables.ts';
import { float, int } from '../ir/attribute.ts';
import type { Model, Node, Value } from '../ir/graph.ts';
import { Value as ValueClass } from '../ir/graph.ts';
import { DEFAULT_CONTEXT_LENGTH } from '../analyze/config.ts';
import { isNorm, normInputs, normKind } from '../ops/fused-norm.ts';
import { writeNumbers } from '../ops/numbers.ts';
import { internalDomain } from '../ops/quantized.ts';
import type { ResultPlace } from './attention-rows.ts';
import { AttentionRows } from './attention-rows.ts';
import { AttentionTerms } from './attention-terms.ts';
import { removeAll } from './fuse-activation.ts';
import type { Pass, PassContext } from './pass.ts';
import { replaceByNew } from './replace.ts';

/** Makes the pass. It has no options. */
export function fuseAttention(): Pass {
  return {
    name: 'fuse-attention',
    options: {},
    rules: ['attention', 'attention-with-cache'].map((name) => ({
      name,
      starts: ['Softmax', ...attentionOps],
    })),
    run(model, context) {
      const before = context.rewriter.changes;
      const places = [...model.graph.nodes()].filter(
        (node) => isSoftmax(node) || isAttentionOp(node),
      );
      if (places.length === 0) return false;
      const fusion = new Fusion(model, context);
      for (const node of places) if (node.graph !== undefined) fusion.visit(node);
      fusion.finish();
      if (context.rewriter.changes > before) dropBookkeeping(model, context, fusion.bookkeeping);
      return context.rewriter.changes > before;
    },
  };
}

function isSoftmax(node: Node): boolean {
  if (node.op !== 'Softmax' || node.domain !== '') return false;
  const rank = node.input(0).shape?.length ?? 0;
  const axis = node.int('axis', -1);
  return rank >= 3 && (axis === -1 || axis === rank - 1);
}

/**
 * Removes what computed masks and positions, and the inputs of a decoder that only they read.
 *
 * @param known - names of more such inputs
 */
export function dropBookkeeping(
  model: Model,
  context: PassContext,
  known: readonly string[] = [],
): void {
  const { rewriter } = context;
  const { decoder } = new Bookkeeping(model).analysis;
  removeAll([...model.graph.nodes()].reverse(), context);
  const bookkeeping = new Set([
    ...known,
    decoder?.mask,
    decoder?.positions,
    ...(decoder?.flags ?? []).map(({ input }) => input),
  ]);
  const idle = model.graph.inputs.filter(
    ({ name, useCount }) => bookkeeping.has(name) && useCount === 0,
  );
  for (const input of idle) rewriter.removeInput(input);
}

/** Size of a cache that had a fixed length, as exporters call it. */
const PAST_TOKENS = 'past_sequence_length';

/** Queries, keys or values on their way into the fused op. */
interface Projection {
  readonly map: HeadMap;
  /** Norm of heads in front of the rotary embedding. */
  readonly norm: Node | undefined;
}

class Fusion {
  private readonly books: Bookkeeping;
  private readonly heads: HeadContext;
  private readonly rows: AttentionRows;
  private readonly terms: AttentionTerms;
  private readonly context: PassContext;
  private readonly waiting: Parts[] = [];
  private readonly tables = new Map<string, readonly [cos: Value, sin: Value]>();

  constructor(model: Model, context: PassContext) {
    this.books = new Bookkeeping(model);
    this.heads = {
      books: this.books,
      order: new NodeOrder(),
      known: new Map(),
      writers: new Map(),
    };
    this.rows = new AttentionRows(this.books, context);
    this.terms = new AttentionTerms(this.books, context);
    this.context = context;
  }

  /** Inputs that only said which places of a cache of fixed length are meant. */
  get bookkeeping(): readonly string[] {
    return this.books.analysis.fixed?.bookkeeping ?? [];
  }

  visit(node: Node): void {
    const site = this.siteOf(node);
    if (site === undefined) {
      this.context.miss('attention', node, () => {
        const readers = [...node.output(0).users.keys()].map((user) => user.describe());
        return `it does not stand between a product of queries and keys and one with values; ${readers.join(', ') || 'nothing'} reads it`;
      });
      return;
    }
    const parts = 'why' in site ? site : this.partsOf(site);
    if ('why' in parts) this.context.refuse('attention', parts.at, parts.why);
    else if (parts.capacity === undefined) this.build(parts);
    else this.waiting.push(parts);
  }

  /** Builds what continues caches of fixed length: all of them, or a model would have two kinds. */
  finish(): void {
    const { fixed } = this.books.analysis;
    if (this.waiting.length === 0) return;
    const whole = 2 * this.waiting.length === fixed?.state.length;
    for (const parts of this.waiting)
      if (whole) this.build(parts);
      else
        this.context.refuse(
          'attention-with-cache',
          parts.site.at,
          'its cache has a fixed length, and not every cache of the model is one that is understood',
        );
  }

  private siteOf(node: Node): Site | Obstacle | undefined {
    if (!isSoftmax(node)) return siteOfOp(node, this.books);
    const scores = readScores(node, this.books);
    return scores === undefined || 'why' in scores ? scores : siteOfScores(node, scores);
  }

  private partsOf(site: Site): Parts | Obstacle {
    const stuck = (why: string): Obstacle => ({ why, at: site.at });
    const [q0, k0, v0] = [site.q, site.k, site.v].map(({ value, order, split }) =>
      readHeads(value, order, this.heads, split),
    );
    if (q0 === undefined) return stuck('how its queries are laid out is not known');
    if (k0 === undefined) return stuck('how its keys are laid out is not known');
    if (v0 === undefined) return stuck('how its values are laid out is not known');
    const caches = site.cache === undefined ? this.cachesOf(k0, v0) : undefined;
    const [below, values] = [caches?.[0].fresh ?? k0, caches?.[1].fresh ?? v0];
    const [q, k] = [this.throughNorm(q0), this.throughNorm(below)];
    if (q.map.heads % k.map.heads !== 0 || k.map.heads !== values.heads)
      return stuck(
        `its ${q.map.heads} query, ${k.map.heads} key and ${values.heads} value heads do not fit`,
      );
    if (k.map.width !== q.map.width || values.width !== q.map.width)
      return stuck(`its heads are ${q.map.width}, ${k.map.width} and ${values.width} wide`);
    const outer = caches === undefined ? 1 : v0.scale;
    if (Math.abs(values.scale * outer - 1) > 1e-6 || values.rotary !== undefined)
      return stuck('its values are scaled or turned');
    const epsilons = [q.norm, k.norm].flatMap((norm) => norm?.float('epsilon') ?? []);
    if (new Set(epsilons).size > 1) return stuck('the norms of its heads have two epsilons');
    const within = site.rotary !== undefined || site.gains.some((gain) => gain !== undefined);
    if (within && (q0.rotary ?? below.rotary) !== undefined)
      return stuck('its heads are turned twice');
    const rotary = within ? undefined : this.rotaryOf(q0, below, caches?.[0].capacity);
    if (rotary === null)
      return stuck('its queries and keys are not turned alike, or by tables that are not found');
    const cached = caches !== undefined || site.cache !== undefined;
    const capacity = caches?.[0].capacity;
    if (site.lengths !== undefined && (capacity === undefined || !this.readsAll(site.lengths)))
      return stuck('its keys have lengths of their own');
    const whole = explainMasks(site, this.books, cached, capacity);
    const terms = whole === undefined ? biasTerms(site.biases, this.books) : undefined;
    const found =
      terms === undefined
        ? whole
        : explainMasks({ ...site, biases: terms.masks }, this.books, cached, capacity);
    if (capacity !== undefined && !site.causal && found?.causal !== true)
      return stuck(`its cache of ${capacity} tokens is not read up to each token's own`);
    // without its cache in the op, keys and queries start at different places
    const isWhole =
      cached || !this.books.hasPast || (found?.causal === false && found.window === 0);
    const mask = isWhole ? found : undefined;
    if (!isWhole && (site.causal || site.window > 0))
      return stuck('it is causal over keys that it does not cache');
    const place = site.rows
      ? { output: site.output, target: [], nodes: [] }
      : this.rows.placeOf(site.output, q.map);
    if (place === undefined) return stuck('its output has two sizes that only a run knows');
    if (![q.map, k.map, values].every((map) => this.rows.canMake(map)))
      return stuck('the rows of its queries, keys or values have two sizes that only a run knows');
    return {
      site,
      q,
      k,
      v: values,
      caches,
      capacity,
      rotary,
      mask,
      biases: mask === undefined ? site.biases : (terms?.rest ?? []),
      scale: site.scale * q.map.scale * k.map.scale * (caches === undefined ? 1 : k0.scale),
      place,
    };
  }

  /** The caches of keys and values, when both have one of a kind. */
  private cachesOf(k: HeadMap, v: HeadMap): readonly [Cache, Cache] | undefined {
    const [key, value] = [readCache(k, this.heads), readCache(v, this.heads)];
    return key !== undefined && value !== undefined && key.capacity === value.capacity
      ? [key, value]
      : undefined;
  }

  /** Whether an op reads the keys of all tokens so far. */
  private readsAll(lengths: Value): boolean {
    return [
      { batch: 1, sequence: 5, past: 0 },
      { batch: 2, sequence: 1, past: 4 },
    ].every((call) => {
      const got = probe(this.books.model, lengths, this.books.call(call));
      return (
        got !== undefined && [...got.data].every((n) => Number(n) === call.past + call.sequence)
      );
    });
  }

  private throughNorm(map: HeadMap): Projection {
    const node = map.source.producer;
    const plain = { map, norm: undefined };
    if (
      !isNorm(node) ||
      normKind(node) !== 'rms' ||
      (node.output(0).useCount > 1 && !this.ownsUses(map))
    )
      return plain;
    if (node.inputs[normInputs.bias] !== undefined || node.inputs[normInputs.skip] !== undefined)
      return plain;
    if ((node.outputs[1]?.useCount ?? 0) > 0 || map.source.shape?.at(-1) !== map.width)
      return plain;
    const x = node.input(0);
    if (map.order === 'bhsd') {
      const below = readHeads(x, 'bhsd', this.heads);
      if (below === undefined || below.rotary !== undefined || below.scale !== 1) return plain;
      return {
        map: {
          ...below,
          scale: map.scale,
          rotary: map.rotary,
          nodes: new Set([...map.nodes, node, ...below.nodes]),
        },
        norm: node,
      };
    }
    if (map.order !== 'bsc' || (x.shape?.length ?? 0) < 3 || !isInOrder(map)) return plain;
    // [batch, tokens, heads, width] holds whole rows: the norm's input may be used as it is
    return { map: { ...map, source: x, nodes: new Set([...map.nodes, node]) }, norm: node };
  }

  private ownsUses({ source, nodes }: HeadMap): boolean {
    return !source.isOutput && [...source.users.keys()].every((user) => nodes.has(user));
  }

  /** Tables for both; undefined when neither is turned, null when they cannot share one. */
  private rotaryOf(q: HeadMap, k: HeadMap, capacity?: number): Turned | undefined | null {
    const [a, b] = [q.rotary, k.rotary];
    if (a === undefined && b === undefined) return undefined;
    if (a === undefined || b === undefined || a.dims !== b.dims || a.interleaved !== b.interleaved)
      return null;
    if (!a.cos.every((value, i) => Math.abs(value - (b.cos[i] ?? NaN)) < 1e-5)) return null;
    if (!a.sin.every((value, i) => Math.abs(value - (b.sin[i] ?? NaN)) < 1e-5)) return null;
    const limit = capacity ?? this.books.analysis.decoder?.contextLength ?? DEFAULT_CONTEXT_LENGTH;
    const length = this.context.contextLength ?? limit;
    const tables = rotaryTables(a, this.books, length) ?? rotaryTables(b, this.books, length);
    if (tables === undefined) return null;
    const { positions } = tables;
    if (positions !== undefined && (positions.dtype !== 'i64' || positions.shape?.length !== 2))
      return null;
    return {
      dims: a.dims,
      interleaved: a.interleaved,
      tables,
      key: this.tableKey(a.tables, length, a.dims),
    };
  }

  private tableKey(values: readonly Value[], length: number, dims: number): string {
    return `${values
      .map(({ name }) => name)
      .sort()
      .join()} ${length} ${dims}`;
  }

  private build(parts: Parts): void {
    const { site, q, k, v, caches, mask, place } = parts;
    const { rewriter } = this.context;
    const used = new Set([
      ...site.nodes,
      ...place.nodes,
      ...q.map.nodes,
      ...k.map.nodes,
      ...v.nodes,
    ]);
    for (const { nodes } of caches ?? []) for (const node of nodes) used.add(node);
    const { width } = q.map;
    const past = site.cache ?? { key: caches?.[0].past, value: caches?.[1].past };
    const presents = site.cache?.presents ?? caches?.map(({ present }) => present);
    const anchor = place.output.producer;
    if (anchor === undefined) return;
    if (parts.capacity !== undefined)
      for (const { past } of caches ?? [])
        past.shape = [this.books.batch, k.map.heads, PAST_TOKENS, width];
    rewriter.before(anchor);
    rewriter.deriving([...new Set([...used].flatMap((node) => node.from))], () => {
      const rotary = this.turnedBy(parts);
      const inputs = [
        ...[q.map, k.map, v].map((map) => this.rows.of(map, used)),
        past.key,
        past.value,
        rotary?.cos,
        rotary?.sin,
        parts.rotary?.tables.positions,
        mask?.padding ?? site.padding,
        this.terms.of(parts, past.key, anchor),
        this.sinksOf(site, q.map.heads),
        site.gains[0] ?? this.gainOf(q.norm, width),
        site.gains[1] ?? this.gainOf(k.norm, width),
      ];
      while (inputs.at(-1) === undefined) inputs.pop();
      const epsilon = site.epsilon ?? (q.norm ?? k.norm)?.float('epsilon');
      const window = Math.min(site.window || Infinity, mask?.window || Infinity);
      const node = rewriter.node(
        'Attention',
        inputs,
        {
          heads: int(q.map.heads),
          kvHeads: int(k.map.heads),
          headSize: int(width),
          scale: float(parts.scale),
          causal: int(site.causal || mask?.causal === true ? 1 : 0),
          ...(Number.isFinite(window) ? { window: int(window) } : {}),
          ...(site.softcap > 0 ? { softcap: float(site.softcap) } : {}),
          ...(rotary === undefined
            ? {}
            : { rotaryDims: int(rotary.dims), interleaved: int(rotary.interleaved ? 1 : 0) }),
          ...(epsilon === undefined ? {} : { normEpsilon: float(epsilon) }),
        },
        { domain: internalDomain, outputs: presents === undefined ? 1 : 3, name: site.at.name },
      );
      const y = site.rows ? node.output(0) : this.rows.apart(node.output(0), q.map, place.target);
      presents?.forEach((present, index) => {
        if (present !== undefined) replaceByNew(rewriter, present, node.output(index + 1));
      });
      replaceByNew(rewriter, place.output, y);
    });
    removeAll(used, this.context);
    this.context.count(presents === undefined ? 'attention' : 'attention-with-cache');
  }

  private turnedBy({ site, rotary }: Parts): Site['rotary'] {
    if (rotary === undefined) return site.rotary;
    const [cos, sin] = this.tableValues(rotary);
    return { cos, sin, dims: rotary.dims, interleaved: rotary.interleaved };
  }

  private tableValues({ tables, key }: Turned): readonly [Value, Value] {
    const known = this.tables.get(key);
    if (known !== undefined) return known;
    const { rewriter } = this.context;
    const made = [
      tables.cos instanceof ValueClass ? tables.cos : rewriter.constant('rotary_cos', tables.cos),
      tables.sin instanceof ValueClass ? tables.sin : rewriter.constant('rotary_sin', tables.sin),
    ] as const;
    this.tables.set(key, made);
    return made;
  }

  private sinksOf({ sinks }: Site, heads: number): Value | undefined {
    if (sinks?.weight === undefined) return undefined;
    const { rewriter } = this.context;
    return sinks.weight.shape.length === 1
      ? sinks
      : rewriter.constant(`${sinks.name}_heads`, sinks.weight.reshaped([heads]));
  }

  private gainOf(norm: Node | undefined, width: number): Value | undefined {
    if (norm === undefined) return undefined;
    const ones = writeNumbers('f32', [width], new Float64Array(width).fill(1));
    return (
      norm.inputs[normInputs.gain] ??
      this.context.rewriter.constant(`${norm.output(0).name}_gain`, ones)
    );
  }
}

interface Turned {
  readonly dims: number;
  readonly interleaved: boolean;
  readonly tables: RotaryTables;
  readonly key: string;
}

interface Parts {
  readonly site: Site;
  readonly q: Projection;
  readonly k: Projection;
  readonly v: HeadMap;
  readonly caches: readonly [Cache, Cache] | undefined;
  /** Rows of caches of fixed length. */
  readonly capacity: number | undefined;
  readonly rotary: Turned | undefined;
  readonly mask: MaskFound | undefined;
  /** What is added to the scores besides. */
  readonly biases: readonly Bias[];
  readonly scale: number;
  readonly place: ResultPlace;
}
