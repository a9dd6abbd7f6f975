/**
 * What the unquantized model gives, and how far another model is from it.
 *
 *   logits    KL(reference || model) over the reference's most likely classes of each row, both
 *             renormalised on them; all classes when there are few. Probabilities are taken as what
 *             their logarithms say.
 *   others    squared error relative to the squared norm, mean over outputs
 *
 * Both add up over small independent errors, which is what a budget solver builds on.
 * Source: ../shared/ALGORITHMS.md 0.2, KLk.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import type { DecoderSpec } from '../../runtime/manifest.ts';
import type { Model, Value } from '../ir/graph.ts';
import { isLinear } from '../ops/fused-linear.ts';
import { readNumbers } from '../ops/numbers.ts';
import { negativeLogLikelihood } from '../evaluate/perplexity.ts';
import type { Values } from './stage-runner.ts';

/** What errors are measured in. */
export type ErrorMetric = 'kl' | 'relative-l2';

/** Classes of a row that are compared. */
export const DEFAULT_TOP_CLASSES = 512;

/** How far outputs are from the reference, summed over what was measured. */
export interface OutputError {
  /** KL in nats a row, or squared error relative to the squared norm. */
  readonly error: number;
  /** Share of rows whose best class is the reference's; 1 where outputs are no classes. */
  readonly agreement: number;
  /** Mean negative log likelihood of the next token, nats; only of text, and of logits. */
  readonly nats?: number;
}

interface Row {
  readonly classes: Int32Array;
  readonly logs: Float32Array;
}

/** The outputs of the reference for each sample. */
export class ReferenceOutputs {
  /** What errors are measured in. */
  readonly metric: ErrorMetric;
  private readonly output: string;
  private readonly most: number;
  private readonly isProbability: boolean;
  private readonly rows = new Map<number, readonly Row[]>();
  private readonly tensors = new Map<number, ReadonlyMap<string, Float64Array>>();

  /**
   * @param model - of fixed sizes
   * @param metric - absent: `kl` when the only output, or a decoder's logits, are classes
   */
  constructor(
    model: Model,
    decoder: DecoderSpec | undefined,
    metric?: ErrorMetric,
    most: number = DEFAULT_TOP_CLASSES,
  ) {
    const { outputs } = model.graph;
    const [first] = outputs;
    const classes = outputs.find(({ name }) => name === decoder?.logits) ?? first;
    this.output = classes?.name ?? '';
    this.isProbability = classes !== undefined && isSoftmax(classes);
    const hasClasses =
      decoder !== undefined ||
      (outputs.length === 1 && classes !== undefined && (this.isProbability || areScores(classes)));
    this.metric = metric ?? (hasClasses ? 'kl' : 'relative-l2');
    this.most = most;
  }

  /** Keeps the outputs of a sample. */
  keep(index: number, values: Values): void {
    if (this.metric === 'relative-l2') {
      this.tensors.set(
        index,
        new Map([...values].map(([name, value]) => [name, Float64Array.from(readNumbers(value))])),
      );
      return;
    }
    const { scores, classes } = this.scoresOf(values);
    const rows: Row[] = [];
    for (let start = 0; start < scores.length; start += classes)
      rows.push(topRow(scores.subarray(start, start + classes), this.most));
    this.rows.set(index, rows);
  }

  /**
   * Compares the outputs of a sample.
   *
   * @param ids - of text, for the likelihood of its tokens
   */
  compare(index: number, values: Values, ids?: readonly number[]): OutputError {
    if (this.metric === 'relative-l2') return { error: this.distance(index, values), agreement: 1 };
    const { scores, classes } = this.scoresOf(values);
    const rows = this.rows.get(index) ?? [];
    let [error, agreeing, nats] = [0, 0, 0];
    rows.forEach((row, at) => {
      const own = scores.subarray(at * classes, (at + 1) * classes);
      error += divergence(row, own);
      if (bestOf(own) === row.classes[0]) agreeing++;
      const next = ids?.[at + 1];
      if (next !== undefined) nats += negativeLogLikelihood(own, 0, classes, next);
    });
    const count = Math.max(1, rows.length);
    return {
      error: error / count,
      agreement: agreeing / count,
      ...(ids === undefined || ids.length < 2 ? {} : { nats: nats / (ids.length - 1) }),
    };
  }

