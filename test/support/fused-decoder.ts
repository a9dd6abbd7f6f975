/**
 * A small decoder written in fused ops, as the fusion passes leave one, with seeded weights: for tests
 * of what comes after fusion.
 */
import { Algebra } from '../../compiler/algebra/algebra.ts';
import type { Attributes } from '../../compiler/ir/attribute.ts';
import { float, int, string } from '../../compiler/ir/attribute.ts';
import type { Model, Value } from '../../compiler/ir/graph.ts';
import { dequantizeAttributes } from '../../compiler/ops/quantized.ts';
import { parseFormat } from '../../compiler/quant/formats.ts';
import { quantizeToCodebook } from '../../compiler/quant/learned-codebook.ts';
import { quantizeMatrix } from '../../compiler/quant/matrix.ts';
import type { DecoderSpec } from '../../runtime/manifest.ts';
import { fromHalfArray, toHalfArray } from '../../runtime/half.ts';
import { ModelBuilder } from './model-builder.ts';
import { normalValues } from './random-values.ts';

const algebra = await Algebra.create();

/** Shape of a test decoder. */
export interface FusedDecoderOptions {
  /** Weight format; `f32` by default. */
  readonly format?: string;
  /** q, k and v in one matrix. */
  readonly packed?: boolean;
  /** Norms of q and k heads. */
  readonly headNorms?: boolean;
  /** Keys a query sees. */
  readonly window?: number;
  /** Whether the head is the table. Default true. */
  readonly tied?: boolean;
  /** Most tokens. Default 48. */
  readonly context?: number;
}

const [layers, width, heads, kvHeads, size, hidden, vocabulary] = [
  2, 64, 4, 2, 16, 96, 80,
] as const;

