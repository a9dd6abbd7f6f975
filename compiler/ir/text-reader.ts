/** Reads words, numbers and symbols off a text, and says where something is wrong. */
import { FettleError } from '../../runtime/errors.ts';

const NUMBER = /(?:-?(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?|inf)|nan|true|false)(?![\w.])/y;
const WORD = /[A-Za-z_/][\w./-]*/y;
const STRING = /"(?:[^"\\]|\\.)*"/y;
const BLANK = /(?:\s|\/\/[^\n]*)*/y;

/** A position in a text. White space and `//` comments are skipped before everything. */
export class TextReader {
  private readonly text: string;
  private at = 0;

  constructor(text: string) {
    this.text = text;
    this.skip();
  }

  /** Whether the symbol or whole word comes next. */
  peeks(symbol: string): boolean {
    if (!this.text.startsWith(symbol, this.at)) return false;
    // "graph" does not begin "graphs", and "_" does not begin "_x"
    return (
      !/\w$/.test(symbol) ||
      !/^[\w./-]/.test(this.text.slice(this.at + symbol.length, this.at + symbol.length + 1))
    );
  }

  /** Takes the symbol or word when it comes next. */
  takes(symbol: string): boolean {
    if (!this.peeks(symbol)) return false;
    this.at += symbol.length;
    this.skip();
    return true;
  }

  /** Takes the symbol or word; throws when something else comes next. */
  expect(symbol: string): void {
    if (!this.takes(symbol)) this.fail(`expected "${symbol}"`);
  }

  /** A bare word or a quoted string. */
  name(): string {
    return this.peeks('"') ? this.string() : (this.match(WORD) ?? this.fail('expected a name'));
  }

  /** A quoted string, unescaped. */
  string(): string {
    const literal = this.match(STRING) ?? this.fail('expected a string');
    try {
      return JSON.parse(literal) as string;
    } catch (error) {
      return this.fail('the string has a bad escape', error);
    }
  }

  /** Whether a number comes next. */
  peeksNumber(): boolean {
    NUMBER.lastIndex = this.at;
    return NUMBER.test(this.text);
  }

  /** A number, `inf`, `nan`, `true` or `false`, as written. */
  number(): string {
    return this.match(NUMBER) ?? this.fail('expected a number');
  }

  /** The parts of `[a, f(b, c)]`, split at the commas that are in no parentheses or backticks. */
  bracketed(): string[] {
    this.expect('[');
    const parts: string[] = [];
    let start = this.at;
    let depth = 0;
    let quoted = false;
    for (; this.at < this.text.length; this.at++) {
      const character = this.text[this.at];
      if (character === '`') quoted = !quoted;
      else if (quoted) continue;
      else if (character === '(') depth++;
      else if (character === ')') depth--;
      else if (depth === 0 && (character === ',' || character === ']')) {
        const part = this.text.slice(start, this.at).trim();
        if (part !== '') parts.push(part);
        else if (character === ',' || parts.length > 0) this.fail('expected a size');
        start = this.at + 1;
        if (character === ']') break;
      }
    }
    this.expect(']');
    return parts;
  }

  /** Throws unless the text ends here. */
  end(): void {
    if (this.at < this.text.length) this.fail('expected the end of the text');
  }

  /** Throws with line and column. */
  fail(problem: string, cause?: unknown): never {
    const before = this.text.slice(0, this.at).split('\n');
    const line = before.length;
    const column = (before.at(-1) ?? '').length + 1;
    const seen = this.text.slice(this.at, this.at + 20).split('\n')[0] ?? '';
    throw new FettleError(
      'MODEL_INVALID',
      `Cannot read the graph at line ${line}, column ${column}: ${problem}, at "${seen}".`,
      { at: { line, column }, fix: 'Write the graph as `fettle … --dump` does.', cause },
    );
  }

  private match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.at;
    const found = pattern.exec(this.text)?.[0];
    if (found === undefined) return undefined;
    this.at += found.length;
    this.skip();
    return found;
  }

  private skip(): void {
    BLANK.lastIndex = this.at;
    this.at += BLANK.exec(this.text)?.[0].length ?? 0;
  }
}
