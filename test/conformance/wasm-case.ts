/** The ONNX conformance cases on the WASM engine: which run, which are refused, and why. */
import { readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { inferModel } from '../../compiler/ir/infer.ts';
import { Weight } from '../../compiler/ir/weight.ts';
import { decodeModel } from '../../compiler/onnx/read.ts';
import { readNumbers } from '../../compiler/ops/numbers.ts';
import { pipelineFrom } from '../../compiler/passes.ts';
import { runPasses } from '../../compiler/run-passes.ts';
import { FettleError } from '../../runtime/errors.ts';
import type { Tensor } from '../../runtime/tensor.ts';
import { elementCount } from '../../runtime/tensor.ts';
import type { KernelVariant } from '../../runtime/wasm/module.ts';
import { caseInput, caseTensor } from '../support/conformance.ts';
import { runOnWasm } from '../support/run-on-wasm.ts';

/** How a case went on the engine. */
export interface WasmCaseResult {
  readonly name: string;
  /** Ops of the model. */
  readonly ops: readonly string[];
  readonly outcome: 'passed' | 'failed' | 'refused' | 'skipped';
  readonly reason: string;
}

/** Largest relative difference: sums in f32, in another order, and functions to some 1e-6. */
const RELATIVE = 1e-3;
/** Largest difference of numbers near 0. */
const ABSOLUTE = 2e-6;

/** Ops whose inputs but the first are weights, which are constants in real models. */
const weighted: ReadonlySet<string> = new Set(['ConvTranspose', 'LSTM', 'GRU', 'RNN']);
/** The one that is not. */
const SEQUENCE_LENGTHS = 4;

/**
 * Runs one case. Inputs that can say a size are made constants, as they are in real models.
 *
 * @param path - folder of the case
 */
export async function runWasmCase(
  path: string,
  variant: KernelVariant = 'simd',
): Promise<WasmCaseResult> {
  const model = decodeModel(readFileSync(join(path, 'model.onnx')));
  const { graph } = model;
  const ops = [...new Set([...graph.allNodes()].map(({ op }) => op))];
  const isBrain = [...graph.inputs, ...graph.outputs].some(({ dtype }) => dtype === 'bf16');
  const result = (outcome: WasmCaseResult['outcome'], reason = ''): WasmCaseResult => ({
    name: basename(path),
    ops,
    outcome,
    reason,
  });
  if (
    [...graph.inputs, ...graph.outputs].some(
      ({ opaqueType, dtype }) => opaqueType !== undefined || dtype === 'string',
    )
  )
    return result('skipped', 'no tensors of numbers');
  // the cases store it as integers
  if (isBrain) return result('skipped', 'bfloat16');
  const feeds = new Map<string, Tensor>();
  for (const [index, value] of [...graph.inputs].entries()) {
    const tensor = caseInput(path, index, value);
    const isFloat = /f\d/.test(tensor.dtype);
    const isWeight = index > 0 && ops.some((op) => weighted.has(op)) && index !== SEQUENCE_LENGTHS;
    if (
      isWeight ||
      (tensor.shape.length <= 1 && elementCount(tensor.shape) <= 64 && (!isFloat || index > 0)) ||
      elementCount(tensor.shape) === 0
    ) {
      value.weight = Weight.of(tensor);
      value.shape = tensor.shape;
      graph.inputs.splice(graph.inputs.indexOf(value), 1);
      graph.addConstant(value);
    } else {
      value.shape = tensor.shape;
      feeds.set(value.name, tensor);
    }
  }
  if (feeds.size === 0) return result('skipped', 'nothing but constants');
  try {
    inferModel(model);
    await runPasses(
      model,
      pipelineFrom(['clean-up', 'expand-integers', 'fold-constants', 'eliminate-dead']),
      {},
    );
    const outputs = await runOnWasm(model, feeds, { variant });
    for (const [index, value] of graph.outputs.entries()) {
      const wanted = caseTensor(path, 'output', index);
      const got = outputs.get(value.name);
      if (got === undefined) return result('failed', `no output ${index}`);
      if (got.shape.join() !== wanted.shape.join())
        return result('failed', `output ${index} is [${got.shape}], wanted [${wanted.shape}]`);
      const [xs, ys] = [readNumbers(got), readNumbers(wanted)];
      const at = [...ys].findIndex((y, i) => {
        const x = xs[i] ?? Number.NaN;
        if (Object.is(x, y) || x === y || (Number.isNaN(x) && Number.isNaN(y))) return false;
        return !(Math.abs(x - y) <= ABSOLUTE + RELATIVE * Math.abs(y));
      });
      if (at >= 0) return result('failed', `output ${index} [${at}]: ${xs[at]}, wanted ${ys[at]}`);
    }
    return result('passed');
  } catch (error) {
    if (!(error instanceof FettleError)) throw error;
    const refused = error.code === 'OP_UNSUPPORTED' || error.code === 'SHAPE_UNKNOWN';
    return result(refused ? 'refused' : 'failed', error.message);
  }
}
