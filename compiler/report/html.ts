/** A report as one HTML file: no script, no request, readable in light and dark. */
import { formatBytes } from '../units.ts';
import type { BitCell, BitMap } from './bit-map.ts';
import { outsideOf, rowOf } from './bit-map.ts';
import type { BundleReport, Share } from './report.ts';

const style = `
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; --bar: #3b7dd8; --track: #8884; }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.5rem; overflow-wrap: anywhere }
table { border-collapse: collapse; width: 100%; margin: .75rem 0 }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--track); vertical-align: middle }
th { font-weight: 600 } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.bar { background: var(--track); border-radius: 3px; height: .7rem; min-width: 8rem }
.bar i { display: block; height: 100%; background: var(--bar); border-radius: 3px }
.warning { border-left: 3px solid #d9a400; padding-left: .75rem } code { font-size: .9em }
.bits { display: block; padding: 0 .4rem; border-radius: 3px; font-size: .85em; background: color-mix(in srgb, var(--bar) var(--share), transparent) }
.scroll { overflow-x: auto }`;

/** The report of several bundles, side by side first, then one by one. */
export function reportHtml(bundles: readonly BundleReport[]): string {
  return [
    '<!doctype html>',
    '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
    `<title>Fettle report</title><style>${style}</style></head><body>`,
    '<h1>Fettle report</h1>',
    overview(bundles),
    ...bundles.map(section),
    '</body></html>',
    '',
  ].join('\n');
}

function overview(bundles: readonly BundleReport[]): string {
  const largest = Math.max(...bundles.map(({ bytes }) => bytes));
  return grid(
    ['bundle', 'target', '#parameters', '#size', '', '#memory', '#prefill', '#decode', '#latency'],
    bundles.map(({ path, target, parameters, bytes, memory, measured }) => [
      text(path),
      text(target),
      parameters.toLocaleString('en-US'),
      formatBytes(bytes),
      bar(bytes / largest),
      formatBytes(memory.weights + memory.arena + memory.state),
      rate(measured?.prefillTokensPerSecond),
      rate(measured?.decodeTokensPerSecond),
      measured?.latencyMs === undefined ? '' : `${measured.latencyMs.median.toFixed(1)} ms`,
    ]),
  );
}

function section(bundle: BundleReport): string {
  const { memory, quality, passes, warnings } = bundle;
  const held: readonly Share[] = [
    { name: 'weights', bytes: memory.weights },
    { name: 'activations', bytes: memory.arena },
    { name: 'state', bytes: memory.state },
  ];
  return [
    `<h2>${text(bundle.path)}</h2>`,
    `<p>${text(bundle.name)} for <code>${text(bundle.target)}</code>, engine ${text(bundle.engine)}; source sha256 <code>${bundle.sourceSha256.slice(0, 16)}…</code></p>`,
    ...(quality === undefined
      ? []
      : [
          `<p>Quality: ${text(quality.metric)} ${quality.before.toPrecision(6)} before, ${quality.after.toPrecision(6)} after (data sha256 <code>${quality.dataSha256.slice(0, 16)}…</code>).</p>`,
        ]),
    ...(bundle.calibration === undefined
      ? []
      : [
          `<p>Weights fitted to ${bundle.calibration.samples} samples (${bundle.calibration.tokens} tokens; data sha256 <code>${bundle.calibration.dataSha256.slice(0, 16)}…</code>).</p>`,
        ]),
    shares('weights by format', bundle.formats),
    ...(bundle.bitMap === undefined ? [] : [drawnBits(bundle.bitMap)]),
    shares(
      `memory, ${memory.exact ? 'planned' : 'estimated'}${memory.tokens > 0 ? `, ${memory.tokens} tokens` : ''}`,
      held,
    ),
    shares(
      'largest tensors',
      bundle.largest.map(({ name, format, bytes }) => ({ name: `${name} (${format})`, bytes })),
    ),
    grid(
      ['pass', '#nodes', '#weights'],
      passes.map((line) => [
        text(line.pass),
        `${line.nodesBefore} → ${line.nodesAfter}`,
        `${formatBytes(line.weightBytesBefore)} → ${formatBytes(line.weightBytesAfter)}`,
      ]),
    ),
    ...warnings.map((warning) => `<p class="warning">${text(warning)}</p>`),
    `<details><summary>recipe</summary><pre>${text(JSON.stringify(bundle.recipe, undefined, 2))}</pre></details>`,
  ].join('\n');
}

/** Formats by block and part, darker for more bits. */
function drawnBits(map: BitMap): string {
  const shaded = (cell: BitCell | undefined): string =>
    cell === undefined
      ? ''
      : `<span class="bits" style="--share:${Math.min(100, 12 * cell.bits)}%" title="${text(`${cell.name}: ${formatBytes(cell.bytes)}, relative error ${cell.relativeError}`)}">${text(cell.format)}</span>`;
  return [
    `<p>Formats by block, ${map.averageBits.toFixed(2)} bits a parameter on average:</p>`,
    grid(
      ['block', ...map.parts],
      [
        ...map.blocks.map((block) => [String(block), ...rowOf(map, block).map(shaded)]),
        ...outsideOf(map).map((cell) => [text(cell.part), shaded(cell)]),
      ],
    ),
  ].join('\n');
}

function shares(title: string, rows: readonly Share[]): string {
  const largest = Math.max(1, ...rows.map(({ bytes }) => bytes));
  return grid(
    [title, '#size', ''],
    rows.map(({ name, bytes }) => [text(name), formatBytes(bytes), bar(bytes / largest)]),
  );
}

/** A table; a title that starts with # is a column of figures. */
function grid(titles: readonly string[], rows: readonly (readonly string[])[]): string {
  const cell = (tag: 'th' | 'td', value: string, index: number): string =>
    `<${tag}${titles[index]?.startsWith('#') ? ' class="n"' : ''}>${value}</${tag}>`;
  const head = titles.map((title, i) => cell('th', text(title.replace(/^#/, '')), i)).join('');
  const body = rows.map(
    (row) => `<tr>${row.map((value, i) => cell('td', value, i)).join('')}</tr>`,
  );
  return `<div class="scroll"><table><tr>${head}</tr>${body.join('')}</table></div>`;
}

function bar(share: number): string {
  return `<div class="bar"><i style="width:${(100 * share).toFixed(1)}%"></i></div>`;
}

function rate(tokensPerSecond: number | undefined): string {
  return tokensPerSecond === undefined ? '' : `${tokensPerSecond.toFixed(0)} tokens/s`;
}

/** Names come from models, so nothing in them may become markup. */
function text(value: string): string {
  return value.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}
