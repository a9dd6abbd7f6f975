/**
 * Reads `manifest.json` and checks every fact that a later step relies on, before anything is
 * allocated: version, sizes, offsets, overlaps, paths, counts, and that names refer to something.
 * Specification: docs/bundle.md.
 */
import type { Checked } from './check.ts';
import { parseJson, renew } from './check.ts';
import { FettleError } from './errors.ts';
import type {
  CanarySpec,
  DecoderSpec,
  DimSpec,
  FileSpec,
  Manifest,
  MemorySpec,
  StateSpec,
  TensorSpec,
  TextSpec,
  WeightSpec,
} from './manifest.ts';
import { BUNDLE_VERSION } from './manifest.ts';
import { isSafePath } from './paths.ts';
import type { DType } from './tensor.ts';
import { bytesFor, dtypes, elementCount, isDType } from './tensor.ts';

/** Name of the manifest in a bundle. */
export const MANIFEST_PATH = 'manifest.json';
/** Most bytes of a manifest. */
export const MANIFEST_BYTES: number = 64 * 2 ** 20;
const CHUNK_BYTES = 16 * 2 ** 20;
const FILE_BYTES = 256 * 2 ** 20;
const ALIGNMENT = 256;
const MOST_TENSORS = 2 ** 20;

/**
 * Parses and checks a manifest. Unknown keys are ignored and left out.
 *
 * @param bytes - contents of `manifest.json`
 * @throws {@link FettleError} BUNDLE_CORRUPT, naming the key, what was wanted and what was there
 *
 * @example
 * const manifest = parseManifest(await readFile('bundle/manifest.json'));
 */
export function parseManifest(bytes: Uint8Array): Manifest {
  const root = parseJson(bytes, MANIFEST_PATH);
  checkVersion(root);
  const inputs = root.get('inputs').list(tensorSpec);
  const outputs = root.get('outputs').list(tensorSpec);
  const weights = readWeights(root.get('weights'));
  const files = root.get('files').list((item) => fileSpec(item, FILE_BYTES), 4096);
  checkPaths(root.get('files'), [...weights.files, ...files]);
  const paths = new Set(files.map((file) => file.path));
  const model = root.get('model');
  return {
    format: 'fettle-bundle',
    version: BUNDLE_VERSION,
    compiler: root.get('compiler').string(),
    target: root.get('target').string(),
    engine: root.get('engine').oneOf(['wasm', 'webgpu', 'ort']),
    model: {
      name: model.get('name').string(),
      sha256: hash(model.get('sha256')),
      kind: model.get('kind').oneOf(['decoder', 'encoder', 'model']),
      parameters: model.get('parameters').integer(),
    },
    features: root.get('features').list((item) => item.string(100), 100),
    inputs: unique(root.get('inputs'), inputs),
    outputs: unique(root.get('outputs'), outputs),
    ...optional(root, 'decoder', (item) => readDecoder(item, inputs, outputs)),
    ...optional(root, 'text', (item) => readText(item, paths)),
    program: readProgram(root.get('program'), paths),
    weights,
    files,
    memory: readMemory(root.get('memory')),
    ...optional(root, 'canaries', (item) => readCanaries(item, paths)),
    ...optional(root, 'quality', readQuality),
    ...optional(root, 'calibration', readCalibration),
    recipe: root.get('recipe').object(),
    passes: root.get('passes').list((item) => item.raw()),
    warnings: root.get('warnings').list((item) => item.string(10_000, 0)),
  };
}

function checkVersion(root: Checked): void {
  if (!root.has('format') || root.get('format').raw() !== 'fettle-bundle')
    throw root.get('format').wrong('"fettle-bundle"');
  const version = root.get('version').integer(1);
  if (version !== BUNDLE_VERSION)
    throw new FettleError(
      'BUNDLE_CORRUPT',
      `Bundle was written in format version ${version}; this runtime reads version ${BUNDLE_VERSION}.`,
      {
        at: { file: MANIFEST_PATH, key: 'version' },
        fix: 'Update the package, or compile the bundle again with the version in use.',
      },
    );
}

/** `{ [key]: read(value) }` when the key is there, else `{}`. */
function optional<K extends string, T>(
  parent: Checked,
  key: K,
  read: (item: Checked) => T,
): { readonly [P in K]?: T } {
  return parent.has(key) ? ({ [key]: read(parent.get(key)) } as { [P in K]: T }) : {};
}

