/**
 * npm run conformance -- <folder …> [--infer]
 *
 * Runs ONNX conformance cases in the reference evaluator, or with `--infer` compares inferred with
 * declared output shapes. One line a failing case; ends with `N passed, M failed, K skipped`. The exit
 * code is 1 when a case failed that `exceptions.ts` does not list.
 */
import { conformanceCases, inferCase, runCase } from '../support/conformance.ts';
import { exceptions } from './exceptions.ts';

const args = process.argv.slice(2);
const folders = args.filter((arg) => !arg.startsWith('--'));
const check = args.includes('--infer') ? 'infer' : 'evaluate';
if (folders.length === 0) {
  console.error('Usage: npm run conformance -- <folder of ONNX test cases …> [--infer]');
  process.exitCode = 2;
}
const counts = { passed: 0, failed: 0, skipped: 0 };
const cases = folders.flatMap(conformanceCases);
if (folders.length > 0 && cases.length === 0) {
  console.error(`No case in ${folders.join(', ')}: folders with model.onnx and test_data_set_0.`);
  process.exitCode = 2;
}
for (const path of cases) {
  const { name, outcome, reason } = check === 'infer' ? inferCase(path) : runCase(path);
  counts[outcome]++;
  if (outcome === 'passed') continue;
  const listed = exceptions.find((entry) => entry.check === check && entry.cases.includes(name));
  console.log(
    `${outcome} ${name}: ${reason}${listed === undefined ? '' : ` (listed: ${listed.reason})`}`,
  );
  if (outcome === 'failed' && listed === undefined) process.exitCode = 1;
}
console.log(`${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped`);
