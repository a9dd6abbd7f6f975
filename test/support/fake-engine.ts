/** An engine that computes nothing: for tests of loading and of what the session does around a program. */
import type { Engine, Program } from '../../runtime/index.ts';

/** What happened to a fake engine. */
export interface FakeEngine extends Engine {
  /** The weights it was given, once started. */
  weights: Uint8Array | undefined;
  /** Programs started and disposed, and loads given up. */
  readonly counts: { started: number; disposed: number; abandoned: number };
}

/** Makes a fake engine; `program` replaces parts of its program. */
export function fakeEngine(program: Partial<Program> = {}): FakeEngine {
  const counts = { started: 0, disposed: 0, abandoned: 0 };
  const engine: FakeEngine = {
    id: 'ort',
    weights: undefined,
    counts,
    async open({ manifest, readFile }) {
      await readFile(manifest.program.file);
      const weights = new Uint8Array(manifest.weights.bytes);
      return {
        weights,
        start() {
          counts.started++;
          engine.weights = weights;
          return Promise.resolve({
            run: () => Promise.resolve({ outputs: {}, held: {} }),
            memory: () => ({ weights: weights.length, arena: undefined, state: undefined }),
            dispose() {
              counts.disposed++;
              return Promise.resolve();
            },
            ...program,
          });
        },
        dispose: () => void counts.abandoned++,
      };
    },
  };
  return engine;
}

/** For `assert.rejects`: a FettleError with this code, a place, a fix, and a message that matches. */
export function fettleError(code: string, message: RegExp = /./): (error: unknown) => boolean {
  return (error) => {
    const seen = error as {
      name?: string;
      code?: string;
      at?: object;
      fix?: string;
      message: string;
    };
    if (seen.name !== 'FettleError' || seen.code !== code)
      throw new Error(`wanted FettleError ${code}, got ${String(error)}`, { cause: error });
    if (!message.test(seen.message)) throw new Error(`message "${seen.message}" is not ${message}`);
    if (seen.fix === undefined) throw new Error(`"${seen.message}" names no fix`);
    return true;
  };
}
