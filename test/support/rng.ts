/** Seeded random numbers for tests: the same seed gives the same cases on every machine. */
export { uniformStream as random } from '../../models/random.ts';
