/**
 * Files that people take for ONNX models. ONNX has no magic number, and protobuf's complaint about a
 * wrong file helps nobody.
 */
import { FettleError } from '../../runtime/errors.ts';

/** Other formats: the text at a byte offset that gives them away, their name, what to do. */
const otherFormats: readonly {
  readonly offset: number;
  readonly text: string;
  readonly what: string;
  readonly fix: string;
}[] = [
  {
    offset: 0,
    text: 'version https://git-lfs',
    what: 'a Git LFS pointer',
    fix: 'Fetch the file itself with `git lfs pull`.',
  },
  {
    offset: 0,
    text: 'PK\u0003\u0004',
    what: 'a ZIP archive (a PyTorch checkpoint, perhaps)',
    fix: 'Export the model to ONNX.',
  },
  {
    offset: 0,
    text: '<',
    what: 'an HTML or XML page',
    fix: 'Download the file itself, not the page that shows it.',
  },
  { offset: 0, text: '{', what: 'JSON', fix: 'Name the .onnx file.' },
  { offset: 0, text: 'GGUF', what: 'a GGUF model', fix: 'Export the model to ONNX.' },
  {
    offset: 4,
    text: 'ORTM',
    what: "onnxruntime's own ORT format",
    fix: 'Use the .onnx file it was made from.',
  },
  { offset: 4, text: 'TFL3', what: 'a TensorFlow Lite model', fix: 'Export the model to ONNX.' },
];

/**
 * Throws when bytes are recognised as something else.
 *
 * @throws FettleError MODEL_INVALID that names the format
 */
export function refuseOtherFormats(bytes: Uint8Array): void {
  const head = String.fromCharCode(...bytes.subarray(0, 64));
  const found =
    bytes.length === 0
      ? { what: 'an empty file', fix: 'Get the file again.' }
      : otherFormats.find(({ offset, text }) => head.startsWith(text, offset));
  if (found === undefined) return;
  throw new FettleError('MODEL_INVALID', `This is ${found.what}, not an ONNX model.`, {
    at: { offset: 0 },
    fix: found.fix,
  });
}
