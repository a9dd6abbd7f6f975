/**
 * Symbolic dimensions. A dimension is a number, or the canonical text of an integer expression over
 * named sizes: `batch`, `past + sequence`, `2*width - 1`, `floordiv(height, 2)`, `max(a, 1)`.
 *
 * Sums of products are kept in one normal form, so two dimensions are known to be equal exactly when
 * their texts are. What has no normal form (floor division, max, min) becomes an atom with a printed
 * name. A size nobody named is an atom too: `?1`, `?2`, … each equal only to itself. An ONNX
 * `dim_param` that does not parse as such an expression is one atom, quoted with backticks.
 */
import { FettleError } from '../../runtime/errors.ts';

/** A known size, or the canonical text of a symbolic one. */
export type Dim = number | string;

/** Dimensions of a value of known rank. */
export type Shape = readonly Dim[];

/** Sum of products: monomial (atoms joined by `*`, sorted; '' for the constant) -> coefficient. */
type Polynomial = Map<string, number>;

const parsed = new Map<string, Polynomial>();

/** Sum of dimensions. */
export function addDims(...dims: readonly Dim[]): Dim {
  if (dims.every((dim) => typeof dim === 'number')) return dims.reduce<number>((a, b) => a + b, 0);
  const sum: Polynomial = new Map();
  for (const dim of dims) accumulate(sum, polynomial(dim), 1);
  return print(sum);
}

/** `a - b`. */
export function subtractDims(a: Dim, b: Dim): Dim {
  return addDims(a, multiplyDims(-1, b));
}

/** Product of dimensions; 1 for none. */
export function multiplyDims(...dims: readonly Dim[]): Dim {
  if (dims.every((dim) => typeof dim === 'number')) return dims.reduce<number>((a, b) => a * b, 1);
  return print(dims.map(polynomial).reduce(product, new Map([['', 1]])));
}

/** `floor(a / b)`; exact when every term of `a` is divisible by the single term `b`. */
export function divideDims(a: Dim, b: Dim): Dim {
  if (b === 1) return a;
  if (a === b) return 1;
  if (typeof a === 'number' && typeof b === 'number')
    return b === 0 ? atomOf('floordiv', a, b) : Math.floor(a / b);
  const quotient = exactQuotient(polynomial(a), polynomial(b));
  return quotient === undefined ? atomOf('floordiv', a, b) : print(quotient);
}

/** `ceil(a / b)`. */
export function ceilDivideDims(a: Dim, b: Dim): Dim {
  const exact = divideDims(a, b);
  if (typeof a !== 'number' && typeof exact !== 'number' && !exact.startsWith('floordiv('))
    return exact;
  return divideDims(addDims(a, b, -1), b);
}

/** The remainder of floor division. */
export function moduloDims(a: Dim, b: Dim): Dim {
  return subtractDims(a, multiplyDims(b, divideDims(a, b)));
}

/** The larger of two dimensions; symbolic sizes are only assumed to be integers. */
export function maxDims(a: Dim, b: Dim): Dim {
  return extreme('max', a, b);
}

/** The smaller of two dimensions. */
export function minDims(a: Dim, b: Dim): Dim {
  return extreme('min', a, b);
}

/** `a - b` when that is a known number. */
export function knownDifference(a: Dim, b: Dim): number | undefined {
  const difference = subtractDims(a, b);
  return typeof difference === 'number' ? difference : undefined;
}

