/** A report as Markdown. */
import { formatBytes } from '../units.ts';
import { bitMapText } from './bit-map.ts';
import type { BundleReport } from './report.ts';

/** The report of several bundles, side by side first, then one by one. */
export function reportMarkdown(bundles: readonly BundleReport[]): string {
  const overview = [
    '| bundle | target | parameters | size | memory | prefill | decode | latency |',
    '|---|---|---:|---:|---:|---:|---:|---:|',
    ...bundles.map(({ path, target, parameters, bytes, memory, measured }) => {
      const { prefillTokensPerSecond, decodeTokensPerSecond, latencyMs } = measured ?? {};
      return cells([
        path,
        target,
        parameters.toLocaleString('en-US'),
        formatBytes(bytes),
        formatBytes(memory.weights + memory.arena + memory.state),
        prefillTokensPerSecond === undefined ? '' : `${prefillTokensPerSecond.toFixed(0)} tokens/s`,
        decodeTokensPerSecond === undefined ? '' : `${decodeTokensPerSecond.toFixed(0)} tokens/s`,
        latencyMs === undefined ? '' : `${latencyMs.median.toFixed(1)} ms`,
      ]);
    }),
  ];
  return ['# Fettle report', '', ...overview, '', ...bundles.flatMap(section)].join('\n');
}

function section(bundle: BundleReport): string[] {
  const { formats, memory, passes, quality, warnings } = bundle;
  return [
    `## ${bundle.path}`,
    '',
    `${bundle.name} for \`${bundle.target}\` (engine ${bundle.engine}); source sha256 \`${bundle.sourceSha256.slice(0, 16)}…\``,
    '',
    '| weights | size |',
    '|---|---:|',
    ...formats.map(({ name, bytes }) => cells([name, formatBytes(bytes)])),
    '',
    ...(bundle.bitMap === undefined ? [] : ['```', ...bitMapText(bundle.bitMap), '```', '']),
    `Memory, ${memory.exact ? 'planned' : 'estimated'}: weights ${formatBytes(memory.weights)}, activations ${formatBytes(memory.arena)}, state ${formatBytes(memory.state)}${memory.tokens > 0 ? ` at ${memory.tokens} tokens` : ''}.`,
    ...(quality === undefined
      ? []
      : [
          '',
          `Quality: ${quality.metric} ${quality.before.toPrecision(6)} before, ${quality.after.toPrecision(6)} after (data sha256 \`${quality.dataSha256.slice(0, 16)}…\`).`,
        ]),
    ...(bundle.calibration === undefined
      ? []
      : [
          '',
          `Weights fitted to ${bundle.calibration.samples} samples (${bundle.calibration.tokens} tokens; data sha256 \`${bundle.calibration.dataSha256.slice(0, 16)}…\`).`,
        ]),
    '',
    '| pass | nodes | weights |',
    '|---|---:|---:|',
    ...passes.map((line) =>
      cells([
        line.pass,
        `${line.nodesBefore} → ${line.nodesAfter}`,
        `${formatBytes(line.weightBytesBefore)} → ${formatBytes(line.weightBytesAfter)}`,
      ]),
    ),
    '',
    ...warnings.map((warning) => `- ${warning}`),
    '',
  ];
}

function cells(values: readonly string[]): string {
  return `| ${values.map((value) => value.replaceAll('|', '\\|')).join(' | ')} |`;
}
