/**
 * Bundles made by hand, for runtime tests that must not depend on the compiler: a linear model and a
 * decoder small enough to check with pencil and paper, or any graph with its weights inside.
 */
import { createHash } from 'node:crypto';
import type { NodeProto, TensorProto } from '../../compiler/onnx/schema.ts';
import { fromNumber } from '../../compiler/onnx/wire.ts';
import type { BundleSource } from '../../runtime/index.ts';
import { missingFile } from '../../runtime/index.ts';
import type {
  CanarySpec,
  DecoderSpec,
  FileSpec,
  Manifest,
  TensorSpec,
  TextSpec,
} from '../../runtime/manifest.ts';
import type { DType } from '../../runtime/tensor.ts';
import { dtypes } from '../../runtime/tensor.ts';
import { modelBytes, node, value } from './onnx.ts';

/** Files of a bundle by path. */
export type Files = Map<string, Uint8Array<ArrayBuffer>>;

/** A bundle under construction. */
export interface BundleParts {
  readonly graph: Uint8Array;
  readonly inputs: readonly TensorSpec[];
  readonly outputs: readonly TensorSpec[];
  readonly weights?: Readonly<Record<string, Float32Array<ArrayBuffer>>>;
  /** Bytes of a weight chunk. */
  readonly chunkBytes?: number;
  readonly decoder?: DecoderSpec;
  readonly text?: TextSpec;
  readonly canaries?: CanarySpec;
  readonly provider?: 'wasm' | 'webgpu';
  readonly files?: Readonly<Record<string, Uint8Array>>;
}

/** Lower-case hex SHA-256 by Node. */
export function hashOf(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

/** Makes the files of a bundle, manifest included. */
export function makeBundle(parts: BundleParts): Files {
  const files: Files = new Map();
  const own = { 'model.onnx': parts.graph, ...parts.files };
  for (const [path, bytes] of Object.entries(own)) files.set(path, new Uint8Array(bytes));
  const listed = [...files].map(([path, bytes]) => fileSpec(path, bytes));
  const { tensors, buffer } = layOut(parts.weights ?? {});
  const chunks: FileSpec[] = [];
  const chunkBytes = parts.chunkBytes ?? 200;
  for (let start = 0; start < buffer.length; start += chunkBytes) {
    const path = `weights-${String(chunks.length).padStart(2, '0')}.bin`;
    const bytes = buffer.slice(start, start + chunkBytes);
    files.set(path, bytes);
    chunks.push(fileSpec(path, bytes));
  }
  const manifest: Manifest = {
    format: 'fettle-bundle',
    version: 1,
    compiler: 'by hand',
    target: `ort-${parts.provider ?? 'wasm'}`,
    engine: 'ort',
    model: {
      name: 'tiny',
      sha256: hashOf(parts.graph),
      kind: parts.decoder === undefined ? 'model' : 'decoder',
      parameters: buffer.length / 4,
    },
    features: [],
    inputs: parts.inputs,
    outputs: parts.outputs,
    ...(parts.decoder === undefined ? {} : { decoder: parts.decoder }),
    ...(parts.text === undefined ? {} : { text: parts.text }),
    ...(parts.canaries === undefined ? {} : { canaries: parts.canaries }),
    program: {
      kind: 'onnx',
      file: 'model.onnx',
      externalData: 'weights.bin',
      provider: parts.provider ?? 'wasm',
      sessionOptions: {},
    },
    weights: { bytes: buffer.length, files: chunks, tensors },
    files: listed,
    memory: { weights: buffer.length, arena: 1000, state: 0, tokens: 0, exact: false },
    recipe: {},
    passes: [],
    warnings: [],
  };
  setManifest(files, manifest);
  return files;
}

/** Replaces the manifest by any JSON value. */
export function setManifest(files: Files, manifest: unknown): Files {
  return files.set('manifest.json', new TextEncoder().encode(JSON.stringify(manifest)));
}

/** The manifest as a plain object that a test may spoil. */
// eslint-disable-next-line typescript/no-explicit-any
export function manifestOf(files: Files): any {
  return JSON.parse(new TextDecoder().decode(files.get('manifest.json')));
}

/** A source over files in memory that streams them in pieces. */
export function memorySource(files: Files, pieceBytes = 64): BundleSource {
  return {
    name: 'memory',
    read(path) {
      const bytes = files.get(path);
      if (bytes === undefined) return Promise.reject(missingFile('memory', path));
      let offset = 0;
      return Promise.resolve(
        new ReadableStream<Uint8Array>({
          pull(controller) {
            if (offset >= bytes.length) return controller.close();
            controller.enqueue(bytes.slice(offset, offset + pieceBytes));
            offset += pieceBytes;
          },
        }),
      );
    },
  };
}

/** Packs files into one ustar archive, manifest first. */
export function packTar(files: Files): Uint8Array<ArrayBuffer> {
  const paths = ['manifest.json', ...[...files.keys()].filter((path) => path !== 'manifest.json')];
  const blocks = paths.flatMap((path) => {
    const bytes = files.get(path) ?? new Uint8Array(0);
    return [tarHeader(path, bytes.length), bytes, new Uint8Array(-bytes.length & 511)];
  });
  return Uint8Array.from(Buffer.concat([...blocks, new Uint8Array(1024)]));
}

function tarHeader(path: string, bytes: number): Uint8Array {
  const header = Buffer.alloc(512);
  header.write(path, 0);
  header.write('0000644\0' + '0000000\0' + '0000000\0', 100);
  header.write(`${bytes.toString(8).padStart(11, '0')}\0${'0'.repeat(11)}\0`, 124);
  header.write('        0', 148);
  header.write('ustar\x0000', 257);
  const sum = header.reduce((total, byte) => total + byte, 0);
  header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148);
  return header;
}

