// A thread of the pool in test/wasm-kernels/threads.test.ts: instantiates the module and serves.
import { parentPort, workerData } from 'node:worker_threads';

const { module, memory, plan, thread, threads } = workerData;
const { exports } = await WebAssembly.instantiate(module, { env: { memory } });
parentPort.postMessage('ready');
exports.serve(plan, thread, threads, 0);
