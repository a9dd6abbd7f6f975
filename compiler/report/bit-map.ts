/**
 * Where the bits went: number formats of a bundle's weights by block and part, from what the manifest
 * says about its passes. `fettle inspect` and the reports draw it.
 *
 *     block  qkv     o       gate    up      down
 *     0      w4g64a  w3g64a  w3g64a  w3g64a  w4g64a
 */
import type { Manifest } from '../../runtime/manifest.ts';
import { parseFormat } from '../quant/formats.ts';

/** One weight in the map. */
export interface BitCell {
  /** Name of the constant. */
  readonly name: string;
  /** Block, -1 outside of blocks. */
  readonly block: number;
  /** Part of the block: `qkv`, `down`, …; `table`. */
  readonly part: string;
  /** Number format. */
  readonly format: string;
  /** Bits of a code. */
  readonly bits: number;
  /** Elements. */
  readonly elements: number;
  /** Bytes of codes, scales, zero points and codebooks. */
  readonly bytes: number;
  /** Relative squared error of the weights. */
  readonly relativeError: number;
}

/** The formats of a bundle. */
export interface BitMap {
  /** Parts, in the order of their first block. */
  readonly parts: readonly string[];
  /** Blocks that have a weight in the map, rising. */
  readonly blocks: readonly number[];
  /** The weights, in the order of the model. */
  readonly cells: readonly BitCell[];
  /** Bits a parameter on average: all weight files over all parameters. */
  readonly averageBits: number;
}

/** The map of a bundle; undefined when no weight is stored in codes. */
export function bitMap(
  manifest: Pick<Manifest, 'passes' | 'model' | 'weights'>,
): BitMap | undefined {
  const cells = manifest.passes.flatMap(tensorsOf).flatMap(cellOf);
  if (cells.length === 0) return undefined;
  const inside = cells.filter(({ block }) => block >= 0);
  return {
    parts: [...new Set(inside.map(({ part }) => part))],
    blocks: [...new Set(inside.map(({ block }) => block))].toSorted((a, b) => a - b),
    cells,
    averageBits: Number(
      ((8 * manifest.weights.bytes) / Math.max(1, manifest.model.parameters)).toFixed(4),
    ),
  };
}

/** Formats of the weights of a block by part, in the order of `parts`; empty where it has none. */
export function rowOf({ parts, cells }: BitMap, block: number): readonly (BitCell | undefined)[] {
  return parts.map((part) => cells.find((cell) => cell.block === block && cell.part === part));
}

/** Weights outside of blocks. */
export function outsideOf({ cells }: BitMap): readonly BitCell[] {
  return cells.filter(({ block }) => block < 0);
}

/** The map as lines of text. */
export function bitMapText(map: BitMap): string[] {
  const header = ['block', ...map.parts];
  const rows = map.blocks.map((block) => [
    String(block),
    ...rowOf(map, block).map((cell) => cell?.format ?? ''),
  ]);
  const widths = header.map((title, i) =>
    Math.max(title.length, ...rows.map((row) => (row[i] ?? '').length)),
  );
  const line = (cells: readonly string[]): string =>
    cells
      .map((cell, i) => cell.padEnd(widths[i] ?? 0))
      .join('  ')
      .trimEnd();
  return [
    `weights, ${map.averageBits.toFixed(2)} bits a parameter on average:`,
    ...(rows.length === 0 ? [] : [line(header), ...rows.map(line)]),
    ...outsideOf(map).map(({ part, format, name }) => `${part}: ${format} (${name})`),
  ];
}

/** What the pass noted about tensors, as far as it reads so. */
function tensorsOf(report: unknown): readonly unknown[] {
  if (!isObject(report) || report['pass'] !== 'quantize-weights') return [];
  const { notes } = report;
  const tensors = isObject(notes) ? notes['tensors'] : undefined;
  return Array.isArray(tensors) ? tensors : [];
}

function cellOf(note: unknown): readonly BitCell[] {
  if (!isObject(note)) return [];
  const { name, format, shape, bytes, block, part, relativeError } = note;
  if (typeof name !== 'string' || typeof format !== 'string' || typeof block !== 'number')
    return [];
  if (typeof part !== 'string' || !Array.isArray(shape)) return [];
  return [
    {
      name,
      block,
      part,
      format,
      bits: parseFormat(format).bits,
      elements: shape.reduce((product: number, size) => product * Number(size), 1),
      bytes: Number(bytes),
      relativeError: Number(relativeError),
    },
  ];
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
