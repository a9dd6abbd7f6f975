/**
 * Finds the quantized weights of a graph: `fettle.Dequantize` nodes grouped by the codes they share,
 * and who reads them.
 */
import { assert } from '../../runtime/errors.ts';
import type { DType } from '../../runtime/tensor.ts';
import type { Model, Node, Value } from '../ir/graph.ts';
import { isDequantize, readDequantize } from '../ops/quantized.ts';
import { integerFormat } from '../quant/formats.ts';
import { codebookFormat } from '../quant/formats.ts';
import type { CodeBits } from '../quant/formats.ts';
import type { QuantizedMatrix } from '../quant/matrix.ts';
import { groupCount, withoutCodebook } from '../quant/matrix.ts';

/** One input of one node that reads a dequantized weight. */
export interface QuantizedUse {
  /** The reader. */
  readonly node: Node;
  /** Its input. */
  readonly index: number;
  /** The Dequantize node whose output it reads. */
  readonly dequantize: Node;
  /** Whether it reads [columns, rows]. */
  readonly transposed: boolean;
  /** Dtype it reads. */
  readonly dtype: DType;
}

/** Dequantize nodes over one set of codes. */
export interface QuantizedGroup {
  /** What the codes were called before: the constant that was quantized. */
  readonly name: string;
  /** The nodes, in the order of the graph. */
  readonly nodes: readonly [Node, ...Node[]];
  /** Who reads them, in the order of the nodes. */
  readonly uses: readonly QuantizedUse[];
  /** The constants. */
  readonly constants: {
    readonly codes: Value;
    readonly scales: Value;
    readonly zeros: Value | undefined;
    readonly codebook: Value | undefined;
  };
  /** Output channels. */
  readonly rows: number;
  /** Inputs. */
  readonly columns: number;
  /** Bits of a code of {@link matrixOf}: 8 where a codebook is written out. */
  readonly bits: CodeBits;
  /** Inputs that share a scale; `columns` for one scale per output channel. */
  readonly group: number;
  /** Scales per output channel. */
  readonly groups: number;
  /** Whether no zero points are stored. */
  readonly symmetric: boolean;
  /** Name of the number format. */
  readonly format: string;
}

/** Every quantized weight of a model, in the order of the graph. */
export function quantizedGroups(model: Model): QuantizedGroup[] {
  const byCodes = new Map<Value, [Node, ...Node[]]>();
  for (const node of model.graph.nodes()) {
    if (!isDequantize(node)) continue;
    const codes = node.input(0);
    const group = byCodes.get(codes);
    // nodes that share codes but not scales are different weights; they keep their own copies
    if (group === undefined) byCodes.set(codes, [node]);
    else group.push(node);
  }
  return [...byCodes.values()].flatMap((nodes) => splitByScales(nodes).map(groupOf));
}

/** Reads the constants of a group; codebooks become integers of 8 bits. */
export function matrixOf(group: QuantizedGroup): QuantizedMatrix {
  const { rows, columns, bits, constants } = group;
  const { codebook } = constants;
  return withoutCodebook({
    rows,
    columns,
    bits: codebook === undefined ? bits : 4,
    group: group.group,
    codes: bytesOf(constants.codes),
    scales: halvesOf(constants.scales),
    zeros: constants.zeros === undefined ? undefined : bytesOf(constants.zeros),
    codebook: codebook === undefined ? undefined : levelsOf(codebook),
  });
}

function splitByScales(nodes: readonly Node[]): [Node, ...Node[]][] {
  const bySource = new Map<string, [Node, ...Node[]]>();
  for (const node of nodes) {
    const { bits, group } = readDequantize(node);
    const parts = node.inputs.slice(1).map((input) => input?.name ?? '');
    const key = [...parts, bits, group].join('\n');
    const same = bySource.get(key);
    if (same === undefined) bySource.set(key, [node]);
    else same.push(node);
  }
  return [...bySource.values()];
}

function groupOf(nodes: [Node, ...Node[]]): QuantizedGroup {
  const [first] = nodes;
  const { bits, group, columns } = readDequantize(first);
  const [codes, scales, [zeros, codebook]] = [
    first.input(0),
    first.input(1),
    first.inputs.slice(2),
  ];
  const rows = codes.weight?.shape[0];
  assert(rows !== undefined, `${first.describe()}: codes are no constant`);
  assert(bits === 2 || bits === 3 || bits === 4 || bits === 8, `${first.describe()}: ${bits} bits`);
  const size = group >= columns ? ('channel' as const) : group;
  const uses = nodes.flatMap((dequantize): QuantizedUse[] => {
    const { transposed, dtype } = readDequantize(dequantize);
    return [...dequantize.output().users.keys()].flatMap((node) =>
      node.inputs.flatMap((input, index) =>
        input === dequantize.output() ? [{ node, index, dequantize, transposed, dtype }] : [],
      ),
    );
  });
  return {
    name: first.name === '' ? codes.name : first.name,
    nodes,
    uses,
    constants: { codes, scales, zeros, codebook },
    rows,
    columns,
    bits: codebook === undefined ? bits : 8,
    group,
    groups: groupCount({ columns, group }),
    symmetric: zeros === undefined,
    format: (codebook === undefined
      ? integerFormat(bits, size, zeros === undefined)
      : codebookFormat(group)
    ).name,
  };
}

function bytesOf(value: Value): Uint8Array<ArrayBuffer> {
  const data = value.constant()?.data;
  assert(data instanceof Uint8Array, `"${value.name}" is no u8 constant`);
  return data as Uint8Array<ArrayBuffer>;
}

function levelsOf(value: Value): Int8Array<ArrayBuffer> {
  const data = value.constant()?.data;
  assert(data instanceof Int8Array, `"${value.name}" is no i8 constant`);
  return data as Int8Array<ArrayBuffer>;
}

function halvesOf(value: Value): Uint16Array<ArrayBuffer> {
  const data = value.constant()?.data;
  assert(data instanceof Uint16Array, `"${value.name}" is no f16 constant`);
  return data as Uint16Array<ArrayBuffer>;
}
