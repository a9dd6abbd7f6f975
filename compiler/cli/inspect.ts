/** `fettle inspect`: what a model or a bundle is. */
import { parseManifest } from '../../runtime/bundle.ts';
import type { Manifest, TensorSpec } from '../../runtime/manifest.ts';
import type { Inspection } from '../inspect.ts';
import { inspectModel } from '../inspect.ts';
import { formatBytes } from '../units.ts';
import type { Command } from './command.ts';
import { bundleSource, isBundle, modelSource } from './opening.ts';
import { formatCount, table } from './text.ts';

interface Arguments {
  readonly model: string;
}

/** Prints ops, parameters, bytes, inputs, outputs and memory. */
export const inspect: Command<Arguments> = {
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
      const source = await bundleSource(model);
      const manifest = parseManifest(await source.bytes('manifest.json'));
      output.result(bundleSummary(manifest), describeBundle(manifest));
      return;
    }
    const source = await modelSource(model, output);
    const inspection = inspectModel(source.read(), source.config);
    output.result({ ...inspection, name: source.name }, describeModel(source.name, inspection));
  },
};

function bundleSummary(manifest: Manifest): object {
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
    nodes: manifest.nodes ?? 0,
    ops: manifest.ops ?? {},
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
  const { nodes, ops, parameters, bytes, memory } = inspection;
  const held = Object.values(bytes).reduce((sum, size) => sum + size, 0);
  const bytesByDtype = Object.entries(bytes).map(([dtype, size]) => `${dtype} ${formatBytes(size)}`);
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
    `memory estimate of an f32 session: weights ${formatBytes(memory.weights)}, activations ${formatBytes(memory.arena)}, state ${formatBytes(memory.state)}`,
    ...inspection.warnings.map((warning) => `warning: ${warning}`),
  ].join('\n');
}

function describeBundle(manifest: Manifest): string {
  const { model, memory, weights, files } = manifest;
  const total = [...weights.files, ...files].reduce((sum, { bytes }) => sum + bytes, 0);
  return [
    `${model.name} for ${manifest.target} (engine ${manifest.engine}): ${formatCount(model.parameters)} parameters, ${formatBytes(total)} in ${weights.files.length + files.length + 1} files`,
    '',
    ...describeTensors('inputs', manifest.inputs),
    ...describeTensors('outputs', manifest.outputs),
    '',
    `memory (${memory.exact ? 'planned' : 'estimated'}${memory.tokens > 0 ? `, ${memory.tokens} tokens` : ''}): weights ${formatBytes(memory.weights)}, activations ${formatBytes(memory.arena)}, state ${formatBytes(memory.state)}`,
    ...manifest.warnings.map((warning) => `warning: ${warning}`),
  ].join('\n');
}

/** The first few tensors of a list; decoders have dozens of cache tensors that look alike. */
function describeTensors(title: string, specs: readonly TensorSpec[]): string[] {
  const shown = specs.slice(0, 6).map(({ name, dtype, shape }) => `  ${name}: ${dtype}[${shape.join(', ')}]`);
  const rest = specs.length - shown.length;
  return [`${title}:`, ...shown, ...(rest > 0 ? [`  … ${rest} more`] : [])];
}
