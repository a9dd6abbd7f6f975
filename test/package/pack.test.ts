/**
 * The package as users get it: packed from a copy of the sources by `npm pack`, unpacked into an empty
 * folder beside the production dependencies alone, and used from there on plain Node.
 */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { promisify } from 'node:util';
import { importsOf, root, sourcesOf } from './sources.ts';

/** What the compiled sources and the package are made of. */
const ingredients = [
  'compiler',
  'models',
  'runtime',
  'targets',
  'docs',
  'ARCHITECTURE.md',
  'CHANGELOG.md',
  'LICENSE',
  'README.md',
  'package.json',
  'tsconfig.base.json',
  'tsconfig.build.json',
];

/** Packages users get; each has to be worth its place. */
const dependencies = [
  '@huggingface/jinja',
  '@huggingface/tokenizers',
  'cli-progress',
  'onnx-proto',
  'onnxruntime-web',
  'protobufjs',
  'sharp',
  'yargs',
];

/** Asked for by `fettle bench --host chromium` only, which says how to install them. */
const optional: readonly string[] = ['@sparticuz/chromium', 'esbuild', 'playwright-core'];

const packageJson = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as {
  readonly dependencies: Readonly<Record<string, string>>;
  readonly exports: Readonly<Record<string, unknown>>;
};

/** Sources of tools that make what the package carries; `tsx` runs a checkout and no package. */
const unpacked = /^models\/make-|^runtime\/wasm\/(build-|kernels\/)/;

const execute = promisify(execFile);

