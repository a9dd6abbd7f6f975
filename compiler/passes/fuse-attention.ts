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
import { explainMasks } from '../analyze/attention-mask.ts';
import type { Scores } from '../analyze/attention-scores.ts';
import { readScores } from '../analyze/attention-scores.ts';
import { Bookkeeping } from '../analyze/bookkeeping.ts';
import { NodeOrder } from '../analyze/dominators.ts';
import type { HeadContext, HeadMap } from '../analyze/head-map.ts';
import { readHeads } from '../analyze/head-map.ts';
import type { RotaryTables } from '../analyze/rotary-tables.ts';
import { rotaryTables } from '../analyze/rotary-tables.ts';
import { float, int, ints } from '../ir/attribute.ts';
import type { Model, Node, Value } from '../ir/graph.ts';
import { Value as ValueClass } from '../ir/graph.ts';
import { DEFAULT_CONTEXT_LENGTH } from '../analyze/config.ts';
import { isNorm, normInputs, normKind } from '../ops/fused-norm.ts';
import { int64s, writeNumbers } from '../ops/numbers.ts';
import { internalDomain } from '../ops/quantized.ts';
import { removeAll } from './fuse-activation.ts';
import type { Pass, PassContext } from './pass.ts';
import { replaceByNew } from './replace.ts';

