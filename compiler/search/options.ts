/**
 * The formats a unit may have on a target: what its kernels run, minus what another format always beats.
 *
 * Eight bits are symmetric; groups are those that fill the rows. Codebooks are not among them: in `nib` at
 * equal bytes they take 3 to 10% off the KL and twice the time of a product (decisions/001).
 */
import type { Target } from '../../targets/target.ts';
import type { ConvolutionChoice, WeightUnit } from '../passes/weight-units.ts';
import type { WeightFormat } from '../quant/formats.ts';
import { parseFormat } from '../quant/formats.ts';
import { matrixCost } from './cost.ts';

/** Every format that is worth a look, by rising bits. */
const candidates: readonly string[] = [
  'w2',
  'w2a',
  'w2g128a',
  'w2g64a',
  'w2g32',
  'w2g32a',
  'w2g16a',
  'w3',
  'w3a',
  'w3g128a',
  'w3g64',
  'w3g64a',
  'w3g32',
  'w3g32a',
  'w3g16a',
  'w4',
  'w4a',
  'w4g128a',
  'w4g64',
  'w4g64a',
  'w4g32',
  'w4g32a',
  'w4g16a',
  'w8',
  'w8g64',
  'w8g32',
  'f16',
];

/** What narrows the choice. */
export interface OptionSettings {
  /** How the target treats convolutions. Default `auto`. */
  readonly convolutions?: ConvolutionChoice;
}

/**
 * The formats of a unit on a target, at least one.
 *
 * @param unit - what is stored
 */
export function unitOptions(
  unit: WeightUnit,
  target: Target,
  { convolutions = 'auto' }: OptionSettings = {},
): readonly WeightFormat[] {
  const isConvolution = unit.sites.some(({ kind }) => kind === 'convolution');
  const isKept = isConvolution && convolutions === 'none';
  const found = candidates.map(parseFormat).filter((format) => {
    if (format.kind === 'float') return target.weightFormats.includes(format.dtype);
    if (isKept || !runs(target, format)) return false;
    const { group } = format;
    // a group as long as the row is one scale per row
    if (group !== 'channel' && (unit.columns % group !== 0 || group >= unit.columns)) return false;
    return matrixCost(unit, format, target) !== undefined;
  });
  const f32 = parseFormat('f32');
  return found.length === 0 ? [f32] : found;
}

function runs(target: Target, format: Exclude<WeightFormat, { kind: 'float' }>): boolean {
  const width = format.kind === 'codebook' ? 'c4' : `w${format.bits}`;
  if (!target.weightFormats.includes(width)) return false;
  return format.group === 'channel' || target.groupSizes.includes(format.group);
}