/** Whether the dimension is an anonymous size or depends on one. */
export function isAnonymous(dim: Dim): boolean {
  return typeof dim === 'string' && /(^|[^`\w.])\?\d/.test(dim);
}

/** The canonical form of an ONNX `dim_param`; text that is no expression becomes one quoted atom. */
export function parseDim(text: string): Dim {
  try {
    return new Parser(text).parse();
  } catch {
    return `\`${text.replaceAll('`', "'")}\``;
  }
}

/** What an ONNX file writes for a symbolic dimension: the canonical text, without quotes. */
export function dimToText(dim: string): string {
  return /^`[^`]*`$/.test(dim) ? dim.slice(1, -1) : dim;
}

/**
 * Replaces named sizes.
 *
 * @param dim - any dimension
 * @param sizes - by name, without quotes; names not listed stay
 */
export function substituteDim(dim: Dim, sizes: ReadonlyMap<string, Dim>): Dim {
  if (typeof dim === 'number') return dim;
  return new Parser(dim, (name) => sizes.get(dimToText(name)) ?? name).parse();
}

/** Names of the sizes a dimension depends on, in order of appearance, quotes removed. */
export function symbolsOf(dim: Dim): string[] {
  if (typeof dim === 'number') return [];
  const names = new Set<string>();
  new Parser(dim, (name) => {
    names.add(dimToText(name));
    return name;
  }).parse();
  return [...names];
}

/** Whether every dimension is a number. */
export function isStatic(shape: Shape | undefined): shape is readonly number[] {
  return shape !== undefined && shape.every((dim) => typeof dim === 'number');
}

/** Number of elements of a shape. */
export function sizeOf(shape: Shape): Dim {
  return multiplyDims(...shape);
}

/** Whether two shapes have the same rank and provably the same sizes. */
export function sameShape(a: Shape | undefined, b: Shape | undefined): boolean {
  return (
    a !== undefined && b !== undefined && a.length === b.length && a.every((dim, i) => dim === b[i])
  );
}

function polynomial(dim: Dim): Polynomial {
  if (typeof dim === 'number') return new Map(dim === 0 ? [] : [['', dim]]);
  let known = parsed.get(dim);
  if (known === undefined) {
    known = new Parser(dim).polynomial();
    if (parsed.size > 10_000) parsed.clear();
    parsed.set(dim, known);
  }
  return known;
}

function accumulate(into: Polynomial, from: Polynomial, factor: number): void {
  for (const [monomial, coefficient] of from) {
    const sum = (into.get(monomial) ?? 0) + coefficient * factor;
    if (sum === 0) into.delete(monomial);
    else into.set(monomial, sum);
  }
}

function product(a: Polynomial, b: Polynomial): Polynomial {
  const result: Polynomial = new Map();
  for (const [left, x] of a)
    for (const [right, y] of b)
      accumulate(result, new Map([[[...atoms(left), ...atoms(right)].sort().join('*'), x * y]]), 1);
  return result;
}

/** Atoms of a monomial; a `*` inside parentheses or backticks belongs to an atom. */
function atoms(monomial: string): string[] {
  if (monomial === '') return [];
  const found: string[] = [];
  let depth = 0;
  let quoted = false;
  let start = 0;
  for (let i = 0; i < monomial.length; i++) {
    const character = monomial[i];
    if (character === '`') quoted = !quoted;
    else if (quoted) continue;
    else if (character === '(') depth++;
    else if (character === ')') depth--;
    else if (character === '*' && depth === 0) {
      found.push(monomial.slice(start, i));
      start = i + 1;
    }
  }
  found.push(monomial.slice(start));
  return found;
}

function exactQuotient(a: Polynomial, b: Polynomial): Polynomial | undefined {
  if (b.size !== 1) {
    // (k·b) / b: the same sum of products, scaled
    const [first] = b;
    const ratio = first === undefined ? undefined : (a.get(first[0]) ?? 0) / first[1];
    if (ratio === undefined || !Number.isInteger(ratio) || a.size !== b.size) return undefined;
    for (const [monomial, coefficient] of b)
      if (a.get(monomial) !== coefficient * ratio) return undefined;
    return new Map([['', ratio]]);
  }
  const [[monomial, coefficient]] = [...b] as [[string, number]];
  const divisor = atoms(monomial);
  const quotient: Polynomial = new Map();
  for (const [term, value] of a) {
    if (value % coefficient !== 0) return undefined;
    const rest = atoms(term);
    for (const atom of divisor) {
      const at = rest.indexOf(atom);
      if (at < 0) return undefined;
      rest.splice(at, 1);
    }
    quotient.set(rest.join('*'), value / coefficient);
  }
  return quotient;
}

function extreme(name: 'max' | 'min', a: Dim, b: Dim): Dim {
  const difference = knownDifference(a, b);
  if (difference !== undefined) return difference >= 0 === (name === 'max') ? a : b;
  const [first, second] = [String(a), String(b)].sort() as [string, string];
  return `${name}(${first}, ${second})`;
}

function atomOf(name: string, a: Dim, b: Dim): Dim {
  return `${name}(${a}, ${b})`;
}

