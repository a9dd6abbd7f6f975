/**
 * NumPy's .npy files to and from tensors.
 *
 * Layout: magic `\x93NUMPY`, two version bytes, header length (u16 in version 1, u32 in 2 and 3), a
 * Python dict literal with `descr`, `fortran_order` and `shape`, then the elements.
 *
 * @see https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
 */
import { FettleError } from '../runtime/errors.ts';
import type { DType, Tensor } from '../runtime/tensor.ts';
import { bytesFor, bytesOf, dtypes, elementCount, tensor, viewBytes } from '../runtime/tensor.ts';

/** NumPy's type code of each dtype it has. */
const codes: readonly (readonly [DType, string])[] = [
  ['f32', 'f4'],
  ['f64', 'f8'],
  ['f16', 'f2'],
  ['i8', 'i1'],
  ['i16', 'i2'],
  ['i32', 'i4'],
  ['i64', 'i8'],
  ['u8', 'u1'],
  ['u16', 'u2'],
  ['u32', 'u4'],
  ['u64', 'u8'],
  ['bool', 'b1'],
  ['c64', 'c8'],
  ['c128', 'c16'],
];

const MAGIC = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59];

/**
 * Reads a .npy file.
 *
 * @param bytes - the whole file
 * @param name - for messages
 * @returns a tensor in row-major order, whatever the file's order
 * @throws FettleError MODEL_INVALID when it is no .npy file or holds objects, strings or dates
 */
export function readNpy(bytes: Uint8Array, name = 'array.npy'): Tensor {
  const { text, dataStart } = header(bytes, name);
  const { descr, fortran, shape } = parseHeader(text, name);
  const [dtype, bigEndian] = dtypeOf(descr, name);
  const count = elementCount(shape);
  const wanted = Number.isSafeInteger(count) ? bytesFor(dtype, count) : Infinity;
  if (bytes.length - dataStart !== wanted)
    throw bad(
      name,
      `[${shape}] of ${descr} takes ${wanted} bytes, ${bytes.length - dataStart} follow`,
    );
  const elementBytes = dtypes[dtype].bits / 8;
  let data: Uint8Array = bytes.slice(dataStart);
  if (bigEndian)
    reverseEach(data, dtype === 'c64' || dtype === 'c128' ? elementBytes / 2 : elementBytes);
  if (fortran && shape.length > 1) data = rowMajor(data, shape, elementBytes);
  return tensor(dtype, shape, viewBytes(dtype, data));
}

/**
 * Writes a .npy file, version 1.0 (2.0 for a header beyond 64 KiB), little-endian, row-major.
 *
 * @throws RangeError for a dtype NumPy does not have
 */
export function writeNpy({ dtype, shape, data }: Tensor): Uint8Array {
  const code = codes.find(([known]) => known === dtype)?.[1];
  if (code === undefined) throw new RangeError(`dtype: wanted one that NumPy has, got ${dtype}.`);
  const order = dtypes[dtype].bits === 8 ? '|' : '<';
  const dims = shape.length === 1 ? `${shape[0]},` : shape.join(', ');
  const text = `{'descr': '${order}${code}', 'fortran_order': False, 'shape': (${dims}), }`;
  const wide = text.length + 128 > 0xffff;
  const prefix = wide ? 12 : 10;
  // the elements start at a multiple of 64
  const length = Math.ceil((prefix + text.length + 1) / 64) * 64 - prefix;
  const body = bytesOf(data);
  const file = new Uint8Array(prefix + length + body.length);
  const view = new DataView(file.buffer);
  file.set([...MAGIC, wide ? 2 : 1, 0]);
  if (wide) view.setUint32(8, length, true);
  else view.setUint16(8, length, true);
  file.set(new TextEncoder().encode(`${text.padEnd(length - 1)}\n`), prefix);
  file.set(body, prefix + length);
  return file;
}

function header(bytes: Uint8Array, name: string): { text: string; dataStart: number } {
  if (bytes.length < 10 || MAGIC.some((byte, i) => bytes[i] !== byte))
    throw bad(name, 'it does not start with the magic "\\x93NUMPY"');
  const major = bytes[6] ?? 0;
  if (major < 1 || major > 3) throw bad(name, `format version ${major}; 1 to 3 are known`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (major > 1 && bytes.length < 12) throw bad(name, 'it ends within its header');
  const prefix = major === 1 ? 10 : 12;
  const length = major === 1 ? view.getUint16(8, true) : view.getUint32(8, true);
  if (prefix + length > bytes.length) throw bad(name, 'it ends within its header');
  const text = new TextDecoder().decode(bytes.subarray(prefix, prefix + length));
  return { text, dataStart: prefix + length };
}

function parseHeader(
  text: string,
  name: string,
): { descr: string; fortran: boolean; shape: readonly number[] } {
  const descr = /'descr':\s*'([^']*)'/.exec(text)?.[1];
  const fortran = /'fortran_order':\s*(True|False)/.exec(text)?.[1];
  const dims = /'shape':\s*\(([\d\s,]*)\)/.exec(text)?.[1];
  if (/'descr':\s*\[/.test(text)) throw bad(name, 'it holds records');
  if (descr === undefined || fortran === undefined || dims === undefined)
    throw bad(name, `its header reads ${JSON.stringify(text.trim().slice(0, 80))}`);
  const shape = dims
    .split(',')
    .map((dim) => dim.trim())
    .filter((dim) => dim !== '')
    .map(Number);
  if (!shape.every(Number.isSafeInteger)) throw bad(name, `its shape is (${dims})`);
  return { descr, fortran: fortran === 'True', shape };
}

function dtypeOf(descr: string, name: string): [DType, bigEndian: boolean] {
  const code = descr.replace(/^[<>|=]/, '');
  const dtype = codes.find(([, known]) => known === (code === '?' ? 'b1' : code))?.[0];
  if (dtype === undefined) throw bad(name, `its element type is "${descr}"`);
  return [dtype, descr.startsWith('>')];
}

function reverseEach(data: Uint8Array, size: number): void {
  for (let at = 0; at < data.length; at += size) data.subarray(at, at + size).reverse();
}

/** Column-major storage to row-major. */
function rowMajor(data: Uint8Array, shape: readonly number[], size: number): Uint8Array {
  const result = new Uint8Array(data.length);
  const index = shape.map(() => 0);
  const strides = shape.map((_, axis) => elementCount(shape.slice(0, axis)) * size);
  for (let at = 0; at < data.length; at += size) {
    const from = index.reduce((sum, i, axis) => sum + i * (strides[axis] ?? 0), 0);
    result.set(data.subarray(from, from + size), at);
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      index[axis] = (index[axis] ?? 0) + 1;
      if ((index[axis] ?? 0) < (shape[axis] ?? 0)) break;
      index[axis] = 0;
    }
  }
  return result;
}

function bad(name: string, why: string): FettleError {
  return new FettleError('MODEL_INVALID', `Cannot read "${name}" as a .npy file: ${why}.`, {
    at: { file: name },
    fix: 'Save a plain numeric array with numpy.save.',
  });
}
