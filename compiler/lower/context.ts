/** What the steps of a lowering share. */
import type { Node, Value } from '../ir/graph.ts';
import type { Rewriter } from '../ir/rewriter.ts';
import type { CodeBits } from '../quant/formats.ts';
import { integerFormat } from '../quant/formats.ts';
import type { QuantizedGroup } from './quantized-uses.ts';

/** What the steps of a lowering share. */
export interface LowerContext {
  /** The only way to edit. */
  readonly rewriter: Rewriter;
  /** Provider that runs the model. */
  readonly provider: 'wasm' | 'webgpu';
  /** Number format of constants by name, for the manifest. */
  readonly formats: Map<string, string>;
  /** Attention masks already written, by what they say. */
  readonly masks: Map<string, Value>;
  /** Records why a form that was looked for was not used. */
  refuse(rule: string, at: Node | Value | string, why: string): void;
}

/**
 * Adds a constant that is part of a quantized weight.
 *
 * @param bits - bits of a code as stored, which may be more than the format asked for
 */
export function quantizedConstant(
  context: LowerContext,
  group: QuantizedGroup,
  part: string,
  bits: CodeBits,
  value: Parameters<Rewriter['constant']>[1],
): Value {
  const constant = context.rewriter.constant(`${group.name}.${part}`, value);
  const size = group.group >= group.columns ? 'channel' : group.group;
  context.formats.set(constant.name, integerFormat(bits, size, group.symmetric).name);
  return constant;
}
