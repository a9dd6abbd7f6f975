/**
 * Reads untrusted JSON: each access says what it wants, and a mismatch is a BUNDLE_CORRUPT that names
 * the file and the key. Nothing is allocated from a number before it has been read through here.
 */
import { FettleError } from './errors.ts';

/** What to do about a bundle that fails a check. */
export const renew = 'Download the bundle again, or compile it again.';

/** A value inside a JSON file, with its key path for messages. */
export class Checked {
  readonly #value: unknown;
  readonly #of: string | Checked;
  readonly #step: string | number;

  /**
   * @param of - the file; or what holds the value
   * @param step - the key or index there. Paths are put together for messages only: as strings of every
   *   value they would be most of what reading a manifest leaves on the heap
   */
  constructor(value: unknown, of: string | Checked, step: string | number = '') {
    this.#value = value;
    this.#of = of;
    this.#step = step;
  }

  /** The file, and the path of keys in it. */
  #place(): readonly [file: string, key: string] {
    if (typeof this.#of === 'string') return [this.#of, ''];
    const [file, above] = this.#of.#place();
    if (typeof this.#step === 'number') return [file, `${above}[${this.#step}]`];
    return [file, above === '' ? this.#step : `${above}.${this.#step}`];
  }

  /** The error for this place. */
  wrong(wanted: string, got: string = show(this.#value)): FettleError {
    const [file, key] = this.#place();
    const place = key === '' ? file : `${file}: ${key}`;
    return new FettleError('BUNDLE_CORRUPT', `${place}: wanted ${wanted}, got ${got}.`, {
      at: key === '' ? { file } : { file, key },
      fix: renew,
    });
  }

  /** Whether an object has this key with a value other than undefined. */
  has(key: string): boolean {
    return Object.hasOwn(this.object(), key);
  }

  /** The value under a key of an object; absent keys read as undefined and fail in the next step. */
  get(key: string): Checked {
    const object = this.object();
    const value = Object.hasOwn(object, key) ? object[key] : undefined;
    return new Checked(value, this, key);
  }

  /** A plain object. */
  object(): Readonly<Record<string, unknown>> {
    const value = this.#value;
    if (typeof value !== 'object' || value === null || Array.isArray(value))
      throw this.wrong('an object');
    return value as Readonly<Record<string, unknown>>;
  }

  /** The values of an object, each read through `read`. */
  record<T>(read: (item: Checked) => T, most = 65_536): Readonly<Record<string, T>> {
    const keys = Object.keys(this.object());
    if (keys.length > most) throw this.wrong(`at most ${most} keys`, `${keys.length}`);
    return Object.fromEntries(keys.map((key) => [key, read(this.get(key))]));
  }

  /** A list, each item read through `read`. */
  list<T>(read: (item: Checked) => T, most = 65_536): readonly T[] {
    const value = this.#value;
    if (!Array.isArray(value)) throw this.wrong('a list');
    if (value.length > most) throw this.wrong(`at most ${most} entries`, `${value.length}`);
    return value.map((item, i) => read(new Checked(item, this, i)));
  }

  /** A string of 1 (or `least`) to `most` characters. */
  string(most = 4096, least = 1): string {
    const value = this.#value;
    if (typeof value !== 'string') throw this.wrong('a string');
    if (value.length < least || value.length > most)
      throw this.wrong(`a string of ${least} to ${most} characters`, `${value.length}`);
    return value;
  }

  /** A whole number in a range. */
  integer(least = 0, most: number = Number.MAX_SAFE_INTEGER): number {
    const value = this.#value;
    if (typeof value !== 'number' || !Number.isSafeInteger(value))
      throw this.wrong('a whole number');
    if (value < least || value > most) throw this.wrong(`${least} to ${most}`);
    return value;
  }

  /** A finite number in a range. */
  number(least: number = -Infinity, most: number = Infinity): number {
    const value = this.#value;
    if (typeof value !== 'number' || !Number.isFinite(value)) throw this.wrong('a finite number');
    if (value < least || value > most) throw this.wrong(`${least} to ${most}`);
    return value;
  }

  /** true or false. */
  boolean(): boolean {
    if (typeof this.#value !== 'boolean') throw this.wrong('true or false');
    return this.#value;
  }

  /** One of a few strings. */
  oneOf<const T extends string>(choices: readonly T[]): T {
    const found = choices.find((choice) => choice === this.#value);
    if (found === undefined) throw this.wrong(choices.map((c) => `"${c}"`).join(' or '));
    return found;
  }

  /** Whatever is there. */
  raw(): unknown {
    return this.#value;
  }
}

/**
 * Parses JSON text of a bundle's file.
 *
 * @throws {@link FettleError} BUNDLE_CORRUPT when the bytes are not UTF-8 JSON
 */
export function parseJson(bytes: Uint8Array, file: string): Checked {
  try {
    return new Checked(JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes)), file);
  } catch (cause) {
    throw new FettleError('BUNDLE_CORRUPT', `Cannot read "${file}": it is not JSON.`, {
      at: { file },
      fix: renew,
      cause,
    });
  }
}

function show(value: unknown): string {
  if (value === undefined) return 'nothing';
  if (Array.isArray(value)) return 'a list';
  if (typeof value === 'object' && value !== null) return 'an object';
  const text = JSON.stringify(value) ?? typeof value;
  return text.length > 60 ? `${text.slice(0, 60)}…` : text;
}
