/**
 * Sizes and fractions as people write them. MB is 10^6 bytes, as download sizes and storage are
 * counted; MiB is 2^20. Shared by recipe files, the command line and messages.
 */
import { FettleError } from '../runtime/errors.ts';

const factors: Readonly<Record<string, number>> = {
  b: 1,
  kb: 1e3,
  mb: 1e6,
  gb: 1e9,
  kib: 2 ** 10,
  mib: 2 ** 20,
  gib: 2 ** 30,
};

/**
 * Bytes of a size such as `3MB`, `1.5 GiB`, `4096` or a number.
 *
 * @param value - text or a number of bytes, > 0
 * @param option - where it was written, for the message
 * @throws {@link FettleError} USAGE when it is no size
 *
 * @example
 * parseSize('3MB', 'maxSize'); // 3000000
 */
export function parseSize(value: unknown, option: string): number {
  const match =
    typeof value === 'string' ? /^\s*(\d+(?:\.\d+)?)\s*([kmg]?i?b)?\s*$/i.exec(value) : undefined;
  const factor = factors[(match?.[2] ?? 'b').toLowerCase()];
  const bytes =
    typeof value === 'number'
      ? value
      : match === undefined || match === null || factor === undefined
        ? NaN
        : Math.floor(Number(match[1]) * factor);
  if (Number.isSafeInteger(bytes) && bytes > 0) return bytes;
  throw new FettleError('USAGE', `${option}: wanted a size > 0, got ${JSON.stringify(value)}.`, {
    at: { option },
    fix: 'Write a number of bytes, or a size such as 3MB, 450MB or 1.5GiB.',
  });
}

/**
 * A fraction such as `1%`, `0.01` or a number.
 *
 * @param value - text or a number, 0 to 1
 * @param option - where it was written, for the message
 * @throws {@link FettleError} USAGE when it is no fraction
 */
export function parseFraction(value: unknown, option: string): number {
  const match = typeof value === 'string' ? /^\s*(\d+(?:\.\d+)?)\s*(%?)\s*$/.exec(value) : null;
  const fraction =
    typeof value === 'number'
      ? value
      : match === null
        ? NaN
        : Number(match[1]) / (match[2] === '%' ? 100 : 1);
  if (fraction >= 0 && fraction <= 1) return fraction;
  throw new FettleError('USAGE', `${option}: wanted a fraction, got ${JSON.stringify(value)}.`, {
    at: { option },
    fix: 'Write a percentage such as 1%, or a number from 0 to 1.',
  });
}

/** `82.3 MB`: bytes in decimal units with three digits, for messages and tables. */
export function formatBytes(bytes: number): string {
  if (bytes < 1000) return `${bytes} B`;
  const units = ['kB', 'MB', 'GB', 'TB'];
  let scaled = bytes / 1000;
  let unit = 0;
  while (scaled >= 999.5 && unit < units.length - 1) [scaled, unit] = [scaled / 1000, unit + 1];
  const digits = scaled >= 99.95 ? 0 : scaled >= 9.995 ? 1 : 2;
  return `${scaled.toFixed(digits)} ${units[unit]}`;
}
