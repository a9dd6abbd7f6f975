/**
 * Work of clean-up and fusion on a decoder of 2,000 nodes and one of 10,000, for a child process of its own:
 * counts are exact only for code that ran for the first time after counting began.
 *
 *     node --import tsx test/support/growth-work.ts      prints {@link Growth} as JSON
 */
import { pipelineFrom } from '../../compiler/passes.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { buildDecoder } from '../../models/decoder.ts';
import { microDecoders } from '../../models/micro.ts';
import { spellings } from '../../models/spelling/index.ts';
import { countNodes } from './count-nodes.ts';
import { WorkCounter } from './work-count.ts';

/** Runs of blocks of code for one model. */
export interface ModelWork {
  readonly nodes: number;
  readonly total: number;
  /** By `file function`. */
  readonly byFunction: Readonly<Record<string, number>>;
}

/** What the child prints. */
export interface Growth {
  readonly small: ModelWork;
  readonly large: ModelWork;
}

/** Runs of blocks of code of every rule over a decoder of so many layers. */
async function workOf(counter: WorkCounter, layers: number): Promise<ModelWork> {
  const model = buildDecoder('deep', { ...microDecoders.gqa, layers }, spellings[0]);
  const nodes = countNodes(model);
  const steps = pipelineFrom(['clean-up', 'fuse', 'fold-norm-gains', 'fuse-expression']);
  const { total, byFunction } = await counter.count(() => runPasses(model, steps));
  return { nodes, total, byFunction: Object.fromEntries(byFunction) };
}

if (import.meta.filename === process.argv[1]) {
  const counter = new WorkCounter('/compiler/');
  await counter.open();
  const small = await workOf(counter, 23);
  const large = await workOf(counter, 115);
  await counter.close();
  process.stdout.write(JSON.stringify({ small, large } satisfies Growth));
}
