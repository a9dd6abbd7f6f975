/** Who may import whom (DESIGN section 1), what a file may be long, and where printing is allowed. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { importsOf, sourcesOf } from './sources.ts';

const folders = ['compiler', 'models', 'runtime', 'targets'] as const;
const all = sourcesOf(...folders);

/** Imports of the files under `prefix` that lead neither to an allowed prefix nor inside it. */
function strayImports(prefix: string, allowed: readonly string[]): string[] {
  return all
    .filter(({ path }) => path.startsWith(prefix))
    .flatMap(importsOf)
    .filter(({ to }) => !to.startsWith(prefix) && !allowed.some((one) => to.startsWith(one)))
    .map(({ from, to }) => `${from} imports ${to}`);
}

test('runtime imports nothing outside itself but, on demand, an engine or a tokenizer', () => {
  const stray = all
    .filter(({ path }) => path.startsWith('runtime/') && path !== 'runtime/node.ts')
    // a tool that makes runtime/wasm/generated/; no page and no package gets it
    .filter(({ path }) => path !== 'runtime/wasm/build-kernels.ts')
    .flatMap(importsOf)
    .filter(({ to }) => !to.startsWith('runtime/'));
  const onDemand = /^(onnxruntime-web(\/\w+)?|@huggingface\/(tokenizers|jinja))$/;
  const wrong = stray.filter(
    ({ to, dynamic, typeOnly }) => !(onDemand.test(to) && (dynamic || typeOnly)),
  );
  assert.deepEqual(wrong, []);
});

test('runtime/node.ts adds only Node itself and packages asked for on demand', () => {
  const wrong = all
    .filter(({ path }) => path === 'runtime/node.ts')
    .flatMap(importsOf)
    .filter(({ to, dynamic }) => !to.startsWith('runtime/') && !to.startsWith('node:') && !dynamic);
  assert.deepEqual(wrong, []);
});

test('targets are data and import only their own types', () => {
  assert.deepEqual(strayImports('targets/', []), []);
});

test('models build on the graph and the file readers of the compiler, not on its passes', () => {
  const allowed = [
    'compiler/ir/',
    'compiler/ops/',
    'compiler/onnx/',
    'compiler/files.ts',
    'compiler/node.ts',
    'compiler/quant/',
    'runtime/',
    'node:',
    'sharp',
  ];
  assert.deepEqual(strayImports('models/', allowed), []);
});

test('the core of the compiler uses web APIs only', () => {
  const wrong = all
    .filter(
      ({ path }) => path.startsWith('compiler/') && !/^compiler\/(cli\/|node[\w-]*\.ts)/.test(path),
    )
    .flatMap(importsOf)
    .filter(
      ({ to }) =>
        to.startsWith('node:') ||
        to.startsWith('compiler/cli/') ||
        /^compiler\/node[\w-]*\.ts/.test(to),
    );
  assert.deepEqual(wrong, []);
});

test('nothing but the command line prints', () => {
  const printing = all
    .filter(
      ({ path }) =>
        !path.startsWith('compiler/cli/') &&
        !path.startsWith('models/make-') &&
        !path.startsWith('runtime/wasm/kernels/'),
    )
    .filter(({ text }) => /\bconsole\.\w+\(/.test(text.replace(/\/\*[\s\S]*?\*\//g, '')))
    .map(({ path }) => path);
  assert.deepEqual(printing, []);
});

test('no file is longer than 500 lines', () => {
  const long = [...all, ...sourcesOf('test')]
    .map(({ path, text }) => ({ path, lines: text.split('\n').length - 1 }))
    .filter(({ lines }) => lines > 500);
  assert.deepEqual(long, []);
});

test('folders are at most two levels below the top, and files are kebab-case', () => {
  const odd = all.filter(
    ({ path }) =>
      path.split('/').length > 4 ||
      !/^[a-z0-9-]+(\.d)?\.(ts|mts|mjs|wgsl)$/.test(path.split('/').at(-1) ?? ''),
  );
  assert.deepEqual(
    odd.map(({ path }) => path),
    [],
  );
});

test('the checks above can fail: a forbidden import is seen', () => {
  const [seen] = importsOf({
    path: 'runtime/x.ts',
    text: "import { readFileSync } from 'node:fs';",
  });
  assert.equal(seen?.to, 'node:fs');
});
