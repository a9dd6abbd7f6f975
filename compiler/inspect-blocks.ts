/**
 * What fusion makes of a model, for `fettle inspect`: nodes before and after, and the blocks found.
 */
import type { Block, Unrecognised } from './analyze/blocks.ts';
import { findBlocks } from './analyze/blocks.ts';
import type { Model } from './ir/graph.ts';
import { pipelineFrom } from './passes.ts';
import type { PassReport } from './passes/pass.ts';
import { runPasses } from './run-passes.ts';

/** A fused model in numbers. */
export interface FusedInspection {
  /** Recognised blocks, in order. */
  readonly blocks: readonly Block[];
  /** Size after fusion. */
  readonly fused: {
    /** Nodes. */
    readonly nodes: number;
    /** Most nodes of a block; 0 without blocks. */
    readonly nodesPerBlock: number;
    /** Nodes outside of blocks, by op. */
    readonly outside: Readonly<Record<string, number>>;
  };
  /** The same in lines of text. */
  readonly outline: readonly string[];
}

/**
 * Fuses a model and finds its blocks. The model is changed: pass one that nobody else reads.
 *
 * @param model - as read
 * @param contextLength - most tokens, when the files beside the model say so
 *
 * @example
 * const { outline } = await inspectBlocks(source.read());
 */
export async function inspectBlocks(
  model: Model,
  contextLength?: number,
): Promise<FusedInspection> {
  const options = contextLength === undefined ? {} : { contextLength };
  const reports = await runPasses(model, pipelineFrom(['clean-up', 'fuse']), options);
  const { blocks, outside, text } = findBlocks(model, unfused(model, reports));
  return {
    blocks,
    fused: {
      nodes: model.graph.nodeCount,
      nodesPerBlock: Math.max(0, ...blocks.map(({ nodes }) => nodes)),
      outside,
    },
    outline: text,
  };
}

/** Attentions that fusion saw and left, with its last word on each. */
function unfused(model: Model, reports: readonly PassReport[]): readonly Unrecognised[] {
  const left = new Set(
    [...model.graph.nodes()].flatMap(({ name, outputs }) => [
      name,
      ...outputs.flatMap((output) => output?.name ?? []),
    ]),
  );
  const found = new Map<string, string>();
  for (const { pass, refusals } of reports)
    for (const { at, why } of pass === 'fuse-attention' ? refusals : [])
      if (left.has(at)) found.set(at, why);
  return [...found].map(([at, why]) => ({ at, why }));
}
