/** The program that session-memory.ts runs: opens a bundle, fills its context, prints what that took as JSON. */
import { readFileSync, writeFileSync } from 'node:fs';
import type { MemorySpec } from '../../runtime/manifest.ts';
import { openBundle, processMemory } from '../../runtime/node.ts';

/** Bytes beyond what the process had before the bundle was opened. */
export interface SessionMemory {
  /** What the manifest says. */
  readonly memory: MemorySpec;
  /** Peak while the bundle loads. */
  readonly load: number;
  /** Peak over everything. */
  readonly peak: number;
  /** Left at the end, garbage collected. */
  readonly held: number;
  readonly loadMs: number;
  readonly tokens: number;
}

const [bundle = '', threads] = process.argv.slice(2);
await settle();
writeFileSync('/proc/self/clear_refs', '5');
const before = processMemory().residentBytes;
const filesBefore = fileBytes();
/** Peak so far without pages of files: Node's own code counts as resident when it first runs. */
const peakBytes = (): number => processMemory().peakBytes - before - (fileBytes() - filesBefore);
const startMs = performance.now();
const session = await openBundle(bundle, { wasm: { threads: Number(threads) } });
const loadMs = performance.now() - startMs;
const load = peakBytes();
const { memory, decoder } = session.manifest;
const tokens = (decoder?.contextLength ?? 1) - 8;
const prompt = Array.from({ length: tokens }, (_, i) => (i * 37) % (decoder?.vocabulary ?? 1));
await session.generate(prompt, { maxTokens: 8, ignoreEnd: true, temperature: 0 }).result();
const peak = peakBytes();
await settle();
const held = processMemory().residentBytes - before - (fileBytes() - filesBefore);
const result: SessionMemory = { memory, load, peak, held, loadMs, tokens };
process.stdout.write(JSON.stringify(result));
await session.dispose();

async function settle(): Promise<void> {
  for (let i = 0; i < 3; i++) {
    globalThis.gc?.();
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Resident pages that hold files. */
function fileBytes(): number {
  const [, kib] = /^RssFile:\s*(\d+) kB/m.exec(readFileSync('/proc/self/status', 'utf8')) ?? [];
  return Number(kib ?? 0) * 1024;
}