/** The model and how it is driven. */
export function fusedDecoder(options: FusedDecoderOptions = {}): {
  readonly model: Model;
  readonly decoder: DecoderSpec;
} {
  const { format = 'f32', packed = false, headNorms = false, window = 0, tied = true } = options;
  const context = options.context ?? 48;
  const b = new ModelBuilder(21, { fettle: 1 });
  let seed = 1;
  const fettle = (
    op: string,
    inputs: (Value | undefined)[],
    attributes: Attributes,
    outputs = 1,
  ): readonly Value[] => {
    const node = b.rewriter.node(op, inputs, attributes, {
      domain: 'fettle',
      outputs,
      name: `${op}${seed}`,
    });
    return node.outputs.flatMap((value) => (value === undefined ? [] : [value]));
  };
  const one = (values: readonly Value[]): Value => {
    const [first] = values;
    if (first === undefined) throw new Error('no output');
    return first;
  };
  const matrix = (name: string, rows: number, columns: number): Value => {
    const values = normalValues(rows * columns, seed++).map((x) => x / Math.sqrt(columns));
    const chosen = parseFormat(format);
    if (chosen.kind === 'float') {
      const exact = chosen.dtype === 'f16' ? fromHalfArray(toHalfArray(values)) : values;
      return b.floats(name, [rows, columns], exact);
    }
    const source = {
      rows,
      columns,
      read: (start: number, count: number) =>
        values.subarray(start * columns, (start + count) * columns),
    };
    // two codebooks where whole tiles of rows have one each
    const result =
      chosen.kind === 'codebook'
        ? quantizeToCodebook(source, chosen, { codebooks: rows % 32 === 0 ? 2 : 1 })
        : quantizeMatrix(source, chosen, algebra, false);
    if ('refused' in result) throw new Error(result.refused);
    const { codes, scales, zeros, codebook, bits, group } = result.matrix;
    const parts: (Value | undefined)[] = [
      b.constant(`${name}.codes`, { dtype: 'u8', shape: [rows, codes.length / rows], data: codes }),
      b.constant(`${name}.scales`, {
        dtype: 'f16',
        shape: [rows, scales.length / rows],
        data: scales,
      }),
    ];
    if (zeros !== undefined)
      parts.push(
        b.constant(`${name}.zeros`, {
          dtype: 'u8',
          shape: [rows, zeros.length / rows],
          data: zeros,
        }),
      );
    if (codebook !== undefined) {
      const shape = [codebook.length / 16, 16];
      parts.push(undefined, b.constant(`${name}.codebook`, { dtype: 'i8', shape, data: codebook }));
    }
    const attributes = dequantizeAttributes({
      bits,
      group,
      columns,
      transposed: false,
      dtype: 'f32',
    });
    return one(fettle('Dequantize', parts, attributes));
  };
  const gain = (name: string, count: number): Value =>
    b.floats(
      name,
      [count],
      normalValues(count, seed++).map((x) => 1 + x / 10),
    );
  const linear = (x: Value, name: string, columns: number, rows: number, residual?: Value): Value =>
    one(
      fettle('Linear', [x, matrix(name, rows, columns), undefined, residual], {
        transposed: int(1),
      }),
    );

  const ids = b.input('input_ids', ['batch', 'sequence'], 'i64');
  const pasts = Array.from({ length: layers }, (_, layer) =>
    (['key', 'value'] as const).map((part) =>
      b.input(`past.${layer}.${part}`, ['batch', kvHeads, 'past', size]),
    ),
  );
  const table = matrix('embed', vocabulary, width);
  let x = b.op('Gather', [table, ids]);
  const angles = Array.from({ length: context * (size / 2) }, (_, i) => {
    const pair = i % (size / 2);
    return Math.floor(i / (size / 2)) * 10_000 ** (-pair / (size / 2));
  });
  const cos = b.floats('cos', [context, size / 2], Float32Array.from(angles, Math.cos));
  const sin = b.floats('sin', [context, size / 2], Float32Array.from(angles, Math.sin));
  const presents: [string, Value][] = [];
  const rms = { kind: string('rms'), epsilon: float(1e-5) };
  for (let layer = 0; layer < layers; layer++) {
    const normed = one(fettle('Norm', [x, gain(`n${layer}`, width)], rms));
    const qkv = packed
      ? [linear(normed, `qkv${layer}`, width, (heads + 2 * kvHeads) * size), undefined, undefined]
      : [
          linear(normed, `q${layer}`, width, heads * size),
          linear(normed, `k${layer}`, width, kvHeads * size),
          linear(normed, `v${layer}`, width, kvHeads * size),
        ];
    const gains = headNorms ? [gain(`qn${layer}`, size), gain(`kn${layer}`, size)] : [];
    const [pastKey, pastValue] = pasts[layer] ?? [];
    const [attended, key, value] = fettle(
      'Attention',
      [...qkv, pastKey, pastValue, cos, sin, undefined, undefined, undefined, undefined, ...gains],
      {
        heads: int(heads),
        kvHeads: int(kvHeads),
        headSize: int(size),
        scale: float(size ** -0.5),
        causal: int(1),
        window: int(window),
        rotaryDims: int(size),
        normEpsilon: float(1e-6),
      },
      3,
    );
    if (attended === undefined || key === undefined || value === undefined)
      throw new Error('outputs');
    presents.push([`present.${layer}.key`, key], [`present.${layer}.value`, value]);
    x = linear(attended, `o${layer}`, heads * size, width, x);
    const second = one(fettle('Norm', [x, gain(`m${layer}`, width)], rms));
    const gated = one(
      fettle(
        'GatedLinear',
        [second, matrix(`g${layer}`, hidden, width), matrix(`u${layer}`, hidden, width)],
        {
          transposed: int(1),
          activation: string('silu'),
        },
      ),
    );
    x = linear(gated, `d${layer}`, hidden, width, x);
  }
  const last = one(fettle('Norm', [x, gain('nf', width)], rms));
  const logits = tied
    ? one(fettle('Linear', [last, table], { transposed: int(1) }))
    : linear(last, 'head', width, vocabulary);
  b.output('logits', logits);
  for (const [name, value] of presents) b.output(name, value);
  const shape = ['batch', kvHeads, 'past', size];
  return {
    model: b.model,
    decoder: {
      ids: 'input_ids',
      logits: 'logits',
      vocabulary,
      contextLength: context,
      state: presents.map(([output]) => ({
        input: output.replace('present', 'past'),
        output,
        dtype: 'f32' as const,
        shape,
        axis: 2,
      })),
      endIds: [],
    },
  };
}
