/**
 * The residual stream as values that are turned together: found from the norms that only read it, and
 * followed through sums.
 *
 *   rows turned by R    Norm without gain commutes with R (rms; layer, once means are taken away before)
 *   writers             linear ops and tables that give rows of it: their weights become W R
 *   readers             linear ops behind the norms, or beside them: their weights become Rᵀ W
 *   borders             where anything else gives or reads it: x R or x Rᵀ has to be computed there
 */
import type { Model, Node, Value } from '../ir/graph.ts';
import { activationNameOf } from '../ops/activation-table.ts';
import { isGatedLinear, isLinear, linearInputs } from '../ops/fused-linear.ts';
import { isNorm, normInputs, normKind } from '../ops/fused-norm.ts';
import type { LinearSite } from './linear-site.ts';
import { linearSites, readersOf } from './linear-site.ts';

/** A use of a value. */
export interface Use {
  /** The node. */
  readonly node: Node;
  /** Its input. */
  readonly index: number;
}

/** Everything that changes when the stream is turned. */
export interface Spine {
  /** Numbers of a row. */
  readonly size: number;
  /** Kind of the norms that read it; one for all. */
  readonly kind: 'rms' | 'layer';
  /** Norms whose rows are turned. */
  readonly norms: readonly Node[];
  /** Values of the stream. */
  readonly values: ReadonlySet<Value>;
  /** Linear ops that write to it. */
  readonly writers: readonly LinearSite[];
  /** Lookups in tables of their own that start it. */
  readonly tables: readonly Node[];
  /** Linear ops that read it, normed or not. */
  readonly readers: readonly LinearSite[];
  /** Values of it that come from elsewhere: turned where they enter. */
  readonly entries: readonly Value[];
  /** Uses that want it as it was: turned back in front of them. */
  readonly exits: readonly Use[];
}

/** Where x R or x Rᵀ may be computed at run time, at most. */
const MOST_BORDERS = 4;

/** The streams of a model that can be turned, or why one cannot be. */
export function findSpines(
  model: Model,
): readonly (Spine | { readonly at: Node; readonly why: string })[] {
  const found: (Spine | { readonly at: Node; readonly why: string })[] = [];
  const seen = new Set<Value>();
  for (const node of model.graph.nodes()) {
    if (!isNorm(node) || !commutes(node)) continue;
    const x = node.input(normInputs.x);
    if (seen.has(x)) continue;
    const walk = new SpineWalk(x, normKind(node));
    const why = walk.follow();
    for (const value of walk.values) seen.add(value);
    found.push(why === undefined ? walk.spine() : { at: node, why });
  }
  return found;
}

/** Whether turning the rows of a norm turns its result: nothing differs between channels. */
function commutes(node: Node): boolean {
  const { gain, bias, skipBias } = normInputs;
  if ([gain, bias, skipBias].some((index) => node.inputs[index] !== undefined)) return false;
  const readers = readersOf(node.output(0));
  return readers !== undefined && typeof readers !== 'string' && readers.every(isMatrix);
}

function isMatrix({ axis }: LinearSite): boolean {
  return axis === -1;
}

class SpineWalk {
  readonly values = new Set<Value>();
  private readonly kind: 'rms' | 'layer';
  private readonly size: number | undefined;
  private readonly work: Value[] = [];
  private readonly norms = new Set<Node>();
  private readonly writers: LinearSite[] = [];
  private readonly tables: Node[] = [];
  private readonly readers: LinearSite[] = [];
  private readonly entries: Value[] = [];
  private readonly exits: Use[] = [];

  constructor(start: Value, kind: 'rms' | 'layer') {
    this.kind = kind;
    const size = start.shape?.at(-1);
    this.size = typeof size === 'number' ? size : undefined;
    this.join(start);
  }

  /** Follows the stream; why it cannot be turned. */
  follow(): string | undefined {
    if (this.size === undefined) return 'the size of its rows is not known';
    for (let value = this.work.pop(); value !== undefined; value = this.work.pop()) {
      const why = this.backward(value) ?? this.forward(value);
      if (why !== undefined) return why;
    }
    const borders = this.entries.length + this.exits.length;
    if (borders > MOST_BORDERS)
      return `it would have to be turned at run time in ${borders} places`;
    const written = new Set(this.writers.map(({ node }) => node));
    const both = this.readers.find(({ node }) => written.has(node));
    if (both !== undefined) return `${both.node.describe()} reads and writes it without a norm`;
    // means that were taken away cannot be given back; a layer norm takes them away itself
    const needsMeans = (node: Node): boolean => !isNorm(node) || normKind(node) !== 'layer';
    const exit = this.kind === 'layer' && this.exits.find(({ node }) => needsMeans(node));
    return exit ? `${exit.node.describe()} reads it with its means` : undefined;
  }

