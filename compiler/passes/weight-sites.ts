/**
 * Where a model multiplies by constant matrices: which input of which node, and how that input reads as
 * a matrix of output channels (rows) by inputs (columns), the axis that quantization groups run along.
 *
 *     MatMul(x, w [K, N])                  rows N, columns K, stored transposed
 *     Gemm(x, w [N, K], transB = 1)        rows N, columns K
 *     fettle.Linear, fettle.GatedLinear    as MatMul, or rows first when `transposed`
 *     MatMul(x, Transpose(t [V, D]))       rows V, columns D
 *     Gather(t [V, D], ids)                rows V, columns D
 *     Conv(x, w [M, C, kh, kw])            rows M, columns C·kh·kw
 *     LSTM(x, w [d, 4H, I], r [d, 4H, H])  rows d·4H, columns I or H
 */
import type { Node, Value } from '../ir/graph.ts';

/** What kind of op reads a matrix. */
export type SiteKind = 'linear' | 'table' | 'convolution' | 'recurrent';

/** One input of one node that is a constant matrix. */
export interface WeightSite {
  /** The node. */
  readonly node: Node;
  /** Its input. */
  readonly index: number;
  /** What kind of op it is. */
  readonly kind: SiteKind;
  /** The constant, behind a Transpose or a Cast perhaps. */
  readonly constant: Value;
  /** Output channels. */
  readonly rows: number;
  /** Inputs. */
  readonly columns: number;
  /** Whether the constant is stored [columns, rows]. */
  readonly storedTransposed: boolean;
  /** Whether the node reads [columns, rows]. */
  readonly readTransposed: boolean;
  /** Shape the node reads. */
  readonly shape: readonly number[];
  /** Groups of a convolution; 1 elsewhere. */
  readonly convolutionGroups: number;
}

/** A node that reads a constant in a way that is not a site, and why not. */
export interface NoSite {
  /** Why. */
  readonly why: string;
}

/** How the matrix of an input reads. */
interface Reading {
  readonly kind: SiteKind;
  /** Whether the node reads [columns, rows]; only for rank 2. */
  readonly transposed: boolean;
  /** Leading dimensions that are output channels. */
  readonly rowAxes: number;
  readonly rank: (rank: number) => boolean;
}

const matrix = (rank: number): boolean => rank === 2;

/** Per op, for each input that can be a matrix of weights: how it reads, or why it does not. */
const readers: Readonly<
  Record<string, (node: Node, index: number) => Reading | NoSite | undefined>
> = {
  MatMul: (_, index) => (index === 1 ? linear(true) : undefined),
  'com.microsoft.FusedMatMul': (node, index) =>
    index === 1 ? linear(node.int('transB', 0) === 0) : undefined,
  Gemm: (node, index) => (index === 1 ? linear(node.int('transB', 0) === 0) : undefined),
  'fettle.Linear': (node, index) =>
    index === 1 ? linear(node.int('transposed', 0) === 0) : undefined,
  'fettle.GatedLinear': (node, index) =>
    index === 1 || index === 2 ? linear(node.int('transposed', 0) === 0) : undefined,
  Gather: (node, index) => {
    if (index !== 0) return undefined;
    if (node.int('axis', 0) !== 0)
      return { why: 'it is gathered along another axis than the first' };
    return { kind: 'table', transposed: false, rowAxes: 1, rank: matrix };
  },
  Conv: convolution,
  'fettle.Conv': convolution,
  LSTM: recurrent,
  GRU: recurrent,
  RNN: recurrent,
};

/**
 * Reads one input of a node as a constant matrix.
 *
 * @returns undefined when the input is no constant of rank 2 or more, or the op does not multiply by it
 */
export function weightSite(node: Node, index: number): WeightSite | NoSite | undefined {
  const input = node.inputs[index];
  const origin = input === undefined ? undefined : originOf(input);
  const stored = origin?.constant.weight;
  if (origin === undefined || stored === undefined || stored.shape.length < 2) return undefined;
  const key = node.domain === '' ? node.op : `${node.domain}.${node.op}`;
  const reading = readers[key]?.(node, index);
  if (reading === undefined || 'why' in reading) return reading;
  const shape = origin.transposed ? stored.shape.toReversed() : stored.shape;
  if (!reading.rank(shape.length)) return { why: `it has rank ${shape.length}` };
  const [lead, rest] = [shape.slice(0, reading.rowAxes), shape.slice(reading.rowAxes)];
  const outer = lead.reduce((product, dim) => product * dim, 1);
  const inner = rest.reduce((product, dim) => product * dim, 1);
  return {
    node,
    index,
    kind: reading.kind,
    constant: origin.constant,
    rows: reading.transposed ? inner : outer,
    columns: reading.transposed ? outer : inner,
    storedTransposed: origin.transposed !== reading.transposed,
    readTransposed: reading.transposed,
    shape,
    convolutionGroups: node.op === 'Conv' ? node.int('group', 1) : 1,
  };
}

/**
 * The nodes that read a constant in the end, looking through Transpose of a matrix, Cast and Identity.
 */
export function readersOf(constant: Value): readonly (readonly [node: Node, index: number])[] {
  const found: (readonly [Node, number])[] = [];
  for (const node of constant.users.keys()) {
    const output = node.outputs[0];
    if (output !== undefined && passesThrough(node)) found.push(...readersOf(output));
    else
      node.inputs.forEach((input, index) => {
        if (input === constant) found.push([node, index]);
      });
  }
  return found;
}

/** Whether a constant, or what a Transpose or Cast makes of it, leaves its graph. */
export function leavesGraph(constant: Value): boolean {
  if (constant.isOutput) return true;
  return [...constant.users.keys()].some(
    (node) => passesThrough(node) && node.outputs[0] !== undefined && leavesGraph(node.outputs[0]),
  );
}

/** The constant behind a value. */
function originOf(
  value: Value,
): { readonly constant: Value; readonly transposed: boolean } | undefined {
  if (value.weight !== undefined) return { constant: value, transposed: false };
  const { producer } = value;
  const source = producer?.inputs[0];
  if (producer === undefined || source === undefined || !passesThrough(producer)) return undefined;
  const origin = originOf(source);
  if (origin === undefined || producer.op !== 'Transpose') return origin;
  return { constant: origin.constant, transposed: !origin.transposed };
}

const floats: ReadonlySet<string | undefined> = new Set(['f32', 'f16', 'bf16', 'f64']);

function passesThrough(node: Node): boolean {
  if (node.domain !== '') return false;
  if (node.op === 'Identity') return true;
  if (node.op === 'Cast') return floats.has(node.outputs[0]?.dtype);
  if (node.op !== 'Transpose') return false;
  const perm = node.ints('perm');
  const rank = node.inputs[0]?.shape?.length;
  return rank === 2 && (perm === undefined || (perm[0] === 1 && perm[1] === 0));
}

function convolution(_: Node, index: number): Reading | undefined {
  if (index !== 1) return undefined;
  return { kind: 'convolution', transposed: false, rowAxes: 1, rank: (rank) => rank >= 3 };
}

function linear(transposed: boolean): Reading {
  return { kind: 'linear', transposed, rowAxes: 1, rank: matrix };
}

function recurrent(_: Node, index: number): Reading | undefined {
  if (index !== 1 && index !== 2) return undefined;
  return { kind: 'recurrent', transposed: false, rowAxes: 2, rank: (rank) => rank === 3 };
}
