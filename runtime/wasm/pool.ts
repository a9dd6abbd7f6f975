/**
 * Threads of the WASM engine: workers that instantiate the same kernels on the same memory and wait
 * there for steps. Results do not depend on how many there are.
 *
 * A worker's whole program is the text below, so that neither a bundler nor a page has to ship a file
 * for it; where blobs may not be workers (`worker-src` of a content security policy), pass `startWorker`.
 */
import { FettleError } from '../errors.ts';

/** What a worker starts with. */
export interface WorkerTask {
  /** Compiled kernels. */
  readonly module: WebAssembly.Module;
  /** The memory that all threads share. */
  readonly memory: WebAssembly.Memory;
  /** Address of a plan header. */
  readonly plan: number;
  /** Index of this thread, 1 to `threads` - 1. */
  readonly thread: number;
  /** Number of threads, the caller's own included. */
  readonly threads: number;
}

/** A running worker. */
export interface PoolWorker {
  /** Fulfilled when it serves; rejected when it could not start. */
  readonly ready: Promise<void>;
  /** Ends it. */
  terminate(): void;
}

/** Starts a worker that runs `source` and gets `task`; hosts without `Worker` bring their own. */
export type StartWorker = (source: string, task: WorkerTask) => PoolWorker;

/**
 * Program of a worker: `receive(callback)` and `send(message)` are what the host calls them. It says
 * that it is ready before it blocks; a launch waits for threads that are still on their way.
 */
export const workerSource: string = `
const serve = async ({ module, memory, plan, thread, threads }) => {
  const { exports } = await WebAssembly.instantiate(module, { env: { memory } });
  send('ready');
  exports.serve(plan, thread, threads, 0);
};
receive((task) => serve(task).catch((error) => send(String(error))));
`;

const browserPrelude = `
const send = (message) => postMessage(message);
const receive = (callback) => { onmessage = ({ data }) => callback(data); };
`;

/** Starts a worker of the browser. */
export const startBrowserWorker: StartWorker = (source, task) => {
  const url = URL.createObjectURL(new Blob([browserPrelude, source], { type: 'text/javascript' }));
  const worker = new Worker(url);
  const ready = new Promise<void>((resolve, reject) => {
    worker.onmessage = ({ data }: MessageEvent<unknown>) =>
      data === 'ready' ? resolve() : reject(new Error(String(data)));
    worker.onerror = (event) => reject(new Error(event.message));
  }).finally(() => URL.revokeObjectURL(url));
  worker.postMessage(task);
  return { ready, terminate: () => worker.terminate() };
};

/** The threads beside the caller's own. */
export class Pool {
  /** Number of threads, the caller's own included. */
  readonly threads: number;
  private readonly workers: readonly PoolWorker[];

  private constructor(workers: readonly PoolWorker[]) {
    this.workers = workers;
    this.threads = workers.length + 1;
  }

  /**
   * Starts the workers and waits until all serve.
   *
   * @throws {@link FettleError} ENGINE_UNAVAILABLE when one cannot start
   */
  static async start(
    start: StartWorker,
    threads: number,
    task: Omit<WorkerTask, 'thread' | 'threads'>,
  ): Promise<Pool> {
    const workers: PoolWorker[] = [];
    try {
      for (let thread = 1; thread < threads; thread++)
        workers.push(start(workerSource, { ...task, thread, threads }));
      await Promise.all(workers.map(({ ready }) => ready));
      return new Pool(workers);
    } catch (cause) {
      for (const worker of workers) worker.terminate();
      throw new FettleError('ENGINE_UNAVAILABLE', 'The threads of the WASM engine did not start.', {
        at: { threads },
        fix: 'Open the bundle with { wasm: { threads: 1 } }.',
        cause,
      });
    }
  }

  /** Ends the workers. */
  dispose(): void {
    for (const worker of this.workers) worker.terminate();
  }
}
