/**
 * What a session adds to the memory of its process, for a child process of its own:
 *
 *     node --expose-gc --import tsx test/support/session-memory.ts <warm-up bundle> <bundle> [tokens]
 *
 * Opens and runs a small bundle first, so that code is loaded and compiled; then resets the peak of the process
 * (`/proc/self/clear_refs`), opens the bundle, fills its context and prints {@link SessionMemory} as JSON.
 */
import { writeFileSync } from 'node:fs';
import { openBundle, processMemory } from '../../runtime/node.ts';

/** Bytes beyond what the process had before the bundle was opened. */
export interface SessionMemory {
  /** Weights, arena, state and stack of the manifest. */
  readonly planned: number;
  /** Weights of the manifest. */
  readonly weights: number;
  /** Peak while the bundle loads. */
  readonly load: number;
  /** Peak over everything. */
  readonly peak: number;
  /** Left after the prompt, garbage collected. */
  readonly held: number;
  readonly loadMs: number;
  readonly tokens: number;
}

const [warmUp, bundle, count] = process.argv.slice(2);
if (warmUp !== undefined && bundle !== undefined) {
  await settle();
  await use(warmUp, 40);
  await settle();
  writeFileSync('/proc/self/clear_refs', '5');
  const before = processMemory().residentBytes;
  const startMs = performance.now();
  const session = await openBundle(bundle);
  const loadMs = performance.now() - startMs;
  const load = processMemory().peakBytes - before;
  const { memory, decoder } = session.manifest;
  const tokens = count === undefined ? (decoder?.contextLength ?? 1) - 8 : Number(count);
  const prompt = Array.from({ length: tokens }, (_, i) => (i * 37) % (decoder?.vocabulary ?? 1));
  await session.generate(prompt, { maxTokens: 8, ignoreEnd: true, temperature: 0 }).result();
  const peak = processMemory().peakBytes - before;
  await settle();
  const held = processMemory().residentBytes - before;
  const planned = memory.weights + memory.arena + memory.state + (memory.stack ?? 0);
  const { weights } = memory;
  const result: SessionMemory = { planned, weights, load, peak, held, loadMs, tokens };
  process.stdout.write(JSON.stringify(result));
  await session.dispose();
}

async function use(path: string, tokens: number): Promise<void> {
  const session = await openBundle(path);
  const prompt = Array.from({ length: tokens }, (_, i) => i % 100);
  await session.generate(prompt, { maxTokens: 8, ignoreEnd: true, temperature: 0 }).result();
  await session.dispose();
}

async function settle(): Promise<void> {
  for (let i = 0; i < 3; i++) {
    globalThis.gc?.();
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
