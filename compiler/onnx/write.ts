/**
 * Model -> ONNX file. The file is made of pieces: small encoded messages, and weights that are read and
 * written a few megabytes at a time. All sizes are known before the first byte is written. The same
 * model gives the same bytes.
 *
 * @see https://github.com/onnx/onnx/blob/main/docs/IR.md
 */
import { FettleError } from '../../runtime/errors.ts';
import type { DType } from '../../runtime/tensor.ts';
import type { FileSystem, FileWriter } from '../files.ts';
import { baseName, concatBytes, directoryOf, joinPath } from '../files.ts';
import type { Model, Value } from '../ir/graph.ts';
import type { Weight } from '../ir/weight.ts';
import { MAX_PROTOBUF_BYTES } from './read.ts';
import type { ExternalPlace, ExternalPlaces } from './write-graph.ts';
import { entries, GraphWriter, sparseOf } from './write-graph.ts';
import { carry, encodeMessage, fromBigInt, fromNumber } from './wire.ts';

/** Bytes of a weight read and written at a time. */
const BLOCK_BYTES = 8 * 1024 * 1024;

/** IR version that brought a dtype, where that is after 4. */
const irVersions: Partial<Readonly<Record<DType, number>>> = {
  f8e4m3fn: 9,
  f8e4m3fnuz: 9,
  f8e5m2: 9,
  f8e5m2fnuz: 9,
  i4: 10,
  u4: 10,
  f4e2m1: 11,
  f8e8m0: 12,
  i2: 13,
  u2: 13,
};

/** Options of {@link encodeModel}. */
export interface EncodeOptions {
  /** Which constants are in files beside the model, and where. Default: none. */
  readonly external?: ExternalPlaces;
}

/** Options of {@link writeModel}. */
export interface WriteOptions {
  /** Puts weights into a file of their own. Default: everything in one file. */
  readonly externalData?: {
    /** Name of the data file, relative to the model's folder. Default: the model's name + `.data`. */
    readonly path?: string;
    /** Smallest tensor that goes there, in bytes. Default 1024. */
    readonly thresholdBytes?: number;
    /** Alignment of each tensor in bytes. Default 64. */
    readonly alignBytes?: number;
  };
}

/** A part of the file: bytes, or a weight whose storage stands there. */
type Piece = Uint8Array | Weight;

/**
 * The bytes of a model.
 *
 * @param options - which constants are stored outside
 * @throws FettleError MODEL_INVALID when the file would pass 2 GB
 */
export function encodeModel(model: Model, options: EncodeOptions = {}): Uint8Array {
  return concatBytes(
    piecesOf(model, options.external ?? (() => undefined)).flatMap((piece) => [...blocks(piece)]),
  );
}

/**
 * Writes a model to a file, weights in blocks, so that a model larger than memory can be written.
 * Nothing appears under the final names before everything is written. Do not write over a file that a
 * model in use was read from.
 *
 * @param files - where to
 * @param path - the `.onnx` file; its folder is made when needed
 * @throws FettleError MODEL_INVALID when the file would pass 2 GB, IO_FAILED when it cannot be written
 *
 * @example
 * writeModel(files, 'out/model.onnx', model, { externalData: {} });
 */
export function writeModel(
  files: FileSystem,
  path: string,
  model: Model,
  options: WriteOptions = {},
): void {
  const layout = layoutOf(path, model, options);
  const pieces = piecesOf(model, (value) => layout?.places.get(value));
  const folder = directoryOf(path);
  files.makeDirectory(folder);
  const writers: FileWriter[] = [];
  const dataPath = layout === undefined ? undefined : joinPath(folder, layout.location);
  try {
    if (layout !== undefined && dataPath !== undefined) {
      files.makeDirectory(directoryOf(dataPath));
      const writer = files.create(dataPath);
      writers.push(writer);
      writeLayout(writer, layout);
    }
    const writer = files.create(path);
    writers.push(writer);
    for (const piece of pieces) for (const block of blocks(piece)) writer.write(block);
    for (const each of writers) each.close();
  } catch (error) {
    for (const writer of writers) writer.abort();
    throw error;
  }
}

/** Where each external constant goes. A weight that several constants share is stored once. */
interface Layout {
  readonly location: string;
  readonly places: ReadonlyMap<Value, ExternalPlace>;
  /** In order of offset. */
  readonly weights: ReadonlyMap<Weight, ExternalPlace>;
}