/** Makes the pass. It has no options. */
export function fuseAttention(): Pass {
  return {
    name: 'fuse-attention',
    options: {},
    run(model, context) {
      const before = context.rewriter.changes;
      const softmaxes = [...model.graph.nodes()].filter(isSoftmax);
      if (softmaxes.length === 0) return false;
      const fusion = new Fusion(model, context);
      for (const node of softmaxes) if (node.graph !== undefined) fusion.visit(node);
      if (context.rewriter.changes > before) dropBookkeeping(model, context);
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

/** Removes what computed masks and positions, and the inputs of a decoder that only they read. */
export function dropBookkeeping(model: Model, context: PassContext): void {
  const { rewriter } = context;
  const { decoder } = new Bookkeeping(model).analysis;
  removeAll([...model.graph.nodes()].reverse(), context);
  const bookkeeping = new Set([
    decoder?.mask,
    decoder?.positions,
    ...(decoder?.flags ?? []).map(({ input }) => input),
  ]);
  for (const input of [...model.graph.inputs])
    if (bookkeeping.has(input.name) && input.useCount === 0) rewriter.removeInput(input);
}

/** Queries, keys or values on their way into the fused op. */
interface Projection {
  readonly map: HeadMap;
  /** Norm of heads in front of the rotary embedding. */
  readonly norm: Node | undefined;
}

interface Cached {
  readonly concat: Node;
  readonly past: Value;
  readonly fresh: HeadMap;
}

class Fusion {
  private readonly books: Bookkeeping;
  private readonly heads: HeadContext;
  private readonly context: PassContext;
  private readonly tables = new Map<string, readonly [cos: Value, sin: Value]>();

  constructor(model: Model, context: PassContext) {
    this.books = new Bookkeeping(model);
    this.heads = { books: this.books, order: new NodeOrder() };
    this.context = context;
  }

  visit(softmax: Node): void {
    const scores = readScores(softmax, this.books);
    if (scores === undefined) return;
    const why = 'why' in scores ? scores : this.fuse(softmax, scores);
    if (why !== undefined) this.context.refuse('attention', why.at, why.why);
  }

  private fuse(softmax: Node, scores: Scores): { why: string; at: Node } | undefined {
    const stuck = (why: string): { why: string; at: Node } => ({ why, at: softmax });
    const { heads } = this;
    const q0 = readHeads(scores.product.input(0), 'bhsd', heads);
    const k0 = readHeads(scores.product.input(1), scores.keysTransposed ? 'bhds' : 'bhsd', heads);
    const v0 = readHeads(scores.mix.input(1), 'bhsd', heads);
    if (q0 === undefined) return stuck('how its queries are laid out is not known');
    if (k0 === undefined) return stuck('how its keys are laid out is not known');
    if (v0 === undefined) return stuck('how its values are laid out is not known');
    const caches = [this.cacheOf(k0), this.cacheOf(v0)] as const;
    const cached = caches[0] !== undefined && caches[1] !== undefined;
    const [q, k, v] = [
      this.throughNorm(q0),
      this.throughNorm(cached ? (caches[0]?.fresh ?? k0) : k0),
      { map: cached ? (caches[1]?.fresh ?? v0) : v0, norm: undefined },
    ];
    if (q.map.heads % k.map.heads !== 0 || k.map.heads !== v.map.heads)
      return stuck(
        `its ${q.map.heads} query, ${k.map.heads} key and ${v.map.heads} value heads do not fit`,
      );
    if (k.map.width !== q.map.width || v.map.width !== q.map.width)
      return stuck(`its heads are ${q.map.width}, ${k.map.width} and ${v.map.width} wide`);
    if (Math.abs(v.map.scale * v0.scale - 1) > 1e-6 && (cached || Math.abs(v.map.scale - 1) > 1e-6))
      return stuck('its values are scaled');
    const rotary = this.rotaryOf(q0, cached ? (caches[0]?.fresh ?? k0) : k0, softmax);
    if (rotary === null)
      return stuck('its queries and keys are not turned alike, or by tables that are not found');
    const found = explainMasks(scores, this.books, cached);
    // without its cache in the op, keys and queries start at different places
    const explained =
      found !== undefined &&
      (cached || !this.books.hasPast || (!found.causal && found.window === 0))
        ? found
        : undefined;
    if (explained === undefined && scores.biasScaled)
      return stuck('its mask is scaled, and is more than a mask');
    const target = this.outputShape(scores.mix.output(0));
    if (target === undefined) return stuck('its output has two sizes that only a run knows');
    this.build({
      softmax,
      scores,
      q,
      k,
      v,
      caches: cached ? caches : undefined,
      rotary,
      mask: explained,
      keyScale: cached ? k0.scale : 1,
      target,
    });
    return undefined;
  }

  /** A cache that grows by Concat, when the keys or values are one. */
  private cacheOf(map: HeadMap): Cached | undefined {
    const concat = map.source.producer;
    if (
      map.order !== 'bhsd' ||
      concat?.op !== 'Concat' ||
      concat.domain !== '' ||
      concat.inputs.length !== 2
    )
      return undefined;
    const [past, fresh] = concat.inputs;
    const axis = concat.int('axis', 0);
    if (past === undefined || fresh === undefined || (axis !== 2 && axis !== -2)) return undefined;
    if (past.producer !== undefined || past.weight !== undefined || past.shape?.length !== 4)
      return undefined;
    const users = [...map.source.users.keys()];
    if (users.some((user) => !map.nodes.has(user) && !this.readsCache(user))) return undefined;
    const below = readHeads(fresh, 'bhsd', this.heads);
    return below === undefined ? undefined : { concat, past, fresh: below };
  }

  /** Whether a reader of the cache is a product of an attention, or only asks for its size. */
  private readsCache(user: Node): boolean {
    return user.op === 'MatMul' || user.op === 'Shape' || user.op === 'Transpose';
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
    if (map.order !== 'bsc' || x.shape?.length !== 4 || map.stride !== map.width) return plain;
    // [batch, tokens, heads, width] holds whole rows: the norm's input may be used as it is
    return { map: { ...map, source: x, nodes: new Set([...map.nodes, node]) }, norm: node };
  }

  private ownsUses({ source, nodes }: HeadMap): boolean {
    return !source.isOutput && [...source.users.keys()].every((user) => nodes.has(user));
  }

  /** Tables for both; undefined when neither is turned, null when they cannot share one. */
  private rotaryOf(q: HeadMap, k: HeadMap, at: Node): Turned | undefined | null {
    const [a, b] = [q.rotary, k.rotary];
    if (a === undefined && b === undefined) return undefined;
    if (a === undefined || b === undefined || a.dims !== b.dims || a.interleaved !== b.interleaved)
      return null;
    if (!a.cos.every((value, i) => Math.abs(value - (b.cos[i] ?? NaN)) < 1e-5)) return null;
    if (!a.sin.every((value, i) => Math.abs(value - (b.sin[i] ?? NaN)) < 1e-5)) return null;
    const limit = this.books.analysis.decoder?.contextLength ?? DEFAULT_CONTEXT_LENGTH;
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
      at,
    };
  }

  private tableKey(values: readonly Value[], length: number, dims: number): string {
    return `${values
      .map(({ name }) => name)
      .sort()
      .join()} ${length} ${dims}`;
  }

  /** Sizes to reshape [batch, heads, tokens, width] to: at most one of them open. */
  private outputShape({ shape }: Value): readonly number[] | undefined {
    if (shape === undefined || shape.length < 3) return undefined;
    if (shape.length === 4) return [];
    let open = 0;
    const target = shape.map((dim, axis) => {
      if (typeof dim === 'number') return dim;
      if (axis === 0 && dim === this.books.batch) return 0;
      open++;
      return -1;
    });
    return open <= 1 ? target : undefined;
  }

  private build(parts: Parts): void {
    const { softmax, scores, q, k, v, caches, rotary, mask } = parts;
    const { rewriter } = this.context;
    const { mix } = scores;
    rewriter.before(mix);
    const used = new Set([...scores.nodes, ...q.map.nodes, ...k.map.nodes, ...v.map.nodes]);
    const fresh = caches === undefined ? [] : [caches[0], caches[1]];
    for (const cache of fresh) if (cache !== undefined) used.add(cache.concat);
    const from = [...new Set([...used].flatMap((node) => node.from))];
    const { width } = q.map;
    const total = q.map.scale * k.map.scale * parts.keyScale * scores.scale;
    rewriter.deriving(from, () => {
      const tables = rotary === undefined ? undefined : this.tableValues(rotary);
      const inputs = [
        this.materialized(q.map),
        this.materialized(k.map),
        this.materialized(v.map),
        caches?.[0]?.past,
        caches?.[1]?.past,
        tables?.[0],
        tables?.[1],
        rotary?.tables.positions,
        mask?.padding,
        mask === undefined ? this.biasOf(scores) : undefined,
        this.sinksOf(scores, q.map.heads),
        this.gainOf(q.norm, width),
        this.gainOf(k.norm, width),
      ];
      while (inputs.at(-1) === undefined) inputs.pop();
      const epsilon = (q.norm ?? k.norm)?.float('epsilon');
      const node = rewriter.node(
        'Attention',
        inputs,
        {
          heads: int(q.map.heads),
          kvHeads: int(k.map.heads),
          headSize: int(width),
          scale: float(total),
          causal: int(mask?.causal === true ? 1 : 0),
          ...(mask !== undefined && mask.window > 0 ? { window: int(mask.window) } : {}),
          ...(scores.softcap > 0 ? { softcap: float(scores.softcap) } : {}),
          ...(rotary === undefined
            ? {}
            : { rotaryDims: int(rotary.dims), interleaved: int(rotary.interleaved ? 1 : 0) }),
          ...(epsilon === undefined ? {} : { normEpsilon: float(epsilon) }),
        },
        { domain: internalDomain, outputs: caches === undefined ? 1 : 3, name: softmax.name },
      );
      const split = rewriter.op('Reshape', [
        node.output(0),
        this.shapeConstant(node, [0, 0, q.map.heads, width]),
      ]);
      const turned = rewriter.op('Transpose', [split], { perm: ints([0, 2, 1, 3]) });
      const y =
        parts.target.length === 0
          ? turned
          : rewriter.op('Reshape', [turned, this.shapeConstant(node, parts.target)]);
      fresh.forEach((cache, index) => {
        if (cache !== undefined)
          replaceByNew(rewriter, cache.concat.output(0), node.output(index + 1));
      });
      replaceByNew(rewriter, mix.output(0), y);
    });
    removeAll(used, this.context);
    this.context.count(caches === undefined ? 'attention' : 'attention-with-cache');
  }

  private shapeConstant(node: Node, sizes: readonly number[]): Value {
    return this.context.rewriter.constant(`${node.output(0).name}_shape`, int64s(sizes));
  }

  /** Heads as [batch, tokens, heads * width]. */
  private materialized(map: HeadMap): Value {
    const { rewriter } = this.context;
    const { source, order, offset, stride, columns, heads, width } = map;
    const constant = (what: string, values: readonly number[]): Value =>
      rewriter.constant(`${source.name}_${what}`, int64s(values));
    if (order === 'bhsd') {
      const whole =
        source.shape?.length === 4
          ? source
          : rewriter.op('Reshape', [source, constant('heads', [-1, heads, 0, width])]);
      const turned = rewriter.op('Transpose', [whole], { perm: ints([0, 2, 1, 3]) });
      return rewriter.op('Reshape', [turned, constant('rows', [0, 0, heads * width])]);
    }
    let rows = source;
    if (source.shape?.length !== 3)
      rows = rewriter.op('Reshape', [source, constant('rows', [0, 0, columns])]);
    if (order === 'sbc') rows = rewriter.op('Transpose', [rows], { perm: ints([1, 0, 2]) });
    if (stride !== width) {
      const split = rewriter.op('Reshape', [
        rows,
        constant('groups', [0, 0, columns / stride, stride]),
      ]);
      const part = this.sliced(split, offset % stride, width, 3);
      return rewriter.op('Reshape', [part, constant('rows', [0, 0, heads * width])]);
    }
    return offset === 0 && columns === heads * width
      ? rows
      : this.sliced(rows, offset, heads * width, 2);
  }

  private sliced(x: Value, from: number, count: number, axis: number): Value {
    const { rewriter } = this.context;
    const constant = (what: string, value: number): Value =>
      rewriter.constant(`${x.name}_${what}`, int64s([value]));
    return rewriter.op('Slice', [
      x,
      constant('start', from),
      constant('end', from + count),
      constant('axis', axis),
    ]);
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

  /** Masks and biases that stay, as one term. */
  private biasOf({ biases, hidings }: Scores): Value | undefined {
    const { rewriter } = this.context;
    const terms = [...biases];
    for (const { condition, when } of hidings) {
      const zero = rewriter.constant('seen', writeNumbers('f32', [], Float64Array.of(0)));
      const low = rewriter.constant('hidden', writeNumbers('f32', [], Float64Array.of(-3e38)));
      terms.push(rewriter.op('Where', when ? [condition, low, zero] : [condition, zero, low]));
    }
    const [first, ...rest] = terms;
    return first === undefined
      ? undefined
      : rest.reduce((sum, term) => rewriter.op('Add', [sum, term]), first);
  }

  private sinksOf({ sinks }: Scores, heads: number): Value | undefined {
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
  readonly at: Node;
}

interface Parts {
  readonly softmax: Node;
  readonly scores: Scores;
  readonly q: Projection;
  readonly k: Projection;
  readonly v: Projection;
  readonly caches: readonly [Cached | undefined, Cached | undefined] | undefined;
  readonly rotary: Turned | undefined;
  readonly mask: ReturnType<typeof explainMasks>;
  readonly keyScale: number;
  readonly target: readonly number[];
}
