/**
 * Clean-up against onnxsim: nodes left (Constant nodes not counted) and milliseconds, from bytes to
 * bytes, the median of three runs after one that warms up. Prints JSON with `--json`, else Markdown.
 *
 *     npm run bench:clean-up [-- --json] [name …]
 */
import { readFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { decodeModel } from '../../compiler/onnx/read.ts';
import { encodeModel } from '../../compiler/onnx/write.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { availableModels } from '../support/clean-up-models.ts';
import { countNodes } from '../support/count-nodes.ts';

interface Row {
  readonly model: string;
  readonly nodes: number;
  readonly fettle: number;
  readonly onnxsim: number;
  readonly fettleMs: number;
  readonly onnxsimMs: number;
}

const arguments_ = process.argv.slice(2);
const asJson = arguments_.includes('--json');
const names = arguments_.filter((argument) => !argument.startsWith('--'));
const { simplify } = await quietly(() => import('onnxsim'));

const rows: Row[] = [];
for (const { name, path } of availableModels()) {
  if (names.length > 0 && !names.includes(name)) continue;
  const bytes = readFileSync(path);
  let left = 0;
  const fettleMs = await median(async () => {
    const model = decodeModel(bytes);
    await runPasses(model, pipelineFrom(['clean-up']));
    encodeModel(model);
    left = countNodes(model);
  });
  let simplified: Uint8Array = bytes;
  const onnxsimMs = await median(async () => {
    simplified = await quietly(async () => (await simplify(bytes)).model);
  });
  rows.push({
    model: name,
    nodes: countNodes(decodeModel(bytes)),
    fettle: left,
    onnxsim: countNodes(decodeModel(simplified)),
    fettleMs,
    onnxsimMs,
  });
}
const machine = `${cpus()[0]?.model ?? 'unknown'} x ${cpus().length}, Node ${process.version}`;
if (asJson) console.log(JSON.stringify({ machine, warmUps: 1, samples: 3, rows }, null, 2));
else {
  console.log(`${machine}\n`);
  console.log('| model | nodes | after clean-up | after onnxsim | clean-up ms | onnxsim ms |');
  console.log('|---|---|---|---|---|---|');
  for (const row of rows)
    console.log(
      `| ${row.model} | ${row.nodes} | ${row.fettle} | ${row.onnxsim} | ${row.fettleMs} | ${row.onnxsimMs} |`,
    );
}

async function median(run: () => Promise<void>): Promise<number> {
  const samples: number[] = [];
  for (let i = 0; i < 4; i++) {
    const start = performance.now();
    await run();
    if (i > 0) samples.push(performance.now() - start);
  }
  samples.sort((a, b) => a - b);
  return Math.round(samples[1] ?? 0);
}

/** onnxsim prints tables and its heap's growth. */
async function quietly<T>(run: () => Promise<T>): Promise<T> {
  const { log, info, warn, error } = console;
  console.log = console.info = console.warn = console.error = (): void => {};
  try {
    return await run();
  } finally {
    Object.assign(console, { log, info, warn, error });
  }
}
