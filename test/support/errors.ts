/** Checks of expected failures. */
import assert from 'node:assert/strict';
import type { ErrorCode } from '../../runtime/errors.ts';
import { FettleError } from '../../runtime/errors.ts';

/** Asserts that `action` throws a FettleError with a code, a message, a place and a remedy. */
export function assertFails(action: () => unknown, code: ErrorCode, message: RegExp): FettleError {
  try {
    action();
  } catch (error) {
    assert.ok(error instanceof FettleError, `no FettleError: ${String(error)}`);
    assert.equal(error.code, code, error.message);
    assert.match(error.message, message);
    assert.ok(Object.keys(error.at).length > 0, `no place: ${error.message}`);
    assert.ok((error.fix ?? '') !== '', `no fix: ${error.message}`);
    return error;
  }
  assert.fail(`did not fail; wanted ${code} ${message}`);
}