  private scoresOf(values: Values): { readonly scores: Float32Array; readonly classes: number } {
    const value = values.get(this.output);
    const classes = value?.shape.at(-1) ?? 1;
    const scores = value === undefined ? new Float32Array() : floatsOf(value);
    if (!this.isProbability) return { scores, classes };
    return { scores: scores.map((share) => Math.log(Math.max(share, 1e-12))), classes };
  }

  private distance(index: number, values: Values): number {
    let [sum, outputs] = [0, 0];
    for (const [name, wanted] of this.tensors.get(index) ?? []) {
      const value = values.get(name);
      if (value === undefined) continue;
      const got = readNumbers(value);
      let [squares, norm] = [0, 0];
      for (let i = 0; i < wanted.length; i++) {
        const x = wanted[i] as number;
        squares += (x - (got[i] ?? 0)) ** 2;
        norm += x * x;
      }
      sum += norm === 0 ? squares : squares / norm;
      outputs++;
    }
    return outputs === 0 ? 0 : sum / outputs;
  }
}

function floatsOf(value: Tensor): Float32Array {
  return value.data instanceof Float32Array ? value.data : Float32Array.from(readNumbers(value));
}

function isSoftmax({ producer }: Value): boolean {
  return producer?.op === 'Softmax';
}

/** Scores of classes come out of a linear layer, one row a sample. */
function areScores({ producer, shape, dtype }: Value): boolean {
  const isProduct = isLinear(producer) || producer?.op === 'Gemm' || producer?.op === 'MatMul';
  return isProduct && dtype === 'f32' && shape?.length === 2 && Number(shape[1]) > 1;
}

/** The classes of the highest scores, best first for the first one, and their log shares. */
function topRow(scores: Float32Array, most: number): Row {
  const count = Math.min(most, scores.length);
  let classes = Int32Array.from({ length: scores.length }, (_, index) => index);
  if (count < scores.length) {
    const sorted = scores.slice().sort();
    const least = sorted[scores.length - count] as number;
    const above = classes.filter((index) => (scores[index] as number) > least);
    const equal = classes.filter((index) => (scores[index] as number) === least);
    classes = Int32Array.from([...above, ...equal.subarray(0, count - above.length)]);
  }
  const best = bestOf(scores);
  const at = classes.indexOf(best);
  [classes[0], classes[at]] = [best, classes[0] ?? best];
  const logs = Float32Array.from(classes, (index) => scores[index] as number);
  const normalizer = logSum(logs);
  return { classes, logs: logs.map((log) => log - normalizer) };
}

/** KL over the classes of a row. */
function divergence({ classes, logs }: Row, scores: Float32Array): number {
  const own = new Float32Array(classes.length);
  for (let i = 0; i < own.length; i++) own[i] = scores[classes[i] as number] as number;
  const normalizer = logSum(own);
  let sum = 0;
  for (let i = 0; i < own.length; i++) {
    const log = logs[i] as number;
    sum += Math.exp(log) * (log - ((own[i] as number) - normalizer));
  }
  return sum;
}

function logSum(logs: Float32Array): number {
  let most = -Infinity;
  for (const log of logs) if (log > most) most = log;
  let sum = 0;
  for (const log of logs) sum += Math.exp(log - most);
  return most + Math.log(sum);
}

function bestOf(scores: Float32Array): number {
  let best = 0;
  for (let i = 1; i < scores.length; i++)
    if ((scores[i] as number) > (scores[best] as number)) best = i;
  return best;
}
