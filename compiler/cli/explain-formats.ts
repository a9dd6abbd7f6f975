/** `fettle compile --explain`: for each weight its format, why, and what the others would have cost. */
import type { CompiledBundle } from '../compile-options.ts';
import { ladderOf } from '../search/sensitivity.ts';
import type { Row, SensitivityTable } from '../search/table.ts';
import { errorOf } from '../search/table.ts';
import { formatBytes } from '../units.ts';
import { table as textTable } from './text.ts';

/** One line a weight: what was chosen, its row, and the steps to its neighbours. */
export interface ExplainedFormat {
  /** What it is: `L3.down`, `table`. */
  readonly role: string;
  /** Name of the constant. */
  readonly name: string;
  /** What was chosen. */
  readonly format: string;
  /** Bytes in the bundle. */
  readonly bytes: number;
  /** Error that the format brings, in the metric of the table. */
  readonly error: number;
  /** 0: predicted, 1: measured alone, 2: in pairs too. */
  readonly tier: number;
  /** The next smaller format, what it saves and adds; absent when it is the smallest. */
  readonly smaller?: Alternative;
  /** The next larger format; absent when it is the largest. */
  readonly larger?: Alternative;
}

/** Another format for a weight. */
export interface Alternative {
  /** Its name. */
  readonly format: string;
  /** Bytes more (or, below 0, fewer) than the chosen one. */
  readonly bytes: number;
  /** Error more (or less) than the chosen one. */
  readonly error: number;
  /** Error per kilobyte of the exchange: where all weights agree on it, nothing is gained by exchanging. */
  readonly errorPerKilobyte: number;
}

/** Explains the choice that a table carries; empty without one. */
export function explainChoice(table: SensitivityTable): readonly ExplainedFormat[] {
  const { chosen = {} } = table;
  return table.units.flatMap(({ name, role }): ExplainedFormat[] => {
    const ladder = ladderOf(table, name);
    const at = ladder.findIndex(({ option }) => option === chosen[name]);
    const now =
      ladder[at] ?? table.rows.find((row) => row.unit === name && row.option === chosen[name]);
    if (now === undefined) return [];
    const [smaller, larger] = at < 0 ? [] : [ladder[at - 1], ladder[at + 1]];
    return [
      {
        role,
        name,
        format: now.option,
        bytes: now.bytesDownload,
        error: errorOf(now),
        tier: now.tier,
        ...(smaller === undefined ? {} : { smaller: alternative(smaller, now) }),
        ...(larger === undefined ? {} : { larger: alternative(larger, now) }),
      },
    ];
  });
}

function alternative(other: Row, now: Row): Alternative {
  const bytes = other.bytesDownload - now.bytesDownload;
  const error = errorOf(other) - errorOf(now);
  const errorPerKilobyte = bytes === 0 ? 0 : Math.abs((1000 * error) / bytes);
  return { format: other.option, bytes, error, errorPerKilobyte };
}

/** The same for people. */
export function explainFormats({ target, table }: CompiledBundle): readonly string[] {
  if (table === undefined) return [];
  const rows = explainChoice(table).map((one) => [
    one.role,
    one.format,
    formatBytes(one.bytes),
    one.error.toExponential(2),
    ['predicted', 'measured', 'in pairs'][one.tier],
    step(one.smaller),
    step(one.larger),
  ]);
  const { additivity, metric, whole } = table;
  return [
    `formats for ${target}; a step says what the next format saves or takes, and the ${metric} a kilobyte buys:`,
    textTable(['weight', 'format', 'size', metric, 'how', 'a step down', 'a step up'], rows),
    ...(whole === undefined
      ? []
      : [
          `all together: ${metric} ${whole.measured.toExponential(2)} measured, ${whole.predicted.toExponential(2)} predicted`,
        ]),
    additivity === undefined
      ? ''
      : `errors of ${additivity.pairs} pairs of weights are off their sum by ${(100 * additivity.medianDeviation).toFixed(0)}% (median)${table.pairs.length === 0 ? '' : `; ${table.pairs.length} pairs are priced together`}`,
    '',
  ];
}

function step(other: Alternative | undefined): string {
  if (other === undefined) return '';
  const sign = other.bytes < 0 ? '-' : '+';
  return `${other.format} ${sign}${formatBytes(Math.abs(other.bytes))} ${other.errorPerKilobyte.toExponential(1)}`;
}
