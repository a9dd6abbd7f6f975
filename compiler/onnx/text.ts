/**
 * Byte strings as text and back without loss. ONNX strings should be UTF-8, but custom ops put
 * anything into them. A byte that is not part of valid UTF-8 becomes a lone low surrogate
 * (0x80 -> U+DC80 … 0xFF -> U+DCFF), which valid UTF-8 never yields.
 *
 * @see https://peps.python.org/pep-0383/
 */

const strict = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
const encoder = new TextEncoder();

/** Text of UTF-8 bytes; bytes that are not UTF-8 become lone surrogates. */
export function textOf(bytes: Uint8Array): string {
  try {
    return strict.decode(bytes);
  } catch {
    return escaped(bytes);
  }
}

/** The bytes {@link textOf} made the text from. */
export function bytesOfText(text: string): Uint8Array {
  const pieces = text.split(/([\uDC80-\uDCFF])/u);
  if (pieces.length === 1) return encoder.encode(text);
  // with the u flag the odd pieces are lone surrogates only, never half of a pair
  const bytes = pieces.flatMap((piece, i) =>
    i % 2 === 1 ? [piece.charCodeAt(0) & 0xff] : [...encoder.encode(piece)],
  );
  return Uint8Array.from(bytes);
}

function escaped(bytes: Uint8Array): string {
  let text = '';
  for (let at = 0; at < bytes.length;) {
    const length = sequenceLength(bytes, at);
    if (length === 0) text += String.fromCharCode(0xdc00 | (bytes[at++] ?? 0));
    else text += strict.decode(bytes.subarray(at, (at += length)));
  }
  return text;
}

/** Length of the valid UTF-8 sequence at `at`; 0 when there is none. */
function sequenceLength(bytes: Uint8Array, at: number): number {
  const lead = bytes[at] ?? 0;
  const length = lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  if (length === 0 || at + length > bytes.length) return 0;
  try {
    strict.decode(bytes.subarray(at, at + length));
    return length;
  } catch {
    return 0;
  }
}
