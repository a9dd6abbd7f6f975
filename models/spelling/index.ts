/** The spellings, in two lists. */
import { bmmSpelling } from './bmm.ts';
import { dynamoSpelling } from './dynamo.ts';
import { einsumSpelling } from './einsum.ts';
import { fixedSpelling } from './fixed.ts';
import { halfSpelling } from './half.ts';
import { onnxSpelling } from './onnx.ts';
import { optimumSpelling } from './optimum.ts';
import { ortSpelling } from './ort.ts';
import type { Spelling } from './spelling.ts';
import { torchSpelling } from './torch.ts';

/** Spellings of whole exporters; the first is the default. */
export const spellings: readonly [Spelling, ...Spelling[]] = [
  torchSpelling,
  ortSpelling,
  dynamoSpelling,
  optimumSpelling,
];

/** Spellings of one thing in another way: products of heads, caches. */
export const formSpellings: readonly Spelling[] = [
  bmmSpelling,
  einsumSpelling,
  fixedSpelling,
  halfSpelling,
  onnxSpelling,
];
