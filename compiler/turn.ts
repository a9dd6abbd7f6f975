/** Long work that runs on the thread of its caller lets events happen now and then. */
import { throwIfAborted } from '../runtime/errors.ts';

/**
 * Lets events happen, an abort among them, and stops when it has. Costs nothing without a signal.
 *
 * @throws the signal's reason when it has been aborted
 */
export async function turn(signal: AbortSignal | undefined): Promise<void> {
  if (signal === undefined) return;
  await new Promise((resolve) => setTimeout(resolve));
  throwIfAborted(signal);
}
