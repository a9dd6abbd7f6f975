/** `fettle inspect`: what a model or a bundle is. */
import { readListedFile, readManifest } from '../../runtime/load.ts';
import type { Manifest, TensorSpec } from '../../runtime/manifest.ts';
import type { PlanLayout } from '../../runtime/plan.ts';
import { decodePlan } from '../../runtime/plan.ts';
import { bundleSource } from '../../runtime/node.ts';
import type { Inspection } from '../inspect.ts';
import { inspectModel } from '../inspect.ts';
import type { FusedInspection } from '../inspect-blocks.ts';
import { inspectBlocks } from '../inspect-blocks.ts';
import { contextLengthIn } from '../analyze/config.ts';
import { decodeModel } from '../onnx/read.ts';
import { activationSummary, activationText } from '../report/activations.ts';
import { bitMap, bitMapText } from '../report/bit-map.ts';
import { formatBytes } from '../units.ts';
import type { Command } from './command.ts';
import { command } from './command.ts';
import { bundlePath, isBundle, modelSource } from './opening.ts';
import { formatCount, table } from './text.ts';

/** Prints ops, parameters, bytes, inputs, outputs and memory. */
export const inspect: Command = command({
  usage: 'inspect <model>',
  summary: 'say what a model or a bundle is',
  options: (parser) =>
    parser.positional('model', {
      type: 'string',
      demandOption: true,
      describe: 'an ONNX file, a model folder, a URL, builtin:…, shape:… or a bundle',
    }),
  run: async ({ model }, output) => {
    if (isBundle(model)) {
      const contents = await inspectBundle(model);
      output.result(bundleSummary(contents), describeBundle(contents));
      return;
    }
    const source = await modelSource(model, output);
    const inspection = inspectModel(source.read(), source.config);
    const fusion = await inspectBlocks(source.read(), contextLengthIn(source.config));
    const { blocks, fused } = fusion;
    output.result(
      { ...inspection, blocks, fused, name: source.name },
      [describeModel(source.name, inspection), '', ...describeFusion(fusion)].join('\n'),
    );
  },
});

/** What fusion makes of the model. */
function describeFusion({ fused, outline }: FusedInspection): string[] {
  return [`after fusion: ${formatCount(fused.nodes)} nodes`, ...outline.map((line) => `  ${line}`)];
}

/** What a bundle holds. */
interface Contents {
  readonly manifest: Manifest;
  /** Steps of the program by op or kernel. */
  readonly nodes: number;
  readonly ops: Readonly<Record<string, number>>;
  readonly plan: PlanLayout | undefined;
}

/** The manifest, and the program it names; weights are not read. */
async function inspectBundle(reference: string): Promise<Contents> {
  const source = await bundleSource(bundlePath(reference));
  const manifest = await readManifest(source, {});
  const { kind, file } = manifest.program;
  const bytes = await readListedFile(source, manifest, file, {});
  if (kind === 'plan') {
    const { layout } = decodePlan(bytes, file);
    const counts = new Map<string, number>();
    for (const { kernel } of layout.steps) counts.set(kernel, (counts.get(kernel) ?? 0) + 1);
    const ops = Object.fromEntries([...counts].sort(([a, x], [b, y]) => y - x || (a < b ? -1 : 1)));
    return { manifest, nodes: layout.steps.length, ops, plan: layout };
  }
  const program = decodeModel(bytes, {
    externalData: (_path, _offset, length) => new Uint8Array(length),
  });
  return { manifest, ...inspectModel(program), plan: undefined };
}

function bundleSummary({ manifest, nodes, ops, plan }: Contents): object {
  const bytes: Record<string, number> = {};
  for (const { dtype, bytes: size, format } of manifest.weights.tensors) {
    const key = format ?? dtype;
    bytes[key] = (bytes[key] ?? 0) + size;
  }
  const { memory, model, inputs, outputs } = manifest;
  return {
    kind: 'bundle',
    name: model.name,
    target: manifest.target,
    engine: manifest.engine,
    nodes,
    ops,
    parameters: model.parameters,
    bytes,
    blocks: [],
    bitMap: bitMap(manifest) ?? null,
    activations: activationSummary(manifest),
    quality: manifest.quality ?? null,
    calibration: manifest.calibration ?? null,
    inputs,
    outputs,
    memory: { ...memory },
    ...(plan === undefined ? {} : { plan }),
    recipe: manifest.recipe,
    passes: manifest.passes,
    warnings: manifest.warnings,
  };
}

