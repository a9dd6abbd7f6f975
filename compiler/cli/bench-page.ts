/** What runs in the page of `fettle bench --host chromium`; `bench-chromium.ts` bundles it. Web APIs only. */
import type { OpenOptions } from '../../runtime/index.ts';
import { openBundle } from '../../runtime/index.ts';
import { measureLimits } from './bench-limits.ts';
import type { Limits } from './bench-row.ts';
import type { MeasureSettings, SessionFigures } from './bench-session.ts';
import { measureSession } from './bench-session.ts';

/** A bundle that was measured. */
export interface MeasuredBundle {
  /** Name of its model. */
  readonly model: string;
  /** What ran it. */
  readonly engine: string;
  /** The figures. */
  readonly figures: SessionFigures;
}

/** What the page offers to the process that drives it. */
export interface BenchPage {
  /** Opens the bundle at a URL, measures it and closes it. */
  measure(url: string, open: OpenOptions, settings: MeasureSettings): Promise<MeasuredBundle>;
  /** The limits of one thread in this page. */
  limits(): Promise<Limits>;
  /** Whether memory can be shared between threads. */
  readonly isolated: boolean;
}

/** The page's side; another page may offer it beside its own. */
export const benchPage: BenchPage = {
  async measure(url, open, settings) {
    const session = await openBundle(url, open);
    try {
      const { model, engine } = session.manifest;
      return { model: model.name, engine, figures: await measureSession(session, settings) };
    } finally {
      await session.dispose();
    }
  },
  limits: measureLimits,
  isolated: globalThis.crossOriginIsolated,
};

Object.assign(globalThis, { fettleBench: benchPage });
