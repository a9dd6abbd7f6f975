/** The page of the comparison in Chromium: what `fettle bench` has there, and wllama. Web APIs only. */
import * as wllamaModule from '@wllama/wllama/esm/index.js';
import { benchPage } from '../../compiler/cli/bench-page.ts';
import type { GenerationSpeed } from '../../compiler/cli/bench-row.ts';
import type { Generations, MeasureSettings } from '../../compiler/cli/bench-session.ts';
import { measureGenerations } from '../../compiler/cli/bench-session.ts';

/** The part of wllama that is used; its own types do not resolve under `nodenext`. */
interface WllamaModule {
  readonly Wllama: new (
    paths: { readonly default: string },
    options: { readonly suppressNativeLog: boolean },
  ) => {
    loadModel(files: readonly Blob[], options: Readonly<Record<string, unknown>>): Promise<void>;
    createCompletion(options: Readonly<Record<string, unknown>>): Promise<{
      readonly timings?: {
        readonly prompt_n: number;
        readonly prompt_ms: number;
        readonly predicted_n: number;
        readonly predicted_ms: number;
      };
    }>;
    getNumThreads(): number;
    exit(): Promise<void>;
  };
}

const { Wllama } = wllamaModule as unknown as WllamaModule;

/** Figures of one wllama session. */
export interface WllamaFigures extends Generations {
  readonly loadMs: number;
  readonly threads: number;
}

/** What the page offers besides. */
export interface PeerPage {
  /** Loads a GGUF file from a URL and generates from prompts of one letter. */
  wllama(
    url: string,
    options: { readonly threads: number; readonly contextLength: number },
    settings: MeasureSettings,
  ): Promise<WllamaFigures>;
}

const offered: PeerPage = {
  async wllama(url, { threads, contextLength }, settings) {
    const { promptTokens, tokens } = settings;
    const startMs = performance.now();
    const wllama = new Wllama({ default: '/wllama/wasm/wllama.wasm' }, { suppressNativeLog: true });
    const file = await (await fetch(url)).blob();
    await wllama.loadModel([file], {
      n_ctx: contextLength,
      n_threads: threads,
      n_gpu_layers: 0,
      n_parallel: 1,
      // the cold generation is measured
      warmup: false,
    });
    const loadMs = performance.now() - startMs;
    const generate = async (letter: string): Promise<GenerationSpeed> => {
      const { timings } = await wllama.createCompletion({
        prompt: letter.repeat(promptTokens),
        max_tokens: tokens,
        temperature: 0,
        ignore_eos: true,
        stream: false,
        cache_prompt: false,
      });
      if (timings === undefined) throw new Error('wllama gave no timings.');
      const { prompt_n, prompt_ms, predicted_n, predicted_ms } = timings;
      if (prompt_n !== promptTokens || predicted_n !== tokens)
        throw new Error(`wllama took ${prompt_n} tokens and gave ${predicted_n}.`);
      return {
        firstTokenMs: prompt_ms,
        prefillTokensPerSecond: (prompt_n * 1000) / prompt_ms,
        // its clock for these starts when the first token is there
        decodeTokensPerSecond: ((predicted_n - 1) * 1000) / predicted_ms,
      };
    };
    try {
      const speeds = await measureGenerations(settings, (index) =>
        generate('abcdefgh'[index % 8] ?? 'a'),
      );
      return { loadMs, ...speeds, threads: wllama.getNumThreads() };
    } finally {
      await wllama.exit();
    }
  },
};

Object.assign(globalThis, { fettleBench: benchPage, peerPage: offered });
