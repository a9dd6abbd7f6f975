/**
 * Runs the segments of a plan inside WASM: one call for all steps, or step by step for a profile.
 */
import type { StepTime } from '../engine.ts';
import type { Plan, PlanSegment } from '../plan.ts';
import type { KernelExports, ThreadedKernelExports } from './module.ts';
import type { Pool } from './pool.ts';

/** A plan in memory, ready to run. */
export class Executor {
  /** Linear memory; it never grows. */
  readonly memory: WebAssembly.Memory;
  private readonly plan: Plan;
  private readonly kernels: KernelExports | ThreadedKernelExports;
  private readonly pool: Pool | undefined;
  private times: { ms: number; calls: number }[] | undefined;

  constructor(
    plan: Plan,
    memory: WebAssembly.Memory,
    kernels: KernelExports | ThreadedKernelExports,
    pool: Pool | undefined,
  ) {
    this.plan = plan;
    this.memory = memory;
    this.kernels = kernels;
    this.pool = pool;
  }

  /** Threads that run each step. */
  get threads(): number {
    return this.pool?.threads ?? 1;
  }

  /** Runs the body for S tokens behind P. */
  body(S: number, P: number): void {
    this.call(this.plan.layout.body, 0, S, P);
  }

  /** Runs the head for `rows` rows of the last body from row `first` on. */
  head(rows: number, first: number): void {
    const { body, head } = this.plan.layout;
    if (head !== undefined) this.call(head, body.steps, rows, first);
  }

  /** Runs what has to run once, before anything else, when the weights are in memory. */
  init(): void {
    const { body, head, init } = this.plan.layout;
    if (init !== undefined) this.call(init, body.steps + (head?.steps ?? 0), 1, 0);
  }

  /** Runs step by step from now on, and counts; returns what was counted so far. */
  profile(): readonly StepTime[] {
    const { steps } = this.plan.layout;
    const times = this.times ?? steps.map(() => ({ ms: 0, calls: 0 }));
    this.times = times;
    return steps.map(({ kernel, node }, index) => ({
      kernel,
      node,
      ms: times[index]?.ms ?? 0,
      calls: times[index]?.calls ?? 0,
    }));
  }

  /** Bytes of memory as the elements of a tensor. */
  floats(address: number, count: number): Float32Array {
    return new Float32Array(this.memory.buffer, address, count);
  }

  /** Bytes of memory as the elements of a tensor. */
  integers(address: number, count: number): Int32Array {
    return new Int32Array(this.memory.buffer, address, count);
  }

  /** Index of the largest of `count` f32, the first among equals. */
  largest(address: number, count: number): number {
    return this.kernels.largest(address, count);
  }

  /** Ends the threads. */
  dispose(): void {
    if (this.pool === undefined) return;
    if ('stop' in this.kernels) this.kernels.stop(this.plan.layout.body.address);
    this.pool.dispose();
  }

  private call({ address, steps }: PlanSegment, firstStep: number, S: number, P: number): void {
    this.kernels.patch(address, S, P);
    if (this.times === undefined) {
      this.steps(address, 0, steps);
      return;
    }
    for (let step = 0; step < steps; step++) {
      const startMs = performance.now();
      this.steps(address, step, step + 1);
      const time = this.times[firstStep + step];
      if (time === undefined) continue;
      time.ms += performance.now() - startMs;
      time.calls++;
    }
  }

  private steps(plan: number, from: number, to: number): void {
    const { kernels, threads } = this;
    if (threads > 1 && 'launch' in kernels) kernels.launch(plan, from, to, threads);
    else kernels.run(plan, from, to, 0, 1);
  }
}
