/** Entry of the binaries without threads. */
export { abiVersion, patch, run } from './interpreter.ts';
export { largest } from './reduce.ts';
