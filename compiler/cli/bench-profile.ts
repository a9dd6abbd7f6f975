/**
 * Where the time of a model goes: milliseconds by kernel, from an engine that runs step by step when asked.
 * Runs in Node and in a page. Looking at the clock between steps takes a few percent more time in all.
 */
import type { Session, StepTime } from '../../runtime/index.ts';

/** Steps of one kernel together. */
export interface KernelTime {
  /** `prefill`: the whole prompt. `decode`: one token. `call`: one call of what is no decoder. */
  readonly phase: 'prefill' | 'decode' | 'call';
  /** Kernel of the steps. */
  readonly kernel: string;
  /** Steps. */
  readonly steps: number;
  /** All of them, in milliseconds. */
  readonly ms: number;
}

/** Sums what was counted between two looks, `runs` times the same, largest first. */
export function kernelTimes(
  phase: KernelTime['phase'],
  before: readonly StepTime[],
  after: readonly StepTime[],
  runs: number,
): KernelTime[] {
  const sums = new Map<string, { steps: number; ms: number }>();
  after.forEach(({ kernel, ms, calls }, index) => {
    const sum = sums.get(kernel) ?? { steps: 0, ms: 0 };
    sum.ms += (ms - (before[index]?.ms ?? 0)) / runs;
    sum.steps += (calls - (before[index]?.calls ?? 0)) / runs;
    sums.set(kernel, sum);
  });
  return [...sums]
    .map(([kernel, sum]) => ({ phase, kernel, ...sum }))
    .filter(({ steps }) => steps > 0)
    .toSorted((a, b) => b.ms - a.ms);
}

/** Profiles a warm decoder; empty when its engine does not tell. */
export async function profileDecoder(
  session: Session,
  prompt: readonly number[],
  tokens: number,
): Promise<KernelTime[]> {
  if (session.profile() === undefined) return [];
  const options = { maxTokens: 1 + tokens, temperature: 0, ignoreEnd: true };
  await session.generate(prompt, { ...options, maxTokens: 1 }).result();
  const looks: (readonly StepTime[])[] = [session.profile() ?? []];
  // tokens are computed when they are asked for: the first with the prompt, then one at a time
  for await (const token of session.generate(prompt, options)) {
    void token;
    if (looks.length === 1) looks.push(session.profile() ?? []);
  }
  const [before = [], first = []] = looks;
  return [
    ...kernelTimes('prefill', before, first, 1),
    ...kernelTimes('decode', first, session.profile() ?? [], tokens),
  ];
}

/** Profiles calls of what is no decoder. */
export async function profileCalls(
  session: Session,
  call: () => Promise<unknown>,
  repeat: number,
): Promise<KernelTime[]> {
  if (session.profile() === undefined) return [];
  await call();
  const before = session.profile() ?? [];
  for (let i = 0; i < repeat; i++) await call();
  return kernelTimes('call', before, session.profile() ?? [], repeat);
}
