/**
 * Models of the comparison: one shape with random weights, in the form that each engine is given. They
 * are made once and kept in the user's cache folder; only what Fettle compiles for its own engine is made
 * anew in every run, because that compiler is what is being worked on.
 */
import { existsSync, mkdirSync, readdirSync, rmSync, statSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { compile, parseRecipe } from '../../compiler/index.ts';
import type { Model } from '../../compiler/ir/graph.ts';
import { asIs } from '../../compiler/evaluate/as-is.ts';
import { NodeFiles } from '../../compiler/node-files.ts';
import { defaultCacheFolder } from '../../compiler/node-source.ts';
import type { ModelSource } from '../../compiler/source.ts';
import { sha256 } from '../../runtime/sha256.ts';
import { buildDecoder } from '../../models/decoder.ts';
import type { DecoderConfig } from '../../models/decoder-config.ts';
import { hubConfig, hubGenerationConfig } from '../../models/hub-config.ts';
import { GENERATOR_VERSION } from '../../models/index.ts';
import { smollm2Of135M } from '../../models/shapes.ts';
import { ortSpelling } from '../../models/spelling/ort.ts';
import type { Spelling } from '../../models/spelling/spelling.ts';
import { torchSpelling } from '../../models/spelling/torch.ts';
import { targets } from '../../targets/index.ts';
import type { Target } from '../../targets/target.ts';
import type { GgufType } from './gguf.ts';
import { llamaMetadata, llamaTensors, writeGguf } from './gguf.ts';
import { withDynamicInt8, withMatMulNBits } from './peer-quantized.ts';

/** Most tokens, the same for every engine. */
export const CONTEXT_LENGTH = 512;

/** Changes when what this file writes changes. */
const CACHE_VERSION = 1;

/** Shapes to compare at. */
export const peerShapes: Readonly<Record<string, DecoderConfig>> = {
  'smollm2-135m': smollm2Of135M,
  // the shape of builtin:nib, 5 million parameters
  lm5m: {
    ...smollm2Of135M,
    layers: 12,
    width: 192,
    heads: 6,
    kvHeads: 2,
    headSize: 32,
    mlp: { kind: 'gated', width: 512, activation: 'silu' },
    vocabulary: 4096,
    contextLength: 1024,
    rotary: { base: 10_000, pairs: 'half', fraction: 1 },
  },
};

/** Where the model of an engine is, and who runs it. */
export interface PeerModel {
  /** A bundle folder, or a GGUF file. */
  readonly path: string;
  /** What more than one thread is given, when that is another bundle. */
  readonly threadedPath?: string;
  readonly kind: 'bundle' | 'gguf';
  /** Size of the file, or of all files of the folder. */
  readonly bytes: number;
}

/** An engine of the comparison. */
export interface Peer {
  /** Name in the rows. */
  readonly name: string;
  /** What the issue calls the form. */
  readonly summary: string;
  /** Weights as they lie in memory while it runs, for the limits: bits, scales included. */
  readonly weightBits: number;
  /** Which limit its products have: integer dot products or f32 multiply-adds. */
  readonly products: 'integer' | 'float';
  /** Hosts it runs on. */
  readonly hosts: readonly ('node' | 'chromium')[];
  /** Kernels to force, where the engine has several. */
  readonly kernels?: 'simd';
  /** Why it cannot take part; undefined when it can. */
  absent(): string | undefined;
  /** Makes the model, or finds it in the cache. */
  prepare(shape: string, options: PrepareOptions): Promise<PeerModel>;
}

/** What is to be made. */
export interface PrepareOptions {
  /** Also what more than one thread needs. */
  readonly threaded: boolean;
  /** Keep what an earlier run compiled for Fettle's own engine. */
  readonly reuse: boolean;
}

/** Every engine, in the order of the table. */
export const peers: readonly Peer[] = [
  ownPeer('wasm', 'Fettle, 4-bit weights, 8-bit activations', undefined),
  ownPeer('wasm-simd', 'the same without relaxed SIMD', 'simd'),
  ortPeer('ort-fp32', 'onnxruntime-web, f32', { bits: 32, products: 'float' }, (name, config) =>
    bundle(sourceOf(name, config, ortSpelling), asIs),
  ),
  ortPeer(
    'ort-q4',
    'onnxruntime-web, MatMulNBits',
    { bits: 5, products: 'float' },
    (name, config) => bundle(sourceOf(name, config, ortSpelling, withMatMulNBits), asIs),
  ),
  ortPeer(
    'ort-q4-folded',
    'onnxruntime-web, 4-bit file unpacked to f32 at load (our target ort-wasm)',
    { bits: 32, products: 'float' },
    (name, config) => bundle(sourceOf(name, config, ortSpelling), 'ort-wasm', { weights: 'w4g32' }),
  ),
  ortPeer(
    'ort-q8',
    'onnxruntime-web, dynamic int8',
    { bits: 8, products: 'integer' },
    (name, config) =>
      bundle(sourceOf(name, config, ortSpelling, withDynamicInt8), { ...asIs, sessionOptions: {} }),
  ),
  ggufPeer('wllama-q4', 'q4_0', 4.5),
  ggufPeer('wllama-q8', 'q8_0', 8.5),
];

/** Writes a bundle to a folder. */
type WriteBundle = (folder: string) => Promise<void>;

function ownPeer(name: string, summary: string, kernels: 'simd' | undefined): Peer {
  const ids = ['wasm', 'wasm-threads'];
  const known = ids.filter((id) => targets.some((target) => target.id === id));
  return {
    name,
    summary,
    weightBits: 4.5,
    products: 'integer',
    hosts: ['node', 'chromium'],
    ...(kernels === undefined ? {} : { kernels }),
    absent: () => (known.includes('wasm') ? undefined : 'there is no target "wasm" yet'),
    async prepare(shape, { threaded, reuse }) {
      const folder = join(cacheFolder(), `${shape}.own`);
      const wanted = threaded ? known : known.slice(0, 1);
      const paths = wanted.map((id) => (wanted.length === 1 ? folder : join(folder, id)));
      const [path = '', threadedPath = path] = paths;
      const there = paths.every((one) => existsSync(join(one, 'manifest.json')));
      // all rows of one run read the same bundles
      if (!(there && (reuse || madeNow.has(folder)))) {
        const source = sourceOf(shape, configOf(shape), torchSpelling);
        await bundle(source, wanted, { weights: 'w4g32' })(folder);
        madeNow.add(folder);
      }
      return { path, threadedPath, kind: 'bundle', bytes: bundleBytes(path) };
    },
  };
}

/** Bundles of Fettle's own engine that this process has made. */
const madeNow = new Set<string>();

function ortPeer(
  name: string,
  summary: string,
  { bits, products }: { readonly bits: number; readonly products: Peer['products'] },
  make: (name: string, config: DecoderConfig) => WriteBundle,
): Peer {
  return {
    name,
    summary,
    weightBits: bits,
    products,
    hosts: ['node', 'chromium'],
    absent: () => undefined,
    async prepare(shape) {
      const path = join(cacheFolder(), `${shape}.${name}`);
      if (!existsSync(join(path, 'manifest.json'))) await make(shape, configOf(shape))(path);
      return { path, kind: 'bundle', bytes: bundleBytes(path) };
    },
  };
}

function ggufPeer(name: string, type: GgufType, weightBits: number): Peer {
  return {
    name,
    summary: `wllama, ${type.toUpperCase()}`,
    weightBits,
    products: 'integer',
    hosts: ['chromium'],
    absent: () => undefined,
    prepare: (shape) => {
      const path = join(cacheFolder(), `${shape}.${type}.gguf`);
      const config = configOf(shape);
      if (statSync(path, { throwIfNoEntry: false }) === undefined)
        writeGguf(path, llamaMetadata(config, CONTEXT_LENGTH), llamaTensors(config, type));
      return Promise.resolve({ path, kind: 'gguf', bytes: statSync(path).size });
    },
  };
}

/** Bytes of all files of a bundle folder. */
function bundleBytes(folder: string): number {
  return readdirSync(folder).reduce((sum, name) => sum + statSync(join(folder, name)).size, 0);
}

/** Bytes of the cache of keys and values that wllama keeps: f16, for the whole context. */
export function stateBytes(shape: string): number {
  const { layers, kvHeads, headSize } = configOf(shape);
  return layers * 2 * kvHeads * headSize * CONTEXT_LENGTH * 2;
}

/** Weights of the products of one token: each is read once and multiplied once for it. */
export function productWeights(shape: string): { readonly blocks: number; readonly head: number } {
  const { layers, width, heads, kvHeads, headSize, mlp, vocabulary } = configOf(shape);
  const attention = width * headSize * (2 * heads + 2 * kvHeads);
  return {
    blocks: layers * (attention + 3 * width * mlp.width),
    head: width * vocabulary,
  };
}

function configOf(shape: string): DecoderConfig {
  const config = peerShapes[shape];
  if (config === undefined)
    throw new RangeError(`No shape "${shape}"; there are ${Object.keys(peerShapes).join(', ')}.`);
  return config;
}

function cacheFolder(): string {
  const version = `${GENERATOR_VERSION}.${CACHE_VERSION}`;
  const folder = join(defaultCacheFolder(process.env, homedir()), 'bench', version);
  mkdirSync(folder, { recursive: true });
  return folder;
}

/** A generated decoder, changed by `change` when read. */
function sourceOf(
  name: string,
  config: DecoderConfig,
  spelling: Spelling,
  change?: (model: Model) => Promise<void>,
): () => Promise<ModelSource> {
  return async () => {
    const model = buildDecoder(name, config, spelling);
    await change?.(model);
    const identity = JSON.stringify([GENERATOR_VERSION, name, spelling.name, change?.name, config]);
    return {
      reference: `shape:${name}`,
      name,
      config: { config: hubConfig(config), generationConfig: hubGenerationConfig(config) },
      text: undefined,
      read: () => model,
      bytes: () =>
        [...model.graph.constants].reduce((sum, { weight }) => sum + (weight?.byteLength ?? 0), 0),
      sha256: () => sha256(new TextEncoder().encode(identity)),
    };
  };
}

function bundle(
  source: () => Promise<ModelSource>,
  target: Target | string | readonly string[],
  recipe: { readonly weights?: string } = {},
): WriteBundle {
  return async (folder) => {
    rmSync(folder, { recursive: true, force: true });
    await compile(await source(), {
      targets: typeof target === 'object' && 'length' in target ? target : [target],
      files: new NodeFiles(),
      out: folder,
      recipe: parseRecipe({
        ...recipe,
        clip: 'none',
        canaries: false,
        contextLength: CONTEXT_LENGTH,
      }),
    });
  };
}
