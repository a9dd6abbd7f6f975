/** Every golden case of every pass. */
import { goldenPasses, testGoldenCases } from '../support/golden.ts';

for (const pass of goldenPasses()) testGoldenCases(pass);
