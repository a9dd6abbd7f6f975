/**
 * Golden cases of passes: `test/golden/<pass>/<case>.txt`.
 *
 *     # why this case exists: the name of the test
 *     # tolerance: 1e-6 because the pass rounds        (default: equal to the bit)
 *     # not evaluated: why                             (default: run before and after, and compared)
 *     # not idempotent: why                            (default: a second run must change nothing)
 *     <graph>
 *     --- options
 *     { "maxBytes": 64 }
 *     --- expect
 *     <graph>
 *     --- refusals
 *     rule | place | why
 *
 * `UPDATE=1 npm test -- golden` writes what the passes do now into `expect` and `refusals`; look at the
 * difference before committing it.
 */
import assert from 'node:assert/strict';
import { existsSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { cloneModel } from '../../compiler/ir/clone.ts';
import { evaluate } from '../../compiler/ir/evaluate.ts';
import type { Model } from '../../compiler/ir/graph.ts';
import { parseModel } from '../../compiler/ir/parse.ts';
import { printModel } from '../../compiler/ir/print.ts';
import { verifyModel } from '../../compiler/ir/verify.ts';
import { findPass } from '../../compiler/passes.ts';
import type { Pass, PassReport } from '../../compiler/passes/pass.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { expectSame } from './expect-same.ts';
import { seededInputs } from './seeded-inputs.ts';

/** One case, as written in its file. */
interface GoldenCase {
  readonly comments: readonly string[];
  readonly graph: string;
  readonly options: Readonly<Record<string, unknown>>;
  readonly expect: string;
  readonly refusals: string;
}

const folder = join(import.meta.dirname, '../golden');

/** Names of the passes that have cases. */
export function goldenPasses(): readonly string[] {
  return readdirSync(folder, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map((entry) => entry.name)
    .sort();
}

/** Makes a test of every case of a pass. Throws when the pass has none. */
export function testGoldenCases(pass: string): void {
  const files = readdirSync(join(folder, pass)).filter((file) => file.endsWith('.txt'));
  if (files.length === 0) throw new Error(`test/golden/${pass} has no case.`);
  for (const file of files.sort()) {
    const path = join(folder, pass, file);
    const golden = parseCase(readFileSync(path, 'utf8'));
    test(`${pass}, ${file.slice(0, -4)}: ${golden.comments[0] ?? ''}`, () =>
      check(pass, path, golden));
  }
}

/** What a pass did in each of its cases, by file name. */
export async function goldenReports(pass: string): Promise<ReadonlyMap<string, PassReport>> {
  const reports = new Map<string, PassReport>();
  const path = join(folder, pass);
  for (const file of existsSync(path) ? readdirSync(path) : []) {
    const golden = parseCase(readFileSync(join(path, file), 'utf8'));
    const made = findPass(pass)?.create(golden.options);
    if (made === undefined) continue;
    const [report] = await runPasses(parseModel(golden.graph), [made]);
    if (report !== undefined) reports.set(file, report);
  }
  return reports;
}

async function check(name: string, path: string, golden: GoldenCase): Promise<void> {
  const entry = findPass(name);
  assert.ok(entry !== undefined, `there is no pass "${name}"`);
  assert.ok((golden.comments[0] ?? '') !== '', 'the first line must say why the case exists');
  const create = (): Pass => entry.create(golden.options);

  const model = parseModel(golden.graph);
  verifyModel(model);
  const original = cloneModel(model);
  const [report] = await runPasses(model, [create()], { checkChanged: true });
  assert.ok(report !== undefined);
  const printed = printModel(model).trim();
  const refusals = report.refusals
    .map(({ rule, at, why }) => `${rule} | ${at} | ${why}`)
    .join('\n');
  if (process.env['UPDATE'] === '1') writeFileSync(path, printCase(golden, printed, refusals));
  else {
    assert.equal(printed, golden.expect.trim());
    assert.equal(refusals, golden.refusals.trim());
  }

  const reread = parseModel(printed);
  verifyModel(reread);
  assert.equal(printModel(reread).trim(), printed, 'the text does not survive reading');
  if (comment(golden, 'not idempotent') === undefined) {
    const [again] = await runPasses(model, [create()], { checkChanged: true });
    assert.equal(again?.changed, false, 'a second run finds something to do');
  }
  if (comment(golden, 'not evaluated') === undefined) compare(original, model, golden);
}

/** Runs both models on the same inputs. */
function compare(original: Model, model: Model, golden: GoldenCase): void {
  const stated = comment(golden, 'tolerance');
  const tolerance = stated === undefined ? 0 : Number.parseFloat(stated);
  for (const seed of [1, 2]) {
    // the inputs of the result are the more specific ones
    const inputs = seededInputs(model, seed);
    const before = evaluate(original, inputs);
    const after = evaluate(model, inputs);
    assert.deepEqual([...after.keys()], [...before.keys()], 'outputs have other names');
    for (const [name, wanted] of before) {
      const got = after.get(name);
      assert.ok(got !== undefined);
      expectSame(got, wanted, { tolerance, what: name });
    }
  }
}

function comment(golden: GoldenCase, key: string): string | undefined {
  const line = golden.comments.find((text) => text.startsWith(`${key}:`));
  return line?.slice(key.length + 1).trim();
}

function parseCase(text: string): GoldenCase {
  const comments: string[] = [];
  const sections: Record<string, string[]> = { graph: [], options: [], expect: [], refusals: [] };
  let section = 'graph';
  for (const line of text.split('\n')) {
    const heading = /^--- (\w+)$/.exec(line)?.[1];
    if (heading !== undefined) {
      assert.ok(Object.hasOwn(sections, heading), `unknown section "${heading}"`);
      section = heading;
    } else if (line.startsWith('# ') && section === 'graph') comments.push(line.slice(2));
    else sections[section]?.push(line);
  }
  const textOf = (name: string): string => (sections[name] ?? []).join('\n').trim();
  const options = textOf('options');
  return {
    comments,
    graph: textOf('graph'),
    options: options === '' ? {} : (JSON.parse(options) as Record<string, unknown>),
    expect: textOf('expect'),
    refusals: textOf('refusals'),
  };
}

function printCase(golden: GoldenCase, expect: string, refusals: string): string {
  const parts = [...golden.comments.map((line) => `# ${line}`), golden.graph];
  if (Object.keys(golden.options).length > 0)
    parts.push('--- options', JSON.stringify(golden.options));
  parts.push('--- expect', expect);
  if (refusals !== '') parts.push('--- refusals', refusals);
  return `${parts.join('\n')}\n`;
}
