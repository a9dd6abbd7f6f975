/**
 * ONNX file -> Model: messages are decoded, names become links, functions are inlined and external data
 * is found and checked. Weights stay where they are until somebody reads them.
 *
 * @see https://github.com/onnx/onnx/blob/main/docs/IR.md
 */
import { FettleError } from '../../runtime/errors.ts';
import type { FileSystem } from '../files.ts';
import { missing, plainBytes } from '../files.ts';
import { Graph, Model } from '../ir/graph.ts';
import type { ByteSource } from '../ir/weight.ts';
import type { ExternalReference } from './external.ts';
import { ExternalFiles } from './external.ts';
import { refuseOtherFormats } from './formats.ts';
import { canonicalDomain, Functions } from './functions.ts';
import { GraphReader } from './read-graph.ts';
import type { Long, ModelProto, OpsetProto } from './schema.ts';
import type { TensorStorage } from './tensor.ts';
import { entriesOf } from './type.ts';
import { decodeMessage, toBigInt, unknownsOf } from './wire.ts';

/** Largest protobuf message, by the format's own rules. */
export const MAX_PROTOBUF_BYTES: number = 2 ** 31 - 1;

/** Tensors up to this size are kept in memory, larger ones are read from the file when needed. */
const KEEP_BYTES = 16 * 1024;

/** Oldest and newest ONNX IR version this reader was checked against. */
const IR_VERSIONS = [3, 13] as const;

/** From this IR version on an initializer need not be a graph input; the reader makes it so. */
const IR_CONSTANTS_ALONE = 4;

/** Oldest and newest opset this reader was checked against. */
const OPSETS = [7, 25] as const;

/** How {@link decodeModel} finds external data. */
export interface DecodeOptions {
  /** Reads the bytes of a tensor stored outside; `length` is what dtype and shape ask for. */
  readonly externalData?: (location: string, offset: number, length: number) => Uint8Array;
}

/**
 * Reads a model from a file. The file and its external data must stay as they are while the model is
 * in use.
 *
 * @param files - where the model is
 * @param path - the `.onnx` file
 * @throws FettleError IO_FAILED when a file is missing, MODEL_INVALID when it is damaged, contradicts
 * itself or refers to files outside of its folder
 *
 * @example
 * const model = readModel(new NodeFiles(), 'model.onnx');
 */
export function readModel(files: FileSystem, path: string): Model {
  return openModel(files, path).model;
}

/** Reads a model and says which external data files it uses, in order of first use. */
export function openModel(
  files: FileSystem,
  path: string,
): { readonly model: Model; readonly externalPaths: readonly string[] } {
  const stat = files.stat(path);
  if (stat?.kind !== 'file') throw missing(path, stat);
  if (stat.bytes > MAX_PROTOBUF_BYTES) throw tooLarge(path, stat.bytes);
  const bytes = files.read(path, 0, stat.bytes);
  const external = new ExternalFiles(files, path);
  const hold = (view: Uint8Array): ByteSource => {
    // a view would keep the whole file in memory
    if (view.length <= KEEP_BYTES) return sourceOf(view.slice());
    const offset = view.byteOffset - bytes.byteOffset;
    return rangeOf(files, path, offset);
  };
  const storage: TensorStorage = {
    hold: (view) => (view.buffer === bytes.buffer ? hold(view) : sourceOf(view)),
    external: (reference, length, at) => external.source(reference, length, at),
  };
  try {
    const model = modelOf(bytes, storage);
    return { model, externalPaths: external.paths };
  } catch (error) {
    if (!(error instanceof FettleError) || error.at['file'] !== undefined) throw error;
    throw new FettleError(error.code, `${path}: ${error.message}`, {
      at: { file: path, ...error.at },
      ...(error.fix === undefined ? {} : { fix: error.fix }),
      cause: error.cause,
    });
  }
}

/**
 * Reads a model from memory. Weights are views of `bytes`, which must not change.
 *
 * @param bytes - an encoded ModelProto
 * @throws FettleError MODEL_INVALID as {@link readModel} does
 */
export function decodeModel(bytes: Uint8Array, options: DecodeOptions = {}): Model {
  const { externalData } = options;
  const external = ({ location, offset }: ExternalReference, bytesWanted: number): ByteSource => {
    if (externalData === undefined)
      throw new FettleError('MODEL_INVALID', `The model has external data in "${location}".`, {
        at: { file: location },
        fix: 'Read it with readModel, or pass externalData.',
      });
    return (start, length) => {
      const found = plainBytes(externalData(location, offset + start, length));
      if (start + length > bytesWanted || found.length !== length)
        throw new FettleError(
          'IO_FAILED',
          `externalData gave ${found.length} bytes of "${location}" at ${offset + start}; wanted ${length}.`,
          {
            at: { file: location, offset: offset + start },
            fix: 'Return exactly the bytes asked for.',
          },
        );
      return found;
    };
  };
  return modelOf(bytes, { hold: sourceOf, external });
}

const zero: Long = { low: 0, high: 0 };