function layoutOf(path: string, model: Model, options: WriteOptions): Layout | undefined {
  if (options.externalData === undefined) return undefined;
  const { thresholdBytes = 1024, alignBytes = 64 } = options.externalData;
  const location = options.externalData.path ?? `${baseName(path)}.data`;
  const places = new Map<Value, ExternalPlace>();
  const weights = new Map<Weight, ExternalPlace>();
  let end = 0;
  for (const graph of model.graph.allGraphs())
    for (const value of graph.constants) {
      const { weight } = value;
      if (weight === undefined || weight.dtype === 'string' || weight.byteLength < thresholdBytes)
        continue;
      if (weight.carried?.sparse !== undefined) continue;
      let place = weights.get(weight);
      if (place === undefined) {
        const offset = Math.ceil(end / alignBytes) * alignBytes;
        place = { location, offset, length: weight.byteLength };
        weights.set(weight, place);
        end = offset + weight.byteLength;
      }
      places.set(value, place);
    }
  return { location, places, weights };
}

function writeLayout(writer: FileWriter, layout: Layout): void {
  let at = 0;
  for (const [weight, { offset, length }] of layout.weights) {
    if (offset > at) writer.write(new Uint8Array(offset - at));
    for (const block of blocks(weight)) writer.write(block);
    at = offset + length;
  }
}

/** The file in pieces. Throws when it would pass 2 GB. */
function piecesOf(model: Model, external: ExternalPlaces): Piece[] {
  const writer = new GraphWriter(model, external);
  const { graph } = model;
  const body: Piece[] = [encodeMessage('GraphProto', writer.head(graph))];
  for (const value of graph.constants) {
    if (sparseOf(value) !== undefined) continue;
    const { before, raw, after } = writer.initializer(value);
    const parts: Piece[] = [encodeMessage('TensorProto', before)];
    if (raw !== undefined) parts.push(lengthPrefix(9, raw.byteLength), raw);
    parts.push(encodeMessage('TensorProto', after));
    body.push(lengthPrefix(5, sizeOf(parts)), ...parts);
  }
  body.push(encodeMessage('GraphProto', writer.tail(graph)));
  const pieces = [modelHead(model), lengthPrefix(7, sizeOf(body)), ...body, modelTail(model)];
  const bytes = sizeOf(pieces);
  if (bytes <= MAX_PROTOBUF_BYTES) return pieces;
  throw new FettleError(
    'MODEL_INVALID',
    `The model takes ${bytes} bytes in one file; a protobuf message ends at 2 GB.`,
    { at: { graph: graph.name }, fix: 'Write the weights as external data (option externalData).' },
  );
}

function modelHead(model: Model): Uint8Array {
  const text = {
    producerName: model.producerName,
    producerVersion: model.producerVersion,
    domain: model.domain,
    docString: model.docString,
  };
  return encodeMessage('ModelProto', {
    irVersion: fromNumber(irVersionOf(model)),
    ...Object.fromEntries(Object.entries(text).filter(([, value]) => value !== '')),
    ...(model.modelVersion === 0n ? {} : { modelVersion: fromBigInt(model.modelVersion) }),
  });
}

function modelTail(model: Model): Uint8Array {
  const opsetImport = [...model.opsets].map(([domain, version]) => ({
    ...(domain === '' ? {} : { domain }),
    version: fromNumber(version),
  }));
  return encodeMessage('ModelProto', {
    opsetImport,
    metadataProps: entries(model.metadata),
    ...carry(model.carried),
  });
}

/** The model's IR version, raised to what its dtypes need. */
function irVersionOf(model: Model): number {
  let version = model.irVersion;
  const need = (dtype: DType | undefined): void => {
    if (dtype !== undefined) version = Math.max(version, irVersions[dtype] ?? 0);
  };
  for (const graph of model.graph.allGraphs()) {
    for (const value of [...graph.inputs, ...graph.constants]) need(value.dtype);
    for (const node of graph.nodes()) for (const value of node.outputs) need(value?.dtype);
  }
  return version;
}

/** Tag and length of a length-delimited field. */
function lengthPrefix(field: number, bytes: number): Uint8Array {
  const prefix = [(field << 3) | 2];
  let rest = bytes;
  for (; rest >= 0x80; rest = Math.floor(rest / 0x80)) prefix.push((rest % 0x80) | 0x80);
  return Uint8Array.from([...prefix, rest]);
}

function sizeOf(pieces: readonly Piece[]): number {
  return pieces.reduce(
    (sum, piece) => sum + (piece instanceof Uint8Array ? piece.length : piece.byteLength),
    0,
  );
}

function* blocks(piece: Piece): Generator<Uint8Array, void> {
  if (piece instanceof Uint8Array) {
    yield piece;
    return;
  }
  for (let at = 0; at < piece.byteLength; at += BLOCK_BYTES)
    yield piece.bytes(at, Math.min(BLOCK_BYTES, piece.byteLength - at));
}
