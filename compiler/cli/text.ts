/** Text for people: aligned tables and figures with units. */

/**
 * Columns aligned by their widest cell; numbers to the right.
 *
 * @param header - column titles
 * @param rows - cells as text or number, as many as there are titles
 */
export function table(
  header: readonly string[],
  rows: readonly (readonly (string | number | undefined)[])[],
): string {
  const cells = rows.map((row) => header.map((_, i) => String(row[i] ?? '')));
  const right = header.map((_, i) => rows.every((row) => row[i] === undefined || isFigure(row[i])));
  const widths = header.map((title, i) =>
    Math.max(title.length, ...cells.map((row) => (row[i] ?? '').length)),
  );
  const line = (row: readonly string[]): string =>
    row
      .map((cell, i) => (right[i] ? cell.padStart(widths[i] ?? 0) : cell.padEnd(widths[i] ?? 0)))
      .join('  ')
      .trimEnd();
  return [line(header), ...cells.map(line)].join('\n');
}

function isFigure(cell: string | number | undefined): boolean {
  return typeof cell === 'number' || /^[-+]?[\d.,]+ ?(%|ms|s|x|[kMG]?B)?$/.test(String(cell));
}

/** `1234567` -> `1,234,567`. */
export function formatCount(count: number): string {
  return count.toLocaleString('en-US');
}

/** A duration: `83 ms`, `4.2 s`. */
export function formatMs(ms: number): string {
  return ms < 1000 ? `${ms.toPrecision(3)} ms` : `${(ms / 1000).toPrecision(3)} s`;
}
