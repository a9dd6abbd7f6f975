/** The spellings, in one list. */
import { dynamoSpelling } from './dynamo.ts';
import { optimumSpelling } from './optimum.ts';
import { ortSpelling } from './ort.ts';
import type { Spelling } from './spelling.ts';
import { torchSpelling } from './torch.ts';

/** Every spelling; the first is the default. */
export const spellings: readonly [Spelling, ...Spelling[]] = [
  torchSpelling,
  ortSpelling,
  dynamoSpelling,
  optimumSpelling,
];