describe('npm pack', () => {
  const folder = mkdtempSync(join(tmpdir(), 'fettle-pack-'));
  const app = join(folder, 'app');
  let files: readonly string[] = [];

  before(async () => {
    const sources = join(folder, 'sources');
    for (const path of ingredients)
      cpSync(join(root, path), join(sources, path), { recursive: true });
    symlinkSync(join(root, 'node_modules'), join(sources, 'node_modules'));
    // runs the prepack script, and with it the build
    const { stdout } = await execute('npm', ['pack', '--json', '--offline'], {
      cwd: sources,
      maxBuffer: 1 << 26,
    });
    const [packed] = JSON.parse(stdout.slice(stdout.indexOf('['))) as {
      readonly filename: string;
      readonly files: readonly { readonly path: string }[];
    }[];
    files = packed?.files.map(({ path }) => path) ?? [];
    const modules = join(app, 'node_modules');
    mkdirSync(modules, { recursive: true });
    await execute('tar', ['xzf', join(sources, packed?.filename ?? ''), '-C', modules]);
    renameSync(join(modules, 'package'), join(modules, 'fettle'));
    for (const name of Object.keys(packageJson.dependencies)) {
      mkdirSync(dirname(join(modules, name)), { recursive: true });
      symlinkSync(join(root, 'node_modules', name), join(modules, name));
    }
    writeFileSync(join(app, 'package.json'), '{ "type": "module" }');
  });

  after(() => rmSync(folder, { recursive: true, force: true }));

  const run = async (...args: readonly string[]): Promise<string> =>
    (await execute(process.execPath, [...args], { cwd: app, maxBuffer: 1 << 26 })).stdout;
  const fettle = (...args: readonly string[]): Promise<string> =>
    run('node_modules/fettle/compiler/cli/fettle.mjs', ...args);

  it('holds the built code, the built-in model and the documents, and nothing else', () => {
    const wanted =
      /^(dist\/(compiler|models|runtime|targets)\/.+\.(js|d\.ts|wasm|wgsl)|models\/nib\/.+|models\/README\.md|docs\/.+\.md|compiler\/cli\/fettle\.mjs|(README|ARCHITECTURE|CHANGELOG)\.md|LICENSE|package\.json)$/;
    assert.deepEqual(
      files.filter((path) => !wanted.test(path)),
      [],
    );
    for (const path of [
      'dist/compiler/cli/main.js',
      'dist/compiler/index.d.ts',
      'dist/compiler/node.d.ts',
      'dist/runtime/index.d.ts',
      'dist/runtime/node.js',
      'dist/targets/index.d.ts',
      'models/nib/onnx/model.onnx',
      'models/nib/tokenizer.json',
      'LICENSE',
      'README.md',
    ])
      assert.ok(files.includes(path), `${path} is missing`);
    // tools that make what the package carries are of no use to users
    assert.deepEqual(
      files.filter((path) => /\/make-|\/build-kernels|\.test\.|tsbuildinfo|\.map$/.test(path)),
      [],
    );
  });

  it('starts its command without TypeScript, and finds the built-in model', async () => {
    const { targets } = JSON.parse(await fettle('targets', '--json')) as {
      readonly targets: readonly { readonly id: string }[];
    };
    assert.ok(targets.some(({ id }) => id === 'ort-wasm'));
    const inspection = JSON.parse(await fettle('inspect', 'builtin:nib', '--json')) as {
      readonly parameters: number;
    };
    assert.ok(inspection.parameters > 5_000_000);
  });

  it('gives every entry point to plain Node, and compiles and runs from them', async () => {
    const entries = Object.keys(packageJson.exports).filter((entry) => entry !== './package.json');
    const script = `
      for (const entry of ${JSON.stringify(entries)}) {
        const names = Object.keys(await import('fettle' + entry.slice(1)));
        if (names.length === 0) throw new Error(entry + ' exports nothing');
      }
      const { compile, defaultRecipe } = await import('fettle/compiler');
      const { NodeFiles, resolveModel } = await import('fettle/compiler/node');
      const { openBundle } = await import('fettle/runtime/node');
      const source = await resolveModel('micro:gqa', { cacheFolder: 'cache' });
      await compile(source, {
        targets: ['ort-wasm'],
        recipe: { ...defaultRecipe, weights: 'w8g32' },
        files: new NodeFiles(),
        out: 'bundle',
      });
      const session = await openBundle('bundle');
      console.log(JSON.stringify(await session.check()));
      await session.dispose();`;
    const check = JSON.parse(await run('--input-type=module', '--eval', script)) as {
      readonly passed: boolean;
    };
    assert.equal(check.passed, true);
  });

  it('type-checks the examples of its documents against what it declares', async () => {
    const pages = ['README.md', 'docs/bundle.md', 'docs/errors.md'].map((path) => ({
      path,
      text: readFileSync(join(root, path), 'utf8'),
    }));
    const blocks = pages.flatMap(({ path, text }) =>
      [...text.matchAll(/^```ts\n(.*?)^```/gms)].map(([, code]) => ({ path, code: code ?? '' })),
    );
    assert.ok(blocks.length >= 2, 'no example found');
    for (const [index, { code }] of blocks.entries())
      writeFileSync(
        join(app, `example-${index}.ts`),
        `${code}\ndeclare function show(value: unknown): void;\n`,
      );
    writeFileSync(
      join(app, 'tsconfig.json'),
      JSON.stringify({
        compilerOptions: {
          target: 'es2023',
          lib: ['es2023', 'dom', 'dom.iterable', 'dom.asynciterable'],
          module: 'nodenext',
          strict: true,
          noEmit: true,
          types: ['node'],
          typeRoots: [join(root, 'node_modules/@types')],
          skipLibCheck: false,
        },
        include: ['example-*.ts'],
      }),
    );
    const compiler = join(root, 'node_modules/typescript/bin/tsc');
    const report = await run(compiler, '-p', '.').catch(
      (error: { readonly stdout?: string }) => error.stdout ?? String(error),
    );
    assert.equal(
      report,
      '',
      blocks.map(({ path }, index) => `example-${index}.ts is from ${path}`).join('\n'),
    );
  });
});

describe('dependencies', () => {
  it('are the ones that were agreed on', () => {
    assert.deepEqual(Object.keys(packageJson.dependencies).sort(), dependencies);
  });

  it('are imported by what is packed, and nothing else is', () => {
    const imported = sourcesOf('compiler', 'models', 'runtime', 'targets')
      .filter(({ path }) => !unpacked.test(path))
      .flatMap(importsOf)
      .filter(({ dynamic, typeOnly, to }) => !((dynamic || typeOnly) && optional.includes(to)))
      .filter(({ to }) => !/^(node:|dist\/|compiler\/|models\/|runtime\/|targets\/)/.test(to))
      .map(({ to }) => /^(@[^/]+\/)?[^/]+/.exec(to)?.[0] ?? to);
    assert.deepEqual([...new Set(imported)].sort(), ['tsx', ...dependencies].sort());
  });
});
