/**
 * What a report says about bundles, as data: sizes, memory, what the passes did, quality, and latency
 * where it was measured. `markdown.ts` and `html.ts` only spell it.
 */
import type { Manifest } from '../../runtime/manifest.ts';
import type { Measurement } from '../../runtime/measure.ts';
import type { BitMap } from './bit-map.ts';
import { bitMap } from './bit-map.ts';

/** Bytes of one kind. */
export interface Share {
  /** Number format or dtype. */
  readonly name: string;
  readonly bytes: number;
}

/** A tensor and what it takes. */
export interface TensorShare extends Share {
  /** Number format or dtype. */
  readonly format: string;
}

/** One bundle in a report. */
export interface BundleReport {
  readonly name: string;
  readonly path: string;
  readonly target: string;
  readonly engine: string;
  readonly parameters: number;
  /** Every file that the manifest lists. */
  readonly bytes: number;
  readonly sourceSha256: string;
  /** Weight bytes by number format, largest first. */
  readonly formats: readonly Share[];
  /** The largest tensors. */
  readonly largest: readonly TensorShare[];
  /** Number formats by block; absent when no weight is stored in codes. */
  readonly bitMap: BitMap | undefined;
  readonly memory: Manifest['memory'];
  readonly quality: Manifest['quality'];
  /** Data that weights were fitted to. */
  readonly calibration: Manifest['calibration'];
  readonly passes: readonly PassLine[];
  readonly recipe: Manifest['recipe'];
  readonly warnings: readonly string[];
  /** Times and memory, when the bundle was run for the report. */
  readonly measured: Measurement | undefined;
}

/** What one pass did. */
export interface PassLine {
  readonly pass: string;
  readonly nodesBefore: number;
  readonly nodesAfter: number;
  readonly weightBytesBefore: number;
  readonly weightBytesAfter: number;
}

/** Tensors listed one by one. */
const LISTED_TENSORS = 10;

/**
 * Reports on a bundle.
 *
 * @param path - what the user calls it
 * @param manifest - of the bundle
 * @param measured - of a session of it, when there is one
 */
export function reportBundle(
  path: string,
  manifest: Manifest,
  measured?: Measurement,
): BundleReport {
  const { weights, files, model } = manifest;
  const byFormat = new Map<string, number>();
  for (const { dtype, format = dtype, bytes } of weights.tensors)
    byFormat.set(format, (byFormat.get(format) ?? 0) + bytes);
  return {
    name: model.name,
    path,
    target: manifest.target,
    engine: manifest.engine,
    parameters: model.parameters,
    bytes: [...weights.files, ...files].reduce((sum, { bytes }) => sum + bytes, 0),
    sourceSha256: model.sha256,
    formats: [...byFormat]
      .map(([name, bytes]) => ({ name, bytes }))
      .sort((a, b) => b.bytes - a.bytes),
    largest: weights.tensors
      .map(({ name, dtype, format = dtype, bytes }) => ({ name, format, bytes }))
      .sort((a, b) => b.bytes - a.bytes)
      .slice(0, LISTED_TENSORS),
    bitMap: bitMap(manifest),
    memory: manifest.memory,
    quality: manifest.quality,
    calibration: manifest.calibration,
    passes: manifest.passes.flatMap(passLine),
    recipe: manifest.recipe,
    warnings: manifest.warnings,
    measured,
  };
}

/** Passes are stored as plain JSON; a line that does not look like one is left out. */
function passLine(value: unknown): PassLine[] {
  const { pass, before, after } = value as {
    readonly pass?: string;
    readonly before?: { readonly nodes: number; readonly weightBytes: number };
    readonly after?: { readonly nodes: number; readonly weightBytes: number };
  };
  if (pass === undefined || before === undefined || after === undefined) return [];
  return [
    {
      pass,
      nodesBefore: before.nodes,
      nodesAfter: after.nodes,
      weightBytesBefore: before.weightBytes,
      weightBytesAfter: after.weightBytes,
    },
  ];
}
