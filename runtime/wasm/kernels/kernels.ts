export { abiVersion, patch, run } from './interpreter.ts';