function print(terms: Polynomial): Dim {
  if (terms.size === 0) return 0;
  const constant = terms.get('');
  if (terms.size === 1 && constant !== undefined) return constant;
  let text = '';
  const ordered = [...terms]
    .filter(([monomial]) => monomial !== '')
    .sort(([a], [b]) => (a < b ? -1 : 1));
  // positive terms first, so that a text starts with a minus sign only when every term is negative
  ordered.sort(([, a], [, b]) => Number(a < 0) - Number(b < 0));
  for (const [monomial, coefficient] of ordered) {
    const magnitude = Math.abs(coefficient);
    const sign = coefficient < 0 ? (text === '' ? '-' : ' - ') : text === '' ? '' : ' + ';
    text += sign + (magnitude === 1 ? monomial : `${magnitude}*${monomial}`);
  }
  if (constant !== undefined) text += constant < 0 ? ` - ${-constant}` : ` + ${constant}`;
  return text;
}

/** Recursive descent over `+ - * /`, parentheses, names and the named functions. */
class Parser {
  private at = 0;
  private readonly text: string;
  private readonly resolve: ((name: string) => Dim) | undefined;

  constructor(text: string, resolve?: (name: string) => Dim) {
    this.text = text;
    this.resolve = resolve;
  }

  parse(): Dim {
    return print(this.polynomial());
  }

  polynomial(): Polynomial {
    const result = this.sum();
    this.skipSpace();
    if (this.at < this.text.length) this.fail();
    return result;
  }

  private sum(): Polynomial {
    const total: Polynomial = new Map();
    let sign = this.take('-') ? -1 : 1;
    for (;;) {
      accumulate(total, this.term(), sign);
      if (this.take('+')) sign = 1;
      else if (this.take('-')) sign = -1;
      else return total;
    }
  }

  private term(): Polynomial {
    let result = this.factor();
    for (;;) {
      if (this.take('*')) result = product(result, this.factor());
      else if (this.take('//') || this.take('/'))
        result = polynomialOf(divideDims(print(result), print(this.factor())));
      else return result;
    }
  }

  private factor(): Polynomial {
    if (this.take('(')) return this.close(this.sum());
    this.skipSpace();
    const token = /^(?:\d+|`[^`]*`|\?\d+|[A-Za-z_][\w.:]*)/.exec(this.text.slice(this.at))?.[0];
    if (token === undefined) return this.fail();
    this.at += token.length;
    if (/^\d/.test(token)) return polynomialOf(Number(token));
    if (this.take('(')) return this.call(token);
    const resolved = this.resolve?.(token) ?? token;
    return typeof resolved === 'number' || resolved !== token
      ? polynomial(resolved)
      : new Map([[token, 1]]);
  }

  private call(name: string): Polynomial {
    const args = [print(this.sum())];
    while (this.take(',')) args.push(print(this.sum()));
    this.close(new Map());
    const [a, b] = args as [Dim, Dim | undefined];
    // exporters write floor(x / 2); division here floors already
    if ((name === 'floor' || name === 'int') && b === undefined) return polynomialOf(a);
    if (b === undefined) return this.fail();
    if (name === 'floordiv') return polynomialOf(divideDims(a, b));
    if (name === 'max' || name === 'Max') return polynomialOf(maxDims(a, b));
    if (name === 'min' || name === 'Min') return polynomialOf(minDims(a, b));
    return this.fail();
  }

  private close(result: Polynomial): Polynomial {
    return this.take(')') ? result : this.fail();
  }

  private take(symbol: string): boolean {
    this.skipSpace();
    if (!this.text.startsWith(symbol, this.at)) return false;
    this.at += symbol.length;
    return true;
  }

  private skipSpace(): void {
    while (this.text[this.at] === ' ') this.at++;
  }

  private fail(): never {
    throw new FettleError('SHAPE_UNKNOWN', `Cannot read the dimension "${this.text}".`, {
      at: { offset: this.at },
      fix: 'Write a number, a name, or sums and products of them.',
    });
  }
}

/** The polynomial of a result; an atom with parentheses is a monomial, not text to parse again. */
function polynomialOf(dim: Dim): Polynomial {
  if (typeof dim === 'string' && /^(floordiv|max|min)\(/.test(dim) && closesAtEnd(dim))
    return new Map([[dim, 1]]);
  return polynomial(dim);
}

function closesAtEnd(text: string): boolean {
  let depth = 0;
  for (let i = 0; i < text.length; i++) {
    if (text[i] === '(') depth++;
    else if (text[i] === ')' && --depth === 0) return i === text.length - 1;
  }
  return false;
}