function fileSpec(path: string, bytes: Uint8Array): FileSpec {
  return { path, bytes: bytes.length, sha256: hashOf(bytes) };
}

function layOut(weights: Readonly<Record<string, Float32Array<ArrayBuffer>>>): {
  tensors: Manifest['weights']['tensors'];
  buffer: Uint8Array<ArrayBuffer>;
} {
  let end = 0;
  const tensors = Object.entries(weights).map(([name, data]) => {
    const offset = Math.ceil(end / 256) * 256;
    end = offset + data.byteLength;
    return { name, dtype: 'f32' as const, shape: [data.length], offset, bytes: data.byteLength };
  });
  const buffer = new Uint8Array(end);
  for (const [i, data] of Object.values(weights).entries())
    buffer.set(new Uint8Array(data.buffer), tensors[i]?.offset);
  return { tensors, buffer };
}

/** An f32 initializer in external data `weights.bin`. */
function external(name: string, dims: readonly number[], offset: number): TensorProto {
  const length = dims.reduce((a, b) => a * b, 1) * 4;
  return {
    name,
    dims: dims.map(fromNumber),
    dataType: 1,
    dataLocation: 1,
    externalData: [
      { key: 'location', value: 'weights.bin' },
      { key: 'offset', value: `${offset}` },
      { key: 'length', value: `${length}` },
    ],
  };
}

/** A graph from our tensor specs. */
function graphOf(
  nodes: NodeProto[],
  initializer: TensorProto[],
  inputs: readonly TensorSpec[],
  outputs: readonly TensorSpec[],
): Uint8Array {
  const info = (spec: TensorSpec): ReturnType<typeof value> =>
    value(spec.name, spec.shape, dtypes[spec.dtype].onnx);
  return modelBytes({
    node: nodes,
    initializer,
    input: inputs.map(info),
    output: outputs.map(info),
  });
}

function spec(name: string, dtype: DType, shape: TensorSpec['shape']): TensorSpec {
  return { name, dtype, shape };
}

/** `y = x W + b`, x [batch, 4], W [4, 3] counting 1 … 12, b = [100, 200, 300]. */
export function linearBundle(more: Partial<BundleParts> = {}): Files {
  const inputs = [spec('x', 'f32', ['batch', 4])];
  const outputs = [spec('y', 'f32', ['batch', 3])];
  const nodes = [node('MatMul', ['x', 'w'], ['xw']), node('Add', ['xw', 'b'], ['y'])];
  return makeBundle({
    graph: graphOf(nodes, [external('w', [4, 3], 0), external('b', [3], 256)], inputs, outputs),
    inputs,
    outputs,
    weights: {
      w: Float32Array.from({ length: 12 }, (_, i) => i + 1),
      b: Float32Array.of(100, 200, 300),
    },
    ...more,
  });
}

/** Tokens of {@link decoderBundle}. */
export const TINY_VOCABULARY = 8;

