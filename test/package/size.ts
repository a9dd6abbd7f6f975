/**
 * What a page downloads to run bundles: `fettle/runtime` bundled and minified by esbuild, then
 * compressed by brotli, without what it loads on demand; and with the WASM engine and one binary of its
 * kernels (base64 of deflated bytes), which is all that a language model takes but the tokenizer.
 *
 * npm run size            a table
 * npm run size -- --json  one JSON object
 */
import { join } from 'node:path';
import { brotliCompressSync, constants } from 'node:zlib';
import { build } from 'esbuild';
import { root } from './sources.ts';

/** Bytes of one entry point. */
export interface Size {
  /** Entry point, as users import it. */
  readonly entry: string;
  /** Minified, in bytes. */
  readonly minifiedBytes: number;
  /** Minified and compressed, in bytes. */
  readonly brotliBytes: number;
}

/** Packages that a bundle asks for; pages that do not need them do not load them. */
const onDemand = ['onnxruntime-web', 'onnxruntime-web/*', '@huggingface/*'];

/** Chunks that a language model on the WASM engine loads besides the runtime: one binary of several. */
const wasmChunks: readonly RegExp[] = [
  /runtime\/wasm\/engine\.ts$/,
  /generated\/probe-relaxed\.ts$/,
  /generated\/relaxed\.ts$/,
];

/** Measures the runtime without engines, and with all that a language model on the WASM engine loads. */
export async function sizes(): Promise<readonly [base: Size, languageModel: Size]> {
  const { outputFiles, metafile } = await build({
    entryPoints: [join(root, 'runtime/index.ts')],
    absWorkingDir: root,
    outdir: join(root, 'dist/size'),
    bundle: true,
    splitting: true,
    minify: true,
    write: false,
    metafile: true,
    format: 'esm',
    target: 'es2022',
    platform: 'browser',
    external: onDemand,
  });
  const contents = new Map(outputFiles.map(({ path, contents: code }) => [path, code]));
  const chunks = new Map(Object.entries(metafile.outputs));
  /** A chunk, and what it imports at once. */
  const loaded = (chunk: string, found: Set<string>): Set<string> => {
    if (found.has(chunk)) return found;
    found.add(chunk);
    for (const { path, kind } of chunks.get(chunk)?.imports ?? [])
      if (kind === 'import-statement') loaded(path, found);
    return found;
  };
  const chunkOf = (source: RegExp): string => {
    for (const [chunk, { entryPoint }] of chunks)
      if (entryPoint !== undefined && source.test(entryPoint)) return chunk;
    throw new Error(`No chunk is made from ${source}.`);
  };
  const size = (entry: string, files: ReadonlySet<string>): Size => {
    let [minifiedBytes, brotliBytes] = [0, 0];
    for (const file of files) {
      const code = contents.get(join(root, file)) ?? new Uint8Array(0);
      minifiedBytes += code.length;
      brotliBytes += compressed(code);
    }
    return { entry, minifiedBytes, brotliBytes };
  };
  const base = loaded(chunkOf(/runtime\/index\.ts$/), new Set());
  const all = new Set(base);
  for (const source of wasmChunks) loaded(chunkOf(source), all);
  return [
    size('fettle/runtime', base),
    size('a language model on engine wasm, kernels included', all),
  ];
}

function compressed(code: Uint8Array): number {
  const params = { [constants.BROTLI_PARAM_QUALITY]: constants.BROTLI_MAX_QUALITY };
  return brotliCompressSync(code, { params }).length;
}

/** Bytes as KiB with one decimal. */
export function kib(bytes: number): string {
  return `${(bytes / 1024).toFixed(1)} KiB`;
}

if (process.argv[1] === import.meta.filename) {
  const all = await sizes();
  const line = ({ entry, minifiedBytes, brotliBytes }: Size): string =>
    `${entry}: ${kib(minifiedBytes)} minified, ${kib(brotliBytes)} with brotli\n`;
  process.stdout.write(
    process.argv.includes('--json')
      ? `${JSON.stringify({ ...all[0], languageModel: all[1] })}\n`
      : all.map(line).join(''),
  );
}
