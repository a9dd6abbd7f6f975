/** `fettle inspect`: what a model or a bundle is. */
import { readListedFile, readManifest } from '../../runtime/load.ts';
import type { Manifest, TensorSpec } from '../../runtime/manifest.ts';
import { bundleSource } from '../../runtime/node.ts';
import type { Inspection } from '../inspect.ts';
import { inspectModel } from '../inspect.ts';
import { decodeModel } from '../onnx/read.ts';
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
      const { manifest, inspection } = await inspectBundle(model);
      output.result(bundleSummary(manifest, inspection), describeBundle(manifest, inspection));
      return;
    }
    const source = await modelSource(model, output);
    const inspection = inspectModel(source.read(), source.config);
    output.result({ ...inspection, name: source.name }, describeModel(source.name, inspection));
  },
});

/** The manifest, and the program it names; weights are not read. */
async function inspectBundle(
  reference: string,
): Promise<{ readonly manifest: Manifest; readonly inspection: Inspection }> {
  const source = await bundleSource(bundlePath(reference));
  const manifest = await readManifest(source, {});
  const graph = await readListedFile(source, manifest, manifest.program.file, {});
  const program = decodeModel(graph, {
    externalData: (_path, _offset, length) => new Uint8Array(length),
  });
  return { manifest, inspection: inspectModel(program) };
}

function bundleSummary(manifest: Manifest, { nodes, ops }: Inspection): object {
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
    inputs,
    outputs,
    memory: { ...memory },
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

function describeBundle(manifest: Manifest, { nodes, ops }: Inspection): string {
  const { model, memory, weights, files } = manifest;
  const total = [...weights.files, ...files].reduce((sum, { bytes }) => sum + bytes, 0);
  return [
    `${model.name} for ${manifest.target} (engine ${manifest.engine}): ${formatCount(model.parameters)} parameters, ${formatBytes(total)} in ${weights.files.length + files.length + 1} files`,
    '',
    ...describeTensors('inputs', manifest.inputs),
    ...describeTensors('outputs', manifest.outputs),
    '',
    table([`${formatCount(nodes)} nodes`, 'count'], Object.entries(ops)),
    '',
    `memory (${memory.exact ? 'planned' : 'estimated'}${memory.tokens > 0 ? `, ${memory.tokens} tokens` : ''}): weights ${formatBytes(memory.weights)}, activations ${formatBytes(memory.arena)}, state ${formatBytes(memory.state)}`,
    ...manifest.warnings.map((warning) => `warning: ${warning}`),
  ].join('\n');
}

/** The first few tensors of a list; decoders have dozens of cache tensors that look alike. */
function describeTensors(title: string, specs: readonly TensorSpec[]): string[] {
  const shown = specs
    .slice(0, 6)
    .map(({ name, dtype, shape }) => `  ${name}: ${dtype}[${shape.join(', ')}]`);
  const rest = specs.length - shown.length;
  return [`${title}:`, ...shown, ...(rest > 0 ? [`  … ${rest} more`] : [])];
}