/**
 * A decoder over 8 tokens whose next token is (sum of all tokens so far) modulo 8, and whose logits also
 * show whether mask and positions were right: logits[v] = [v = sum mod 8] * 10 + mask length / 100 +
 * position / 10000. The "cache" is the list of tokens, f32 [1, 1, past, 1].
 */
export function decoderBundle(more: Partial<BundleParts> = {}): Files {
  const inputs = [
    spec('ids', 'i64', ['batch', 'sequence']),
    spec('mask', 'i64', ['batch', 'past + sequence']),
    spec('positions', 'i64', ['batch', 'sequence']),
    spec('past', 'f32', ['batch', 1, 'past', 1]),
  ];
  const outputs = [
    spec('logits', 'f32', ['batch', 'sequence', TINY_VOCABULARY]),
    spec('present', 'f32', ['batch', 1, 'past + sequence', 1]),
  ];
  const cast = (from: string, to: string): NodeProto =>
    node('Cast', [from], [to], { attribute: [{ name: 'to', type: 2, i: fromNumber(1) }] });
  const ints = (name: string, values: readonly number[]): TensorProto => ({
    name,
    dims: [fromNumber(values.length)],
    dataType: 7,
    rawData: new Uint8Array(BigInt64Array.from(values, BigInt).buffer),
  });
  const nodes = [
    cast('ids', 'tokens'),
    node('Unsqueeze', ['tokens', 'axes13'], ['tokens4']),
    node('Concat', ['past', 'tokens4'], ['present'], {
      attribute: [{ name: 'axis', type: 2, i: fromNumber(2) }],
    }),
    node('ReduceSum', ['present', 'axes123'], ['sum'], {
      attribute: [{ name: 'keepdims', type: 2, i: fromNumber(1) }],
    }), // [1, 1, 1, 1]
    node('Reshape', ['sum', 'shape11'], ['sum2']),
    node('Mod', ['sum2', 'eight'], ['next'], {
      attribute: [{ name: 'fmod', type: 2, i: fromNumber(1) }],
    }), // [1, 1]
    node('Sub', ['vocabulary', 'next'], ['difference']), // [1, 8]
    node('Abs', ['difference'], ['distance']),
    node('Less', ['distance', 'half'], ['hit']),
    cast('hit', 'hitF'),
    node('Mul', ['hitF', 'ten'], ['peak']), // [1, 8]
    cast('mask', 'maskF'),
    node('ReduceSum', ['maskF', 'axes1'], ['maskSum'], {
      attribute: [{ name: 'keepdims', type: 2, i: fromNumber(1) }],
    }), // [1, 1]
    node('Mul', ['maskSum', 'hundredth'], ['maskPart']),
    cast('positions', 'positionsF'),
    node('Mul', ['positionsF', 'tenThousandth'], ['positionPart']),
    node('Unsqueeze', ['positionPart', 'axes2'], ['positionPart3']), // [1, S, 1]
    node('Add', ['peak', 'maskPart'], ['base']),
    node('Add', ['positionPart3', 'base'], ['logits']), // [1, S, 8]
  ];
  const scalars = { eight: 8, half: 0.5, ten: 10, hundredth: 0.01, tenThousandth: 0.0001 };
  const weights = {
    vocabulary: Float32Array.from({ length: TINY_VOCABULARY }, (_, i) => i),
    ...Object.fromEntries(
      Object.entries(scalars).map(([name, number]) => [name, Float32Array.of(number)]),
    ),
  };
  const initializers = Object.entries(weights).map(([name, data], i) =>
    external(name, [data.length], i * 256),
  );
  initializers.push(
    ints('axes13', [1, 3]),
    ints('axes123', [1, 2, 3]),
    ints('axes1', [1]),
    ints('axes2', [2]),
    ints('shape11', [1, 1]),
  );
  return makeBundle({
    graph: graphOf(nodes, initializers, inputs, outputs),
    inputs,
    outputs,
    weights,
    decoder: {
      ids: 'ids',
      mask: 'mask',
      positions: 'positions',
      logits: 'logits',
      vocabulary: TINY_VOCABULARY,
      contextLength: 32,
      state: [
        { input: 'past', output: 'present', dtype: 'f32', shape: ['batch', 1, 'past', 1], axis: 2 },
      ],
      endIds: [0],
    },
    ...more,
  });
}
