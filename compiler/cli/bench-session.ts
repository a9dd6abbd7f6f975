/**
 * Measures an open session. Runs in Node and in a page (see `bench-page.ts`), so it uses web APIs only.
 *
 * A decoder takes the prompt and the tokens once cold, which is also when engines begin to compile their
 * kernels for good, then, if asked, until it is warm, then again for every sample. Other models take one call
 * that is not counted, then the samples.
 */
import type { GenerationResult, MemoryBytes, MemorySource, Session } from '../../runtime/index.ts';
import { randomFeeds } from '../evaluate/random-feeds.ts';
import type { KernelTime } from './bench-profile.ts';
import { profileCalls, profileDecoder } from './bench-profile.ts';
import type { GenerationSpeed } from './bench-row.ts';

/** What to measure. */
export interface MeasureSettings {
  /** Tokens of the prompt. */
  readonly promptTokens: number;
  /** Tokens to generate, in the cold and in every steady generation. */
  readonly tokens: number;
  /** Samples after the cold one. */
  readonly repeat: number;
  /** Fewer samples, but one, once they have taken that long, in milliseconds. */
  readonly repeatMs?: number;
  /** Generations before the samples, which end when one of both is reached; the cold one is the first. */
  readonly warmUp?: { readonly generations: number; readonly ms: number };
  /** Also say where the time goes. */
  readonly profile?: boolean;
  /** Stops. */
  readonly signal?: AbortSignal;
}

/** Figures of one session; JSON, so that a page or a child process can hand it over. */
export interface SessionFigures {
  /** Variant of the engine's kernels. */
  readonly kernels: string;
  /** Threads in use, when the engine can tell. */
  readonly threads?: number;
  /** From opening to ready, in milliseconds. */
  readonly loadMs: number;
  /** The first generation. */
  readonly cold?: GenerationSpeed;
  /** Generations before the steady ones, the cold one included. */
  readonly warmUps?: number;
  /** The generations after them. */
  readonly steady: readonly GenerationSpeed[];
  /** Milliseconds of each call, for what is no decoder. */
  readonly callMs: readonly number[];
  /** Where the time goes, when asked for and the engine can tell. */
  readonly profile?: readonly KernelTime[];
  /** Bytes by class. */
  readonly memoryBytes: MemoryBytes;
  /** Where each is from. */
  readonly memorySource: MemoryBytes<MemorySource>;
}

/**
 * Measures a session.
 *
 * @param session - freshly opened, or the cold figures are none
 * @throws the signal's reason when aborted
 */
export async function measureSession(
  session: Session,
  settings: MeasureSettings,
): Promise<SessionFigures> {
  const speed =
    session.manifest.decoder === undefined
      ? { steady: [], callMs: await calls(session, settings) }
      : { ...(await generations(session, settings)), callMs: [] };
  const measured = session.measure();
  const { threads, loadMs, memoryBytes, memorySource } = measured;
  // onnxruntime-web has one set of kernels
  const { engine } = session.manifest;
  const kernels = measured.kernels ?? (engine === 'ort' ? 'onnxruntime-web' : engine);
  const used = threads === undefined ? {} : { threads };
  const profile = settings.profile === true ? { profile: await profileOf(session, settings) } : {};
  return { kernels, ...used, loadMs, ...speed, ...profile, memoryBytes, memorySource };
}

/** After everything that is timed: stepping is slower. */
async function profileOf(session: Session, settings: MeasureSettings): Promise<KernelTime[]> {
  const { decoder } = session.manifest;
  const { promptTokens, tokens, repeat } = settings;
  if (decoder !== undefined)
    return profileDecoder(session, benchmarkPrompt(promptTokens, decoder.vocabulary), tokens);
  const [feeds] = randomFeeds(session.manifest, 1, 1);
  return feeds === undefined ? [] : profileCalls(session, () => session.run(feeds), repeat);
}

/** The same prompt for every engine: ids all over the vocabulary. */
export function benchmarkPrompt(tokens: number, vocabulary: number): number[] {
  return Array.from({ length: tokens }, (_, i) => (i * 37 + 11) % vocabulary);
}

async function calls(session: Session, { repeat, signal }: MeasureSettings): Promise<number[]> {
  const [feeds] = randomFeeds(session.manifest, 1, 1);
  if (feeds === undefined) return [];
  const options = signal === undefined ? {} : { signal };
  await session.run(feeds, options); // the first call also allocates
  const callMs: number[] = [];
  for (let i = 0; i < repeat; i++) {
    const startMs = performance.now();
    await session.run(feeds, options);
    callMs.push(performance.now() - startMs);
  }
  return callMs;
}

function generations(session: Session, settings: MeasureSettings): Promise<Generations> {
  const { promptTokens, tokens, signal } = settings;
  const { vocabulary = 1 } = session.manifest.decoder ?? {};
  const prompt = benchmarkPrompt(promptTokens, vocabulary);
  const options = { maxTokens: tokens, temperature: 0, ignoreEnd: true };
  return measureGenerations(settings, async () => {
    const generation = session.generate(prompt, {
      ...options,
      ...(signal === undefined ? {} : { signal }),
    });
    const result = await generation.result();
    signal?.throwIfAborted();
    return speedOf(result);
  });
}

/** Figures of generations one after another. */
export type Generations = Required<Pick<SessionFigures, 'cold' | 'warmUps' | 'steady'>>;

/**
 * A cold generation, those that warm up, and the samples: the same rule for every engine.
 *
 * @param generate - makes generation `index`
 */
export async function measureGenerations(
  settings: MeasureSettings,
  generate: (index: number) => Promise<GenerationSpeed>,
): Promise<Generations> {
  const { repeat, repeatMs = Infinity, warmUp = { generations: 1, ms: 0 } } = settings;
  let startMs = performance.now();
  const cold = await generate(0);
  let warmUps = 1;
  for (; warmUps < warmUp.generations && performance.now() - startMs < warmUp.ms; warmUps++)
    await generate(warmUps);
  const steady: GenerationSpeed[] = [];
  startMs = performance.now();
  for (let i = 0; i < repeat && (i === 0 || performance.now() - startMs < repeatMs); i++)
    steady.push(await generate(warmUps + i));
  return { cold, warmUps, steady };
}

function speedOf(result: GenerationResult): GenerationSpeed {
  const { firstTokenMs, prefillTokensPerSecond, decodeTokensPerSecond } = result;
  return { firstTokenMs, prefillTokensPerSecond, decodeTokensPerSecond };
}
