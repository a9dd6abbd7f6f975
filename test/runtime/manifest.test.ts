/** The manifest: the specification's example, and what is refused before anything is allocated. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';

import { parseManifest } from '../../runtime/index.ts';
import { fettleError } from '../support/fake-engine.ts';
import { decoderBundle, linearBundle, manifestOf } from '../support/tiny-bundle.ts';

const encode = (value: unknown): Uint8Array => new TextEncoder().encode(JSON.stringify(value));

test('the example of docs/bundle.md parses to itself', () => {
  const text = readFileSync(join(import.meta.dirname, '../../docs/bundle.md'), 'utf8');
  const example = /```json bundle\n([^]*?)\n```/.exec(text)?.[1] ?? '';
  const manifest = parseManifest(new TextEncoder().encode(example));
  assert.deepEqual(manifest, JSON.parse(example));
  assert.equal(manifest.decoder?.contextLength, 1024);
});

test('unknown keys are ignored at every level', () => {
  const plain = manifestOf(decoderBundle());
  const more = structuredClone(plain);
  more.later = { anything: true };
  more.weights.later = 1;
  more.weights.files[0].later = 'x';
  more.decoder.later = [1];
  assert.deepEqual(parseManifest(encode(more)), parseManifest(encode(plain)));
});

/** What is spoilt, and what the message must say. */
type Spoilt = readonly [message: RegExp, change: (manifest: ReturnType<typeof manifestOf>) => void];

function refuses(make: () => Map<string, Uint8Array<ArrayBuffer>>, cases: readonly Spoilt[]): void {
  for (const [message, change] of cases) {
    const manifest = manifestOf(make());
    change(manifest);
    assert.throws(
      () => parseManifest(encode(manifest)),
      (error) => fettleError('BUNDLE_CORRUPT', message)(error),
      String(message),
    );
  }
}

test('sizes, offsets and overlaps are checked before anything is allocated', () =>
  refuses(linearBundle, [
    [/weights.bytes: wanted 268, the sum/, (m) => (m.weights.bytes = 2 ** 40)],
    [/weights.files\[0\].bytes: wanted 1 to 16777216/, (m) => (m.weights.files[0].bytes = 2 ** 25)],
    [
      /weights.files\[0\].bytes: wanted a whole number, got -?/,
      (m) => (m.weights.files[0].bytes = 0.5),
    ],
    [/weights.files\[1\].bytes: wanted 1 to/, (m) => (m.weights.files[1].bytes = 0)],
    [/tensors\[1\].offset: wanted a multiple of 256/, (m) => (m.weights.tensors[1].offset = 255)],
    [/tensors\[1\].offset: wanted at least 48/, (m) => (m.weights.tensors[1].offset = 0)],
    [
      /tensors\[1\]: wanted an end within 268 bytes, got 524/,
      (m) => (m.weights.tensors[1].offset = 512),
    ],
    [/tensors\[0\].bytes: wanted 48 for f32 \[12\]/, (m) => (m.weights.tensors[0].bytes = 44)],
    [/tensors\[0\].bytes: wanted/, (m) => (m.weights.tensors[0].shape = [2 ** 31, 2 ** 31])],
    [/shape\[0\]: wanted 0 to/, (m) => (m.weights.tensors[0].shape = [-12])],
    [/dtype: wanted a dtype, got "f33"/, (m) => (m.weights.tensors[0].dtype = 'f33')],
    [/a dtype of fixed size/, (m) => (m.weights.tensors[0].dtype = 'string')],
    [/weights.tensors: wanted unique names/, (m) => (m.weights.tensors[1].name = 'w')],
    [/files\[0\].sha256: wanted 64 lower-case hex/, (m) => (m.files[0].sha256 = 'ABC')],
    [/files: wanted every path once/, (m) => (m.files[0].path = 'WEIGHTS-00.bin')],
    [/files: wanted every path once/, (m) => (m.files[0].path = 'manifest.json')],
    [
      /files: wanted at most 4096 entries/,
      (m) => (m.files = Array.from({ length: 5000 }, () => 0)),
    ],
    [/weights: wanted an object, got nothing/, (m) => delete m.weights],
  ]));

test('kinds, names and references are checked', () =>
  refuses(linearBundle, [
    [/format: wanted "fettle-bundle"/, (m) => (m.format = 'bundle')],
    [/version: wanted a whole number, got "1"/, (m) => (m.version = '1')],
    [/engine: wanted "wasm" or "webgpu" or "ort"/, (m) => (m.engine = 'tensorflow')],
    [/program.file: wanted a path listed/, (m) => (m.program.file = 'other.onnx')],
    [/program.provider/, (m) => (m.program.provider = 'cuda')],
    [/inputs: wanted unique names, got "x" twice/, (m) => m.inputs.push(m.inputs[0])],
    [/inputs\[0\].shape\[0\]/, (m) => (m.inputs[0].shape[0] = -1)],
    [/memory.exact: wanted true or false/, (m) => (m.memory.exact = 'yes')],
    [/canaries.file: wanted a path listed/, (m) => (m.canaries = { file: 'c.bin', tolerance: 0 })],
    [/text.tokenizer: wanted a path/, (m) => (m.text = { tokenizer: 'tokenizer.json' })],
    [/recipe: wanted an object, got a list/, (m) => (m.recipe = [])],
  ]));

test('a decoder drives every input exactly once', () =>
  refuses(decoderBundle, [
    [/decoder.ids: wanted an input not used otherwise, got "idz"/, (m) => (m.decoder.ids = 'idz')],
    [/decoder.mask: wanted an input not used/, (m) => (m.decoder.mask = 'ids')],
    [/nothing for "positions"/, (m) => delete m.decoder.positions],
    [/decoder.logits: wanted an output/, (m) => (m.decoder.logits = 'ids')],
    [/decoder.state\[0\].axis: wanted 0 to 3/, (m) => (m.decoder.state[0].axis = 4)],
    [/decoder.endIds\[0\]: wanted 0 to 7/, (m) => (m.decoder.endIds = [8])],
    [/decoder.contextLength: wanted 1 to/, (m) => (m.decoder.contextLength = 0)],
    [/nothing for "past"/, (m) => (m.decoder.state = [])],
  ]));
