/**
 * Runs every `*.test.ts` under test/ in this one process: starting a loader per file costs more than
 * the tests. An argument keeps the files whose path contains it. Throws when nothing matches, because
 * a test run that finds no test must not pass.
 *
 * npm test            everything
 * npm test -- quant   only test/quant/… and …quant….test.ts
 */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const folder = import.meta.dirname;
const wanted = process.argv[2] ?? '';
const files = readdirSync(folder, { recursive: true, encoding: 'utf8' })
  .filter((path) => path.endsWith('.test.ts') && path.includes(wanted))
  .sort();
if (files.length === 0) throw new Error(`No *.test.ts under ${folder} contains "${wanted}".`);
for (const file of files) await import(pathToFileURL(join(folder, file)).href);
