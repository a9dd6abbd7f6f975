/**
 * The one error class of the project, and the checks that throw the language's own errors.
 *
 * A FettleError says what could not be done, where, and what was seen against what was wanted;
 * `fix` is one action. Misuse of the API is a TypeError or RangeError instead.
 */

/** What went wrong, for programs. Every code is documented in `docs/errors.md`. */
export type ErrorCode =
  | 'MODEL_INVALID'
  | 'OP_UNSUPPORTED'
  | 'SHAPE_UNKNOWN'
  | 'PASS_FAILED'
  | 'TARGET_UNKNOWN'
  | 'BUDGET_EXCEEDED'
  | 'BUNDLE_CORRUPT'
  | 'ENGINE_UNAVAILABLE'
  | 'DEVICE_LOST'
  | 'IO_FAILED'
  | 'USAGE';

/** Where it went wrong: file, node, value, pass, option, byte offset, … */
export type ErrorPlace = Readonly<Record<string, string | number>>;

/** Details of a {@link FettleError} beyond its code and message. */
export interface FettleErrorDetails {
  /** Where it happened. */
  readonly at?: ErrorPlace;
  /** One action that would help. */
  readonly fix?: string;
  /** The underlying error. */
  readonly cause?: unknown;
}

/**
 * An expected failure, with a code, a place and a remedy.
 *
 * @example
 * throw new FettleError('TARGET_UNKNOWN', 'Unknown target "wasn".', { fix: 'Did you mean "wasm"?' });
 */
export class FettleError extends Error {
  override readonly name: string = 'FettleError';
  /** What went wrong, for programs. */
  readonly code: ErrorCode;
  /** Where it happened; empty when the place is obvious. */
  readonly at: ErrorPlace;
  /** One action that would help, when there is one. */
  readonly fix: string | undefined;

  constructor(code: ErrorCode, message: string, details: FettleErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    this.at = details.at ?? {};
    this.fix = details.fix;
  }

  /** The object that `--json` prints under `error`. */
  toJSON(): { code: ErrorCode; message: string; at: ErrorPlace; fix: string | undefined } {
    return { code: this.code, message: this.message, at: this.at, fix: this.fix };
  }
}

/**
 * Throws when an invariant of our own code is broken. A user who sees it has found a bug.
 *
 * @param condition - what must hold
 * @param message - `place: what was broken`
 */
export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new Error(`internal: ${message}. Please report this.`);
}

/** A RangeError whose text reads the same everywhere: `name: wanted …, got …`. */
export function outOfRange(name: string, wanted: string, got: unknown): RangeError {
  return new RangeError(`${name}: wanted ${wanted}, got ${String(got)}.`);
}

/** A TypeError whose text reads the same everywhere: `name: wanted …, got …`. */
export function wrongType(name: string, wanted: string, got: unknown): TypeError {
  const seen = got === null ? 'null' : typeof got === 'object' ? got.constructor.name : typeof got;
  return new TypeError(`${name}: wanted ${wanted}, got ${seen}.`);
}

/** Rejects with the signal's reason when it has been aborted. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  signal?.throwIfAborted();
}

/**
 * The known name nearest to a misspelt one, or undefined when none is close.
 *
 * @param name - what was written
 * @param known - what would have been accepted
 */
export function nearest(name: string, known: Iterable<string>): string | undefined {
  let best: string | undefined;
  let bestDistance = Math.max(2, Math.floor(name.length / 3)) + 1;
  for (const candidate of known) {
    const distance = editDistance(name.toLowerCase(), candidate.toLowerCase());
    if (distance < bestDistance) [best, bestDistance] = [candidate, distance];
  }
  return best;
}

function editDistance(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const substitution = (previous[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      row.push(Math.min(substitution, (previous[j] ?? 0) + 1, (row[j - 1] ?? 0) + 1));
    }
    previous = row;
  }
  return previous[b.length] ?? 0;
}
