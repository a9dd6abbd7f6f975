/** Entry of the binaries with threads. */
export { abiVersion, allowSleep, launch, patch, run, serve, stop } from './interpreter.ts';
export { largest } from './reduce.ts';
