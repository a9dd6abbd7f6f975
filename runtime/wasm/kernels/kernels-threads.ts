/** Entry of the binaries with threads. */
export { abiVersion, launch, patch, run, serve, stop } from './interpreter.ts';
export { largest } from './reduce.ts';
