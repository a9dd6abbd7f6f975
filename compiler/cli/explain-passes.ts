/** `fettle compile --explain`: what every pass did, what it left alone, and how each weight is stored. */
import type { PassReport, Refusal } from '../passes/pass.ts';
import { formatBytes } from '../units.ts';
import { formatCount, formatMs, table } from './text.ts';

/** What passes did, and what they matched and left alone; equal reasons once, with their number. */
export function explainPasses(reports: readonly PassReport[]): string {
  const rows = reports
    .filter(({ changed }) => changed)
    .map(({ pass, before, after, wallMs, rewrites }) => [
      pass,
      `${formatCount(before.nodes)} -> ${formatCount(after.nodes)}`,
      `${formatBytes(before.weightBytes)} -> ${formatBytes(after.weightBytes)}`,
      formatMs(wallMs),
      Object.entries(rewrites)
        .map(([rule, times]) => `${rule} ${times}`)
        .join(', '),
    ]);
  const idle = reports.length - rows.length;
  const refusals = describeRefusals(reports.flatMap((report) => report.refusals));
  const notes = reports.flatMap(({ pass, notes: figures }) =>
    Object.entries(figures)
      .filter(([key]) => key !== TENSORS)
      .map(([key, value]) => `  ${pass}: ${key} ${JSON.stringify(value)}`),
  );
  return [
    table(['pass', 'nodes', 'weights', 'time', 'applied'], rows),
    ...(idle === 0 ? [] : [`${idle} times a pass found nothing to do`]),
    ...(refusals.length === 0 ? [] : ['', 'left alone:', ...refusals]),
    ...(notes.length === 0 ? [] : ['', 'notes:', ...notes]),
    '',
  ].join('\n');
}

function describeRefusals(refusals: readonly Refusal[]): readonly string[] {
  const groups = new Map<string, Refusal[]>();
  for (const refusal of refusals) {
    const key = `${refusal.pass} ${refusal.rule} ${refusal.why}`;
    groups.set(key, [...(groups.get(key) ?? []), refusal]);
  }
  return [...groups.values()].flatMap((group) => {
    const [first] = group;
    if (first === undefined) return [];
    const { pass, rule, at, why } = first;
    const where = group.length === 1 ? at : `${group.length} places, such as ${at}`;
    return [`  ${pass}${rule === pass ? '' : `/${rule}`} at ${where}: ${why}`];
  });
}

/** The note of quantize-weights that has a table of its own. */
const TENSORS = 'tensors';

/**
 * How each weight is stored where one format was asked for: format, size, error, and why it is another
 * format than that.
 *
 * @param reports - of the passes; those that stored nothing say nothing
 */
export function explainStorage(reports: readonly PassReport[]): readonly string[] {
  return reports.flatMap(({ pass, notes, refusals }) => {
    const tensors = pass === 'quantize-weights' ? notes[TENSORS] : undefined;
    if (!Array.isArray(tensors)) return [];
    const rows = (tensors as readonly StoredTensor[]).map(
      ({ name, format, shape, bytes, relativeError, block, part }) => [
        (block ?? -1) < 0 ? (part ?? '') : `L${block}.${part}`,
        name,
        (shape ?? []).join(' x '),
        format,
        formatBytes(bytes ?? 0),
        relativeError === undefined ? '' : relativeError.toExponential(2),
        refusals.find(({ at, why }) => at === name && why.includes(format))?.why ?? 'as asked for',
      ],
    );
    return [
      'weights as they are stored; error is the squared one over the squared weights:',
      table(['weight', 'constant', 'shape', 'format', 'size', 'error', 'why'], rows),
      '',
    ];
  });
}

/** What quantize-weights notes about a tensor, as far as it is printed. */
interface StoredTensor {
  readonly name: string;
  readonly format: string;
  readonly shape?: readonly number[];
  readonly bytes?: number;
  readonly relativeError?: number;
  readonly block?: number;
  readonly part?: string;
}