function describeModel(name: string, inspection: Inspection): string {
  const { nodes, ops, parameters, bytes } = inspection;
  const held = Object.values(bytes).reduce((sum, size) => sum + size, 0);
  const bytesByDtype = Object.entries(bytes).map(
    ([dtype, size]) => `${dtype} ${formatBytes(size)}`,
  );
  const { Constant: constantNodes = 0, ...counted } = ops;
  return [
    `${name}: ${formatCount(nodes)} nodes${constantNodes > 0 ? ` and ${formatCount(constantNodes)} Constant nodes` : ''}, ` +
      `${formatCount(parameters)} parameters, ${formatBytes(held)} (${bytesByDtype.join(', ')})`,
    `opset ${Object.entries(inspection.opsets)
      .map(([domain, version]) => (domain === '' ? version : `${domain} ${version}`))
      .join(', ')}; ${inspection.decoder}`,
    '',
    ...describeTensors('inputs', inspection.inputs),
    ...describeTensors('outputs', inspection.outputs),
    '',
    table(['op', 'count'], Object.entries(counted)),
    '',
    'memory estimate of the model as it is; compile it for less:',
    table(
      ['target', 'weights', 'activations', 'state', 'fits'],
      inspection.targets.map(({ target, weights, arena, state, fits }) => [
        target,
        ...[weights, arena, state].map(formatBytes),
        fits ? 'yes' : 'no',
      ]),
    ),
    ...inspection.warnings.map((warning) => `warning: ${warning}`),
  ].join('\n');
}

function describeBundle({ manifest, nodes, ops, plan }: Contents): string {
  const { model, memory, weights, files } = manifest;
  const total = [...weights.files, ...files].reduce((sum, { bytes }) => sum + bytes, 0);
  return [
    `${model.name} for ${manifest.target} (engine ${manifest.engine}): ${formatCount(model.parameters)} parameters, ${formatBytes(total)} in ${weights.files.length + files.length + 1} files`,
    '',
    ...describeTensors('inputs', manifest.inputs),
    ...describeTensors('outputs', manifest.outputs),
    '',
    table(
      [`${formatCount(nodes)} ${plan === undefined ? 'nodes' : 'steps'}`, 'count'],
      Object.entries(ops),
    ),
    '',
    ...(plan === undefined ? [] : describePlan(plan)),
    ...describeBits(manifest),
    activationText(activationSummary(manifest)),
    ...describeMemory(memory),
    ...manifest.warnings.map((warning) => `warning: ${warning}`),
  ].join('\n');
}

/** What a session takes, class by class. */
function describeMemory({ engine, thread, text, ...planned }: Manifest['memory']): string[] {
  const { weights, arena, state, stack, tokens, exact } = planned;
  const classes = [
    `weights ${formatBytes(weights)}`,
    `activations ${formatBytes(arena)}`,
    `state ${formatBytes(state)}`,
    ...(stack === undefined ? [] : [`plan and stack ${formatBytes(stack)}`]),
  ];
  const around = [
    ...(engine === undefined ? [] : [`engine ${formatBytes(engine)}`]),
    ...(text === undefined ? [] : [`tokenizer ${formatBytes(text)}`]),
    ...(thread === undefined ? [] : [`each further thread ${formatBytes(thread)}`]),
  ];
  const at = tokens > 0 ? `, ${tokens} tokens` : '';
  return [
    `memory (${exact ? 'planned' : 'estimated'}${at}): ${classes.join(', ')}`,
    ...(around.length === 0 ? [] : [`beside it (as measured): ${around.join(', ')}`]),
  ];
}

/** Number formats by block. */
function describeBits(manifest: Manifest): string[] {
  const map = bitMap(manifest);
  return map === undefined ? [] : [...bitMapText(map), ''];
}

/** Every step in order, and where memory goes, in bytes. */
function describePlan(plan: PlanLayout): string[] {
  const { body, head, weights, arena, state, memoryBytes, arenaLowerBound, inPlace } = plan;
  const rows = plan.steps.map(({ kernel, node, why }, index) => [
    index < body.steps ? `body ${index}` : `head ${index - body.steps}`,
    kernel,
    node,
    why,
  ]);
  const other = memoryBytes - weights.bytes - arena.bytes - state.bytes;
  return [
    table(['step', 'kernel', 'node', 'why'], rows),
    '',
    `at most ${plan.chunk} tokens a call, ${plan.context} in all; ${plan.threads} ${plan.threads === 1 ? 'thread' : 'threads'}${head === undefined ? '' : `; the head runs for ${plan.headRows} rows at a time`}`,
    `bytes: weights ${weights.bytes}, arena ${arena.bytes} (no plan needs less than ${arenaLowerBound}; ${inPlace} results in place), state ${state.bytes}, plan and stack ${other}; ${memoryBytes} in all`,
    '',
  ];
}

/** The first few tensors of a list; decoders have dozens of cache tensors that look alike. */
function describeTensors(title: string, specs: readonly TensorSpec[]): string[] {
  const shown = specs
    .slice(0, 6)
    .map(({ name, dtype, shape }) => `  ${name}: ${dtype}[${shape.join(', ')}]`);
  const rest = specs.length - shown.length;
  return [`${title}:`, ...shown, ...(rest > 0 ? [`  … ${rest} more`] : [])];
}
