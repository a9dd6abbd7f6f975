/**
 * Cuts a model into stages that run one after another, so that calibration holds one cut's activations
 * and one stage's weights at a time, whatever the model's depth.
 *
 *     nodes in topological order   | embed, block 0 | block 1 | … | norm, head |
 *                                                   ^ values that cross are held
 *
 * A cut is put where the fewest bytes cross. With the grain `linear` no product of a stage depends on
 * another one of it, so that the inputs of its products are known before any of its weights is rounded:
 * what sequential rounding needs. With the grain `block` a stage has a few products, a decoder block or
 * some convolutions: less overhead, for who runs the stages again and again.
 *
 * What depends on constants alone belongs to no stage and is copied into each that reads it.
 * Source: the layer-by-layer loop of Frantar et al., GPTQ, arXiv:2210.17323, for any graph.
 */
import type { Model, Node, Value } from '../ir/graph.ts';
import type { WeightUnit } from '../passes/weight-units.ts';
import { readsOf, StageLayout } from './stage-layout.ts';
import { stageModel } from './stage-model.ts';

/** One part of a model. */
export interface Stage {
  /** Place in the order of execution. */
  readonly index: number;
  /** Values it reads: outputs of earlier stages, and inputs of the model. */
  readonly inputs: readonly string[];
  /** Values it gives: those that later stages read, and outputs of the model. */
  readonly outputs: readonly string[];
  /** Units that something in it reads, a tied table in each of its stages. */
  readonly units: readonly WeightUnit[];
  /**
   * What the units are multiplied with here: unit -> values, [..., columns], convolutions before
   * patches are taken.
   */
  readonly taps: ReadonlyMap<string, readonly string[]>;
  /** The nodes between. */
  readonly nodes: readonly Node[];
  /**
   * The graph that computes some values from the stage's inputs.
   *
   * @param outputs - values of the stage; inputs that none of them needs are left out
   */
  model(outputs: readonly string[]): Model;
}

/** How a model is cut. */
export interface StageOptions {
  /** See the file's header. Default `block`. */
  readonly grain?: 'linear' | 'block';
}

/** Products of a stage with the grain `block`, at least. */
const BLOCK_PRODUCTS = 4;

/**
 * Cuts a model.
 *
 * @param model - of fixed sizes, see `fixedModel`
 * @param units - its units
 *
 * @example
 * const stages = splitStages(fixed, weightUnits(fixed), { grain: 'linear' });
 */
export function splitStages(
  model: Model,
  units: readonly WeightUnit[],
  { grain = 'block' }: StageOptions = {},
): readonly Stage[] {
  const layout = new StageLayout(model, units);
  const cuts = grain === 'linear' ? linearCuts(layout) : blockCuts(layout);
  const bounds = [0, ...cuts, layout.nodes.length];
  return bounds
    .slice(1)
    .map((end, index) => new GraphStage(layout, units, index, bounds[index] ?? 0, end));
}

/** Cuts so that no product of a stage is multiplied with what another one of it gave. */
function linearCuts(layout: StageLayout): number[] {
  const cuts: number[] = [];
  const dependent = new Set<Value>();
  let last = -1;
  layout.nodes.forEach((node, place) => {
    const isProduct = layout.products.has(node);
    const [x] = node.inputs;
    if (isProduct && x !== undefined && dependent.has(x)) {
      cuts.push(layout.cheapest(last + 1, place));
      dependent.clear();
    }
    if (isProduct) last = place;
    if (!isProduct && !readsOf(node).some((value) => dependent.has(value))) return;
    for (const value of node.outputs) if (value !== undefined) dependent.add(value);
  });
  return cuts;
}

/** Cuts behind every few products, where the fewest bytes cross. */
function blockCuts(layout: StageLayout): number[] {
  const places = [...layout.nodes.keys()].filter((place) => {
    const node = layout.nodes[place];
    return node !== undefined && layout.products.has(node);
  });
  const cuts: number[] = [];
  let first = 0;
  while (first + BLOCK_PRODUCTS < places.length) {
    const from = (places[first + BLOCK_PRODUCTS - 1] ?? 0) + 1;
    const to = places[Math.min(first + 2 * BLOCK_PRODUCTS, places.length) - 1] ?? from;
    const cut = layout.cheapest(from, Math.max(from, to));
    cuts.push(cut);
    first = places.findIndex((place) => place >= cut);
    if (first < 0) break;
  }
  return cuts;
}

class GraphStage implements Stage {
  readonly index: number;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly units: readonly WeightUnit[];
  readonly taps: ReadonlyMap<string, readonly string[]>;
  readonly nodes: readonly Node[];
  private readonly source: Model;

  constructor(
    layout: StageLayout,
    units: readonly WeightUnit[],
    index: number,
    start: number,
    end: number,
  ) {
    this.source = layout.model;
    this.index = index;
    this.nodes = layout.nodes.slice(start, end);
    const inside = new Set(this.nodes);
    const inputs = new Set<string>();
    const outputs = new Set<string>();
    for (const node of this.nodes) {
      for (const value of readsOf(node))
        if (layout.comesBefore(value, start)) inputs.add(value.name);
      for (const value of node.outputs)
        if (value !== undefined && (value.isOutput || layout.lastUse(value) >= end))
          outputs.add(value.name);
    }
    this.inputs = [...inputs];
    this.outputs = [...outputs];
    const taps = new Map<string, readonly string[]>();
    this.units = units.filter((unit) => {
      const sites = unit.sites.filter(({ node }) => inside.has(node));
      const values = sites.flatMap(({ node, kind, index: input }) => {
        const [x] = node.inputs;
        // a recurrence multiplies its second matrix by its own state, which is no value of the graph
        const multiplies = kind !== 'table' && (kind !== 'recurrent' || input === 1);
        return multiplies && x !== undefined && layout.isComputed(x) ? [x.name] : [];
      });
      if (values.length > 0) taps.set(unit.name, [...new Set(values)]);
      return sites.length > 0;
    });
    this.taps = taps;
  }

  model(outputs: readonly string[]): Model {
    return stageModel(this.source, this.inputs, outputs);
  }
}
