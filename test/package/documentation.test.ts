/** Every exported name carries a doc comment that says something. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { sourcesOf } from './sources.ts';

const declaration =
  /^export (?:declare )?(?:abstract )?(?:async )?(?:function\*?|class|interface|type|const|let) +([\w$]+)/;

/** Exported names without a doc comment right above them. */
function undocumented(path: string, text: string): string[] {
  const lines = text.split('\n');
  return lines.flatMap((line, at) => {
    const name = declaration.exec(line)?.[1];
    if (name === undefined) return [];
    // an overload or a second declaration of the same name shares the first one's comment
    const first = lines.findIndex((other) => declaration.exec(other)?.[1] === name);
    return first < at || /\*\/\s*$/.test(lines[at - 1] ?? '') ? [] : [`${path}:${at + 1} ${name}`];
  });
}

test('every exported name has a doc comment', () => {
  const missing = sourcesOf('compiler', 'models', 'runtime', 'targets')
    .filter(({ path }) => !path.startsWith('runtime/wasm/kernels/') && path.endsWith('.ts'))
    .flatMap(({ path, text }) => undocumented(path, text));
  assert.deepEqual(missing, []);
});

test('the check can fail: an undocumented export is seen', () => {
  assert.deepEqual(undocumented('x.ts', 'export const a = 1;\n'), ['x.ts:1 a']);
});

test('every file starts by saying what it is', () => {
  const silent = sourcesOf('compiler', 'models', 'runtime', 'targets')
    .filter(({ text }) => !/^(#!.*\n)?\s*(\/\*\*|\/\/)/.test(text))
    .map(({ path }) => path);
  assert.deepEqual(silent, []);
});