function modelOf(bytes: Uint8Array, storage: TensorStorage): Model {
  if (bytes.length > MAX_PROTOBUF_BYTES) throw tooLarge('The model', bytes.length);
  refuseOtherFormats(bytes);
  const proto = decodeMessage('ModelProto', bytes);
  if (!proto.graph)
    throw new FettleError('MODEL_INVALID', `The ${bytes.length} bytes hold no ONNX graph.`, {
      at: { offset: 0 },
      fix: 'Check that the file is an ONNX model and that it is complete.',
    });
  const model = new Model(new Graph(proto.graph.name ?? ''), new Map());
  readHeader(model, proto);
  const functions = proto.functions ?? [];
  readOpsets(model, proto.opsetImport ?? []);
  for (const body of functions) checkFunctionOpsets(model, body.name ?? '', body.opsetImport ?? []);
  const defaultInputs = new GraphReader(model, storage, new Functions(functions)).read(
    proto.graph,
    model.graph,
  );
  // before IR version 4 every initializer was listed as an input
  if (defaultInputs.length > 0 && Number(toBigInt(proto.irVersion ?? zero)) >= IR_CONSTANTS_ALONE)
    model.warnings.push(
      `${defaultInputs.length} inputs have a default value and become constants: ${defaultInputs.slice(0, 3).join(', ')}${defaultInputs.length > 3 ? ', …' : ''}.`,
    );
  if (model.graph.outputs.length === 0)
    throw new FettleError('MODEL_INVALID', `The graph "${model.graph.name}" has no outputs.`, {
      at: { graph: model.graph.name },
      fix: 'Export the model with at least one output.',
    });
  if (!model.opsets.has(''))
    model.warnings.push('The model does not say which ONNX opset it uses; it is read as opset 1.');
  return model;
}

function readHeader(model: Model, proto: ModelProto): void {
  const irVersion = Number(toBigInt(proto.irVersion ?? zero));
  model.irVersion = Math.max(irVersion, IR_CONSTANTS_ALONE);
  model.producerName = proto.producerName ?? '';
  model.producerVersion = proto.producerVersion ?? '';
  model.domain = proto.domain ?? '';
  model.modelVersion = toBigInt(proto.modelVersion ?? zero);
  model.docString = proto.docString ?? '';
  for (const [key, value] of entriesOf(proto.metadataProps)) model.metadata.set(key, value);
  model.carried = unknownsOf(proto);
  const [oldest, newest] = IR_VERSIONS;
  if (irVersion < oldest || irVersion > newest)
    model.warnings.push(
      `The model has ONNX IR version ${irVersion}; versions ${oldest} to ${newest} are known.`,
    );
}

function readOpsets(model: Model, opsets: readonly OpsetProto[]): void {
  for (const opset of opsets) {
    const domain = canonicalDomain(opset.domain);
    const version = versionOf(opset);
    if (model.opsets.has(domain) && model.opsets.get(domain) !== version)
      throw new FettleError(
        'MODEL_INVALID',
        `The model imports opset ${model.opsets.get(domain)} and ${version} of "${domain}".`,
        { at: { domain }, fix: 'Export the model with one opset per domain.' },
      );
    model.opsets.set(domain, version);
  }
  const [oldest, newest] = OPSETS;
  const { opset } = model;
  if (model.opsets.has('') && (opset < oldest || opset > newest))
    model.warnings.push(
      `The model uses ONNX opset ${opset}; opsets ${oldest} to ${newest} are known, others are read as the nearest.`,
    );
}

function checkFunctionOpsets(model: Model, name: string, opsets: readonly OpsetProto[]): void {
  for (const opset of opsets) {
    const domain = canonicalDomain(opset.domain);
    const version = versionOf(opset);
    const known = model.opsets.get(domain);
    if (known === undefined) model.opsets.set(domain, version);
    else if (known !== version)
      model.warnings.push(
        `Function "${name}" uses opset ${version} of "${domain}", the model ${known}; it is read as ${known}.`,
      );
  }
}

function versionOf(opset: OpsetProto): number {
  const version = toBigInt(opset.version ?? zero);
  if (version >= 0n && version < 2n ** 31n) return Number(version);
  throw new FettleError(
    'MODEL_INVALID',
    `Opset version ${version} of "${opset.domain}" is absurd.`,
    {
      at: { domain: opset.domain ?? '' },
      fix: 'Export the model again.',
    },
  );
}

/** A range of a file. Not a closure inside of the reader, which would keep the file's bytes alive. */
function rangeOf(files: FileSystem, path: string, offset: number): ByteSource {
  return (start, length) => files.read(path, offset + start, length);
}

function sourceOf(bytes: Uint8Array): ByteSource {
  return (start, length) => bytes.subarray(start, start + length);
}

function tooLarge(path: string, bytes: number): FettleError {
  return new FettleError(
    'MODEL_INVALID',
    `${path} has ${bytes} bytes; a protobuf message ends at 2 GB, so the file is damaged or no model.`,
    {
      at: { file: path },
      fix: 'Save the weights as external data: onnx.save(model, path, save_as_external_data=True).',
    },
  );
}
