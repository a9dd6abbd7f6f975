/**
 * Fettle's compiler: ONNX models into bundles. Web APIs only; `fettle/compiler/node` adds files on disk.
 *
 *     import { compile, openSource, parseRecipe } from 'fettle/compiler';
 *     import { NodeFiles } from 'fettle/compiler/node';
 *
 *     const files = new NodeFiles();
 *     const { bundles } = await compile(openSource(files, 'model.onnx'), {
 *       targets: ['ort-wasm'],
 *       recipe: parseRecipe({ weights: 'w4g32', maxSize: '3MB' }),
 *       files,
 *       out: 'bundle',
 *     });
 */

// compiling
export { compile } from './compile.ts';
export type {
  CompiledBundle,
  CompileOptions,
  CompileResult,
  Quality,
  QualityMeasure,
} from './compile-options.ts';
export type { InputShape, Recipe } from './recipe.ts';
export { defaultRecipe, parseRecipe, parseShapeOption, presetRecipe, presets } from './recipe.ts';
export type { OpenBundle } from './run-bundle.ts';
export { bundleRunner, folderSource } from './run-bundle.ts';
export type { BundleRunner } from './emit/expected.ts';
export type { Tensors } from './emit/canaries.ts';
export { VERSION } from './version.ts';

// models and where they come from
export type { ModelConfig } from './analyze/config.ts';
export type { ModelSource, TextFiles } from './source.ts';
export { openSource } from './source.ts';
export type { FileStat, FileSystem, FileWriter } from './files.ts';
export { MemoryFiles } from './files.ts';
export type { DecodeOptions } from './onnx/read.ts';
export { decodeModel, readModel } from './onnx/read.ts';
export type { EncodeOptions, WriteOptions } from './onnx/write.ts';
export { encodeModel, writeModel } from './onnx/write.ts';
export type { Attribute, Attributes } from './ir/attribute.ts';
export type { Dim, Shape } from './ir/dim.ts';
export type { ValueType } from './ir/graph.ts';
export { Graph, Model, Node, Value } from './ir/graph.ts';
export type { ByteSource } from './ir/weight.ts';
export { Weight } from './ir/weight.ts';

// looking at models
export type { Inspection, TargetMemory } from './inspect.ts';
export { inspectModel } from './inspect.ts';
export type { DecoderAnalysis } from './analyze/decoder.ts';
export { analyzeDecoder } from './analyze/decoder.ts';
export type { MemoryEstimate, MemoryOptions } from './emit/memory.ts';
export { estimateMemory } from './emit/memory.ts';
export type { EvaluateOptions } from './ir/evaluate.ts';
export { evaluate } from './ir/evaluate.ts';
export type { InferOptions } from './ir/infer.ts';
export { inferModel } from './ir/infer.ts';
export { parseModel } from './ir/parse.ts';
export type { PrintOptions } from './ir/print.ts';
export { printModel } from './ir/print.ts';
export { verifyModel } from './ir/verify.ts';

// passes, one by one
export type {
  Log,
  ModelSize,
  Pass,
  PassContext,
  PassGroup,
  PassReport,
  Progress,
  Refusal,
} from './passes/pass.ts';
export type { PassEntry } from './passes/pass-options.ts';
export { findPass, passes, pipelineFrom } from './passes.ts';
export type { RunPassesOptions } from './run-passes.ts';
export { runPasses } from './run-passes.ts';
export type { InferNode, NodeOptions } from './ir/rewriter.ts';
export { Rewriter } from './ir/rewriter.ts';

// number formats
export type {
  CodeBits,
  CodebookFormat,
  FloatFormat,
  GroupSize,
  IntegerFormat,
  NumberFormat,
  ReservedFormat,
  WeightFormat,
} from './quant/formats.ts';
export { bitsPerWeight, numberFormats, parseFormat } from './quant/formats.ts';

// shared with the runtime
export type { ErrorCode, ErrorPlace, FettleErrorDetails } from '../runtime/errors.ts';
export { FettleError } from '../runtime/errors.ts';
export type { DType, Tensor, TensorData } from '../runtime/tensor.ts';
export { tensor } from '../runtime/tensor.ts';
