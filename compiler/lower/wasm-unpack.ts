/**
 * Weights that are stored in codes and computed with as f32: filters of convolutions, recurrent weights.
 * The bundle holds the codes as they are; a step that runs once, when the plan is loaded, unpacks them
 * into memory that stays.
 *
 *   Conv(x, Reshape(fettle.Dequantize(codes, scales)))   ->   init: UNPACK codes -> f32;  body: CONV
 */
import type { Node, Value } from '../ir/graph.ts';
import { isDequantize, readDequantize } from '../ops/quantized.ts';
import type { CodeBits } from '../quant/formats.ts';
import { codebookFormat, integerFormat } from '../quant/formats.ts';
import type { Address, Buffer, Word } from './plan.ts';
import { addressOf } from './plan.ts';
import type { Lowering } from './wasm-context.ts';

/** Ops that keep the order of the bytes. */
const views: ReadonlySet<string> = new Set([
  'Reshape',
  'Cast',
  'Identity',
  'Squeeze',
  'Unsqueeze',
  'Flatten',
]);

/** The Dequantize node that a value is made by, perhaps in another shape. */
export function dequantizeBehind(value: Value): Node | undefined {
  let { producer } = value;
  while (producer?.domain === '' && views.has(producer.op)) producer = producer.inputs[0]?.producer;
  if (!isDequantize(producer)) return undefined;
  const isConstant = producer.inputs.every(
    (input) => input === undefined || input.weight !== undefined,
  );
  return isConstant ? producer : undefined;
}

/**
 * Where the values of a Dequantize node are, row-major as its output reads; adds the step that puts
 * them there.
 *
 * @param turned - in the other orientation instead
 * @returns f32 in the state, which outlives calls
 */
export function unpackWeights(lowering: Lowering, node: Node, turned: boolean): Buffer {
  const [codes, scales, zeros, codebook] = node.inputs;
  const { bits, group, columns, transposed } = readDequantize(node);
  const byColumns = transposed !== turned;
  const rows = Number(codes?.shape?.[0] ?? 0);
  const size = group >= columns ? 'channel' : group;
  const format = (
    codebook === undefined
      ? integerFormat(bits as CodeBits, size, zeros === undefined)
      : codebookFormat(group)
  ).name;
  const stored = (value: Value | undefined): Address | undefined => {
    const weight = value?.weight;
    if (value === undefined || weight === undefined) return undefined;
    const key = `stored ${lowering.idOf(weight)}`;
    return addressOf(lowering.weight(key, value.name, () => ({ weight, format })));
  };
  const word = (value: Value | undefined): Word => stored(value) ?? 0;
  const buffer = lowering.cache(`${node.name || 'weights'} as f32`, rows * columns * 4);
  const books = Number(codebook?.shape?.[0] ?? 1);
  lowering.once(() =>
    lowering.emit(
      'UNPACK',
      {
        CODES: word(codes),
        SCALES: word(scales),
        ZEROS: word(zeros),
        CODEBOOK: word(codebook),
        BOOKROWS: rows / books,
        Y: addressOf(buffer),
        YROW: byColumns ? 4 : columns * 4,
        YCOLUMN: byColumns ? rows * 4 : 4,
        ROWS: rows,
        COLUMNS: columns,
        BITS: bits,
        GROUP: Math.min(group, columns),
      },
      { why: `${format} to f32, once` },
    ),
  );
  return buffer;
}
