/** What compile() takes and gives. */
import type { FettleError } from '../runtime/errors.ts';
import type { Manifest } from '../runtime/manifest.ts';
import type { Target } from '../targets/target.ts';
import type { BundleRunner } from './emit/expected.ts';
import type { FileSystem } from './files.ts';
import type { Log, PassReport, Progress } from './passes/pass.ts';
import type { ActivationSummary } from './report/activations.ts';
import type { Recipe } from './recipe.ts';
import type { CalibrationOptions } from './search/calibrated.ts';
import type { SensitivityTable } from './search/table.ts';

/** Options of `compile()`. */
export interface CompileOptions {
  /** Target ids, or descriptors of targets that are not in the list. */
  readonly targets: readonly (string | Target)[];
  /** Where bundles are written. */
  readonly files: FileSystem;
  /**
   * A folder, or a path ending in `.fettle` for one packed file. With several targets each bundle gets
   * a place of its own: `out/<target>`, or `name.<target>.fettle`.
   */
  readonly out: string;
  /** What decides the result; made by `parseRecipe`. Default: clean-up only. */
  readonly recipe?: Recipe;
  /** Messages; silent by default. */
  readonly log?: Log;
  /** Progress of long steps. */
  readonly progress?: Progress;
  /** Stops; nothing stays of what was written. */
  readonly signal?: AbortSignal;
  /** Receives the model's text after each pass that changed it; names sort in order. */
  readonly dump?: (name: string, text: string) => void;
  /** Runs a written bundle on its own engine, for canaries. Default: the reference evaluator. */
  readonly run?: BundleRunner;
  /** Measures a written bundle against the original; needed for the recipe's `maxLoss`. */
  readonly measure?: QualityMeasure;
  /** Data that formats are chosen by and codes are fitted to; needed for `auto` weights. */
  readonly calibration?: CalibrationOptions;
}

/**
 * Compares a bundle with the model it was made from.
 *
 * @param part - of the data: all that is measured on, or other data of the same kind, for a second look
 * at what was chosen by the first
 */
export type QualityMeasure = (
  folder: string,
  target: Target,
  part?: 'first' | 'second',
) => Promise<Quality>;

/** A quality metric of the original and of the bundle. */
export type Quality = NonNullable<Manifest['quality']>;

/** One bundle that was written. */
export interface CompiledBundle {
  /** Where it is: a folder or a `.fettle` file. */
  readonly path: string;
  /** What it is for. */
  readonly target: string;
  /** Bytes of everything: of all files, or of the packed file. */
  readonly bytes: number;
  /** Bytes of the weight chunks. */
  readonly weightBytes: number;
  /** Number of files, the manifest included. */
  readonly files: number;
  /** Hash of the manifest, which holds the hashes of all other files. */
  readonly sha256: string;
  /** Weight format, `mixed` when they are chosen one by one; undefined when weights keep their own dtypes. */
  readonly weights: string | undefined;
  /** What weights are multiplied with, and why. */
  readonly activations: ActivationSummary;
  /** Bits a parameter on average: the weight chunks over all parameters. */
  readonly averageBits: number;
  /** The table that formats were chosen from, with what was chosen; absent without calibration. */
  readonly table?: SensitivityTable;
  /** Memory a session needs, estimated. */
  readonly memory: Manifest['memory'];
  /** Measured quality, when it was measured. */
  readonly quality: Quality | undefined;
  /** What the user should know. */
  readonly warnings: readonly string[];
}

/** A target that was asked for and cannot run the model. */
export interface RefusedTarget {
  /** Its id. */
  readonly target: string;
  /** Why, with every missing op. */
  readonly error: FettleError;
}

/** What a compilation did. */
export interface CompileResult {
  /** One per target that runs the model, in their order. */
  readonly bundles: readonly CompiledBundle[];
  /** Targets left out because their engine cannot run the model; absent when there are none. */
  readonly refused?: readonly RefusedTarget[];
  /** What every pass did: the shared front half, then target by target. */
  readonly passes: readonly PassReport[];
  /** Largest loss of quality that was measured. */
  readonly loss?: { readonly metric: string; readonly before: number; readonly after: number };
  /** Wall time of everything. */
  readonly wallMs: number;
}

/** By how much quality got worse, as a fraction of what it was; 0 when it did not. */
export function relativeLoss({ before, after }: Quality): number {
  // perplexity, distance and error rates: smaller is better
  return before === 0 ? Math.max(0, after) : Math.max(0, (after - before) / Math.abs(before));
}
