/**
 * Keeps two processes from writing one file: `file.lock` holds the id of the process that downloads.
 * A lock whose process is gone is taken over.
 */
import fs from 'node:fs';
import { FettleError } from '../runtime/errors.ts';

/** A held lock. */
export class DownloadLock {
  private readonly path: string;

  /**
   * @param file - what is downloaded
   * @throws FettleError IO_FAILED when a living process downloads it
   */
  constructor(file: string) {
    this.path = `${file}.lock`;
    for (let attempt = 0; ; attempt++) {
      try {
        fs.writeFileSync(this.path, String(process.pid), { flag: 'wx' });
        return;
      } catch (error) {
        const taken = error instanceof Error && 'code' in error && error.code === 'EEXIST';
        if (!taken)
          throw new FettleError('IO_FAILED', `Cannot write "${this.path}": ${String(error)}.`, {
            at: { file: this.path },
            fix: 'Check the permissions of the cache directory and the space on its disk.',
            cause: error,
          });
        const owner = this.owner();
        if (attempt > 0 || isAlive(owner))
          throw new FettleError('IO_FAILED', `"${file}" is being downloaded by process ${owner}.`, {
            at: { file, process: owner },
            fix: `Wait until it is done, or remove "${this.path}" when no such process runs.`,
          });
        fs.rmSync(this.path, { force: true });
      }
    }
  }

  /** Lets go. */
  release(): void {
    fs.rmSync(this.path, { force: true });
  }

  private owner(): number {
    try {
      return Number(fs.readFileSync(this.path, 'utf8'));
    } catch {
      return NaN;
    }
  }
}

function isAlive(processId: number): boolean {
  if (!Number.isSafeInteger(processId) || processId <= 0) return false;
  try {
    process.kill(processId, 0);
    return true;
  } catch (error) {
    // EPERM: alive, and somebody else's
    return error instanceof Error && 'code' in error && error.code === 'EPERM';
  }
}