  spine(): Spine {
    const { size = 0, kind, values, writers, tables, readers, entries, exits } = this;
    return { size, kind, norms: [...this.norms], values, writers, tables, readers, entries, exits };
  }

  private join(value: Value): void {
    if (this.values.has(value)) return;
    this.values.add(value);
    this.work.push(value);
  }

  /** What gives a value of the stream. */
  private backward(value: Value): string | undefined {
    const { producer } = value;
    if (producer !== undefined && isSum(producer)) {
      for (const input of producer.inputs) if (input !== undefined) this.join(input);
      return undefined;
    }
    if (isNorm(producer) && producer.outputs[1] === value && this.isTurned(producer)) {
      this.joinNorm(producer);
      return undefined;
    }
    const writer = writerOf(producer);
    if (producer !== undefined && writer !== undefined) {
      this.writers.push(writer);
      const residual = producer.inputs[linearInputs.residual];
      if (residual !== undefined) this.join(residual);
      return undefined;
    }
    if (producer !== undefined && isOwnTable(producer)) this.tables.push(producer);
    else if (value.weight === undefined) this.entries.push(value);
    else return `"${value.name}" is a constant in it`;
    return undefined;
  }

  /** What reads a value of the stream. */
  private forward(value: Value): string | undefined {
    if (value.isOutput) return `"${value.name}" is an output of the model`;
    for (const node of value.users.keys())
      for (const [index, input] of node.inputs.entries())
        if (input === value && !this.takes(node, index)) this.exits.push({ node, index });
    return undefined;
  }

  /** Follows one use; false when it wants the value as it was. */
  private takes(node: Node, index: number): boolean {
    if (isSum(node)) {
      this.join(node.output(0));
      return true;
    }
    if (isNorm(node) && (index === normInputs.x || index === normInputs.skip)) {
      if (!this.isTurned(node)) return false;
      this.joinNorm(node);
      return true;
    }
    if (isLinear(node) && index === linearInputs.residual && writerOf(node) !== undefined) {
      this.join(node.output(0));
      return true;
    }
    // in front of a norm means are part of the rows, so only the other kind can be read directly
    if (index !== 0 || this.kind === 'layer' || !(isLinear(node) || isGatedLinear(node)))
      return false;
    const sites = linearSites(node);
    if (sites === undefined || typeof sites === 'string' || !sites.every(isMatrix)) return false;
    this.readers.push(...sites);
    return true;
  }

  private isTurned(norm: Node): boolean {
    return commutes(norm) && normKind(norm) === this.kind;
  }

  private joinNorm(norm: Node): void {
    if (this.norms.has(norm)) return;
    this.norms.add(norm);
    this.join(norm.input(normInputs.x));
    const skip = norm.inputs[normInputs.skip];
    if (skip !== undefined) this.join(skip);
    const sum = norm.outputs[1];
    if (sum !== undefined) this.join(sum);
    const readers = readersOf(norm.output(0));
    if (readers !== undefined && typeof readers !== 'string') this.readers.push(...readers);
  }
}

/** A sum of two values of one shape. */
function isSum(node: Node): boolean {
  if (node.op !== 'Add' || node.domain !== '') return false;
  const [a, b] = node.inputs;
  return (
    a?.weight === undefined && b?.weight === undefined && String(a?.shape) === String(b?.shape)
  );
}

/** The linear op that gives a value as it is, plus a residual perhaps. */
function writerOf(node: Node | undefined): LinearSite | undefined {
  if (!isLinear(node) || activationNameOf(node) !== 'none') return undefined;
  const sites = linearSites(node);
  return sites === undefined || typeof sites === 'string' ? undefined : sites[0];
}

/** A lookup of rows in a constant that nothing else reads. */
function isOwnTable(node: Node): boolean {
  const [table] = node.inputs;
  return (
    node.op === 'Gather' &&
    node.domain === '' &&
    node.int('axis', 0) === 0 &&
    table?.weight?.shape.length === 2 &&
    (table.dtype === 'f32' || table.dtype === 'f64') &&
    table.useCount === 1
  );
}
