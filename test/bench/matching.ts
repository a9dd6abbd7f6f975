/**
 * How long it takes to match every rule of fusion against large graphs: processor time of one round of
 * every pass of fusion and exact algebra over a cleaned-up graph that is already fused (nothing but
 * matching), and of the whole of clean-up and fusion over the graph as exported. Prints JSON.
 *
 *     npm run bench:matching [-- nodes]
 */
import { cpus } from 'node:os';
import { cloneModel } from '../../compiler/ir/clone.ts';
import type { Model } from '../../compiler/ir/graph.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { buildDecoder } from '../../models/decoder.ts';
import { generatedModel } from '../../models/index.ts';
import { microDecoders } from '../../models/micro.ts';
import { spellings } from '../../models/spelling/index.ts';
import { countNodes } from '../support/count-nodes.ts';
import { fusionPasses } from '../support/fusion-passes.ts';
import { randomNetwork } from '../support/random-network.ts';

const wanted = Number(process.argv[2] ?? 10_000);

/** A micro decoder with as many layers as give the wanted nodes. */
function decoder(spelling: (typeof spellings)[number]): Model {
  const build = (layers: number): Model =>
    buildDecoder('deep', { ...microDecoders.gqa, layers }, spelling);
  const perLayer = countNodes(build(3)) - countNodes(build(2));
  return build(Math.ceil(wanted / perLayer));
}

const graphs: readonly (readonly [name: string, make: () => Model])[] = [
  ...spellings.map((spelling) => [`decoder, ${spelling.name}`, () => decoder(spelling)] as const),
  ['random network', () => randomNetwork(1, Math.ceil(wanted / 2.2))],
  ['shape:smollm2-135m', () => generatedModel('shape:smollm2-135m').build()],
];

/** Milliseconds of processor time. */
async function timed(run: () => Promise<unknown>): Promise<number> {
  const start = process.cpuUsage();
  await run();
  const { user, system } = process.cpuUsage(start);
  return Math.round((user + system) / 1000);
}

const rows = [];
for (const [name, make] of graphs) {
  const model = make();
  const nodes = countNodes(model);
  const cleanUpMs = await timed(() => runPasses(model, pipelineFrom(['clean-up'])));
  const cleaned = countNodes(model);
  const quick = { verify: false } as const;
  const eachMs: Record<string, number> = {};
  // alone on the cleaned-up graph: matched against whatever it meets there
  for (const pass of fusionPasses) {
    const copy = cloneModel(model);
    eachMs[pass] = await timed(() => runPasses(copy, pipelineFrom([pass]), quick));
  }
  const fuseMs = await timed(() => runPasses(model, pipelineFrom(['fuse']), quick));
  const matchingMs = await timed(() => runPasses(model, pipelineFrom(fusionPasses), quick));
  const fused = countNodes(model);
  rows.push({ name, nodes, cleaned, fused, cleanUpMs, fuseMs, matchingMs, eachMs });
}
const machine = `${cpus()[0]?.model ?? 'unknown'} x ${cpus().length}, Node ${process.version}`;
process.stdout.write(
  `${JSON.stringify({ machine, unit: 'ms of processor time', rows }, null, 2)}\n`,
);