function hash(item: Checked): string {
  const text = item.string();
  if (!/^[0-9a-f]{64}$/.test(text)) throw item.wrong('64 lower-case hex digits');
  return text;
}

function path(item: Checked): string {
  const text = item.string();
  if (!isSafePath(text)) throw item.wrong('a relative path of plain names');
  return text;
}

function dtype(item: Checked): DType {
  const name = item.raw();
  if (!isDType(name)) throw item.wrong('a dtype');
  return name;
}

function dim(item: Checked): DimSpec {
  return typeof item.raw() === 'string' ? item.string(1000) : item.integer();
}

function tensorSpec(item: Checked): TensorSpec {
  return {
    name: item.get('name').string(),
    dtype: dtype(item.get('dtype')),
    shape: item.get('shape').list(dim, 64),
  };
}

function fileSpec(item: Checked, most: number): FileSpec {
  return {
    path: path(item.get('path')),
    bytes: item.get('bytes').integer(1, most),
    sha256: hash(item.get('sha256')),
  };
}

function unique<T extends { readonly name: string }>(
  at: Checked,
  items: readonly T[],
): readonly T[] {
  const names = new Set<string>();
  for (const { name } of items) {
    if (names.has(name)) throw at.wrong('unique names', `"${name}" twice`);
    names.add(name);
  }
  return items;
}

function checkPaths(at: Checked, files: readonly FileSpec[]): void {
  const seen = new Set([MANIFEST_PATH]);
  for (const file of files) {
    const key = file.path.toLowerCase();
    if (seen.has(key)) throw at.wrong('every path once', `"${file.path}" twice`);
    seen.add(key);
  }
}

function readWeights(item: Checked): Manifest['weights'] {
  const files = item.get('files').list((file) => fileSpec(file, CHUNK_BYTES));
  const bytes = item.get('bytes').integer();
  const sum = files.reduce((total, file) => total + file.bytes, 0);
  if (sum !== bytes) throw item.get('bytes').wrong(`${sum}, the sum of weights.files`);
  let end = 0;
  const tensors = item.get('tensors').list((tensor) => {
    const weight = weightSpec(tensor);
    if (weight.offset < end) throw tensor.get('offset').wrong(`at least ${end}, the end before it`);
    end = weight.offset + weight.bytes;
    if (end > bytes) throw tensor.wrong(`an end within ${bytes} bytes`, `${end}`);
    return weight;
  }, MOST_TENSORS);
  return { bytes, files, tensors: unique(item.get('tensors'), tensors) };
}

function weightSpec(item: Checked): WeightSpec {
  const type = dtype(item.get('dtype'));
  if (dtypes[type].array === undefined) throw item.get('dtype').wrong('a dtype of fixed size');
  const shape = item.get('shape').list((size) => size.integer(), 64);
  const elements = elementCount(shape);
  const bytes = item.get('bytes').integer();
  if (!Number.isSafeInteger(elements) || bytesFor(type, elements) !== bytes)
    throw item.get('bytes').wrong(`${bytesFor(type, elements)} for ${type} [${shape}]`);
  const offset = item.get('offset').integer();
  if (offset % ALIGNMENT !== 0) throw item.get('offset').wrong(`a multiple of ${ALIGNMENT}`);
  return {
    name: item.get('name').string(),
    dtype: type,
    shape,
    offset,
    bytes,
    ...optional(item, 'format', (format) => format.string(100)),
  };
}

function readProgram(item: Checked, paths: ReadonlySet<string>): Manifest['program'] {
  const kind = item.get('kind').oneOf(['onnx', 'plan']);
  if (kind === 'plan') return { kind, file: listed(item.get('file'), paths) };
  return {
    kind,
    file: listed(item.get('file'), paths),
    externalData: path(item.get('externalData')),
    provider: item.get('provider').oneOf(['wasm', 'webgpu']),
    sessionOptions: item.get('sessionOptions').object(),
  };
}

/** A path that `files` lists. */
function listed(item: Checked, paths: ReadonlySet<string>): string {
  const text = path(item);
  if (!paths.has(text)) throw item.wrong('a path listed in "files"');
  return text;
}

