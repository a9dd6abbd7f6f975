/** Every exported name carries a doc comment that says something. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { root, sourcesOf } from './sources.ts';

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
    .filter(
      ({ path }) =>
        !/^(runtime\/wasm|compiler\/algebra)\/kernels\//.test(path) && path.endsWith('.ts'),
    )
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

test('every error code is documented, and thrown somewhere', () => {
  const declared = readFileSync(join(root, 'runtime/errors.ts'), 'utf8');
  const codes = [...declared.matchAll(/^  \| '([A-Z_]+)'/gm)].map(([, code]) => code ?? '');
  assert.ok(codes.length > 5);
  const page = readFileSync(join(root, 'docs/errors.md'), 'utf8');
  const thrown = sourcesOf('compiler', 'models', 'runtime')
    .filter(({ path }) => path !== 'runtime/errors.ts')
    .map(({ text }) => text)
    .join('\n');
  assert.deepEqual(
    codes.filter((code) => !page.includes(`\`${code}\``)),
    [],
  );
  assert.deepEqual(
    codes.filter((code) => !thrown.includes(`'${code}'`)),
    [],
  );
});

/** Every `new FettleError(…)` of a text, arguments included. */
function thrownErrors(text: string): string[] {
  const found: string[] = [];
  for (let start = text.indexOf('new FettleError('); start >= 0;) {
    let depth = 0;
    let end = text.indexOf('(', start);
    do {
      if (text[end] === '(') depth++;
      if (text[end] === ')') depth--;
      end++;
    } while (depth > 0 && end < text.length);
    found.push(text.slice(start, end));
    start = text.indexOf('new FettleError(', end);
  }
  return found;
}

test('every FettleError says where it happened and what would help', () => {
  const poor = sourcesOf('compiler', 'models', 'runtime').flatMap(({ path, text }) =>
    thrownErrors(text.replace(/\/\*[\s\S]*?\*\//g, ''))
      // details that are handed on, or spread into, are written elsewhere
      .filter((error) => !/\bdetails\b|\.\.\.|,\s*place\b/.test(error))
      .filter((error) => !/\bat\b/.test(error) || !/\bfix\b/.test(error))
      .map((error) => `${path}: ${error}`),
  );
  assert.deepEqual(poor, []);
});
