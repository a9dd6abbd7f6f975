/**
 * The values that cross one cut, for every sample: all that is held between two stages. Running a stage
 * replaces them by those that cross the next cut.
 */
import type { Tensor } from '../../runtime/tensor.ts';
import { turn } from '../turn.ts';
import type { Samples } from './samples.ts';
import type { Stage } from './stages.ts';
import type { StageRunner, Values } from './stage-runner.ts';

/** Values of samples between two stages. */
export class Activations {
  private readonly samples: Samples;
  private readonly held: Map<string, Tensor>[];
  /** Names that each stage and those behind it read. */
  private readonly needed: readonly ReadonlySet<string>[];

  constructor(samples: Samples, stages: readonly Stage[]) {
    this.samples = samples;
    this.held = Array.from({ length: samples.count }, () => new Map<string, Tensor>());
    const needed: ReadonlySet<string>[] = [];
    let later = new Set<string>();
    for (const stage of stages.toReversed()) {
      later = new Set([...later, ...stage.inputs]);
      needed.unshift(later);
    }
    this.needed = needed;
  }

  /** Number of samples. */
  get count(): number {
    return this.held.length;
  }

  /** Everything known of a sample: inputs of the model, and what crosses the cut. */
  of(index: number): Values {
    return new Map([...this.samples.at(index), ...(this.held[index] ?? [])]);
  }

  /**
   * Runs a stage over all samples; afterwards what is held is what crosses the cut behind it.
   *
   * @param outputs - told everything the stage gave for a sample
   */
  async advance(
    stage: Stage,
    runner: StageRunner,
    signal: AbortSignal | undefined,
    outputs: (index: number, values: Values) => void = () => {},
  ): Promise<void> {
    const kept = this.needed[stage.index + 1] ?? new Set<string>();
    for (let index = 0; index < this.count; index++) {
      await turn(signal);
      const values = await runner.run(this.of(index));
      outputs(index, values);
      this.keep(index, values, kept);
    }
  }

  private keep(index: number, values: Values, kept: ReadonlySet<string>): void {
    const next = new Map<string, Tensor>();
    for (const [name, value] of [...(this.held[index] ?? []), ...values])
      if (kept.has(name)) next.set(name, value);
    this.held[index] = next;
  }
}