function readText(item: Checked, paths: ReadonlySet<string>): TextSpec {
  return {
    tokenizer: listed(item.get('tokenizer'), paths),
    ...optional(item, 'tokenizerConfig', (file) => listed(file, paths)),
    ...optional(item, 'chatTemplate', (text) => text.string(2 ** 20)),
    ...optional(item, 'generation', (defaults) =>
      Object.fromEntries(
        Object.entries(defaults.object()).filter(
          (entry): entry is [string, number | boolean] =>
            typeof entry[1] === 'boolean' || Number.isFinite(entry[1]),
        ),
      ),
    ),
  };
}

function readCanaries(item: Checked, paths: ReadonlySet<string>): CanarySpec {
  return {
    file: listed(item.get('file'), paths),
    tolerance: item.get('tolerance').number(0, 1),
  };
}

function readMemory(item: Checked): MemorySpec {
  return {
    weights: item.get('weights').integer(),
    arena: item.get('arena').integer(),
    state: item.get('state').integer(),
    ...optional(item, 'stack', (bytes) => bytes.integer()),
    ...optional(item, 'engine', (bytes) => bytes.integer()),
    ...optional(item, 'thread', (bytes) => bytes.integer()),
    ...optional(item, 'text', (bytes) => bytes.integer()),
    tokens: item.get('tokens').integer(),
    exact: item.get('exact').boolean(),
  };
}

function readCalibration(item: Checked): NonNullable<Manifest['calibration']> {
  return {
    dataSha256: hash(item.get('dataSha256')),
    samples: item.get('samples').integer(),
    tokens: item.get('tokens').integer(),
  };
}

function readQuality(item: Checked): NonNullable<Manifest['quality']> {
  return {
    metric: item.get('metric').string(),
    before: item.get('before').number(),
    after: item.get('after').number(),
    dataSha256: hash(item.get('dataSha256')),
  };
}

function readDecoder(
  item: Checked,
  inputs: readonly TensorSpec[],
  outputs: readonly TensorSpec[],
): DecoderSpec {
  const free = new Map(inputs.map((input) => [input.name, input]));
  const made = new Map(outputs.map((output) => [output.name, output]));
  const input = (field: Checked): string => take(field, free, 'an input not used otherwise');
  const output = (field: Checked): string => take(field, made, 'an output not used otherwise');
  const vocabulary = item.get('vocabulary').integer(1, 2 ** 31);
  const token = (field: Checked): number => field.integer(0, vocabulary - 1);
  const spec: DecoderSpec = {
    ids: input(item.get('ids')),
    ...optional(item, 'mask', input),
    ...optional(item, 'positions', input),
    ...optional(item, 'flags', (flags) =>
      flags.list((flag) => ({
        input: input(flag.get('input')),
        value: flag
          .get('value')
          .oneOf(['use-cache', 'sequence-length', 'total-length', 'past-length', 'last-position']),
      })),
    ),
    logits: output(item.get('logits')),
    vocabulary,
    contextLength: item.get('contextLength').integer(1, 2 ** 31),
    state: item.get('state').list((state) => readState(state, input, output)),
    endIds: item.get('endIds').list(token),
    ...optional(item, 'startId', token),
  };
  const [left] = free.keys();
  if (left !== undefined) throw item.wrong('every input driven', `nothing for "${left}"`);
  return spec;
}

function take(field: Checked, from: Map<string, TensorSpec>, wanted: string): string {
  const name = field.string();
  if (!from.delete(name)) throw field.wrong(wanted);
  return name;
}

function readState(
  item: Checked,
  input: (field: Checked) => string,
  output: (field: Checked) => string,
): StateSpec {
  const shape = item.get('shape').list(dim, 64);
  return {
    input: input(item.get('input')),
    output: output(item.get('output')),
    dtype: dtype(item.get('dtype')),
    shape,
    axis: item.get('axis').integer(0, shape.length - 1),
  };
}

/** The listed file at a path; the manifest has been checked to list it. */
export function fileAt(manifest: Manifest, wanted: string): FileSpec {
  const file = manifest.files.find((candidate) => candidate.path === wanted);
  if (file === undefined)
    throw new FettleError(
      'BUNDLE_CORRUPT',
      `Cannot read "${wanted}": the manifest does not list it.`,
      {
        at: { file: wanted },
        fix: renew,
      },
    );
  return file;
}
