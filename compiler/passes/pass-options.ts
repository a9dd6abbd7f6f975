/** The entry of a pass in the list, and the checking of its options. */
import { FettleError, nearest } from '../../runtime/errors.ts';
import type { Pass } from './pass.ts';

/** One line of the list of passes. */
export interface PassEntry {
  /** Pass id. */
  readonly name: string;
  /** One line for `fettle passes`. */
  readonly summary: string;
  /** Every option with its default. */
  readonly defaults: Readonly<Record<string, unknown>>;
  /**
   * Makes the pass.
   *
   * @param options - option names and the types of their values are checked
   * @throws FettleError USAGE for an option the pass does not have, or one of the wrong type
   */
  create(options?: Readonly<Record<string, unknown>>): Pass;
}

/**
 * An entry of the list of passes.
 *
 * @param summary - one line for `fettle passes`
 * @param defaults - every option with its default; their names and types are what is accepted
 * @param factory - makes the pass
 */
export function passEntry<Options extends object>(
  summary: string,
  defaults: Required<Options>,
  factory: (options?: Options) => Pass,
): PassEntry {
  const { name } = factory();
  return {
    name,
    summary,
    defaults: { ...defaults },
    create(options = {}): Pass {
      checkOptions(name, options, { ...defaults });
      return factory(options as Options);
    },
  };
}

function checkOptions(
  pass: string,
  options: Readonly<Record<string, unknown>>,
  defaults: Readonly<Record<string, unknown>>,
): void {
  const names = Object.keys(defaults);
  for (const [option, value] of Object.entries(options)) {
    const at = { pass, option };
    if (!Object.hasOwn(defaults, option)) {
      const guess = nearest(option, names);
      throw new FettleError('USAGE', `Pass "${pass}" has no option "${option}".`, {
        at,
        fix:
          guess !== undefined
            ? `Did you mean "${guess}"?`
            : names.length === 0
              ? 'It takes no options.'
              : `Use one of: ${names.join(', ')}.`,
      });
    }
    const wanted = kindOf(defaults[option]);
    const seen = kindOf(value);
    if (seen !== wanted)
      throw new FettleError('USAGE', `Option "${option}" of "${pass}" is ${seen}, not ${wanted}.`, {
        at,
        fix: `Write it like its default, ${JSON.stringify(defaults[option])}.`,
      });
  }
}

function kindOf(value: unknown): string {
  if (Array.isArray(value)) return 'a list';
  if (value === null) return 'null';
  return typeof value === 'object' ? 'an object' : `a ${typeof value}`;
}
