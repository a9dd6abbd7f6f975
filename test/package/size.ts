/**
 * What a page downloads to run bundles: `fettle/runtime` bundled and minified by esbuild, then
 * compressed by brotli, without the engine and tokenizer that it loads on demand.
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

/**
 * Measures one entry point of the runtime.
 *
 * @param file - of the sources, from the project's folder
 */
export async function sizeOf(file = 'runtime/index.ts'): Promise<Size> {
  const { outputFiles } = await build({
    entryPoints: [join(root, file)],
    bundle: true,
    minify: true,
    write: false,
    format: 'esm',
    target: 'es2022',
    platform: 'browser',
    external: onDemand,
  });
  const code = outputFiles[0]?.contents ?? new Uint8Array(0);
  const brotli = brotliCompressSync(code, {
    params: { [constants.BROTLI_PARAM_QUALITY]: constants.BROTLI_MAX_QUALITY },
  });
  return { entry: 'fettle/runtime', minifiedBytes: code.length, brotliBytes: brotli.length };
}

/** Bytes as KiB with one decimal. */
export function kib(bytes: number): string {
  return `${(bytes / 1024).toFixed(1)} KiB`;
}

if (process.argv[1] === import.meta.filename) {
  const size = await sizeOf();
  process.stdout.write(
    process.argv.includes('--json')
      ? `${JSON.stringify(size)}\n`
      : `${size.entry}: ${kib(size.minifiedBytes)} minified, ${kib(size.brotliBytes)} with brotli\n`,
  );
}
