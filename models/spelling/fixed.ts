/**
 * The spelling of PyTorch's exporters on a Hugging Face model with a static cache: each cache holds the
 * whole context from the first call on, keys are put into it by index_put (tokens turned to the front and
 * back around ScatterND), values by index_copy (ScatterElements), and a mask hides what is not written
 * yet.
 *
 * Source: transformers, StaticCache and TorchExportableModuleWithStaticCache; torch.onnx, index_put and
 * index_copy.
 */
import { int, ints } from '../../compiler/ir/attribute.ts';
import type { Value } from '../../compiler/ir/graph.ts';
import type { DecoderConfig } from '../decoder-config.ts';
import type { Emitter } from '../emitter.ts';
import type { DecoderInputs, LayerCache, Spelling } from './spelling.ts';
import { TorchParts } from './torch.ts';

/** PyTorch, static cache. */
export const fixedSpelling: Spelling = {
  name: 'fixed',
  summary: 'plain ONNX ops, caches of fixed length by ScatterND and ScatterElements, opset 18',
  opsets: { '': 18 },
  takesPositions: false,
  cache: 'fixed',
  foldsGainOffset: false,
  start: (emitter, config, inputs) => new FixedParts(emitter, config, inputs),
};

class FixedParts extends TorchParts {
  /** i64 [sequence]. */
  private readonly written: Value;

  constructor(emitter: Emitter, config: DecoderConfig, inputs: DecoderInputs) {
    super(emitter, config, inputs);
    this.written = inputs.places ?? emitter.ints();
  }

  protected override cached(path: string, past: LayerCache, key: Value, value: Value): LayerCache {
    const { emitter: e } = this;
    const perm = { perm: ints([2, 0, 1, 3]) };
    const rows = e.op(path, 'Unsqueeze', [this.written, e.ints(-1)]);
    const buffer = e.op(path, 'ScatterND', [
      e.op(path, 'Transpose', [past.key], perm),
      rows,
      e.op(path, 'Transpose', [key], perm),
    ]);
    const places = e.op(path, 'Expand', [
      e.op(path, 'Reshape', [this.written, e.ints(1, 1, -1, 1)]),
      e.op(path, 'Shape', [value]),
    ]);
    return {
      key: e.op(path, 'Transpose', [buffer], { perm: ints([1, 2, 0, 3]) }),
      value: e.op(path, 'ScatterElements', [past.value, places, value], { axis: int(2) }),
    };
  }

  /** Counted in the buffer. */
  protected override countPositions(inputs: DecoderInputs): Value {
    const { emitter: e } = this;
    return e.op('/model', 'Unsqueeze', [inputs.places ?? inputs.ids, e.ints(0)]);
  }
}
